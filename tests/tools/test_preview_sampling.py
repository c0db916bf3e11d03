"""tools/preview_sampling.py: table, JSON, plot, errors."""

import json

import numpy as np
import pytest
import yaml
from PIL import Image

from lt_det.data.build import class_sets, epoch_order, training_records
from lt_det.data.class_sets import expected_per_class
from lt_det.data.examine import examine
from lt_det.data.rules import build_rule
from lt_det.engine import load_config
from tests.data.conftest import clean_catalogs  # noqa: F401
from tests.data.small_sem_seg import register_sem_seg, write_sem_seg
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


def test_images_without_a_labelled_pixel_are_left_out(tmp_path, capsys):
    name = register_sem_seg("scenes", write_sem_seg(tmp_path / "set"))
    text, content = run(tmp_path, capsys, name, "--rules", "sqrt:threshold=1")
    assert content["num_images"] == 3 and content["num_images_left_out"] == 1
    assert "3 images, 3 classes; 1 images without annotations are left out" in text
    # Classes are in 2, 2 and 1 of 3 images: factors of the images, sqrt(1 / share).
    factors = np.sqrt([3 / 2, 3, 3 / 2])
    expected = [factors[0] + factors[1], factors[0] + factors[2], factors[1]]
    np.testing.assert_allclose(content["rules"][1]["expected_images"], expected)
    _, content = run(tmp_path, capsys, name, "--keep-empty")
    assert content["num_images"] == 4 and content["num_images_left_out"] == 0


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


@pytest.fixture
def configured(tmp_path):
    """A configuration file with a set of 12 images with and 3 without annotations."""
    data = random_set(0)
    data["images"] += [{**data["images"][0], "id": 2000 + k} for k in range(3)]
    path, root = write_set(tmp_path, data)

    def write(**dataloader):
        content = {
            "DATASETS": {
                "TRAIN": ["mine"],
                "LT": {"REGISTER": [{"name": "mine", "json": path, "images": root}]},
            },
            "SOLVER": {"MAX_ITER": 30, "IMS_PER_BATCH": 4},
            "MODEL": {"MASK_ON": False},
            "DATALOADER": {"SAMPLER_TRAIN": "LongTailSampler", **dataloader},
        }
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
        return str(tmp_path / "mine.yaml")

    return write


SAMPLERS = [
    {"LT": {"SAMPLER": {"RULE": "balanced", "PARAMS": {"cap": 3.0}}}},
    {"LT": {"SAMPLER": {"RULE": "sqrt", "FORM": "draw"}}, "FILTER_EMPTY_ANNOTATIONS": False},
    {"LT": {"SAMPLER": {"RULE": "class_aware", "FORM": "draw"}}},
    {"LT": {"SAMPLER": {"RULE": "progressive", "PARAMS": {"end_params": {"cap": 2.0}}}}},
    {"SAMPLER_TRAIN": "RepeatFactorTrainingSampler", "REPEAT_THRESHOLD": 0.3},
]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_configured_rule_is_shown_as_training_draws_it(configured, tmp_path, capsys, sampler):
    file = configured(**sampler)
    text, content = run(tmp_path, capsys, "mine", "--config-file", file, "--rules", "cben")
    assert [rule["label"].endswith("(config)") for rule in content["rules"]] == [False, True, False]
    cfg = load_config(file)
    sets = class_sets(cfg, training_records(cfg))
    order = epoch_order(cfg, sets)
    kept = "FILTER_EMPTY_ANNOTATIONS" in sampler
    assert content["num_images"] == len(sets) == (15 if kept else 12)
    assert content["num_images_left_out"] == (0 if kept else 3)
    assert ("3 images without annotations are left out, as in training" in text) == (not kept)
    rule, repeats = content["rules"][1], order.expected(0)
    assert rule["epoch_length"] == pytest.approx(repeats.sum())
    assert rule["expected_images"] == pytest.approx(expected_per_class(sets, repeats).tolist())


def test_a_progressive_rule_needs_no_epochs_with_a_configuration(configured, tmp_path, capsys):
    file = configured(LT={"SAMPLER": {"RULE": "instance"}})
    rules = ["progressive:form=draw,epoch=1", "progressive:form=draw,epoch=1,epochs=10"]
    text, content = run(tmp_path, capsys, "mine", "--config-file", file, "--rules", *rules)
    # 120 images are ten epochs of draws from 12; the configured rule is the data.
    _, first, second = content["rules"]
    assert first["expected_images"] == second["expected_images"]
    assert "epoch=1 changes: shown is epoch 1, in the end the imbalance factor is " in text


def test_images_without_annotations_may_be_kept(configured, tmp_path, capsys):
    path = configured().replace("mine.yaml", "set.json")
    assert run(tmp_path, capsys, path)[1]["rules"][1]["epoch_length"] < 15
    text, content = run(tmp_path, capsys, path, "--keep-empty")
    assert content["num_images"] == 15 and "without annotations" not in text
    repeats = (
        build_rule("sqrt").order(examine(path, cache_dir=str(tmp_path)).class_sets).expected(0)
    )
    assert content["rules"][1]["epoch_length"] == pytest.approx(repeats.sum())


def test_rules_that_do_nothing_are_told(list_file, tmp_path, capsys):
    rules = ["instance", "sqrt", "sqrt:threshold=0.5", "progressive:epochs=5"]
    text, _ = run(tmp_path, capsys, list_file, "--rules", *rules)
    assert text.count("hardly changes how often classes come") == 1
    assert "sqrt hardly changes how often classes come: the imbalance factor stays at 16.0" in text


def test_nine_rules_can_be_told_apart(list_file, tmp_path, capsys):
    rules = [*"sqrt cben balanced effective reverse instance class_aware".split()]
    rules += ["sqrt:threshold=0.01", "power:exponent=0.6,threshold=0.02,cap=100"]
    rules += ["progressive:epochs=10,epoch=4,start=instance,end=cben,end_params.cap=10"]
    _, content = run(tmp_path, capsys, list_file, "--rules", *rules)
    report = {**content, "num_classes_without_images": 0, "totals": {"images": 210}}
    for selected in (content["rules"], content["rules"][:3]):
        figure = tool.draw(selected, report)
        figure.canvas.draw()
        (legend,) = figure.legends
        box, canvas = legend.get_window_extent(), figure.bbox
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= canvas.x1 and box.y1 <= canvas.y1
        assert legend._ncols <= 3
    lines = tool.draw(content["rules"], report).axes[0].lines
    looks = {
        (
            line.get_color(),
            line.get_linestyle(),
            line._unscaled_dash_pattern[1] and tuple(line._unscaled_dash_pattern[1]),
        )
        for line in lines
    }
    assert len(looks) == len(lines) == 10


@pytest.mark.parametrize(
    "rules, message",
    [
        (["sqr"], "Did you mean 'sqrt'"),
        (["sqrt:threshold=0"], "threshold=0 in --rules must lie in (0, 1]"),
        (["progressive"], "rule progressive needs `epochs` in --rules here"),
    ],
)
def test_errors_are_one_line(list_file, tmp_path, capsys, rules, message):
    cache = ["--cache-dir", str(tmp_path / "cache")]
    assert tool.main([list_file, *cache, "--rules", *rules]) == 1
    text = capsys.readouterr().err
    assert text.startswith("error: ") and message in text and text.count("\n") == 1
