"""Ground truth of the LVIS evaluation, from an annotation file in LVIS or COCO format."""

from __future__ import annotations

import contextlib
import numbers
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

import numpy as np
import pycocotools.mask as mask_utils

from lt_det.errors import DataError, MissingFileError
from lt_det.evaluation.annotation_masks import is_read, packed, read_masks
from lt_det.evaluation.groups import GROUPS
from lt_det.evaluation.json_files import gc_paused, read_json
from lt_det.evaluation.json_stream import NotStreamable, stream_lists

# The largest range of ids for which a table is kept; COCO's image ids are below 600,000.
_TABLE_SIZE = 1 << 22
_LISTS = ("neg_category_ids", "not_exhaustive_category_ids")
# Of an annotation, what is read.
_FIELDS = tuple("id image_id category_id bbox area segmentation iscrowd ignore".split())


@dataclass(eq=False)
class GroundTruth:
    """The part of an annotation file that the evaluation uses: G objects in I images.

    A pair of image and class is a number, ``image * C + class``, of places in `image_ids` and
    `categories`. Objects are sorted by class, then image, then as in the file.

    Attributes:
        image_ids: (I,) int64, ascending.
        image_sizes: (I, 2) int32 height and width in pixels.
        categories: C entries of the file, in the class order of the evaluation.
        federated: whether the file says per image which absent classes were looked for. If not,
            a detection of every class counts in every image.
        negative: (L,) int64 pairs of which the file says that the image has no such object; empty
            unless `federated`.
        not_exhaustive: (M,) int64 pairs of which not all objects are annotated.
        gt_image: (G,) int32, place of the image.
        gt_class: (G,) int32, class.
        gt_row: (G,) int64, place in the file's list of annotations.
        annotation_ids: G ids of the file, for messages.
        boxes: (G, 4) float64 XYWH in pixels.
        areas: (G,) float64 square pixels, above 0: LVISEval leaves other objects out.
        ignore: (G,) bool, marked as `ignore` in the file.
        segmentations: G masks, as in the file, RLE, or
            :class:`~lt_det.evaluation.annotation_masks.Polygons`; None: the object has none.
        groups: "r", "c" or "f" per class from the file's `frequency`; None if it has none.
        left_out_images: ids of the file's images that are not evaluated.
        notes: what was left out or filled in, with counts, for the log.
    """

    image_ids: np.ndarray
    image_sizes: np.ndarray
    categories: list[dict]
    federated: bool
    negative: np.ndarray
    not_exhaustive: np.ndarray
    gt_image: np.ndarray
    gt_class: np.ndarray
    gt_row: np.ndarray
    annotation_ids: list
    boxes: np.ndarray
    areas: np.ndarray
    ignore: np.ndarray
    segmentations: list
    groups: list[str] | None
    left_out_images: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    notes: list[str] = field(default_factory=list)

    @property
    def category_ids(self) -> np.ndarray:
        """(C,) int64 category id of each class."""
        return np.array([c["id"] for c in self.categories], dtype=np.int64)

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.categories)

    def pairs(self) -> np.ndarray:
        """(G,) int64, the pair of each object; not sorted, for objects are sorted by class."""
        return self.gt_image.astype(np.int64) * self.num_classes + self.gt_class

    def rles(self, objects: np.ndarray) -> list[dict]:
        """The masks of some objects, (M,) ints, as pycocotools takes them.

        They are kept in place of polygons, which take more memory and the longest to convert.

        Raises:
            AnnotationError: one has no mask, or something else in its place.
        """
        objects = objects.tolist()
        new = [k for k in objects if not is_read(self.segmentations[k])]
        found = read_masks(
            [self.segmentations[k] for k in new],
            self.image_sizes[self.gt_image[np.array(new, dtype=np.int64)]],
            [self.annotation_ids[k] for k in new],
        )
        for k, rle in zip(new, found, strict=True):
            self.segmentations[k] = rle
        return [self.segmentations[k] for k in objects]

    def check_masks(self) -> None:
        """Raise AnnotationError, naming the first, if an object has no mask."""
        without = [k for k, s in enumerate(self.segmentations) if s is None]
        if without:
            self.rles(np.array(without[:1]))

    def restrict_images(self, image_ids: Sequence[int]) -> GroundTruth:
        """The ground truth of some of the images.

        Raises:
            DataError: there is none, or an id is not in the file.
        """
        wanted = np.unique(np.asarray(image_ids))
        if not len(wanted) or wanted.dtype.kind not in "iu":
            raise DataError(f"image_ids must be whole numbers, at least one; got {image_ids!r:.60}")
        unknown = wanted[positions(wanted, self.image_ids) < 0]
        if len(unknown):
            raise DataError(
                f"{len(unknown)} of {len(wanted)} wanted images are not among the "
                f"{len(self.image_ids)} of the annotation file, the first is {unknown[0]}"
            )
        keep = np.isin(self.image_ids, wanted)
        objects = np.flatnonzero(keep[self.gt_image])
        place = np.cumsum(keep) - 1

        def renumbered(pairs):
            image, category = np.divmod(pairs, self.num_classes)
            there = keep[image]
            return place[image[there]] * self.num_classes + category[there]

        columns = ("gt_class", "gt_row", "boxes", "areas", "ignore")
        return replace(
            self,
            image_ids=self.image_ids[keep],
            image_sizes=self.image_sizes[keep],
            negative=renumbered(self.negative),
            not_exhaustive=renumbered(self.not_exhaustive),
            gt_image=place[self.gt_image[objects]].astype(np.int32),
            annotation_ids=[self.annotation_ids[k] for k in objects.tolist()],
            segmentations=[self.segmentations[k] for k in objects.tolist()],
            left_out_images=np.concatenate([self.left_out_images, self.image_ids[~keep]]),
            **{name: getattr(self, name)[objects] for name in columns},
        )


