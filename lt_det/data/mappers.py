"""From record to model input."""

from __future__ import annotations

from detectron2.data import DatasetMapper
from detectron2.data import detection_utils as utils

from lt_det.errors import DataError


class LongTailDatasetMapper(DatasetMapper):
    """Detectron2's ``DatasetMapper``; an image that cannot be used is named.

    Raises:
        DataError: the file is missing, truncated, no image, or of another size than its
            record says; the message names the file and the image id.
    """

    def __call__(self, dataset_dict: dict) -> dict:
        """As in Detectron2."""
        try:
            return super().__call__(dataset_dict)
        # Pillow reports a broken PNG header as SyntaxError, all else as OSError.
        except (OSError, SyntaxError, utils.SizeMismatchError) as error:
            raise DataError(
                f"cannot use image {dataset_dict['file_name']} "
                f"(image id {dataset_dict.get('image_id')}): {error}. DATALOADER.LT.BAD_IMAGE "
                "'skip' trains without such images."
            ) from error
