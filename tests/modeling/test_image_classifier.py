"""The image classifier on real components."""

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from torch.nn import functional as F

from lt_det.engine import load_config
from lt_det.errors import ConfigError
from lt_det.losses import LOSS_REGISTRY, build_loss
from lt_det.modeling.classifier import ClassScale, tau_normalized_logits

CIFAR = [
    *("MODEL.META_ARCHITECTURE", "LongTailClassifier", "MODEL.DEVICE", "cpu"),
    *("MODEL.BACKBONE.NAME", "build_cifar_resnet_backbone", "MODEL.RESNETS.DEPTH", "8"),
    *("MODEL.RESNETS.NORM", "BN", "MODEL.LT.NUM_CLASSES", "5"),
    *("MODEL.LT.CLASS_COUNTS", "[50, 20, 9, 4, 1]"),
]


def classifier(*options):
    torch.manual_seed(0)
    return build_model(load_config("", [*CIFAR, *map(str, options)]))


def images(count=6, size=16, seed=0):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (count, 3, size, size), dtype=np.uint8)
    return [{"image": torch.from_numpy(x), "label": k % 5} for k, x in enumerate(pixels)]


@pytest.mark.parametrize("name", [n for n in LOSS_REGISTRY if n not in ("EQL", "EQLv2")])
def test_every_loss_trains_and_scores(name):
    """The loss lowers on the batch it is trained on, and scores are its own."""
    model = classifier("MODEL.LT.LOSS.NAME", name)
    batch = images()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    values = []
    for _ in range(25):
        total = sum(model(batch).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        values.append(total.item())
    assert min(values[-5:]) < 0.8 * values[0]
    model.eval()
    with torch.no_grad():
        outputs = model(batch)
        logits = model.logits(model.features(model.preprocess(batch)))
    expected = model.cls_loss.scores(logits)
    torch.testing.assert_close(torch.stack([x["scores"] for x in outputs]), expected)
    assert expected.shape == (6, 5) and (expected >= 0).all() and (expected <= 1).all()


def test_the_loss_is_that_of_pooled_features():
    model = classifier().eval()
    batch = images()
    x = (torch.stack([b["image"] for b in batch]) - model.pixel_mean) / model.pixel_std
    features = model.backbone(x)["res4"].mean((2, 3))
    logits = features @ model.classifier.weight.T + model.classifier.bias
    torch.testing.assert_close(model.logits(model.features(model.preprocess(batch))), logits)
    model.train().backbone.eval()
    targets = torch.tensor([b["label"] for b in batch])
    torch.testing.assert_close(model(batch)["loss_cls"], F.cross_entropy(logits, targets))


@pytest.mark.parametrize("depth,layers", [(18, 18), (50, 50)])
def test_detectron2s_resnets_are_backbones(depth, layers):
    options = ["MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.DEPTH", depth]
    options += ["MODEL.RESNETS.OUT_FEATURES", "['res5']", "MODEL.BACKBONE.FREEZE_AT", 0]
    if depth == 18:
        options += ["MODEL.RESNETS.RES2_OUT_CHANNELS", 64]
    model = classifier(*options)
    convolutions = [m for m in model.backbone.modules() if isinstance(m, torch.nn.Conv2d)]
    shortcuts = [n for n, _ in model.backbone.named_modules() if n.endswith("shortcut")]
    # The convolutions off the shortcuts, and the classifier.
    assert len(convolutions) - len(shortcuts) + 1 == layers
    total = sum(model(images(size=64)).values())
    total.backward()
    assert model.classifier.weight.grad.abs().sum() > 0


def test_frozen_parts_keep_weights_and_running_statistics():
    model = classifier("MODEL.LT.FREEZE", "('backbone',)").train()
    before = {k: v.clone() for k, v in model.backbone.state_dict().items()}
    sum(model(images()).values()).backward()
    assert all(p.grad is None for p in model.backbone.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.backbone.state_dict().items())
    assert model.classifier.weight.grad is not None
    # Features of a frozen backbone do not depend on the rest of the batch.
    one = model.features(model.preprocess(images(1)))
    torch.testing.assert_close(one[0], model.features(model.preprocess(images(6)))[0])


def test_shifted_batch_norm_updates_statistics_alone():
    model = classifier("MODEL.LT.FREEZE", "('backbone',)", "MODEL.LT.FREEZE_NORM", "update").train()
    before = {k: v.clone() for k, v in model.backbone.state_dict().items()}
    sum(model(images()).values()).backward()
    changed = {k for k, v in model.backbone.state_dict().items() if not torch.equal(v, before[k])}
    assert changed and all("running" in k or "num_batches" in k for k in changed)


def test_part_of_a_backbone_can_be_frozen():
    model = classifier("MODEL.LT.FREEZE", "('backbone.stem', 'backbone.res2')").train()
    sum(model(images()).values()).backward()
    assert all(p.grad is None for p in model.backbone.res2.parameters())
    assert all(p.grad is not None for p in model.backbone.res3.parameters())
    assert not model.backbone.stem[1].training and model.backbone.res3[0].norm1.training


def test_class_scale_starts_as_identity_and_learns_alone():
    plain = classifier().eval()
    model = classifier(
        "MODEL.LT.CLASS_SCALE", "True", "MODEL.LT.FREEZE", "('backbone', 'classifier')"
    ).eval()
    batch = images()
    assert torch.equal(model(batch)[0]["scores"], plain(batch)[0]["scores"])
    model.train()
    sum(model(batch).values()).backward()
    trained = [n for n, p in model.named_parameters() if p.grad is not None]
    assert trained == ["class_scale.scale"]
    scale = ClassScale(3)
    scale.scale.data = torch.tensor([1.0, 2.0, 0.5])
    assert scale(torch.ones(2, 3)).tolist() == [[1, 2, 0.5]] * 2


def test_tau_normalisation():
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(4, 3, generator=generator), torch.randn(5, 3, generator=generator)
    torch.testing.assert_close(tau_normalized_logits(x, weight, 0), x @ weight.T)
    unit = x @ F.normalize(weight).T
    torch.testing.assert_close(tau_normalized_logits(x, weight, 1), unit)
    assert tau_normalized_logits(x, torch.zeros(5, 3), 1).eq(0).all()
    model = classifier("TEST.LT.TAU_NORM", 0.7).eval()
    torch.nn.init.normal_(model.classifier.bias)
    features = model.features(model.preprocess(images()))
    expected = tau_normalized_logits(features, model.classifier.weight, 0.7)
    torch.testing.assert_close(model.logits(features), expected)
    model.train()  # training knows nothing of it
    torch.testing.assert_close(model.logits(features), model.classifier(features))


def test_mixup_of_a_restored_model_goes_on():
    options = ["MODEL.LT.MIXUP", "1.0", "MODEL.LT.LOSS.NAME", "GCL", "SEED", "3"]
    first = classifier(*options)
    batch = images()
    first(batch)
    second = classifier(*options)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(batch)["loss_cls"], second(batch)["loss_cls"])


