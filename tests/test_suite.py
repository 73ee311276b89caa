"""A suite brings every run to its end once, whatever becomes of the others, of its processes and of itself."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from io import StringIO
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
import yaml
from rich.console import Console
from waiting import is_alive, wait_for

from ncflow import group, imports, suite
from ncflow.exits import Exit
from ncflow.files import checksum
from ncflow.group import run_group
from ncflow.params import make_params
from ncflow.runs.posthoc import PostHoc, read_posthoc, write_posthoc
from ncflow.runs.provenance import DataVersion, Provenance
from ncflow.suite import engines, process, schedule
from ncflow.suite.cluster import run_job, share_of_machine
from ncflow.suite.table import View, duration
from ncflow.suite.track import _last_words
from ncflow.suite.versions import other_version

ROOT = Path(__file__).parents[1]
# Stands in for training: what it does is in its run's name; what it was given, it writes down.
TRAINING = """
import json, os, pathlib, signal, sys, time, yaml
config = pathlib.Path(sys.argv[sys.argv.index("--config") + 1])
params = yaml.safe_load(config.read_text())
name, folder = params["exp_name"], pathlib.Path("models", params["exp_name"])
def note(**values):
    with open("seen.jsonl", "a") as log:
        log.write(json.dumps({"name": name, "argv": sys.argv[1:], "pid": os.getpid(), **values}) + "\\n")
first = not folder.exists()
folder.mkdir(parents=True, exist_ok=True)
note(environment={key: os.environ.get(key) for key in ("NCFLOW_PROCESSES", "OMP_NUM_THREADS")}, at=time.monotonic())
if "refused" in name:
    pathlib.Path(os.environ["NCFLOW_RESULT"]).write_text('{"code": 65, "reason": "lr: must be positive, got -1"}')
    sys.exit(65)
if "crash" in name:
    pathlib.Path(os.environ["NCFLOW_RESULT"]).write_text('{"code": 1, "reason": "RuntimeError: boom"}')
    raise RuntimeError("boom")
if "idle" in name:
    sys.exit(0)
if "lost" in name:
    sys.exit(255)
if "interrupted" in name and first:
    sys.exit(75)
if "taken" in name and first:
    sys.exit(76)
if "killed" in name and first:
    os.kill(os.getpid(), signal.SIGKILL)
if "endless" in name:
    def leave(number, frame):
        note(asked=number)
        sys.exit(75)
    signal.signal(signal.SIGTERM, leave)
    (folder / "ready").touch()
    time.sleep(120)
if "pair" in name:
    (folder / "here").touch()
    until = time.monotonic() + 60
    while len(list(pathlib.Path("models").glob("*pair*/here"))) < 2 and time.monotonic() < until:
        time.sleep(0.01)
