"""What the machine refuses is one message that names it; every other error stays what it was."""

from __future__ import annotations

import errno
import os

import pytest

from ncflow.files import UNWRITABLE
from ncflow.training import explained_faults


@pytest.mark.parametrize("number", UNWRITABLE)
def test_what_a_disk_refuses_is_named_with_its_place_and_what_to_do(number):
    words = f"cannot write models/run: {os.strerror(number)}; make room or allow it, and give the same command again"
    with pytest.raises(OSError, match=words), explained_faults(batch_size=64, precision="fp32"):
        raise OSError(number, os.strerror(number), "models/run")


@pytest.mark.parametrize("error", [FileNotFoundError(errno.ENOENT, "No such file", "x"), OSError("explained already")])
def test_errors_that_are_not_of_writing_stay_as_they_are(error):
    with pytest.raises(OSError) as raised, explained_faults(batch_size=64, precision="fp32"):
        raise error
    assert raised.value is error
