"""What the values of a label map mean, and which files are none."""

import numpy as np
import pytest
from PIL import Image

from lt_det.data.datasets.label_png import class_map, read_class_map
from lt_det.errors import DataError


@pytest.mark.parametrize("zero", [False, True])
def test_every_value_becomes_its_class(zero):
    num_classes = 20
    values = np.append(np.arange(num_classes + zero), 255).astype(np.uint8)[None]
    expected = [255] * zero + list(range(num_classes)) + [255]
    classes = class_map(values, num_classes, zero)
    assert classes.tolist() == [expected] and classes.dtype == np.uint8


@pytest.mark.parametrize("zero, num_classes", [(False, 255), (True, 254)])
def test_as_many_classes_as_a_byte_can_hold(zero, num_classes):
    values = np.arange(256, dtype=np.uint8)[None]
    expected = [255] * zero + list(range(num_classes)) + [255]
    assert class_map(values, num_classes, zero).tolist() == [expected]


def test_a_value_beyond_the_classes_is_named_with_what_is_accepted():
    values = np.array([[0, 9, 7], [255, 2, 7]], dtype=np.uint8)
    with pytest.raises(DataError, match=r"value 7 is .*of 5 classes.*0\.\.4 .*set zero_is_unlab"):
        class_map(values, 5, False)
    with pytest.raises(DataError) as error:
        class_map(values, 6, True)
    assert "value 7 is beyond the class list of 6 classes, which are the values 1..6 (255 is" in (
        str(error.value)
    )
    assert "zero_is_unlabelled" not in str(error.value)
    assert class_map(values, 10, False) is values


def test_a_file_gives_its_classes_and_a_palette_its_indices(tmp_path):
    values = np.array([[0, 1, 2], [3, 255, 1]], dtype=np.uint8)
    grey, palette = Image.fromarray(values), Image.fromarray(values)
    palette.putpalette([(7 * k) % 256 for k in range(768)])
    for name, image in (("grey", grey), ("palette", palette)):
        image.save(tmp_path / f"{name}.png")
        found = read_class_map(tmp_path / f"{name}.png", 3, True)
        assert found.tolist() == [[255, 0, 1], [2, 255, 0]]
        assert read_class_map(tmp_path / f"{name}.png", 4).tolist() == values.tolist()


@pytest.mark.parametrize(
    "pixels, reason",
    [
        (np.zeros((3, 4, 3), np.uint8), "has mode RGB; a label map is an 8-bit PNG"),
        (np.zeros((3, 4), np.uint16), "has mode I;16"),
        (np.zeros((3, 4), bool), "has mode 1;"),
        (np.full((3, 4), 9, np.uint8), "value 9 is beyond the class list of 4 classes"),
        (None, "cannot be read as a label map"),
    ],
)
def test_a_file_that_is_no_label_map_is_named(tmp_path, pixels, reason):
    path = tmp_path / "bad.png"
    if pixels is None:
        path.write_bytes(b"\x89PNG but not really")
    else:
        Image.fromarray(pixels).save(path)
    with pytest.raises(DataError) as error:
        read_class_map(path, 4)
    assert str(error.value).startswith(f"label map {path}: {reason}")
