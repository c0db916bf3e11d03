"""tools/benchmark.py: what it compares computes the same, and its memory counter counts."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lt_det.data.rules import SAMPLING_RULES
from lt_det.losses import LOSS_REGISTRY, build_loss
from tests.tools.load import load_tool

command = load_tool("benchmark")


@pytest.fixture(scope="module")
def script():
    return command.benchmark_losses


RELEASED = [name for name in ("EQLv2", "EFL", "SoftmaxEQL") if name in LOSS_REGISTRY]


@pytest.mark.parametrize("has_background", [True, False], ids=["background", "none"])
@pytest.mark.parametrize("name", RELEASED)
def test_the_released_style_equals_our_loss_in_value_gradient_and_statistics(
    script, name, has_background
):
    rows, classes, steps = 40, 6, 4
    loss = build_loss(name, num_classes=classes, has_background=has_background)
    released = script.RELEASED[name](loss.num_logits, classes)
    for statistics in ("pos", "neg", "ratio"):
        setattr(released, statistics, getattr(released, statistics).double())
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        z = torch.randn(rows, loss.num_logits, generator=generator, dtype=torch.float64) * 2
        # Class 0 has no example at all.
        targets = torch.randint(1, classes + int(has_background), (rows,), generator=generator)
        a, b = z.clone().requires_grad_(), z.clone().requires_grad_()
        expected = released(a, targets)
        # The released equalized focal loss is divided by the foreground rows.
        normalizer = (targets < classes).sum() if name == "EFL" else None
        value = sum(loss(b, targets, normalizer=normalizer).values())
        value.backward()
        torch.testing.assert_close(value.detach(), expected)
        torch.testing.assert_close(b.grad, a.grad)
        torch.testing.assert_close(loss.stats.pos, released.pos[:classes])
        torch.testing.assert_close(loss.stats.neg, released.neg[:classes])
    assert (loss.stats.pos[1:] > 0).all() and loss.stats.pos[0] == 0


def test_torchs_losses_are_those_of_the_registry(script):
    """The plain losses that the table compares with are our baselines in torch's words."""
    problem = script.Problem(30, 5, True)
    targets = problem.targets()
    for reference, name, columns in [("torch BCE", "SigmoidBCE", 5), ("torch CE", "SoftmaxCE", 6)]:
        a, b = problem.logits(columns), problem.logits(columns)
        value = build_loss(name, num_classes=5, has_background=True)(b, targets)["loss_cls"]
        value.backward()
        torch.testing.assert_close(script.TORCH[reference](a, targets), value.detach())
        torch.testing.assert_close(a.grad, b.grad)


def test_torchs_focal_loss_by_hand(script):
    logits = torch.tensor([[0.3, -1.2]], requires_grad=True)
    value = script.torch_focal(logits, torch.tensor([1]))
    p = torch.sigmoid(logits.detach()[0])
    by_hand = -0.75 * p[0] ** 2 * (1 - p[0]).log() - 0.25 * (1 - p[1]) ** 2 * p[1].log()
    torch.testing.assert_close(value, by_hand)


def test_one_hot_of_background_is_all_zeros_where_it_has_no_column(script):
    targets = torch.tensor([2, 0, 3])
    assert script.one_hot(targets, torch.empty(3, 3)).tolist() == [[0, 0, 1], [1, 0, 0], [0, 0, 0]]
    assert torch.equal(script.one_hot(targets, torch.empty(3, 4)), F.one_hot(targets, 4).float())


def test_the_memory_counter_counts_allocations_exactly(script):
    kept = []

    def call():
        kept.append(torch.empty(1000))  # 4000 bytes, stays
        temporary = torch.empty(500, dtype=torch.float64)  # 4000 more
        del temporary
        kept.append(torch.empty(2000, dtype=torch.uint8))  # 6000 held, below the 8000 before
        kept[0].add_(1)

    assert script.peak_extra_bytes(call) == 8000
    x = torch.ones(256)
    # exp and its square are alive together, 1024 bytes each; x is not counted.
    assert script.peak_extra_bytes(lambda: x.exp().square()) == 2048
    assert script.peak_extra_bytes(lambda: None) == 0


