"""A search trains each trial once, resumes after any stop, prunes bad trials, and names the best configuration."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

pytest.importorskip("optuna")

from ncflow.exits import Exit
from ncflow.params import load_params, make_params
from ncflow.suite.process import Ending
from ncflow.tuning import Search, fit_space, open_study, parse_objective, parse_space, write_results

ROOT = Path(__file__).parents[2]
SPACE = ("train.lr=log(1e-3,1)", "head.name=linear,fixed_etf")


class FakeEngine:
    """Trains one epoch at each poll, in this process. The objective is best at lr = 0.1 and rises with the epochs."""

    def __init__(self, *, slots=1, ending=None):
        self.slots, self.ending, self.started = slots, ending, []
        self.running = []

    def has_room(self):
        return sum(not each.over for each in self.running) < self.slots

    def start(self, job):
        self.started.append(job.name)
        self.running.append(FakeRun(job, self.ending))
        return self.running[-1]


class FakeRun:
    def __init__(self, job, ending):
        self.job, self.ending, self.over, self.asked = job, ending, False, False
        self.epoch = job.epochs_done()
        job.folder.mkdir(parents=True, exist_ok=True)

    def has_started(self):
        return True

    def poll(self):
        ending = Ending(Exit.AGAIN, "stopped") if self.asked else self.ending and self.ending(self.job)
        if ending:
            self.over = True
            return ending
        self.epoch += 1
        train = self.job.params.train
        value = math.exp(-abs(math.log10(train.lr) + 1)) * self.epoch / train.epochs
        metrics = {"epoch": self.epoch, "val": {"acc/balanced": value}}
        (self.job.folder / "history.json").write_text(json.dumps([{}] * self.epoch))
        (self.job.folder / f"metrics_epoch_{self.epoch}.json").write_text(json.dumps(metrics))
        if self.epoch < train.epochs:
            return None
        (self.job.folder / "config.yaml").write_text(yaml.safe_dump(self.job.params.resolved()))
        (self.job.folder / "final_model.pth").touch()
        self.over = True
        return Ending(Exit.DONE, "")

    def ask_to_end(self):
        self.asked = True

    def end(self):
        self.over = True


def search(root, *, space=SPACE, seed=0, prune_after=None, name="s", epochs=2, objective="val/acc/balanced", say=None):
    base = make_params({"train": {"epochs": epochs}})
    target = parse_objective(objective)
    dimensions, _ = fit_space(parse_space(space), base)
    study = open_study(name, dimensions, target, base, group="main", root=root, seed=seed, prune_after=prune_after)
    return Search(name, base, target, root, study, say or (lambda line: None), pause=0.0)


def run(found, engine=None, most=4, **options):
    engine = engine or FakeEngine()
    found.run(engine, lambda params: None, most=most, **options)
    return engine


def test_each_trial_is_a_run_with_group_suite_and_number(tmp_path):
    found = search(tmp_path)
    assert run(found).started == [f"s_trial{number:02d}" for number in range(4)]
    for number, job in enumerate(found.jobs):
        tags = ("--group", "s", "--suite", "s", "--trial", str(number))
        assert job.arguments[-7:] == (*tags, "--unless-finished")
    for trial in found.study.trials():
        config = load_params(tmp_path / "models" / f"s_trial{trial.number:02d}" / "config.yaml")
        assert trial.state == "complete"
        assert (config.train.lr, config.head.name) == (trial.values["train.lr"], trial.values["head.name"])


def test_finished_trials_count_and_more_can_be_added(tmp_path):
    run(search(tmp_path), most=2)
    assert run(search(tmp_path), most=2).started == []
    assert run(search(tmp_path), most=5).started == ["s_trial02", "s_trial03", "s_trial04"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_seed_gives_the_same_trials_with_a_stop_or_without(tmp_path, seed):
    values = []
    for name, parts in (("whole", [12]), ("parts", [5, 12])):
        for most in parts:
            run(search(tmp_path, name=name, seed=seed), most=most)
        values.append([trial.values for trial in search(tmp_path, name=name, seed=seed).study.trials()])
    assert values[0] == values[1]
    assert len({repr(each) for each in values[0]}) == 12
    other = search(tmp_path, name="other", seed=seed + 1)
    run(other, most=1)
    assert other.study.trials()[0].values != values[0][0]


@pytest.mark.slow
def test_bad_trials_are_pruned_and_not_restarted(tmp_path):
    found = search(tmp_path, prune_after=2, epochs=6)
    engine = run(found, most=16)
    trials = found.study.trials()
    pruned = [trial for trial in trials if trial.state == "pruned"]
    assert pruned
    assert {trial.state for trial in trials} == {"complete", "pruned"}
    assert len(engine.started) == len({*engine.started}) == 16
    epochs = [int(re.search(r"pruned after epoch (\d+)", trial.reason)[1]) for trial in pruned]
    assert min(epochs) > 2
    assert all(
        not (tmp_path / "models" / f"s_trial{trial.number:02d}" / "final_model.pth").exists() for trial in pruned
    )
    best = max(trials, key=lambda trial: trial.objective or 0)
    assert best.objective == max(math.exp(-abs(math.log10(trial.values["train.lr"]) + 1)) for trial in trials)


def test_without_pruning_every_trial_is_complete(tmp_path):
    found = search(tmp_path, epochs=3)
    run(found, most=6)
    assert {trial.state for trial in found.study.trials()} == {"complete"}


def test_a_failed_trial_counts_and_the_others_continue(tmp_path):
    failing = lambda job: Ending(Exit.CHANGE, "the loss is nan") if job.name.endswith("01") else None  # noqa: E731
    found = search(tmp_path)
    run(found, FakeEngine(ending=failing))
    assert [trial.state for trial in found.study.trials()] == ["complete", "fail", "complete", "complete"]
    assert found.study.trials()[1].reason == "the loss is nan"


def test_a_search_whose_trials_all_fail_stops(tmp_path):
    with pytest.raises(ValueError, match="all 3 trials of s failed.*no GPU"):
        run(search(tmp_path), FakeEngine(ending=lambda job: Ending(Exit.CHANGE, "no GPU")), most=40)


def test_a_killed_trial_is_restarted(tmp_path):
    kills = []

    def ending(job):
        if job.name not in kills:
            kills.append(job.name)
            return Ending(-9, "killed by SIGKILL")
        return None

    found = search(tmp_path)
    engine = run(found, FakeEngine(ending=ending), most=2)
    assert engine.started == ["s_trial00", "s_trial00", "s_trial01", "s_trial01"]
    assert {trial.state for trial in found.study.trials()} == {"complete"}


def test_a_run_without_the_metric_is_a_failed_trial(tmp_path):
    with pytest.raises(ValueError, match="it has no val/acc/few"):
        run(search(tmp_path, objective="val/acc/few"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"space": ("train.lr=log(1e-2,1)", SPACE[1])}, r"has the space .*0\.001.*got .*0\.01"),
        ({"objective": "train/nc1/pinv"}, r"objective val/acc/balanced \(maximize\), got train/nc1/pinv \(minimize\)"),
        ({"epochs": 9}, "has the base run main .*, got main"),
        ({"seed": 1}, "has the seed 0, got 1"),
    ],
)
def test_another_search_of_the_same_name_is_refused(tmp_path, options, message):
    search(tmp_path)
    with pytest.raises(ValueError, match=message):
        search(tmp_path, **options)


def test_the_order_of_a_space_does_not_matter(tmp_path):
    search(tmp_path)
    search(tmp_path, space=SPACE[::-1])


def test_two_processes_share_the_trials(tmp_path):
    one, two = search(tmp_path), search(tmp_path)
    first = one.study.begin(3)
    assert first.number == 0
    assert run(two, most=3).started == ["s_trial01", "s_trial02"]
    assert one.study.begin(3) is None
    one.study.end(first, objective=0.5)
    assert [trial.state for trial in one.study.trials()] == ["complete"] * 3


def begin_and_die(root):
    search(Path(root)).study.begin(3)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_the_trial_of_a_killed_process_is_resumed(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=begin_and_die, args=(str(tmp_path),))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    found = search(tmp_path)
    (left,) = found.study.trials()
    assert left.state == "running"
    run(found, most=3)
    trials = found.study.trials()
    assert [trial.state for trial in trials] == ["complete"] * 3
    assert trials[0].values == left.values


def test_several_trials_train_at_the_same_time(tmp_path):
    engine = FakeEngine(slots=3)
    found = search(tmp_path, epochs=8)
    seen = []
    engine_start = engine.start
    engine.start = lambda job: (seen.append(sum(not each.over for each in engine.running)), engine_start(job))[1]
    run(found, engine, most=4)
    assert max(seen) == 2
    assert {trial.state for trial in found.study.trials()} == {"complete"}


@pytest.mark.slow
def test_the_results_name_the_best_trial_and_its_command(tmp_path):
    found = search(tmp_path)
    run(found, most=8)
    results = write_results(found.study, found.base, found.study.space, found.objective, tmp_path, name="s")
    best = max(found.study.trials(), key=lambda trial: trial.objective)
    assert results.table.rows[0].cells[0] == f"s_trial{best.number:02d}"
    config = load_params(results.best)
    assert (config.exp_name, config.train.lr) == ("s_best", best.values["train.lr"])
    page = results.page.read_text()
    assert "ncflow suite main --config reports/s/best.yaml --grid seed=0..4" in page
    assert "test/" not in page
    assert {file.name for file in (tmp_path / "reports/s/figures").iterdir()} == {"importance.png", "parallel.png"}


def test_results_need_a_complete_trial(tmp_path):
    found = search(tmp_path)
    with pytest.raises(ValueError, match="no trial of s is complete"):
        write_results(found.study, found.base, found.study.space, found.objective, tmp_path, name="s")


@pytest.mark.slow
def test_a_killed_search_on_digits_is_finished_by_the_same_command(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "params.yaml").write_text("{model: {image_size: 8}, train: {epochs: 1}, dataset: {val_fraction: 0.1}}")
    command = [sys.executable, "-m", "ncflow", "tune", "--trials", "3", "--no-prune"]
    command += [part for text in SPACE for part in ("--space", text)]
    first = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 240
    while not (tmp_path / "models/main_tune_trial00/history.json").exists() and time.monotonic() < until:
        time.sleep(0.1)
    first.kill()
    first.wait()
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr
    assert "ncflow suite main --config reports/main_tune/best.yaml" in done.stdout
    assert len([*(tmp_path / "models").glob("main_tune_trial*/final_model.pth")]) == 3

    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    runs = client.search_runs(["0"], filter_string="tags.group = 'main_tune' and status = 'FINISHED'")
    assert sorted(each.data.tags["trial"] for each in runs) == ["0", "1", "2"]
