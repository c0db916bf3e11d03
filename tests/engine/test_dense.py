"""Dense detectors through the trainer, on a tiny generated set."""

import shutil

import numpy as np
import pytest
import torch

from lt_det.engine import load_config, prepare_config
from lt_det.engine.hooks import named_grad_stats
from lt_det.errors import LtDetError
from lt_det.evaluation.results import read_record
from tests.engine import runs

SMALL = [
    *("MODEL.RETINANET.NUM_CLASSES", "9", "MODEL.RETINANET.NUM_CONVS", "1"),
    *("SOLVER.MAX_ITER", "6", "SOLVER.CHECKPOINT_PERIOD", "3"),
    *("MODEL.LT.FEDERATED.MODE", "annotated"),
]


def train(config, options, output, *more, resume=False):
    """The trainer after the training of a quick configuration."""
    path = f"configs/quick/lvis_{config}.yaml"
    return runs.train(path, [*options, *SMALL], output, *more, resume=resume)


@pytest.mark.parametrize("config", ["retinanet_focal", "retinanet_efl", "atss_efl", "atss_eqfl"])
def test_a_killed_run_goes_on_bit_exactly_and_boxes_are_evaluated(config, tiny_options, tmp_path):
    """With repeat factors, class lists and the running mean of positives."""
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    options = [*tiny_options, "MODEL.LT.DENSE.NORMALIZER", "running"]
    trainer = train(config, options, whole)
    resumed.mkdir()
    shutil.copy(whole / "model_0000002.pth", resumed)
    (resumed / "last_checkpoint").write_text("model_0000002.pth")
    np.random.seed(5), torch.manual_seed(5)  # as another process would have them
    train(config, options, resumed, resume=True)
    states = [torch.load(f / "model_final.pth", weights_only=True) for f in (whole, resumed)]
    assert runs.differences(*states) == []
    assert states[0]["model"]["normalizer.running"] not in (0, 100)
    assert list(named_grad_stats(trainer.model)) == ([] if "focal" in config else [""])

    record = read_record(whole / "results" / "tiny_val.json")
    assert list(record["metrics"]) == ["bbox"]
    assert len(record["per_class"]["name"]) == 9
    assert "segm_ap" not in record["per_class"]


def test_the_recipe_clips_the_joint_norm(tiny_options, tmp_path):
    tight = ["SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 1e-3, "SOLVER.MAX_ITER", 1]
    trainer = train("retinanet_efl", tiny_options, tmp_path / "run", *tight)
    assert trainer.cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE == "full_model"
    grads = [p.grad for p in trainer.model.parameters() if p.grad is not None]
    norm = torch.cat([g.flatten() for g in grads]).double().norm().item()
    # torch sums millions of squares in float32; the gradient before has a norm of about 13.
    assert norm == pytest.approx(1e-3, rel=1e-2)


def test_a_backbone_of_another_detector_is_taken(tiny_options, tmp_path):
    train("retinanet_focal", tiny_options, tmp_path / "first", "SOLVER.MAX_ITER", 1)
    weights = tmp_path / "first" / "model_final.pth"
    more = ["MODEL.LT.BACKBONE_WEIGHTS", weights, "SOLVER.BASE_LR", 0.0, "SOLVER.MAX_ITER", 1]
    trainer = train("atss_efl", tiny_options, tmp_path / "second", *more)
    ours = trainer.model.state_dict()
    stored = torch.load(weights, weights_only=True)["model"]
    names = [n for n in stored if n.startswith("backbone.bottom_up.") and n.endswith("weight")]
    assert len(names) > 20
    assert all(torch.equal(ours[n], stored[n]) for n in names)


WRONG = {
    "classes": (["MODEL.RETINANET.NUM_CLASSES", "7"], "RETINANET.NUM_CLASSES is 7 .*9 classes"),
    "masks": (["MODEL.MASK_ON", "True"], "MODEL.MASK_ON is True"),
    "loss": (["MODEL.LT.LOSS.NAME", "EQLv2"], "'EQLv2'.*Accepted are EFL, EQFL.*SigmoidEQL"),
    "normaliser": (["MODEL.LT.DENSE.NORMALIZER", "world"], "'world'; accepted are ranks"),
    "metric": (
        ["TEST.LT.BEST_METRIC", "segm/APr", "TEST.EVAL_PERIOD", "5"],
        "'segm/APr'.*bbox/APr",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_values_are_named_before_anything_is_written(what, tiny_options):
    more, message = WRONG[what]
    with pytest.raises(LtDetError, match=f"(?s){message}"):
        prepare_config(
            load_config("configs/quick/lvis_atss_efl.yaml", [*tiny_options, *SMALL, *more])
        )


def test_passes_with_positives_of_their_own_are_not_one_batch(tiny_options):
    options = [*tiny_options, *SMALL, "SOLVER.LT.ACCUMULATION_STEPS", "2"]
    cfg = load_config("configs/quick/lvis_retinanet_efl.yaml", options)
    with pytest.raises(LtDetError, match="ACCUMULATION_STEPS is 2.*dense detector"):
        prepare_config(cfg)
