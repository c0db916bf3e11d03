"""Run lengths as text: the strings of pycocotools."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from lt_det.evaluation.run_lengths import encode_edges


def edges_of(mask):
    """Where a mask starts and ends, column by column."""
    flat = mask.ravel(order="F").astype(np.int8)
    return np.flatnonzero(np.diff(flat, prepend=0, append=0))


@pytest.mark.parametrize("size", [(30, 40), (1, 1), (1, 700), (900, 3)])
def test_strings_are_those_of_pycocotools(size):
    rng = np.random.default_rng(size)
    masks = rng.random((20, *size)) < rng.random((20, 1, 1)) ** 2
    masks[3], masks[11], masks[19] = True, False, False
    masks[4, 0, 0] = masks[5, -1, -1] = True
    # Long runs need several characters, of either sign.
    masks[6, : size[0] // 2] = masks[7, :, size[1] // 2 :] = True
    edges = [edges_of(mask) for mask in masks]
    of = np.repeat(np.arange(20), [len(e) for e in edges])
    expected = [coco_mask.encode(np.asfortranarray(m, np.uint8))["counts"] for m in masks]
    assert encode_edges(np.concatenate(edges), of, 20, masks[0].size) == expected


def test_no_masks_and_only_empty_ones():
    none = np.zeros(0, dtype=np.int64)
    assert encode_edges(none, none, 0, 12) == []
    empty = coco_mask.encode(np.zeros((3, 4), np.uint8, order="F"))["counts"]
    assert encode_edges(none, none, 2, 12) == [empty] * 2
