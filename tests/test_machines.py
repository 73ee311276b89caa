"""Machines of a cluster are inspected before anything trains: the same ncflow, one folder, GPUs that torch sees."""

import json
import logging
from functools import partial
from types import SimpleNamespace

import pytest

from ncflow.exits import Exit
from ncflow.suite import cluster, machines
from ncflow.suite.cluster import RayAttempt, RayEngine, inspect_machines, run_job
from ncflow.suite.machines import Findings, inspect_machine, marked
from ncflow.suite.process import Task
from ncflow.suite.shares import refuse_too_large, share_of_machine
from ncflow.suite.versions import versions

HEAD, WORKER, GPU = {}, {"CPU": 8.0}, {"CPU": 4.0, "GPU": 1.0}


class TaskError(Exception):
    """What Ray raises for a task that ended with an error."""


class Ray:
    """A Ray whose tasks run at once, in this process; a machine with an error cannot run them."""

    exceptions = SimpleNamespace(RayError=Exception, RayTaskError=TaskError)
    util = SimpleNamespace(
        scheduling_strategies=SimpleNamespace(NodeAffinitySchedulingStrategy=lambda node, soft: node)
    )

    def __init__(self, *resources, errors=None, silent=(), types=None):
        self._nodes = [
            {"Alive": True, "NodeID": number, "Resources": each, "NodeManagerHostname": f"m{number}"}
            | {"NodeManagerAddress": f"10.0.0.{number}"}
            for number, each in enumerate(resources)
        ]
        self._errors, self._silent, self.asked = errors or {}, silent, []
        status = types and json.dumps({"autoscaler_report": {"node_type_mapping": types}})
        kept = SimpleNamespace(_internal_kv_get=lambda key: status)
        self.experimental = SimpleNamespace(internal_kv=kept)

    def is_initialized(self):
        return True

    def nodes(self):
        return self._nodes

    def remote(self, function):
        def options(scheduling_strategy, **_):
            def submit(*arguments):
                self.asked.append(scheduling_strategy)
                ref = partial(function, *arguments)
                ref.node = scheduling_strategy
                return ref

            return SimpleNamespace(remote=submit)

        return SimpleNamespace(options=lambda **given: options(**given))

    def wait(self, refs, *, num_returns, timeout):
        return [ref for ref in refs if ref.node not in self._silent], [ref for ref in refs if ref.node in self._silent]

    def get(self, ref):
        if ref.node in self._errors:
            raise self._errors[ref.node]
        return ref()

    def cancel(self, ref):
        pass


def test_a_machine_like_this_one_has_nothing_to_say(tmp_path):
    with marked(tmp_path) as marker:
        assert inspect_machine(marker, versions()) == Findings()
    assert not marker.exists()


def test_a_machine_with_another_ncflow_cannot_train(tmp_path):
    with marked(tmp_path) as marker:
        found = inspect_machine(marker, versions() | {"ncflow": "9.9"})
    assert "9.9" in found.problem and versions()["ncflow"] in found.problem


def test_a_machine_with_a_copy_of_the_folder_cannot_train(tmp_path):
    with marked(tmp_path) as marker:
        pass
    assert str(tmp_path) in inspect_machine(marker, versions()).problem


def test_a_machine_with_another_torch_is_a_warning(tmp_path):
    with marked(tmp_path) as marker:
        found = inspect_machine(marker, versions() | {"torch": "9.9"})
    assert not found.problem
    assert "9.9" in found.warning


@pytest.mark.parametrize("seen", [0, 2])
def test_gpus_that_torch_does_not_see_are_a_warning(tmp_path, monkeypatch, seen):
    monkeypatch.setattr(machines, "gpus_of_torch", lambda: seen)
    with marked(tmp_path) as marker:
        assert bool(inspect_machine(marker, versions(), 2).warning) == (seen == 0)


def test_every_machine_with_cpus_is_inspected(tmp_path):
    inspect_machines(ray := Ray(HEAD, WORKER, WORKER), tmp_path)
    assert ray.asked == [1, 2]


def test_reasons_of_all_machines_are_one_message(tmp_path):
    ray = Ray(WORKER, WORKER, errors={0: TaskError("a traceback\nModuleNotFoundError: ncflow"), 1: TaskError("torch")})
    with pytest.raises(ValueError, match=r"m0 \(10.0.0.0\) cannot run ncflow: ModuleNotFoundError.* m1 .*torch"):
        inspect_machines(ray, tmp_path)


