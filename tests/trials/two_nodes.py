"""Train one run on two machines by the commands of docs/clusters.md, cut the cable, and look at what comes.

    python tests/trials/two_nodes.py [name ...]

The machines are two network namespaces of this one, with a cable of virtual interfaces between them. All of it is
temporary and ends with the trial. The exit code is 0 if all holds, 1 if an outcome fails, 77 with the reason if a
program or a right is missing.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from kill import differences, outcome, say
from launches import (
    ACCELERATE,
    LONGER,
    TORCHRUN,
    alone,
    both,
    copy_of_ncflow,
    deviations,
    finished,
    in_training,
    shared,
    small,
    trains,
    undisturbed,
)
from servers import here
from site_of_nodes import Machines, Node, command
from trial import Project, attempted, expect, wait_for

from ncflow import stages
from ncflow.lookup import lookup

CLOSE = 1e-5  # relative, absolute below 1
SILENCE = 45  # seconds until a cut cable is noticed; opening the MLflow run takes some on a busy machine


def by_torchrun(machines: Machines, root: Path) -> str:
    """torchrun on two machines gives the metrics and weights of one process"""
    return as_one_process(machines, root, command(TORCHRUN))


def by_accelerate(machines: Machines, root: Path) -> str:
    """accelerate launch on two machines gives the metrics and weights of one process"""
    return as_one_process(machines, root, command(ACCELERATE))


def cable_cut(machines: Machines, root: Path) -> str:
    """a cut cable is one message on both sides within the time-out, exit code 75; the same command resumes"""
    line, project = command(TORCHRUN) + LONGER, small(root)
    nodes = both(machines, project, line, environment={"NCFLOW_TIMEOUT": str(SILENCE)})
    in_training(project, nodes)
    machines.cable("down")
    began = time.monotonic()
    try:
        for node in nodes:
            node.wait(None, saying=f"lost the connection…{SILENCE}000ms…Rerun the same command", seconds=180)
            expect("exitcode  : 75" in node.text, f"not 75: {node.text[-1500:]}")
        seconds = time.monotonic() - began
    finally:
        machines.cable("up")
    expect(not finished(project), "the run was already finished")
    resumed_as_undisturbed(machines, project, both(machines, project, line))
    return f"both ended after {seconds:.0f} s; then the files, numbers and MLflow run of an undisturbed run"


def restarted(machines: Machines, root: Path) -> str:
    """a killed process: torchrun --max-restarts starts both again, and they resume"""
    line = command(TORCHRUN).replace("--nnodes", "--max-restarts 1 --nnodes") + LONGER
    project = small(root)
    nodes = both(machines, project, line)
    in_training(project, nodes)
    trainers = [process for process in machines.processes(1) if trains(process)]
    expect(len(trainers) == 1, f"trainers {trainers}")
    os.kill(trainers[0], signal.SIGKILL)
    resumed_as_undisturbed(machines, project, nodes)
    return "the files, numbers and MLflow run of an undisturbed run"


def other_options(machines: Machines, root: Path) -> str:
    """other options on one machine are one message on both, before anything trains"""
    line, project = command(TORCHRUN), small(root)
    first = machines.start(0, line, project)
    second = machines.start(1, f"{line} --set train.lr=0.01 --set seed=1", project)
    return refused(project, (first, second), "differ in: seed (0 and 1), train.lr (0.05 and 0.01).")


def other_ncflow(machines: Machines, root: Path) -> str:
    """another ncflow on one machine is one message on both, before anything trains"""
    line, project = command(TORCHRUN), small(root)
    other = copy_of_ncflow(root / "other")
    with (other / "ncflow" / "lookup.py").open("a") as file:
        file.write("# another version\n")
    first = machines.start(0, line, project)
    second = machines.start(1, line, project, environment={"PYTHONPATH": str(other)})
    return refused(project, (first, second), "the same ncflow…differ in: ncflow's code (")


def locked(machines: Machines, root: Path) -> str:
    """a lock taken on one machine is seen on the other: exit code 76 for one process, and for a launch on both"""
    place, project = shared(root, "folder", "folder")
    holder = machines.start(0, "ncflow train --set train.epochs=5000", project, mounted=place[0])
    states = Path(root, "folder", stages.STATES)
    wait_for(lambda: any(states.glob("run-*/epoch_*.pt")) or holder.process.poll() is not None, "an epoch")
    saying = "another process trains models/run"
    machines.start(1, "ncflow train", project, mounted=place[1]).wait(76, saying=saying)
    nodes = [machines.start(number, command(TORCHRUN), project, mounted=place[number]) for number in (0, 1)]
    for node in nodes:
        node.wait(None, saying=saying)
        expect("exitcode  : 76" in node.text, f"not 76: {node.text[-1500:]}")
    holder.process.send_signal(signal.SIGTERM)
    holder.wait(75)
    return nodes[1].messages[0]


def unshared(machines: Machines, root: Path) -> str:
    """a folder that is not shared is one message on both machines, before anything trains"""
    place, project = shared(root, "folder", "other")
    nodes = [machines.start(number, command(TORCHRUN), project, mounted=place[number]) for number in (0, 1)]
    for name in ("folder", "other"):
        expect(not (root / name / "models").exists(), f"{name} has models")
    return refused(project, nodes, "expected a project folder that all machines share")


def wrong_interface(machines: Machines, root: Path) -> str:
    """an interface that does not reach the other machine is one message on both, with the variable to set"""
    line, project = command(TORCHRUN), small(root)
    environment = {"GLOO_SOCKET_IFNAME": "lo", "NCFLOW_WAIT": "20"}
    nodes = both(machines, project, line, environment=environment)
    return refused(project, nodes, "cannot connect to each other…GLOO_SOCKET_IFNAME='lo'")


def as_one_process(machines: Machines, root: Path, line: str) -> str:
    """Train on both machines; compare metrics and weights with those of one process."""
    project = small(root)
    for node in both(machines, project, line):
        node.wait()
    worst = max(deviations(alone(machines), project).items(), key=lambda each: each[1])
    expect(worst[1] < CLOSE, f"{worst[0]} differs by {worst[1]:.1e}")
    return f"largest difference {worst[1]:.0e}, of {worst[0]}"


def refused(project: Project, nodes: tuple[Node, Node] | list[Node], saying: str) -> str:
    """Each side ends with one message, exit code 65, and nothing is trained."""
    for node in nodes:
        node.wait(None, saying=saying)
        expect("exitcode  : 65" in node.text, f"not 65: {node.text[-1500:]}")
    expect(not (project.root / "models" / "run").exists(), "something was trained")
    return nodes[1].messages[0]


def resumed_as_undisturbed(machines: Machines, project: Project, nodes: list[Node]) -> None:
    for node in nodes:
        node.wait()
    found = differences(outcome(project.root, "run"), undisturbed(machines))
    expect(not found, "; ".join(found[:5]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="name", help=f"default: all of {', '.join(OUTCOMES)}")
    names = parser.parse_args().names
    outcomes = {name: lookup(OUTCOMES, name, "outcome") for name in names or OUTCOMES}
    if missing := lacks():
        say(f"skipped: {missing}")
        sys.exit(77)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: sys.exit(128 + number))  # the machines end, too
    for name in [name for name in os.environ if name.startswith(("MLFLOW_", "NCFLOW_", "GLOO_", "NCCL_", "MASTER_"))]:
        del os.environ[name]  # a user's own settings
    with here() as folder, Machines() as machines:
        copy_of_ncflow(folder / "code")  # nobody changes it while the trial runs
        (folder / "tmp").mkdir()
        os.environ |= {"PYTHONPATH": str(folder / "code"), "TMPDIR": str(folder / "tmp")}  # torchrun leaves files
        say(f"{'outcome':<16} seconds  verdict")
        sys.exit(any([not tried(machines, folder / name, name, each) for name, each in outcomes.items()]))


def lacks() -> str:
    """What this machine lacks for the trial; empty for nothing."""
    if not shutil.which("ip"):
        return "install with `apt-get install iproute2`"
    if os.geteuid():
        return "only root may make network namespaces"
    try:
        with Machines() as machines:
            done = subprocess.run(["ip", "netns", "exec", machines.names[0], "true"], check=False, capture_output=True)
    except subprocess.CalledProcessError as error:
        return f"this system makes no network namespaces: {' '.join(error.cmd)}: {error.stderr.strip()}"
    return f"this system enters no network namespace: {done.stderr.decode().strip()}" if done.returncode else ""


def tried(machines: Machines, root: Path, name: str, trial: Callable[[Machines, Path], str]) -> bool:
    """Try one outcome and print its row; whether it holds."""
    began = time.monotonic()
    came, verdict = attempted(lambda: trial(machines, root))
    came = came.replace(str(root), ".")
    say(f"{name:<16} {time.monotonic() - began:7.0f}  {verdict}", f"  expected: {trial.__doc__}", f"  came:     {came}")
    sys.stdout.flush()
    machines.end_all()
    return verdict == "holds"


OUTCOMES: dict[str, Callable[[Machines, Path], str]] = {
    "by_torchrun": by_torchrun,
    "by_accelerate": by_accelerate,
    "cable_cut": cable_cut,
    "restarted": restarted,
    "other_options": other_options,
    "other_ncflow": other_ncflow,
    "locked": locked,
    "unshared": unshared,
    "wrong_interface": wrong_interface,
}

if __name__ == "__main__":
    main()
