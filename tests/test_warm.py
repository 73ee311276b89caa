"""A warm run is a fork of a server, and in everything that can be asked of it the same as a new process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from waiting import is_alive, wait_for

from ncflow import imports, suite
from ncflow.params import make_params
from ncflow.suite import process, warm

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has forks that a suite can collect")
ROOT = Path(__file__).parents[1]
# Stands in for training: what it does is in its run's name.
TRAINING = """
import ctypes, faulthandler, json, os, pathlib, random, signal, sys, threading, time, yaml
import numpy
config = pathlib.Path(sys.argv[sys.argv.index("--config") + 1])
params = yaml.safe_load(config.read_text())
name, folder = params["exp_name"], pathlib.Path("models", params["exp_name"])
death = ctypes.c_int()
ctypes.CDLL(None).prctl(2, ctypes.byref(death))
facts = {
    "argv": sys.argv, "cwd": os.getcwd(), "path": sys.path, "environment": dict(os.environ), "parent": os.getppid(),
    "leads": os.getsid(0) == os.getpgid(0) == os.getpid(), "death": death.value, "main": __name__,
    "handlers": [str(signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGPIPE)],
    "mask": len(signal.pthread_sigmask(signal.SIG_BLOCK, [])), "faults": faulthandler.is_enabled(),
    "alive": threading.active_count(), "files": [os.readlink(f"/proc/self/fd/{number}") for number in range(3)],
    "open": sorted(map(int, os.listdir("/proc/self/fd")))[-1], "flags": str(sys.flags),
}
drawn = [random.random(), numpy.random.rand()]
if "torch" in name:
    import torch
    facts |= {"threads": torch.get_num_threads(), "interop": torch.get_num_interop_threads()}
    facts["product"] = torch.ones(300, 300).matmul(torch.ones(300, 300)).sum().item()  # with two threads
    drawn.append(torch.initial_seed())
first = not folder.exists()
folder.mkdir(parents=True, exist_ok=True)
(folder / "facts.json").write_text(json.dumps(facts))
(folder / "drawn.json").write_text(json.dumps(drawn))
(folder / f"pid{time.monotonic_ns()}").write_text(str(os.getpid()))
print("this is", name)
print("errors of", name, file=sys.stderr)
if "refused" in name:
    pathlib.Path(os.environ["NCFLOW_RESULT"]).write_text('{"code": 65, "reason": "lr: must be positive, got -1"}')
    sys.exit(65)
if "crash" in name:
    raise RuntimeError("boom")
if "words" in name:
    sys.exit("these words")
if "interrupted" in name and first:
    sys.exit(75)
if "taken" in name and first:
    sys.exit(76)
if "killed" in name and first:
    os.kill(os.getpid(), signal.SIGKILL)
if "endless" in name:
    def leave(number, frame):
        (folder / "asked").touch()
        sys.exit(75)
    signal.signal(signal.SIGTERM, leave)
    (folder / "ready").touch()
    until = time.monotonic() + 60
    while not (folder / "go").exists() and time.monotonic() < until:
        time.sleep(0.01)
(folder / "history.json").write_text(json.dumps([{}] * params["train"]["epochs"]))
(folder / "config.yaml").write_text(config.read_text())
(folder / "final_model.pth").touch()
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "training.py").write_text(TRAINING)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("PYTEST_CURRENT_TEST", raising=False)
    monkeypatch.delenv(warm.SWITCH, raising=False)
    monkeypatch.setattr(warm, "PRELOADED", ("numpy", "yaml"))
    return tmp_path


def make(project, *names):
    configs = [make_params({"exp_name": name, "seed": seed}) for seed, name in enumerate(names)]
    return suite.make_jobs(configs, group="g", root=project, suite="g-1", command=["-m", "training"])


def run(jobs, engine, **options):
    for _ in suite.run_suite(jobs, engine=engine, prepare=lambda params: None, pause=0.02, **options):
        pass
    return {job.name: job.state for job in jobs}


def facts(job):
    return json.loads((job.folder / "facts.json").read_text())


def server(engine):
    return engine._warm._server.pid


def pids(project):
    return [int(file.read_text()) for file in project.glob("models/*/pid*")]


# --- what a run gets ---


