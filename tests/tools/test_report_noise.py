"""What the report says of a difference: beyond noise, within it, or too little to tell."""

import pytest

from lt_det.evaluation.bootstrap import Difference
from tests.tools.load import load_tool

load_tool("report")
# The same module as the one that the script uses.
from reporting.noise import verdict  # noqa: E402

NARROW = "(3 of 10 classes have fewer than 6 test images: the interval is somewhat narrow)"


@pytest.mark.parametrize(
    ("beyond", "judged", "few_images", "words"),
    [
        (True, True, 0, "beyond noise"),
        (False, True, 2, "within noise"),
        (True, True, 3, f"beyond noise {NARROW}"),
        (False, True, 3, f"within noise {NARROW}"),
        (False, False, 10, "too few test images to judge"),
    ],
)
def test_verdicts_say_what_can_be_said(beyond, judged, few_images, words):
    found = Difference(
        *(1.0, 0.5, 1.5, beyond, 10.0, 11.0), judged=judged, classes=10, few_images=few_images
    )
    assert verdict(found) == words
