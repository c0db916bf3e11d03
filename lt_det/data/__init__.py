"""Records, class counts, samplers and loaders.

Importing this package registers the generated sets (``lt_synthetic_train``, ``_val`` and those for
image classification and semantic segmentation) and the usual sets of image classification; nothing
is generated or read until one of them is used.
"""

from lt_det.data.class_counts import (
    ClassCounts,
    count_classes,
    get_class_counts,
    report_absent_classes,
)
from lt_det.data.datasets import (
    DatasetInfo,
    dataset_info,
    get_records,
    load_lvis_format,
    register_from_config,
    register_lvis_format,
    register_synthetic,
)
from lt_det.data.datasets.image_sets import register_known_image_sets
from lt_det.data.datasets.synthetic_images import register_synthetic_images
from lt_det.data.datasets.synthetic_sem_seg import register_synthetic_sem_seg

register_synthetic()
register_synthetic_images()
register_synthetic_sem_seg()
register_known_image_sets()

__all__ = [
    "ClassCounts",
    "DatasetInfo",
    "count_classes",
    "dataset_info",
    "get_class_counts",
    "get_records",
    "load_lvis_format",
    "register_from_config",
    "register_lvis_format",
    "register_synthetic",
    "report_absent_classes",
]
