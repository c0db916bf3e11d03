"""Which classes take part in a row: exact lists, and sampled negatives."""

from itertools import permutations

import pytest
import torch

from lt_det.losses import build_loss, noise
from lt_det.losses.federated import (
    SampledClasses,
    annotated_mask,
    sampled_mask,
    verified_classes,
)


def ids(*values):
    return torch.tensor(values, dtype=torch.int64)


def uniforms(count, classes, seed=0):
    return torch.rand(count, classes, generator=torch.Generator().manual_seed(seed))


# ---- the image's lists -------------------------------------------------------------------------


def test_verified_are_present_and_absent_ones_but_not_those_annotated_in_part():
    # Present 0 and 3, absent 1 and 5, class 3 not exhaustive; nothing known about 2 and 4.
    verified = verified_classes(ids(0, 3), ids(1, 5), ids(3), 6)
    assert verified.tolist() == [True, True, False, False, False, True]


def test_an_image_without_lists_has_nothing_verified():
    assert not verified_classes(ids(), ids(), ids(), 4).any()


def test_a_row_adds_its_own_class_and_nothing_else():
    verified = torch.tensor([True, True, False, False, False, True])
    # A region of class 0, one of the class annotated in part, background, an ignored one.
    mask = annotated_mask(ids(0, 3, 6, -1), verified.expand(4, -1))
    assert mask.long().tolist() == [
        [1, 1, 0, 0, 0, 1],
        [1, 1, 0, 1, 0, 1],
        [1, 1, 0, 0, 0, 1],
        [1, 1, 0, 0, 0, 1],
    ]


def test_no_rows_give_an_empty_mask():
    assert annotated_mask(ids(), torch.ones(0, 5, dtype=torch.bool)).shape == (0, 5)


@pytest.mark.parametrize("name", ["SigmoidEQL", "EQLv2"])
def test_masked_classes_add_nothing_to_gradient_and_accumulators(name):
    """Two images with different lists; the sums are those of the entries that take part."""
    torch.manual_seed(0)
    loss = build_loss(name, num_classes=4, has_background=True)
    logits = torch.randn(3, loss.num_logits, dtype=torch.float64, requires_grad=True)
    targets = ids(0, 4, 4)
    first, second = ids(0), ids(2)  # image 1: 0 present, 1 absent; image 2: 2 absent
    verified = torch.stack(
        [verified_classes(first, ids(1), ids(), 4)] * 2
        + [verified_classes(ids(), second, ids(), 4)]
    )
    loss(logits, targets, class_mask=annotated_mask(targets, verified))["loss_cls"].backward()
    p = torch.sigmoid(logits.detach())
    zero = torch.zeros((), dtype=torch.float64)
    torch.testing.assert_close(loss.stats.pos, torch.stack([1 - p[0, 0], zero, zero, zero]))
    expected = torch.stack([p[1, 0], p[0, 1] + p[1, 1], p[2, 2], zero])
    torch.testing.assert_close(loss.stats.neg, expected)
    takes_part = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0]], dtype=torch.bool)
    assert torch.equal(logits.grad[:, :4] != 0, takes_part)