(folder / "history.json").write_text(json.dumps([{}] * params["train"]["epochs"]))
(folder / "config.yaml").write_text(config.read_text())
(folder / "final_model.pth").touch()
note(until=time.monotonic())
"""


@pytest.fixture
def project(tmp_path):
    (tmp_path / "training.py").write_text(TRAINING)
    return tmp_path


def make(project, *names, **values):
    configs = [make_params({"exp_name": name, "seed": seed} | values) for seed, name in enumerate(names)]
    return suite.make_jobs(configs, group="g", root=project, suite="g-1", command=["training.py"])


def run(jobs, *, engine=None, prepare=lambda params: None, **options):
    """Run a suite to its end, its engine with room for two."""
    for _ in suite.run_suite(jobs, engine=engine or suite.create_engine("local", jobs=2), prepare=prepare, **options):
        pass
    return {job.name: job.state for job in jobs}


def seen(project):
    return [json.loads(line) for line in (project / "seen.jsonl").read_text().splitlines()]


def starts(project):
    return [line["name"] for line in seen(project) if "environment" in line]


def finish(job):
    """Leave what a training process elsewhere leaves."""
    job.folder.mkdir(parents=True, exist_ok=True)
    (job.folder / "config.yaml").write_text(yaml.safe_dump(job.params.resolved()))
    (job.folder / "final_model.pth").touch()


# --- what is run ---


def test_every_job_is_trained_once_with_its_whole_configuration_and_its_tags(project):
    jobs = make(project, "first", "second", "third")
    assert set(run(jobs).values()) == {"done"}
    assert sorted(starts(project)) == ["first", "second", "third"]
    for job in jobs:
        (argv,) = [line["argv"] for line in seen(project) if line["name"] == job.name and "environment" in line]
        assert argv[2:] == ["--group", "g", "--suite", "g-1"]
        assert yaml.safe_load(Path(argv[1]).read_text()) == job.params.resolved()


def test_again_only_what_is_missing_failed_or_changed_is_run(project):
    names = ("whole", "crash", "killed", "other")
    run(make(project, *names), retries=0)
    before = len(starts(project))
    changed = make(project, *names, train={"lr": 0.5})[-1]
    states = run([*make(project, *names)[:-1], changed], retries=0)
    assert sorted(starts(project)[before:]) == ["crash", "killed", "other"]
    assert states == {"whole": "done", "crash": "failed", "killed": "done", "other": "done"}


def test_force_trains_finished_runs_anew(project):
    run(make(project, "one"))
    run(make(project, "one"), force=True)
    assert starts(project) == ["one", "one"]


def test_a_run_with_a_state_to_go_on_from_is_not_done(project):
    (job,) = make(project, "one")
    run([job])
    assert job.is_finished()
    (project / ".ncflow" / "state" / f"one-{job.params.digest()}-0123").mkdir(parents=True)
    assert not job.is_finished()


def write_imports(job: suite.Job, imported: dict[str, str]) -> None:
    made = Provenance("0.1.0", "2.15", None, DataVersion("digits", "0123"), None, imports=dict(imported))
    (job.folder / "provenance.json").write_text(made.as_json())


def test_a_run_counts_only_with_the_imported_content_of_its_training(project, monkeypatch):
    (job,) = make(project, "one")
    run([job])
    monkeypatch.setitem(imports.IMPORTED, "mine.py", "0123")
    assert not job.is_finished()  # trained without
    for content, done in (("0123", True), ("4567", False)):
        write_imports(job, {"mine.py": content})
        assert job.is_finished() == done
    monkeypatch.delitem(imports.IMPORTED, "mine.py")
    assert not job.is_finished()  # trained with


def test_a_state_of_other_imported_files_is_not_that_of_a_run(project, monkeypatch):
    (job,) = make(project, "one")
    run([job])
    monkeypatch.setitem(imports.IMPORTED, "mine.py", "0123")
    write_imports(job, imports.IMPORTED)
    (project / ".ncflow" / "state" / f"one-{job.params.digest()}-0123").mkdir(parents=True)
    assert job.is_finished()
    (project / ".ncflow" / "state" / f"one-{imports.run_digest(job.params)}-0123").mkdir()
    assert not job.is_finished()


def test_a_job_trains_its_own_configuration_despite_other_suites(project):
    names = ("same", "other")
    ours = make(project, *names, train={"lr": 0.5})
    looks = suite.run_suite(ours, engine=suite.create_engine("local"), prepare=lambda params: None)
    next(looks), next(looks)
    theirs = make(project, *names, train={"lr": 7.0})
    assert list(looks) != []
    assert [(job.state, job.is_finished()) for job in ours] == [("done", True)] * 2
    assert not any(job.is_finished() for job in theirs)
    assert len([*(project / ".ncflow" / "suite").iterdir()]) == 4 + 2  # with the logs
    again = make(project, *names, train={"lr": 7.0})
    assert [job.arguments for job in again] == [job.arguments for job in theirs]


def test_a_job_that_ends_well_without_its_final_model_has_failed(project, monkeypatch):
    monkeypatch.setattr(schedule, "LAG", 0.0)
    (job,) = make(project, "idle")
    assert run([job], retries=3) == {"idle": "failed"}
    assert job.attempts == 1
    assert job.reason.startswith("ended with exit code 0, but models/idle does not hold the final model")


def test_a_final_model_that_is_seen_late_is_waited_for(project):
    """As of another machine, over NFS."""
    (job,) = make(project, "idle")
    looks = suite.run_suite([job], engine=suite.create_engine("local"), prepare=lambda params: None, pause=0.01)
    wait_for(lambda: next(looks, True) is None and job.ended)
    assert job.state == "running"
    finish(job)
    assert list(looks) != []
    assert (job.state, starts(project)) == ("done", ["idle"])


@pytest.mark.parametrize("damage", ["- no mapping", "train: {nonsense: 1}", "a: [", None])
def test_a_run_whose_configuration_cannot_be_read_is_not_done(project, damage):
    (job,) = make(project, "one")
    run([job])
    file = job.folder / "config.yaml"
    file.unlink() if damage is None else file.write_text(damage)
    assert not job.is_finished()


def test_a_snapshot_is_made_once_and_fails_only_its_own_runs(project):
    made = []

    def prepare(params):
        made.append(params.dataset.name)
        if params.dataset.name == "cifar10":
            raise OSError("no route to host")

    digits, cifar = make(project, "a", "b"), make(project, "c", "d", dataset={"name": "cifar10"})
    assert run([*digits, *cifar], prepare=prepare) == {"a": "done", "b": "done", "c": "failed", "d": "failed"}
    assert sorted(made) == ["cifar10", "digits"]
    assert "no snapshot: no route to host" in suite.failures(cifar)


# --- what goes wrong ---


def test_a_failed_run_stops_no_other_and_names_reason_and_log(project):
    jobs = make(project, "refused", "crash", "fine")
    assert run(jobs) == {"refused": "failed", "crash": "failed", "fine": "done"}
    assert suite.failures(jobs).splitlines() == [
        "  refused: lr: must be positive, got -1",
        f"    log: {jobs[0].log}",
        "  crash: RuntimeError: boom",
        f"    log: {jobs[1].log}",
    ]
    assert "Traceback" in jobs[1].log.read_text()


def test_killed_runs_are_started_again_and_refused_ones_are_not(project):
    jobs = {job.name: job for job in make(project, "refused", "killed", "interrupted", "crash")}
    run([*jobs.values()], retries=2)
    assert {name: (job.state, job.attempts) for name, job in jobs.items()} == {
        "refused": ("failed", 1),
        "killed": ("done", 2),
        "interrupted": ("done", 2),
        "crash": ("failed", 3),
    }


def test_without_retries_a_killed_run_has_failed(project):
    (job,) = make(project, "killed")
    run([job], retries=0)
    assert (job.state, job.reason) == ("failed", "killed by SIGKILL, as the system does when memory runs out")


def test_the_reason_is_what_the_process_wrote_whatever_its_log_says(tmp_path):
    (tmp_path / "result").write_text('{"code": 3, "reason": "lr is negative"}')
    assert process.explain(3, tmp_path / "result") == "lr is negative"


@pytest.mark.parametrize("text", [None, "", "{", "[]", "{}"])
def test_without_a_reason_there_is_the_exit_code(tmp_path, text):
    if text is not None:
        (tmp_path / "result").write_text(text)
    assert process.explain(3, tmp_path / "result") == "exit code 3"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (-11, "killed by SIGSEGV"),
        (139, "killed by SIGSEGV"),
        (-40, "killed by signal 40"),  # one of those without a name
        (168, "bye"),
        (128, "bye"),
        (200, "bye"),
        (255, "bye"),
    ],
)
def test_an_exit_code_is_a_signal_only_if_that_signal_exists(tmp_path, code, reason):
    (tmp_path / "result").write_text('{"reason": "bye"}')
    assert process.explain(code, tmp_path / "result") == reason


def test_no_exit_code_ends_the_suite(project):
    jobs = make(project, "lost", "fine")
    assert run(jobs, retries=0) == {"lost": "failed", "fine": "done"}
    assert jobs[0].reason == "exit code 255"


def test_leaving_a_suite_stops_its_runs_and_waits(project):
    jobs = make(project, "endless1", "endless2")
    looks = suite.run_suite(jobs, engine=suite.create_engine("local", jobs=2), prepare=lambda params: None)
    with closing(looks):
        wait_for(lambda: next(looks, True) is None and len(list(project.glob("models/*/ready"))) == 2)
    assert sorted(line["name"] for line in seen(project) if line.get("asked") == signal.SIGTERM) == [
        "endless1",
        "endless2",
    ]
    assert not any(is_alive(line["pid"]) for line in seen(project))


def test_a_process_that_does_not_listen_is_ended_after_a_while(project):
    (project / "deaf.py").write_text(
        "import signal, time\nsignal.signal(15, signal.SIG_IGN)\nopen('ready', 'w')\ntime.sleep(60)"
    )
    attempt = process.Attempt(process.Task(("deaf.py",), cwd=project, log=project / "log", result=project / "result"))
    wait_for((project / "ready").exists)
    attempt.end(grace=0.2)
    assert attempt.poll().reason.startswith("killed by SIGKILL")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has died")
def test_a_killed_suite_leaves_no_process_behind(project):
    code = (
        "import sys; from pathlib import Path; from ncflow import suite; from ncflow.params import make_params\n"
        "options = dict(group='g', root=Path.cwd(), suite='g-1', command=['training.py'])\n"
        "jobs = suite.make_jobs([make_params({'exp_name': 'endless'})], **options)\n"
        "list(suite.run_suite(jobs, engine=suite.create_engine('local'), prepare=lambda params: None))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    driver = subprocess.Popen([sys.executable, "-c", code], cwd=project, env=environment)
    wait_for((project / "models" / "endless" / "ready").exists)
    driver.kill()
    driver.wait()
    wait_for(lambda: not any(is_alive(line["pid"]) for line in seen(project)))
    assert [line["asked"] for line in seen(project) if "asked" in line] == [signal.SIGTERM]


# --- who runs it ---


def test_a_run_that_another_process_trains_is_left_to_it(project):
    jobs = make(project, "theirs", "ours")
    looks = suite.run_suite(jobs, engine=suite.create_engine("local"), prepare=lambda params: None, pause=0.01)
    with suite.claimed(project, "theirs"):
        wait_for(lambda: next(looks, True) is None and jobs[1].state == "done")
        assert (jobs[0].state, jobs[0].reason) == ("waiting", "another process trains it")
        finish(jobs[0])
    assert list(looks) != []
    assert (jobs[0].state, jobs[0].reason, starts(project)) == ("done", "by another process", ["ours"])


@pytest.mark.parametrize("force", [False, True])
def test_a_run_finished_by_others_is_skipped_unless_forced(project, force):
    jobs = make(project, "ours", "theirs")
    engine = suite.create_engine("local")
    looks = suite.run_suite(jobs, engine=engine, prepare=lambda params: None, force=force)
    next(looks), next(looks)
    finish(jobs[1])
    assert list(looks) != []
    assert [job.state for job in jobs] == ["done", "done"]
    assert jobs[1].reason == ("" if force else "by another process")
    assert starts(project) == (["ours", "theirs"] if force else ["ours"])


def test_a_run_finished_while_ray_had_no_room_is_skipped(project):
    (job,) = make(project, "one")
    finish(job)
    task = process.Task(job.arguments, job.root, job.log, job.result)
    assert run_job(job, task, {}).code == Exit.TAKEN
    assert not (project / "seen.jsonl").exists()
    job.forced = True
    assert run_job(job, task, {}).code == 0
    assert starts(project) == ["one"]


@pytest.mark.parametrize("package", ["ncflow", "torch"])
def test_a_machine_with_another_ncflow_is_refused_and_with_another_torch_noted(project, package):
    (job,) = make(project, "one")
    task = process.Task.of(job)
    assert process.run_task(replace(task, versions=task.versions | {package: "0.0.1"})).code == (
        Exit.CHANGE if package == "ncflow" else Exit.DONE
    )
    trained = package == "torch"
    assert (project / "seen.jsonl").exists() == trained
    assert (not trained) or "has torch" in job.log.read_text()


@pytest.mark.parametrize(
    ("made", "here", "said"),
    [
        ({"ncflow": "0.1.0"}, {"ncflow": "0.2.0"}, "has ncflow 0.2.0, but the suite was started with ncflow 0.1.0"),
        ({"ncflow": "0.1.0"}, {}, ""),
        ({"ncflow": "0.1.0"}, {"ncflow": "0.1.0"}, ""),
        ({}, {"ncflow": "0.1.0"}, ""),
    ],
)
def test_a_message_says_both_versions_where_they_differ(made, here, said):
    found = other_version(made, "ncflow", here)
    assert said in found and bool(found) == bool(said)


def test_ray_compares_imported_files_of_this_process(project, monkeypatch):
    (job,) = make(project, "one")
    finish(job)
    write_imports(job, {"mine.py": "0123"})
    monkeypatch.setattr("ncflow.suite.cluster.run_task", lambda task: process.Ending(0, "trained"))
    monkeypatch.setitem(imports.IMPORTED, "mine.py", "4567")
    task = process.Task(job.arguments, job.root, job.log, job.result)
    assert run_job(job, task, {"mine.py": "4567"}).reason == "trained"
    assert run_job(job, task, {"mine.py": "0123"}).code == Exit.TAKEN


@pytest.mark.parametrize(
    ("train", "state", "refused"), [({}, "", True), ({"lr": 0.5}, "", False), ({}, "one-{digest}-data", False)]
)
def test_only_a_finished_run_of_the_same_configuration_is_refused(project, train, state, refused):
    """A suite looked before it started the process, and another suite has trained the run since."""
    (job,) = make(project, "one")
    finish(job)
    (project / ".ncflow" / "state" / state.format(digest=imports.run_digest(job.params, None))).mkdir(parents=True)
    (changed,) = make(project, "one", train=train)
    with suite.claimed(project, "one"):
        if refused:
            with pytest.raises(suite.Claimed, match="models/one is finished; .* without --unless-finished") as stop:
                suite.refuse_finished(changed.params, project)
            assert stop.value.code == Exit.TAKEN
        else:
            suite.refuse_finished(changed.params, project)


@pytest.mark.parametrize("force", [False, True])
def test_processes_of_a_suite_look_again_unless_forced(project, monkeypatch, force):
    jobs = Mock(side_effect=InterruptedError)
    monkeypatch.setattr(suite, "make_jobs", jobs)
    with pytest.raises(InterruptedError):
        run_group("g", [], root=project, engine=Mock(), report=Mock(), say=Mock(), force=force)
    assert (suite.UNLESS_FINISHED in jobs.call_args.kwargs["options"]) != force


def test_two_suites_measure_the_post_hoc_classifiers_of_a_run_once(project, monkeypatch):
    (job,) = make(project, "one")
    finish(job)
    model, measured = job.folder / "final_model.pth", []

    def measure(folder, data, methods):
        measured.append(folder)
        time.sleep(0.1)
        write_posthoc(folder, PostHoc("0", checksum(model), {"test": {}}, {}, dict.fromkeys(methods, "default")))

    monkeypatch.setattr(group.stages, "posthoc", measure)
    monkeypatch.setattr(group.stages, "track_posthoc", lambda folder, root: None)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda methods: group._measure_posthoc(job, methods, project), [["ncm"]] * 3 + [["crt"]]))
    assert len(measured) == 2 and sorted(read_posthoc(job.folder).methods) == ["crt", "ncm"]


def test_an_attempt_that_came_second_to_another_process_does_not_count(project):
    (job,) = make(project, "taken")
    assert run([job], retries=0) == {"taken": "done"}
    assert (job.attempts, starts(project)) == (1, ["taken", "taken"])


def test_a_run_that_another_process_left_unfinished_is_taken_over(project):
    (job,) = make(project, "one")
    looks = suite.run_suite([job], engine=suite.create_engine("local"), prepare=lambda params: None, pause=0.01)
    with suite.claimed(project, "one"):
        next(looks), next(looks)
        assert job.state == "waiting"
    assert list(looks) != []
    assert (job.state, starts(project)) == ("done", ["one"])


def test_a_second_process_on_the_same_run_is_told_to_come_later(tmp_path):
    with suite.claimed(tmp_path, "one"), suite.claimed(tmp_path, "two"):
        with (
            pytest.raises(suite.Claimed, match="another process trains models/one") as refused,
            suite.claimed(tmp_path, "one"),
        ):
            pass
        assert refused.value.code == Exit.TAKEN
    with suite.claimed(tmp_path, "one"):
        pass


def test_runs_are_side_by_side_as_many_as_asked_for(project):
    run(make(project, "pair1", "pair2", "a", "b", "c"), engine=suite.create_engine("local", jobs=2))
    events = sorted((line.get("at", line.get("until")), 1 if "at" in line else -1) for line in seen(project))
    under_way = [sum(change for _, change in events[: i + 1]) for i in range(len(events))]
    assert max(under_way) == 2
    assert not any(line["name"] == "a" and line.get("at", 9e9) < events[1][0] for line in seen(project))


@pytest.mark.parametrize(("limit", "threads"), [("4", 4), ("99", 12), ("many", 12), ("0", 12)])
def test_the_environment_limits_the_threads_of_a_run(tmp_path, monkeypatch, limit, threads):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_NUM_THREADS", limit)
    monkeypatch.setattr(engines, "cpus", lambda: 12)
    assert [task.threads for task in started(monkeypatch, tmp_path, 1)] == [threads]


@pytest.mark.parametrize(("jobs", "processes"), [(1, 1), (1, 2), (2, 1), (3, 2)])
def test_each_run_gets_its_share_of_cpus_and_process_count(tmp_path, monkeypatch, jobs, processes):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(engines, "cpus", lambda: 12)
    tasks = started(monkeypatch, tmp_path, jobs, processes=processes, jobs=jobs)
    assert {task.threads * task.processes * jobs for task in tasks} == {12}
    shares = [process._share(task) for task in tasks]
    assert {(share["NCFLOW_PROCESSES"], share["OMP_NUM_THREADS"]) for share in shares} == {
        (str(processes), str(tasks[0].threads))
    }


@pytest.mark.parametrize(
    ("options", "shares"),
    [
        ({}, [("2", "5", "6", "7")]),
        ({"jobs": 2}, [("2", "5"), ("6", "7")]),
        ({"jobs": 4}, [("2",), ("5",), ("6",), ("7",)]),
        ({"jobs_per_gpu": 2}, [("2",), ("5",), ("6",), ("7",)] * 2),
        ({"jobs_per_gpu": 2, "jobs": 3}, [("2",), ("5",), ("6",)]),
        ({"processes": 2, "jobs": 2}, [("2", "5"), ("6", "7")]),
    ],
)
def test_gpus_are_shared_out_evenly(tmp_path, monkeypatch, options, shares):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5, 6,7")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    tasks = started(monkeypatch, tmp_path, len(shares), **options)
    assert [task.gpus for task in tasks] == shares
    assert all(process._share(task)["CUDA_VISIBLE_DEVICES"] == ",".join(task.gpus) for task in tasks)
    assert all(task.processes == len(task.gpus) for task in tasks)


@pytest.mark.parametrize("named, count, gpus", [("0,1", 0, []), ("-1", 0, []), ("0,-1,1", 1, ["0"]), ("", 4, [])])
def test_what_the_environment_names_is_a_gpu_only_if_torch_finds_it(monkeypatch, named, count, gpus):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert engines.visible_gpus() == gpus


def started(monkeypatch, root, count, **options):
    """The tasks that a local engine starts when it is full; afterwards it has no room."""
    tasks = []

    class Endless:
        def __init__(self, task):
            tasks.append(task)

        def poll(self):
            return None

    monkeypatch.setattr(engines, "Attempt", Endless)
    engine = suite.create_engine("local", **options)
    for job in make(root, *(f"job{i}" for i in range(count))):
        assert engine.has_room()
        engine.start(job)
    assert not engine.has_room()
    return tasks


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("rya", {}, "unknown engine 'rya'. Did you mean 'ray'"),
        ("local", {"address": "auto"}, "use --engine ray"),
        ("local", {"jobs_per_gpu": 2}, "has no GPU; use --jobs"),
        ("ray", {"jobs_per_gpu": 2, "processes": 2}, "jobs that share a GPU have one process each"),
    ],
)
def test_an_engine_that_cannot_be_is_refused(monkeypatch, name, options, message):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ValueError, match=message):
        suite.create_engine(name, **options)


GPU = {"CPU": 64.0, "GPU": 8.0}


@pytest.mark.parametrize(
    ("machines", "options", "share"),
    [
        ([{"CPU": 8.0}], {}, (8, 0)),
        ([{"CPU": 8.0}], {"jobs": 4}, (2, 0)),
        ([{"CPU": 8.0}, {"CPU": 6.0}], {"jobs": 4}, (3, 0)),
        ([GPU, {"CPU": 4.0}], {}, (8, 1)),
        ([GPU, GPU], {"jobs_per_gpu": 4}, (2, 0.25)),
        ([GPU], {"processes": 4}, (32, 4)),
        ([{"CPU": 4.0}], {"jobs_per_gpu": 2}, (1, 0.5)),  # GPUs that a cluster adds when they are asked for
    ],
)
def test_on_ray_the_jobs_of_a_machine_share_all_of_it(machines, options, share):
    options = {"processes": 1, "jobs": None, "jobs_per_gpu": None} | options
    assert share_of_machine(machines, **options) == {"num_cpus": share[0], "num_gpus": share[1]}


def test_on_ray_a_run_that_no_machine_can_hold_is_refused():
    with pytest.raises(ValueError, match="9 processes needs 9 GPUs"):
        share_of_machine([GPU], processes=9, jobs=None, jobs_per_gpu=None)


# --- what is shown ---


@pytest.mark.parametrize(
    ("terminal", "variable", "live"),
    [(True, None, True), (False, "FORCE_COLOR", False), (True, "JPY_PARENT_PID", False)],
)
def test_only_a_terminal_outside_of_a_notebook_is_drawn_live(terminal, variable, live, monkeypatch):
    monkeypatch.delenv("JPY_PARENT_PID", raising=False)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    if variable:
        monkeypatch.setenv(variable, "1")
    assert Console(force_terminal=group._is_live()).is_terminal is live


def test_without_a_terminal_each_start_and_end_is_a_line(project):
    lines: list[str] = []
    jobs = make(project, "first", "crash")
    looks = suite.run_suite(jobs, engine=suite.create_engine("local"), prepare=lambda params: None)
    suite.watch(looks, jobs, say=lines.append, console=Console(file=StringIO()))
    texts = [line.partition(" in ")[0].partition(";")[0] for line in lines]
    assert texts[:3] == ["[0/2] first starts", "[1/2] first done", "[1/2] crash starts"]
    assert lines[-1].startswith("[2/2] crash failed") and lines[-1].endswith("RuntimeError: boom")
    assert "[1/2] crash waits: RuntimeError: boom" in lines[3]


def test_in_a_terminal_a_suite_is_a_table_with_what_is_left(project):
    jobs = make(project, "one", "two", "three", "four", train={"epochs": 10})
    jobs[0].state, jobs[1].state, jobs[2].state, jobs[2].reason = "done", "running", "failed", "boom"
    for job, epochs in ((jobs[0], 10), (jobs[1], 5)):
        job.started = time.monotonic() - 60
        job.folder.mkdir(parents=True)
        (job.folder / "history.json").write_text(json.dumps([{}] * epochs))
    view = View(jobs, began=time.monotonic() - 60)
    assert view.summary() == "1 waiting, 1 running, 1 done, 1 failed, 15 epochs/min, 60 s left"
    screen = StringIO()
    Console(file=screen, width=120).print(view.screen())
    assert "two" in screen.getvalue() and "5/10" in screen.getvalue() and "boom" in screen.getvalue()
    assert "four" not in screen.getvalue()


def test_a_finished_run_that_is_trained_anew_begins_without_epochs(project):
    run(make(project, "one", train={"epochs": 10}))
    (job,) = make(project, "one", train={"epochs": 10})
    (endless,) = make(project, "endless")
    job.arguments = endless.arguments  # it does not touch the folder of the finished run
    looks = suite.run_suite([job], engine=suite.create_engine("local"), prepare=lambda params: None, force=True)
    with closing(looks):
        wait_for(lambda: next(looks, True) is None and job.state == "running")
        view = View([job], began=time.monotonic() - 60)
        assert (job.epochs_before, job.epochs_done(), view.rate(), view.seconds_left()) == (0, 0, 0, None)
        shutil.move(job.folder, project / "models" / "one_replaced")
        assert job.epochs_done() == 0
        job.folder.mkdir()
        (job.folder / "history.json").write_text(json.dumps([{}] * 5))
        assert view.summary() == "0 waiting, 1 running, 0 done, 0 failed, 5 epochs/min, 60 s left"


def test_the_live_table_ends_with_every_job_counted(project):
    screen = StringIO()
    jobs = make(project, "one", "two")
    looks = suite.run_suite(jobs, engine=suite.create_engine("local", jobs=2), prepare=lambda params: None)
    suite.watch(looks, jobs, say=pytest.fail, console=Console(file=screen, force_terminal=True, color_system=None))
    assert "0 waiting, 0 running, 2 done, 0 failed" in screen.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.4, "4 s"), (89, "89 s"), (90, "2 min"), (3600, "60 min"), (7200, "2.0 h")]
)
def test_durations_are_in_the_unit_that_one_thinks_in(seconds, text):
    assert duration(seconds) == text


# --- with the real things ---


@pytest.mark.slow
def test_two_processes_on_a_cpu_are_two(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "params.yaml").touch()
    small = {"model": {"image_size": 8}, "train": {"epochs": 1, "batch_size": 64}, "head": "nearest_etf"}
    jobs = suite.make_jobs([make_params(small)], group="g", root=tmp_path, suite="g-1")
    run(jobs, engine=suite.create_engine("local", processes=2))
    assert suite.failures(jobs) == ""
    assert jobs[0].is_finished()
    assert json.loads((jobs[0].folder / "provenance.json").read_text())["hardware"]["processes"] == 2


@pytest.mark.slow
def test_what_is_tracked_goes_to_a_remote_and_comes_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/digits").mkdir(parents=True)
    (tmp_path / "data/digits/train.parquet").write_text("numbers")
    for name in ("one", "two"):
        (tmp_path / "models" / name).mkdir(parents=True)
        (tmp_path / "models" / name / "final_model.pth").write_text(name)

    def dvc(*words):
        return subprocess.run([sys.executable, "-m", "dvc", *words], check=True, capture_output=True, text=True)

    (tmp_path / ".dvc").mkdir()
    remote = f"remote = storage\n['remote \"storage\"']\nurl = {tmp_path / 'storage'}\n"
    (tmp_path / ".dvc/config").write_text(f"[core]\nno_scm = true\nanalytics = false\n{remote}")
    runs, data = [tmp_path / "models/one", tmp_path / "models/two"], [tmp_path / "data/digits"]
    folders = suite.track("exp8", root=tmp_path, runs=runs, snapshots=data)
    assert folders == ["suites/exp8", "suites/snapshots"]
    dvc("push", "-q", "-R", *folders)
    for lost in ("data", "models", ".dvc/cache"):
        shutil.rmtree(tmp_path / lost)
    dvc("pull", "-q", "-R", "suites/exp8")
    assert [(run / "final_model.pth").read_text() for run in runs] == ["one", "two"]
    assert not data[0].exists()
    # Only one run is here and has changed: the other stays tracked.
    shutil.rmtree(runs[0])
    (runs[1] / "final_model.pth").unlink()
    (runs[1] / "final_model.pth").write_text("changed")
    suite.track("exp8", root=tmp_path, runs=runs[1:], snapshots=[])
    dvc("pull", "-q", "-R", "suites/exp8")
    assert [(run / "final_model.pth").read_text() for run in runs] == ["one", "changed"]


def test_what_cannot_be_tracked_is_said_with_the_reason_that_dvc_gives(tmp_path):
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text("[core]\nno_scm = true\nanalytics = false\n")
    with pytest.raises(ValueError, match="could not track exp8: .*'models/lost' does not exist; the same command"):
        suite.track("exp8", root=tmp_path, runs=[tmp_path / "models/lost"], snapshots=[])


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("50%|##  \rERROR: no space\n\nHaving any troubles? Hit us up\n", "no space"),
        ("ERROR: one\nERROR: two\n", "one; two"),
        ("Traceback\nKeyError: 'x'\n", "KeyError: 'x'"),
        ("", "it does not say why"),
    ],
)
def test_of_what_dvc_says_the_reason_is_kept(said, reason):
    assert _last_words(said) == reason


@pytest.fixture(scope="module")
def ray():
    """One session for all tests on Ray: it takes seconds and most of a gigabyte."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed: the extra ncflow[cluster]")
    from ncflow.suite.cluster import _import_ray

    ray = _import_ray()  # without its hook for `uv run`, which would install the environment once more
    asked_to_end = signal.getsignal(signal.SIGTERM)
    interrupted = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as where a script starts a suite in the background
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    signal.signal(signal.SIGINT, interrupted)
    signal.signal(signal.SIGTERM, asked_to_end)  # Ray's own would stay for the tests that come after
    yield ray
    ray.shutdown()


