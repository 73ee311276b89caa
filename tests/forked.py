"""Commands of ncflow, each in a fork of one process that has the imports done: apart from each other, but quicker."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple


class Outcome(NamedTuple):
    """How a command ended, and what it printed on both streams."""

    code: int
    text: str


def run_commands(commands: Sequence[Sequence[str]], cwd: Path) -> list[Outcome]:
    """Run `ncflow <words>` for each list of words, one after the other."""
    return _outcomes("commands", commands, cwd)


def run_programs(programs: Sequence[str], cwd: Path) -> list[Outcome]:
    """Run each program as `python -c` does, but after `import numpy, torch`, one after the other."""
    return _outcomes("programs", programs, cwd)


def _outcomes(kind: str, todo: Sequence[Any], cwd: Path) -> list[Outcome]:
    command = [sys.executable, __file__, kind]
    done = subprocess.run(command, input=json.dumps(todo), cwd=cwd, capture_output=True, text=True, check=True)
    return [Outcome(*outcome) for outcome in json.loads(done.stdout)]


def _forked(run: Callable[[], object]) -> Outcome:
    """The outcome of a function in a child process."""
    with tempfile.TemporaryFile("w+") as file:
        if (child := os.fork()) == 0:
            for stream in (1, 2):
                os.dup2(file.fileno(), stream)
            code = 1
            try:
                run()
                code = 0
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else int(end.code is not None)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        _, status = os.waitpid(child, 0)
        file.seek(0)
        return Outcome(os.waitstatus_to_exitcode(status), file.read())


def _command(words: Sequence[str]) -> None:
    from ncflow.__main__ import main

    sys.argv = ["ncflow", *words]
    main()


def _import_for_commands() -> None:
    import timm  # noqa: F401
    import torch._dynamo  # noqa: F401  # which the first optimizer imports

    import ncflow.assembly
    import ncflow.cli
    import ncflow.experiments
    import ncflow.posthoc
    import ncflow.stages  # noqa: F401


def _import_for_programs() -> None:
    import numpy  # noqa: F401
    import torch  # noqa: F401


if __name__ == "__main__":
    KINDS = {
        "commands": (_import_for_commands, _command),
        "programs": (_import_for_programs, lambda program: exec(program, {"__name__": "__main__"})),
    }
    prepare, work = KINDS[sys.argv[1]]
    prepare()
    json.dump([_forked(partial(work, each)) for each in json.load(sys.stdin)], sys.stdout)
