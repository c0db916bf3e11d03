"""The test-suite that every registered loss must pass (design, section 4)."""

import copy
import dataclasses
import io

import pytest
import torch

from lt_det.losses import LOSS_REGISTRY, GradStats, LongTailLoss, build_loss
from lt_det.losses.build import loss_parameters
from tests.losses.loss_cases import (
    ALL_CASES,
    COUNTS,
    NUM_CLASSES,
    STATEFUL_CASES,
    accumulators,
    call,
)

# float64 sums of at most 100 terms in different orders.
TIGHT = dict(rtol=1e-10, atol=1e-12)

every_loss = pytest.mark.parametrize("case", ALL_CASES, ids=str)
every_stateful_loss = pytest.mark.parametrize("case", STATEFUL_CASES, ids=str)


def grad_of(loss, logits, targets, features, **kwargs):
    logits = logits.detach().clone().requires_grad_()
    value = call(loss, logits, targets, features, **kwargs)
    value.backward()
    return value.detach(), logits.grad


def warmed_up(case, steps=3):
    """A loss whose statistics, if any, are no longer at their start."""
    loss = case.build()
    for seed in range(steps):
        grad_of(loss, *case.inputs(20, seed=100 + seed))
    return loss


@every_loss
def test_gradient_is_the_derivative_of_the_value(case):
    # Factors that a loss by definition holds constant in the gradient are switched off.
    exact = case.build().exact_gradient_with
    case = dataclasses.replace(case, params=case.params | exact)
    loss = warmed_up(case).eval()
    logits, targets, features = case.inputs(6)
    targets[0] = -1
    weight = torch.linspace(0.5, 2, 6, dtype=torch.float64)

    def value(z):
        return call(loss, z, targets, features, weight=weight)

    assert torch.autograd.gradcheck(value, logits.requires_grad_())


@every_loss
def test_ignored_rows_count_for_nothing(case):
    case = case.without_noise()
    a, b = warmed_up(case), warmed_up(case)
    logits, targets, features = case.inputs(12)
    ignored = torch.tensor([1, 4, 11])
    targets[ignored] = -1
    kept = torch.tensor([i for i in range(12) if i not in ignored])
    with_ignored = logits.clone()
    with_ignored[ignored] *= 1e4
    value_a, grad_a = grad_of(a, with_ignored, targets, features)
    value_b, grad_b = grad_of(b, logits[kept], targets[kept], features[kept])
    torch.testing.assert_close(value_a, value_b, **TIGHT)
    torch.testing.assert_close(grad_a[kept], grad_b, **TIGHT)
    assert (grad_a[ignored] == 0).all()
    assert_same_state(a, b)


@every_loss
def test_a_row_of_weight_two_is_that_row_twice(case):
    case = case.without_noise()
    a, b = warmed_up(case), warmed_up(case)
    if not a.weight_enters_statistics:
        a.eval(), b.eval()  # compare the losses at the same statistics
    logits, targets, features = case.inputs(8)
    weight = torch.ones(8, dtype=torch.float64)
    weight[3] = 2
    rows = torch.tensor([0, 1, 2, 3, 3, 4, 5, 6, 7])
    value_a, _ = grad_of(a, logits, targets, features, weight=weight, normalizer=4.0)
    value_b, _ = grad_of(b, logits[rows], targets[rows], features[rows], normalizer=4.0)
    torch.testing.assert_close(value_a, value_b, **TIGHT)
    assert_same_state(a, b)


@every_loss
def test_the_normalizer_is_the_number_of_valid_rows(case):
    """Or what the loss says it is instead: the sum of label weights, for example."""
    logits, targets, features = case.inputs(10)
    targets[:3] = -1
    loss = warmed_up(case)
    divisor = loss.default_normalizer(targets).double()
    if type(loss).default_normalizer is LongTailLoss.default_normalizer:
        assert divisor == 7
    default, _ = grad_of(loss, logits, targets, features)
    given, _ = grad_of(warmed_up(case), logits, targets, features, normalizer=divisor)
    halved, _ = grad_of(warmed_up(case), logits, targets, features, normalizer=2 * divisor)
    torch.testing.assert_close(default, given, **TIGHT)
    torch.testing.assert_close(default, 2 * halved, **TIGHT)


