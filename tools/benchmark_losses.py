"""`benchmark.py losses`: time and memory of every loss.

Forward and backward of every registered loss, of torch's own losses, and of the equalization
losses as the released code writes them: one-hot targets, a weight for every entry, a second pass
for the statistics. All run side by side in one process, in turns, so that a slow moment of the
machine hits them alike; the table has medians. Logits are (rows, outputs) float32, a quarter of
the rows is foreground. `--segmentation` takes the pixels of two 512 x 512 images as rows and 150
classes without background, and the losses that are used there.
"""

import json
import os
import statistics
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

# Before torch: its profiler, which counts the memory, else reports every start and stop.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

import torch  # noqa: E402
from benchmark_common import environment, milliseconds, positive  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from lt_det.losses import LOSS_REGISTRY, LongTailLoss, build_loss  # noqa: E402
from lt_det.losses.grad_stats import RATIO_EPS  # noqa: E402

# Parameters that a loss cannot do without.
PARAMS = {"EQL": {"num_images": 100_000}}
FOCAL = ("FocalLoss", "EFL", "EQFL")
SEGMENTATION_LOSSES = ("SoftmaxCE", "SoftmaxEQL")
SEGMENTATION_SHAPE = (2 * 512 * 512, 150)
DETECTION_SHAPE = (8192, 1203)
FEATURE_SIZE = 64
MIB = 2**20


# ---- what is measured --------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """The input of all losses of a run.

    Attributes:
        rows, classes: M and C.
        has_background: label C exists.
        device: of the tensors.
    """

    rows: int
    classes: int
    has_background: bool
    device: str = "cpu"

    def targets(self) -> Tensor:
        """(M,) int64; with background, three quarters of the rows are background."""
        generator = torch.Generator().manual_seed(0)
        targets = torch.randint(0, self.classes, (self.rows,), generator=generator)
        if self.has_background:
            background = torch.rand(self.rows, generator=generator) < 0.75
            targets[background] = self.classes
        return targets.to(self.device)

    def logits(self, columns: int, cosine: bool = False) -> Tensor:
        """(M, columns) float32 leaf."""
        logits = torch.randn(self.rows, columns, generator=torch.Generator().manual_seed(1))
        return (logits.tanh_() if cosine else logits).to(self.device).requires_grad_()

    def class_counts(self) -> Tensor:
        """(C,) from 10,000 to 1, even on a logarithmic scale."""
        return (10.0 ** torch.linspace(4, 0, self.classes)).long()


@dataclass(frozen=True)
class Candidate:
    """One row of the table.

    Attributes:
        name: shown.
        columns: L, outputs per row.
        run: (logits, targets) -> the loss, after its backward and its statistics.
        baseline: name of torch's loss it is compared with; its own name for torch's.
        released: name of the released-style formulation it is compared with, "" = none.
        cosine: logits lie in [-1, 1].
    """

    name: str
    columns: int
    run: Callable[[Tensor, Tensor], Tensor]
    baseline: str
    released: str = ""
    cosine: bool = False


def candidates(problem: Problem, names: Iterable[str]) -> list[Candidate]:
    """torch's losses, the registered ones of `names`, and their released forms."""
    ours = [our_candidate(name, problem) for name in names]
    torch_names = dict.fromkeys(c.baseline for c in ours)
    columns = problem.classes + int(problem.has_background)
    references = [
        Candidate(name, columns if name == "torch CE" else problem.classes, TORCH[name], name)
        for name in torch_names
    ]
    released = []
    for candidate in ours:
        if candidate.released:
            run = RELEASED[candidate.name](candidate.columns, problem.classes, problem.device)
            released.append(
                Candidate(candidate.released, candidate.columns, run, candidate.baseline)
            )
    return references + ours + released


def our_candidate(name: str, problem: Problem) -> Candidate:
    """A registered loss in training mode."""
    loss = build_loss(
        name,
        num_classes=problem.classes,
        has_background=problem.has_background,
        class_counts=problem.class_counts(),
        **PARAMS.get(name, {}),
    ).to(problem.device)
    features = None
    if loss.needs_features:
        features = torch.randn(problem.rows, FEATURE_SIZE, device=problem.device)

    def run(logits, targets):
        value = sum(loss(logits, targets, features=features).values())
        value.backward()
        return value.detach()

    return Candidate(
        name,
        loss.num_logits,
        run,
        baseline_of(name, loss),
        f"{name}, released style" if name in RELEASED else "",
        cosine=loss.classifier == "cosine",
    )


def baseline_of(name: str, loss: LongTailLoss) -> str:
    """torch's loss of the same family. Losses over sigmoids are those that ask for a prior."""
    if name in FOCAL:
        return "torch focal"
    return "torch CE" if loss.prior_prob is None else "torch BCE"


# ---- torch's own losses ------------------------------------------------------------------------


