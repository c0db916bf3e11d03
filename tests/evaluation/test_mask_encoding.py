"""Masks encoded inside their boxes: the strings of Detectron2 and pycocotools."""

import numpy as np
import pytest
import torch
from detectron2.layers.mask_ops import paste_masks_in_image
from pycocotools import mask as coco_mask
from torch.nn import functional as F

from lt_det.evaluation import mask_encoding
from lt_det.evaluation.mask_encoding import encode_masks, paste_in_box
from lt_det.evaluation.run_lengths import encode_edges

SIZES = [(1, 1), (1, 40), (33, 1), (5, 17), (40, 100), (120, 90)]
CELLS = [1, 2, 7, 14, 28]


def reference(masks, boxes, size):
    """Detectron2's two steps."""
    full = paste_masks_in_image(torch.from_numpy(masks), torch.from_numpy(boxes), size)
    return [coco_mask.encode(np.asfortranarray(m, dtype=np.uint8))["counts"] for m in full.numpy()]


def smooth(rng, n, cells):
    """Like those of a network: blobs with soft borders."""
    low = torch.from_numpy(rng.standard_normal((n, 1, 4, 4)) * 4)
    return F.interpolate(low, (cells, cells), mode="bicubic")[:, 0].sigmoid().numpy()


def with_nan(rng, n, cells):
    """Not probabilities, as of a network that diverged."""
    masks = rng.standard_normal((n, cells, cells))
    masks[rng.random(masks.shape) < 0.05] = np.nan
    return masks


MASKS = {
    "smooth": smooth,
    "noise": lambda rng, n, m: rng.random((n, m, m)),
    "0 or 1": lambda rng, n, m: rng.integers(0, 2, (n, m, m)),
    # Quarters meet the threshold exactly, in cells and between them.
    "quarters": lambda rng, n, m: rng.integers(0, 5, (n, m, m)) / 4,
    # Rounding decides nearly everywhere.
    "near": lambda rng, n, m: 0.5 + rng.standard_normal((n, m, m)) * 1e-7,
    "flat": lambda rng, n, m: np.tile(rng.choice([0, 0.49999997, 0.5, 1], (n, 1, 1)), (1, m, m)),
    "nan": with_nan,
}


def make_boxes(rng, n, size, kind):
    """(n, 4) around places in the image, outside of which Detectron2 fails."""
    limits = np.array(size[::-1])
    centres, sides = rng.random((n, 2)) * limits, rng.random((n, 2)) * limits
    if kind == "tiny":
        sides = 10 ** rng.uniform(-6, 0.5, (n, 2))
    if kind == "huge":
        sides = 10 ** rng.uniform(1, 6, (n, 2))
    boxes = np.concatenate([centres - sides / 2, centres + sides / 2], axis=1)
    if kind == "inside":
        boxes = np.clip(boxes, 0, np.tile(limits, 2))
    if kind == "halves":  # sides run through centres of pixels, or between them
        boxes = np.round(2 * boxes) / 2
    if kind == "empty":
        boxes = np.clip(boxes, 0, np.tile(limits, 2))
        boxes[:, 2 + n % 2] = boxes[:, n % 2]
    boxes = boxes.astype(np.float32)
    boxes[:, 2:] = np.maximum(boxes[:, :2], boxes[:, 2:])
    return boxes


@pytest.mark.parametrize("kind", ["inside", "across", "tiny", "huge", "halves", "empty"])
@pytest.mark.parametrize("content", MASKS)
def test_strings_are_those_of_detectron2(content, kind):
    rng = np.random.default_rng(len(content) * 10 + len(kind))
    for k, size in enumerate(SIZES):
        n = 7 + k
        masks = MASKS[content](rng, n, CELLS[k % len(CELLS)]).astype(np.float32)
        boxes = make_boxes(rng, n, size, kind)
        assert encode_masks(masks, boxes, size) == reference(masks, boxes, size)


def test_masks_are_looked_at_in_blocks(monkeypatch):
    rng = np.random.default_rng(3)
    masks = smooth(rng, 40, 28).astype(np.float32)
    boxes = make_boxes(rng, 40, (60, 80), "across")
    expected = encode_masks(masks, boxes, (60, 80))
    monkeypatch.setattr(mask_encoding, "_BLOCK", 25)  # a mask alone, or a few
    assert encode_masks(masks, boxes, (60, 80)) == expected
    assert encode_masks(masks, boxes, (60, 80))[7:9] == encode_masks(
        masks[7:9], boxes[7:9], (60, 80)
    )


