"""Decoding, crops and colours of one image at a time."""

import io

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data.detection_utils import read_image
from PIL import Image
from torchvision import transforms as T
from torchvision.transforms import functional as F

from lt_det.config import add_lt_config
from lt_det.data.build import SeededDataset, seeded_random
from lt_det.data.image_decode import (
    UPRIGHT,
    Box,
    decode,
    decode_crop,
    draft_scale,
    open_image,
    stored_box,
    to_tensor,
    upright,
)
from lt_det.data.image_mapper import (
    ImageLabelMapper,
    jitter_color,
    jitter_factors,
    random_crop_box,
)
from lt_det.data.samplers import SampleKey
from lt_det.errors import ConfigError, DataError

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def picture(width=300, height=200, seed=0):
    """Smooth colours with some texture, as a photograph has."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float64)
    pixels = pixels + rng.normal(0, 4, (height, width, 1))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def record_of(path, label=3):
    return {"file_name": str(path), "image_id": 77, "label": label}


def saved(folder, image, name="photo.jpg", **kwargs):
    image.save(folder / name, **kwargs)
    return record_of(folder / name)


def as_opened(image, **kwargs):
    """A JPEG file of the image, opened and not decoded."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90, **kwargs)
    return Image.open(io.BytesIO(file.getvalue()))


def eval_mapper(**kwargs):
    return ImageLabelMapper(is_train=False, **kwargs)


def train_mapper(**kwargs):
    return ImageLabelMapper(is_train=True, **kwargs)


# ---- crops ---------------------------------------------------------------------------------


@pytest.mark.parametrize("width,height", [(500, 375), (375, 500), (600, 90), (33, 40)])
def test_crops_have_the_distribution_of_torchvisions(width, height):
    draws = 4000
    rng = np.random.RandomState(0)
    boxes = [random_crop_box(height, width, SCALE, RATIO, rng) for _ in range(draws)]
    ours = np.array([(b.top, b.left, *b.size) for b in boxes], dtype=float)
    blank = Image.new("L", (width, height))
    with seeded_random(1):
        params = T.RandomResizedCrop.get_params
        theirs = np.array([params(blank, list(SCALE), list(RATIO)) for _ in range(draws)], float)
    for column in range(4):
        # Two-sample Kolmogorov-Smirnov: 1.95 sqrt(2 / n) is passed once in a thousand.
        grid = np.unique(np.concatenate([ours[:, column], theirs[:, column]]))
        shares = [
            np.searchsorted(np.sort(x[:, column]), grid, "right") / draws for x in (ours, theirs)
        ]
        assert np.abs(shares[0] - shares[1]).max() < 1.95 * np.sqrt(2 / draws)
    areas = [(x[:, 2] * x[:, 3]).mean() for x in (ours, theirs)]
    assert abs(areas[0] / areas[1] - 1) < 0.04
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, 0] + ours[:, 2] <= height).all() and (ours[:, 1] + ours[:, 3] <= width).all()


@pytest.mark.parametrize("width,height", [(1000, 20), (20, 1000), (100, 100)])
def test_an_image_that_no_crop_fits_gives_its_middle(width, height):
    class TooLarge:
        def uniform(self, low, high):
            return high * 9

    box = random_crop_box(height, width, SCALE, RATIO, TooLarge())
    # A range of areas that no crop has leaves torchvision its fallback too.
    top, left, h, w = T.RandomResizedCrop.get_params(
        Image.new("L", (width, height)), [9.0, 9.1], list(RATIO)
    )
    assert box == Box(left, top, left + w, top + h)


# ---- decoding ------------------------------------------------------------------------------


def test_the_scale_keeps_the_resolution_of_the_output():
    boxes = {447: 1, 448: 2, 895: 2, 896: 4, 1792: 8, 9000: 8, 100: 1}
    assert {w: draft_scale(Box(0, 0, w, 10_000), 224) for w in boxes} == boxes
    assert draft_scale(Box(0, 0, 10_000, 500), 224) == 2


