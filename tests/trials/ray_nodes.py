"""Run the commands of the Ray chapter of docs/clusters.md on a head and two workers, and compare what comes.

    python tests/trials/ray_nodes.py [name ...]

All of it is in a temporary folder and ends with the trial. The exit code is 0 if all holds, 1 if an outcome fails, 77
with the reason if a package or a right is missing.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from kill import differences, outcome, say
from servers import here
from site_of_ray import OWN, Autoscaled, Cluster
from trial import Command, Project, attempted, expect, wait_for

from ncflow import stages
from ncflow.lookup import lookup

OVERRIDES = "dataset.name=ufm10 model.num_features=32 train.epochs=40"
SEEDS = range(6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="name", help=f"default: all of {', '.join(OUTCOMES)}")
    names = parser.parse_args().names
    outcomes = {name: lookup(OUTCOMES, name, "outcome") for name in names or OUTCOMES}
    if missing := lacks():
        say(f"skipped: {missing}")
        sys.exit(77)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the nodes end, too
    for name in [name for name in os.environ if name.startswith(("MLFLOW_", "RAY_", "NCFLOW_"))]:
        del os.environ[name]  # a user's own cluster is left alone
    with here() as folder, Cluster(folder) as cluster:
        rows = {name: tried(cluster, name, each) for name, each in outcomes.items()}
    say(f"{'outcome':<16}{'seconds':>8}  holds/FAILS")
    say(*(f"{name:<16}{seconds:>8.0f}  {verdict}" for name, (seconds, verdict) in rows.items()))
    sys.exit(any(verdict != "holds" for _, verdict in rows.values()))


def lacks() -> str:
    """What this machine lacks for the trial, with the command that brings it; empty for nothing."""
    if find_spec("ray") is None:
        return "install with `uv pip install 'ncflow[cluster]'`"
    try:
        own = subprocess.run([*OWN, "true"], check=False, capture_output=True).returncode
    except FileNotFoundError:
        return "install `unshare` (Debian's util-linux)"
    return "only root may start nodes with their own processes and mounts" if own else ""


def tried(cluster: Cluster, name: str, tried: Callable[[Cluster, Project], str]) -> tuple[float, str]:
    """Try one outcome and say what came; its seconds, and whether it holds."""
    began, project = time.monotonic(), Project(cluster.folder / "projects" / name)
    came, verdict = attempted(lambda: tried(cluster, project))
    seconds = time.monotonic() - began
    say(f"{name}: {verdict}", f"  expected: {tried.__doc__}", f"  came:     {came.replace(str(project.root), '.')}")
    sys.stdout.flush()
    cluster.clear()
    return seconds, verdict


def shared(cluster: Cluster, project: Project) -> str:
    """six runs on two workers: each is trained once, and both workers train"""
    nodes, minutes, _ = undisturbed(cluster)
    expect({*nodes.values()} == {"n1", "n2"}, f"nodes {nodes}")
    share = [[*nodes.values()].count(name) for name in ("n1", "n2")]
    return f"{share[0]} + {share[1]} runs, each trained once; {len(SEEDS) / minutes:.1f} runs/min with two nodes"


def one_node(cluster: Cluster, project: Project) -> str:
    """three runs on one worker: the throughput of one node"""
    cluster.kill("n2")
    began = time.monotonic()
    suite(cluster, project, SEEDS[:3]).wait()
    return f"{3 / (time.monotonic() - began) * 60:.1f} runs/min with one node"


def node_killed(cluster: Cluster, project: Project) -> str:
    """a worker that dies in mid-run loses nothing: its run resumes on the other one"""
    command = suite(cluster, project, SEEDS[:4])
    run, node = in_training(cluster, project, command)
    cluster.nodes[node].kill()
    began = time.monotonic()
    wait_for(lambda: "lost by Ray" in command.text, "Ray to notice")
    noticed = time.monotonic() - began
    wait_for(lambda: attempts(project)[run] == 2, "the restart", 200)
    resumed = time.monotonic() - began
    cluster.kill(node)
    command.wait()
    same = as_undisturbed(cluster, project, SEEDS[:4], resumed=[run])
    return f"{same}; noticed after {noticed:.0f} s, training again after {resumed:.0f} s"


def driver_killed(cluster: Cluster, project: Project) -> str:
    """the runs of a killed suite end and nothing trains on; the same command finishes"""
    command = suite(cluster, project, SEEDS[:4])
    in_training(cluster, project, command)
    running = [*cluster.training(project)]
    began = time.monotonic()
    command.kill()
    wait_for(lambda: not cluster.training(project), "the end of the runs")
    ended = time.monotonic() - began
    time.sleep(5)
    expect(not cluster.training(project), f"it trains on: {cluster.training(project)}")
    begun, unfinished = attempts(project), [run for run in running if not is_complete(project, run)]
    suite(cluster, project, SEEDS[:4]).wait()
    same = as_undisturbed(cluster, project, SEEDS[:4], resumed=[run for run in unfinished if begun.get(run)])
    return f"the runs ended after {ended:.1f} s; {same}"


def never_fits(cluster: Cluster, project: Project) -> str:
    """a request for more than any machine has is one message, before anything trains"""
    began = time.monotonic()
    command = suite(cluster, project, SEEDS[:1], "--jobs-per-gpu", "2")
    command.wait(65, saying="each run requests 1 CPUs and 0.5 GPUs … no machine … 1 CPUs and 0 GPUs")
    return f"after {time.monotonic() - began:.0f} s: {untrained(project, command)}"


def full(cluster: Cluster, project: Project) -> str:
    """on a full cluster one line shows what a run requests and what is free; SIGTERM ends the suite with 75"""
    busy = subprocess.Popen([sys.executable, "-c", BUSY, cluster.address], stdout=subprocess.PIPE, text=True)
    try:
        expect(busy.stdout and "busy" in busy.stdout.readline(), "the cluster is not full")
        command = suite(cluster, project, SEEDS[:1])
        wait_for(lambda: "waiting for Ray" in command.text, "the line")
        line = next(line for line in command.text.splitlines() if "waiting for Ray" in line)
        expect("each run requests 1 CPUs and 0 GPUs, free are 0 CPUs and 0 GPUs" in line, line)
        command.process.terminate()
        command.wait(75)
    finally:
        busy.kill()
        busy.wait()
    expect(not (project.root / "models").exists(), "it trained")
    return line


def fractions(cluster: Cluster, project: Project) -> str:
    """three runs share the GPU of a worker at the same time; one line says that torch is another and sees no GPU"""
    other = package(cluster, "torch", f"{version('torch').partition('+')[0]}+other")
    with cluster.joined(n3={"gpus": 1, "cpus": 2, "PYTHONPATH": other, "CUDA_VISIBLE_DEVICES": "0"}):
        command = suite(cluster, project, SEEDS[:3], "--jobs-per-gpu", "3")
        most: dict[str, str] = {}
        while command.process.is_alive():
            most = max(most, cluster.training(project), key=len)
            time.sleep(0.2)
        command.wait()
    expect(len(most) == 3 and {*most.values()} == {"n3"}, f"at the same time: {most}")
    lines = [line for line in command.text.splitlines() if "torch" in line]
    expect(
        len(lines) == 1 and "+other" in lines[0] and "torch sees 0" in lines[0],
        f"lines {lines} in: {command.text[-1500:]}",
    )
    return lines[0]


def other_ncflow(cluster: Cluster, project: Project) -> str:
    """a worker without ncflow and one with another version are one message, before anything trains"""
    hidden = cluster.folder / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text(HIDE)
    nodes = {"n3": {"PYTHONPATH": str(hidden)}, "n4": {"PYTHONPATH": package(cluster, "ncflow", "9.9.9")}}
    with cluster.joined(**nodes):
        command = suite(cluster, project, SEEDS[:1])
        command.wait(65, saying=f"No module named 'ncflow' … 9.9.9 … {version('ncflow')}")
    return untrained(project, command)


def unshared(cluster: Cluster, project: Project) -> str:
    """a worker with another folder at the project's path is one message, before anything trains"""
    with cluster.joined(n3={"hidden": project.root}):
        command = suite(cluster, project, SEEDS[:1]).wait(65, saying="does not see the project's folder")
    return untrained(project, command)


