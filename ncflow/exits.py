"""How a process reports its end: an exit code, and a file with the reason. No program has to parse a log.

A suite names the file in the environment. The first process of a run that ends writes it.
"""

from __future__ import annotations

import atexit
import errno
import json
import os
import sys
import threading
from contextlib import suppress
from enum import IntEnum
from pathlib import Path
from typing import NoReturn

RESULT = "NCFLOW_RESULT"  # environment variable with the file's path


REMEDIES = {
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "allow it, or use another folder"),
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "make room"),
}


class Exit(IntEnum):
    """Exit codes of ncflow. Any other code is a crash, which may not happen again."""

    DONE = 0
    CHANGE = 65  # the user must change something first (EX_DATAERR)
    AGAIN = 75  # interrupted: the same command resumes the run (EX_TEMPFAIL)
    TAKEN = 76  # another process trains this run


def leave_result(code: int, reason: str = "") -> None:
    """Write how this process ends, if a suite named a file and no other process wrote it first."""
    if not (file := os.environ.get(RESULT)):
        return
    with suppress(OSError), Path(file).open("x", encoding="utf-8") as stream:
        json.dump({"code": int(code), "reason": reason}, stream)


def refuse(error: BaseException) -> NoReturn:
    """End this process with one message about what the user must change first, and with its exit code."""
    text = explain(error)
    leave_result(Exit.CHANGE, text)
    sys.stderr.write(f"ncflow: {text}\n")
    sys.exit(Exit.CHANGE)


def explain(error: BaseException) -> str:
    """The message of an error. An error of the system about a file gets the file, the reason and the remedy."""
    if not isinstance(error, OSError) or error.errno is None or error.filename is None:
        return str(error)
    files = [os.fsdecode(file) for file in (error.filename, error.filename2) if file is not None]
    remedy = REMEDIES.get(error.errno, "correct that")
    return f"{' -> '.join(files)}: {os.strerror(error.errno)}; {remedy}, and rerun the same command"


def end_process(code: int) -> NoReturn:
    """End this process as Python does, without freeing every object first: that takes a run two seconds."""
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads
    atexit._run_exitfuncs()
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except (OSError, ValueError):  # the reader of a pipe has gone, or the disk is full: Python reports it
        sys.exit(code)
    os._exit(code)


def read_reason(file: Path) -> str:
    """The reason in a result file, or an empty string if there is none."""
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
        return str(result["reason"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