@pytest.mark.slow
def test_a_suite_on_ray_is_the_same_suite(ray, project):
    jobs = {job.name: job for job in make(project, "fine", "killed", "refused", "crash")}
    run([*jobs.values()], engine=suite.create_engine("ray", jobs=2))
    assert {name: (job.state, job.attempts) for name, job in jobs.items()} == {
        "fine": ("done", 1),
        "killed": ("done", 2),
        "refused": ("failed", 1),
        "crash": ("failed", 2),
    }
    assert jobs["crash"].reason == "RuntimeError: boom"


@pytest.mark.slow
def test_a_waiting_ray_job_skips_a_run_that_others_finish(ray, project):
    jobs = make(project, "pair1", "pair2")  # the first waits for the other, for which Ray has no room
    looks = suite.run_suite(jobs, engine=suite.create_engine("ray"), prepare=lambda params: None)
    wait_for(lambda: next(looks, True) is None and [*project.glob("models/*/here")])
    theirs = next(job for job in jobs if not job.folder.exists())
    finish(theirs)
    (theirs.folder / "here").touch()
    assert list(looks) != []
    assert ([job.state for job in jobs], theirs.reason) == (["done", "done"], "by another process")
    assert theirs.name not in starts(project)


@pytest.mark.slow
def test_leaving_a_suite_on_ray_asks_its_runs_to_end(ray, project):
    jobs = make(project, "endless")
    looks = suite.run_suite(jobs, engine=suite.create_engine("ray"), prepare=lambda params: None)
    with closing(looks):
        wait_for(lambda: next(looks, True) is None and (project / "models/endless/ready").exists())
    wait_for(lambda: not any(is_alive(line["pid"]) for line in seen(project)))
    assert [line["asked"] for line in seen(project) if "asked" in line] == [signal.SIGTERM]


