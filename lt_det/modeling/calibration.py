"""Post-hoc calibration: logits of a trained classifier, changed by class counts or row norms.

Symbols: M rows, C classes, L >= C logits of a row, n (C,) training examples of each class. What is
beyond the C classes (a background, Seesaw's objectness) keeps its logit. Training knows nothing
of it. :func:`rescore` and :func:`rescore_detections` do to saved scores what the modules do to
logits.

A calibration lowers classes by a prior that the training has left in the scores. A loss or a
sampler that has already taken the prior out (BalancedSoftmax, LogitAdjustment; most others here
in part; class-balanced sampling) leaves less or nothing to correct: then a strength below the
usual one, or none, is right, which ``tools/calibrate.py`` finds on held-out images.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lt_det.errors import ConfigError
from lt_det.losses import LongTailLoss
from lt_det.losses.base import widen
from lt_det.losses.counts import safe_counts
from lt_det.registry import unknown_name

logger = logging.getLogger(__name__)

KEY = "MODEL.LT.CALIBRATION"
# Losses whose scores hold the prior of the training set as it is.
_PLAIN_LOSSES = ("SoftmaxCE", "SigmoidBCE", "FocalLoss")
# Losses of which it is known that their scores hold none of it.
_BALANCED_LOSSES = ("BalancedSoftmax", "LogitAdjustment")


# ---------------------------------------------------------------------------------------------
# Functions of logits
# ---------------------------------------------------------------------------------------------


def norcal_shift(class_counts: Tensor | Sequence[float], gamma: float) -> Tensor:
    """(C,) float64 ``gamma ln n_c``: what NorCal takes off the logit of each class, at least 0.

    A class without training examples counts as one with one example, with a warning.

    Args:
        class_counts: (C,) n, in any order.
        gamma: 0 = nothing; the paper takes 0.6 for LVIS.
    """
    return gamma * safe_counts(torch.as_tensor(class_counts)).log()


def prior_shift(class_counts: Tensor | Sequence[float], tau: float) -> Tensor:
    """(C,) float64 ``tau (ln n_c - ln max_k n_k)``: what logit adjustment takes off, at most 0.

    A class without training examples counts as one with one example, with a warning.

    Args:
        class_counts: (C,) n, in any order.
        tau: 0 = nothing, 1 = the whole prior.
    """
    logs = safe_counts(torch.as_tensor(class_counts)).log()
    return tau * (logs - logs.max())


def shift_logits(logits: Tensor, shift: Tensor) -> Tensor:
    """(M, L) float32 or wider: (C,) `shift` off the first C logits, the others as they are."""
    logits = widen(logits)
    return logits - F.pad(shift, (0, logits.shape[1] - len(shift))).to(logits)


def norcal(logits: Tensor, class_counts: Tensor | Sequence[float], gamma: float) -> Tensor:
    """NorCal on logits: ``z_c - gamma ln n_c``, the background as it is.

    The softmax of the result is
    ``exp(z_c) / n_c^gamma / (sum_k exp(z_k) / n_k^gamma + exp(z_background))``.

    Source: Pan et al., "On Model Calibration for Long-Tailed Object Detection and Instance
    Segmentation", NeurIPS 2021 (repository tydpan/NorCal, 23e5ab6, its setting "exps" with
    renormalisation). The release counts training *images* (``MODEL.LT.COUNT_UNIT images``). For
    one-vs-all outputs it is the same rule with "not this class" in the place of the background:
    the sigmoid of the result is ``(s / n^gamma) / (s / n^gamma + 1 - s)`` of the former ``s``. That
    keeps the order of each class: its AP changes by the limits on detections alone. Without a
    background it is logit adjustment with the same strength.

    Args:
        logits: (M, L), any float dtype.
        class_counts: (C,); see :func:`norcal_shift`.
        gamma: strength.

    Returns:
        (M, L) float32 or wider.
    """
    return shift_logits(logits, norcal_shift(class_counts, gamma))


def adjust_logits(logits: Tensor, class_counts: Tensor | Sequence[float], tau: float) -> Tensor:
    """Post-hoc logit adjustment: ``z_c - tau ln pi_c``, the background taken for a head class.

    Source: Menon et al., "Long-Tail Learning via Logit Adjustment", ICLR 2021, section 4.1, which
    has no background. Ours: a background has the prior of the largest class, as in the loss
    :class:`~lt_det.losses.logit_adjustment.LogitAdjustment`. Up to a constant for all columns its
    logit and that of the largest class stay, and rarer classes gain against it; under
    :func:`norcal` frequent classes lose. One-vs-all outputs are shifted likewise.

    Args:
        logits: (M, L), any float dtype.
        class_counts: (C,); see :func:`prior_shift`.
        tau: strength.

    Returns:
        (M, L) float32 or wider.
    """
    return shift_logits(logits, prior_shift(class_counts, tau))


def tau_normalize(
    logits: Tensor, weight: Tensor, bias: Tensor, tau: float, *, num_classes: int, background: bool
) -> Tensor:
    """tau-normalisation of a linear classifier, from its logits.

    Source: Kang et al., "Decoupling Representation and Classifier for Long-Tailed Recognition",
    ICLR 2020, section 4.1: ``(z_c - b_c) / |w_c|^tau``, the bias left out, so that a tau just above
    0 is not the identity; see :func:`~lt_det.modeling.classifier.tau_normalized_logits`. With a
    background, of which the paper knows nothing: ``(z_c - b_c) (g / |w_c|)^tau + b_c`` with
    g the geometric mean of the norms, so that the classes as a whole keep their place beside the
    background.

    Args:
        logits: (M, L), any float dtype.
        weight: (L, D) of the classifier that gave them.
        bias: (L,).
        tau: 0 leaves the logits as they are, 1 makes rows unit vectors.
        num_classes: C, columns that are normalised.
        background: whether a row may be of no class, be there a column for it or not.

    Returns:
        (M, L) float32 or wider.
    """
    if tau == 0:
        return widen(logits)
    logits, weight, bias = widen(logits), widen(weight[:num_classes]), widen(bias[:num_classes])
    log_norms = torch.linalg.vector_norm(weight, dim=1).clamp(min=1e-12).log()
    if background:
        log_norms = log_norms - log_norms.mean()
    classes = (logits[:, :num_classes] - bias) * torch.exp(-tau * log_norms)
    if background:
        classes = classes + bias
    return torch.cat([classes, logits[:, num_classes:]], dim=1)


# ---------------------------------------------------------------------------------------------
# Functions of saved scores
# ---------------------------------------------------------------------------------------------


def score_form(loss: LongTailLoss) -> str:
    """How a loss without a background turns logits into scores: "softmax" or "sigmoid".

    A softmax is what stays when all logits rise by one.
    """
    zeros = torch.zeros(1, loss.num_logits)
    return "softmax" if torch.allclose(loss.scores(zeros), loss.scores(zeros + 1)) else "sigmoid"


def rescore(scores: Tensor, shift: Tensor, form: str) -> Tensor:
    """The scores that logits lowered by `shift` would have had, exactly.

    Args:
        scores: (M, C) in [0, 1], or (M, C+1) with the background last under "softmax".
        shift: (C,) of :func:`norcal_shift` or :func:`prior_shift`.
        form: "softmax": rows sum to 1. "sigmoid": each on its own.

    Returns:
        As `scores`, float64. A score of exactly 0 or (sigmoid) 1 stays.
    """
    scores = scores.double()
    if form == "sigmoid":
        return scores / (scores + (1 - scores) * shift.exp())
    return F.softmax(shift_logits(scores.log(), shift), dim=1)


def rescore_detections(
    scores: Tensor, classes: Tensor, shift: Tensor, regions: Tensor | None = None
) -> Tensor:
    """Scores of saved detections, which hold some classes of a region and not its background.

    ``s_c e^-shift_c / (sum_k s_k e^-shift_k + rest)`` with the sum over the detections of the
    region and ``rest = 1 - sum_k s_k``, taken for background. Exact of sigmoid scores, each a
    region of its own, and of a softmax all of whose classes are there. Else classes that are not
    there stay in the rest as they are: the score is then a lower bound of NorCal's and an upper
    bound of logit adjustment's. Detections that the model did not keep stay lost.

    Where every detection is alone, the order of a class does not change and neither does its AP,
    unless a limit on the detections of an image is applied afterwards.

    Args:
        scores: (N,) in [0, 1].
        classes: (N,) int64, 0..C-1.
        shift: (C,) of :func:`norcal_shift` or :func:`prior_shift`.
        regions: (N,) int64 from 0, the same for the detections of one region; None = each alone.

    Returns:
        (N,) float64. A score of exactly 0, or of 1 alone, stays.
    """
    scores = scores.double()
    if regions is None:
        regions = torch.arange(len(scores), device=scores.device)
    lowered = scores * torch.exp(-shift[classes])
    sums = scores.new_zeros(2, len(scores)).index_add_(1, regions, torch.stack([scores, lowered]))
    known, below = sums
    # Rounding may bring the sum of a softmax above 1.
    return lowered / (below + (1 - known).clamp(min=0))[regions]


# ---------------------------------------------------------------------------------------------
# In a model
# ---------------------------------------------------------------------------------------------


class Calibration(nn.Module):
    """What a head does to its logits before they become scores.

    Where scores are averaged, over the stages of a cascade or the views of an image, the logits of
    each are calibrated and then averaged as scores: each is a classifier of its own.

    Args:
        strength: at least 0; 0 = none, bit for bit. May be set later.
    """

    def __init__(self, strength: float):
        super().__init__()
        self.strength = strength

    def forward(self, logits: Tensor, loss: LongTailLoss, classifier: nn.Module | None) -> Tensor:
        """(M, L) calibrated logits of `classifier`, float32 or wider, for ``loss.scores``."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return f"strength={self.strength}"


