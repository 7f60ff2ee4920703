"""Processes for runs. They are forked from one without threads: a fork of the one that tests may wait for threads it lacks."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

FORKED: Any = multiprocessing.get_context("forkserver") if sys.platform == "linux" else None
if FORKED is not None:
    FORKED.set_forkserver_preload([  # what takes long to import; PyTorch's optimisers want its compiler
        "torch._dynamo", "torch.distributed.fsdp", "calotype.training.trainer", "calotype.training.pictures",
        "calotype.models.unet_2d"])


def in_two_processes(function: Callable[..., None], *given: Any, log: Path) -> None:
    """Call `function` in two processes that `torchrun` might have started; an error there is one here."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = [FORKED.Process(target=_child, args=(rank, port, log, function, given)) for rank in (0, 1)]
    for one in both:
        one.start()
    for one in both:
        one.join(120)
        if one.is_alive():
            one.kill()
    errors = "\n".join(path.read_text() for path in sorted(log.glob("error-*.txt")))
    assert [one.exitcode for one in both] == [0, 0], errors or "it took too long"


def _child(rank: int, port: int, log: Path, function: Callable[..., None], given: Any) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    try:
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(True)
        function(*given)
        code = 0
    except BaseException:
        (log / f"error-{rank}.txt").write_text(traceback.format_exc())
        code = 1
    os._exit(code)
