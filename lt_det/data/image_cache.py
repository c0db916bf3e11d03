"""Small images held decoded in memory, and augmented a batch at a time.

Reading a file of 32 x 32 pixels costs some twenty times as much as augmenting it. So a set that
fits is decoded once into one array, which is kept in a file that loader processes and later runs
map into their memory. Batches then come faster than loader processes could hand them over:
``DATALOADER.NUM_WORKERS`` 0 is the fastest.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import uuid
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch.utils.data import Dataset

from lt_det.data.image_decode import decode, naming_image, open_image, upright_size
from lt_det.data.image_records import SHOWN, ImageListRecords
from lt_det.data.samplers import SampleKey
from lt_det.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

# Raise it when the decoding changes: older caches are then made again.
CACHE_VERSION = 1
MIB = 2**20
LIMIT_KEY = "DATALOADER.LT.IMAGE.CACHE_MB"
# Images that a thread decodes before it takes the next ones.
CHUNK = 256
# Images that are augmented at once: their arrays stay in the processor's cache, and small enough
# for the allocator to reuse them. Batches of 512 in one piece take several times as long.
BLOCK = 64
# Bad images in a row before skipping gives up, as in SeededDataset: then it is not a few broken
# files but a wrong folder.
MAX_SKIPS = 20


# ---- augmentation ------------------------------------------------------------------------------


def sample_words(
    seed: int, rank: int, epochs: np.ndarray, positions: np.ndarray, number: int
) -> np.ndarray:
    """Random words of each sample, a function of its key alone.

    The parts of the key go one after the other through the mixer of SplitMix64 (Steele, Lea,
    Flood, OOPSLA 2014), a bijection of 64 bits in which every input bit changes half of the
    output bits.

    Args:
        seed: >= 0.
        rank: >= 0.
        epochs: (B,) ints >= 0.
        positions: (B,) ints >= 0.
        number: of words per sample.

    Returns:
        (B, number) uint64.
    """
    # Arrays, because numpy warns when a scalar wraps around.
    state = np.zeros((len(positions), 1), np.uint64)
    parts = (
        np.array([seed % 2**64], np.uint64),
        np.array([rank], np.uint64),
        np.asarray(epochs).astype(np.uint64)[:, None],
        np.asarray(positions).astype(np.uint64)[:, None],
        np.arange(number, dtype=np.uint64),
    )
    for part in parts:
        state = _mix((state ^ part) + np.uint64(0x9E3779B97F4A7C15))
    return state


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _below(words: np.ndarray, number: int) -> np.ndarray:
    """Uniform int64 0..number-1, from the upper half of each word."""
    return (((words >> np.uint64(32)) * np.uint64(number)) >> np.uint64(32)).astype(np.int64)


def augment_cifar(
    images: np.ndarray, words: np.ndarray, *, pad: int = 4, flip: bool = True
) -> np.ndarray:
    """Zero padding, random crop of the original size and random flip, for a whole batch.

    Source: the CIFAR augmentation of He et al., CVPR 2016, as in torchvision's
    ``RandomCrop(size, padding)`` and ``RandomHorizontalFlip``.

    Args:
        images: (B, H, W, 3) uint8.
        words: (B, 3) uint64, uniform: for the row, the column and the flip of each image.
        pad: zeros on each side; each of the (2 pad + 1) ** 2 crops is equally likely.
        flip: mirror images, each with probability one half.

    Returns:
        (B, 3, H, W) uint8, contiguous.
    """
    batch, height, width, channels = images.shape
    padded = np.zeros((batch, channels, height + 2 * pad, width + 2 * pad), images.dtype)
    padded[:, :, pad : pad + height, pad : pad + width] = images.transpose(0, 3, 1, 2)
    crops = sliding_window_view(padded, (height, width), axis=(2, 3))
    rows, columns = _below(words[:, 0], 2 * pad + 1), _below(words[:, 1], 2 * pad + 1)
    result = crops[np.arange(batch), :, rows, columns]
    if flip:
        mirrored = np.flatnonzero(_below(words[:, 2], 2))
        result[mirrored] = result[mirrored][..., ::-1]
    return result


# ---- cache -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ImageCache:
    """The decoded images of a set.

    Attributes:
        images: (N, H, W, 3) uint8 RGB, read-only; zeros where an image is bad.
        bad: (any,) int64, ascending: images that could not be decoded.
        path: file that `images` is mapped from; None for memory of this process.
    """

    images: np.ndarray
    bad: np.ndarray
    path: str | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __reduce__(self):
        # A mapped array would be pickled with all of its pixels.
        if self.path is None:
            return ImageCache, (self.images, self.bad)
        return _map_cache, (self.path, self.images.shape, self.bad)

    def replacements(self) -> np.ndarray:
        """(N,) int64: each good image itself, in place of each bad one the next good one.

        Raises:
            DataError: 20 images in a row are bad.
        """
        every = np.arange(len(self))
        good = np.delete(every, self.bad)
        if len(good):
            chosen = good[np.searchsorted(good, every) % len(good)]
        if not len(good) or ((chosen - every) % len(self)).max() >= MAX_SKIPS:
            raise DataError(
                f"{min(MAX_SKIPS, len(self))} images in a row cannot be used; is the image "
                "folder right?"
            )
        return chosen


def _map_cache(path: str, shape: Sequence[int], bad: np.ndarray) -> ImageCache:
    return ImageCache(np.memmap(path, np.uint8, mode="r", shape=tuple(shape)), bad, path)


def load_image_cache(
    records: ImageListRecords,
    cache_dir: str | os.PathLike,
    *,
    skip_bad: bool = False,
    max_mb: float = 4096,
    threads: int | None = None,
) -> ImageCache:
    """The decoded images of `records`, from the cache file if that fits, else decoded.

    A file that belongs to another list or to files of another date, or is damaged, is made
    again; a log line says why. Processes that find no file at the same time all decode, and the
    last file stays. A folder that cannot be written means no file, not an error.

    Args:
        records: all of one size.
        cache_dir: folder of the file.
        skip_bad: images that cannot be decoded are counted and left black, with a warning.
        max_mb: MiB that the decoded images may take.
        threads: that decode; None for as many as there are cores.

    Raises:
        DataError: an image that cannot be used (unless `skip_bad`), images of different sizes,
            20 bad images in a row.
        ConfigError: the images need more than `max_mb`.
    """
    path, stamp = cache_path(records, cache_dir), source_stamp(records)
    cache = _read_cache(path, stamp)
    if cache is not None and len(cache.bad) and not skip_bad:
        # Perhaps they have been mended since; if not, this names the first.
        logger.info("Decoding anew: %s was made without %d bad images.", path, len(cache.bad))
        cache = None
    if cache is None:
        cache = _write_cache(path, stamp, decode_images(records, skip_bad, max_mb, threads))
    _check_memory(len(records), cache.images.shape[1:3], max_mb)
    if len(cache.bad):
        shown = ", ".join(records.file_name(k) for k in cache.bad[:SHOWN])
        logger.warning(
            f"{len(cache.bad)} of {len(records)} images cannot be used and are skipped "
            f"(DATALOADER.LT.BAD_IMAGE 'skip'): {shown}"
            + (", ..." if len(cache.bad) > SHOWN else "")
            + f". Once they are mended, delete {path}."
        )
        cache.replacements()
    return cache


def decode_images(
    records: ImageListRecords,
    skip_bad: bool = False,
    max_mb: float = 4096,
    threads: int | None = None,
) -> ImageCache:
    """Decode all images, in threads; see :func:`load_image_cache`."""
    height, width = _first_size(records, skip_bad)
    _check_memory(len(records), (height, width), max_mb)
    logger.info("Decoding %d images of %d x %d pixels.", len(records), width, height)
    images = np.zeros((len(records), height, width, 3), np.uint8)

    def decode_chunk(start: int) -> list[int]:
        indices = range(start, min(start + CHUNK, len(records)))
        return [k for k in indices if not _decode_into(images[k], records[k], skip_bad)]

    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        bad = [k for part in pool.map(decode_chunk, range(0, len(records), CHUNK)) for k in part]
    images.flags.writeable = False
    return ImageCache(images, np.array(bad, np.int64))


def _decode_into(pixels: np.ndarray, record: dict, skip_bad: bool) -> bool:
    """Fill `pixels` with one image; False if it is bad and may be."""
    try:
        with (
            naming_image(record["file_name"], record["image_id"]),
            open_image(record["file_name"]) as (image, orientation),
        ):
            size = upright_size(image, orientation)
            decoded = np.asarray(decode(image, orientation))
    except DataError:
        if not skip_bad:
            raise
        return False
    if size != pixels.shape[:2]:
        raise DataError(
            f"image {record['file_name']} (image id {record['image_id']}) has {size[1]} x "
            f"{size[0]} pixels, the ones before have {pixels.shape[1]} x {pixels.shape[0]}; the "
            f"cache holds images of one size. {LIMIT_KEY} 0 reads each image when it is needed."
        )
    pixels[:] = decoded
    return True


def _first_size(records: ImageListRecords, skip_bad: bool) -> tuple[int, int]:
    """(height, width) of the first image that can be opened."""
    for index in range(len(records)):
        record = records[index]
        try:
            with (
                naming_image(record["file_name"], record["image_id"]),
                open_image(record["file_name"]) as (image, orientation),
            ):
                return upright_size(image, orientation)
        except DataError:
            if not skip_bad or index + 1 >= MAX_SKIPS:
                raise
    raise DataError(f"no image of list file {records.source} can be used")


def _check_memory(number: int, size: Sequence[int], max_mb: float) -> None:
    needed = number * size[0] * size[1] * 3 / MIB
    if needed > max_mb:
        raise ConfigError(
            f"{number} decoded images of {size[1]} x {size[0]} pixels need {needed:.0f} MB, "
            f"{LIMIT_KEY} allows {max_mb:g}. 0 reads each image when it is needed."
        )


# ---- its file ----------------------------------------------------------------------------------


def cache_path(records: ImageListRecords, cache_dir: str | os.PathLike) -> str:
    """Cache file of a list: its base name and a digest of where list and images lie.

    It holds the pixels alone; what they are is in a JSON file beside it.
    """
    stem = os.path.splitext(os.path.basename(records.source))[0]
    place = f"{os.path.abspath(records.source)}\n{records.image_root}"
    digest = hashlib.sha256(place.encode(errors="surrogateescape")).hexdigest()[:12]
    return os.path.join(cache_dir, f"{stem}-{digest}.rgb")


def source_stamp(records: ImageListRecords) -> dict:
    """What tells whether a set is still the one that was decoded.

    All paths, and size and date of the first and the last file; to look at every file would
    take as long as to decode them.
    """
    return {
        "version": CACHE_VERSION,
        "paths_sha256": records.digest(),
        "ends": [_file_stamp(records.file_name(k)) for k in (0, len(records) - 1)],
    }


def _file_stamp(path: str) -> list[int] | None:
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return [stat.st_size, stat.st_mtime_ns]


def _sidecar(path: str) -> str:
    return f"{path}.json"


def _checksum(images: np.ndarray) -> int:
    return zlib.crc32(images.reshape(-1))


def _read_cache(path: str, stamp: dict) -> ImageCache | None:
    """The cached images; None, with a log line that says why, if they cannot be used."""
    try:
        with open(_sidecar(path)) as file:
            content = json.load(file)
        if content["stamp"] != stamp:
            logger.info("Decoding anew: %s was made from other images.", path)
            return None
        cache = _map_cache(path, content["shape"], np.array(content["bad"], np.int64))
        if content["crc32"] == _checksum(cache.images):
            return cache
        reason = "its checksum is wrong"
    except FileNotFoundError:
        return None
    except (OSError, KeyError, TypeError, ValueError, OverflowError) as error:
        reason = f"{type(error).__name__}: {error}"
    logger.warning("Decoding anew: %s is damaged (%s).", path, reason)
    return None


def _write_cache(path: str, stamp: dict, cache: ImageCache) -> ImageCache:
    """Write both files, each in one step, and map the images from there."""
    content = {
        "stamp": stamp,
        "shape": cache.images.shape,
        "bad": cache.bad.tolist(),
        "crc32": _checksum(cache.images),
    }
    # Not `tempfile`, whose files only their owner may read: data folders are shared.
    temporary = f"{path}.{uuid.uuid4().hex}.tmp"
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(temporary, "wb") as file:
            cache.images.tofile(file)
        os.replace(temporary, path)
        with open(temporary, "w") as file:
            json.dump(content, file)
        os.replace(temporary, _sidecar(path))
        return _map_cache(path, cache.images.shape, cache.bad)
    except OSError as error:
        if os.path.exists(temporary):
            os.unlink(temporary)
        logger.warning("Decoded images are not kept for later runs: %s", error)
        return cache


# ---- data set ----------------------------------------------------------------------------------


class CachedImageDataset(Dataset):
    """Samples of cached images, a batch at a time.

    What a sample holds depends on `seed`, `rank` and its key alone: not on the batch that it is
    in, nor on the number of loader processes. In training, the next good image comes in place of a
    bad one, and is counted.

    Attributes:
        seed: of the augmentation; the loader sets it.
        skipped: bad images replaced so far in this process.

    Args:
        cache: decoded images of `records`.
        records: N.
        is_train: augment; else images are given as they are.
        pad, flip: see :func:`augment_cifar`.
        image_format: "RGB" or "BGR".
        rank: of this process.

    Raises:
        DataError: bad images in a set to test on.
    """

    def __init__(
        self,
        cache: ImageCache,
        records: ImageListRecords,
        *,
        is_train: bool,
        pad: int = 4,
        flip: bool = True,
        image_format: str = "RGB",
        rank: int = 0,
    ):
        if len(cache) != len(records):
            raise ValueError(f"{len(cache)} cached images for {len(records)} records")
        if len(cache.bad) and not is_train:
            raise DataError(
                f"{len(cache.bad)} images cannot be used, such as "
                f"{records.file_name(cache.bad[0])}; a set to test on must be whole"
            )
        self.cache, self.records = cache, records
        self.is_train, self.pad, self.flip = is_train, pad, flip
        self.image_format, self.rank = image_format, rank
        self.replacements = cache.replacements()
        self.seed = 0
        self.skipped = 0

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: SampleKey | int) -> dict:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[SampleKey | int]) -> list[dict]:
        """The samples of a batch; torch's loader calls this in place of one call per sample.

        Args:
            keys: for training with epoch and position; indices do for testing.

        Returns:
            For each, `image` (3, H, W) uint8, `label`, `image_id`, `file_name`, `height` and
            `width`.
        """
        parts = (keys[start : start + BLOCK] for start in range(0, len(keys), BLOCK))
        return [sample for part in parts for sample in self._samples(part)]

    def _samples(self, keys: Sequence[SampleKey | int]) -> list[dict]:
        if self.is_train:
            wanted, epochs, positions = np.array(keys, np.int64).T
        else:
            wanted = np.array([getattr(k, "index", k) for k in keys], np.int64)
        indices = self.replacements[wanted]
        self.skipped += int((indices != wanted).sum())
        images = self.cache.images[indices]
        if self.image_format == "BGR":
            images = images[..., ::-1]
        if self.is_train:
            words = sample_words(self.seed, self.rank, epochs, positions, 3)
            batch = augment_cifar(images, words, pad=self.pad, flip=self.flip)
        else:
            batch = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        height, width = batch.shape[2:]
        return [
            {"image": image, **self.records[index], "height": height, "width": width}
            for image, index in zip(torch.from_numpy(batch).unbind(), indices.tolist(), strict=True)
        ]
