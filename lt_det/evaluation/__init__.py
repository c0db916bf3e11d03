"""Evaluators, predictions, frequency groups and result records.

The evaluators need Detectron2 and are imported on first use, so that records can be read, tables
printed and files of predictions evaluated without it.
"""

import importlib

from lt_det.evaluation.groups import GROUPS, group_means, groups_from_counts
from lt_det.evaluation.lvis_api import LVISResult, evaluate_lvis
from lt_det.evaluation.lvis_matching import Matches
from lt_det.evaluation.lvis_predictions import load_predictions, read_predictions
from lt_det.evaluation.predictions import Predictions
from lt_det.evaluation.results import (
    add_run_info,
    format_table,
    make_record,
    read_record,
    write_record,
)

# Name -> module of this package that defines it.
_LAZY = {
    "LongTailClassificationEvaluator": "classification",
    "LongTailLVISEvaluator": "lvis",
    "LongTailSemSegEvaluator": "sem_seg",
}

__all__ = [
    "GROUPS",
    "LVISResult",
    "LongTailClassificationEvaluator",
    "LongTailLVISEvaluator",
    "LongTailSemSegEvaluator",
    "Matches",
    "Predictions",
    "add_run_info",
    "evaluate_lvis",
    "format_table",
    "group_means",
    "groups_from_counts",
    "load_predictions",
    "make_record",
    "read_predictions",
    "read_record",
    "write_record",
]


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
