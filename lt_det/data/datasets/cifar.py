"""CIFAR-10 and CIFAR-100 as distributed for Python: pickled batches, as folder or archive."""

from __future__ import annotations

import io
import os
import pickle
import re
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from lt_det.errors import DataError, MissingFileError
from lt_det.evaluation.results import atomic_file

_CHANNELS, _SIZE = 3, 32
ARCHIVES = (".tar.gz", ".tgz", ".tar")


@dataclass(frozen=True)
class Layout:
    """Files and keys of one of the two sets; `train` in the order that defines image numbers."""

    folder: str
    train: tuple[str, ...]
    test: str
    labels: bytes
    meta: str
    names: bytes


LAYOUTS = (
    Layout(
        folder="cifar-10-batches-py",
        train=tuple(f"data_batch_{k}" for k in range(1, 6)),
        test="test_batch",
        labels=b"labels",
        meta="batches.meta",
        names=b"label_names",
    ),
    Layout(
        folder="cifar-100-python",
        train=("train",),
        test="test",
        labels=b"fine_labels",
        meta="meta",
        names=b"fine_label_names",
    ),
)


@dataclass(frozen=True, eq=False)
class Cifar:
    """A set in the published order.

    Attributes:
        names: (C,) classes.
        images: split ("train", "test") -> (N, 3072) uint8, channel by channel, row by row.
        labels: split -> (N,) int64, 0..C-1.
    """

    names: list[str]
    images: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]


def is_cifar(source: str | os.PathLike) -> bool:
    """Whether `source` is one of the two folders, or a tar archive."""
    source = Path(source)
    if source.is_dir():
        return any((source / layout.train[0]).is_file() for layout in LAYOUTS)
    return source.name.endswith(ARCHIVES)


def read_cifar(source: str | os.PathLike) -> Cifar:
    """Read ``cifar-10-batches-py`` or ``cifar-100-python``, a folder or its tar archive.

    The files are pickles from the network: only numpy arrays and plain values are loaded.

    Raises:
        MissingFileError: a file of the set is not there.
        DataError: a damaged file, one that asks for anything else to be loaded, or content that
            is not CIFAR's.
    """
    source = Path(source)
    files = _read_folder(source) if source.is_dir() else _read_archive(source)
    layout = next((item for item in LAYOUTS if item.train[0] in files), None)
    if layout is None:
        raise MissingFileError(
            f"{source} holds neither of {', '.join(item.train[0] for item in LAYOUTS)}; expected "
            f"{' or '.join(item.folder for item in LAYOUTS)}"
        )
    missing = sorted({*layout.train, layout.test, layout.meta} - files.keys())
    if missing:
        raise MissingFileError(f"{source} lacks {', '.join(missing)} of {layout.folder}")
    names = _class_names(_unpickle(files[layout.meta], layout.meta), layout)
    images, labels = {}, {}
    for split, parts in (("train", layout.train), ("test", (layout.test,))):
        batches = [_batch(_unpickle(files[p], p), p, layout, len(names)) for p in parts]
        images[split] = np.concatenate([batch[0] for batch in batches])
        labels[split] = np.concatenate([batch[1] for batch in batches])
    return Cifar(names, images, labels)


def _wanted_files() -> set[str]:
    return {name for item in LAYOUTS for name in (*item.train, item.test, item.meta)}


def _read_folder(folder: Path) -> dict[str, bytes]:
    return {n: (folder / n).read_bytes() for n in _wanted_files() if (folder / n).is_file()}


def _read_archive(path: Path) -> dict[str, bytes]:
    if not path.is_file():
        raise MissingFileError(f"archive {path} does not exist (looked for {path.resolve()})")
    files = {}
    try:
        with tarfile.open(path, "r|*") as archive:  # nothing is unpacked
            for member in archive:
                folder, _, name = member.name.rpartition("/")
                if member.isfile() and name in _wanted_files():
                    if folder.rpartition("/")[2] in {item.folder for item in LAYOUTS}:
                        files[name] = archive.extractfile(member).read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise DataError(f"archive {path} cannot be read: {error}") from error
    return files