class CountCalibration(Calibration):
    """:func:`norcal` or :func:`adjust_logits`.

    Args:
        unit_shift: (C,) of :func:`norcal_shift` or :func:`prior_shift` for strength 1.
        strength: see :class:`Calibration`.
    """

    def __init__(self, unit_shift: Tensor, strength: float):
        super().__init__(strength)
        self.register_buffer("unit_shift", unit_shift, persistent=False)

    def forward(
        self, logits: Tensor, loss: LongTailLoss, classifier: nn.Module | None = None
    ) -> Tensor:
        """See :class:`Calibration`; losses that scale the logits get a shift that much smaller."""
        if not self.strength:
            return logits
        return shift_logits(logits, self._shift() / getattr(loss, "scale", 1.0))

    def maps(self, logits: Tensor) -> Tensor:
        """(A*C, H, W) logits of A anchors of a dense head, channel ``a * C + c``."""
        if not self.strength:
            return logits
        shift = self._shift().repeat(len(logits) // len(self.unit_shift))
        logits = widen(logits)
        return logits - shift.to(logits)[:, None, None]

    def _shift(self) -> Tensor:
        return self.strength * self.unit_shift

    def _apply(self, fn, recurse: bool = True):
        # Follows the model to another device, never to another dtype.
        exact = self.unit_shift
        super()._apply(fn, recurse)
        self.unit_shift = exact.to(self.unit_shift.device)
        return self


class TauNorm(Calibration):
    """:func:`tau_normalize` with the weights that the classifier has at the time."""

    def forward(self, logits: Tensor, loss: LongTailLoss, classifier: nn.Module) -> Tensor:
        """See :class:`Calibration`."""
        if not self.strength:
            return logits
        return tau_normalize(
            logits,
            classifier.weight,
            classifier.bias,
            self.strength,
            num_classes=loss.num_classes,
            background=loss.has_background,
        )


_UNIT_SHIFTS = {"NorCal": norcal_shift, "LogitAdjustment": prior_shift}
METHODS = (*_UNIT_SHIFTS, "TauNorm")


def unit_shift(name: str, class_counts: Tensor | Sequence[float]) -> Tensor:
    """(C,) shift of a method that goes by counts, for strength 1; it is in proportion to it.

    Raises:
        ConfigError: another method.
    """
    if name not in _UNIT_SHIFTS:
        raise ConfigError(unknown_name("calibration by counts", name, _UNIT_SHIFTS, f"{KEY}.NAME"))
    return _UNIT_SHIFTS[name](class_counts, 1.0)


def calibrated_scores(
    calibration: Calibration | None, loss: LongTailLoss, logits: Tensor, classifier: nn.Module
) -> Tensor:
    """``loss.scores`` of (M, L) logits after the calibration, if there is one."""
    if calibration is not None:
        logits = calibration(logits, loss, classifier)
    return loss.scores(logits)


def calibration_from_config(
    cfg,
    loss: LongTailLoss,
    classifier: nn.Module | None = None,
    class_counts: Sequence[float] | None = None,
) -> Calibration | None:
    """The calibration of ``MODEL.LT.CALIBRATION``; None where NAME is "".

    Args:
        cfg: the configuration.
        loss: of the head; a loss that corrects the prior already is warned of.
        classifier: of the head; None where it is a convolution.
        class_counts: (C,); None = those of ``MODEL.LT.CLASS_COUNTS``.

    Raises:
        ConfigError: an unknown name, a strength that is not set or no number of at least 0, no
            class counts, or a classifier that cannot be normalised.
    """
    name = check_calibration(cfg)
    if not name:
        return None
    strength = cfg.MODEL.LT.CALIBRATION.STRENGTH
    warn_of_double_correction(cfg.MODEL.LT.LOSS.NAME, name, strength)
    if name == "TauNorm":
        _check_linear(classifier, loss)
        return TauNorm(strength)
    counts = list(cfg.MODEL.LT.CLASS_COUNTS if class_counts is None else class_counts)
    if len(counts) != loss.num_classes:
        raise ConfigError(
            f"{KEY}.NAME {name} needs the training examples of each of the {loss.num_classes} "
            f"classes, and there are {len(counts)} counts: set MODEL.LT.CLASS_COUNTS "
            "(MODEL.LT.SEM_SEG.CLASS_COUNTS for the pixels of a PanopticFPN), or have the training "
            "set of DATASETS.TRAIN at hand, whose classes are counted"
        )
    return CountCalibration(unit_shift(name, counts), strength)


def check_calibration(cfg) -> str:
    """The name in ``MODEL.LT.CALIBRATION``, "" = none.

    Raises:
        ConfigError: an unknown name, or a strength that is not set or no number of at least 0.
    """
    node = cfg.MODEL.LT.CALIBRATION
    if node.NAME not in ("", *METHODS):
        raise ConfigError(
            f"{unknown_name('calibration', node.NAME, METHODS, f'{KEY}.NAME')} '' is none."
        )
    if node.NAME and not 0 <= node.STRENGTH < math.inf:
        raise ConfigError(
            f"{KEY}.STRENGTH is {node.STRENGTH}; {node.NAME} takes a number of at least 0. "
            "tools/calibrate.py finds it on held-out images; the papers take 0.6 for NorCal on "
            "LVIS, 1 for LogitAdjustment and choose that of TauNorm between 0 and 1"
        )
    return node.NAME


def warn_of_double_correction(loss_name: str, method: str, strength: float) -> None:
    """Say in the log that a loss has corrected the prior, wholly or in part, before."""
    if not strength or loss_name in _PLAIN_LOSSES:
        return
    if loss_name in _BALANCED_LOSSES:
        found = "takes the class prior out of the scores in training: it is corrected twice"
    else:
        found = "favours rare classes in training: the class prior may be corrected twice"
    logger.warning(
        f"{KEY}.NAME {method} with strength {strength:g}: loss {loss_name} {found}. "
        "tools/calibrate.py says on held-out images whether it helps."
    )


def _check_linear(classifier: nn.Module | None, loss: LongTailLoss) -> None:
    if not isinstance(classifier, nn.Linear):
        kind = "convolution" if classifier is None else type(classifier).__name__
        raise ConfigError(
            f"{KEY}.NAME is TauNorm, but the classifier of loss {type(loss).__name__} is a {kind}; "
            "tau-normalisation is for nn.Linear. NorCal and LogitAdjustment work for all"
        )


def set_strength(model: nn.Module, strength: float) -> None:
    """Set the strength of every calibration in `model`."""
    for module in model.modules():
        if isinstance(module, Calibration):
            module.strength = strength
