"""Run a function on several gloo ranks."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_on_ranks(function: Callable[[int], object], world_size: int) -> dict[int, object]:
    """``{rank: function(rank)}``; `function` must be importable, its result saveable by torch.

    The processes meet through a file, so no port can be taken.
    """
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_worker, args=(function, world_size, folder), nprocs=world_size)
        return {
            rank: torch.load(Path(folder) / f"{rank}.pt", weights_only=False)
            for rank in range(world_size)
        }


def _worker(rank: int, function: Callable, world_size: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size
    )
    torch.save(function(rank), Path(folder) / f"{rank}.pt")
    leave(Path(folder), rank, world_size)


def leave(folder: Path, rank: int, world_size: int) -> None:
    """End this process when all ranks have come here.

    They wait for each other's files: from a barrier of gloo the first rank to leave closes its
    connection, which the others may take for a crash while they are still in it. The group is not
    taken down: in torch 2.4 that waits for ever now and then when the other rank is faster.
    """
    (folder / f"{rank}.done").touch()
    deadline = time.monotonic() + 300
    while not all((folder / f"{k}.done").exists() for k in range(world_size)):
        if time.monotonic() > deadline:
            os._exit(1)  # another rank has crashed
        time.sleep(0.01)
    os._exit(0)