def test_a_fork_has_everything_that_a_new_process_has(project, monkeypatch):
    names, drawn = ("torch1", "torch2"), set()
    monkeypatch.setattr(warm, "PRELOADED", ("numpy", "yaml", "torch"))
    run(jobs := make(project, *names), engine := suite.create_engine("local"))
    assert server(engine)
    forked = [facts(job) for job in jobs]
    drawn |= {(job.folder / "drawn.json").read_text() for job in jobs}
    monkeypatch.setenv(warm.SWITCH, "0")
    run(jobs := make(project, *names), engine := suite.create_engine("local"), force=True)
    assert engine._warm._server is None
    for job, fork in zip(jobs, forked, strict=True):
        new = facts(job)
        assert new["environment"].pop(warm.SWITCH) == "0"
        assert fork == new
        assert (fork["parent"], fork["death"], fork["leads"]) == (os.getpid(), signal.SIGTERM, True)
        assert fork["threads"] == int(fork["environment"]["OMP_NUM_THREADS"])
        drawn.add((job.folder / "drawn.json").read_text())
    assert len({number for text in drawn for number in json.loads(text)}) == 3 * 4


def test_each_fork_writes_to_its_log_only(project):
    jobs = make(project, "one", "two", "three")
    run(jobs, suite.create_engine("local", jobs=2))
    for job in jobs:
        header, *lines = job.log.read_text().splitlines()
        assert header.endswith("--group g --suite g-1")
        assert sorted(lines) == [f"errors of {job.name}", f"this is {job.name}"]
        assert facts(job)["environment"]["NCFLOW_RESULT"] == str(job.result)


def test_a_changed_environment_needs_another_server(project, monkeypatch):
    engine = suite.create_engine("local")
    run(make(project, "one"), engine)
    first = server(engine)
    run(make(project, "two"), engine)
    assert server(engine) == first
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "another")
    (job,) = make(project, "three")
    run([job], engine)
    assert server(engine) != first and not is_alive(first)
    assert facts(job)["environment"]["MLFLOW_EXPERIMENT_NAME"] == "another"


# --- how a run ends ---


def test_every_ending_of_a_fork_is_that_of_a_process(project):
    names = ("fine", "refused", "crash", "words", "interrupted", "taken", "killed")
    jobs = {job.name: job for job in make(project, *names)}
    run([*jobs.values()], engine := suite.create_engine("local", jobs=2), retries=1)
    assert server(engine)
    assert {name: (job.state, job.attempts, job.reason) for name, job in jobs.items()} == {
        "fine": ("done", 1, ""),
        "refused": ("failed", 1, "lr: must be positive, got -1"),
        "crash": ("failed", 2, "exit code 1"),
        "words": ("failed", 2, "exit code 1"),
        "interrupted": ("done", 2, ""),
        "taken": ("done", 1, ""),
        "killed": ("done", 2, ""),
    }
    assert "RuntimeError: boom" in jobs["crash"].log.read_text()
    assert "these words" in jobs["words"].log.read_text()


def test_a_killed_fork_is_named_by_its_signal_and_others_continue(project):
    jobs = make(project, "endless1", "endless2")
    looks = suite.run_suite(jobs, engine=suite.create_engine("local", jobs=2), prepare=lambda _: None, retries=0)
    wait_for(lambda: next(looks, True) is None and len([*project.glob("models/*/ready")]) == 2)
    os.kill(int(next(jobs[0].folder.glob("pid*")).read_text()), signal.SIGKILL)
    (jobs[1].folder / "go").touch()
    assert [*looks]
    assert jobs[0].reason.startswith("killed by SIGKILL")
    assert [job.state for job in jobs] == ["failed", "done"]


def test_leaving_a_suite_ends_its_forks_in_order(project):
    jobs = make(project, "endless1", "endless2")
    looks = suite.run_suite(jobs, engine=suite.create_engine("local", jobs=2), prepare=lambda _: None)
    with closing(looks):
        wait_for(lambda: next(looks, True) is None and len([*project.glob("models/*/ready")]) == 2)
    assert len([*project.glob("models/*/asked")]) == 2
    assert not any(map(is_alive, pids(project)))


