"""The network interface that reaches the other machines of a launch."""

from __future__ import annotations

import array
import ipaddress
import socket
import struct
import sys
from contextlib import suppress

INTERFACE = "GLOO_SOCKET_IFNAME"  # gloo's variable: the name of the interface of its connections
SIOCGIFADDR = 0x8915  # <linux/sockios.h>: the address of an interface


def interface_towards(host: str) -> str | None:
    """Return the name of the interface by which packets leave for `host`; None if it is this machine, or unknown.

    Many systems resolve their own host name to 127.0.1.1. Gloo then offers an address that no other machine reaches.
    """
    if sys.platform != "linux":
        return None
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))  # a datagram socket sends nothing here; it only chooses a route
        ours = probe.getsockname()[0]
        if not ipaddress.ip_address(ours).is_loopback:
            return next((name for _, name in socket.if_nameindex() if _address(name) == ours), None)
    return None


def _address(interface: str) -> str | None:
    """Return the IPv4 address of an interface; None if it has none."""
    import fcntl

    request = array.array("b", struct.pack("256s", interface.encode()[:15]))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
        fcntl.ioctl(probe.fileno(), SIOCGIFADDR, request)
        return socket.inet_ntoa(request.tobytes()[20:24])
    return None