# ---- reading ---------------------------------------------------------------------------------


def load_ground_truth(
    json_file: str | os.PathLike, category_ids: Sequence[int] | None = None, masks: bool = True
) -> GroundTruth:
    """Read an LVIS or COCO annotation file; see :func:`prepare_ground_truth`.

    Args:
        json_file: the file.
        category_ids: see there.
        masks: keep the masks, most of the memory, which "segm" needs.

    Raises:
        MissingFileError: no such file.
        ValueError: `category_ids` has an id twice.
        DataError: not JSON, or not what :func:`prepare_ground_truth` accepts; the message names
            the file.
    """
    path = _local_path(os.fspath(json_file))
    if not os.path.isfile(path):
        raise MissingFileError(
            f"no annotation file {path}; the environment variable DETECTRON2_DATASETS moves the "
            "directory of the data sets"
        )
    try:
        with gc_paused():
            dataset, fields = _read_pieces(path, masks)
    except NotStreamable:
        dataset, fields = read_json(path), None
    try:
        if fields is None:
            gt = prepare_ground_truth(dataset, category_ids)
        else:
            gt = _prepare(dataset, fields, category_ids)
    except DataError as e:
        raise DataError(f"{path}: {e}") from e
    if not masks:
        gt.segmentations = [None] * len(gt.segmentations)
    return gt


def _read_pieces(path: str, masks: bool) -> tuple[dict, dict[str, list]]:
    """The images and categories of an annotation file, and the fields of its annotations.

    The numbers of polygons are most of a file: they are in memory as arrays, or not at all.

    Args:
        path: the file.
        masks: False: keep only the masks that an area is to be computed from.

    Raises:
        NotStreamable: the file has to be read as a whole.
    """
    dataset, fields = {}, {key: [] for key in _FIELDS}
    for key, entries in stream_lists(path):
        if key != "annotations":
            dataset.setdefault(key, []).extend(entries)
            continue
        dataset["annotations"] = []  # so that it is known to be there
        if set(map(type, entries)) - {dict}:
            raise NotStreamable("an entry is no object: the whole list tells its number")
        found = _fields(entries)
        if masks:
            found["segmentation"] = packed(found["segmentation"])
        else:
            pairs = zip(found["area"], found["segmentation"], strict=True)
            found["segmentation"] = [mask if area is None else None for area, mask in pairs]
        for name, values in found.items():
            fields[name] += values
    if not {"images", "annotations", "categories"} <= set(dataset):
        raise NotStreamable("a list is missing, or is of something else than objects")
    return dataset, fields


def _fields(annotations: Sequence[dict]) -> dict[str, list]:
    """The values of `_FIELDS` of all annotations; None: it has none."""
    return {key: [ann.get(key) for ann in annotations] for key in _FIELDS}


