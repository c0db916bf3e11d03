"""Average precision of weighted images, from what matching has found once.

Precision matters only at true positives, which are few. So a detection is an *event* if it is a
true positive at some threshold of IoU, or counts at some and is ignored at others; what lies
between two events is a false positive at all thresholds, or ignored at all, and is added up once.

Here I is the number of images, T of IoU thresholds, and B of weightings that are computed at once.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import embedding_bag

from lt_det.evaluation.lvis_matching import Matches

# Thresholds of recall as lvis.LVISEval has them; AP is the mean precision over them.
_RECALLS = np.linspace(0, 1, 101)
# Some are a rounding error above j / 100, and not reached by a recall of exactly j / 100.
_LATE = (_RECALLS > np.arange(101) / 100).astype(np.float32)
# Events times classes of a chunk; with 500 weightings an array of 2 MB of float32.
_CHUNK = 1024


class WeightSums:
    """Sums of the weights of images, by bag.

    Args:
        bags: (N,) ints 0..K-1, the sum that ...
        images: (N,) ints, ... this image enters.
        num_bags: K.
        amounts: (N,) what the weight is multiplied with; None: 1.
    """

    def __init__(self, bags, images, num_bags: int, amounts=None):
        order = np.argsort(bags, kind="stable")
        starts = np.searchsorted(bags[order], np.arange(num_bags))
        self._starts = torch.from_numpy(starts)
        self._images = torch.from_numpy(images[order].astype(np.int64))
        self._amounts = None if amounts is None else torch.from_numpy(amounts[order])

    def __call__(self, weights: torch.Tensor) -> np.ndarray:
        """(K, B) of (I, B) weights."""
        amounts = None if self._amounts is None else self._amounts.to(weights.dtype)
        sums = embedding_bag(
            self._images, weights, self._starts, mode="sum", per_sample_weights=amounts
        )
        return sums.numpy()


class Chunk:
    """Detections of K classes with about equally many events, which are computed together.

    Classes with fewer than E events are filled up with events of weight zero.

    Args:
        classes: (K,) class ids.
        events: (E, K) numbers of the events of each class, by falling score; -1 fills up.
        event_image: (V,) image of each event.
        is_tp: (T, V) bool, true positive.
        counts: (T, V) bool, not ignored.
        plain_event: (N,) the next event after each other false positive of any class, ascending.
        plain_image: (N,) its image.
        num_images: I.
    """

    def __init__(
        self, classes, events, event_image, is_tp, counts, plain_event, plain_image, num_images
    ):
        self.classes = classes
        filled = events < 0
        self._event_image = torch.from_numpy(np.where(filled, num_images, event_image[events]))
        self._is_tp = (is_tp[:, events] & ~filled)[..., None]
        self._counts = (counts[:, events] & ~filled)[..., None]
        # The plain detections before each event: a range of the ascending `plain_event`.
        first = np.searchsorted(plain_event, events.ravel(), side="left")
        length = np.searchsorted(plain_event, events.ravel(), side="right") - first
        length[filled.ravel()] = 0
        bags = np.repeat(np.arange(events.size), length)
        place = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
        self._plain = WeightSums(bags, plain_image[first[bags] + place], events.size)

    def ap(self, weights: torch.Tensor, objects: np.ndarray) -> np.ndarray:
        """(K, B) AP as a fraction, of (I + 1, B) weights and (K, B) sums of weighted objects."""
        weight = weights[self._event_image].numpy()
        plain = self._plain(weights).reshape(weight.shape)
        objects = np.maximum(objects, 1)
        ap = np.zeros_like(objects)
        for is_tp, counts in zip(self._is_tp, self._counts, strict=True):
            tp = _running(np.add, weight * is_tp)
            detections = _running(np.add, plain + weight * counts)
            np.maximum(detections, 1, out=detections)  # where there is none, there is no tp
            precision = np.divide(tp, detections, out=detections)
            # Highest precision at this recall or a larger one.
            _running(np.maximum, precision[::-1])
            recalls = _recalls_reached(tp, objects)
            precision[1:] *= recalls[1:] - recalls[:-1]
            precision[0] *= recalls[0]
            ap += precision.sum(axis=0)
        return ap / (len(self._is_tp) * len(_RECALLS))


def make_chunks(matches: Matches, classes: np.ndarray, num_images: int) -> list[Chunk]:
    """The detections of `classes` that matter, in chunks."""
    matched, ignored = matches.matched[0], matches.ignored[0]
    is_tp, counts = matched & ~ignored, ~ignored
    wanted = np.isin(matches.det_class, classes)
    event = wanted & (is_tp.any(axis=0) | (counts.any(axis=0) & ~counts.all(axis=0)))
    places = np.flatnonzero(event)
    if not len(places):
        return []
    event_class = matches.det_class[places]
    # The next event after each detection; after the last one of a class nothing matters.
    following = np.minimum(np.cumsum(event), len(places) - 1)
    plain = wanted & ~event & counts.all(axis=0)
    plain &= event_class[following] == matches.det_class
    plain &= places[following] > np.arange(len(following))
    shared = {
        "event_image": matches.det_image[places].astype(np.int64),
        "is_tp": is_tp[:, places],
        "counts": counts[:, places],
        "plain_event": following[plain],
        "plain_image": matches.det_image[plain],
        "num_images": num_images,
    }
    classes, first, sizes = np.unique(event_class, return_index=True, return_counts=True)
    order = np.argsort(-sizes, kind="stable")
    chunks = []
    while len(order):
        most = sizes[order[0]]
        part, order = np.split(order, [max(1, _CHUNK // most)])
        at = np.arange(most)[:, None]
        events = np.where(at < sizes[part], first[part] + at, -1)
        chunks.append(Chunk(classes[part], events, **shared))
    return chunks


def _running(operation: np.ufunc, values: np.ndarray) -> np.ndarray:
    """``operation.accumulate`` along the first axis, in place, by rows: for long rows."""
    for last, row in zip(values[:-1], values[1:], strict=True):
        operation(row, last, out=row)
    return values


def _recalls_reached(tp: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """How many of the 101 thresholds are at most ``tp / objects``, for whole numbers."""
    hundredfold = 100 * tp
    percent = np.floor(hundredfold / objects)
    late = _LATE.astype(tp.dtype)[percent.astype(np.intp)]
    late *= percent * objects == hundredfold
    percent += 1
    percent -= late
    return percent