@every_loss
@pytest.mark.parametrize("all_ignored", [False, True])
def test_nothing_to_learn_from_gives_a_zero_with_a_graph(case, all_ignored):
    loss = warmed_up(case)
    logits, targets, features = case.inputs(4 if all_ignored else 0)
    targets.fill_(-1)
    value, grad = grad_of(loss, logits, targets, features)
    assert value == 0
    assert grad.shape == logits.shape and (grad == 0).all()


@every_loss
def test_permuting_rows_changes_nothing(case):
    case = case.without_noise()
    a, b = warmed_up(case), warmed_up(case)
    logits, targets, features = case.inputs(15)
    order = torch.randperm(15, generator=torch.Generator().manual_seed(1))
    value_a, grad_a = grad_of(a, logits, targets, features)
    value_b, grad_b = grad_of(b, logits[order], targets[order], features[order])
    torch.testing.assert_close(value_a, value_b, **TIGHT)
    torch.testing.assert_close(grad_a[order], grad_b, **TIGHT)
    assert_same_state(a, b)


@every_loss
def test_permuting_classes_changes_nothing(case):
    case = case.without_noise()
    order = torch.randperm(NUM_CLASSES, generator=torch.Generator().manual_seed(2))
    a = case.build()
    b = build_loss(
        case.name,
        num_classes=NUM_CLASSES,
        has_background=case.has_background,
        class_counts=COUNTS[order],
        **case.params,
    )
    columns = torch.cat([order, torch.arange(NUM_CLASSES, a.num_logits)])
    new_label = torch.argsort(torch.cat([order, torch.tensor([NUM_CLASSES])]))
    for seed in range(3):
        logits, targets, features = case.inputs(15, seed=seed)
        value_a, grad_a = grad_of(a, logits, targets, features)
        value_b, grad_b = grad_of(b, logits[:, columns], new_label[targets], features)
        torch.testing.assert_close(value_a, value_b, **TIGHT)
        torch.testing.assert_close(grad_a[:, columns], grad_b, **TIGHT)


@every_loss
def test_a_mask_of_all_classes_is_no_mask(case):
    a, b = warmed_up(case), warmed_up(case)
    logits, targets, features = case.inputs(9)
    value_a, grad_a = grad_of(a, logits, targets, features)
    mask = torch.ones(9, NUM_CLASSES, dtype=torch.bool)
    value_b, grad_b = grad_of(b, logits, targets, features, class_mask=mask)
    torch.testing.assert_close(value_a, value_b, **TIGHT)
    torch.testing.assert_close(grad_a, grad_b, **TIGHT)
    assert_same_state(a, b)


@every_loss
def test_a_masked_class_has_no_gradient_and_its_logit_no_effect(case):
    a, b = warmed_up(case), warmed_up(case)
    logits, targets, features = case.inputs(20)
    generator = torch.Generator().manual_seed(3)
    mask = torch.rand(20, NUM_CLASSES, generator=generator) > 0.4
    other = logits.clone()
    other[:, :NUM_CLASSES][~mask] += 3.0 if a.classifier == "linear" else 0.1
    value_a, grad_a = grad_of(a, logits, targets, features, class_mask=mask)
    value_b, _ = grad_of(b, other, targets, features, class_mask=mask)
    assert (grad_a[:, :NUM_CLASSES][~mask] == 0).all()
    torch.testing.assert_close(value_a, value_b, **TIGHT)
    assert_same_state(a, b)


