"""The order of training images, such that a killed run can continue it exactly.

:class:`LongTailSampler` gives an infinite stream of images; batches are cut from it in
:class:`GroupedBatchSampler`, before any image is read. Where the stream stands is (epoch,
position), and the batches begun so far. All randomness comes from (seed, epoch).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from lt_det.data.epochs import EpochOrder
from lt_det.data.records import Records


class SampleKey(NamedTuple):
    """One image of a batch.

    Attributes:
        index: of the image in the data set.
        epoch: from 0.
        position: in this rank's part of the epoch; with the epoch it seeds the augmentation.
    """

    index: int
    epoch: int
    position: int


class LongTailSampler(Sampler):
    """Infinite stream of one rank's images.

    All ranks draw the same list in each epoch; each takes every `world_size`-th image of it, and
    the rank that begins changes from epoch to epoch, so that none gets more than the others in
    the long run (nor nothing at all, when an epoch is shorter than there are ranks).

    Args:
        order: what an epoch consists of.
        seed: the same on every rank, >= 0.
        rank: of this process.
        world_size: number of processes.
        start: (epoch, position) of the first image to give.
    """

    def __init__(
        self,
        order: EpochOrder,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        start: tuple[int, int] = (0, 0),
    ):
        self.order, self.seed = order, seed
        self.rank, self.world_size = rank, world_size
        self.start = start

    def epoch_images(self, epoch: int) -> np.ndarray:
        """(any,) int64, the images of an epoch for all ranks."""
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence((self.seed, epoch))))
        return self.order.draw(rng, epoch)

    def __iter__(self) -> Iterator[SampleKey]:
        epoch, position = self.start
        while True:
            begin = (self.rank + epoch) % self.world_size
            # A list is several times faster to go through than an array.
            images = self.epoch_images(epoch)[begin :: self.world_size].tolist()
            for place in range(position, len(images)):
                yield SampleKey(images[place], epoch, place)
            epoch, position = epoch + 1, 0


class GroupedBatchSampler(Sampler):
    """Batches of one rank.

    With `groups`, images of one batch are of one group, as Detectron2's aspect-ratio grouping
    does it, but decided from the records rather than after loading.

    Args:
        stream: of :class:`SampleKey`, infinite.
        batch_size: images of a batch, on this rank.
        groups: (N,) small non-negative integers, the group of each image; None = one group.
        begun: images of batches that are not full yet, in the order of the stream.

    Attributes:
        states: one for each batch given and not yet claimed, oldest first: the state of the
            stream after that batch. Whoever gets the batch, perhaps long after because workers
            load ahead, takes it from the left.
    """

    def __init__(
        self,
        stream: Sampler,
        batch_size: int,
        *,
        groups: np.ndarray | None = None,
        begun: list[SampleKey] | None = None,
    ):
        self.stream, self.batch_size, self.groups = stream, batch_size, groups
        self.begun = begun or []
        self.states: deque[dict] = deque()

    def __iter__(self) -> Iterator[list[SampleKey]]:
        # A list is several times faster to index one by one than an array.
        group_of = None if self.groups is None else self.groups.tolist()
        open_batches: dict[int, list[SampleKey]] = {}
        for key in self.begun:
            open_batches.setdefault(0 if group_of is None else group_of[key.index], []).append(key)
        for key in self.stream:
            group = 0 if group_of is None else group_of[key.index]
            batch = open_batches.setdefault(group, [])
            batch.append(key)
            if len(batch) == self.batch_size:
                del open_batches[group]
                self.states.append(_state_after(key, open_batches))
                yield batch


def _state_after(key: SampleKey, open_batches: dict[int, list[SampleKey]]) -> dict:
    """Where the stream goes on after `key`, in plain numbers."""
    begun = sorted((k for batch in open_batches.values() for k in batch), key=lambda k: k[1:])
    return {
        "epoch": key.epoch,
        "position": key.position + 1,
        "begun": [list(k) for k in begun],
    }


def aspect_ratio_groups(records: Records) -> np.ndarray:
    """(N,) 0 for images wider than high, 1 for the others, as in Detectron2."""
    return (records.widths <= records.heights).astype(np.int64)
