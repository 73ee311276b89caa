"""Commands of ncflow, each in a fork of one process that has the imports done: apart from each other, but quicker."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Outcome(NamedTuple):
    """How a command ended, and what it printed on both streams."""

    code: int
    text: str


def run_commands(commands: Sequence[Sequence[str]], cwd: Path) -> list[Outcome]:
    """Run `ncflow <words>` for each list of words, one after the other."""
    done = subprocess.run(
        [sys.executable, __file__], input=json.dumps(commands), cwd=cwd, capture_output=True, text=True, check=True
    )
    return [Outcome(*outcome) for outcome in json.loads(done.stdout)]


def _forked(words: Sequence[str]) -> Outcome:
    """The outcome of one command in a child process."""
    from ncflow.__main__ import main

    with tempfile.TemporaryFile("w+") as file:
        if (child := os.fork()) == 0:
            for stream in (1, 2):
                os.dup2(file.fileno(), stream)
            sys.argv = ["ncflow", *words]
            code = 1
            try:
                main()
                code = 0
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else int(end.code is not None)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        _, status = os.waitpid(child, 0)
        file.seek(0)
        return Outcome(os.waitstatus_to_exitcode(status), file.read())


if __name__ == "__main__":
    import timm  # noqa: F401
    import torch._dynamo  # noqa: F401  # which the first optimizer imports

    import ncflow.assembly
    import ncflow.cli
    import ncflow.experiments
    import ncflow.posthoc
    import ncflow.stages  # noqa: F401

    json.dump([_forked(words) for words in json.load(sys.stdin)], sys.stdout)
