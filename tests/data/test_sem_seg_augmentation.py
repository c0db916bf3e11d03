"""Augmentation of semantic segmentation, against Detectron2's and plain loops."""

import colorsys

import numpy as np
import pytest
from detectron2.data import transforms as T

from lt_det.data.build import seeded_random
from lt_det.data.sem_seg_augmentation import (
    CropWithClassLimit,
    Distortion,
    PhotometricDistortion,
    ResizeByRandomRatio,
    build_sem_seg_augmentation,
    distort,
)
from lt_det.engine import load_config
from lt_det.errors import ConfigError


def random_image(seed, height=20, width=30):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def config(*options):
    return load_config("", list(options))


# ---- resize ----------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling, sizes", [("choice", (24, 31, 40)), ("range", (24, 40))])
@pytest.mark.parametrize("limit", [45, 1000])
def test_without_a_ratio_sizes_are_detectron2s(sampling, sizes, limit):
    ours = ResizeByRandomRatio(sizes, limit, sampling, (1.0, 1.0))
    image, seen = random_image(0), set()
    # What Detectron2 makes of each size that may be drawn.
    choices = range(sizes[0], sizes[1] + 1) if sampling == "range" else sizes
    expected = {
        T.ResizeShortestEdge(k, limit, "choice").get_transform(image).apply_image(image).tobytes()
        for k in choices
    }
    with seeded_random(1):
        for _ in range(400):  # 17 sizes: the chance to miss one is below 1e-9
            seen.add(ours.get_transform(image).apply_image(image).tobytes())
    assert seen == expected


def mmseg_size(height, width, ratio, scale=(2048, 512)):
    """What mmcv's rescale_size makes of a scale times a ratio, in whole pixels."""
    long, short = (int(edge * ratio) for edge in scale)
    factor = min(long / max(height, width), short / min(height, width))
    return int(height * factor + 0.5), int(width * factor + 0.5)


@pytest.mark.parametrize("height, width", [(480, 640), (640, 427), (100, 900)])
def test_the_ratio_multiplies_both_sizes_as_in_mmsegmentation(height, width, monkeypatch):
    image = np.zeros((height, width, 3), np.uint8)
    resize = ResizeByRandomRatio((512,), 2048, "choice", (0.5, 2.0))
    for ratio in (0.5, 0.7317, 1.0, 1.337, 2.0):
        monkeypatch.setattr(np.random, "uniform", lambda low, high, r=ratio: r)
        transform = resize.get_transform(image)
        assert (transform.new_h, transform.new_w) == mmseg_size(height, width, ratio)


def test_ratios_cover_their_range_evenly():
    image = np.zeros((100, 150, 3), np.uint8)
    resize = ResizeByRandomRatio((100,), 10_000, "choice", (0.5, 2.0))
    with seeded_random(3):
        sizes = [resize.get_transform(image).new_h for _ in range(2000)]
    assert min(sizes) >= 50 and max(sizes) <= 200
    # Uniform from 0.5 to 2: mean 1.25, standard error 0.43 / sqrt(2000) = 0.01.
    assert abs(np.mean(sizes) - 125) < 4 and abs(np.median(sizes) - 125) < 6


def test_size_zero_is_the_images_own():
    image = np.zeros((40, 60, 3), np.uint8)
    assert isinstance(
        build_sem_seg_augmentation(config("INPUT.MIN_SIZE_TEST", "0"), False)[0].get_transform(
            image
        ),
        T.NoOpTransform,
    )
    resize = ResizeByRandomRatio((0,), 50, "choice", (0.5, 0.5))
    assert (resize.get_transform(image).new_h, resize.get_transform(image).new_w) == (20, 30)


# ---- crop ------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0.3, 0.5, 0.75, 1.0])
@pytest.mark.parametrize(
    "kind, size",
    [("absolute", (12, 40)), ("absolute_range", (8, 16)), ("relative_range", (0.3, 0.5))],
)
def test_crops_are_detectron2s(kind, size, limit):
    image = random_image(0)
    reference = T.RandomCrop_CategoryAreaConstraint(kind, size, limit, ignored_category=255)
    ours = CropWithClassLimit(T.RandomCrop(kind, size), limit)
    rng = np.random.default_rng(4)
    for k in range(30):
        classes = np.repeat(rng.choice([0, 1, 2, 254, 255], (20, 6)), 5, axis=1).astype(np.uint8)
        classes[:, : 5 * (k % 7)] = [0, 255][k % 2]
        crops = []
        for augmentation in (ours, reference):
            with seeded_random(k):
                crops.append(augmentation.get_transform(image, classes))
        assert vars(crops[0]) == vars(crops[1])


