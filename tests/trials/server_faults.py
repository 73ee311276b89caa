"""What must come of runs on real servers: many writers, servers that end, wrong credentials, DVC's remotes."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import yaml
from kill import PRELOADED, differences, mlflow_outcome
from services import HOST, Program
from site_of_servers import Site, commands, shell
from trial import PARAMS, Project, Skipped, expect, untroubled, wait_for

from ncflow import stages, tracking

WRITERS, STEPS, METRICS = 14, 10, 20
ABSENCE = 10.0  # seconds
FAKETIME = shutil.which("faketime")
STORE = "MLflow's store failed, fix it and rerun the same command"


def one_run(site: Site, project: Project) -> str:
    """the page's commands log a run whole: database and bucket hold what a local store holds"""
    site.client(project)
    where = {"SERVER_HOST": HOST, "SERVER_PORT": str(site.port)}
    shell(commands("A client"), root=project.root, environment=where)
    project.as_if_nothing_had_been()
    kept = [name for name in site.bucket.objects() if name.startswith("runs/")]
    expect(any(name.endswith("model.pt2") for name in kept), f"no model in the bucket: {kept}")
    return f"{len(kept)} artifacts in the bucket, the same metrics, files and model as in a local store"


def sixteen_writers(site: Site, project: Project) -> str:
    """14 writers and 2 trainings at once: every metric of each arrives, once"""
    site.client(project).ncflow("snapshot").wait()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    names = [f"writer{number}" for number in range(WRITERS)]
    writers = [context.Process(target=write, args=(project.root, project.environment, name)) for name in names]
    trainings = [project.ncflow("train", "--set", f"exp_name=run{number}") for number in range(2)]
    for writer in writers:
        writer.start()
    try:
        for writer, name in zip(writers, names, strict=True):
            writer.join(300)
            expect(writer.exitcode == 0, f"{name} ended with {writer.exitcode}")
    finally:
        for writer in writers:
            writer.kill()
    for training in trainings:
        training.wait()
    with project.surroundings():
        found = [f"{name}: {each}" for name in names for each in differences(written(project.root, name), EXPECTED)]
        for number in range(2):
            ours = mlflow_outcome(project.root, f"run{number}")
            found += [f"run{number}: {each}" for each in differences(ours, untroubled()["mlflow"])]
    expect(not found, "; ".join(found[:5]))
    return f"{WRITERS} writers × {METRICS} metrics × {STEPS} steps and 2 trainings, each point once"


def server_killed(site: Site, project: Project) -> str:
    """training waits for a server that is killed in mid-run, and ends as if it had been there"""
    return _while_away(site.client(project), site.server.kill, site.server.start)


def database_killed(site: Site, project: Project) -> str:
    """... and for a database that is killed under the server"""
    return _while_away(site.client(project), site.postgres.stop, site.postgres.start)


def server_lost(site: Site, project: Project) -> str:
    """one message without the password names the server; the same command resumes and ends as if nothing had been"""
    training = site.client(project, retries=1).ncflow("train")
    training.freeze_at(f"{stages.STATES}/run-*/epoch_2.pt", project.root)
    site.server.kill()
    try:
        training.thaw().wait(65, saying=f"{STORE}…{HOST}:{site.port}…server")
        project.nothing_half_written()
        again = project.ncflow("train").wait(65, saying=f"{STORE}…{HOST}:{site.port}…server")
    finally:
        site.server.start()
    project.finishes_as_if_nothing_had_been()
    return again.message


def database_password(site: Site, project: Project) -> str:
    """a client that opens the database itself with a wrong password ends at once, in one message"""
    login = f"mlflow:{site.login}@{HOST}:{site.postgres.port}"
    project.environment["MLFLOW_TRACKING_URI"] = f"postgresql+psycopg://{login}/mlflow"
    ended = project.ncflow("train").wait(65, saying=f"{HOST}:{site.postgres.port}…password authentication failed…rerun")
    del project.environment["MLFLOW_TRACKING_URI"]
    return ended.message


def server_password(site: Site, project: Project) -> str:
    """MLflow's server does not start with a wrong password, and a client says that nobody answers"""
    faulty = site.made_server(PGPASSWORD="wrong")
    site.client(project, retries=1)
    site.server.kill()
    try:
        faulty.start(seconds=0.1)
    except AssertionError:
        ended = project.ncflow("train").wait(65, saying=f"{STORE}…{HOST}:{site.port}")
        wait_for(lambda: "password authentication failed" in faulty.log.read_text(), "the server's log")
    finally:
        faulty.kill()
        site.server.start()
    return ended.message


