"""Fixtures that several test files use."""

import os
from pathlib import Path

import pytest

# Before torch starts its threads. The tests use small tensors: a second thread gains little and
# two processes with two threads each on two cores lose a lot.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from lt_det.data.datasets.synthetic import SyntheticSpec, generate  # noqa: E402

ROOT = Path(__file__).parents[1]

# Small images, few of them; all else as in the generated set of the quick configurations.
TINY = SyntheticSpec(
    num_classes=9, num_train_images=24, num_val_images=6, image_size=96, imbalance=10
)


@pytest.fixture(scope="session")
def tiny_set(tmp_path_factory) -> Path:
    """Folder of a generated set: annotations/{train,val}.json and images."""
    root = tmp_path_factory.mktemp("tiny") / "set"
    generate(root, TINY)
    return root


@pytest.fixture(scope="session")
def tiny_options(tiny_set, tmp_path_factory) -> list[str]:
    """Overrides that make a quick configuration train on the tiny set in half a second a step."""
    entry = "{{'name': 'tiny_{0}', 'json': '{1}/annotations/{0}.json', 'images': '{1}'}}"
    entries = ", ".join(entry.format(split, tiny_set) for split in ("train", "val"))
    return [
        *("DATASETS.LT.REGISTER", f"[{entries}]"),
        *("DATASETS.TRAIN", "('tiny_train',)", "DATASETS.TEST", "('tiny_val',)"),
        *("DATASETS.LT.CACHE_DIR", str(tmp_path_factory.mktemp("cache"))),
        *("SOLVER.IMS_PER_BATCH", "4", "INPUT.MIN_SIZE_TRAIN", "(48, 64)"),
        *("INPUT.MIN_SIZE_TEST", "64", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "16"),
        *("MODEL.RPN.POST_NMS_TOPK_TEST", "20", "MODEL.ROI_BOX_HEAD.FC_DIM", "32"),
        *("MODEL.ROI_HEADS.NUM_CLASSES", "9"),
        *("SOLVER.STEPS", "(8,)", "SOLVER.WARMUP_ITERS", "4"),
    ]