def test_softmax_leaves_masked_classes_out_of_the_denominator():
    logits = torch.randn(2, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    loss = build_loss("SoftmaxCE", num_classes=4, has_background=True)
    targets = ids(3, 4)
    verified = verified_classes(ids(3), ids(1), ids(3), 4).expand(2, -1)
    value = loss(logits, targets, class_mask=annotated_mask(targets, verified))["loss_cls"]
    # Row 0 of class 3 competes with 1 and background; row 1, background, with 1 alone.
    a = torch.logsumexp(logits[0, [1, 3, 4]], 0) - logits[0, 3]
    b = torch.logsumexp(logits[1, [1, 4]], 0) - logits[1, 4]
    torch.testing.assert_close(value, (a + b) / 2)


# ---- sampled negatives -------------------------------------------------------------------------


def test_present_classes_always_take_part_and_the_total_is_kept():
    weights = torch.rand(20, generator=torch.Generator().manual_seed(2)) + 0.1
    targets = ids(3, 20, -1, 7, 3)
    for uniform in uniforms(200, 20):
        mask = sampled_mask(targets, weights, uniform, 6)
        assert mask[3] and mask[7] and mask.sum() == 6


def test_more_present_classes_than_asked_for_all_take_part_and_no_other():
    mask = sampled_mask(ids(1, 2, 5, 8), torch.ones(8), torch.rand(8), 2)
    assert mask.nonzero()[:, 0].tolist() == [1, 2, 5]


def test_a_class_without_examples_is_never_drawn_unless_present():
    weights = torch.tensor([0.0, 1.0, 2.0, 0.0])
    assert sampled_mask(ids(4), weights, torch.rand(4), 4).tolist() == [False, True, True, False]
    assert sampled_mask(ids(0), weights, torch.rand(4), 4).tolist() == [True, True, True, False]


def test_fewer_classes_than_asked_for():
    assert sampled_mask(ids(), torch.ones(3), torch.rand(3), 50).all()


def test_the_first_drawn_negative_follows_the_weights():
    """One negative beside the present class: its probability is w_j / sum of the others' w."""
    counts = torch.tensor([1.0, 4.0, 16.0, 100.0, 400.0])
    weights = counts**0.5
    draws = 20000
    total = sum(sampled_mask(ids(4), weights, u, 2).double() for u in uniforms(draws, 5))
    expected = weights[:4].double() / weights[:4].sum()  # 1, 2, 4, 10 of 17
    # Standard deviation of a share: at most 0.5 / sqrt(20000) = 0.0035; four of them.
    assert (total[:4] / draws - expected).abs().max() < 0.0142
    assert total[4] == draws


def test_two_drawn_negatives_follow_successive_sampling():
    """Inclusion probabilities by enumeration of all orders, as drawing one after the other."""
    weights = torch.tensor([1.0, 3.0, 5.0, 9.0], dtype=torch.float64)
    expected = torch.zeros(4, dtype=torch.float64)
    for first, second in permutations(range(4), 2):
        p = weights[first] / 18 * weights[second] / (18 - weights[first])
        expected[[first, second]] += p
    draws = 20000
    total = sum(sampled_mask(ids(), weights.float(), u, 2).double() for u in uniforms(draws, 4, 1))
    assert (total / draws - expected).abs().max() < 0.0142


def sampler(**kwargs):
    counts = torch.arange(1, 101)
    return SampledClasses(100, counts, **{"num_sampled": 10, **kwargs})


def test_the_module_weighs_by_count_to_the_power():
    torch.testing.assert_close(sampler().weights, torch.arange(1.0, 101) ** 0.5)
    assert (sampler(power=0.0).weights == 1).all()
    assert SampledClasses(2, torch.tensor([0, 9]), power=0.0).weights.tolist() == [0, 1]


def test_draws_differ_from_each_other_between_seeds_and_between_ranks(monkeypatch):
    module, targets = sampler(), ids(5, 100)
    a, b = module(targets), module(targets)
    assert module.noise.draws == 2 and not torch.equal(a, b)
    assert torch.equal(sampler()(targets), a)
    assert not torch.equal(sampler(seed=1)(targets), a)
    monkeypatch.setattr(noise, "rank", lambda: 1)
    assert not torch.equal(sampler()(targets), a)


def test_the_stream_goes_on_after_a_checkpoint_bit_for_bit():
    module, targets = sampler(seed=3), ids(5, 100)
    module(targets)
    state = module.state_dict()
    expected = [module(targets) for _ in range(3)]
    resumed = sampler(seed=99)
    resumed.load_state_dict(state)
    assert all(torch.equal(resumed(targets), mask) for mask in expected)


def test_it_leaves_torchs_generator_alone():
    before = torch.get_rng_state()
    sampler()(ids(1))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "kwargs,message",
    [
        ({"class_counts": None}, "MODEL.LT.CLASS_COUNTS"),
        ({"class_counts": torch.ones(3)}, r"\(3,\).*4 classes"),
        ({"num_sampled": 0}, "num_sampled=0"),
        ({"power": -1.0}, "power=-1.0"),
        ({"power": float("nan")}, "power=nan"),
    ],
)
def test_what_cannot_be_sampled_is_an_error(kwargs, message):
    with pytest.raises(ValueError, match=message):
        SampledClasses(4, **{"class_counts": torch.ones(4), **kwargs})
