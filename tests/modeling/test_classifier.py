"""Classifiers: what the loss asks for, initialisation, cosines."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from lt_det.errors import ConfigError
from lt_det.losses import build_loss
from lt_det.modeling import CosineClassifier, build_classifier

GOLDEN = Path(__file__).parents[1] / "golden"
# As stated with the vectors, see tests/golden/README.md.
F64, F32 = dict(rtol=1e-9, atol=1e-12), dict(rtol=1e-4, atol=1e-6)


def eqlv2(classes=5):
    return build_loss("EQLv2", num_classes=classes, has_background=True)


def test_the_loss_says_how_many_outputs():
    for name, outputs in [("SoftmaxCE", 6), ("EQLv2", 6), ("SigmoidBCE", 5), ("SigmoidEQL", 5)]:
        loss = build_loss(name, num_classes=5, has_background=True)
        assert build_classifier(loss, 3).out_features == outputs


def test_a_sigmoid_loss_starts_every_output_at_its_prior():
    classifier = build_classifier(eqlv2(), 8)
    # -log(0.999 / 0.001) = -6.9068
    torch.testing.assert_close(classifier.bias, torch.full((6,), -6.906755))
    assert torch.allclose(torch.sigmoid(classifier.bias), torch.tensor(0.001))


def test_a_softmax_loss_starts_without_a_prior_unless_asked():
    loss = build_loss("SoftmaxCE", num_classes=5, has_background=True)
    assert (build_classifier(loss, 8).bias == 0).all()
    asked = build_classifier(loss, 8, prior_prob=0.25)
    assert torch.allclose(asked.bias, torch.tensor(-math.log(3.0)))
    assert (build_classifier(eqlv2(), 8, prior_prob=0.0).bias == 0).all()


def test_initial_weights_have_the_given_spread():
    torch.manual_seed(0)
    weight = build_classifier(eqlv2(200), 500, init_std=0.03).weight
    # 1e5 draws: the standard error of the spread is 0.03 / sqrt(2e5) = 7e-5.
    assert abs(weight.std().item() - 0.03) < 3e-4


def test_cosine_does_not_depend_on_lengths():
    torch.manual_seed(1)
    layer = CosineClassifier(7, 4, scale=3.0)
    x = torch.randn(5, 7)
    reference = 3 * torch.nn.functional.cosine_similarity(x[:, None], layer.weight[None], dim=2)
    torch.testing.assert_close(layer(x), reference)
    before = layer(x)
    with torch.no_grad():
        layer.weight.mul_(torch.tensor([[1.0], [10.0], [0.1], [5.0]]))
    torch.testing.assert_close(layer(100 * x), before)


def test_cosine_rows_start_at_unit_length():
    torch.manual_seed(2)
    layer = CosineClassifier(64, 10)
    torch.testing.assert_close(layer.weight.norm(dim=1), torch.ones(10))


def test_a_zero_feature_gives_zero_cosines_and_finite_gradients():
    layer = CosineClassifier(3, 2)
    x = torch.zeros(1, 3, requires_grad=True)
    out = layer(x)
    out.sum().backward()
    assert (out == 0).all() and torch.isfinite(x.grad).all()


def test_a_linear_loss_given_cosines_gets_a_scale_and_keeps_its_prior():
    torch.manual_seed(3)
    layer = build_classifier(eqlv2(), 4, name="cosine", scale=20.0)
    x = layer.weight[2:3].detach()  # cosine 1 with class 2
    logits = layer(x)
    torch.testing.assert_close(logits[0, 2], torch.tensor(20 - 6.906755))
    assert (logits >= -20 - 6.91).all()


@pytest.mark.parametrize("prior", [1.0, -0.5, 2.0])
def test_a_prior_that_is_no_probability_is_an_error(prior):
    with pytest.raises(ConfigError, match=f"PRIOR_PROB is {prior}.*accepted"):
        build_classifier(eqlv2(), 4, prior_prob=prior)


def test_an_unknown_classifier_is_an_error():
    with pytest.raises(ConfigError, match="'cosin'.*linear, cosine"):
        build_classifier(eqlv2(), 4, name="cosin")


def vector_jacobian(layer, weight, x, upstream):
    """Output, and the gradients of features and weight (L, D)."""
    layer = layer.to(x.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
    x = x.clone().requires_grad_()
    out = layer(x)
    out.backward(upstream)
    return out.detach(), x.grad, layer.weight.grad


@pytest.mark.parametrize(
    "path", sorted((GOLDEN / "classification").glob("cosine_*.npz")), ids=lambda p: p.stem
)
def test_golden_cosine(path):
    data = {k: torch.as_tensor(v) for k, v in np.load(path).items() if k != "meta"}
    weight = data["weight"].T  # stored (D, L) there
    out, grad_x, grad_weight = vector_jacobian(
        CosineClassifier(*data["weight"].shape), weight, data["features"], data["upstream"]
    )
    torch.testing.assert_close(out, data["cosine"], **F64)
    torch.testing.assert_close(grad_x, data["grad_features"], **F64)
    torch.testing.assert_close(grad_weight, data["grad_weight"].T, **F64)


def norm_linear(precision):
    data = np.load(GOLDEN / "equalization" / "norm_linear_layers.npz")
    dtype = {"f64": torch.float64, "f32": torch.float32}[precision]
    names = ("x", "w_in_out", "bias", "grad_out")
    return data, *(torch.as_tensor(data[name]).to(dtype) for name in names)


@pytest.mark.parametrize("precision,tolerance", [("f64", F64), ("f32", F32)])
def test_golden_normalised_linear_of_softmax_eql(precision, tolerance):
    """Temperature 30, no bias."""
    data, x, weight, _, upstream = norm_linear(precision)
    layer = CosineClassifier(*weight.shape, scale=30.0)
    ours = vector_jacobian(layer, weight.T, x, upstream)
    for value, name in zip(ours, ("out", "grad_x", "grad_w"), strict=True):
        expected = torch.as_tensor(data[f"up_{name}_{precision}"])
        expected = expected.T if name == "grad_w" else expected
        torch.testing.assert_close(value, expected, **tolerance)


# Without `eps` a norm n differs by the share 1e-6 / n; compared with the largest entry, because
# an entry may be a small difference of large terms.
@pytest.mark.parametrize(
    "precision,eps,tolerance", [("f64", 1e-6, F64), ("f32", 1e-6, F32), ("f64", 0.0, None)]
)
def test_golden_normalised_linear_of_seesaw(precision, eps, tolerance):
    """Temperature 20, with bias, 1e-6 added to the norms."""
    data, x, weight, bias, upstream = norm_linear(precision)
    layer = CosineClassifier(*weight.shape, scale=20.0, bias=True, eps=eps)
    with torch.no_grad():
        layer.bias.copy_(bias)
    ours = vector_jacobian(layer, weight.T, x, upstream)
    shortest = min(x.norm(dim=1).min(), weight.norm(dim=0).min()).item()
    for value, name in zip(ours, ("out", "grad_x", "grad_w_out_in"), strict=True):
        expected = torch.as_tensor(data[f"mmdet_{name}_{precision}"])
        # Two norms in every entry, and a second time in a gradient.
        coarse = dict(rtol=0, atol=4e-6 / shortest * expected.abs().max().item())
        torch.testing.assert_close(value, expected, **(tolerance or coarse))


def test_a_zero_feature_is_no_trouble_with_eps():
    x = torch.zeros(1, 3, requires_grad=True)
    out = CosineClassifier(3, 2, eps=1e-6)(x)
    out.sum().backward()
    assert (out == 0).all() and torch.isfinite(x.grad).all()
