"""Classifiers: what the loss asks for, initialisation, cosines."""

import math

import pytest
import torch

from lt_det.errors import ConfigError
from lt_det.losses import build_loss
from lt_det.modeling import CosineClassifier, build_classifier


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
