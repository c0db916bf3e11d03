"""Batched augmentation, the cache of decoded images, and the data set over it."""

import itertools
import json
import os
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from lt_det.data import image_cache
from lt_det.data.build import TrainLoader
from lt_det.data.datasets.image_list import ImageList
from lt_det.data.epochs import RepeatOrder
from lt_det.data.image_cache import (
    CachedImageDataset,
    ImageCache,
    augment_cifar,
    cache_path,
    decode_images,
    load_image_cache,
    sample_words,
)
from lt_det.data.image_records import ImageListRecords
from lt_det.data.samplers import SampleKey
from lt_det.errors import ConfigError, DataError

N, SIZE = 30, 12


def write_images(folder, number=N, size=(SIZE, SIZE), suffix="png"):
    """PNG files, which decode to what was written; returns records and (N, H, W, 3) pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (number, *size, 3), dtype=np.uint8)
    paths = [f"{k:03d}.{suffix}" for k in range(number)]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image).save(folder / path)
    source = ImageList(paths, np.arange(number) % 4, str(folder / "train.txt"))
    return ImageListRecords(source, folder), pixels


@pytest.fixture
def small_set(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    return *write_images(folder), tmp_path / "cache"


def words_of(batch, seed=0, epoch=0):
    return sample_words(seed, 0, np.full(batch, epoch), np.arange(batch), 3)


# ---- random words --------------------------------------------------------------------------


def test_words_depend_on_every_part_of_the_key_and_on_nothing_else():
    def words(seed=5, rank=1, epoch=2, position=7, number=3):
        return sample_words(seed, rank, np.array([epoch]), np.array([position]), number)[0]

    assert (words() == words()).all()
    changed = [words(), words(seed=6), words(rank=2), words(epoch=3), words(position=8)]
    assert len({tuple(w) for w in changed}) == 5 and len(set(words().tolist())) == 3
    # Nor do two parts stand for each other.
    assert (words(epoch=1, position=2) != words(epoch=2, position=1)).all()
    assert (words(number=5)[:3] == words()).all()


def test_every_bit_of_the_words_is_fair_and_neighbours_are_independent():
    words = sample_words(0, 0, np.zeros(20_000), np.arange(20_000), 2)
    bits = (words[:, :, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    # Five standard deviations of the mean of 20,000 coins: 0.018.
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 0.018
    changes = (bits[1:] != bits[:-1]).mean(axis=0)
    assert np.abs(changes - 0.5).max() < 0.018


# ---- augmentation --------------------------------------------------------------------------


def naive_augment(image, row, column, mirrored, pad):
    """One sample, as the recipes say it."""
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    crop = padded[row : row + image.shape[0], column : column + image.shape[1]]
    return (crop[:, ::-1] if mirrored else crop).transpose(2, 0, 1)


@pytest.mark.parametrize("pad", [0, 1, 4])
def test_a_batch_is_what_a_loop_over_its_samples_gives(pad):
    images = np.random.default_rng(1).integers(0, 256, (200, 9, 7, 3), dtype=np.uint8)
    words = words_of(200)
    result = augment_cifar(images, words, pad=pad)
    # The upper 32 bits of a word as a fraction of one.
    fractions = (words >> np.uint64(32)) / 2.0**32
    for image, fraction, ours in zip(images, fractions, result, strict=True):
        row, column = (int(f * (2 * pad + 1)) for f in fraction[:2])
        np.testing.assert_array_equal(
            ours, naive_augment(image, row, column, fraction[2] >= 0.5, pad)
        )
    assert result.shape == (200, 3, 9, 7) and result.dtype == np.uint8
    assert result.flags.c_contiguous


def test_no_flip_and_no_padding_change_nothing():
    images = np.random.default_rng(1).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    result = augment_cifar(images, words_of(20), pad=0, flip=False)
    np.testing.assert_array_equal(result, images.transpose(0, 3, 1, 2))


def test_crops_are_uniform_and_flips_are_fair():
    """One bright pixel in the middle of an odd image tells where the crop lies."""
    batch, pad = 81 * 500, 4
    images = np.zeros((batch, 9, 9, 3), np.uint8)
    images[:, 4, 4] = 255
    images[:, 4, 3, 0] = 100  # left of it, so that a mirrored image has it on the right
    result = augment_cifar(images, words_of(batch, seed=3), pad=pad)
    # Where the crop cuts it off, the plane is dark; nine offsets keep the middle in view.
    rows, columns = (result[:, 1] == 255).any(axis=2), (result[:, 1] == 255).any(axis=1)
    assert rows.any(axis=1).all()
    offsets = np.bincount(rows.argmax(axis=1) * 9 + columns.argmax(axis=1), minlength=81)
    # Chi-square with 80 degrees of freedom: 125 is passed once in a thousand.
    assert ((offsets - 500) ** 2 / 500).sum() < 125
    seen = (result[:, 0] == 100).any(axis=(1, 2))
    left = (result[:, 0] == 100)[seen].any(axis=1).argmax(axis=1)
    mirrored = left > columns[seen].argmax(axis=1)
    assert abs(mirrored.mean() - 0.5) < 4 * 0.5 / np.sqrt(seen.sum())


# ---- cache ---------------------------------------------------------------------------------


def test_decoded_images_are_those_of_the_files(small_set):
    records, pixels, folder = small_set
    cache = load_image_cache(records, folder)
    np.testing.assert_array_equal(cache.images, pixels)
    assert len(cache.bad) == 0 and os.path.dirname(cache.path) == str(folder)
    with pytest.raises(ValueError, match="read-only"):
        cache.images[0] = 1


def test_a_second_run_reads_no_image(small_set, monkeypatch):
    records, pixels, folder = small_set
    load_image_cache(records, folder)
    monkeypatch.setattr(image_cache, "decode_images", None)
    again = load_image_cache(records, folder)
    np.testing.assert_array_equal(again.images, pixels)
    # A loader process gets the place of the file, not the pixels.
    assert len(pickle.dumps(again)) < 1000
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(again)).images, pixels)


def test_other_images_under_the_same_list_name_are_noticed(small_set, caplog):
    records, pixels, folder = small_set
    load_image_cache(records, folder)
    order = np.arange(N)[::-1]
    with caplog.at_level("INFO"):
        cache = load_image_cache(records.select(order), folder)
    assert "was made from other images" in caplog.text
    np.testing.assert_array_equal(cache.images, pixels[order])


def test_a_rewritten_image_set_is_noticed(small_set, caplog):
    records, pixels, folder = small_set
    load_image_cache(records, folder)
    other = 255 - pixels[-1]
    Image.fromarray(other).save(records.file_name(N - 1))
    os.utime(records.file_name(N - 1), ns=(1, 1))
    with caplog.at_level("INFO"):
        cache = load_image_cache(records, folder)
    assert "was made from other images" in caplog.text
    np.testing.assert_array_equal(cache.images[-1], other)


def damage_bytes(path):
    content = bytearray(open(path, "rb").read())
    content[-5] ^= 1
    open(path, "wb").write(content)


def damage_length(path):
    os.truncate(path, os.path.getsize(path) - 100)


def damage_all(path):
    open(path, "wb").close()


def damage_stamp(path):
    open(f"{path}.json", "w").write('{"stamp": ')


def damage_keys(path):
    content = json.load(open(f"{path}.json"))
    del content["bad"]
    json.dump(content, open(f"{path}.json", "w"))


@pytest.mark.parametrize(
    "damage", [damage_bytes, damage_length, damage_all, damage_stamp, damage_keys]
)
def test_a_damaged_file_is_noticed_and_made_again(small_set, caplog, damage):
    records, pixels, folder = small_set
    damage(load_image_cache(records, folder).path)
    cache = load_image_cache(records, folder)
    assert "is damaged" in caplog.text
    np.testing.assert_array_equal(cache.images, pixels)
    caplog.clear()
    load_image_cache(records, folder)
    assert not caplog.records


def test_a_folder_that_cannot_be_written_means_no_file(small_set, tmp_path, caplog):
    records, pixels, _ = small_set
    (tmp_path / "file").write_text("in the way")
    cache = load_image_cache(records, tmp_path / "file" / "cache")
    assert cache.path is None and "not kept for later runs" in caplog.text
    np.testing.assert_array_equal(cache.images, pixels)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(cache)).images, pixels)


def test_no_temporary_file_stays(small_set):
    records, _, folder = small_set
    path = load_image_cache(records, folder).path
    assert sorted(os.listdir(folder)) == [os.path.basename(path), f"{os.path.basename(path)}.json"]
    assert path == cache_path(records, folder)


def test_many_threads_give_the_same_images(small_set, monkeypatch):
    records, pixels, _ = small_set
    monkeypatch.setattr(image_cache, "CHUNK", 4)
    np.testing.assert_array_equal(decode_images(records, threads=5).images, pixels)


def test_images_that_do_not_fit_are_an_error_before_they_are_decoded(small_set, monkeypatch):
    records, _, folder = small_set
    monkeypatch.setattr(image_cache, "_decode_into", None)
    with pytest.raises(ConfigError, match=r"30 decoded images of 12 x 12 .*CACHE_MB allows 0.01"):
        load_image_cache(records, folder, max_mb=0.01)


def test_images_of_different_sizes_are_an_error_also_when_bad_ones_are_skipped(small_set):
    records, _, folder = small_set
    Image.new("RGB", (12, 13)).save(records.file_name(8))
    for skip_bad in (False, True):
        with pytest.raises(DataError, match=r"008.png \(image id 8\) has 12 x 13 .*CACHE_MB"):
            load_image_cache(records, folder, skip_bad=skip_bad)


# ---- bad images ----------------------------------------------------------------------------


def spoil(records, *indices):
    for index in indices:
        with open(records.file_name(index), "wb") as file:
            file.write(b"not an image")


def test_a_bad_image_is_named(small_set):
    records, _, folder = small_set
    spoil(records, 17)
    with pytest.raises(DataError, match=r"017.png \(image id 17\).*BAD_IMAGE"):
        load_image_cache(records, folder)
    os.unlink(records.file_name(17))
    with pytest.raises(DataError, match=r"017.png \(image id 17\).*No such file"):
        load_image_cache(records, folder)


def test_skipped_images_are_counted_and_replaced_by_the_next(small_set, caplog):
    records, pixels, folder = small_set
    spoil(records, 0, 7, 8, 29)
    for _ in range(2):  # decoded, then from the file
        caplog.clear()
        cache = load_image_cache(records, folder, skip_bad=True)
        assert cache.bad.tolist() == [0, 7, 8, 29]
        assert "4 of 30 images cannot be used and are skipped" in caplog.text
        assert "000.png" in caplog.text and cache.path in caplog.text
    dataset = CachedImageDataset(cache, records, is_train=True, pad=0, flip=False)
    samples = dataset.__getitems__([SampleKey(k, 0, k) for k in (0, 6, 7, 8, 29)])
    assert [s["image_id"] for s in samples] == [1, 6, 9, 9, 1]
    assert [s["label"] for s in samples] == [1, 2, 1, 1, 1]
    np.testing.assert_array_equal(samples[3]["image"], pixels[9].transpose(2, 0, 1))
    assert dataset.skipped == 4
    with pytest.raises(DataError, match="4 images cannot be used, such as .*000.png"):
        CachedImageDataset(cache, records, is_train=False)


def test_a_cache_without_bad_images_does_not_hide_them_from_a_stricter_run(small_set):
    records, pixels, folder = small_set
    spoil(records, 5)
    load_image_cache(records, folder, skip_bad=True)
    with pytest.raises(DataError, match="005.png"):
        load_image_cache(records, folder)
    Image.fromarray(pixels[5]).save(records.file_name(5))
    np.testing.assert_array_equal(load_image_cache(records, folder).images, pixels)


def test_many_bad_images_in_a_row_are_a_wrong_folder(small_set):
    records, _, folder = small_set
    spoil(records, *range(5, 24))
    load_image_cache(records, folder, skip_bad=True)
    spoil(records, 24)
    with pytest.raises(DataError, match="20 images in a row"):
        decode_images(records, skip_bad=True).replacements()
    bad = np.arange(N)
    with pytest.raises(DataError, match="20 images in a row"):
        ImageCache(np.zeros((N, 2, 2, 3), np.uint8), bad).replacements()


# ---- data set ------------------------------------------------------------------------------


def dataset_of(small_set, **kwargs):
    records, _, folder = small_set
    return CachedImageDataset(load_image_cache(records, folder), records, **kwargs)


def test_a_sample_is_the_same_in_any_batch(small_set):
    dataset = dataset_of(small_set, is_train=True)
    keys = [SampleKey(k % N, k // N, k % N) for k in range(150)]
    together = dataset.__getitems__(keys)
    shuffled = np.random.default_rng(0).permutation(150).tolist()
    parts = [dataset.__getitems__([keys[k] for k in shuffled[s : s + 7]]) for s in range(0, 150, 7)]
    for k, sample in zip(shuffled, itertools.chain(*parts), strict=True):
        assert torch.equal(sample["image"], together[k]["image"])
        assert sample["image_id"] == together[k]["image_id"] == k % N
    assert torch.equal(dataset[keys[77]]["image"], together[77]["image"])


def test_the_augmentation_comes_from_seed_rank_epoch_and_position(small_set):
    keys = [SampleKey(3, 0, p) for p in range(20)]

    def images(seed=0, rank=0, keys=keys):
        dataset = dataset_of(small_set, is_train=True, rank=rank)
        dataset.seed = seed
        return torch.stack([s["image"] for s in dataset.__getitems__(keys)])

    assert torch.equal(images(), images())
    later = [SampleKey(3, 1, p) for p in range(20)]
    for other in (images(seed=1), images(rank=1), images(keys=later)):
        assert not torch.equal(images(), other)
    assert len({i.numpy().tobytes() for i in images()}) > 10


def test_a_sample_has_the_keys_of_its_record(small_set):
    records, _, _ = small_set
    sample = dataset_of(small_set, is_train=True)[SampleKey(6, 0, 0)]
    assert sample.pop("image").shape == (3, SIZE, SIZE)
    assert sample == {**records[6], "height": SIZE, "width": SIZE}


def test_test_images_are_those_of_the_files_in_either_channel_order(small_set):
    _, pixels, _ = small_set
    rgb = dataset_of(small_set, is_train=False).__getitems__(list(range(N)))
    bgr = dataset_of(small_set, is_train=False, image_format="BGR").__getitems__(list(range(N)))
    for image, x, y in zip(pixels, rgb, bgr, strict=True):
        np.testing.assert_array_equal(x["image"], image.transpose(2, 0, 1))
        assert torch.equal(y["image"], x["image"].flip(0))


def test_channel_order_leaves_the_augmentation_as_it_is(small_set):
    keys = [SampleKey(k, 0, k) for k in range(N)]
    rgb = dataset_of(small_set, is_train=True).__getitems__(keys)
    bgr = dataset_of(small_set, is_train=True, image_format="BGR").__getitems__(keys)
    assert all(torch.equal(x["image"], y["image"].flip(0)) for x, y in zip(rgb, bgr, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_the_training_loader_continues_from_its_state_with_any_workers(small_set, workers):
    def loader(workers):
        return TrainLoader(
            dataset_of(small_set, is_train=True),
            order=RepeatOrder(lambda epoch: np.ones(N, np.float32), N),
            batch_size=8,
            groups=None,
            num_workers=workers,
            seed=4,
        )

    def take(source, count):
        return [
            [(s["image_id"], s["image"].numpy().tobytes()) for s in batch]
            for batch in itertools.islice(source, count)
        ]

    whole = take(loader(0), 9)
    first = loader(workers)
    assert take(first, 4) == whole[:4]
    second = loader(workers)
    second.load_state_dict(first.state_dict())
    assert take(second, 5) == whole[4:]


def test_records_of_another_number_are_refused(small_set):
    records, _, folder = small_set
    cache = load_image_cache(records, folder)
    with pytest.raises(ValueError, match="30 cached images for 2 records"):
        CachedImageDataset(cache, records.select([0, 1]), is_train=True)