def autoscaled(cluster: Cluster, project: Project) -> str:
    """a cluster without workers starts two for three runs, each is trained once, and the idle workers end"""
    with Autoscaled(cluster, most=2) as growing:
        expect(growing.workers() == 0, "it has workers already")
        began, most = time.monotonic(), 0
        command = suite(growing, project, SEEDS[:3])
        while command.process.is_alive():
            most = max(most, growing.workers())
        command.wait()
        minutes = (time.monotonic() - began) / 60
        expect(most == 2, f"{most} workers")
        wait_for(lambda: growing.workers() == 0, "the end of the idle workers", 120)
        same = as_undisturbed(cluster, project, SEEDS[:3], resumed=[])
    return f"0, 2 and 0 workers; {same}; {3 / minutes:.1f} runs/min with their start"


@cache
def undisturbed(cluster: Cluster) -> tuple[dict[str, str], float, dict[str, Any]]:
    """A suite that meets no fault: the node of each run, its minutes, and what each run has left."""
    project, nodes, began = Project(cluster.folder / "projects" / "undisturbed"), dict[str, str](), time.monotonic()
    command = suite(cluster, project, SEEDS)
    while command.process.is_alive():
        nodes |= cluster.training(project)
        time.sleep(0.2)
    command.wait()
    minutes = (time.monotonic() - began) / 60
    runs = [name(seed) for seed in SEEDS]
    expect(attempts(project) == dict.fromkeys(runs, 1), f"attempts {attempts(project)}")
    return nodes, minutes, {run: outcome(project.root, run) for run in runs}


