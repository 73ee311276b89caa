"""The command `ncflow`, also as `python -m ncflow`. Without the packages that it needs it says how to install them."""

import gc
import runpy
import sys
from types import FrameType

from ncflow.exits import end_process, refuse
from ncflow.extras import MissingPackage

THRESHOLDS = (50_000, 20, 20)  # with Python's own, its collector takes a fifth of the time of imports


def main() -> None:
    """Run the command line."""
    try:
        from ncflow.cli import main as run
    except MissingPackage as error:
        refuse(error)
    run()


def program() -> None:
    """Run the command line as a whole program, and end the process without freeing every object."""
    gc.set_threshold(*THRESHOLDS)
    try:
        main()
    except SystemExit as stop:
        if isinstance(stop.code, int | None) and _is_last(sys._getframe(1)):
            end_process(stop.code or 0)
        raise


def _is_last(caller: FrameType) -> bool:
    """Whether nothing else is left to do. A profiler or a debugger, which has run the caller, still has to report."""
    outer = caller.f_back
    while outer is not None and outer.f_code.co_filename == runpy._run_code.__code__.co_filename:  # type: ignore[attr-defined]
        outer = outer.f_back
    return outer is None and sys.gettrace() is None and not sys.flags.interactive


if __name__ == "__main__":
    program()
