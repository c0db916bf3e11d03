"""The loss library. Needs torch alone; never imports Detectron2.

>>> import torch
>>> from lt_det.losses import build_loss
>>> loss = build_loss("SigmoidEQL", num_classes=3)
>>> terms = loss(torch.zeros(2, 3), torch.tensor([0, 2]))
>>> round(sum(terms.values()).item(), 4)
2.0794
"""

from lt_det.losses.base import LongTailLoss
from lt_det.losses.build import LOSS_REGISTRY, build_loss
from lt_det.losses.grad_stats import Accumulators, GradStats, one_update
from lt_det.losses.run_state import reset_run_state
from lt_det.losses.schedule import ScheduledLoss, scheduled_losses, set_progress

# Registration: one line for each file with losses.
from lt_det.losses import softmax_ce  # noqa: F401 isort: skip
from lt_det.losses import sigmoid_bce  # noqa: F401 isort: skip
from lt_det.losses import eqlv2  # noqa: F401 isort: skip
from lt_det.losses import kps  # noqa: F401 isort: skip
from lt_det.losses import gcl  # noqa: F401 isort: skip
from lt_det.losses import fbl  # noqa: F401 isort: skip
from lt_det.losses import ldam  # noqa: F401 isort: skip
from lt_det.losses import class_balanced  # noqa: F401 isort: skip
from lt_det.losses import logit_adjustment  # noqa: F401 isort: skip
from lt_det.losses import label_smoothing  # noqa: F401 isort: skip
from lt_det.losses import focal  # noqa: F401 isort: skip
from lt_det.losses import eql  # noqa: F401 isort: skip
from lt_det.losses import softmax_eql  # noqa: F401 isort: skip
from lt_det.losses import equalized_focal  # noqa: F401 isort: skip
from lt_det.losses import seesaw  # noqa: F401 isort: skip

__all__ = [
    "LOSS_REGISTRY",
    "Accumulators",
    "GradStats",
    "LongTailLoss",
    "ScheduledLoss",
    "build_loss",
    "one_update",
    "reset_run_state",
    "scheduled_losses",
    "set_progress",
]
