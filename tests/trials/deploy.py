"""Build what deploy/Dockerfile describes without Docker, train in it, and check the Kubernetes manifests of deploy/.

    python tests/trials/deploy.py [name ...]

The install lines of the Dockerfile run in a new virtual environment, in a temporary folder that holds the files of its
COPY lines. No image is built, and no cluster runs. The exit code is 0 if all holds, 1 if an outcome fails, 77 with the
reason if a package is missing.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from kill import say
from manifests import FOLDER, all_documents, claims, containers, pod_specs, problems, validate
from services import Program, free_port
from trial import attempted, expect

import ncflow
from ncflow.lookup import lookup

REPOSITORY = FOLDER.parent
MODULES = {"kubernetes_validate": "kubernetes-validate", "dockerfile_parse": "dockerfile-parse"}
INSTALLS = ("pip ", "uv ", "ncflow ")  # the words by which a RUN line starts that needs no Docker
ONLY_IN_AN_IMAGE = ("UV_SYSTEM_PYTHON", "UV_NO_CACHE", "PIP_NO_CACHE_DIR")  # variables of the Dockerfile
NOT_OF_THE_IMAGE = ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE")  # variables of this process
CPU_BUILDS = "UV_TORCH_BACKEND"  # torch builds for CPUs come from PyTorch's server, not from PyPI
TRAIN = "ncflow train --set dataset.name=digits --set model.image_size=8 --set train.epochs=1 --set exp_name=run"


def dockerfile(root: Path) -> str:
    """every install line of the Dockerfile runs, and the image's ncflow has the version of this repository"""
    image = built(root.parent)
    version = image.run("ncflow --version")
    expect(version.strip() == f"ncflow {ncflow.__version__}", version)
    return f"ran: {'; '.join(image.ran)}. Not run: {'; '.join(image.left_out)}. {image.note}"