def one_hot(targets: Tensor, like: Tensor) -> Tensor:
    """(M,) targets to zeros and ones of the shape of `like`; labels beyond it are all zeros."""
    known = targets < like.shape[1]
    return torch.zeros_like(like).scatter_(
        1, targets.where(known, 0)[:, None], known[:, None].to(like.dtype)
    )


def torch_bce(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum over classes of binary cross-entropy, mean over rows."""
    entries = one_hot(targets, logits.detach())
    value = F.binary_cross_entropy_with_logits(logits, entries, reduction="sum") / len(logits)
    value.backward()
    return value.detach()


def torch_ce(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy, mean over rows."""
    value = F.cross_entropy(logits, targets)
    value.backward()
    return value.detach()


def torch_focal(logits: Tensor, targets: Tensor) -> Tensor:
    """Focal loss in the usual elementwise form, gamma 2, alpha 0.25, mean over rows."""
    y = one_hot(targets, logits.detach())
    p = torch.sigmoid(logits)
    nll = F.binary_cross_entropy_with_logits(logits, y, reduction="none")
    p_t = p * y + (1 - p) * (1 - y)
    alpha_t = 0.25 * y + 0.75 * (1 - y)
    value = (alpha_t * nll * (1 - p_t) ** 2).sum() / len(logits)
    value.backward()
    return value.detach()


TORCH = {"torch BCE": torch_bce, "torch CE": torch_ce, "torch focal": torch_focal}


# ---- the straightforward formulations ----------------------------------------------------------


class Released:
    """An equalization loss in plain elementwise operations, written from its formula.

    Args:
        columns: L.
        classes: C.
        device: of the statistics.
    """

    first_ratio = 1.0

    def __init__(self, columns: int, classes: int, device: str = "cpu"):
        self.columns, self.classes = columns, classes
        self.pos = torch.zeros(columns, device=device)
        self.neg = torch.zeros(columns, device=device)
        self.ratio = torch.full((columns,), self.first_ratio, device=device)

    def accumulate(self, gradient: Tensor, y: Tensor) -> None:
        """Add absolute gradients (M, L) to the sums of positives and of negatives."""
        self.pos += (gradient * y).sum(0)
        self.neg += (gradient * (1 - y)).sum(0)
        self.ratio.copy_(self.pos / (self.neg + RATIO_EPS))


class ReleasedEQLv2(Released):
    """EQL v2; gradient in closed form in a second pass. Divided by the rows."""

    first_ratio = 100.0

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        y = one_hot(targets, logits.detach())
        f = torch.sigmoid(12.0 * (self.ratio - 0.8))
        f = torch.where(torch.arange(self.columns, device=f.device) < self.classes, f, 1.0)
        pos_weight = (1 + 4.0 * (1 - f)).expand_as(logits)
        neg_weight = f.expand_as(logits)
        weight = pos_weight * y + neg_weight * (1 - y)
        entries = F.binary_cross_entropy_with_logits(logits, y, reduction="none")
        value = (entries * weight).sum() / len(logits)
        value.backward()
        p = torch.sigmoid(logits.detach())
        self.accumulate(weight * (y * (p - 1) + (1 - y) * p).abs(), y)
        return value.detach()


class ReleasedEFL(Released):
    """Equalized focal loss; statistics from the gradient of autograd.

    Divided by the foreground rows. Its logarithm of a probability overflows at logit 17.
    """

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        y = one_hot(targets, logits.detach())
        p = torch.sigmoid(logits)
        p_t = y * p + (1 - y) * (1 - p)
        gamma = (2.0 + 8.0 * (1 - self.ratio.clamp(0, 1))).expand_as(logits)
        alpha_t = 0.25 * y + 0.75 * (1 - y)
        entries = -((1 - p_t) ** gamma) * torch.log(p_t) * (gamma / 2.0) * alpha_t
        value = entries.sum() / (targets < self.classes).sum().clamp(min=1)
        value.backward()
        self.accumulate(logits.grad.abs(), y)
        return value.detach()


class ReleasedSoftmaxEQL(Released):
    """Softmax-EQL, form "ratio"; statistics from the gradient of autograd.

    Mean over the rows. A background column is one more class.
    """

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        y = one_hot(targets, logits.detach())
        level = self.pos.clamp(min=1e-4)
        shift = torch.log(level[None] / level[targets][:, None])
        value = F.cross_entropy(logits + shift * (1 - y), targets)
        value.backward()
        self.accumulate(logits.grad.abs(), y)
        return value.detach()


RELEASED = {"EQLv2": ReleasedEQLv2, "EFL": ReleasedEFL, "SoftmaxEQL": ReleasedSoftmaxEQL}


# ---- measuring ---------------------------------------------------------------------------------


@dataclass
class Measurement:
    """One row's numbers.

    Attributes:
        name, baseline, released: see :class:`Candidate`.
        ms: every sample.
        extra_bytes: peak of the memory allocated during the call.
        extra_tensors: that, in tensors of the size of the logits.
    """

    name: str
    baseline: str
    released: str
    ms: list[float]
    extra_bytes: int
    extra_tensors: float

    @property
    def median(self) -> float:
        return statistics.median(self.ms)


def peak_extra_bytes(call: Callable[[], object], device: str = "cpu") -> int:
    """The most memory that `call` holds at any moment, beyond what was there before it.

    On the CPU from the allocations that torch's profiler records, temporaries inside operators
    included.
    """
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    activity = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activity, profile_memory=True) as profile:
        call()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def settle_cpu() -> None:
    """Bring torch's log1p, which its BCE and softplus use, to full speed.

    On some AVX-512 processors it takes ten times as long until the process has computed a power
    of a tensor; measured before, torch would look worse than it can be.
    """
    torch.full((2**20,), 2.0) ** 0.7


