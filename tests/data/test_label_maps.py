"""Label maps: values, conventions, what is refused, and the cache."""

import os
import stat

import numpy as np
import pytest
from PIL import Image

from lt_det.data.datasets import label_maps
from lt_det.data.datasets.label_maps import find_label_maps, read_label_maps
from lt_det.errors import DataError, MissingFileError


def write_map(path, pixels, mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(pixels, dtype=np.uint8))
    if mode == "P":
        image = image.convert("L")
        image.putpalette([(7 * k) % 256 for k in range(768)])
    image.save(path)


@pytest.fixture
def folder(tmp_path):
    """Three maps: 4 x 0 and 2 x 2; 6 x 255; 3 x 1, 2 x 2 and one ignored (in a subfolder)."""
    folder = tmp_path / "maps"
    write_map(folder / "b.png", [[0, 0, 2], [2, 0, 0]])
    write_map(folder / "a.png", [[255] * 3] * 2)
    write_map(folder / "sub" / "c.PNG", [[1, 1, 255], [2, 2, 1]])
    (folder / "readme.txt").write_text("no label map")
    return folder


@pytest.fixture
def decoded(monkeypatch):
    """The files that were decoded."""
    files, histogram = [], label_maps._histogram
    monkeypatch.setattr(label_maps, "_histogram", lambda p: files.append(p) or histogram(p))
    return files


def content(maps):
    sets = [maps.class_sets[i].tolist() for i in range(len(maps))]
    names = [os.path.basename(file) for file in maps.files]
    return names, sets, maps.pixels_of_pair.tolist(), maps.pixels().tolist(), maps.names


def test_counts_by_hand(folder):
    maps = read_label_maps(folder)
    names, sets, pairs, pixels, classes = content(maps)
    assert names == ["a.png", "b.png", "c.PNG"]
    assert sets == [[], [0, 2], [1, 2]]
    assert pairs == [4, 2, 3, 2]
    assert pixels == [4, 3, 4] and maps.pixels().dtype == np.int64
    assert classes == ("class 0", "class 1", "class 2")
    assert maps.class_sets.image_counts().tolist() == [1, 1, 2]


def test_zero_may_mean_unlabelled(folder):
    _, sets, pairs, pixels, classes = content(read_label_maps(folder, zero_is_unlabelled=True))
    assert sets == [[], [1], [0, 1]]
    assert pairs == [2, 3, 2] and pixels == [3, 4]
    assert classes == ("class 0", "class 1")


def test_a_class_list_may_have_classes_that_no_map_holds(folder):
    _, sets, _, pixels, classes = content(read_label_maps(folder, list("abcde")))
    assert sets == [[], [0, 2], [1, 2]]
    assert pixels == [4, 3, 4, 0, 0] and classes == tuple("abcde")


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("mode", ["L", "P"])
def test_counts_are_those_of_a_plain_loop(tmp_path, zero, mode):
    rng = np.random.default_rng(5)
    arrays = [rng.choice([0, 1, 2, 7, 9, 254, 255], (13, 9)) for _ in range(6)]
    for i, array in enumerate(arrays):
        write_map(tmp_path / f"{i}.png", array, mode)
    maps = read_label_maps(tmp_path, zero_is_unlabelled=zero)
    num_classes = 255 - zero
    assert len(maps.names) == num_classes
    for k in range(num_classes):
        holding = [i for i, array in enumerate(arrays) if (array == k + zero).any()]
        assert [i for i in range(6) if k in maps.class_sets[i]] == holding
        assert maps.pixels()[k] == sum((array == k + zero).sum() for array in arrays)


# ---- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize("zero, values", [(False, "0..1"), (True, "1..1")])
def test_a_value_beyond_the_class_list_names_file_value_and_classes(folder, zero, values):
    names = ["a"] if zero else ["a", "b"]
    with pytest.raises(DataError) as error:
        read_label_maps(folder, names, zero_is_unlabelled=zero)
    text = str(error.value)
    assert f"{folder / 'b.png'}: value 2 is beyond the class list of {len(names)} classes" in text
    assert f"the values {values} (255 is ignored)" in text
    assert ("--zero-is-unlabelled" in text) == (not zero)


@pytest.mark.parametrize(
    "image, mode",
    [
        (Image.new("RGB", (4, 4)), "RGB"),
        (Image.new("RGBA", (4, 4)), "RGBA"),
        (Image.new("LA", (4, 4)), "LA"),
        (Image.new("1", (4, 4)), "1"),
        (Image.fromarray(np.full((4, 4), 300, dtype=np.uint16)), "I;16"),
    ],
)
def test_other_modes_are_refused_by_name(folder, image, mode):
    image.save(folder / "odd.png")
    with pytest.raises(DataError) as error:
        read_label_maps(folder)
    assert f"{folder / 'odd.png'} has mode {mode}; " in str(error.value)
    assert "mode L (grey) or P" in str(error.value)


def four_bit_png(path):
    """One row of two grey pixels of four bits each: values 1 and 2."""
    import struct
    import zlib

    def chunk(kind, data):
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    head = struct.pack(">IIBBBBB", 2, 1, 4, 0, 0, 0, 0)
    body = zlib.compress(b"\x00\x12")
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )


def test_other_formats_are_refused_because_they_lose_values(tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "a.png", format="JPEG")
    with pytest.raises(DataError, match="a.png is of the format JPEG; a label map is"):
        read_label_maps(tmp_path)


