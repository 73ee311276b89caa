"""What the machine refuses is one message that names it; every other error stays what it was."""

from __future__ import annotations

import errno
import os

import pytest

from ncflow.files import UNWRITABLE
from ncflow.training import explained_faults


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