def test_a_crop_that_one_class_fills_is_drawn_again():
    classes = np.zeros((10, 100), np.uint8)
    classes[:, 90:] = 1
    classes[:, :50] = 255  # ignored pixels neither count nor are a class
    crop = CropWithClassLimit(T.RandomCrop("absolute", (10, 20)), 0.75)
    shares = []
    with seeded_random(5):
        for _ in range(50):
            cut = crop.get_transform(classes, classes).apply_segmentation(classes)
            shares.append((cut == 1).sum() / max((cut != 255).sum(), 1))
    # 5 of 81 places (from 76 to 80) are mixed enough: ten attempts find one with probability 0.47,
    # so 23.5 of 50 with a standard deviation of 3.5. Without a limit it would be 3.
    assert sum(0.25 < share < 0.75 for share in shares) > 12


# ---- colour ----------------------------------------------------------------------------------


def reference(image, d):
    """Pixel by pixel with floats and `colorsys`, in RGB."""
    result = np.empty_like(image)

    def line(value, factor, offset=0.0):
        return int(min(max(value * factor + offset, 0), 255))

    for place in np.ndindex(image.shape[:2]):
        rgb = [line(int(v), 1, d.brightness) for v in image[place]]
        if not d.contrast_last:
            rgb = [line(v, d.contrast) for v in rgb]
        if d.saturation != 1 or d.hue:
            h, s, v = colorsys.rgb_to_hsv(*(v / 255 for v in rgb))
            h, s = (h + d.hue) % 1, min(s * d.saturation, 1)
            rgb = [255 * v for v in colorsys.hsv_to_rgb(h, s, v)]
        if d.contrast_last:
            rgb = [line(v, d.contrast) for v in rgb]
        result[place] = rgb
    return result


ALL = Distortion(brightness=-20.0, contrast=1.4, saturation=0.6, hue=-0.08)


@pytest.mark.parametrize(
    "distortion, tolerance",
    [
        (Distortion(), 0),
        (Distortion(brightness=31.9), 0),
        (Distortion(contrast=0.55), 0),
        (Distortion(contrast=1.45, brightness=-30.0), 0),
        (Distortion(contrast=1.45, brightness=-30.0, contrast_last=True), 0),
        # A step of hue, one of 255 in a turn, is up to 6 levels of a channel. The hue is cut to
        # whole steps (6), its change rounded (3), the saturation cut (1), the result cut (1).
        (Distortion(hue=0.1), 11),
        (Distortion(saturation=1.5), 8),
        (Distortion(saturation=0.5), 8),
        (ALL, 11),
        # Contrast afterwards multiplies that.
        (Distortion(**{**vars(ALL), "contrast_last": True}), 16),
    ],
)
def test_distortions_are_those_of_a_plain_loop(distortion, tolerance):
    image = random_image(6, 16, 16)
    image[0, :3] = [[0, 0, 0], [255, 255, 255], [90, 90, 90]]
    before = image.copy()
    swapped = distort(np.ascontiguousarray(image[:, :, ::-1]), distortion, "BGR")[:, :, ::-1]
    assert np.abs(swapped.astype(int) - reference(image, distortion)).max() <= tolerance
    found = distort(image, distortion, "RGB")
    assert found.dtype == np.uint8
    error = np.abs(found.astype(int) - reference(image, distortion))
    assert error.max() <= tolerance
    assert np.array_equal(image, before)


@pytest.mark.parametrize("distortion", [ALL, Distortion(hue=0.05), Distortion(contrast=1.2)])
def test_the_order_of_the_channels_changes_nothing_else(distortion):
    image = random_image(7)
    as_bgr = distort(np.ascontiguousarray(image[:, :, ::-1]), distortion, "BGR")
    error = np.abs(as_bgr[:, :, ::-1].astype(int) - distort(image, distortion, "RGB"))
    # Hues are rounded in the other direction: twice the tolerance against the plain loop above.
    assert error.max() <= (22 if distortion.hue else 0)


def test_grey_stays_grey():
    image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
    assert np.array_equal(distort(image, Distortion(hue=0.1, saturation=1.5), "BGR"), image)