WRONG = [
    (["MODEL.LT.FEATURE", "res9"], "FEATURE is 'res9'.*gives res4"),
    (["MODEL.LT.FREEZE", "('backbone.res9',)"], "FREEZE.*'backbone.res9'.*stem, res2"),
    (["MODEL.LT.FREEZE_NORM", "evaluate"], "FREEZE_NORM is 'evaluate'.*eval, update"),
    (["TEST.LT.TAU_NORM", "1.0", "MODEL.LT.LOSS.NAME", "GCL"], "TAU_NORM is 1.0.*GCL.*cosine"),
    (["MODEL.LT.MIXUP", "-0.5"], "MIXUP is -0.5"),
]


@pytest.mark.parametrize("options,message", WRONG)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        classifier(*options)


def test_a_batch_of_different_sizes_is_refused():
    with pytest.raises(ValueError, match=r"\(3, 8, 8\), \(3, 16, 16\)"):
        classifier()(images(1, 16) + images(1, 8))


def test_soft_scores_of_the_tau_model_are_those_of_the_loss():
    model = classifier("TEST.LT.TAU_NORM", 0.5).eval()
    loss = build_loss("SoftmaxCE", num_classes=5)
    batch = images()
    logits = model.logits(model.features(model.preprocess(batch)))
    torch.testing.assert_close(model(batch)[2]["scores"], loss.scores(logits)[2])
