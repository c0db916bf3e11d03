"""Small sets in the form of the CIFAR archives, as Python 2 pickled them."""

import pickle
import struct

import numpy as np


def text(value: bytes) -> bytes:
    """A Python 2 `str`."""
    return b"T" + struct.pack("<i", len(value)) + value


def integer(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def array(value: np.ndarray) -> bytes:
    """A uint8 array as numpy 1.x wrote it under Python 2."""
    empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + text(b"b") + b"tR"
    dtype = b"cnumpy\ndtype\n(" + text(b"u1") + b"K\x00K\x01tR"
    dtype += b"(K\x03" + text(b"|") + b"NNN" + integer(-1) + integer(-1) + b"K\x00tb"
    shape = b"(" + b"".join(integer(n) for n in value.shape) + b"t"
    return empty + b"(K\x01" + shape + dtype + b"\x89" + text(value.tobytes()) + b"tb"


def list_of(items) -> bytes:
    return b"](" + b"".join(items) + b"e"


def pickled(entries: dict[bytes, bytes]) -> bytes:
    """A dictionary whose values are pickled already."""
    items = b"".join(text(key) + value for key, value in entries.items())
    return b"\x80\x02}(" + items + b"u."


def batch(labels, *, key: bytes = b"labels", first: int = 0) -> bytes:
    """Images of 3072 values that tell their number, `first` onwards."""
    return pickled(
        {
            b"batch_label": text(b"training batch"),
            key: list_of(integer(int(label)) for label in labels),
            b"data": array(pixels(len(labels), first)),
        }
    )


def pixels(number: int, first: int = 0) -> np.ndarray:
    """(N, 3072) uint8; each image other than the rest, and no two channels alike."""
    k = np.arange(first, first + number)[:, None]
    return ((7 * k + np.arange(3072) * (k // 256 + 1)) % 251).astype(np.uint8)


def write_cifar10(folder, train_labels, test_labels, names) -> None:
    folder.mkdir()
    size = len(train_labels) // 5
    for k in range(5):
        content = batch(train_labels[k * size : (k + 1) * size], first=k * size)
        (folder / f"data_batch_{k + 1}").write_bytes(content)
    (folder / "test_batch").write_bytes(batch(test_labels, first=len(train_labels)))
    meta = pickled({b"label_names": list_of(text(n.encode()) for n in names)})
    (folder / "batches.meta").write_bytes(meta)


def write_cifar100(folder, train_labels, test_labels, names) -> None:
    folder.mkdir()
    for name, labels in (("train", train_labels), ("test", test_labels)):
        (folder / name).write_bytes(batch(labels, key=b"fine_labels"))
    # This one as Python 3 would write it.
    meta = {b"fine_label_names": [n.encode() for n in names], b"coarse_label_names": [b"x"]}
    (folder / "meta").write_bytes(pickle.dumps(meta, protocol=2))
