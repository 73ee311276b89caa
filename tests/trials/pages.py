"""Click through MLflow's pages of a finished suite in a real browser, and look for what each must show.

python tests/trials/pages.py [FOLDER for screenshots]

It needs `playwright` and a Chromium: Debian's `chromium`, or the file that CHROMIUM names. Exit code 0 if every page
shows its words, 1 if one does not, 77 with the reason if something is missing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

RUN = "main_linear_ce_seed0"
SMALL = [
    "dataset.name=digits",
    "model.name=resnet20",
    "train.epochs=2",
    "train.analyze_freq=1",
    "model.image_size=8",
    "dataset.imb_factor=0.1",
]
GRID = ["grid.head=[linear, nearest_etf]", "grid.loss=[ce]"]
SIZE = {"width": 1600, "height": 1000}


class Step(NamedTuple):
    """A page: how to get there from the one before, and what it must show."""

    name: str
    go: Callable[[Any], object]
    shows: tuple[str, ...]


STEPS = (
    Step(
        "charts",
        lambda page: None,
        ("Neural collapse", "train/nc1/pinv vs test/nc1/pinv", RUN),
    ),
    Step("accuracy", lambda page: _scroll_to(page, "Drift"), ("Accuracy", "Drift")),
    Step("pictures", lambda page: _scroll_to(page, "test/bias"), ("cosines", "confusion", "test/bias")),
    Step(
        "run",
        lambda page: page.get_by_role("link", name=RUN).first.click(),
        ("Description", "Balanced accuracy", "Tags"),
    ),
    Step("artifacts", lambda page: page.get_by_text("Artifacts").first.click(), ("config.yaml", "provenance.json")),
    Step("models", lambda page: page.goto(page.url.split("#")[0] + "#/experiments/0/models"), (RUN, "Ready")),
    Step("model", lambda page: page.get_by_role("link", name=RUN).first.click(), ("resnet20", "uint8", "Description")),
)


def main() -> int:
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return _skip("the package playwright is not installed")
    browser = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if browser is None:
        return _skip("no Chromium is installed")
    shots = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    with tempfile.TemporaryDirectory() as folder, _ui(Path(folder)) as address, sync_playwright() as play:
        page = play.chromium.launch(executable_path=browser, args=["--no-sandbox"]).new_page(viewport=SIZE)
        page.goto(address)
        return int(not all([_holds(page, step, shots) for step in STEPS]))  # every one is shown, also after a failure


def _holds(page: Any, step: Step, shots: Path | None) -> bool:
    """Go to a page and print whether it shows its words."""
    started, missing = time.monotonic(), list(step.shows)
    step.go(page)
    while missing and time.monotonic() - started < 60:
        page.wait_for_timeout(500)
        text = page.inner_text("body")
        missing = [words for words in missing if words not in text]
    if shots:
        page.wait_for_timeout(4000)  # charts are drawn after their titles
        shots.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=str(shots / f"{step.name}.png"))
    verdict = f"FAILS: no {missing}" if missing else "holds"
    sys.stdout.write(f"{step.name:12} {time.monotonic() - started:5.1f} s  {verdict}\n")
    return not missing


def _scroll_to(page: Any, words: str) -> None:
    """Turn the wheel over the charts until some words are on the page: charts appear as they come into view."""
    for _ in range(60):
        page.mouse.move(1000, 700)
        page.mouse.wheel(0, 250)
        page.wait_for_timeout(200)
        found = page.get_by_text(words, exact=False)
        if found.count() and (found.first.bounding_box() or {"y": 1e9})["y"] < SIZE["height"] - 100:
            return


@contextmanager
def _ui(root: Path) -> Iterator[str]:
    """Train a small suite in a project and yield the address that `ncflow ui` prints."""
    (root / "params.yaml").write_text("exp_name: main\n")
    choices = [word for setting in (*SMALL, *GRID) for word in ("--set", setting)]
    ncflow = [sys.executable, "-m", "ncflow"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([*ncflow, "suite", "main", *choices], cwd=root, env=environment, check=True, capture_output=True)
    server = subprocess.Popen(
        [*ncflow, "ui", "--port", "5087"], cwd=root, env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        yield server.stdout.readline().split()[3]  # compare runs at <address> (Ctrl-C stops)
    finally:
        server.terminate()
        server.wait()


def _skip(reason: str) -> int:
    sys.stdout.write(f"skipped: {reason}\n")
    return 77


if __name__ == "__main__":
    sys.exit(main())
