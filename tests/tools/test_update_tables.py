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


def test_the_cifar_table_is_what_its_records_say():
    """Every method is there, with the figure of the last epoch, and GCL + CBEN gains as claimed."""
    rows = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
        for line in tables.cifar_table().splitlines()
        if line.startswith("|")
    }
    top1 = {}
    for name, title in tables.CIFAR_METHODS.items():
        (last, best), *more = tables.cifar_records(name)
        assert last["run"]["selection"] == "last"
        assert best["run"]["selection"] == "best on cifar10_test"
        top1[name] = last["metrics"]["classification"]["top1"]
        assert not more and float(rows[title][1]) == round(top1[name], 1)
        assert not str(last["run"]["config"]).startswith("/")
    assert float(rows["GCL + CBEN"][2]) == round(top1["gcl_cben"] - top1["ce"], 1) >= 4
    # A second stage has taken the time of its first one, too.
    first, second = (float(rows[tables.CIFAR_METHODS[k]][6]) for k in ("gcl", "gcl_cben"))
    assert second > first