def test_the_published_ranges_are_drawn():
    with seeded_random(8):
        draws = [PhotometricDistortion("BGR").draw() for _ in range(4000)]
    ranges = {"brightness": (-32, 32), "contrast": (0.5, 1.5), "saturation": (0.5, 1.5),
              "hue": (-0.1, 0.1)}  # fmt: skip
    none = vars(Distortion())
    for key, (low, high) in ranges.items():
        values = np.array([getattr(d, key) for d in draws])
        changed = values[values != none[key]]
        # Half of 4000, standard deviation 32; the ends are reached up to 1 % of the range.
        assert abs(len(changed) - 2000) < 160
        margin = 0.01 * (high - low)
        assert low <= changed.min() < low + margin and high - margin < changed.max() <= high
    assert abs(sum(d.contrast_last for d in draws) - 2000) < 160


def test_classes_stay_as_they_are():
    classes = np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8)
    given = T.AugInput(random_image(9), sem_seg=classes.copy())
    with seeded_random(1):
        T.AugmentationList([PhotometricDistortion("RGB")])(given)
    assert np.array_equal(given.sem_seg, classes)
    assert not np.array_equal(given.image, random_image(9))


# ---- from the configuration ------------------------------------------------------------------

CROP = ("INPUT.CROP.ENABLED", "True", "INPUT.CROP.TYPE", "absolute", "INPUT.CROP.SIZE", "(16,16)")


def test_what_the_configuration_says_is_built_in_mmsegmentations_order():
    steps = build_sem_seg_augmentation(config(*CROP, "DATALOADER.LT.SEM_SEG.COLOR", "True"), True)
    assert [type(step) for step in steps] == [
        ResizeByRandomRatio, CropWithClassLimit, T.RandomFlip, PhotometricDistortion
    ]  # fmt: skip
    plain = build_sem_seg_augmentation(config("INPUT.RANDOM_FLIP", "none"), True)
    assert [type(step) for step in plain] == [ResizeByRandomRatio]
    flip = build_sem_seg_augmentation(config("INPUT.RANDOM_FLIP", "vertical"), True)[1]
    assert flip.vertical and not flip.horizontal


@pytest.mark.parametrize(
    "options, message",
    [
        (("DATALOADER.LT.SEM_SEG.RATIO", "(0.5,)"), r"SEM_SEG.RATIO is \(0.5,\); it takes two"),
        (("DATALOADER.LT.SEM_SEG.RATIO", "(0.0, 1.0)"), r"SEM_SEG.RATIO is \(0.0, 1.0\)"),
        (("DATALOADER.LT.SEM_SEG.RATIO", "(2.0, 0.5)"), r"SEM_SEG.RATIO is \(2.0, 0.5\)"),
        (("INPUT.MIN_SIZE_TRAIN_SAMPLING", "all"), "SAMPLING is 'all'; accepted are choice, range"),
        (("DATALOADER.LT.SEM_SEG.RATIO", "('a', 'b')"), r"SEM_SEG.RATIO is \('a', 'b'\)"),
        (("INPUT.MAX_SIZE_TRAIN", "0"), "INPUT.MAX_SIZE_TRAIN is 0; it is at least 1"),
        (("INPUT.MIN_SIZE_TRAIN", "(-1,)"), r"INPUT.MIN_SIZE_TRAIN is \(-1,\)"),
        (
            ("INPUT.MIN_SIZE_TRAIN_SAMPLING", "range", "INPUT.MIN_SIZE_TRAIN", "(9, 5)"),
            r"INPUT.MIN_SIZE_TRAIN is \(9, 5\).*'range'",
        ),
        (("INPUT.RANDOM_FLIP", "both"), "RANDOM_FLIP is 'both'; accepted are horizontal, vertical"),
        ((*CROP, "INPUT.CROP.TYPE", "square"), "INPUT.CROP.TYPE is 'square'; accepted are absolu"),
        ((*CROP, "INPUT.CROP.SIZE", "(16, 0)"), r"INPUT.CROP.SIZE is \(16, 0\)"),
        ((*CROP, "INPUT.CROP.TYPE", "relative"), r"SIZE is \(16, 16\).*'relative'.*up to 1"),
        (
            (*CROP, "INPUT.CROP.TYPE", "absolute_range", "INPUT.CROP.SIZE", "(16, 8)"),
            r"SIZE is \(16, 8\).*least and the largest",
        ),
        ((*CROP, "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA", "0.0"), "MAX_AREA is 0.0; it is a share"),
        (
            ("DATALOADER.LT.SEM_SEG.COLOR", "True", "INPUT.FORMAT", "L"),
            "SEM_SEG.COLOR changes images in RGB or BGR, but INPUT.FORMAT is 'L'",
        ),
    ],
)
def test_values_out_of_range_are_errors(options, message):
    with pytest.raises(ConfigError, match=message):
        build_sem_seg_augmentation(config(*options), True)
