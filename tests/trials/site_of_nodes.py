"""Two machines on this one: network namespaces with a cable between them, and mounts that only one of them sees."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from trial import Project, expect

PAGE = Path(__file__).parents[2] / "docs" / "clusters.md"
ADDRESSES = ("10.213.77.1", "10.213.77.2")
STARTED = re.compile(r"^ncflow: ", flags=re.MULTILINE)


def command(start: str) -> str:
    """The line of the page that starts with these words."""
    (line,) = [line for line in PAGE.read_text().splitlines() if line.startswith(start)]
    return line


@dataclass
class Node:
    """A command on one of the machines, and what it says."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def text(self) -> str:
        return self.log.read_text()

    @property
    def messages(self) -> list[str]:
        """Each of ncflow's last words to the user."""
        return [" ".join(part.splitlines()[0].split()) for part in STARTED.split(self.text)[1:]]

    def wait(self, code: int | None = 0, *, saying: str = "", seconds: float = 300) -> Node:
        """Wait for its end, with this exit code (None: any but 0) and one message that holds these words."""
        try:
            came = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"no end within {seconds:g} s: {self.text[-3000:]}") from None
        expect(came == code if code is not None else came, f"exit code {came}, not {code}: {self.text[-3000:]}")
        if saying:
            expect(len(self.messages) == 1, f"{len(self.messages)} messages: {self.text[-3000:]}")
            expect("rank0]: Traceback" not in self.text and "rank1]: Traceback" not in self.text, self.text[-3000:])
            for words in saying.split("…"):
                expect(words.strip() in self.messages[0], f"'{self.messages[0]}' does not say '{words.strip()}'")
        return self


class Machines:
    """Two network namespaces, joined by a pair of virtual network interfaces."""

    def __init__(self) -> None:
        self.names = tuple(f"ncflow{os.getpid()}-{number}" for number in range(2))
        self.ends = tuple(f"nc{os.getpid() % 10**7}e{number}" for number in range(2))

    def __enter__(self) -> Machines:
        try:
            for name in self.names:
                ip("netns", "add", name)
            ip("link", "add", self.ends[0], "netns", self.names[0], "type", "veth", "peer", self.ends[1],
               "netns", self.names[1])  # fmt: skip
            for name, end, address in zip(self.names, self.ends, ADDRESSES, strict=True):
                ip("-n", name, "addr", "add", f"{address}/24", "dev", end)
                for each in ("lo", end):
                    ip("-n", name, "link", "set", each, "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.end_all()
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)

    def cable(self, state: str) -> None:
        """Plug the cable in ("up") or cut it ("down")."""
        ip("-n", self.names[1], "link", "set", self.ends[1], state)

    def start(
        self,
        number: int,
        line: str,
        project: Project,
        *,
        environment: Mapping[str, str] | None = None,
        mounted: Mapping[Path, Path] | None = None,
    ) -> Node:
        """Start a shell line on a machine, in the project's folder. `mounted`: path -> folder that it shows there."""
        project.typed.append(line)
        log = project.root.parent / f"{project.root.name}-{len(project.typed)}.txt"
        mounts = "".join(f"mount --bind '{source}' '{path}' && " for path, source in (mounted or {}).items())
        here = {"first": ADDRESSES[0], "rank": str(number)}
        process = subprocess.Popen(
            ["ip", "netns", "exec", self.names[number], "bash", "-c", f"{mounts}cd '{project.root}' && exec {line}"],
            env=os.environ | project.environment | here | dict(environment or {}),
            stdout=log.open("wb"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        return Node(process, log)

    def processes(self, number: int) -> list[int]:
        """The processes on a machine; those of a launcher have sessions of their own."""
        found = subprocess.run(["ip", "netns", "pids", self.names[number]], check=False, capture_output=True, text=True)
        return [int(word) for word in found.stdout.split()]

    def end_all(self) -> None:
        """End every process on both machines."""
        for _ in range(50):
            if not (found := [*self.processes(0), *self.processes(1)]):
                return
            for process in found:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.1)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
