"""The one-pass kernel's parts."""

import pytest
import torch

from lt_det.losses.sigmoid_bce import softplus, softplus_given_sigmoid


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fast_softplus_has_full_relative_precision(dtype):
    x = torch.linspace(-80, 80, 20001, dtype=dtype)
    wide = x.double()
    # log(1 + e^x) = max(x, 0) + log1p(e^-|x|), without torch's softplus.
    expected = wide.clamp(min=0) + torch.log1p(torch.exp(-wide.abs()))
    found = softplus_given_sigmoid(x, torch.sigmoid(x)).double()
    # Two roundings of a few half units each.
    assert ((found - expected).abs() / expected).max() < 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("extreme", [-1e4, -700.0, 100.0, 750.0, 1e4])
def test_fast_softplus_of_extreme_logits_beside_ordinary_ones(extreme):
    for dtype in (torch.float32, torch.float64):
        x = torch.tensor([[0.5, extreme, -3.0]], dtype=dtype)
        torch.testing.assert_close(softplus_given_sigmoid(x, torch.sigmoid(x)), softplus(x))


def test_fast_softplus_passes_nan_on_and_takes_no_entries():
    x = torch.tensor([1.0, float("nan")])
    assert softplus_given_sigmoid(x, torch.sigmoid(x)).isnan().tolist() == [False, True]
    assert softplus_given_sigmoid(torch.empty(0, 3), torch.empty(0, 3)).shape == (0, 3)
