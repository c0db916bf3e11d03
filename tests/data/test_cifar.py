"""Reading CIFAR's pickles: content, order, and what is refused."""

import os
import pickle
import tarfile
import warnings

import numpy as np
import pytest

from lt_det.data.datasets.cifar import image_paths, is_cifar, read_cifar
from lt_det.errors import DataError, MissingFileError
from tests.data import cifar_files

TRAIN, TEST, NAMES = [0, 1, 2, 2, 1, 0, 0, 1, 2, 1], [2, 0], ["cat", "dog", "sea_lion"]


@pytest.fixture
def folder(tmp_path):
    cifar_files.write_cifar10(tmp_path / "cifar-10-batches-py", TRAIN, TEST, NAMES)
    return tmp_path / "cifar-10-batches-py"


def check_cifar10(cifar):
    assert cifar.names == NAMES
    assert cifar.labels["train"].tolist() == TRAIN and cifar.labels["test"].tolist() == TEST
    np.testing.assert_array_equal(cifar.images["train"], cifar_files.pixels(10))
    np.testing.assert_array_equal(cifar.images["test"], cifar_files.pixels(2, first=10))


def test_batches_are_read_in_the_published_order(folder):
    assert is_cifar(folder) and not is_cifar(folder.parent)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cifar = read_cifar(folder)
    check_cifar10(cifar)
    assert image_paths(cifar, "test") == ["test/sea_lion/00000.png", "test/cat/00001.png"]


def test_an_archive_is_read_without_unpacking(folder, tmp_path):
    path = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for file in sorted(folder.iterdir(), reverse=True):
            archive.add(file, f"cifar-10-batches-py/{file.name}")
    before = sorted(tmp_path.rglob("*"))
    assert is_cifar(path)
    check_cifar10(read_cifar(path))
    assert sorted(tmp_path.rglob("*")) == before


def test_fine_labels_of_cifar100(tmp_path):
    cifar_files.write_cifar100(tmp_path / "c", TRAIN, TEST, NAMES)
    assert is_cifar(tmp_path / "c")
    cifar = read_cifar(tmp_path / "c")
    assert cifar.names == NAMES and cifar.labels["train"].tolist() == TRAIN
    np.testing.assert_array_equal(cifar.images["train"], cifar_files.pixels(10))


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("file", ["data_batch_3", "batches.meta"])
def test_a_pickle_that_calls_something_is_refused(folder, tmp_path, file):
    content = {b"data": Malicious(tmp_path / "called"), b"labels": []}
    (folder / file).write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match=rf"{file} cannot be loaded: it asks for posix\.mkdir"):
        read_cifar(folder)
    assert not (tmp_path / "called").exists()


@pytest.mark.parametrize("name", ["../../x", "a/b", ""])
def test_class_names_become_folders_and_nothing_else(folder, name):
    meta = cifar_files.pickled({b"label_names": cifar_files.list_of([cifar_files.text(b"a")])})
    meta = meta.replace(cifar_files.text(b"a"), cifar_files.text(name.encode()))
    (folder / "batches.meta").write_bytes(meta)
    with pytest.raises(DataError, match="batches.meta has the class name"):
        read_cifar(folder)


FAULTS = {
    "cut": (cifar_files.batch([0, 1])[:-100], "cannot be loaded"),
    "a list": (pickle.dumps([1, 2]), "holds a list, not a dictionary"),
    "no labels": (cifar_files.batch([0, 1], key=b"marks"), "lacks 'labels'"),
    "label": (cifar_files.batch([0, 3]), r"a label that is not in 0\.\.2"),
    "numbers differ": (
        cifar_files.pickled(
            {
                b"data": cifar_files.array(cifar_files.pixels(3)),
                b"labels": cifar_files.list_of([cifar_files.integer(0)]),
            }
        ),
        r"uint8 data of shape \(3, 3072\) and \(1,\) labels",
    ),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_damaged_content_names_the_file(folder, kind):
    content, message = FAULTS[kind]
    (folder / "data_batch_2").write_bytes(content)
    with pytest.raises(DataError, match=f"data_batch_2 .*{message}"):
        read_cifar(folder)


def test_missing_files(folder, tmp_path):
    (folder / "data_batch_4").unlink()
    with pytest.raises(MissingFileError, match="lacks data_batch_4 of cifar-10-batches-py"):
        read_cifar(folder)
    with pytest.raises(MissingFileError, match="x.tar.gz does not exist"):
        read_cifar(tmp_path / "x.tar.gz")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingFileError, match="holds neither of data_batch_1, train"):
        read_cifar(tmp_path / "empty")


def test_a_damaged_archive(folder, tmp_path):
    path = tmp_path / "c.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, folder.name)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"c\.tar\.gz cannot be read"):
        read_cifar(path)
