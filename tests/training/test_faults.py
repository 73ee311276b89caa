"""What the machine refuses is one message that names it; every other error stays what it was."""

from __future__ import annotations

import errno
import os

import pytest
import torch

from ncflow.exits import Exit
from ncflow.files import UNWRITABLE
from ncflow.training import Disconnected, OutOfMemory, explained_faults


@pytest.mark.parametrize("number", UNWRITABLE)
def test_a_disk_error_names_the_place_and_the_remedy(number):
    words = f"cannot write models/run: {os.strerror(number)}; make room or allow it, and rerun the same command"
    with pytest.raises(OSError, match=words), explained_faults(batch_size=64, precision="fp32"):
        raise OSError(number, os.strerror(number), "models/run")


@pytest.mark.parametrize("error", [FileNotFoundError(errno.ENOENT, "No such file", "x"), OSError("explained already")])
def test_errors_that_are_not_of_writing_stay_as_they_are(error):
    with pytest.raises(OSError) as raised, explained_faults(batch_size=64, precision="fp32"):
        raise error
    assert raised.value is error


LOST = {
    "[/src/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 10000ms for recv operation to complete":
        "Timed out waiting 10000ms for recv operation to complete",
    "[/src/gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.2]:61150. Check the logs\nof it":
        "Connection closed by peer [10.0.0.2]:61150",
}  # fmt: skip


@pytest.mark.parametrize("text", LOST)
def test_a_lost_process_is_a_reason_to_start_again(text):
    with pytest.raises(Disconnected) as stop, explained_faults(batch_size=64, precision="fp32"):
        raise RuntimeError(text)
    assert stop.value.code == Exit.AGAIN
    assert f"this run: {LOST[text]}. That process ended" in str(stop.value)
    assert "Rerun the same command" in str(stop.value)


def test_torchs_own_network_errors_are_a_reason_to_start_again():
    with pytest.raises(Disconnected, match="no answer"), explained_faults(batch_size=64, precision="fp32"):
        raise torch.distributed.DistNetworkError("no answer")


def test_other_runtime_errors_are_not_taken_for_a_lost_process():
    for text in ("shapes differ", "[/gloo/transport/tcp/pair.cc:1] op.nbytes 8 vs 4", "ncclInvalidUsage: same GPU"):
        with pytest.raises(RuntimeError) as raised, explained_faults(batch_size=64, precision="fp32"):
            raise RuntimeError(text)
        assert str(raised.value) == text
    with pytest.raises(OutOfMemory), explained_faults(batch_size=64, precision="fp32"):
        raise RuntimeError("CUDA out of memory")
