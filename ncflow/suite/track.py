"""Track the results of a suite with DVC: one small file per run and snapshot, one folder of them per group."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from ncflow.files import write_text
from ncflow.yaml_files import dump_yaml

FOLDER, SNAPSHOTS = "suites", "snapshots"


def track(group: str, *, root: Path, runs: Iterable[Path], snapshots: Iterable[Path]) -> list[str]:
    """Let DVC cache run folders and snapshots; return the folders of their .dvc files, for git and DVC.

    `dvc push -R` and `dvc pull -R` with these folders transfer a whole group. suites/<group> holds its runs, and
    suites/snapshots the shared snapshots. Runs of the group that are not here stay tracked. Raises ValueError if DVC
    fails, with its reason.
    """
    files = [_tracked(root, group, folder) for folder in runs] + [_tracked(root, SNAPSHOTS, data) for data in snapshots]
    command = [sys.executable, "-m", "dvc", "commit", "--force", *map(str, files)]
    quiet = {"DVC_NO_ANALYTICS": "true"} | os.environ
    done = subprocess.run(command, cwd=root, env=quiet, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"DVC could not track {group}: {_last_words(done.stderr)}; the same command tries it again")
    return [f"{FOLDER}/{group}", f"{FOLDER}/{SNAPSHOTS}"]


def _last_words(said: str) -> str:
    """The errors that DVC printed, without progress bars and offers of help."""
    lines = [line.strip() for line in re.split(r"[\r\n]+", said) if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return "; ".join(errors) or (lines or ["it does not say why"])[-1]


def _tracked(root: Path, name: str, folder: Path) -> Path:
    """The .dvc file of a folder, in another place because git ignores the files next to the folder."""
    file = root / FOLDER / name / f"{folder.name}.dvc"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        output = {"path": folder.relative_to(root).as_posix()}
        write_text(file, dump_yaml({"wdir": "../..", "outs": [output]}))
    return file
