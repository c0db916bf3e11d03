"""Mixup: convex combinations of images, and of their losses."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from lt_det.errors import ConfigError
from lt_det.losses import LongTailLoss
from lt_det.losses.noise import NoiseSource


class Mixup(nn.Module):
    """Mixes every image of a batch with another one, by one weight a batch.

    ``x' = lam x + (1 - lam) x[order]``, lam from Beta(alpha, alpha) and a random permutation.
    The numbers come from a source of its own (:class:`~lt_det.losses.noise.NoiseSource`): they
    differ between ranks and a resumed run goes on with them.

    Source: Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018; one weight a
    batch as in the published code of mixup, MiSLAS and GCL.

    Args:
        alpha: of the Beta distribution, above 0.
        seed: of the source.

    Raises:
        ConfigError: alpha is not above 0.
    """

    def __init__(self, alpha: float, *, seed: int = 0):
        super().__init__()
        if not alpha > 0:
            raise ConfigError(f"MODEL.LT.MIXUP is {alpha}; it must be above 0, or 0 for none")
        self.alpha = alpha
        self.noise = NoiseSource(seed)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, float]:
        """Mix.

        Args:
            images: (N, 3, H, W) floats.

        Returns:
            Mixed images, (N,) int64 order of the partners, weight lam of the own image.
        """
        # Drawn on the CPU, where one of them is wanted and from where the rest is copied without
        # waiting.
        words = self.noise.uniform((2,), device=torch.device("cpu")).mul_(2**24).long().tolist()
        rng = np.random.default_rng(words)
        lam = float(rng.beta(self.alpha, self.alpha))
        order = torch.from_numpy(rng.permutation(len(images)))
        order = order.to(images.device, non_blocking=True)
        return torch.lerp(images[order], images, lam), order, lam


def mixed_terms(
    loss: LongTailLoss,
    logits: Tensor,
    targets: Tensor,
    partners: Tensor,
    lam: float,
    features: Tensor | None = None,
) -> dict[str, Tensor]:
    """``lam L(logits, targets) + (1 - lam) L(logits, partners)`` in one call of the loss.

    One call, so that statistics are updated once. A stochastic loss draws noise for each of the
    2N rows, as two calls would.

    Args:
        loss: any.
        logits: (N, L) of the mixed images.
        targets: (N,) int64.
        partners: (N,) int64, the targets of what was mixed in.
        lam: weight of `targets`.
        features: (N, D) for losses that need them.

    Returns:
        Terms as of the loss.
    """
    rows = len(logits)
    dtype = torch.promote_types(logits.dtype, torch.float32)
    # Each half is divided by its own normaliser, which for some losses depends on the targets.
    weights = [
        share * rows / loss.default_normalizer(t).to(dtype)
        for share, t in ((lam, targets), (1 - lam, partners))
    ]
    return loss(
        torch.cat([logits, logits]),
        torch.cat([targets, partners]),
        weight=torch.cat([w.expand(rows) for w in weights]),
        features=None if features is None else torch.cat([features, features]),
        normalizer=rows,
    )
