"""Data sets: annotation files, list files, label maps; own ones from YAML, and generated ones."""

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