def test_memory_held_in_backward_counts(script):
    x = torch.ones(1000, requires_grad=True)

    def call():
        x.exp().sum().backward()

    # The result of exp, saved, the gradient of x, and two scalars, the sum and its gradient of 1.
    assert script.peak_extra_bytes(call) == pytest.approx(8000, abs=16)


def test_the_table_has_every_registered_loss(script, tmp_path, capsys):
    output = tmp_path / "record.json"
    arguments = ["losses", "--rows", "12", "--classes", "7", "--repeats", "3"]
    assert command.main([*arguments, "--output", str(output)]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.split("|")[1].strip() for line in lines if line.startswith("|")]
    assert set(LOSS_REGISTRY) < set(names)
    assert {f"{name}, released style" for name in RELEASED} < set(names)

    record = json.loads(output.read_text())
    assert [result["name"] for result in record["results"]] == names[2:]
    assert all(len(result["ms"]) == 3 for result in record["results"])
    assert all(result["extra_bytes"] > 0 for result in record["results"])
    assert record["problem"]["rows"] == 12 and record["environment"]["torch"] == torch.__version__


def test_segmentation_compares_the_losses_used_there_without_background(script, capsys):
    arguments = ["losses", "--segmentation", "--rows", "12", "--classes", "7", "--repeats", "1"]
    assert command.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    names = {line.split("|")[1].strip() for line in lines if line.startswith("|")}
    ours = {name for name in script.SEGMENTATION_LOSSES if name in LOSS_REGISTRY}
    assert {"torch CE", *ours} <= names and "EQLv2" not in names


def test_ratios_are_those_of_the_medians(script):
    results = [
        script.Measurement("torch BCE", "torch BCE", "", [9.0, 2.0, 4.0], 0, 3.0),
        script.Measurement("A", "torch BCE", "A, released style", [1.0, 2.0, 30.0], 0, 1.0),
        script.Measurement("A, released style", "torch BCE", "", [16.0, 16.0, 16.0], 0, 6.0),
    ]
    row = script.table(results).splitlines()[3]
    assert row == "| A | 2.0 | torch BCE | 0.50 | 0.125 | 1.00 |"


def test_an_unknown_loss_is_one_line(script, capsys):
    assert command.main(["losses", "--only", "EQLv3"]) == 1
    assert "unknown loss 'EQLv3'" in capsys.readouterr().err


# Released hyper-parameters; numbers of the original code, see tests/golden/README.md.
GOLDEN = Path(__file__).parents[1] / "golden" / "equalization"
VECTORS = {
    "EQLv2": "eqlv2_C10_N64.npz",
    "EFL": "efl_C10_N96.npz",
    "SoftmaxEQL": "softmax_eql_C10_N64.npz",
}


@pytest.mark.parametrize("name", [n for n, f in VECTORS.items() if (GOLDEN / f).exists()])
def test_the_released_style_is_the_released_loss(script, name):
    data = np.load(GOLDEN / VECTORS[name])
    classes = len(data["s0_pos_grad_f64"])
    released = script.RELEASED[name](data["s0_logits"].shape[1], classes)
    for t in range(int(data["num_steps"])):
        logits = torch.as_tensor(data[f"s{t}_logits"]).double()
        targets = torch.as_tensor(data[f"s{t}_labels"])
        if name == "EFL":  # there 0 is the background, and -1 is ignored
            logits, targets = logits[targets >= 0], targets[targets >= 0]
            targets = torch.where(targets == 0, classes, targets - 1)
        if not len(targets):
            continue
        logits.requires_grad_()
        value = released(logits, targets)
        tolerance = dict(rtol=1e-6, atol=1e-9)  # its sums start in float32
        expected = torch.as_tensor(data[f"s{t}_loss_f64"]).reshape(())
        torch.testing.assert_close(value, expected.double(), **tolerance)
        for sums, key in [(released.pos, "pos_grad"), (released.neg, "neg_grad")]:
            expected = torch.as_tensor(data[f"s{t}_{key}_f64"])
            torch.testing.assert_close(sums[:classes].double(), expected.double(), **tolerance)


