"""Class lists in files."""

import json

import pytest

from lt_det.data.datasets.class_names import read_class_names
from lt_det.errors import DataError, MissingFileError

PETS = ["cat", "dog", "elk"]


def write(folder, content, name="classes"):
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize(
    "content",
    [
        PETS,
        [{"name": n} for n in PETS],
        [{"id": k, "name": n} for k, n in enumerate(PETS)][::-1],
        [{"id": k, "name": n} for k, n in enumerate(PETS, start=1)][::-1],
        [{"index": k, "name": n, "train_images": 3} for k, n in enumerate(PETS)],
        {"classes": PETS},
        {
            "categories": [
                {"id": 3, "name": "elk"},
                {"id": 1, "name": "cat"},
                {"id": 2, "name": "dog"},
            ]
        },
        "cat\ndog\n\n elk \n",
        "cat\r\ndog\r\nelk",
        "Idx\tRatio\tTrain\tName\n1   \t0.1\t9\tcat\n2\t0.1\t9\tdog\n3\t0.1\t9\telk\n",
        "Idx,Ratio,Train,Val,Stuff,Name\n1,0.1,9,2,1,cat\n2,0.1,9,2,0,dog\n3,0.1,9,2,0,elk\n",
    ],
)
def test_forms(tmp_path, content):
    assert read_class_names(write(tmp_path, content)) == PETS


def test_a_line_of_text_is_a_whole_name(tmp_path):
    lines = ["screen, silver screen", "the [other] one", "screen, silver screen"]
    assert read_class_names(write(tmp_path, "\n".join(lines))) == lines


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "holds no name"),
        ([], "holds no name"),
        ('["cat",\n', "not valid JSON at line 2 column 1"),
        ({"names": PETS}, "expected a list, or an object with `categories` or `classes`"),
        (["cat", 3], "entry 0 is 'cat'"),
        ([{"name": "cat"}, {"title": "dog"}], "entry 1 is {'title': 'dog'}"),
        ([{"id": 1, "name": "a"}, {"id": 3, "name": "b"}], "2 entries, and none has id 2"),
        ([{"id": 0, "name": "a"}, {"id": 0, "name": "b"}], "none has id 1"),
        ([{"id": 0, "name": "a"}, {"name": "b"}], "none has id 1"),
        ([{"id": 5, "name": "a"}], "none has id 1"),
    ],
)
def test_what_is_no_class_list_is_named(tmp_path, content, message):
    path = write(tmp_path, content)
    with pytest.raises(DataError) as error:
        read_class_names(path)
    assert str(path) in str(error.value) and message in str(error.value)


def test_missing_and_binary_files(tmp_path):
    with pytest.raises(MissingFileError, match="class list .*none.txt does not exist"):
        read_class_names(tmp_path / "none.txt")
    (tmp_path / "image.png").write_bytes(b"\x89PNG\xff")
    with pytest.raises(DataError, match="not a text file, see byte 0"):
        read_class_names(tmp_path / "image.png")