@pytest.mark.slow
def test_a_lost_worker_is_survived(ray, project):
    """Its process is asked to end, as its parent is gone, and the job starts again once it has."""
    (job,) = make(project, "endless")
    looks = suite.run_suite([job], engine=suite.create_engine("ray"), prepare=lambda params: None)
    with closing(looks):
        ready = project / "models/endless/ready"
        wait_for(lambda: next(looks, True) is None and ready.exists())
        ready.unlink()
        os.kill(
            int(Path(f"/proc/{seen(project)[0]['pid']}/stat").read_text().rpartition(")")[2].split()[1]), signal.SIGKILL
        )
        wait_for(lambda: next(looks, True) is None and ready.exists())
        assert job.attempts == 2
    assert [line["asked"] for line in seen(project) if "asked" in line] == [signal.SIGTERM] * 2


@pytest.mark.parametrize("file", sorted((ROOT / "docs" / "accelerate").glob("*.yaml")), ids=lambda file: file.stem)
def test_the_configurations_for_accelerate_are_what_their_names_say(file):
    from accelerate.commands.config.config_args import load_config_from_file

    words = {"one": 1, "two": 2}
    machines, _, *gpus = file.stem.split("_")  # one_machine_8_gpus, two_machines_cpu
    config = load_config_from_file(str(file))
    assert (config.num_machines, config.num_processes) == (
        words[machines],
        int(gpus[0]) if len(gpus) == 2 else words[machines],
    )
    assert (config.distributed_type, config.mixed_precision, config.use_cpu) == ("MULTI_GPU", "no", False)