def test_a_deaf_fork_is_killed_with_its_session(project):
    (job,) = make(project, "endless")
    attempt = suite.create_engine("local").start(job)
    wait_for((job.folder / "ready").exists)
    os.kill(pids(project)[0], signal.SIGSTOP)
    attempt.end(grace=0.1)
    assert attempt.poll().reason.startswith("killed by SIGKILL")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_dead_suite_leaves_neither_forks_nor_server(project, number):
    code = (
        "import os; from pathlib import Path; from ncflow import suite; from ncflow.params import make_params\n"
        "from ncflow.suite import warm; warm.PRELOADED = ()\n"
        "options = dict(group='g', root=Path.cwd(), suite='g-1', command=['-m', 'training'])\n"
        "jobs = suite.make_jobs([make_params({'exp_name': 'endless'})], **options)\n"
        "engine = suite.create_engine('local')\n"
        "for _ in suite.run_suite(jobs, engine=engine, prepare=lambda params: None):\n"
        "    Path('server').write_text(str(engine._warm._server and engine._warm._server.pid))\n"
    )
    driver = subprocess.Popen([sys.executable, "-c", code], cwd=project)
    wait_for((project / "models" / "endless" / "ready").exists)
    wait_for(lambda: (project / "server").read_text().isdigit())
    driver.send_signal(number)
    driver.wait()
    wait_for(lambda: not any(map(is_alive, [*pids(project), int((project / "server").read_text())])))
    assert (project / "models" / "endless" / "asked").exists()


def test_a_killed_server_ends_no_run_and_is_replaced(project):
    endless, other = make(project, "endless", "other")
    engine = suite.create_engine("local", jobs=2)
    attempt = engine.start(endless)
    wait_for((endless.folder / "ready").exists)
    first = server(engine)
    os.kill(first, signal.SIGKILL)
    assert run([other], engine) == {"other": "done"}
    assert server(engine) != first
    assert attempt.poll() is None
    (endless.folder / "go").touch()
    wait_for(attempt.poll)
    assert attempt.poll().code == 0


# --- where a fork is not used ---


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import threading, time; threading.Thread(target=time.sleep, args=(60,), daemon=True).start()", "one thread"),
        ("raise RuntimeError('broken')", "RuntimeError: broken"),
        ("import os; os.kill(os.getpid(), 9)", "the fork server has ended"),
    ],
)
def test_without_a_server_each_run_is_a_process(project, monkeypatch, caplog, source, reason):
    (project / "odd.py").write_text(source)
    monkeypatch.setattr(warm, "PRELOADED", ("odd",))
    jobs = make(project, "one", "two")
    assert run(jobs, engine := suite.create_engine("local")) == {"one": "done", "two": "done"}
    assert engine._warm._server is None
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("each run starts as a new process, which is slower: ") and reason in message


def test_a_module_that_is_missing_is_left_to_the_run(project, monkeypatch):
    monkeypatch.setattr(warm, "PRELOADED", ("missing_package", "yaml"))
    run(make(project, "one"), engine := suite.create_engine("local"))
    assert server(engine)


def test_only_single_processes_without_gpus_and_own_files_are_forked(project, monkeypatch):
    def takes(*arguments, **options):
        task = process.Task(arguments or ("-m", "ncflow"), project, project / "log", project / "result", **options)
        return warm.WarmStarter().takes(task)

    assert takes() and takes(threads=4, gpus=())
    assert not takes("training.py")
    assert not takes(processes=2)
    assert not takes(gpus=("0",))
    with monkeypatch.context() as patch:
        patch.setenv("NCFLOW_IMPORT", "mine.py")
        assert not takes()
    with monkeypatch.context() as patch:
        patch.setitem(imports.IMPORTED, "mine.py", "0123")
        assert not takes()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "darwin")
        assert not takes()
    monkeypatch.setenv(warm.SWITCH, "0")
    assert not takes()


def test_an_unknown_value_of_the_switch_is_refused(monkeypatch):
    monkeypatch.setenv(warm.SWITCH, "yes")
    with pytest.raises(ValueError, match="expected NCFLOW_WARM=0 or 1, got 'yes'"):
        suite.create_engine("local")


def test_this_process_adopts_only_while_it_forks(project):
    with warm.adopting():
        pass
    code = "import ctypes; n = ctypes.c_int(); ctypes.CDLL(None).prctl(37, ctypes.byref(n)); print(n.value)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "0\n"


# --- with the real things ---


@pytest.mark.slow
def test_the_preloaded_server_has_neither_threads_nor_a_store(project, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    started = warm.Server(warm.PRELOADED, str(project), environment)
    tasks = [*Path(f"/proc/{started.pid}/task").iterdir()]
    files = {os.readlink(file) for file in Path(f"/proc/{started.pid}/fd").iterdir()}
    assert len(tasks) == 1
    assert not any(".db" in file or "nvidia" in file for file in files)
    assert {path.name for path in project.iterdir()} == {"training.py"}