# ---- load-lvis -------------------------------------------------------------------------------


def test_the_generated_file_is_the_same_each_time_and_of_lvis_form(tmp_path):
    loading = command.benchmark_loading
    for name in ("a", "b"):
        loading.write_lvis(tmp_path / name, 30)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    data = json.loads((tmp_path / "a").read_text())
    assert list(data) == ["info", "annotations", "images", "categories"]
    assert len(data["images"]) == 30 and len(data["categories"]) == 1203
    assert len(data["annotations"]) == round(30 * 1_281_912 / 100_170)
    values = [v for ann in data["annotations"] for polygon in ann["segmentation"] for v in polygon]
    assert all(v == round(v, 2) for v in values)


def test_starts_are_measured_and_their_records_compared(tmp_path, capsys):
    output = tmp_path / "record.json"
    arguments = ["load-lvis", "--images", "120", "--repeats", "1", "--output", str(output)]
    assert command.main(arguments) == 0
    printed = capsys.readouterr().out
    record = json.loads(output.read_text())
    results = record["results"]
    assert results["records_equal"] is True and results["factors_equal"] is True
    # All images with annotations, and nothing else, however they are read.
    assert {run["images"] for runs in results["starts"].values() for run in runs} == {120}
    assert command.benchmark_loading.table(results) in printed
    assert record["problem"]["images"] == 120


def test_the_loading_table_has_ratios_of_medians():
    def runs(*seconds):
        return [{"seconds": s, "peak_mb": 1000 * s} for s in seconds]

    results = {
        "starts": {"detectron2": runs(9, 8, 1), "first": runs(2), "later": runs(0.5)},
        "record_us": {"detectron2": 20, "lt_det": 25},
        "records_equal": True,
        "factors_equal": False,
    }
    table = command.benchmark_loading.table(results)
    assert "| lt_det, first start | 2.00 | 4.0 | 2000 | 0.25 |" in table
    assert "lt_det 25 us (1.25x). Records are equal, repeat factors are NOT equal." in table


# ---- samplers ----------------------------------------------------------------------------------


def test_samplers_are_measured_for_every_rule_and_form(tmp_path, capsys):
    output = tmp_path / "record.json"
    arguments = ["samplers", "--images", "60", "--annotations", "300", "--classes", "9"]
    assert command.main([*arguments, "--repeats", "2", "--output", str(output)]) == 0
    record = json.loads(output.read_text())
    names = {result["name"] for result in record["results"]}
    for rule in SAMPLING_RULES:
        for form in SAMPLING_RULES.get(rule).forms:
            assert f"{rule} ({form}), class sets and factors" in names
    assert all(len(result["ms"]) == 2 for result in record["results"])
    assert command.benchmark_samplers.table(record["results"]) in capsys.readouterr().out


def test_columns_and_dicts_of_the_samplers_benchmark_hold_the_same():
    data = command.benchmark_samplers.generate(40, 200, 7)
    sets, records = data.sets(), data.records()
    assert sum(len(r["annotations"]) for r in records) == 200 and len(sets) == 40
    for k, record in enumerate(records):
        assert sets[k].tolist() == sorted({a["category_id"] for a in record["annotations"]})


def test_factors_that_are_not_detectron2s_stop_the_benchmark():
    with pytest.raises(ValueError, match="not those of Detectron2"):
        command.benchmark_samplers.check_equal(np.ones(3), np.array([1, 1, 2]))


def test_the_samplers_table_has_ratios_of_medians():
    results = [
        {"name": "theirs", "baseline": "", "ms": [30.0, 20.0, 100.0]},
        {"name": "ours", "baseline": "theirs", "ms": [2.0, 2.5, 9.0]},
    ]
    table = command.benchmark_samplers.table(results)
    assert "| theirs | 30.0 | - | - |" in table and "| ours | 2.5 | theirs | 12 |" in table


