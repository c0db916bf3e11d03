"""Data sets: LVIS and COCO JSON files, own ones from YAML, and a generated one."""

from lt_det.data.datasets.catalog import (
    DatasetInfo,
    dataset_info,
    get_records,
    register_lvis_format,
)
from lt_det.data.datasets.lvis_format import load_lvis_format
from lt_det.data.datasets.register import register_from_config
from lt_det.data.datasets.synthetic import register_synthetic

__all__ = [
    "DatasetInfo",
    "dataset_info",
    "get_records",
    "load_lvis_format",
    "register_from_config",
    "register_lvis_format",
    "register_synthetic",
]
