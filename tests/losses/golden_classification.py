"""Reading the reference vectors of the classification losses, see tests/golden/README.md."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

GOLDEN = Path(__file__).parents[1] / "golden" / "classification"
LOSS_TOLERANCE = {"f64": dict(rtol=1e-9, atol=1e-12), "f32": dict(rtol=1e-5, atol=0.0)}
GRAD_TOLERANCE = {"f64": dict(rtol=1e-9, atol=1e-12), "f32": dict(rtol=1e-3, atol=1e-6)}


class GoldenFile:
    """One file: arrays as tensors, variants, tolerances."""

    def __init__(self, path: Path):
        with np.load(path, allow_pickle=False) as data:
            self.arrays = {k: data[k] for k in data.files}
        meta = json.loads(str(self.arrays.pop("meta")))
        self.variants = meta.get("variants", [])
        self.name, self.precision = path.stem, path.stem[-3:]

    def __str__(self) -> str:
        return self.name

    def __getitem__(self, name: str) -> torch.Tensor:
        return torch.as_tensor(self.arrays[name])

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def leaf(self, name: str) -> torch.Tensor:
        return self[name].clone().requires_grad_()

    def check_loss(self, value: torch.Tensor, name: str):
        expected = self[name].reshape(value.shape).to(value.dtype)
        torch.testing.assert_close(value.detach(), expected, **LOSS_TOLERANCE[self.precision])

    def check_grad(self, grad: torch.Tensor, name: str):
        expected = self[name].to(grad.dtype)
        torch.testing.assert_close(grad, expected, **GRAD_TOLERANCE[self.precision])


def golden_files(method: str, cases: str = "c1*"):
    """Decorator: the test runs on each file of `method`, argument `golden`."""
    paths = sorted(GOLDEN.glob(f"{method}_{cases}.npz"))
    assert paths
    return pytest.mark.parametrize("golden", [GoldenFile(p) for p in paths], ids=str)
