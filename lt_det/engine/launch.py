"""Start one process per device, or join those that torchrun has started."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

import torch
import torch.distributed as dist
from detectron2.engine import default_setup, launch
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from lt_det.engine.config import load_config
from lt_det.errors import ConfigError


def run(main: Callable, args) -> None:
    """Call ``main(args)`` in every process of the run.

    Args:
        main: one process.
        args: of Detectron2's argument parser. Under torchrun ``--num-gpus``, ``--num-machines``,
            ``--machine-rank`` and ``--dist-url`` are not needed and not used.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ or {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= set(
        os.environ
    ):
        join_torchrun(load_config(args.config_file, args.opts).MODEL.DEVICE)
        try:
            main(args)
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
        return
    if args.num_gpus > 1 and torch.cuda.device_count() < args.num_gpus:
        raise ConfigError(
            f"--num-gpus is {args.num_gpus} but this machine has {torch.cuda.device_count()}; "
            "several processes on a CPU start with torchrun"
        )
    launch(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )


def log_to_terminal() -> None:
    """Show lt_det's messages before there is an output folder."""
    setup_logger(distributed_rank=comm.get_rank(), name="lt_det")


def begin(cfg, args) -> None:
    """Detectron2's ``default_setup``: output folder, logs, ``config.yaml``, seeds.

    lt_det's own messages go the same way as Detectron2's, to the terminal and to ``log.txt``.
    """
    default_setup(cfg, args)
    logging.getLogger("lt_det").handlers.clear()
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="lt_det")


def join_torchrun(device: str) -> None:
    """Set up the process groups that Detectron2 expects, from torchrun's environment.

    Args:
        device: ``MODEL.DEVICE``; NCCL for CUDA, gloo for others.

    Raises:
        ConfigError: more processes on this machine than CUDA devices. Said before the processes
            meet: with different backends they would wait for each other.
    """
    world_size = int(os.environ["WORLD_SIZE"])
    if world_size == 1:
        return
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    on_cuda = device.startswith("cuda")
    if on_cuda and local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"torchrun started {local_size} processes on this machine, which has "
            f"{torch.cuda.device_count()} CUDA devices: lower --nproc-per-node, or set "
            "MODEL.DEVICE cpu"
        )
    if on_cuda:
        torch.cuda.set_device(local_rank)
    dist.init_process_group("nccl" if on_cuda else "gloo")
    machine = dist.get_rank() // local_size
    # Every process makes the group of every machine, in the same order, and keeps its own.
    for k in range(world_size // local_size):
        group = dist.new_group(list(range(k * local_size, (k + 1) * local_size)))
        if k == machine:
            comm._LOCAL_PROCESS_GROUP = group