def context(root: Path) -> str:
    """.dockerignore lets pass what the Dockerfile copies, and nothing else"""
    lines = [line for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    expect(lines[0] == "*", "the first line does not leave out everything")
    passed = {line[1:] for line in lines if line.startswith("!")}
    copied = {source for line in instructions("COPY") for source in line.split()[:-1]}
    expect(passed == copied, f"passed {sorted(passed)}, copied {sorted(copied)}")
    return f"{', '.join(sorted(copied))}"


def training(root: Path) -> str:
    """`ncflow train` of one epoch runs in the image's environment, in a folder that is the project"""
    image, project = built(root.parent), root / "project"
    project.mkdir()
    (project / "params.yaml").touch()
    came = image.run(TRAIN, folder=project)
    expect((project / "models" / "run" / "final_model.pth").exists(), came)
    return next(line for line in came.splitlines() if line.startswith("epoch 1"))


def manifests(root: Path) -> str:
    """every manifest is valid by Kubernetes' schema, and a misspelled key is not"""
    kinds = [f"{document['kind']} ({file.name}: {validate(document)})" for file, document in all_documents()]
    _, job = next(each for each in all_documents() if each[1]["kind"] == "Job")
    job["spec"]["template"]["spec"]["containers"][0]["volumeMount"] = []
    expect("volumeMount" in problems(job), "a misspelled key is not found")
    return ", ".join(kinds)


def names(root: Path) -> str:
    """images have this version; each mount, claim and server that a pod names is in deploy/"""
    services = {
        document["metadata"]["name"]: document for _, document in all_documents() if document["kind"] == "Service"
    }
    for file, spec in pod_specs():
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        missing = {volume["persistentVolumeClaim"]["claimName"] for volume in volumes.values()
                   if "persistentVolumeClaim" in volume} - claims()  # fmt: skip
        expect(not missing, f"{file.name} mounts claims that no file makes: {missing}")
        for each in spec["containers"]:
            tag = each["image"].partition(":")[2]
            expect(tag.removesuffix("-cuda") == ncflow.__version__, f"{file.name}: {each['image']}")
            gpus = "nvidia.com/gpu" in each["resources"]["limits"]
            expect(tag.endswith("-cuda") or not gpus, f"{file.name}: a GPU and the image {each['image']}")
            mounts = {mount["name"] for mount in each["volumeMounts"]}
            expect(mounts <= volumes.keys(), f"{file.name} mounts {mounts - volumes.keys()}")
            for variable in each.get("env", []):
                server = urlsplit(variable["value"])
                ports = [port["port"] for port in services[server.hostname]["spec"]["ports"]]
                expect(server.port in ports, f"{file.name}: {variable['value']}, but ports {ports}")
    return f"{len(list(pod_specs()))} pods of version {ncflow.__version__}"


def server(root: Path) -> str:
    """the command of MLflow's pod serves the name of its Service, refuses another, and takes a run"""
    image, port = built(root.parent), free_port()
    (pod,) = [each for each in containers() if each["name"] == "mlflow"]
    store, project = root / "store", root / "project"
    for folder in (store, project):
        folder.mkdir()
    (project / "params.yaml").touch()
    words = [word.replace("5000", str(port)).replace("/store", str(store)) for word in pod["command"]]
    program = Program([str(image.programs / words[0]), *words[1:]], port, root / "server.txt", image.environment)
    try:
        program.start(seconds=300)
        codes = {host: status(port, f"{host}:{port}") for host in ("mlflow", "localhost", "other.example.org")}
        expect(codes == {"mlflow": 200, "localhost": 200, "other.example.org": 403}, f"answers {codes}")
        image.run(TRAIN, folder=project, MLFLOW_TRACKING_URI=f"http://localhost:{port}")
        expect(any((store / "artifacts").rglob("metrics_epoch_1.json")), "no artifact of the run in the store")
    finally:
        program.kill()
    return f"{codes}, and a run with its artifacts"


def commands(root: Path) -> str:
    """the commands of the pods are commands of the image's ncflow, and their groups exist"""
    image, project = built(root.parent), root / "project"
    project.mkdir()
    (project / "params.yaml").touch()
    lines = [" ".join(each["command"]) for each in containers() if "command" in each]
    lines += [document["spec"]["entrypoint"] for _, document in all_documents() if document["kind"] == "RayJob"]
    suites = [line.partition("ncflow suite ")[2].strip('"').split() for line in lines if "ncflow suite" in line]
    expect(len(suites) == 2, f"suites {suites}")
    known = image.run("ncflow suite --help", folder=project)
    for group, *options in suites:
        expect(image.run(f"ncflow experiments {group}", folder=project).strip(), f"no group {group}")
        unknown = [option for option in options if option.startswith("--") and option not in known]
        expect(not unknown, f"unknown options {unknown}")
    return "; ".join(" ".join(["ncflow suite", *words]) for words in suites)


class Image:
    """A virtual environment and a folder, as the lines of the Dockerfile make them."""

    def __init__(self, folder: Path) -> None:
        self.root, self.programs = folder / "root", folder / "venv" / "bin"
        self.root.mkdir(parents=True)
        self.ran: list[str] = []
        self.left_out: list[str] = []
        self.note = ""
        subprocess.run(
            ["uv", "venv", "--quiet", "--seed", "--python", sys.executable, str(folder / "venv")], check=True
        )
        path = f"{self.programs}:{os.environ['PATH']}"
        home = {name: value for name, value in os.environ.items() if name not in NOT_OF_THE_IMAGE}
        (folder / "tmp").mkdir()  # uv and MLflow leave files there
        self.environment = home | {"PATH": path, "VIRTUAL_ENV": str(folder / "venv"), "OMP_NUM_THREADS": "1"}
        self.environment["TMPDIR"] = str(folder / "tmp")
        self._make()

    def run(self, line: str, *, folder: Path | None = None, **more: str) -> str:
        """Run a shell line in the image's environment; return what it prints. Raises CalledProcessError."""
        done = subprocess.run(
            ["bash", "-euc", line], cwd=folder or self.root, env=self.environment | more, check=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        return done.stdout

    def _make(self) -> None:
        here = self.root
        for step in parsed():
            word, value = step["instruction"], step["value"]
            if word == "WORKDIR":
                here = self.root / value.lstrip("/")
                here.mkdir(parents=True, exist_ok=True)
            elif word == "COPY":
                *sources, target = value.split()
                self._copy(sources, here / target)
            elif word == "ENV":
                self._set(value)
            elif word == "RUN" and value.startswith(INSTALLS) and "apt-get" not in value:
                self.run(value, folder=here)
                self.ran.append(value)
            elif word == "RUN":
                self.left_out.append(value.partition(" && ")[0])

    def _copy(self, sources: list[str], target: Path) -> None:
        for source in sources:
            if (REPOSITORY / source).is_dir():
                shutil.copytree(REPOSITORY / source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(REPOSITORY / source, target)

    def _set(self, value: str) -> None:
        for pair in value.split():
            name, _, text = pair.partition("=")
            if name == CPU_BUILDS:
                self.note = f"{name} was not set: torch is PyPI's build"
            elif name not in ONLY_IN_AN_IMAGE:
                self.environment[name] = text


@cache
def built(folder: Path) -> Image:
    """The image, made once in the trial's folder."""
    return Image(folder / "image")


def parsed() -> list[dict[str, str]]:
    from dockerfile_parse import DockerfileParser

    with tempfile.TemporaryDirectory() as folder:  # the parser may write next to the file
        shutil.copy(FOLDER / "Dockerfile", folder)
        return list(DockerfileParser(path=folder).structure)


def instructions(word: str) -> list[str]:
    return [step["value"] for step in parsed() if step["instruction"] == word]


def status(port: int, host: str) -> int:
    """The code with which a server answers a request for a name."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/get?experiment_id=0")
    request.add_header("Host", host)
    try:
        with urllib.request.urlopen(request) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="name", help=f"default: all of {', '.join(OUTCOMES)}")
    asked = parser.parse_args().names
    outcomes = {name: lookup(OUTCOMES, name, "outcome") for name in asked or OUTCOMES}
    if packages := [package for module, package in MODULES.items() if find_spec(module) is None]:
        say(f"skipped: install with `uv pip install {' '.join(packages)}`")
        sys.exit(77)
    if not shutil.which("uv"):
        say("skipped: install with `pip install uv`")
        sys.exit(77)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the server ends, and the folder goes
    for name in [name for name in os.environ if name.startswith(("MLFLOW_", "NCFLOW_"))]:
        del os.environ[name]
    with tempfile.TemporaryDirectory() as folder:
        say(f"{'outcome':<12} seconds  verdict")
        sys.exit(any([not tried(Path(folder), name, outcome) for name, outcome in outcomes.items()]))


def tried(folder: Path, name: str, outcome: Callable[[Path], str]) -> bool:
    """Try one outcome and print its row; whether it holds."""
    began, root = time.monotonic(), folder / name
    root.mkdir()
    came, verdict = attempted(lambda: outcome(root))
    seconds = time.monotonic() - began
    say(f"{name:<12} {seconds:7.0f}  {verdict}", f"  expected: {outcome.__doc__}", f"  came:     {came}")
    sys.stdout.flush()
    return verdict == "holds"


OUTCOMES: dict[str, Callable[[Path], str]] = {
    "context": context,
    "dockerfile": dockerfile,
    "training": training,
    "manifests": manifests,
    "names": names,
    "commands": commands,
    "server": server,
}

if __name__ == "__main__":
    main()
