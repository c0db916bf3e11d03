"""tools/benchmark.py mask-rle: it times and compares what it says."""

import json

import numpy as np
import pytest

from tests.tools.load import load_tool

command = load_tool("benchmark")


@pytest.fixture
def part(monkeypatch):
    part = command.benchmark_masks
    monkeypatch.setattr(part, "SIZE", (90, 120))
    monkeypatch.setattr(part, "SIDES", (6, 80))
    return part


def test_masks_are_measured_and_agree(part, tmp_path, capsys):
    output = tmp_path / "record.json"
    arguments = ["mask-rle", "--masks", "12", "--repeats", "3", "--compared", "2"]
    assert command.main([*arguments, "--output", str(output)]) == 0
    record = json.loads(output.read_text())
    printed = capsys.readouterr().out
    assert f"{part.head(record)}\n\n{part.table(record['results'])}" in printed
    cases = [(result["content"], result["name"]) for result in record["results"]]
    assert cases == [(content, way) for content in part.CONTENTS for way in part.WAYS]
    assert all(len(result["ms"]) == 3 for result in record["results"])
    assert "the strings of 24 masks of each kind are equal" in printed
    # The images of Detectron2 are held at once.
    peaks = {result["name"]: result["peak_bytes"] for result in record["results"]}
    assert peaks["Detectron2"] > 12 * 90 * 120


def test_strings_that_differ_stop_the_benchmark(part, monkeypatch):
    monkeypatch.setattr(part, "encode_masks", lambda masks, boxes, size: [b""] * len(masks))
    with pytest.raises(ValueError, match=r"12 of 12 strings \(blobs\) are not equal"):
        part.measure(12, 1, 1)


def test_blobs_are_regions_with_soft_borders_and_noise_is_not(part):
    rng = np.random.default_rng(0)
    blobs, noise = (part.make_masks(rng, 100, content) for content in part.CONTENTS)

    def changes(masks):
        inside = masks >= 0.5
        return (inside[:, 1:] != inside[:, :-1]).sum(axis=1).mean()

    assert 0.1 < (blobs >= 0.5).mean() < 0.9
    assert 0.02 < ((blobs > 0.2) & (blobs < 0.8)).mean() < 0.3
    assert changes(blobs) < 2.5 and changes(noise) > 12


def test_the_table_has_ratios_of_medians_to_detectron2(part):
    results = [
        {"content": "blobs", "name": part.DETECTRON2, "ms": [7.0, 9.0, 70.0], "peak_bytes": 9e7},
        {"content": "blobs", "name": part.OURS, "ms": [1.0, 2.0, 3.0], "peak_bytes": 4e6},
    ]
    rows = part.table(results).splitlines()[2:]
    assert rows == [
        "| blobs | Detectron2 | 9.0 | 1.0 | 90.0 |",
        "| blobs | lt_det | 2.0 | 4.5 | 4.0 |",
    ]
