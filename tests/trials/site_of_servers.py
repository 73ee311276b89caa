"""The servers of docs/servers.md, set up by the page's own commands, and a client's view of them."""

from __future__ import annotations

import os
import re
import secrets
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path

from services import HOST, Bucket, Postgres, Program, Ssh, free_port, stop_all
from trial import Project

from ncflow import tracking

PAGE = Path(__file__).parents[2] / "docs" / "servers.md"


def commands(title: str, number: int = 0) -> str:
    """The n-th block of shell commands of a section of the page."""
    sections = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)
    (section,) = [section for section in sections if section.startswith(f"{title}\n")]
    return re.findall(r"^```bash\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)[number]


def shell(text: str, *, root: Path, environment: Mapping[str, str]) -> str:
    """Run commands of the page in a folder and return what they print. Raises CalledProcessError if one fails."""
    done = subprocess.run(
        ["bash", "-euc", text], cwd=root, env=os.environ | environment, check=True, capture_output=True, text=True
    )
    return done.stdout + done.stderr


class Site:
    """PostgreSQL, a bucket and MLflow's server on loopback, and the secrets that must stay with them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.login = secrets.token_hex(12)  # of a client, as a proxy would ask for it
        self.address = f"http://{HOST}:{self.port}"
        for name in ("projects", "kept"):
            (folder / name).mkdir()

    def __enter__(self) -> Site:
        self.opened: list[str] = []
        return self

    def __exit__(self, *_: object) -> None:
        for name, end in (
            ("server", lambda: self.server.kill()),
            ("ssh", lambda: self.ssh.program.kill()),
            ("bucket", lambda: self.bucket.program.kill()),
            ("postgres", lambda: self.postgres.stop()),
        ):
            if name in self.__dict__:
                stop_all(end)

    @cached_property
    def postgres(self) -> Postgres:
        made = Postgres(self.folder / "postgres")
        self.__dict__["postgres"] = made  # it runs, also if the next line fails
        shell(commands("The database"), root=self.folder, environment=self.database | {"PGPASSWORD": made.superuser})
        return made

    @cached_property
    def bucket(self) -> Bucket:
        made = Bucket(self.folder)
        self.__dict__["bucket"] = made
        shell(commands("The buckets"), root=self.folder, environment=self.storage)
        return made

    @cached_property
    def ssh(self) -> Ssh:
        return Ssh(self.folder / "ssh")

    @cached_property
    def server(self) -> Program:
        """MLflow's server by the page's command."""
        made = self.made_server()
        self.__dict__["server"] = made
        made.start()
        return made

    def made_server(self, text: str = "", **environment: str) -> Program:
        """MLflow's server, not started; another command or environment makes it a faulty one."""
        secret = self.database | self.storage | {"PGPASSWORD": self.postgres.password}
        where = {"SERVER_HOST": HOST, "SERVER_PORT": str(self.port), "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        words = ["bash", "-euc", text or commands("The server")]
        return Program(words, self.port, self.folder / "server.txt", secret | where | environment)

    @property
    def database(self) -> dict[str, str]:
        known = self.postgres
        return {"PGHOST": HOST, "PGPORT": str(known.port), "MLFLOW_DATABASE_PASSWORD": known.password}

    @property
    def storage(self) -> dict[str, str]:
        known = {"AWS_ACCESS_KEY_ID": self.bucket.key, "AWS_SECRET_ACCESS_KEY": self.bucket.secret}
        return known | {"AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL": self.bucket.address}

    def client(self, project: Project, *, retries: int | None = None) -> Project:
        """The project, with its runs on the server, whose address has a password as behind a proxy."""
        assert self.server
        project.environment["MLFLOW_TRACKING_URI"] = self.address.replace("//", f"//me:{self.login}@")
        project.environment["MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD"] = "false"  # as the page's commands
        if retries is not None:
            project.environment["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = str(retries)
        return project

    @contextmanager
    def instead(self, faulty: Program) -> Iterator[None]:
        """Inside, another server answers at the same address."""
        self.server.kill()
        try:
            faulty.start()
            yield
        finally:
            faulty.kill()
            self.server.start()

    @property
    def secrets(self) -> dict[str, str]:
        """Name -> secret, of the servers that were started."""
        found = {"the password of a client": self.login}
        if "postgres" in self.__dict__:
            found |= {"the password of the database": self.postgres.password}
        if "bucket" in self.__dict__:
            found |= {"the secret of the bucket": self.bucket.secret}
        return found

    def without_secrets(self, text: str) -> str:
        for name, secret in self.secrets.items():
            text = text.replace(secret, f"<{name}>")
        return text

    def set_aside(self, project: Project) -> None:
        """End a project's commands and delete its runs in MLflow. Files and deleted runs are searched later."""
        for command in project.started:
            command.kill()
        if "MLFLOW_TRACKING_URI" in project.environment:
            with suppress(OSError, ValueError), project.surroundings(), tracking.store(project.root) as mlflow:
                for run in mlflow.search_runs(["0"], output_format="list"):
                    mlflow.delete_run(run.info.run_id)