def bucket_secret(site: Site, project: Project) -> str:
    """one message names the place and that the server's log has the reason; with the right secret the run resumes"""
    return _without_artifacts(site, project, site.made_server(AWS_SECRET_ACCESS_KEY="wrong"))


def bucket_missing(site: Site, project: Project) -> str:
    """the same for a bucket that does not exist"""
    faulty = site.made_server(commands("The server").replace("s3://runs", "s3://missing"))
    return _without_artifacts(site, project, faulty)


def clock_ahead(site: Site, project: Project) -> str:
    """a client whose clock is an hour ahead logs the same run, which ends after it began"""
    return _at(site.client(project), "+1h")


def clock_behind(site: Site, project: Project) -> str:
    """... and one whose clock is an hour behind"""
    return _at(site.client(project), "-1h")


def dvc_s3(site: Site, project: Project) -> str:
    """runs pushed to a bucket from one clone count as done in another one"""
    environment = site.storage
    _tracked(project)
    shell(commands("DVC over S3"), root=project.root, environment=environment)
    return _pulled(project, commands("DVC over S3", 1), environment)


def dvc_ssh(site: Site, project: Project) -> str:
    """... and those pushed over SSH"""
    store = site.folder / "box"
    environment = {"SSH_USER": "root", "SSH_HOST": HOST, "SSH_PORT": str(site.ssh.port), "SSH_FOLDER": str(store)}
    environment |= {"SSH_KEY": str(site.ssh.key)}
    _tracked(project)
    shell("ncflow suite main --track", root=project.root, environment=environment)
    shell(commands("DVC over SSH"), root=project.root, environment=environment)
    shell("git add .dvc suites && git commit --quiet --message box", root=project.root, environment={})
    expect(any(store.rglob("*.dir")), "nothing arrived")
    text = commands("DVC over SSH", 1) + commands("DVC over S3", 1).partition("\n")[2]
    return _pulled(project, text, environment)


def dvc_secret(site: Site, project: Project) -> str:
    """... and a wrong secret ends DVC's push with a message, without the secret"""
    _tracked(project)
    one = "mkdir suites && echo 1 > suites/number && dvc add --quiet suites/number"
    shell(one, root=project.root, environment={})
    text = commands("DVC over S3").replace("ncflow suite main --track\n", "")
    try:
        shell(text, root=project.root, environment=site.storage | {"AWS_SECRET_ACCESS_KEY": site.login})
    except subprocess.CalledProcessError as error:
        said = error.stdout + error.stderr
        expect("ERROR" in said and site.login not in said, said)
        return " ".join(said.partition("ERROR: ")[2].split())[:200]
    expect(False, "DVC pushed with a wrong secret")
    return ""


def no_secret_left(site: Site, project: Project) -> str:
    """no secret is in a file of a project, a log, a row of the database or an object of the bucket"""
    files = [path for path in site.folder.rglob("*") if path.is_file() and "postgres" not in path.parts]
    texts = {str(path.relative_to(site.folder)): path.read_bytes() for path in files} | site.bucket.objects()
    texts |= {"the database": site.postgres.dump()}
    texts |= {"the log of the database": (site.postgres.folder / "log.txt").read_bytes()}
    for name, secret in site.secrets.items():
        found = sorted(place for place, text in texts.items() if secret.encode() in text)
        expect(not found, f"{name} is in {', '.join(found[:5])}")
    return f"{len(site.secrets)} secrets, {len(texts)} places"


def write(root: Path, environment: dict[str, str], name: str) -> None:
    """What one of many writers logs."""
    os.environ |= environment
    file = root / f"{name}.txt"
    file.write_text(name)
    with tracking.start_run(root=root, name=name, config={"name": name}) as run:
        for step in range(STEPS):
            run.metrics({f"metric{number}": number + step for number in range(METRICS)}, step=step)
        run.artifact(file)


