"""Reading the reference vectors of the samplers, see tests/golden/README.md."""

import json
from pathlib import Path

import numpy as np
import pytest

GOLDEN = Path(__file__).parents[1] / "golden" / "classification"


def golden_arrays(pattern: str) -> list:
    """One parameter per file: its arrays, and `meta` as a dict."""
    paths = sorted(GOLDEN.glob(f"{pattern}.npz"))
    assert paths, pattern
    return [pytest.param(_read(path), id=path.stem) for path in paths]


def _read(path: Path) -> dict:
    with np.load(path, allow_pickle=False) as data:
        arrays = {name: data[name] for name in data.files}
    return {**arrays, "meta": json.loads(str(arrays["meta"]))}
