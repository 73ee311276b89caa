"""Workers share the cores and the files; in the end they say how many inputs were thrown, and how many refused."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from typing import Any

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # started in the background; tests send it, also to children
    signal.signal(signal.SIGINT, signal.default_int_handler)

THROWN: Counter[str] = Counter()  # by the tests of all workers
STORES = ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME")
OUTSIDE = {name: os.environ.get(name) for name in STORES}


def counted() -> dict[str, int]:
    """Those of this process, where it threw any."""
    return dict(sys.modules["thrown"].COUNTS) if "thrown" in sys.modules else {}


def pytest_configure(config: pytest.Config) -> None:
    """SIGTERM ends the session as Ctrl-C does, with its workers. Without workers the tests need its default action."""
    if not hasattr(config, "workerinput") and config.getoption("numprocesses", 0):
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name != "test_readme.py")  # the longest file, beside all others


def pytest_runtest_logfinish(nodeid: str) -> None:
    """MLflow writes its choice of store, run and experiment into the environment; the next test starts without it."""
    for name, value in OUTSIDE.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["thrown"] = counted()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    THROWN.update(getattr(node, "workeroutput", {}).get("thrown", {}))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    thrown = THROWN + Counter(counted())
    terminalreporter.write_line(f"thrown inputs: {thrown['refused']} refused, {thrown['taken']} taken")


@pytest.fixture(scope="session")
def datasets_cache(tmp_path_factory):
    """Hugging Face's cache of opened Parquet files stays out of the user's home."""
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf"))
        yield
