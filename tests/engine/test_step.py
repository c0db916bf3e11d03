"""One optimiser step, on a model of one layer."""

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from lt_det.engine.step import StepTrainer
from lt_det.losses import build_loss


class Model(nn.Module):
    """Two squared-error losses of a linear layer; a batch is a list of (x, y)."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 1).double()
        self.autocast_dtype = None

    def forward(self, batch):
        self.autocast_dtype = (
            torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
        )
        x = torch.stack([x for x, _ in batch])
        y = torch.stack([y for _, y in batch])
        error = (self.layer(x)[:, 0] - y) ** 2
        return {"loss_a": error.mean(), "loss_b": 0.5 * error.mean()}


class Loader:
    """Batches of a fixed list of samples, in order."""

    def __init__(self, samples, batch_size):
        self.samples, self.batch_size, self.batches = samples, batch_size, 0

    def __iter__(self):
        while True:
            start = self.batches * self.batch_size % len(self.samples)
            self.batches += 1
            yield self.samples[start : start + self.batch_size]

    def state_dict(self):
        return {"batches": self.batches}

    def load_state_dict(self, state):
        self.batches = state["batches"]


def samples(count=8):
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(3, generator=generator, dtype=torch.float64),
            torch.randn((), generator=generator, dtype=torch.float64),
        )
        for _ in range(count)
    ]


def train(steps, *, batch_size=4, model=Model, **kwargs):
    torch.manual_seed(0)
    model = model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    trainer = StepTrainer(model, Loader(samples(), batch_size), optimizer, **kwargs)
    with EventStorage(0) as log:
        for trainer.iter in range(steps):
            log.iter = trainer.iter
            trainer.run_step()
    return model, log, trainer


def test_accumulated_passes_equal_one_large_batch():
    whole, log_whole, _ = train(4, batch_size=4)
    parts, log_parts, _ = train(4, batch_size=2, accumulation_steps=2)
    torch.testing.assert_close(parts.layer.weight, whole.layer.weight, rtol=1e-12, atol=1e-14)
    for key in ("loss_a", "loss_b", "total_loss"):
        assert log_parts.latest()[key][0] == pytest.approx(log_whole.latest()[key][0], rel=1e-6)


class EqualizedModel(Model):
    """The same with an EQL v2 loss on three classes."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 4).double()
        self.loss = build_loss("EQLv2", num_classes=3, has_background=True)

    def forward(self, batch):
        x = torch.stack([x for x, _ in batch])
        return self.loss(self.layer(x), torch.stack([y > 0 for _, y in batch]).long() * 2)


def test_accumulated_passes_update_the_statistics_once_as_one_large_batch_does():
    whole, _, _ = train(4, batch_size=4, model=EqualizedModel)
    parts, _, _ = train(4, batch_size=2, accumulation_steps=2, model=EqualizedModel)
    assert whole.loss.stats.steps == parts.loss.stats.steps == 4
    for name in ("pos", "neg"):
        a, b = getattr(whole.loss.stats, name), getattr(parts.loss.stats, name)
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(parts.layer.weight, whole.layer.weight, rtol=1e-12, atol=1e-14)


def test_the_total_is_the_sum_of_the_terms():
    _, log, _ = train(1)
    values = {key: value for key, (value, _) in log.latest().items()}
    assert values["total_loss"] == pytest.approx(values["loss_a"] + values["loss_b"])
    assert values["loss_a"] == pytest.approx(2 * values["loss_b"])


def test_amp_runs_the_model_in_bfloat16_on_a_cpu():
    model, _, trainer = train(1, amp=True)
    assert model.autocast_dtype == torch.bfloat16
    assert not trainer.grad_scaler.is_enabled()  # bfloat16 has the range of float32
    assert train(1)[0].autocast_dtype is None


@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_all_gradients_together_are_clipped(accumulation_steps):
    """Plain gradient descent moves by rate * gradient, of which the joint norm is bounded."""

    def moved(bound):
        torch.manual_seed(0)
        model = Model()
        start = [p.detach().clone() for p in model.parameters()]
        trainer = StepTrainer(
            model,
            Loader(samples(), 4 // accumulation_steps),
            torch.optim.SGD(model.parameters(), lr=0.1),
            accumulation_steps=accumulation_steps,
            max_grad_norm=bound,
        )
        with EventStorage(0):
            trainer.iter = 0
            trainer.run_step()
        steps = zip(model.parameters(), start, strict=True)
        return torch.cat([(p.detach() - s).flatten() for p, s in steps]) / 0.1

    free = moved(None)
    bound = free.norm().item() / 3
    # clip_grad_norm_ adds 1e-6 to the norm that it divides by.
    torch.testing.assert_close(moved(bound), free / 3, rtol=1e-5, atol=1e-12)
    assert torch.equal(moved(bound * 4), free)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_terms():
    model = Model()
    with torch.no_grad():
        model.layer.weight.fill_(float("nan"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = StepTrainer(model, Loader(samples(), 4), optimizer)
    trainer.iter = 7
    with EventStorage(7), pytest.raises(FloatingPointError, match="iteration 7.*loss_a.*BASE_LR"):
        trainer.run_step()


def test_the_optimizer_is_in_the_state_and_the_loader_has_its_own():
    straight, _, _ = train(5)
    half, _, first = train(3)
    optimizer = torch.optim.SGD(half.parameters(), lr=0.1, momentum=0.9)
    second = StepTrainer(half, Loader(samples(), 4), optimizer)
    second.load_state_dict(first.state_dict())
    second.data_loader.load_state_dict(first.data_loader.state_dict())
    with EventStorage(3) as log:
        for second.iter in (3, 4):
            log.iter = second.iter
            second.run_step()
    assert torch.equal(half.layer.weight, straight.layer.weight)
