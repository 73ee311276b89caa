"""Servers on loopback for a trial: PostgreSQL, an S3-compatible store, MLflow and SSH, with secrets of their own."""

from __future__ import annotations

import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from trial import expect, wait_for

POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
HOST = "127.0.0.1"


def free_port() -> int:
    with socket.socket() as free:
        free.bind((HOST, 0))
        port: int = free.getsockname()[1]
        return port


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


@dataclass
class Program:
    """A program that leads a process group and listens on a port."""

    command: list[str]
    port: int
    log: Path
    environment: dict[str, str] = field(default_factory=dict)

    def start(self, *, seconds: float = 120) -> None:
        self.process = subprocess.Popen(
            self.command,
            env=os.environ | self.environment,
            stdout=self.log.open("ab"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        wait_for(lambda: answers(self.port) or self.process.poll() is not None, str(self.log), seconds)
        expect(self.process.poll() is None, f"{self.log.name}: {self.log.read_text()[-2000:]}")

    def kill(self) -> None:
        with suppress(ProcessLookupError, AttributeError):
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            wait_for(lambda: not answers(self.port), f"the end of {self.command}")  # its workers end a little later


class Postgres:
    """A cluster of Debian's PostgreSQL in a temporary folder, started by pg_ctl as user postgres."""

    def __init__(self, folder: Path) -> None:
        self.port, self.folder, self.password = free_port(), folder, secrets.token_hex(12)
        folder.mkdir()
        file = folder / "superuser"
        file.write_text(secrets.token_hex(12))
        shutil.chown(folder, "postgres")
        shutil.chown(file, "postgres")
        self.superuser = file.read_text()
        self._run("initdb", "-A", "scram-sha-256", "--pwfile", str(file), "-D", str(folder / "data"))
        file.unlink()
        self.start()

    def start(self) -> None:
        options = f"-c port={self.port} -c listen_addresses={HOST} -c unix_socket_directories={self.folder}"
        log = str(self.folder / "log.txt")
        self._run("pg_ctl", "-w", "-D", str(self.folder / "data"), "-l", log, "-o", options, "start")

    def stop(self) -> None:
        """In the middle of its work."""
        self._run("pg_ctl", "-m", "immediate", "-D", str(self.folder / "data"), "stop", check=False)

    def dump(self) -> bytes:
        """Every row of every table, as text."""
        where = ["-h", HOST, "-p", str(self.port), "-U", "postgres", "--inserts", "mlflow"]
        return subprocess.run(
            [str(POSTGRES[-1].with_name("pg_dump")), *where],
            env=os.environ | {"PGPASSWORD": self.superuser},
            check=True,
            capture_output=True,
        ).stdout

    def _run(self, name: str, *words: str, check: bool = True) -> None:
        command = [str(POSTGRES[-1].with_name(name)), *words]
        if getpass.getuser() != "postgres":
            command = ["runuser", "-u", "postgres", "--", *command]
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
        subprocess.run(command, cwd="/", check=check, stderr=subprocess.STDOUT, **quiet)  # type: ignore[call-overload]


class Bucket:
    """moto's S3 on loopback, which checks the credentials once `lock` was called."""

    def __init__(self, folder: Path) -> None:
        port = free_port()
        self.address = f"http://{HOST}:{port}"
        command = [sys.executable, "-m", "moto.server", "-H", HOST, "-p", str(port)]
        # Until `lock`, moto lets everyone in.
        self.program = Program(command, port, folder / "moto.txt", {"INITIAL_NO_AUTH_ACTION_COUNT": "inf"})
        self.program.start()
        self.key, self.secret = self._user()
        self._post("/moto-api/reset-auth", b"0")

    def objects(self) -> dict[str, bytes]:
        """The objects of every bucket, by bucket and key."""
        client = self._client("s3", self.key, self.secret)
        found = {}
        for bucket in (each["Name"] for each in client.list_buckets()["Buckets"]):
            for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
                for each in page.get("Contents", []):
                    found[f"{bucket}/{each['Key']}"] = client.get_object(Bucket=bucket, Key=each["Key"])["Body"].read()
        return found

    def _user(self) -> tuple[str, str]:
        """A user who may do anything with S3: key and secret."""
        client = self._client("iam", "none", "none")
        client.create_user(UserName="mlflow")
        policy = '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}'
        client.put_user_policy(UserName="mlflow", PolicyName="all", PolicyDocument=policy)
        made = client.create_access_key(UserName="mlflow")["AccessKey"]
        return made["AccessKeyId"], made["SecretAccessKey"]

    def _client(self, service: str, key: str, secret: str):  # type: ignore[no-untyped-def]
        import boto3

        secrets = {"aws_access_key_id": key, "aws_secret_access_key": secret}
        return boto3.client(service, endpoint_url=self.address, region_name="us-east-1", **secrets)

    def _post(self, path: str, body: bytes) -> None:
        request = urllib.request.Request(self.address + path, data=body, method="POST")
        request.add_header("Content-Type", "text/plain")
        with urllib.request.urlopen(request) as answer:
            answer.read()


class Ssh:
    """OpenSSH's server on loopback, with a temporary host key, user key and configuration."""

    def __init__(self, folder: Path) -> None:
        self.port, self.folder = free_port(), folder
        folder.mkdir(mode=0o700)
        for name in ("host", "user"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
            subprocess.run(command, check=True)
        self.key = folder / "user"
        (folder / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress {HOST}\nHostKey {folder}/host\nPidFile {folder}/pid\n"
            f"AuthorizedKeysFile {folder}/user.pub\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
            "PermitRootLogin prohibit-password\nSubsystem sftp internal-sftp\n"
        )
        Path("/run/sshd").mkdir(exist_ok=True)
        command = [str(SSHD), "-D", "-e", "-f", str(folder / "sshd_config")]
        self.program = Program(command, self.port, folder / "log.txt")
        self.program.start()


def stop_all(*stops: Callable[[], object]) -> None:
    """Call each, also after one that fails."""
    for stop in stops:
        with suppress(Exception):
            stop()
