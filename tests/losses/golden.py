"""Reading the reference vectors of tests/golden."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parents[1] / "golden"
# As stated with the vectors, see tests/golden/README.md.
TOLERANCE = {"f64": dict(rtol=1e-9, atol=1e-12), "f32": dict(rtol=1e-4, atol=1e-6)}
DTYPE = {"f64": torch.float64, "f32": torch.float32}


def equalization(pattern: str) -> list[Path]:
    """Single-rank cases, sorted."""
    found = sorted(ROOT.glob(f"equalization/{pattern}.npz"))
    assert found, pattern
    return [p for p in found if "2ranks" not in p.name]


def read(path: Path) -> tuple[dict, dict]:
    """Arrays of a case, and its hyper-parameters."""
    data = dict(np.load(path))
    return data, json.loads(str(data["hparams"]))


def start_from(stats, data: dict, tolerance: dict) -> dict:
    """Put the state of a "resume" case into `stats`; the tolerance to use.

    The originals store the ratio, here in float32, and use it in the first step; ours is
    derived from the sums. That is a rounding of 6e-8 times the slope of the mapping.
    """
    if "init_pos_grad" not in data:
        return tolerance
    stats.pos.copy_(torch.as_tensor(data["init_pos_grad"]))
    stats.neg.copy_(torch.as_tensor(data["init_neg_grad"]))
    return dict(tolerance, rtol=max(tolerance["rtol"], 1e-6))


def assert_matches(ours: torch.Tensor, expected, tolerance: dict, label: str = "") -> None:
    """Close to the reference within its tolerance."""
    expected = torch.as_tensor(expected).to(ours.dtype).reshape(ours.shape)
    torch.testing.assert_close(ours, expected, **tolerance, msg=lambda m: f"{label}: {m}")


def zero_based(labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Labels 0 = background, 1..C, -1 = ignored -> 0..C-1, C = background, -1 = ignored."""
    labels = torch.as_tensor(labels).long()
    return torch.where(labels > 0, labels - 1, torch.where(labels == 0, num_classes, labels))
