"""``SOLVER.CLIP_GRADIENTS``: Detectron2's kinds, and the joint norm."""

import pytest

from lt_det.engine import load_config
from lt_det.engine.optimizer import max_grad_norm
from lt_det.errors import ConfigError


def config(*options):
    return load_config("", ["SOLVER.CLIP_GRADIENTS.ENABLED", True, *options])


def test_only_the_joint_norm_is_ours():
    full = ["SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "full_model"]
    assert max_grad_norm(config(*full, "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 35.0)) == 35.0
    assert max_grad_norm(config("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "norm")) is None
    assert max_grad_norm(load_config("", full)) is None  # not enabled


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("CLIP_TYPE", "all", "CLIP_TYPE is 'all'; accepted are value, norm, full_model"),
        ("CLIP_VALUE", 0.0, "CLIP_VALUE 0.0; .* a value above 0"),
        ("NORM_TYPE", 1.0, "NORM_TYPE 1.0 .* accepted are 2.0"),
    ],
)
def test_other_values_are_named(key, value, message):
    options = ["SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "full_model"]
    with pytest.raises(ConfigError, match=message):
        max_grad_norm(config(*options, f"SOLVER.CLIP_GRADIENTS.{key}", value))
