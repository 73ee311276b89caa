"""A Ray cluster on this machine: a head without CPUs and workers, each with its own processes and address."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from services import answers, free_port, stop_all
from trial import Command, Project, expect, wait_for

OWN = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
ADDRESSES = {"n1": "127.0.0.2", "n2": "127.0.0.3", "n3": "127.0.0.4", "n4": "127.0.0.5"}


class Node:
    """`ray start` as the first process of a namespace: when it dies, the system ends every process of the node."""

    def __init__(
        self, name: str, command: list[str], log: Path, environment: dict[str, str], hidden: Path | None
    ) -> None:
        hide = f"mount -t tmpfs none '{hidden}' && " if hidden else ""
        inside = [*OWN, "sh", "-c", f'{hide}exec "$@"', name, *command]
        self.name, self.log = name, log
        self.process = subprocess.Popen(
            inside,
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=log.open("wb"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        wait_for(lambda: self.is_up() or self.process.poll() is not None, f"node {name}: {log}")
        expect(self.process.poll() is None, f"node {name}: {log.read_text()[-2000:]}")

    def is_up(self) -> bool:
        time.sleep(0.2)
        return "Ray runtime started" in self.log.read_text()

    def namespace(self) -> str:
        return os.readlink(f"/proc/{self.process.pid}/ns/pid_for_children")

    def kill(self) -> None:
        """Cut its power."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Cluster:
    """A head, which only coordinates, and two workers of one CPU."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port, self.nodes = folder, free_port(), dict[str, Node]()
        self.commands: list[Command] = []
        self.address = f"{socket.gethostbyname(socket.gethostname())}:{self.port}"
        (folder / "projects").mkdir()
        (folder / "token").write_text(secrets.token_hex(16))
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token")}
        os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}

    def __enter__(self) -> Cluster:
        try:
            self._start_head()
            for name in ("n1", "n2"):
                self.add(name)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        stop_all(self.end_commands, *(node.kill for node in self.nodes.values()))

    def add(self, name: str, *, cpus: int = 1, gpus: int = 0, hidden: Path | None = None, **environment: str) -> None:
        """Start a worker. It finds an empty folder at the path `hidden`."""
        where = [f"--address={self.address}", f"--node-ip-address={ADDRESSES[name]}"]
        self._start(name, *where, cpus=cpus, gpus=gpus, hidden=hidden, environment=environment)
        wait_for(lambda: ADDRESSES[name] in self.alive(), f"{name} in the cluster")

    def kill(self, *names: str) -> None:
        """Cut the power of workers, and wait until the head has noticed."""
        for name in names:
            self.nodes.pop(name).kill()
        wait_for(lambda: not {ADDRESSES[name] for name in names} & self.alive(), f"the end of {names}")

    @contextmanager
    def joined(self, **workers: dict[str, Any]) -> Iterator[None]:
        """Inside, the cluster has more workers."""
        try:
            for name, options in workers.items():
                self.add(name, **options)
            yield
        finally:
            self.kill(*(name for name in workers if name in self.nodes))

    def clear(self) -> None:
        """End the commands of an outcome, and bring back the workers that it has killed."""
        self.end_commands()
        for name in ("n1", "n2"):
            if name not in self.nodes:
                self.add(name)

    def end_commands(self) -> None:
        while self.commands:
            self.commands.pop().kill()

    def alive(self) -> set[str]:
        """The addresses of the nodes that the head takes for alive."""
        return {*self._alive()}

    def _alive(self) -> list[str]:
        time.sleep(0.5)
        command = [sys.executable, "-c", ALIVE, self.address]
        asked = subprocess.run(command, check=True, capture_output=True, text=True)
        return [*json.loads(asked.stdout.splitlines()[-1])]

    def training(self, project: Project) -> dict[str, str]:
        """Run -> node, of the processes that train now."""
        spaces = {node.namespace(): name for name, node in self.nodes.items()}
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has ended meanwhile
                words = process.joinpath("cmdline").read_bytes().decode().split("\0")
                here = os.readlink(process / "cwd") == str(project.root)
                if here and "train" in words and "--config" in words:
                    config = Path(words[words.index("--config") + 1]).stem
                    found[config.rpartition("-")[0]] = spaces.get(os.readlink(process / "ns" / "pid"), "elsewhere")
        return found

    def _start_head(self, *options: str, **environment: str) -> None:
        own = [f"--port={self.port}", f"--temp-dir={self.folder}/r", f"--ray-client-server-port={free_port()}"]
        words = ["--head", "--include-dashboard=false", *own, *options]
        self._start("head", *words, cpus=0, environment=environment)

    def _start(
        self,
        name: str,
        *options: str,
        cpus: int = 1,
        gpus: int = 0,
        hidden: Path | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        ray = str(Path(sys.executable).with_name("ray"))
        share = [f"--num-cpus={cpus}", f"--num-gpus={gpus}", f"--dashboard-agent-listen-port={free_port()}"]
        command = [ray, "start", "--block", *options, *share, *COMMON]
        self.nodes[name] = Node(name, command, self.folder / f"{name}.txt", environment or {}, hidden)
        expect(name != "head" or answers_at(self.address), "the head does not answer")


class Autoscaled(Cluster):
    """A head without CPUs, next to another cluster. Ray's autoscaler starts at most `most` workers of one CPU."""

    def __init__(self, other: Cluster, most: int) -> None:
        self.folder, self.port, self.nodes, self.commands = other.folder / "autoscaled", free_port(), {}, []
        self.address = f"{other.address.rpartition(':')[0]}:{self.port}"
        self.folder.mkdir()
        worker = {"resources": {"CPU": 1, "object_store_memory": 80_000_000}, "node_config": {}, "max_workers": most}
        head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
        self._config = self.folder / "autoscaler.json"
        self._config.write_text(
            json.dumps(
                AUTOSCALER
                | {
                    "max_workers": most,
                    "provider": PROVIDER | {"gcs_address": self.address},
                    "available_node_types": {"ray.head.default": head, "worker": worker | {"min_workers": 0}},
                }
            )
        )

    def __enter__(self) -> Autoscaled:
        self._start_head(f"--autoscaling-config={self._config}", RAY_FAKE_CLUSTER="1", AUTOSCALER_UPDATE_INTERVAL_S="1")
        return self

    def workers(self) -> int:
        """How many workers the head takes for alive."""
        return len(self._alive()) - 1


def answers_at(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0 or answers(int(port))


COMMON = ["--min-worker-port=0", "--max-worker-port=0", "--object-store-memory=80000000", "--disable-usage-stats"]
# What Ray's own command fills in for a cloud. Its provider for tests starts workers on this machine.
PROVIDER = {
    "type": "fake_multinode",
    "use_node_id_as_ip": True,
    "disable_node_updaters": True,
    "disable_launch_config_check": True,
    "launch_multiple": True,
}
LISTS = ("cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands", "setup_commands")
MORE_LISTS = ("head_setup_commands", "worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands")
AUTOSCALER: dict[str, Any] = {
    "cluster_name": "autoscaled",
    "upscaling_speed": 1.0,
    "idle_timeout_minutes": 0.3,
    "head_node_type": "ray.head.default",
    "file_mounts_sync_continuously": False,
    **{name: {} for name in ("file_mounts", "auth", "docker")},
    **{name: [] for name in LISTS + MORE_LISTS},
}
ALIVE = """
import json, sys
from ray._raylet import GcsClient
nodes = GcsClient(address=sys.argv[1]).get_all_node_info().values()
print(json.dumps([node.node_manager_address for node in nodes if node.state == 0]))
"""