@pytest.mark.parametrize(
    "box", [(0, 0, 803, 601), (100, 37, 700, 599), (3, 5, 803, 600), (401, 301, 501, 401)]
)
def test_a_scaled_decoding_is_close_to_a_full_one(box):
    image = picture(803, 601)  # sides that no scale divides
    full = as_opened(image).convert("RGB").crop(box).resize((64, 64), Image.Resampling.BILINEAR)
    opened = as_opened(image)
    ours = decode_crop(opened, Box(*box), 64)
    assert ours.size == (64, 64) and ours.mode == "RGB"
    # What was decoded has fewer pixels wherever the crop allows it.
    scale = draft_scale(Box(*box), 64)
    assert scale == {100: 1, 600: 8, 800: 8, 803: 8}[box[2] - box[0]]
    assert opened.size == (-(-803 // scale), -(-601 // scale))
    difference = np.abs(np.asarray(ours, int) - np.asarray(full, int))
    assert difference.mean() < 1.5 and np.percentile(difference, 99) < 8
    # A box that is off by a pixel of the decoded image shows: the bound above means something.
    x, y = (min(box[0] + 16, 803 - 64), min(box[1] + 16, 601 - 64))
    moved = (x, y, max(box[2], x + 64), max(box[3], y + 64))
    off = as_opened(image).convert("RGB").crop(moved).resize((64, 64), Image.Resampling.BILINEAR)
    assert np.abs(np.asarray(off, int) - np.asarray(full, int)).mean() > 3


def test_an_unscaled_crop_differs_from_torchvisions_at_the_border_alone():
    image = picture(300, 200)
    box = Box(40, 30, 240, 180)
    ours = np.asarray(decode_crop(as_opened(image), box, 100), int)
    cropped = as_opened(image).convert("RGB").crop(box)
    theirs = np.asarray(cropped.resize((100, 100), Image.Resampling.BILINEAR), int)
    # The filter looks one and a half pixels of the output beyond the crop.
    np.testing.assert_array_equal(ours[2:-2, 2:-2], theirs[2:-2, 2:-2])


@pytest.mark.parametrize("orientation", [1, *UPRIGHT])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_orientation_is_that_of_detectron2(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[274] = orientation
    record = saved(tmp_path, picture(64, 40), f"photo.{suffix}", exif=exif)
    theirs = read_image(record["file_name"], "RGB")
    sample = eval_mapper(augment="cifar")(record)
    np.testing.assert_array_equal(sample["image"], theirs.transpose(2, 0, 1))
    assert (sample["height"], sample["width"]) == theirs.shape[:2]
    # And a crop of the upright image is what is cut out.
    box = Box(4, 6, 24, 26)
    with open_image(record["file_name"]) as (image, found):
        assert found == orientation
        crop = np.asarray(decode_crop(image, box, 20, found))
    np.testing.assert_array_equal(crop, theirs[6:26, 4:24])


@pytest.mark.parametrize("orientation", [1, *UPRIGHT])
def test_a_box_and_its_stored_box_hold_the_same_pixels(orientation):
    stored = picture(31, 23)
    turned = upright(stored, orientation)
    box = Box(3, 5, 14, 21)
    there = stored.crop(stored_box(box, 23, 31, orientation))
    np.testing.assert_array_equal(upright(there, orientation), turned.crop(box))


def gray_16(width, height):
    ramp = np.linspace(0, 65535, width * height).reshape(height, width).astype(np.uint16)
    return Image.fromarray(ramp), (ramp >> 8).astype(np.uint8)


def test_every_mode_becomes_rgb(tmp_path):
    image = picture(40, 30)
    expected = {}
    for name, mode in (("gray.png", "L"), ("alpha.png", "RGBA"), ("palette.png", "P")):
        image.convert(mode).save(tmp_path / name)
        expected[name] = np.asarray(image.convert(mode).convert("RGB"))
    image.convert("CMYK").save(tmp_path / "cmyk.tif")
    expected["cmyk.tif"] = np.asarray(image.convert("CMYK").convert("RGB"))
    deep, upper_bits = gray_16(40, 30)
    deep.save(tmp_path / "deep.png")
    expected["deep.png"] = np.repeat(upper_bits[:, :, None], 3, axis=2)
    for name, pixels in expected.items():
        sample = eval_mapper(augment="cifar")(record_of(tmp_path / name))
        np.testing.assert_array_equal(sample["image"], pixels.transpose(2, 0, 1), err_msg=name)
        # A crop of the whole image, whose aspect ratio this is; nothing is left to chance.
        whole = dict(augment="crop", scale=(1.0, 1.0), ratio=(4 / 3, 4 / 3), flip=False)
        small = train_mapper(size=16, **whole)(record_of(tmp_path / name))["image"]
        assert small.shape == (3, 16, 16), name
        # Averages over fewer pixels: within a few grey levels.
        np.testing.assert_allclose(small.float().mean((1, 2)), pixels.mean((0, 1)), atol=4)


def test_gray_and_cmyk_jpeg_files_are_cropped_like_others(tmp_path):
    image = picture(640, 480)
    for mode in ("L", "CMYK"):
        record = saved(tmp_path, image.convert(mode), f"{mode}.jpg", quality=95)
        with open_image(record["file_name"]) as (opened, orientation):
            ours = np.asarray(decode_crop(opened, Box(0, 0, 640, 480), 32, orientation), int)
        full = decode(Image.open(record["file_name"]))
        full = np.asarray(full.resize((32, 32), Image.Resampling.BILINEAR), int)
        assert np.abs(ours - full).mean() < 2, mode


# ---- mapper --------------------------------------------------------------------------------


@pytest.mark.parametrize("width,height", [(500, 375), (333, 500), (257, 256), (100, 80)])
def test_test_images_are_those_of_torchvision(tmp_path, width, height):
    record = saved(tmp_path, picture(width, height))
    image = Image.open(record["file_name"]).convert("RGB")
    theirs = F.pil_to_tensor(T.Compose([T.Resize(256), T.CenterCrop(224)])(image))
    sample = eval_mapper()(record)
    assert torch.equal(sample.pop("image"), theirs)
    assert sample == {**record, "height": height, "width": width}
    assert torch.equal(train_mapper(augment="none")(record)["image"], theirs)


def test_training_crops_vary_and_come_from_the_seed(tmp_path):
    records = [saved(tmp_path, picture(400, 300))]
    dataset = SeededDataset(records, train_mapper(size=48, resize=48, jitter=(0.4, 0.4, 0.4)))
    keys = [SampleKey(0, 0, p) for p in range(12)]
    images = [dataset[key]["image"] for key in keys]
    assert all(i.shape == (3, 48, 48) and i.dtype == torch.uint8 for i in images)
    assert len({i.numpy().tobytes() for i in images}) == 12
    assert all(torch.equal(dataset[k]["image"], i) for k, i in zip(keys, images, strict=True))
    dataset.seed = 1
    assert not torch.equal(dataset[keys[0]]["image"], images[0])


def test_flips_are_fair_and_can_be_switched_off(tmp_path):
    ramp = np.repeat(np.linspace(0, 255, 64, dtype=np.uint8)[None, :, None], 64, axis=0)
    record = saved(tmp_path, Image.fromarray(np.repeat(ramp, 3, axis=2)), "ramp.png")

    def mirrored(flip, draws=400):
        mapper = train_mapper(size=16, resize=16, flip=flip)
        with seeded_random(2):
            images = [mapper(record)["image"] for _ in range(draws)]
        return np.mean([int(i[0, 8, 0]) > int(i[0, 8, -1]) for i in images])

    assert abs(mirrored(True) - 0.5) < 4 * 0.5 / np.sqrt(400)
    assert mirrored(False) == 0


def test_channel_order_follows_the_format(tmp_path):
    record = saved(tmp_path, picture(), "photo.png")
    rgb, bgr = (eval_mapper(image_format=f)(record)["image"] for f in ("RGB", "BGR"))
    assert torch.equal(rgb, bgr.flip(0)) and not torch.equal(rgb, bgr)
    images = []
    for image_format in ("RGB", "BGR"):
        with seeded_random(3):
            mapper = train_mapper(image_format=image_format, jitter=(0.4, 0.4, 0.4))
            images.append(mapper(record)["image"])
    assert torch.equal(images[0], images[1].flip(0))


def test_small_images_are_padded_cropped_and_flipped(tmp_path):
    image = picture(32, 32)
    record = saved(tmp_path, image, "small.png")
    padded = np.pad(np.asarray(image), ((4, 4), (4, 4), (0, 0))).transpose(2, 0, 1)
    crops = {
        padded[:, y : y + 32, x : x + 32][:, :, ::step].tobytes(): (y, x, step)
        for y in range(9)
        for x in range(9)
        for step in (1, -1)
    }
    with seeded_random(4):
        drawn = [
            crops[train_mapper(augment="cifar")(record)["image"].numpy().tobytes()]
            for _ in range(200)
        ]
    assert {d[0] for d in drawn} == {d[1] for d in drawn} == set(range(9))
    assert len(set(drawn)) > 80
    plain = eval_mapper(augment="cifar")(record)["image"]
    np.testing.assert_array_equal(plain, np.asarray(image).transpose(2, 0, 1))


# ---- colours -------------------------------------------------------------------------------


def test_jitter_is_torchvisions_for_the_same_factors():
    image = picture(50, 40)
    theirs = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation)
    for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
        factors = [(k, 0.7 + 0.2 * k) for k in order]
        expected = image
        for k, factor in factors:
            expected = theirs[k](expected, factor)
        np.testing.assert_array_equal(jitter_color(image, factors), expected)
    np.testing.assert_array_equal(jitter_color(image, []), image)


def test_jitter_factors_are_uniform_and_their_order_random():
    rng = np.random.RandomState(0)
    draws = [jitter_factors((0.4, 0.2, 1.5), rng) for _ in range(3000)]
    for k, (low, high) in enumerate([(0.6, 1.4), (0.8, 1.2), (0.0, 2.5)]):
        factors = np.sort([dict(d)[k] for d in draws])
        uniform = np.linspace(low, high, 3000)
        # Kolmogorov-Smirnov: 1.95 / sqrt(n) is passed once in a thousand.
        assert np.abs(factors - uniform).max() < 1.95 / np.sqrt(3000) * (high - low)
    orders = [tuple(k for k, _ in d) for d in draws]
    counts = [orders.count(order) for order in set(orders)]
    assert len(counts) == 6 and min(counts) > 400
    assert jitter_factors((0, 0, 0), rng) == []
    assert [k for k, _ in jitter_factors((0, 0.1, 0), rng)] == [1]


# ---- bad input -----------------------------------------------------------------------------


@pytest.mark.parametrize("augment", ["crop", "cifar", "none"])
@pytest.mark.parametrize("fault", ["missing", "truncated", "no image", "broken header"])
def test_a_bad_image_is_named(tmp_path, augment, fault):
    record = saved(tmp_path, picture(), "photo.ppm" if fault == "broken header" else "photo.jpg")
    path = tmp_path / record["file_name"]
    if fault == "missing":
        path.unlink()
    elif fault == "truncated":
        path.write_bytes(path.read_bytes()[:-900])
    elif fault == "no image":
        path.write_text("hello")
    else:
        path.write_bytes(b"P6 3x0 200 255\n")
    with pytest.raises(DataError, match=r"photo.\w+ \(image id 77\).*BAD_IMAGE"):
        train_mapper(augment=augment)(record)


def test_bad_images_in_training_are_fatal_or_counted(tmp_path, caplog):
    records = [saved(tmp_path, picture(seed=k), f"{k}.jpg") for k in range(4)]
    (tmp_path / "2.jpg").write_text("hello")
    mapper = train_mapper(size=8, resize=8)
    with pytest.raises(DataError, match="2.jpg"):
        SeededDataset(records, mapper)[SampleKey(2, 0, 0)]
    dataset = SeededDataset(records, mapper, bad_image="skip")
    assert dataset[SampleKey(2, 0, 0)]["file_name"] == records[3]["file_name"]
    assert dataset.skipped == 1 and "2.jpg" in caplog.text


@pytest.mark.parametrize(
    "kwargs,message",
    [
        ({"augment": "imagenet"}, "IMAGE.AUGMENT is 'imagenet'; accepted are crop, cifar, none"),
        ({"image_format": "L"}, "INPUT.FORMAT is 'L'.*'RGB' or 'BGR'"),
        ({"size": 300}, "IMAGE.SIZE 300 .*IMAGE.RESIZE, 256"),
        ({"size": 0}, "IMAGE.SIZE 0"),
        ({"scale": (0.5, 0.1)}, r"IMAGE.SCALE is \(0.5, 0.1\).*up to 1"),
        ({"scale": (0.5, 1.5)}, "IMAGE.SCALE"),
        ({"ratio": (0.0, 1.0)}, "IMAGE.RATIO"),
        ({"jitter": (0.4, 0.4)}, "IMAGE.JITTER.*brightness, contrast and saturation"),
        ({"jitter": (0.4, 0.4, -1)}, "IMAGE.JITTER"),
        ({"pad": -1}, "IMAGE.PAD -1"),
    ],
)
def test_values_out_of_range_name_their_key(kwargs, message):
    with pytest.raises(ConfigError, match=message):
        train_mapper(**kwargs)


def image_cfg(**keys):
    cfg = add_lt_config(get_cfg())
    node = type(cfg)(
        {
            **{"AUGMENT": "crop", "SIZE": 224, "RESIZE": 256, "SCALE": (0.08, 1.0)},
            **{"RATIO": (0.75, 1.3333), "JITTER": (0.4, 0.4, 0.4), "FLIP": True, "PAD": 4},
            **keys,
        }
    )
    cfg.DATALOADER.LT.IMAGE = node
    return cfg


def test_the_configuration_reaches_the_mapper(tmp_path):
    record = saved(tmp_path, picture())
    cfg = image_cfg(SIZE=40, RESIZE=50)
    cfg.INPUT.FORMAT = "BGR"
    expected = eval_mapper(size=40, resize=50, image_format="BGR")(record)["image"]
    assert torch.equal(ImageLabelMapper(cfg, is_train=False)(record)["image"], expected)
    keys = {"SCALE": (0.2, 0.3), "RATIO": (1.0, 1.0), "JITTER": (0.1, 0.0, 0.2), "FLIP": False}
    mapper = ImageLabelMapper(image_cfg(AUGMENT="cifar", PAD=2, **keys), is_train=True)
    assert (mapper.augment, mapper.pad, mapper.flip) == ("cifar", 2, False)
    assert (mapper.scale, mapper.ratio, mapper.jitter) == tuple(keys.values())[:3]


def test_tensors_have_planes_in_the_order_asked_for():
    image = picture(5, 4)
    pixels = np.asarray(image)
    np.testing.assert_array_equal(to_tensor(image), pixels.transpose(2, 0, 1))
    np.testing.assert_array_equal(to_tensor(image, "BGR"), pixels[..., ::-1].transpose(2, 0, 1))
    assert to_tensor(image).is_contiguous()