@every_loss
@pytest.mark.parametrize("sign", [1, -1])
def test_logits_of_ten_thousand_stay_finite(case, sign):
    loss = warmed_up(case)
    logits, targets, features = case.inputs(6, dtype=torch.float32)
    value, grad = grad_of(loss, sign * logits * 1e4, targets, features.float())
    assert torch.isfinite(value) and torch.isfinite(grad).all()
    stats = accumulators(loss)
    if stats is not None:
        assert stats.skipped == 0
        assert all(torch.isfinite(total).all() for total in stats.sums().values())
    if isinstance(stats, GradStats):
        assert torch.isfinite(stats.ratio()).all()


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_computed_in_float32(case, dtype):
    a, b = warmed_up(case), warmed_up(case)
    logits, targets, features = case.inputs(10, dtype=torch.float32)
    half = logits.to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value_a, grad_a = grad_of(a, half, targets, features.to(dtype))
    value_b, grad_b = grad_of(b, half.float(), targets, features.to(dtype).float())
    torch.testing.assert_close(value_a, value_b, rtol=0, atol=0)
    # The gradient is rounded once, to the dtype of the logits.
    torch.testing.assert_close(grad_a, grad_b.to(dtype), rtol=0, atol=0)
    assert_same_state(a, b)


@every_loss
def test_float32_agrees_with_float64(case):
    logits, targets, features = case.inputs(30)
    a, b = warmed_up(case), warmed_up(case)
    value_a, grad_a = grad_of(a, logits, targets, features)
    value_b, grad_b = grad_of(b, logits.float(), targets, features.float())
    # float32 has 24 bits; a few hundred roundings.
    torch.testing.assert_close(value_b.double(), value_a, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grad_b.double(), grad_a, rtol=1e-4, atol=1e-6)


@every_loss
def test_a_second_backward_gives_the_same_gradient(case):
    loss = case.build()
    logits, targets, features = case.inputs(5)
    logits.requires_grad_()
    value = call(loss, logits, targets, features)
    (first,) = torch.autograd.grad(value, logits, retain_graph=True)
    (second,) = torch.autograd.grad(3 * value, logits)
    torch.testing.assert_close(3 * first, second, **TIGHT)


@every_loss
def test_a_second_backward_after_the_logits_were_changed_in_place_is_an_error_or_right(case):
    """As torch's own functions do: right where it did not keep the logits."""
    loss = case.build()
    leaf, targets, features = case.inputs(5)
    logits = leaf.requires_grad_().clone()
    value = call(loss, logits, targets, features)
    (first,) = torch.autograd.grad(value, leaf, retain_graph=True)
    with torch.no_grad():
        logits += 1
    if case.name == "SoftmaxCE":
        assert torch.equal(torch.autograd.grad(value, leaf)[0], first)
        return
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(value, leaf)


@every_loss
def test_scores_rank_the_background_last_and_lie_in_the_unit_interval(case):
    loss = warmed_up(case)
    logits, _, _ = case.inputs(11, dtype=torch.float32)
    scores = loss.scores(logits)
    assert scores.shape == (11, NUM_CLASSES + int(case.has_background))
    assert (scores >= 0).all() and (scores <= 1).all()
    # Raising the logit of a class raises its score and, at equal logits, all classes tie:
    # at test time no margin, noise or class factor is left.
    raised = logits.clone()
    raised[:, 2] += 0.25
    assert (loss.scores(raised)[:, 2] > scores[:, 2]).all()
    flat = loss.scores(torch.zeros(1, loss.num_logits))[0, :NUM_CLASSES]
    torch.testing.assert_close(flat, flat[:1].expand(NUM_CLASSES))


@every_loss
def test_soft_labels_that_are_one_hot_equal_hard_labels(case):
    loss = case.build()
    logits, targets, features = case.inputs(8)
    targets = targets.clamp(max=NUM_CLASSES - 1)
    soft = torch.nn.functional.one_hot(targets, NUM_CLASSES).double()
    if not loss.accepts_soft_labels:
        with pytest.raises(ValueError, match="hard labels"):
            call(loss, logits, soft, features)
        return
    value_a, grad_a = grad_of(case.build(), logits, targets, features)
    value_b, grad_b = grad_of(case.build(), logits, soft, features)
    torch.testing.assert_close(value_a, value_b, **TIGHT)
    torch.testing.assert_close(grad_a, grad_b, **TIGHT)


