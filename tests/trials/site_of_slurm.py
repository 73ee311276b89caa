"""SLURM on this machine: munge, a controller and two nodes, each with its own processes and mounts."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from services import HOST, Program, free_port, stop_all
from trial import Project, expect, wait_for

PAGE = Path(__file__).parents[2] / "docs" / "clusters.md"
NODES = ("n1", "n2")
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}


def script(number: int = 0) -> str:
    """The n-th job script of the page."""
    scripts: list[str] = re.findall(r"^```bash\n(#!.*?)^```", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)
    return scripts[number]


class Cluster:
    """A SLURM cluster of two nodes in a folder. A node is a group of processes that see no process outside."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.munge = folder, folder / "munge"
        self.ports = {name: free_port() for name in ("controller", *NODES)}
        os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
        for name in ("projects", "state"):
            (folder / name).mkdir()
        self._configure()
        self.controller = Program(["slurmctld", "-D"], self.ports["controller"], folder / "controller.txt")
        self.nodes = {name: self._node(name) for name in NODES}

    def __enter__(self) -> Cluster:
        try:
            self._start_munge()
            self.controller.start()
            for node in self.nodes.values():
                node.start()
            self._wait_for_nodes(*NODES)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        programs = (*self.nodes.values(), self.controller)
        stop_all(*(program.kill for program in programs), self._stop_munge)

    def submit(self, project: Project, *words: str, options: Sequence[str] = (), number: int = 0) -> Jobs:
        """Submit the page's script with these arguments; the options override those of the script."""
        file = project.root / "suite.sh"
        file.write_text(script(number))
        command = ["sbatch", "--parsable", *options, str(file), *words]
        return Jobs(int(asked(*command, cwd=project.root)), project)

    def kill(self, name: str) -> None:
        """Cut the power of a node: its daemon and every process on it end at once."""
        self.nodes[name].kill()

    def writers(self, name: str, file: Path) -> list[int]:
        """The processes of a node that print to a file."""
        inside = os.readlink(f"/proc/{self.nodes[name].process.pid}/ns/pid_for_children")
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has ended meanwhile
                if os.readlink(process / "ns" / "pid") == inside and os.readlink(process / "fd" / "1") == str(file):
                    found.append(int(process.name))
        return found

    def restart(self, name: str) -> None:
        self.nodes[name].start()
        self._wait_for_nodes(name)

    @contextmanager
    def without(self, name: str, hidden: Path) -> Iterator[Program]:
        """Inside, a node sees an empty folder at a path, instead of what the other node sees."""
        before = self.nodes[name]
        before.kill()
        self.nodes[name] = self._node(name, hidden)
        try:
            self.restart(name)
            yield self.nodes[name]
        finally:
            self.nodes[name].kill()
            self.nodes[name] = before
            self.restart(name)

    def clear(self) -> None:
        """End every job."""
        asked("scancel", "--user=root")
        wait_for(lambda: not asked("squeue", "-h"), "the end of every job")

    def _configure(self) -> None:
        lines = CONFIGURATION.format(
            folder=self.folder, munge=self.munge, host=os.uname().nodename, address=HOST, port=self.ports["controller"]
        )
        for name in NODES:
            (self.folder / f"gpu-{name}").touch()
            where = f"NodeHostname={os.uname().nodename} NodeAddr={HOST} Port={self.ports[name]}"
            lines += f"NodeName={name} {where} CPUs=2 RealMemory=2000 Gres=gpu:1\n"
        lines += f"PartitionName=all Nodes={','.join(NODES)} Default=YES State=UP\n"
        (self.folder / "slurm.conf").write_text(lines)
        (self.folder / "hosts").write_text(f"{HOST} localhost {os.uname().nodename} {' '.join(NODES)}\n")
        files = (f"NodeName={name} Name=gpu File={self.folder}/gpu-{name}\n" for name in NODES)
        (self.folder / "gres.conf").write_text("".join(files))

    def _start_munge(self) -> None:
        """Debian's munge as its user, with a temporary key: nodes and controller believe each other by it."""
        self.munge.mkdir(mode=0o755)
        (self.munge / "key").write_bytes(os.urandom(128))
        (self.munge / "key").chmod(0o400)
        for path in (self.munge, self.munge / "key"):
            shutil.chown(path, "munge", "munge")
        places = {"socket": "socket", "key-file": "key", "pid-file": "pid", "seed-file": "seed", "log-file": "log"}
        options = [f"--{option}={self.munge}/{name}" for option, name in places.items()]
        command = ["runuser", "-u", "munge", "--", "munged", "--foreground", "--force", *options]
        self.authentication = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
        wait_for((self.munge / "socket").exists, "the socket of munge")

    def _stop_munge(self) -> None:
        os.killpg(self.authentication.pid, signal.SIGKILL)
        self.authentication.wait()

    def _node(self, name: str, hidden: Path | None = None) -> Program:
        """A node that is not started, as the first process of a namespace: when it dies, the system ends the others."""
        mounts = f"mount --bind '{self.folder}/hosts' /etc/hosts && "
        mounts += f"mount -t tmpfs none '{hidden}' && " if hidden else ""
        own = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        return Program(
            [*own, "sh", "-c", f"{mounts}exec slurmd -D -N {name}"], self.ports[name], self.folder / f"{name}.txt"
        )

    def _wait_for_nodes(self, *names: str) -> None:
        def states() -> set[str]:
            time.sleep(0.2)
            return set(asked("sinfo", "-h", "-N", "-n", ",".join(names), "-o", "%T").split())

        wait_for(lambda: states() <= {"idle", "mixed", "allocated"}, f"nodes {', '.join(names)}")  # not down*, idle*


