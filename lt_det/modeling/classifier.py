"""Linear and cosine classifiers; the loss says which one it needs."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lt_det.errors import ConfigError
from lt_det.losses import LongTailLoss

CLASSIFIERS = ("linear", "cosine")


class CosineClassifier(nn.Module):
    """``scale * cos(x, w_j) + b_j`` for every class j.

    Rows of the weight start uniform in (-1, 1), scaled to unit norm. Vectors shorter than
    1e-12 give a cosine of 0 rather than NaN.

    Source: the normalised layer of LDAM-DRW and GCL (scale 1) and of Softmax-EQL (scale 30);
    their weight is stored transposed, (D, L). Seesaw's (scale 20, with bias) divides by the norm
    plus ``eps`` = 1e-6, and starts from Normal(0, 0.01): the direction of a row is what counts
    and is as uniform.

    Args:
        in_features: D.
        out_features: L.
        scale: factor on the cosine, 1 for losses that scale it themselves.
        bias: add a learned bias, unscaled (Seesaw's normalised layer has one).
        eps: added to every norm instead of bounding it by 1e-12. 0 unless results of Seesaw's
            layer must be met to more than six digits.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        scale: float = 1.0,
        bias: bool = False,
        eps: float = 0.0,
    ):
        super().__init__()
        self.in_features, self.out_features, self.scale = in_features, out_features, scale
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None
        nn.init.uniform_(self.weight, -1, 1)
        with torch.no_grad():
            self.weight.copy_(F.normalize(self.weight, dim=1))

    def forward(self, x: Tensor) -> Tensor:
        """(M, D) -> (M, L)."""
        cosine = F.linear(self._unit(x), self._unit(self.weight))
        logits = self.scale * cosine
        return logits if self.bias is None else logits + self.bias

    def _unit(self, x: Tensor) -> Tensor:
        if not self.eps:
            return F.normalize(x, dim=1)
        return x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + self.eps)

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return f"{self.in_features}, {self.out_features}, scale={self.scale}"


class ClassScale(nn.Module):
    """A learned factor on each output, 1 at the start.

    Source: learnable weight scaling, Kang et al., "Decoupling Representation and Classifier for
    Long-Tailed Recognition", ICLR 2020 (with a frozen classifier), and MiSLAS (beside one that
    trains). As there, the factor applies to the bias, too.

    Args:
        num_outputs: L.
    """

    def __init__(self, num_outputs: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(num_outputs))

    def forward(self, logits: Tensor) -> Tensor:
        """(M, L) -> (M, L)."""
        return self.scale * logits


def tau_normalized_logits(x: Tensor, weight: Tensor, tau: float) -> Tensor:
    """``w_j . x / |w_j| ** tau``: a linear classifier with rows of more equal norm.

    Source: Kang et al., ICLR 2020, section 4.1; the bias is left out as there.

    Args:
        x: (M, D).
        weight: (L, D).
        tau: 0 leaves the rows as they are, 1 makes them unit vectors.

    Returns:
        (M, L). A row of zeros stays one.
    """
    norms = torch.linalg.vector_norm(weight, dim=1, keepdim=True).clamp(min=1e-12)
    return F.linear(x, weight / norms**tau)


def prior_bias(prob: float) -> float:
    """The bias that makes a sigmoid output start at probability `prob`.

    -log((1 - p) / p); -6.9068 for the usual 0.001.
    """
    return -math.log((1 - prob) / prob)


def build_classifier(
    loss: LongTailLoss,
    in_features: int,
    *,
    name: str = "",
    scale: float = 20.0,
    init_std: float = 0.01,
    prior_prob: float = -1.0,
) -> nn.Module:
    """The classifier for `loss`, with ``loss.num_logits`` outputs.

    Args:
        loss: says the number of outputs, the kind and the prior.
        in_features: D.
        name: "" = what the loss asks for, or "linear" / "cosine".
        scale: factor on the cosine where a loss made for linear logits is given a cosine
            classifier. A loss made for cosines scales them itself and gets factor 1.
        init_std: standard deviation of the initial weights of a linear classifier.
        prior_prob: probability that every output starts at; -1 = what the loss asks for,
            0 = none (zero bias).

    Raises:
        ConfigError: unknown name, or a prior outside of [0, 1) other than -1.
    """
    kind = name or loss.classifier
    if kind not in CLASSIFIERS:
        raise ConfigError(
            f"MODEL.LT.CLASSIFIER.NAME is {name!r}; accepted are {', '.join(CLASSIFIERS)} and "
            "'' (what the loss asks for)"
        )
    if prior_prob != -1 and not 0 <= prior_prob < 1:
        raise ConfigError(
            f"MODEL.LT.CLASSIFIER.PRIOR_PROB is {prior_prob}; accepted are -1 (what the loss "
            "asks for), 0 (none) and probabilities below 1"
        )
    prior = loss.prior_prob if prior_prob == -1 else prior_prob
    if kind == "cosine":
        own_scale = 1.0 if loss.classifier == "cosine" else scale
        classifier = CosineClassifier(
            in_features, loss.num_logits, scale=own_scale, bias=bool(prior)
        )
    else:
        classifier = nn.Linear(in_features, loss.num_logits)
        nn.init.normal_(classifier.weight, std=init_std)
        nn.init.zeros_(classifier.bias)
    if prior:
        nn.init.constant_(classifier.bias, prior_bias(prior))
    return classifier