@every_loss
def test_wrong_input_is_an_error_that_names_the_numbers(case):
    loss = case.build()
    logits, targets, features = case.inputs(4)
    wide = torch.zeros(4, loss.num_logits + 1)
    with pytest.raises(ValueError, match=rf"\(M, {loss.num_logits}\).*\(4, {wide.shape[1]}\)"):
        call(loss, wide, targets, features)
    highest = NUM_CLASSES + int(case.has_background)
    with pytest.raises(ValueError, match=f"0..{highest - 1}"):
        call(loss, logits, torch.full((4,), highest), features)
    with pytest.raises(ValueError, match="-2"):
        call(loss, logits, torch.full((4,), -2), features)
    with pytest.raises(ValueError, match="int64"):
        call(loss, logits, targets.int(), features)
    with pytest.raises(ValueError, match=r"weight is \(3,\), expected \(4,\)"):
        call(loss, logits, targets, features, weight=torch.ones(3))
    with pytest.raises(ValueError, match="class_mask"):
        call(loss, logits, targets, features, class_mask=torch.ones(NUM_CLASSES + 1).bool())
    with pytest.raises(ValueError, match=rf"\(3,\).*{NUM_CLASSES} classes.*NUM_CLASSES"):
        build_loss(case.name, num_classes=NUM_CLASSES, class_counts=[1, 2, 3])


@every_loss
def test_state_survives_a_checkpoint_bit_for_bit(case):
    a = warmed_up(case)
    file = io.BytesIO()
    torch.save(a.state_dict(), file)
    file.seek(0)
    b = case.build()
    b.load_state_dict(torch.load(file, weights_only=True))
    for seed in range(2):
        inputs = case.inputs(10, seed=seed)
        value_a, grad_a = grad_of(a, *inputs)
        value_b, grad_b = grad_of(b, *inputs)
        assert torch.equal(value_a, value_b) and torch.equal(grad_a, grad_b)
    assert_same_state(a, b, exact=True)


@every_loss
def test_constants_and_state_keep_their_precision_through_half(case):
    a, b = warmed_up(case), warmed_up(case).half().float().bfloat16()
    inputs = case.inputs(10)
    value_a, grad_a = grad_of(a, *inputs)
    value_b, grad_b = grad_of(b, *inputs)
    assert torch.equal(value_a, value_b) and torch.equal(grad_a, grad_b)
    assert_same_state(a, b, exact=True)


@every_stateful_loss
def test_a_class_masked_in_every_row_gains_nothing_in_the_accumulators(case):
    loss = warmed_up(case)
    mask = torch.ones(NUM_CLASSES, dtype=torch.bool)
    mask[2] = False
    before = state_of(loss)
    grad_of(loss, *case.inputs(20), class_mask=mask)
    sums = accumulators(loss).sums()
    assert all(s[2] == before[name][2] for name, s in sums.items() if len(s) >= NUM_CLASSES)
    assert sums_differ(loss, before)


@every_stateful_loss
def test_statistics_change_only_in_training_with_gradients(case):
    loss = warmed_up(case)
    before = state_of(loss)
    inputs = case.inputs(10)
    with torch.no_grad():
        call(loss, *inputs)
    loss.eval()
    call(loss, *inputs)
    assert_equal_states(state_of(loss), before)
    loss.train()
    call(loss, *inputs)
    assert accumulators(loss).steps == before["steps"] + 1
    assert sums_differ(loss, before)


@every_stateful_loss
def test_the_loss_of_a_step_uses_the_statistics_of_earlier_steps_only(case):
    """But for a loss that says it needs those of the pass itself: there they come first."""
    loss = warmed_up(case)
    frozen = copy.deepcopy(loss).eval()
    inputs = case.inputs(10, seed=5)
    value, before = call(loss, *inputs), state_of(frozen)
    assert sums_differ(loss, before)
    if accumulators(loss).passes == "each":
        frozen.load_state_dict(loss.state_dict())
    assert torch.equal(value, call(frozen, *inputs))


