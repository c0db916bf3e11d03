"""Focal loss: golden vectors and the properties of its two forms."""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lt_det.losses import build_loss
from lt_det.losses.focal import softmax_focal
from tests.losses.golden import ROOT

CASES = sorted(ROOT.glob("classification/focal_*.npz"))
# As stated with the vectors, see tests/golden/README.md.
TOLERANCE = {
    "float64": [dict(rtol=1e-9, atol=1e-12)] * 2,
    "float32": [dict(rtol=1e-5, atol=1e-6), dict(rtol=1e-3, atol=1e-6)],
}


@pytest.mark.parametrize("path", CASES, ids=lambda p: p.stem)
def test_golden_of_the_softmax_form(path):
    data = np.load(path)
    meta = json.loads(str(data["meta"]))
    for_value, for_grad = TOLERANCE[meta["dtype"]]
    labels = torch.as_tensor(data["labels"])
    for k, variant in enumerate(meta["variants"]):
        logits = torch.as_tensor(data["logits"]).requires_grad_()
        detach = "detached" in variant["flavour"]
        weights = torch.as_tensor(data["drw_weights"]) if variant["class_weights"] else None
        value = softmax_focal(
            logits,
            labels,
            gamma=variant["gamma"],
            row_weight=logits.new_ones(len(logits)),
            class_weight=weights,
            detach=detach,
        ) / len(labels)
        value.backward()
        torch.testing.assert_close(
            value.detach(), torch.as_tensor(data[f"v{k}_loss"]), check_dtype=False, **for_value
        )
        expected = torch.as_tensor(data[f"v{k}_grad_logits"]).to(logits.dtype)
        torch.testing.assert_close(logits.grad, expected, **for_grad)
        if weights is None:
            loss = build_loss(
                "FocalLoss",
                num_classes=meta["C"],
                form="softmax",
                detach=detach,
                gamma=variant["gamma"],
            )
            torch.testing.assert_close(loss(logits, labels)["loss_cls"], value)


def rows(num_columns=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(14, num_columns, generator=generator, dtype=torch.float64) * 3
    targets = torch.randint(0, 6, (14,), generator=generator)
    return logits.requires_grad_(), targets


def grad_of(value, logits):
    return torch.autograd.grad(value, logits)[0]


def test_the_sigmoid_form_is_the_formula():
    logits, targets = rows()
    loss = build_loss("FocalLoss", num_classes=5, has_background=True, gamma=1.5, alpha=0.4)
    y = F.one_hot(targets, 6)[:, :5].double()
    p_t = torch.where(y > 0, logits.sigmoid(), (-logits).sigmoid())
    alpha_t = torch.where(y > 0, 0.4, 0.6)
    expected = (alpha_t * (1 - p_t) ** 1.5 * -p_t.log()).sum() / 14
    value = loss(logits, targets)["loss_cls"]
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(grad_of(value, logits), grad_of(expected, logits))


def test_gamma_zero_without_alpha_is_binary_cross_entropy():
    logits, targets = rows()
    common = dict(num_classes=5, has_background=True)
    value = build_loss("FocalLoss", gamma=0.0, alpha=-1.0, **common)(logits, targets)["loss_cls"]
    expected = build_loss("SigmoidBCE", **common)(logits, targets)["loss_cls"]
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(grad_of(value, logits), grad_of(expected, logits))


@pytest.mark.parametrize("detach", [False, True])
def test_gamma_zero_is_softmax_cross_entropy(detach):
    logits, targets = rows(6)
    common = dict(num_classes=5, has_background=True)
    loss = build_loss("FocalLoss", form="softmax", gamma=0.0, detach=detach, **common)
    value = loss(logits, targets)["loss_cls"]
    expected = F.cross_entropy(logits, targets)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(grad_of(value, logits), grad_of(expected, logits))


def test_focal_over_cross_entropy_is_the_factor():
    """One output of probability p: the ratio is (1 - p)^gamma."""
    logits = torch.linspace(-4, 4, 9, dtype=torch.float64)[:, None]
    for z in logits:
        targets = torch.tensor([0])
        focal = build_loss("FocalLoss", num_classes=1, gamma=3.0, alpha=1.0)(z[None], targets)
        plain = build_loss("SigmoidBCE", num_classes=1)(z[None], targets)
        ratio = focal["loss_cls"] / plain["loss_cls"]
        torch.testing.assert_close(ratio, (1 - z.sigmoid()[0]) ** 3)


def test_alpha_one_leaves_no_negatives_and_alpha_zero_no_positives():
    logits, targets = rows()
    y = F.one_hot(targets, 6)[:, :5].bool()
    for alpha, silent in ((1.0, ~y), (0.0, y)):
        loss = build_loss("FocalLoss", num_classes=5, has_background=True, alpha=alpha)
        grad = grad_of(loss(logits, targets)["loss_cls"], logits)
        assert (grad[silent] == 0).all() and (grad[~silent] != 0).all()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_the_softmax_gradient_for_small_exponents(gamma):
    """Also where the probability is 1, and the derivative of the factor has no limit."""
    loss = build_loss("FocalLoss", num_classes=5, has_background=True, form="softmax", gamma=gamma)
    logits, targets = rows(6)
    assert torch.autograd.gradcheck(lambda z: loss(z, targets)["loss_cls"], logits)
    sure = torch.tensor([[1e4, 0, 0, 0, 0, 0]], requires_grad=True)
    assert (grad_of(loss(sure, torch.tensor([0]))["loss_cls"], sure) == 0).all()


@pytest.mark.parametrize(
    "params", [{"form": "tanh"}, {"gamma": -1.0}, {"alpha": 1.5}, {"detach": True}]
)
def test_wrong_parameters_are_an_error(params):
    with pytest.raises(ValueError, match="MODEL.LT.LOSS.PARAMS"):
        build_loss("FocalLoss", num_classes=3, **params)
