"""When the gradient ratios of a run of tools/report.py no longer change its loss."""

import math

import numpy as np
import torch
from plot_gradient_ratio import ratio_over_time

from lt_det.errors import LtDetError
from lt_det.evaluation.groups import GROUP_WORDS
from lt_det.losses import build_loss
from lt_det.losses.eqlv2 import SigmoidEQL, equalization_weights
from lt_det.losses.equalized_focal import EFL, EQFL
from lt_det.losses.softmax_eql import SoftmaxEQL, softmax_adjustment
from reporting.html import count, sentence
from reporting.runs import Run

# A class with less than this part of the full re-weighting is trained by the plain loss.
LITTLE = 0.1


def loss_of(run: Run):
    """The loss of a run as `build_loss` makes it; None: the record or configuration lacks it."""
    name = run.record["run"].get("loss")
    try:
        params = run.config["MODEL"]["LT"]["LOSS"]["PARAMS"]
        return build_loss(name, num_classes=2, class_counts=torch.tensor([2, 1]), **params)
    except (LtDetError, KeyError, TypeError, ValueError):
        return None


def strength_left(loss, ratio: np.ndarray) -> np.ndarray | None:
    """How much of its full re-weighting a class still gets, from its gradient ratio.

    1: that of a class without positive gradient, 0: the plain loss. In `EQLv2` and `SigmoidEQL`
    1 - f(g), in `EFL` and `EQFL` 1 - g inside [0, 1].

    Args:
        loss: of the run.
        ratio: (..., C) ratios.

    Returns:
        In [0, 1], shaped as `ratio`; None: no loss whose ratio saturates.
    """
    if isinstance(loss, SigmoidEQL):
        _, negatives = equalization_weights(
            torch.as_tensor(ratio), gamma=loss.gamma, mu=loss.mu, alpha=loss.alpha
        )
        return 1 - negatives.numpy()
    if isinstance(loss, (EFL, EQFL)):
        return 1 - np.clip(ratio, 0, 1)
    return None


def saturation_ratio(loss) -> float | None:
    """The gradient ratio at which `strength_left` is `LITTLE`; None: there is none."""
    if isinstance(loss, SigmoidEQL) and loss.gamma > 0:
        return loss.mu + math.log(1 / LITTLE - 1) / loss.gamma
    return 1 - LITTLE if isinstance(loss, (EFL, EQFL)) else None


def saturated_since(iterations: np.ndarray, strength: np.ndarray) -> int | None:
    """The iteration from which on most classes are trained by the plain loss; None: never.

    Args:
        iterations: (T,).
        strength: (T, C) of `strength_left`.
    """
    most = (strength < LITTLE).mean(axis=1) > 0.5
    if not len(most) or not most[-1]:
        return None
    return int(iterations[len(most) - int(np.argmin(most[::-1])) if not most.all() else 0])


def saturation(run: Run) -> list[tuple[str, str]]:
    """(level, sentence) about tail groups that the re-weighting no longer helps, for each loss.

    "warn" if the rarest of them is among those, "info" if only the next one is.
    """
    try:
        statistics = run.statistics
    except LtDetError:
        return []
    loss, found, words = loss_of(run), [], GROUP_WORDS[run.task]
    for name, (iterations, pos, neg) in statistics.losses.items():
        where = f" ({name})" if name else ""
        strength = strength_left(loss, ratio_over_time(pos, neg))
        if strength is None:
            continue
        told = {}
        for letter in ("r", "c"):
            own = np.array(statistics.groups) == letter
            since = saturated_since(iterations, strength[:, own]) if own.any() else None
            if since is not None:
                now = int((strength[-1, own] < LITTLE).sum())
                told[letter] = (
                    f"{now} of {own.sum()} {words[letter]} classes, most of them since "
                    f"iteration {since + 1:,}"
                )
        kept = f"{run.record['run']['loss']} keeps less than {LITTLE:.0%} of its re-weighting"
        if told:
            level = "warn" if "r" in told else "info"
            text = f"the gradient ratio is saturated{where}: {kept} for {'; '.join(told.values())}."
            found.append((level, text))
        else:
            text = f"{run.record['run']['loss']} still re-weights most tail classes{where}: their "
            found.append(("good", text + "gradient ratios are not saturated."))
    return found


def adjustment_text(run: Run) -> str | None:
    """What Softmax-EQL adds to the logits at the end; None: another loss or form."""
    loss = loss_of(run)
    if not isinstance(loss, SoftmaxEQL) or loss.form != "ratio" or loss.indicator != "pos":
        return None
    texts = []
    for name, (_, pos, _neg) in run.statistics.losses.items():
        last = torch.as_tensor(pos[-1])
        added = softmax_adjustment(last, form=loss.form, tau=loss.tau, eps=loss.eps).numpy()
        counts = np.maximum(run.statistics.counts, 1)
        text = (
            f"{name + ': ' if name else ''}the logit adjustment of the most and the least seen "
            f"class differ by {np.ptp(added):.1f}; the logarithms of their training "
            f"{run.statistics.unit} by {np.ptp(np.log(counts)):.1f}."
        )
        floor = int((last <= loss.eps).sum())
        if floor:
            text += (
                f" {count(floor, 'class is', 'classes are')} still at the floor eps = "
                f"{loss.eps:g}, which decides about their margin instead of the data."
            )
        texts.append(text)
    return sentence(" ".join(texts))