@every_stateful_loss
def test_statistics_keep_float64_through_half_and_device_moves(case):
    loss = warmed_up(case)
    before = state_of(loss)
    loss.half().float().bfloat16().to("cpu")
    assert_equal_states(state_of(loss), before)
    assert all(total.dtype == torch.float64 for total in accumulators(loss).sums().values())


@every_stateful_loss
def test_a_step_that_is_not_finite_is_dropped_and_counted(case):
    loss = warmed_up(case)
    before = state_of(loss)
    logits, targets, features = case.inputs(10)
    logits[3, 1] = float("nan")
    call(loss, logits.requires_grad_(), targets, features)
    stats = accumulators(loss)
    if not isinstance(stats, GradStats):  # not made of the logits
        assert stats.skipped == 0 and stats.steps == before["steps"] + 1
        stats.add(torch.full((sum(map(len, stats.sums().values())),), float("nan")))
        before = state_of(loss) | {"skipped": before["skipped"]}
    assert stats.skipped == 1
    before["skipped"] += 1
    assert_equal_states(state_of(loss), before)


@every_stateful_loss
def test_statistics_of_other_class_counts_are_not_taken_over(case, caplog):
    trained = warmed_up(case)
    other = build_loss(
        case.name,
        num_classes=NUM_CLASSES,
        has_background=case.has_background,
        class_counts=COUNTS + 1,
        **case.params,
    )
    other.load_state_dict(trained.state_dict())
    assert all((total == 0).all() for total in accumulators(other).sums().values())
    assert accumulators(other).steps == 0
    assert "start from zero" in caplog.text and "CLASS_COUNTS" in caplog.text


def test_unknown_names_list_what_is_known():
    with pytest.raises(ValueError, match="MODEL.LT.LOSS.NAME.*Did you mean 'EQLv2'.*SoftmaxCE"):
        build_loss("EQLv3", num_classes=3)
    with pytest.raises(ValueError, match="'gama'.*MODEL.LT.LOSS.PARAMS.*'gamma'.*alpha"):
        build_loss("EQLv2", num_classes=3, gama=1.0)


def test_parameters_include_those_of_base_classes():
    assert loss_parameters("EQLv2") == {
        "gamma": 12.0,
        "mu": 0.8,
        "alpha": 4.0,
        "test_with_obj": True,
    }
    assert set(loss_parameters("SoftmaxCE")) == set()
    common = {"num_classes", "has_background", "class_counts", "kwargs"}
    for name in LOSS_REGISTRY:
        parameters = loss_parameters(name)
        assert not common & parameters.keys()
        # Every one is accepted, at its default.
        build_loss(name, num_classes=3, class_counts=[5, 3, 1], **parameters)


def test_a_parameter_that_is_not_a_number_is_an_error():
    """Every parameter that is a number, of every loss: NaN satisfies no bound."""
    for name in LOSS_REGISTRY:
        for key, default in loss_parameters(name).items():
            if isinstance(default, float):
                with pytest.raises(ValueError, match=rf"{key}=nan.*MODEL.LT.LOSS.PARAMS"):
                    build_loss(name, num_classes=3, class_counts=[5, 3, 1], **{key: float("nan")})


def test_class_counts_that_are_not_numbers_are_an_error():
    with pytest.raises(ValueError, match="class_counts holds nan"):
        build_loss("SoftmaxCE", num_classes=2, class_counts=[5.0, float("nan")])


def state_of(loss):
    return {k: v.clone() for k, v in accumulators(loss).state_dict().items()}


def sums_differ(loss, before):
    return any(not torch.equal(s, before[k]) for k, s in accumulators(loss).sums().items())


def assert_equal_states(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key


def assert_same_state(a, b, exact=False):
    state_a, state_b = a.state_dict(), b.state_dict()
    assert state_a.keys() == state_b.keys()
    for key in state_a:
        if exact:
            assert torch.equal(state_a[key], state_b[key]), key
        else:
            torch.testing.assert_close(state_a[key], state_b[key], **TIGHT)
