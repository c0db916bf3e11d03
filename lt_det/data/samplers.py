"""The order of training images, such that a killed run can continue it exactly.

An index sampler (Detectron2's) gives an infinite stream of image indices from a seed. Batches
are cut from it here, before any image is read, so that batch number k is a function of the
seed alone: a run that consumed k batches continues by building the same stream and leaving out
k batches, whatever the loader workers had prefetched.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from lt_det.data.records import Records


class SampleKey(NamedTuple):
    """One image of a batch.

    Attributes:
        index: of the image in the data set.
        position: of the sample in this rank's stream; seeds the augmentation.
    """

    index: int
    position: int


class GroupedBatchSampler(Sampler):
    """Batches of one rank.

    With `groups`, images of one batch are of one group, as Detectron2's aspect-ratio grouping
    does it, but decided from the records rather than after loading.

    Args:
        indices: re-iterable, infinite stream of image indices of this rank.
        batch_size: images of a batch, on this rank.
        groups: (N,) small non-negative integers, the group of each image; None = one group.
        skip: batches to leave out at the start.
    """

    def __init__(
        self,
        indices: Iterable[int],
        batch_size: int,
        *,
        groups: np.ndarray | None = None,
        skip: int = 0,
    ):
        self.indices, self.batch_size, self.groups, self.skip = indices, batch_size, groups, skip

    def __iter__(self) -> Iterator[list[SampleKey]]:
        open_batches: dict[int, list[SampleKey]] = {}
        # A list is several times faster to index one by one than an array.
        group_of = None if self.groups is None else self.groups.tolist()
        complete = 0
        for position, index in enumerate(self.indices):
            group = 0 if group_of is None else group_of[index]
            batch = open_batches.setdefault(group, [])
            batch.append(SampleKey(index, position))
            if len(batch) == self.batch_size:
                del open_batches[group]
                complete += 1
                if complete > self.skip:
                    yield batch


def aspect_ratio_groups(records: Records) -> np.ndarray:
    """(N,) 0 for images wider than high, 1 for the others, as in Detectron2."""
    return (records.widths <= records.heights).astype(np.int64)
