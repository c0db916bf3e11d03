"""Trainings in this process, and the comparison of their checkpoints."""

import torch

from lt_det.engine import LongTailTrainer, load_config, prepare_config


def train(path, options, output, *more, resume=False):
    """Run the training of a configuration file; the trainer after it."""
    cfg = load_config(path, [*options, "OUTPUT_DIR", str(output), *map(str, more)])
    counts = prepare_config(cfg)
    output.mkdir(parents=True, exist_ok=True)
    trainer = LongTailTrainer(cfg, counts, config_file=path)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


def differences(a, b, path=""):
    """Paths at which two checkpoints are not bit-equal."""
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return [f"{path}: keys {sorted(map(str, a.keys() ^ b.keys()))}"]
        return [d for key in a for d in differences(a[key], b[key], f"{path}/{key}")]
    if isinstance(a, (list, tuple)):
        if len(a) != len(b):
            return [path]
        return [d for k in range(len(a)) for d in differences(a[k], b[k], f"{path}/{k}")]
    same = torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    return [] if same else [path]
