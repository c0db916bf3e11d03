"""Sampling rules, one file each; importing a file registers its rule."""

from lt_det.data.rules import (  # noqa: F401  registration
    balanced,
    cben,
    class_aware,
    effective,
    instance,
    power,
    progressive,
    reverse,
)
from lt_det.data.rules.base import SAMPLING_RULES, SamplingRule, build_rule, rule_parameters

__all__ = ["SAMPLING_RULES", "SamplingRule", "build_rule", "rule_parameters"]