def test_a_machine_that_does_not_answer_stops_no_suite(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "ncflow"):
        inspect_machines(Ray(WORKER, WORKER, silent=[1]), tmp_path)
    assert "m1 (10.0.0.1) has not answered" in caplog.text


def test_a_machine_lost_while_it_is_inspected_stops_no_suite(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "ncflow"):
        inspect_machines(Ray(WORKER, errors={0: OSError("node died")}), tmp_path)
    assert "node died" in caplog.text


def test_a_machine_that_joins_later_without_the_folder_trains_nothing(tmp_path):
    task = Task(("--config", str(tmp_path / "run.yaml")), tmp_path, tmp_path / "run.log", tmp_path / "result.json")
    ending = run_job(SimpleNamespace(root=tmp_path), task, {})
    assert ending.code == Exit.CHANGE
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("machines", [[], [HEAD], [HEAD, WORKER]])
def test_a_request_that_no_machine_can_hold_says_what_there_is(machines):
    with pytest.raises(ValueError, match="requests 1 CPUs and 0.5 GPUs .* change --jobs-per-gpu"):
        refuse_too_large({"num_cpus": 1, "num_gpus": 0.5}, machines)


@pytest.mark.parametrize("types", [None, {"1a": "gpu_worker", "2b": "node_2b"}, {"1a": "node_2b"}])
def test_runs_wait_for_what_an_autoscaler_may_bring(monkeypatch, types):
    monkeypatch.setattr(cluster, "_import_ray", lambda: Ray(HEAD, WORKER, types=types))
    assert RayEngine(jobs_per_gpu=2).has_room()


def test_a_cluster_without_an_autoscaler_refuses_what_it_lacks(monkeypatch):
    monkeypatch.setattr(cluster, "_import_ray", lambda: Ray(HEAD, WORKER, types={"1a": "node_1a", "2b": "node_2b"}))
    with pytest.raises(ValueError, match="no machine of the Ray cluster"):
        RayEngine(jobs_per_gpu=2)


@pytest.mark.parametrize("jobs_per_gpu", [1, 2, 3, 5, 7, 24])
def test_jobs_of_a_gpu_fit_its_machine_together(jobs_per_gpu):
    share = share_of_machine([HEAD, GPU], processes=1, jobs=None, jobs_per_gpu=jobs_per_gpu)
    assert round(share["num_cpus"] * 1e4) * jobs_per_gpu <= GPU["CPU"] * 1e4
    assert round(share["num_gpus"] * 1e4) * jobs_per_gpu <= GPU["GPU"] * 1e4


@pytest.mark.parametrize("jobs", [1, 3, 8, 9, 48])
def test_jobs_without_gpus_fit_their_machines_together(jobs):
    share = share_of_machine([HEAD, WORKER, WORKER], processes=1, jobs=jobs, jobs_per_gpu=None)
    assert int(WORKER["CPU"] / share["num_cpus"]) * 2 >= jobs


def test_a_cluster_that_does_not_answer_is_one_message(monkeypatch):
    ray = Ray(WORKER)
    ray.is_initialized = lambda: False
    ray.init = lambda **_: (_ for _ in ()).throw(ConnectionError("no answer\nat all"))
    monkeypatch.setattr(cluster, "_import_ray", lambda: ray)
    with pytest.raises(ValueError, match="cannot join the Ray cluster at 10.0.0.9:6379: no answer. Check"):
        RayEngine(address="10.0.0.9:6379")


def test_a_job_that_waits_alone_shows_once_what_is_free(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(cluster, "PATIENCE", 0.0)
    submitted = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda *_: "ref"))
    ray = SimpleNamespace(remote=lambda _: submitted, wait=lambda *_, **__: ([], ["ref"]))
    ray.available_resources = lambda: {"CPU": 0.0}
    engine = object.__new__(RayEngine)
    engine._ray, engine._said, engine._resources = ray, False, {"num_cpus": 1, "num_gpus": 0}
    task = SimpleNamespace(log=tmp_path / "run.log")
    engine._running = [RayAttempt(ray, None, task, engine._resources, engine._say_if_waiting)]
    assert [attempt.poll() for attempt in engine._running * 2] == [None, None]
    assert caplog.text.count("each run requests 1 CPUs and 0 GPUs, free are 0 CPUs and 0 GPUs") == 1
