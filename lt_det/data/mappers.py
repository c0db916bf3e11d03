"""From record to model input."""

from __future__ import annotations

import torch
from detectron2.config import configurable
from detectron2.data import DatasetMapper
from detectron2.data import detection_utils as utils

from lt_det.errors import DataError


class ImageClasses:
    """The class lists of one image as a field of its ``Instances``.

    An ``Instances`` holds nothing but fields with one entry per instance, also when it has none;
    this field says that it has as many as the others, and is the same for each.

    Attributes:
        positive: (any,) int64 ids of the classes with an annotation in the image.
        negative: (any,) int64 ids of the classes verified to be absent.
        not_exhaustive: (any,) int64 ids of the classes with unannotated objects.

    Args:
        positive, negative, not_exhaustive: as above.
        length: number of instances.
    """

    def __init__(
        self,
        positive: torch.Tensor,
        negative: torch.Tensor,
        not_exhaustive: torch.Tensor,
        length: int,
    ):
        self.positive, self.negative, self.not_exhaustive = positive, negative, not_exhaustive
        self._length = length

    @property
    def lists(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Positive, negative, not exhaustive."""
        return self.positive, self.negative, self.not_exhaustive

    def of_length(self, length: int) -> ImageClasses:
        """The same lists for another number of instances."""
        return ImageClasses(*self.lists, length)

    def to(self, *args, **kwargs) -> ImageClasses:
        """On another device."""
        return ImageClasses(*(ids.to(*args, **kwargs) for ids in self.lists), len(self))

    def __getitem__(self, item) -> ImageClasses:
        # Whatever a tensor of that length understands; this one has no bytes.
        index = torch.empty(len(self), 0, device=self.positive.device)
        return self.of_length(len(index[item]))

    def __len__(self) -> int:
        return self._length


class LongTailDatasetMapper(DatasetMapper):
    """Detectron2's ``DatasetMapper``; an image that cannot be used is named.

    Args:
        is_train: as in Detectron2.
        with_image_classes: give the instances of training images whose record has LVIS's
            lists a field ``image_classes``, see :class:`ImageClasses`. The classes present are
            those of the whole image, whatever a crop leaves of it.
        **kwargs: as in Detectron2.

    Raises:
        DataError: the file is missing, truncated, no image, or of another size than its
            record says; the message names the file and the image id.
    """

    @configurable
    def __init__(self, is_train: bool, *, with_image_classes: bool = False, **kwargs):
        super().__init__(is_train, **kwargs)
        self.with_image_classes = with_image_classes

    @classmethod
    def from_config(cls, cfg, is_train: bool = True):
        """Translate `cfg`; see the class for the arguments."""
        ret = super().from_config(cfg, is_train)
        ret["with_image_classes"] = cfg.MODEL.LT.FEDERATED.MODE == "annotated"
        return ret

    def __call__(self, dataset_dict: dict) -> dict:
        """As in Detectron2."""
        sample = self._map(dataset_dict)
        if self.with_image_classes and "instances" in sample:
            lists = image_class_lists(dataset_dict)
            if lists is not None:
                instances = sample["instances"]
                instances.image_classes = ImageClasses(*lists, len(instances))
        return sample

    def _map(self, dataset_dict: dict) -> dict:
        try:
            return super().__call__(dataset_dict)
        # Pillow reports a broken PNG header as SyntaxError, all else as OSError.
        except (OSError, SyntaxError, utils.SizeMismatchError) as error:
            raise DataError(
                f"cannot use image {dataset_dict['file_name']} "
                f"(image id {dataset_dict.get('image_id')}): {error}. DATALOADER.LT.BAD_IMAGE "
                "'skip' trains without such images."
            ) from error


def image_class_lists(record: dict) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
    """Ids of the classes present, verified to be absent, and not annotated exhaustively.

    Returns:
        None for a record without LVIS's lists: its image is annotated for all classes.
    """
    if "neg_category_ids" not in record:
        return None
    present = {annotation["category_id"] for annotation in record.get("annotations", ())}
    lists = (present, record["neg_category_ids"], record.get("not_exhaustive_category_ids", ()))
    return tuple(torch.tensor(sorted(ids), dtype=torch.int64) for ids in lists)