@dataclass
class Jobs:
    """A submitted script: one job, or one for each task of an array."""

    number: int
    project: Project

    def tasks(self) -> dict[int, dict[str, str]]:
        """Task -> what SLURM knows of it. A job without an array is task 0."""
        time.sleep(0.2)  # callers ask until something has come
        lines = asked("scontrol", "show", "job", "--oneliner", str(self.number)).splitlines()
        found = (dict(re.findall(r"(\w+)=(\S*)", line)) for line in lines)
        return {int(each.get("ArrayTaskId", "0")): each for each in found if each.get("ArrayTaskId", "0").isdecimal()}

    def ended(self) -> bool:
        tasks = self.tasks().values()
        return bool(tasks) and {task["JobState"] for task in tasks} <= ENDED

    def has_process(self) -> bool:
        """Whether a node has started the command of `srun`. That command does not handle signals yet."""
        commands = (Path(f"/proc/{each}/cmdline") for each in os.listdir("/proc") if each.isdecimal())
        for command in commands:
            with suppress(OSError):
                words = command.read_bytes().split(b"\0")
                if b"suite" in words and b"srun" not in words and b"slurm_script" not in b"".join(words):
                    return os.fsencode(self.project.root) == os.readlink(os.fsencode(command.parent / "cwd"))
        return False

    def text(self, task: int) -> str:
        """What a task has printed."""
        files = [self.project.root / f"slurm-{number}.out" for number in (f"{self.number}_{task}", self.number)]
        return "".join(file.read_text() for file in files if file.exists())

    def wait(self, *states: str, seconds: float = 400) -> dict[int, dict[str, str]]:
        """Wait until every task has ended, and return them; the states must be these, in the order of the tasks."""
        wait_for(self.ended, f"job {self.number}", seconds)
        tasks = dict(sorted(self.tasks().items()))
        came = [task["JobState"] for task in tasks.values()]
        expect(came == [*states], f"{came} instead of {[*states]}: {[self.text(task)[-1500:] for task in tasks]}")
        return tasks

    def signal(self, task: int, *options: str) -> None:
        asked("scancel", *options, f"{self.number}_{task}")


def asked(*command: str, cwd: Path | None = None) -> str:
    """What a command prints. Raises CalledProcessError if it fails."""
    return subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True).stdout


# No cgroups and no systemd; a job that is queued again waits for `cred_expire` seconds.
CONFIGURATION = """\
ClusterName=trial
SlurmctldHost={host}({address})
SlurmctldPort={port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={munge}/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/controller.pid
SlurmdPidFile={folder}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=10
KillWait=30
MailProg=/bin/true
GresTypes=gpu
"""
