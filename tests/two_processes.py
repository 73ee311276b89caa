"""Two processes that stay for all tests of a session: a spawn costs seconds of imports, a call to these does not."""

from __future__ import annotations

import atexit
import functools
import pickle
import sys
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch

PATIENCE = 120.0  # seconds for both to answer


def on_two(function: Callable[..., None], *args: Any) -> None:
    """Call function(rank, *args) in both processes of a gloo group; an error in one of them is raised here."""
    connections = _pool()
    with tempfile.TemporaryDirectory() as folder:
        call = pickle.dumps((function, args))
        for connection in connections:
            connection.send((list(sys.path), folder, call))
        replies = []
        for connection in connections:
            assert connection.poll(PATIENCE), f"{function.__name__} does not end"
            replies.append(connection.recv())
    assert replies == ["", ""], "\n".join(replies)


@functools.cache
def _pool() -> tuple[Connection, ...]:
    context = torch.multiprocessing.get_context("spawn")
    pairs = [context.Pipe() for _ in range(2)]
    workers = [
        context.Process(target=_work, args=(rank, theirs), daemon=True) for rank, (_, theirs) in enumerate(pairs)
    ]
    for worker in workers:
        worker.start()
    atexit.register(lambda: [worker.kill() for worker in workers])
    return tuple(ours for ours, _ in pairs)


def _work(rank: int, connection: Connection) -> None:
    import traceback

    import torch.distributed

    torch.set_num_threads(1)
    while True:
        path, folder, call = connection.recv()
        sys.path[:] = path
        try:
            function, args = pickle.loads(call)
            torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
            function(rank, *args)
            torch.distributed.destroy_process_group()
            connection.send("")
        except BaseException:
            connection.send(traceback.format_exc())
            raise
