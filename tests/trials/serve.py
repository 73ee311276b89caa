"""Serve the model of a real run with `mlflow models serve`, and ask it with curl, as docs/serving.md says.

    python tests/trials/serve.py

It trains one epoch on digits in a new project and takes about a minute. It ends with 0 if the server's answers for a
gray and for a color picture are those of the classifier, and a picture without a batch is refused.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ncflow.trained import load_trained

ROOT = Path(__file__).parents[2]
NAME = "digits"
OPTIONS = ("train.epochs=1", "model.image_size=16", "train.precision=fp32", f"tracking.register={NAME}")


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder)
        (project / "params.yaml").write_text("exp_name: served\n")
        ncflow = [sys.executable, "-m", "ncflow", "train"]
        subprocess.run([*ncflow, *(word for option in OPTIONS for word in ("--set", option))], cwd=project, check=True)
        model = load_trained(project / "models" / "served").pictures(project / "data")
        port = _free_port()
        with (project / "server.txt").open("wb") as log:
            server = subprocess.Popen(_serve(port), cwd=project, env=_environment(), stdout=log, stderr=log)
            try:
                _wait(port, server)
                outcomes = {name: _ask(project, name, mode, model, port) for name, mode in (("a", "L"), ("b", "RGB"))}
                outcomes["refused"] = "error_code" in _curl('{"inputs": [[[0, 128, 255]]]}', port)
            finally:
                server.terminate()
                server.wait()
    lines = (f"{name:8} {'ok' if outcome else 'NOT OK'}" for name, outcome in outcomes.items())
    sys.stdout.write("\n".join(lines) + "\n")
    return int(not all(outcomes.values()))


def _serve(port: int) -> list[str]:
    """The documented command, on a free port."""
    command = _documented(r"uv run (mlflow models serve .*)$").replace("-p 5001", f"-p {port}")
    return ["python", "-m", *command.split()]


def _ask(project: Path, name: str, mode: str, model: torch.nn.Module, port: int) -> bool:
    """Whether the documented lines give the classifier's logits for a picture of a mode."""
    shape = (30, 41) if mode == "L" else (30, 41, 3)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    picture.save(project / f"{name}.png")
    script = _documented(r"uv run python -c \"(import json.*?)\" photo.png")
    command = [sys.executable, "-c", script, f"{name}.png"]
    sent = subprocess.run(command, cwd=project, capture_output=True, text=True, check=True).stdout
    found = torch.tensor(json.loads(_curl(sent, port))["predictions"])
    with torch.no_grad():
        expected = model(torch.from_numpy(np.array(picture.convert("RGB")))[None])
    return bool(torch.allclose(found, expected, rtol=1e-5, atol=1e-5))


def _curl(text: str, port: int) -> str:
    header, where = "Content-Type: application/json", f"http://127.0.0.1:{port}/invocations"
    command = ["curl", "-s", "-H", header, "-d", "@-", where]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout


def _documented(pattern: str) -> str:
    found = re.search(pattern, (ROOT / "docs" / "serving.md").read_text(), flags=re.DOTALL | re.MULTILINE)
    assert found, f"docs/serving.md has no {pattern}"
    return found[1].splitlines()[0] if "serve" in pattern else found[1]


def _environment() -> dict[str, str]:
    """With this Python's programs first, as `uv run` does it."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return os.environ | {"PATH": path, "MLFLOW_TRACKING_URI": "sqlite:///mlflow.db", "MLFLOW_DISABLE_TELEMETRY": "true"}


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _wait(port: int, server: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert server.poll() is None, "the server ended"
        time.sleep(0.5)
    raise AssertionError("the server does not answer")


if __name__ == "__main__":
    sys.exit(main())