def test_grey_of_four_bits_is_refused_because_it_would_be_stretched(tmp_path):
    four_bit_png(tmp_path / "small.png")
    with Image.open(tmp_path / "small.png") as image:
        assert list(image.tobytes()) == [17, 34]
    with pytest.raises(DataError, match="small.png has mode L;4"):
        read_label_maps(tmp_path)


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"text"])
def test_a_damaged_file_is_named(folder, damage):
    write_map(folder / "b.png", np.random.default_rng(0).integers(0, 99, (60, 60)))
    (folder / "b.png").write_bytes(damage((folder / "b.png").read_bytes()))
    with pytest.raises(DataError, match="b.png cannot be read as a label map"):
        read_label_maps(folder)


def test_hidden_files_are_no_label_maps(folder):
    (folder / "sub" / "._c.png").write_text("what an archive tool left")
    write_map(folder / ".d.png", [[9]])
    found = [os.path.relpath(path, folder) for path in find_label_maps(folder)]
    assert found == ["a.png", "b.png", os.path.join("sub", "c.PNG")]
    assert read_label_maps(folder).pixels().tolist() == [4, 3, 4]


def test_folders_without_maps(tmp_path):
    with pytest.raises(MissingFileError, match="none does not exist"):
        find_label_maps(tmp_path / "none")
    with pytest.raises(DataError, match=f"folder {tmp_path} holds no label map"):
        read_label_maps(tmp_path)


def test_no_labelled_pixel_needs_a_class_list(tmp_path):
    write_map(tmp_path / "a.png", [[255, 255]])
    with pytest.raises(DataError, match="no pixel of the 1 label maps has a class"):
        read_label_maps(tmp_path)
    assert read_label_maps(tmp_path, ["a"]).pixels().tolist() == [0]


# ---- cache -----------------------------------------------------------------------------------


def test_a_second_call_reads_the_cache_under_any_convention(folder, tmp_path, decoded):
    cache = str(tmp_path / "cache")
    first = content(read_label_maps(folder, cache_dir=cache))
    assert len(decoded) == 3
    assert content(read_label_maps(folder, cache_dir=cache)) == first
    other = content(read_label_maps(folder, list("xyz"), zero_is_unlabelled=True, cache_dir=cache))
    assert len(decoded) == 3
    assert other == content(read_label_maps(folder, list("xyz"), zero_is_unlabelled=True))
    (file,) = os.listdir(cache)
    assert file.startswith("maps-") and file.endswith(".label_maps.npz")
    # Data folders are shared: as readable as any other file of this user.
    mode = os.stat(os.path.join(cache, file)).st_mode
    assert stat.S_IMODE(mode) == stat.S_IMODE((folder / "b.png").stat().st_mode)


def change_pixels(folder):
    before = (folder / "b.png").stat()
    write_map(folder / "b.png", [[0, 0, 1], [1, 0, 0]])
    assert (folder / "b.png").stat().st_size == before.st_size
    os.utime(folder / "b.png", ns=(before.st_atime_ns, before.st_mtime_ns + 1))


@pytest.mark.parametrize(
    "change, pixels",
    [
        (change_pixels, [4, 5, 2]),
        (lambda f: write_map(f / "new.png", [[2]]), [4, 3, 5]),
        (lambda f: (f / "b.png").unlink(), [0, 3, 2]),
        (lambda f: (f / "b.png").rename(f / "z.png"), [4, 3, 4]),
    ],
)
def test_changed_files_are_noticed_in_one_line(folder, tmp_path, decoded, caplog, change, pixels):
    caplog.set_level("INFO")
    cache = str(tmp_path / "cache")
    read_label_maps(folder, cache_dir=cache)
    change(folder)
    assert read_label_maps(folder, cache_dir=cache).pixels().tolist() == pixels
    assert caplog.text.count(f"counted again: {folder} is not what {cache}") == 1
    count = len(decoded)
    assert read_label_maps(folder, cache_dir=cache).pixels().tolist() == pixels
    assert len(decoded) == count


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-40], lambda b: b"", lambda b: b[:90] + b"\xff" * 60 + b[150:]]
)
def test_a_damaged_cache_is_noticed_and_rebuilt(folder, tmp_path, decoded, caplog, damage):
    cache = tmp_path / "cache"
    first = content(read_label_maps(folder, cache_dir=str(cache)))
    (file,) = cache.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert content(read_label_maps(folder, cache_dir=str(cache))) == first
    assert len(decoded) == 6 and f"the cache {file} is unreadable" in caplog.text
    read_label_maps(folder, cache_dir=str(cache))
    assert len(decoded) == 6


def test_a_cache_that_cannot_be_written_is_not_an_error(folder, tmp_path, caplog):
    caplog.set_level("INFO")
    (tmp_path / "file").touch()  # a file where the folder should be
    for _ in range(2):
        maps = read_label_maps(folder, cache_dir=str(tmp_path / "file"))
        assert maps.pixels().tolist() == [4, 3, 4]
    assert "Label maps are not cached" in caplog.text


def test_a_write_that_fails_leaves_nothing_behind(folder, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")

    def full(*paths):
        raise OSError("disk full")

    monkeypatch.setattr(label_maps.os, "replace", full)
    assert len(read_label_maps(folder, cache_dir=str(tmp_path / "cache"))) == 3
    assert os.listdir(tmp_path / "cache") == [] and "not cached: disk full" in caplog.text


def test_folders_of_one_name_have_caches_of_their_own(folder, tmp_path):
    write_map(tmp_path / "other" / "maps" / "a.png", [[5]])
    cache = str(tmp_path / "cache")
    read_label_maps(folder, cache_dir=cache)
    assert read_label_maps(tmp_path / "other" / "maps", cache_dir=cache).pixels()[5] == 1
    assert len(os.listdir(cache)) == 2
