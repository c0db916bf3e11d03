"""From the record of an image with a label map to model input."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from detectron2.config import configurable
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T

from lt_det.data.datasets.label_png import IGNORED, read_class_map
from lt_det.data.image_decode import IMAGE_ERRORS
from lt_det.data.sem_seg_augmentation import build_sem_seg_augmentation
from lt_det.errors import ConfigError, DataError

SKIP_HINT = "DATALOADER.LT.BAD_IMAGE 'skip' trains without such images."


class LongTailSemSegMapper:
    """Record with `file_name` and `sem_seg_file_name` -> sample with `image` and `sem_seg`.

    Randomness comes from numpy's global generator, which the loader seeds for each sample.

    Args:
        is_train: read and augment the label map, too.
        augmentations: of image and label map.
        image_format: "RGB" or "BGR", see Detectron2's ``read_image``.
        num_classes: C.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        augmentations: Sequence[T.Augmentation],
        image_format: str,
        num_classes: int,
    ):
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.num_classes = num_classes

    @classmethod
    def from_config(cls, cfg, is_train: bool = True) -> dict:
        """Translate ``INPUT``, ``DATALOADER.LT.SEM_SEG`` and ``MODEL.SEM_SEG_HEAD``.

        Raises:
            ConfigError: a value out of range; the message names the key.
        """
        node = cfg.MODEL.SEM_SEG_HEAD
        if node.IGNORE_VALUE != IGNORED:
            raise ConfigError(
                f"MODEL.SEM_SEG_HEAD.IGNORE_VALUE is {node.IGNORE_VALUE}; ignored pixels of a "
                f"label map are {IGNORED}"
            )
        return {
            "is_train": is_train,
            "augmentations": build_sem_seg_augmentation(cfg, is_train),
            "image_format": cfg.INPUT.FORMAT,
            "num_classes": node.NUM_CLASSES,
        }

    def __call__(self, record: dict) -> dict:
        """Map one record.

        Args:
            record: `file_name`, `sem_seg_file_name` and `zero_is_unlabelled` (False if it is not
                there), see `sem_seg_records.SemSegRecords`.

        Returns:
            The record with `image` (3, H, W) uint8, `height` and `width` of the image as the file
            has it and, in training, `sem_seg` (H, W) int64, 0..C-1 and 255 = ignored.

        Raises:
            DataError: a file is missing, truncated or no image; the label map is not one, has a
                value beyond the classes or another size than its image.
        """
        try:
            image = read_image(record["file_name"], self.image_format)
            height, width = image.shape[:2]
            classes = None
            if self.is_train:
                classes = read_record_classes(record, self.num_classes, (height, width))
        except DataError as error:
            raise DataError(f"{error}. {SKIP_HINT}" if self.is_train else error) from error
        augmented = T.AugInput(image, sem_seg=classes)
        self.augmentations(augmented)
        sample = {**record, "height": height, "width": width}
        pixels = np.ascontiguousarray(augmented.image.transpose(2, 0, 1))
        sample["image"] = torch.from_numpy(pixels)
        if self.is_train:
            sample["sem_seg"] = torch.from_numpy(augmented.sem_seg.astype(np.int64, order="C"))
        return sample


def read_image(path: str, image_format: str) -> np.ndarray:
    """An upright (H, W, 3) uint8 image as Detectron2 reads it.

    Raises:
        DataError: the file is missing, truncated or no image; the message names it.
    """
    try:
        return utils.read_image(path, image_format)
    except IMAGE_ERRORS as error:
        raise DataError(f"cannot use image {path}: {error}") from error


def read_record_classes(
    record: dict, num_classes: int, size: tuple[int, int] | None = None
) -> np.ndarray:
    """(H, W) uint8 classes of the pixels of a record, 255 = ignored.

    Args:
        record: `file_name`, `sem_seg_file_name` and `zero_is_unlabelled`.
        num_classes: C.
        size: (H, W) of the image as it is read; None = not compared.

    Raises:
        DataError: the file is no label map, has a value beyond the classes or another size than
            its image.
    """
    path = record["sem_seg_file_name"]
    classes = read_class_map(path, num_classes, record["zero_is_unlabelled"])
    if size is not None and classes.shape != tuple(size):
        turned = classes.shape == tuple(size[::-1])
        why = "; the image is turned by its EXIF orientation, the label map is not" * turned
        raise DataError(
            f"label map {path} has {classes.shape[1]} x {classes.shape[0]} pixels, its image "
            f"{record['file_name']} {size[1]} x {size[0]}{why}"
        )
    return classes