def measure(problem: Problem, rows: list[Candidate], repeats: int) -> list[Measurement]:
    """One untimed call of each candidate for its memory, then timed ones in turns."""
    settle_cpu()
    targets = problem.targets()
    inputs: dict[tuple[int, bool], Tensor] = {}
    calls, results = [], []
    for candidate in rows:
        key = (candidate.columns, candidate.cosine)
        if key not in inputs:
            inputs[key] = problem.logits(*key)
        logits = inputs[key]

        def call(logits=logits, run=candidate.run):
            logits.grad = None
            run(logits, targets)

        call()  # caches and lazy initialisation
        logits.grad = None
        extra = peak_extra_bytes(call, problem.device)
        logits.grad = None
        calls.append(call)
        results.append(
            Measurement(
                candidate.name,
                candidate.baseline,
                candidate.released,
                [],
                extra,
                extra / (logits.numel() * logits.element_size()),
            )
        )
    for _ in range(repeats):
        for call, result, candidate in zip(calls, results, rows, strict=True):
            result.ms.append(milliseconds(call, problem.device))
            inputs[candidate.columns, candidate.cosine].grad = None
    return results


# ---- the table and the record ------------------------------------------------------------------


def table(results: list[Measurement]) -> str:
    """Markdown."""
    medians = {result.name: result.median for result in results}
    lines = [
        "| loss | ms | compared with | x torch | x released | extra memory, tensors |",
        "|---|---|---|---|---|---|",
    ]
    for result in results:
        of_torch = result.median / medians[result.baseline]
        of_released = "-"
        if result.released:
            of_released = f"{result.median / medians[result.released]:.3f}"
        lines.append(
            f"| {result.name} | {result.median:.1f} | {result.baseline} | {of_torch:.2f} "
            f"| {of_released} | {result.extra_tensors:.2f} |"
        )
    return "\n".join(lines)


def run_losses(args) -> None:
    """The subcommand `losses`."""
    rows, classes = SEGMENTATION_SHAPE if args.segmentation else DETECTION_SHAPE
    problem = Problem(
        args.rows or rows, args.classes or classes, not args.segmentation, args.device
    )
    if args.threads:
        torch.set_num_threads(args.threads)
    names = args.only or list(LOSS_REGISTRY)
    if args.segmentation and not args.only:
        names = [name for name in names if name in SEGMENTATION_LOSSES]
    results = measure(problem, candidates(problem, names), args.repeats)
    record = {"environment": environment(args.device), "problem": asdict(problem)}
    env = record["environment"]
    size = 4 * problem.rows * problem.classes / MIB
    print(
        f"{problem.rows} rows x {problem.classes} classes ({size:.0f} MiB of logits), forward + "
        f"backward, float32, median of {args.repeats}; {env.get('gpu', env['cpu'])}, "
        f"{env['threads']} threads, torch {env['torch']}\n"
    )
    print(table(results))
    if args.output:
        record["results"] = [{**asdict(r), "median_ms": r.median} for r in results]
        args.output.write_text(json.dumps(record, indent=1) + "\n")


def add_parser(parts) -> None:
    """Add the subcommand to argparse's `parts`."""
    losses = parts.add_parser("losses", help="time and memory of every loss")
    losses.add_argument("--rows", type=positive, help="8192; 524288 with --segmentation")
    losses.add_argument("--classes", type=positive, help="1203; 150 with --segmentation")
    losses.add_argument("--segmentation", action="store_true", help="pixels as rows")
    losses.add_argument("--threads", type=positive, help="torch's default unless given")
    losses.add_argument("--repeats", type=positive, default=7)
    losses.add_argument("--device", default="cpu")
    losses.add_argument("--only", nargs="+", metavar="NAME", help="losses; all unless given")
    losses.add_argument("--output", type=Path, help="JSON file for all samples")
    losses.set_defaults(run=run_losses)