def _dtype(name, align=False, copy=False) -> np.dtype:
    # The pickles have 0 and 1 for False and True, which numpy 2.4 warns about.
    return np.dtype(name, bool(align), bool(copy))


def _encode(text: str, encoding: str) -> bytes:
    # How Python 3 pickles bytes in protocol 2.
    return text.encode("latin1")


class _ArrayUnpickler(pickle.Unpickler):
    """Loads plain values and numpy arrays, and refuses everything else."""

    # A pickle can call whatever it can name.
    _ACCEPTED = {
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): _dtype,
        ("_codecs", "encode"): _encode,
    }

    def find_class(self, module, name):
        """What a pickle may call.

        Raises:
            pickle.UnpicklingError: anything else that it asks for.
        """
        if (module, name) not in self._ACCEPTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no part of CIFAR")
        return self._ACCEPTED[module, name]


def _unpickle(content: bytes, name: str) -> dict:
    try:
        value = _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a damaged pickle raises almost anything
        raise DataError(f"CIFAR file {name} cannot be loaded: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"CIFAR file {name} holds a {type(value).__name__}, not a dictionary")
    return value


def _value(batch: dict, key: bytes, name: str):
    if key not in batch:
        raise DataError(f"CIFAR file {name} lacks {key.decode()!r}; it has {sorted(batch)}")
    return batch[key]


def _class_names(meta: dict, layout: Layout) -> list[str]:
    names = [bytes(n).decode("latin1") for n in _value(meta, layout.names, layout.meta)]
    for name in names:
        # They become folders.
        if not re.fullmatch(r"[A-Za-z0-9_]+", name):
            raise DataError(f"CIFAR file {layout.meta} has the class name {name!r}")
    return names


def _batch(
    batch: dict, name: str, layout: Layout, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    images = np.asarray(_value(batch, b"data", name))
    labels = np.asarray(_value(batch, layout.labels, name))
    width = _CHANNELS * _SIZE * _SIZE
    if images.dtype != np.uint8 or images.shape != (len(labels), width) or labels.ndim != 1:
        raise DataError(
            f"CIFAR file {name} has {images.dtype} data of shape {images.shape} and "
            f"{labels.shape} labels; expected uint8 (N, {width}) and (N,)"
        )
    if not np.issubdtype(labels.dtype, np.integer) or not np.isin(labels, range(num_classes)).all():
        raise DataError(f"CIFAR file {name} has a label that is not in 0..{num_classes - 1}")
    return images, labels.astype(np.int64)


def image_paths(cifar: Cifar, split: str) -> list[str]:
    """``train/airplane/00029.png``: the number is the place in the published order."""
    return [
        f"{split}/{cifar.names[label]}/{number:05}.png"
        for number, label in enumerate(cifar.labels[split])
    ]


def write_images(cifar: Cifar, split: str, root: str | os.PathLike) -> int:
    """Write the images of a split under the names of `image_paths`.

    Files that are there and hold the same pixels are kept.

    Returns:
        How many were written.
    """
    for name in cifar.names:
        (Path(root) / split / name).mkdir(parents=True, exist_ok=True)
    pixels = cifar.images[split].reshape(-1, _CHANNELS, _SIZE, _SIZE).transpose(0, 2, 3, 1)
    written = 0
    for path, image in zip(image_paths(cifar, split), pixels, strict=True):
        path = os.path.join(root, path)
        if not _holds(path, image):
            with atomic_file(path, binary=True) as file:
                Image.fromarray(np.ascontiguousarray(image)).save(file, format="PNG")
            written += 1
    return written


def _holds(path: str, image: np.ndarray) -> bool:
    try:
        with Image.open(path) as file:
            return np.array_equal(np.asarray(file), image)
    except (OSError, SyntaxError, ValueError):  # missing, or damaged
        return False
