"""Tables of the README files are what the records give."""

import re

from tests.tools.load import load_tool

tables = load_tool("update_tables")


def test_the_tables_are_up_to_date():
    for name in tables.FILES:
        text = (tables.ROOT / name).read_text()
        assert tables.fill(text) == text, f"{name}: run tools/update_tables.py"
        assert "<!-- table:" in text


def test_numbers_in_the_table_are_means_of_the_records():
    records = tables.quick_records()
    rows = {line.split("|")[1].strip(): line for line in tables.quick_table().splitlines()}
    for recipe, label in tables.RECIPES.items():
        runs = records[recipe]
        assert sorted(r["run"]["seed"] for r in runs) == [1, 2, 3]
        assert all(r["run"]["iteration"] == 1000 for r in runs)
        mean = sum(r["metrics"]["bbox"]["AP"] for r in runs) / 3
        assert float(re.search(r"\d+\.\d", rows[label])[0]) == round(mean, 1)


def test_equalization_raises_rare_classes_in_every_seed():
    """What the first page of the README claims."""
    records = tables.quick_records()
    worst = min(r["metrics"]["bbox"]["APr"] for r in records["eqlv2"])
    best = max(r["metrics"]["bbox"]["APr"] for r in records["softmax"])
    assert worst > best
    assert min(r["metrics"]["bbox"]["AP"] for r in records["eqlv2"]) > 20
