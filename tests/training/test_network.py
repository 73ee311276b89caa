"""Gloo gets the interface that reaches the other machines, and none where the others are on this machine."""

from __future__ import annotations

import socket
import sys

import pytest

from ncflow.training.network import _address, interface_towards

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="interfaces are looked up on Linux only")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "no.such.host.invalid"])
def test_loopback_and_unknown_hosts_choose_no_interface(host):
    assert interface_towards(host) is None


def test_the_interface_of_an_own_address_is_found():
    own = {name: _address(name) for _, name in socket.if_nameindex()}
    for address in own.values():
        if address and not address.startswith("127."):
            assert own[interface_towards(address)] == address


def test_an_interface_without_an_address_has_none():
    assert _address("no-such-link") is None
    assert _address("lo") in ("127.0.0.1", None)