def as_undisturbed(cluster: Cluster, project: Project, seeds: range, *, resumed: list[str]) -> str:
    """Each run has the files, numbers and MLflow run of one that nothing disturbed; only `resumed` started twice."""
    expected = undisturbed(cluster)[2]
    for run in map(name, seeds):
        found = differences(outcome(project.root, run), expected[run])
        expect(not found, f"{run}: {'; '.join(found[:5])}")
    count = {name(seed): 1 + (name(seed) in resumed) for seed in seeds}
    expect(attempts(project) == count, f"attempts {attempts(project)}, resumed {resumed}")
    return f"the final files are those of undisturbed runs, resumed: {', '.join(resumed) or 'none'}"


def suite(cluster: Cluster, project: Project, seeds: range, *options: str) -> Command:
    """The page's command, on these seeds."""
    only = f"{OVERRIDES} seed={seeds[0]}"
    several = ["--set", OVERRIDES, "--grid", f"seed={','.join(map(str, seeds))}"]
    runs = ["exp12", "--head", "nearest_etf", *(several if len(seeds) > 1 else ["--set", only])]
    command = project.ncflow("suite", *runs, "--engine", "ray", "--address", cluster.address, *options)
    cluster.commands.append(command)
    return command


def in_training(cluster: Cluster, project: Project, command: Command) -> tuple[str, str]:
    """A run and its node, once its first epoch is saved."""

    def found() -> list[tuple[str, str]]:
        saved = [run for run in map(name, SEEDS) if any(project.root.glob(f"{stages.STATES}/{run}-*/epoch_*.pt"))]
        return [(run, node) for run, node in cluster.training(project).items() if run in saved]

    wait_for(lambda: found() or not command.process.is_alive(), "an epoch", 200)
    expect(runs := found(), f"no run in training: {command.text[-2000:]}")
    return runs[0]


def is_complete(project: Project, run: str) -> bool:
    """Whether a run has its model, and no state to resume from."""
    states = any(project.root.glob(f"{stages.STATES}/{run}-*"))
    return (project.root / "models" / run / "final_model.pth").exists() and not states


def attempts(project: Project) -> dict[str, int]:
    """How often each run has begun to train."""
    logs = project.root.glob(".ncflow/suite/*.log")
    return {log.stem: log.read_text().count(" process on cpu") for log in logs}


def untrained(project: Project, command: Command) -> str:
    """The message of a suite that trained nothing."""
    expect(not (project.root / "models").exists(), "it trained")
    return command.message


def name(seed: int) -> str:
    return f"exp12_ufm10_d32_nearest_etf_seed{seed}"


def package(cluster: Cluster, name: str, version: str) -> str:
    """A folder that Python reads first, where an installed package has another version."""
    folder = cluster.folder / f"other_{name}"
    metadata = folder / f"{name}-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return str(folder)


HIDE = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name == "ncflow":
            raise ModuleNotFoundError("No module named 'ncflow'", name=name)

sys.meta_path.insert(0, Hidden())
"""
BUSY = """
import ray, sys, time
ray.init(sys.argv[1], log_to_driver=False, logging_level="error")
sleep = ray.remote(lambda seconds: time.sleep(seconds))
for _ in range(2):
    sleep.options(num_cpus=1).remote(600)
while ray.available_resources().get("CPU", 0):
    time.sleep(0.2)
print("busy", flush=True)
time.sleep(600)
"""
OUTCOMES: dict[str, Callable[[Cluster, Project], str]] = {
    "shared": shared,
    "node_killed": node_killed,
    "driver_killed": driver_killed,
    "never_fits": never_fits,
    "full": full,
    "fractions": fractions,
    "other_ncflow": other_ncflow,
    "unshared": unshared,
    "one_node": one_node,
    "autoscaled": autoscaled,
}

if __name__ == "__main__":
    main()