# ---- load-images -------------------------------------------------------------------------------


def test_image_loaders_are_measured_and_read_back(tmp_path, capsys, monkeypatch):
    images = command.benchmark_images
    monkeypatch.setattr(images, "LARGE", ((64, 48),))
    output = tmp_path / "record.json"
    assert command.main(["load-images", "--repeats", "1", "--output", str(output)]) == 0
    record = json.loads(output.read_text())
    table = images.table(images.cases_of(record))
    assert table in capsys.readouterr().out
    rates = {case.name: case.images / case.seconds[0] for case in images.cases_of(record)}
    assert f"| {rates['64 x 48, mapper']:,.0f} | 64 x 48, torchvision |" in table


# ---- sem-seg-eval ------------------------------------------------------------------------------


@pytest.fixture
def sem_seg(monkeypatch):
    part = command.benchmark_sem_seg
    monkeypatch.setattr(part, "SHAPE", (80, 120))
    monkeypatch.setattr(part, "CLASSES", 20)
    monkeypatch.setattr(part, "REGIONS", 6)
    return part


def test_segmentation_evaluators_are_measured_and_agree(sem_seg, tmp_path, capsys):
    output = tmp_path / "record.json"
    arguments = ["sem-seg-eval", "--images", "2", "--repeats", "3", "--output", str(output)]
    assert command.main(arguments) == 0
    record = json.loads(output.read_text())
    printed = capsys.readouterr().out
    assert f"{sem_seg.head(record)}\n\n{sem_seg.table(record['results'])}" in printed
    assert [result["name"] for result in record["results"]] == list(sem_seg.WAYS)
    assert all(len(ms) == 6 for result in record["results"] for ms in result["ms"].values())
    # Only Detectron2's evaluator keeps predictions.
    assert [result["held_bytes"] > 0 for result in record["results"]] == [True, False, False, False]


def test_predictions_of_the_segmentation_benchmark_are_regions_and_mostly_right(sem_seg):
    labels = sem_seg.make_labels(np.random.default_rng(0))
    scores = sem_seg.make_scores(labels, torch.Generator().manual_seed(0))
    valid = labels != sem_seg.IGNORED
    predicted = scores.argmax(0).numpy()
    assert 0.5 < (predicted == labels)[valid].mean() < 0.99
    assert 0.8 < valid.mean() < 1
    # Three in four pixels and more have the class of the next one.
    assert (predicted[:, 1:] == predicted[:, :-1]).mean() > 0.75


def test_evaluators_that_differ_stop_the_benchmark(sem_seg):
    same = {"sem_seg": dict.fromkeys(("mIoU", "fwIoU", "mACC", "pACC"), 50.0)}
    other = {"sem_seg": {**same["sem_seg"], "mACC": 50.1}}
    sem_seg.check_equal({"Detectron2": same, "lt_det": same})
    with pytest.raises(ValueError, match="mACC is not Detectron2's"):
        sem_seg.check_equal({"Detectron2": same, "lt_det": other})


def test_the_segmentation_table_has_ratios_of_medians_to_detectron2(sem_seg):
    results = [
        {"name": "theirs", "ms": dict.fromkeys(sem_seg.PARTS, [8.0, 9.0, 70.0]), "held_bytes": 5e4},
        {"name": "ours", "ms": dict.fromkeys(sem_seg.PARTS, [1.0, 2.0, 3.0]), "held_bytes": 0},
    ]
    rows = sem_seg.table(results).splitlines()[2:]
    assert rows[0] == "| theirs | 9.00 | 1.0 | 9.00 | 1.0 | 9.00 | 1.0 | 50.0 |"
    assert rows[1] == "| ours | 2.00 | 4.5 | 2.00 | 4.5 | 2.00 | 4.5 | 0.0 |"