def written(root: Path, name: str) -> dict[str, object]:
    """What the store has of a writer."""
    with tracking.store(root) as mlflow:
        client = mlflow.MlflowClient()
        (run,) = mlflow.search_runs(["0"], filter_string=f"attributes.run_name = '{name}'", output_format="list")
        histories = {key: client.get_metric_history(run.info.run_id, key) for key in run.data.metrics}
        return {
            "status": run.info.status,
            "points": {key: [(p.step, p.value) for p in points] for key, points in histories.items()},
            "artifacts": len(client.list_artifacts(run.info.run_id)),
        }


EXPECTED = {
    "status": "FINISHED",
    "points": {f"metric{number}": [(step, number + step) for step in range(STEPS)] for number in range(METRICS)},
    "artifacts": 1,
}


def _while_away(project: Project, stop: Callable[[], object], start: Callable[[], object]) -> str:
    """Stop a server when the second epoch is done, and start it after a while."""
    training = project.ncflow("train").freeze_at(f"{stages.STATES}/run-*/epoch_2.pt", project.root)
    stop()
    try:
        training.thaw().process.join(ABSENCE)
        waited = training.process.is_alive()
    finally:
        start()
    expect(waited, f"it did not wait: {training.text[-1000:]}")
    training.wait()
    project.as_if_nothing_had_been()
    return f"it waited {ABSENCE:.0f} s and went on"


def _without_artifacts(site: Site, project: Project, faulty: Program) -> str:
    """A run whose artifacts the server cannot store; then it resumes on the right server."""
    site.client(project, retries=1)
    with site.instead(faulty):
        training = project.ncflow("train").wait(65, saying=f"{HOST}:{site.port}…server's log…rerun the same command")
        project.nothing_half_written()
    project.finishes_as_if_nothing_had_been()
    return training.message


def _at(project: Project, offset: str) -> str:
    """Train with another clock."""
    if FAKETIME is None:
        raise Skipped("install with `apt-get install faketime`")
    command = [FAKETIME, "-f", offset, "ncflow", "train"]
    environment = os.environ | project.environment | {"FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    done = subprocess.run(command, cwd=project.root, env=environment, check=True, capture_output=True, text=True)
    expect("Traceback" not in done.stderr, done.stderr)
    project.as_if_nothing_had_been()
    with project.surroundings(), tracking.store(project.root) as mlflow:
        (run,) = mlflow.search_runs(["0"], output_format="list")
    ahead = (run.info.start_time / 1000 - time.time()) / 3600
    expect(run.info.end_time >= run.info.start_time, "it ended before it began")
    return f"the run began {ahead:+.2f} h from here, and ended {run.info.end_time - run.info.start_time} ms later"


def _tracked(project: Project) -> None:
    """Make the project a clone with git and DVC, whose pipeline has one run of one epoch."""
    short = PARAMS | {"train": PARAMS["train"] | {"epochs": 1, "analyze_freq": 1}, "grid": {"head": ["nearest_etf"]}}
    (project.root / "params.yaml").write_text(yaml.safe_dump(short))
    (project.root / ".gitignore").write_text("/models\n/data\n/mlruns\n/mlflow.db*\n/.ncflow\n/reports\n")
    shell("git init --quiet && dvc init --quiet && git add .", root=project.root, environment={})


def _pulled(project: Project, text: str, environment: dict[str, str]) -> str:
    """What a second clone says of the runs that it pulls."""
    clone = project.root / "clone"
    shell(f"git clone --quiet . {clone}", root=project.root, environment={})
    said = shell(text, root=clone, environment=environment)
    expect("done before" in said, f"the runs do not count as done: {said}")
    expect("logged to MLflow" in said, f"nothing was logged: {said}")
    return " ".join(line for line in said.splitlines() if "done before" in line or "logged to" in line)[:200]


FAULTS: dict[str, Callable[[Site, Project], str]] = {
    "one_run": one_run,
    "sixteen_writers": sixteen_writers,
    "server_killed": server_killed,
    "database_killed": database_killed,
    "server_lost": server_lost,
    "database_password": database_password,
    "server_password": server_password,
    "bucket_secret": bucket_secret,
    "bucket_missing": bucket_missing,
    "clock_ahead": clock_ahead,
    "clock_behind": clock_behind,
    "dvc_s3": dvc_s3,
    "dvc_ssh": dvc_ssh,
    "dvc_secret": dvc_secret,
    "no_secret_left": no_secret_left,
}