def _local_path(path: str) -> str:
    """`path`, or that of the copy which Detectron2 makes of something like ``https://...``."""
    if "://" not in path:
        return path
    from detectron2.utils.file_io import PathManager

    return PathManager.get_local_path(path)


def prepare_ground_truth(dataset: dict, category_ids: Sequence[int] | None = None) -> GroundTruth:
    """The ground truth of an annotation file.

    A file without `neg_category_ids` and `not_exhaustive_category_ids` (COCO format) is taken
    as annotated exhaustively: every class that an image lacks is a negative there. Crowds
    (`iscrowd`) are left out, for LVIS has none; a detection on one counts as any other. An
    annotation without `area`, or with null, gets that of its mask, or of its box if it has no mask.
    Objects whose area is not above 0 and finite are left out, as by LVISEval. Categories that are
    not in `category_ids` take no part. Ids of annotations are used in messages alone: they may be
    missing, or the same twice. There are groups if all categories that take part have a
    `frequency`.

    Args:
        dataset: the content of the file; it is not modified, and masks are shared with it.
        category_ids: (C,) category id of each class. None: all, in ascending order.

    Raises:
        ValueError: `category_ids` has an id twice.
        DataError: a category is missing or in the file twice, or a category, image or annotation
            cannot be used.
    """
    if not isinstance(dataset, dict) or not {"images", "categories"} <= set(dataset):
        raise DataError("an annotation file needs 'images' and 'categories'")
    annotations = _objects(dataset, "annotations") if "annotations" in dataset else []
    return _prepare(dataset, _fields(annotations), category_ids)


def _prepare(
    dataset: dict, fields: dict[str, list], category_ids: Sequence[int] | None
) -> GroundTruth:
    """See :func:`prepare_ground_truth`; of the annotations there are `_FIELDS`."""
    with gc_paused():
        categories = _select_categories(_objects(dataset, "categories"), category_ids)
        images = sorted(_objects(dataset, "images"), key=_image_id)
        image_ids = _integers([image["id"] for image in images], "image ids")
        if (np.diff(image_ids) == 0).any():
            again = image_ids[1:][np.diff(image_ids) == 0][0]
            raise DataError(f"image {again} is in the file more than once")
        federated = any(key in image for image in images for key in _LISTS)
        classes = np.array([c["id"] for c in categories], dtype=np.int64)
        lists = [_listed_pairs(images, key, classes, federated) for key in _LISTS]
        sizes = _image_sizes(images)
        objects, notes = _prepare_annotations(fields, image_ids, sizes, classes)
    others = len(dataset["categories"]) - len(categories)
    if others:
        notes.append(f"{others} categories of the file are not among the classes and are left out")
    if not federated:
        notes.append(
            "no lists of negative and not exhaustively annotated classes: taken as annotated "
            "exhaustively, every class that an image lacks is a negative there"
        )
    groups = _frequency_groups(categories)
    if groups is None:
        notes += _frequency_notes(categories)
    return GroundTruth(
        image_ids, sizes, categories, federated, *lists, **objects, groups=groups, notes=notes
    )


def _objects(dataset: dict, key: str) -> list[dict]:
    """The list of objects under `key`."""
    entries = dataset[key]
    if not isinstance(entries, (list, tuple)):
        raise DataError(f"{key!r} must be a list, got {entries!r:.60}")
    if set(map(type, entries)) - {dict}:
        place = next(i for i, entry in enumerate(entries) if not isinstance(entry, dict))
        raise DataError(f"{key!r} must hold objects, entry {place} is {entries[place]!r:.60}")
    return entries


def _select_categories(categories: list[dict], category_ids: Sequence[int] | None) -> list[dict]:
    ids = _integers([c.get("id") for c in categories], "category ids").tolist()
    by_id = dict(zip(ids, categories, strict=True))
    if len(by_id) < len(ids):
        again = Counter(ids).most_common(1)[0][0]
        raise DataError(f"category {again} is in the file more than once")
    if category_ids is not None and len(set(category_ids)) < len(category_ids):
        again = Counter(category_ids).most_common(1)[0][0]
        raise ValueError(f"category_ids has {again} more than once")
    if category_ids is None:
        return [by_id[i] for i in sorted(by_id)]
    missing = [i for i in category_ids if i not in by_id]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(category_ids)} category ids are not in the file, the first "
            f"is {missing[0]}; the file has {len(by_id)} categories"
        )
    return [by_id[i] for i in category_ids]


