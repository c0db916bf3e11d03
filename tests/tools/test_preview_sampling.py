"""tools/preview_sampling.py: table, JSON, plot, errors."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.data.conftest import clean_catalogs  # noqa: F401
from tests.data.small_sets import random_set, write_set
from tests.tools.load import load_tool

tool = load_tool("preview_sampling")


@pytest.fixture
def list_file(tmp_path):
    path = tmp_path / "list.txt"
    labels = np.repeat([0, 1, 2], [160, 40, 10])
    path.write_text("".join(f"{i}.jpg {k}\n" for i, k in enumerate(labels)))
    return str(path)


def run(tmp_path, capsys, *arguments):
    out = tmp_path / "out.json"
    cache = ("--cache-dir", str(tmp_path / "cache"))
    assert tool.main([*map(str, arguments), *cache, "--json", str(out)]) == 0
    return capsys.readouterr().out, json.loads(out.read_text())


def test_rules_side_by_side(list_file, tmp_path, capsys):
    arguments = (list_file, "--form", "draw", "--rules", "sqrt", "balanced:form=repeat", "balanced")
    text, content = run(tmp_path, capsys, *arguments)
    labels = ["instance", "sqrt", "balanced:form=repeat", "balanced"]
    assert [rule["label"] for rule in content["rules"]] == labels
    assert [rule["form"] for rule in content["rules"]] == ["repeat", "draw", "repeat", "draw"]
    assert content["num_images"] == 210 and content["per_class"]["images"] == [160, 40, 10]
    assert content["rules"][3]["expected_images"] == pytest.approx([70, 70, 70])
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    (row,) = [row for row in rows if row[0] == "balanced" and len(row) == 8]
    assert row == ["balanced", "draw", "210", "1.00", "7.00", "7.00", "1.0", "0.000"]
    assert "210 images, 3 classes" in text


def test_an_annotation_file_has_shares_of_instances(tmp_path, capsys):
    path, _ = write_set(tmp_path, random_set(0))
    text, content = run(tmp_path, capsys, path)
    assert [rule["rule"] for rule in content["rules"]] == ["instance", *tool.RULES]
    for rule in content["rules"]:
        for unit in ("images", "instances"):
            assert sum(group[unit] for group in rule["groups"].values()) == pytest.approx(1)
    assert "f instances" in text


def test_lines_are_percent_of_an_epoch_from_frequent_to_rare(list_file, tmp_path, capsys):
    plot = tmp_path / "rules.png"
    names = tmp_path / "names.txt"
    names.write_text("a\nnone\nb\nc\n")
    labels = np.repeat([0, 2, 3], [10, 160, 40])
    (tmp_path / "gap.txt").write_text("".join(f"{i}.jpg {k}\n" for i, k in enumerate(labels)))
    arguments = (tmp_path / "gap.txt", "--classes", names, "--rules", "balanced:cap=10")
    arguments += ("--plot", plot)
    _, content = run(tmp_path, capsys, *arguments)
    report = {**content, "num_classes_without_images": 1, "totals": {"images": 210}}
    (axes,) = tool.draw(content["rules"], report).axes
    instance, balanced = axes.lines
    assert instance.get_ydata() == pytest.approx(np.array([160, 40, 10]) / 2.1)
    # Factors 1, 4 and 10, the cap: 160, 160 and 100 of 420.
    assert balanced.get_ydata() == pytest.approx(np.array([160, 160, 100]) / 4.2)
    assert balanced.get_label() == "balanced:cap=10: 2.00 x 210 images"
    assert [text.get_text() for text in axes.get_xticklabels()] == ["b", "c", "a"]
    with Image.open(plot) as picture:
        assert picture.size[0] > 1000


@pytest.mark.parametrize(
    "rules, message",
    [
        (["sqr"], "Did you mean 'sqrt'"),
        (["sqrt:threshold=0"], "threshold=0 in DATALOADER.LT.SAMPLER.PARAMS must be positive"),
        (["progressive"], "rule progressive needs `epochs`"),
    ],
)
def test_errors_are_one_line(list_file, tmp_path, capsys, rules, message):
    cache = ["--cache-dir", str(tmp_path / "cache")]
    assert tool.main([list_file, *cache, "--rules", *rules]) == 1
    text = capsys.readouterr().err
    assert text.startswith("error: ") and message in text and text.count("\n") == 1