def test_only_masks_in_which_rounding_decides_are_pasted(monkeypatch):
    pasted = []

    def paste(mask, box, size):
        pasted.append(mask)
        return paste_in_box(mask, box, size)

    monkeypatch.setattr(mask_encoding, "paste_in_box", paste)
    disc = np.hypot(*(np.indices((28, 28)) - 13.4)) < 9.3
    masks = np.stack([disc * 0.97 + 0.01, np.full((28, 28), 0.5)]).astype(np.float32)
    boxes = np.array([[3.13, 4.57, 61.9, 48.3]] * 2, dtype=np.float32)
    encode_masks(masks, boxes, (60, 80))
    assert len(pasted) == 1 and (pasted[0] == 0.5).all()


def test_the_pasted_values_are_those_of_detectron2():
    """All masks by the slow way: it alone gives the same strings too."""
    rng = np.random.default_rng(4)
    size = (50, 70)
    masks = rng.random((30, 14, 14)).astype(np.float32)
    boxes = make_boxes(rng, 30, size, "across")
    edges = [paste_in_box(m, b, size) for m, b in zip(masks, boxes, strict=True)]
    of = np.repeat(np.arange(30), [len(e) for e in edges])
    edges, of = mask_encoding._without_pairs(np.concatenate(edges), of)
    assert encode_edges(edges, of, 30, 50 * 70) == reference(masks, boxes, size)


def test_a_full_mask_is_the_pixels_whose_centres_are_in_the_box():
    box = [2.0, 1.0, 5.0, 3.0]
    (text,) = encode_masks(np.ones((1, 28, 28)), np.array([box]), (6, 8))
    mask = coco_mask.decode({"size": [6, 8], "counts": text})
    expected = np.zeros((6, 8))
    expected[1:3, 2:5] = 1
    np.testing.assert_array_equal(mask, expected)


def test_boxes_outside_of_the_image_are_empty_masks():
    boxes = [[-9, 1, -4, 3], [20, 1, 30, 3], [1, -9, 3, -7], [1, 50, 3, 60], [1e8, 1, 1.1e8, 3]]
    texts = encode_masks(np.ones((5, 7, 7)), np.array(boxes), (6, 8))
    for text in texts:
        assert coco_mask.area({"size": [6, 8], "counts": text}) == 0
    assert set(texts) == {coco_mask.encode(np.zeros((6, 8), np.uint8, order="F"))["counts"]}


def runs_of(text):
    """The run lengths of a compressed string, one after the other."""
    counts, value, shift = [], 0, 0
    for byte in text:
        value |= (byte - 48 & 31) << shift
        shift += 5
        if not byte - 48 & 32:
            if byte - 48 & 16:
                value -= 1 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return counts


def test_the_size_of_the_image_does_not_matter():
    """No array of the image: this one has 10^10 pixels, more than 32 bits count."""
    side = 10**5
    box = np.array([[5e4, 6e4, 5e4 + 2, 6e4 + 3]])
    (text,) = encode_masks(np.ones((1, 28, 28)), box, (side, side))
    start = 50_000 * side + 60_000
    assert runs_of(text) == [start, 3, side - 3, 3, side**2 - start - side - 3]


def test_no_masks():
    assert encode_masks(np.zeros((0, 28, 28)), np.zeros((0, 4)), (6, 8)) == []


@pytest.mark.parametrize(
    ("masks", "boxes", "size", "message"),
    [
        (np.ones((1, 4, 5)), [[0, 0, 1, 1]], (6, 8), r"\(1, 4, 5\)"),
        (np.ones((2, 4, 4)), [[0, 0, 1, 1]], (6, 8), r"\(2, 4, 4\) and \(1, 4\)"),
        (np.ones((1, 4, 4)), [[0, 0, 1, 1]], (0, 8), "0 x 8 pixels"),
        (np.ones((1, 4, 4)), [[0, 0, np.nan, 1]], (6, 8), r"box 0 .*nan"),
        (np.ones((2, 4, 4)), [[0, 0, 1, 1], [0, 5, 1, 2]], (6, 8), r"box 1 .*5\.0, 1\.0, 2\.0"),
    ],
)
def test_bad_arguments_are_named(masks, boxes, size, message):
    with pytest.raises(ValueError, match=message):
        encode_masks(masks, np.array(boxes), size)