def _frequency_groups(categories: list[dict]) -> list[str] | None:
    groups = [c.get("frequency") for c in categories]
    return groups if all(g in GROUPS for g in groups) else None


def _frequency_notes(categories: list[dict]) -> list[str]:
    """A note if only some categories have a frequency."""
    lacking = [c for c in categories if c.get("frequency") not in GROUPS]
    if len(lacking) == len(categories):
        return []
    first = lacking[0]
    return [
        f"{len(lacking)} of {len(categories)} categories have no 'frequency' of "
        f"{', '.join(GROUPS)}, so there are no groups; the first is category {first['id']} with "
        f"{first.get('frequency')!r:.60}"
    ]


def _image_id(image: dict) -> int:
    image_id = image.get("id")
    if not isinstance(image_id, int) or isinstance(image_id, bool):
        raise DataError(f"an image id must be a whole number, got {image_id!r}")
    return image_id


def _integers(values: list, what: str) -> np.ndarray:
    """(N,) int64."""
    bad = set(map(type, values)) - {int}
    if bad:
        value = next(v for v in values if type(v) in bad)
        raise DataError(f"{what} must be whole numbers, got {value!r}")
    try:
        return np.array(values, dtype=np.int64)
    except OverflowError as e:
        raise DataError(f"{what} must be whole numbers of at most 64 bits: {e}") from e


def _image_sizes(images: list[dict]) -> np.ndarray:
    for key in ("height", "width"):
        for image in images:
            size = image.get(key)
            if type(size) is not int or not 0 < size < 1 << 31:
                has = f"the {key} {size!r:.60}" if key in image else f"no {key!r}"
                raise DataError(f"image {image['id']} has {has}; it must be a whole number above 0")
    sizes = [[image["height"], image["width"]] for image in images]
    return np.array(sizes, dtype=np.int32).reshape(-1, 2)


def _listed_pairs(images: list[dict], key: str, classes: np.ndarray, federated: bool) -> np.ndarray:
    """(L,) int64 pairs that the images have under `key`; of the classes that take part."""
    if not federated:
        return np.zeros(0, np.int64)
    try:
        lists = [image[key] for image in images]
    except KeyError:
        lacking = next(image["id"] for image in images if key not in image)
        raise DataError(f"image {lacking} has no '{key}' while others have") from None
    for image, ids in zip(images, lists, strict=True):
        if not isinstance(ids, (list, tuple)):
            raise DataError(f"image {image['id']} has the {key!r} {ids!r:.60}, which is no list")
    of = np.repeat(np.arange(len(images)), list(map(len, lists)))
    category = positions(_integers(list(chain.from_iterable(lists)), f"'{key}'"), classes)
    known = category >= 0
    return np.unique(of[known] * len(classes) + category[known])


def _prepare_annotations(
    fields: dict[str, list], image_ids: np.ndarray, sizes: np.ndarray, classes: np.ndarray
) -> tuple[dict, list[str]]:
    """The columns of the objects, as attributes of `GroundTruth`, and notes."""
    left_out = Counter()
    image, category = _image_and_class(fields, image_ids, classes)
    crowd = np.array(list(map(bool, fields["iscrowd"])), dtype=bool)
    wanted = category >= 0
    left_out["crowd annotations are left out"] = np.count_nonzero(wanted & crowd)
    rows = np.flatnonzero(wanted & ~crowd)
    own = {key: [values[i] for i in rows.tolist()] for key, values in fields.items()}
    boxes = _annotation_boxes(own["bbox"], own["id"])
    masks = [mask or None for mask in own["segmentation"]]
    areas = _annotation_areas(own["area"], own["id"])
    without = np.array([k for k, area in enumerate(own["area"]) if area is None], dtype=np.int64)
    left_out["annotations have no area; it is computed"] = len(without)
    areas[without] = _computed_areas(
        boxes[without],
        [masks[k] for k in without],
        sizes[image[rows[without]]],
        [own["id"][k] for k in without],
    )
    ignore = np.array(list(map(bool, own["ignore"])), dtype=bool)
    # The range of `LVIS.get_ann_ids`; it leaves out an area that is not a number as well.
    counted = (areas > 0) & (areas < np.inf)
    dropped = len(areas) - np.count_nonzero(counted)
    left_out["annotations have an area of 0, below 0 or not finite and are left out"] = dropped
    order = np.lexsort((image[rows], category[rows]))
    order = order[counted[order]]
    columns = {
        "gt_image": image[rows][order].astype(np.int32),
        "gt_class": category[rows][order].astype(np.int32),
        "gt_row": rows[order],
        "annotation_ids": [own["id"][k] for k in order.tolist()],
        "boxes": boxes[order],
        "areas": areas[order],
        "ignore": ignore[order],
        "segmentations": [masks[k] for k in order.tolist()],
    }
    return columns, [f"{n} {what}" for what, n in left_out.items() if n]


def _image_and_class(
    fields: dict[str, list], image_ids: np.ndarray, classes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(N,) places of the image and of the class of each annotation; -1: not among the classes."""
    image = positions(_integers(fields["image_id"], "image ids of annotations"), image_ids)
    if (image < 0).any():
        k = int(np.argmax(image < 0))
        raise DataError(
            f"annotation {fields['id'][k]} is of image {fields['image_id'][k]}, which is not in "
            "the file"
        )
    category = _integers(fields["category_id"], "category ids of annotations")
    return image, positions(category, classes)


def _annotation_boxes(boxes: list, ids: list) -> np.ndarray:
    """(G, 4) float64."""
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        if set(map(len, boxes)) <= {4}:
            # Flat, for numpy takes its time over lists of lists.
            found = np.array(list(chain.from_iterable(boxes)))
            if found.shape == (4 * len(boxes),) and _are_finite(found):
                return found.astype(np.float64, copy=False).reshape(-1, 4)
    for box, number in zip(boxes, ids, strict=True):
        if box is None:
            raise DataError(f"annotation {number} has no 'bbox'")
        fine = False
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            own = np.array(box)
            fine = own.shape == (4,) and _are_finite(own)
        if not fine:
            raise DataError(f"annotation {number} has the bbox {box!r:.60}, not 4 numbers")
    return np.array(boxes, dtype=np.float64).reshape(-1, 4)


def _are_finite(values: np.ndarray) -> bool:
    """Whether all are numbers, none of them NaN or infinite."""
    return values.dtype.kind in "iuf" and bool(np.isfinite(values).all())


def _annotation_areas(areas: list, ids: list) -> np.ndarray:
    """(G,) float64, NaN where an annotation has none."""
    for kind in set(map(type, areas)):
        if kind is bool or not issubclass(kind, (numbers.Real, type(None))):
            k = next(k for k, area in enumerate(areas) if type(area) is kind)
            raise DataError(f"annotation {ids[k]} has the area {areas[k]!r:.60}, not a number")
    try:
        # None is NaN in an array of floats.
        return np.array(areas, dtype=np.float64)
    except OverflowError as e:
        raise DataError(f"an annotation has an area beyond the range of float64: {e}") from e


def _computed_areas(boxes: np.ndarray, masks: list, sizes: np.ndarray, ids: list) -> np.ndarray:
    """(M,) square pixels of the masks, or of the boxes where there is no mask.

    Args:
        boxes: (M, 4) XYWH.
        masks: of M annotations; None: none.
        sizes: (M, 2) height and width of their images.
        ids: of the annotations.
    """
    areas = boxes[:, 2] * boxes[:, 3]
    masked = [k for k, mask in enumerate(masks) if mask]
    own = [masks[k] for k in masked]
    rles = read_masks(own, sizes[masked], [ids[k] for k in masked])
    # One by one: pycocotools counts in 8 bits, see `predictions.MASKS`.
    areas[masked] = [mask_utils.area(rle) for rle in rles]
    return areas


def positions(ids: np.ndarray, known: np.ndarray) -> np.ndarray:
    """(N,) int, the place of each id in `known`, which are unique; -1: it is not there."""
    if not len(known) or not len(ids):
        return np.full(len(ids), -1)
    low, high = int(known.min()), int(known.max())
    if high - low < _TABLE_SIZE:
        # One entry more at either end, for ids outside the range.
        table = np.full(high - low + 3, -1)
        table[known - low + 1] = np.arange(len(known))
        return table[np.clip(ids, low - 1, high + 1) - (low - 1)]
    order = np.argsort(known)
    at = np.minimum(np.searchsorted(known, ids, sorter=order), len(known) - 1)
    return np.where(known[order[at]] == ids, order[at], -1)
