"""Training and evaluation runs."""

from lt_det.engine.checkpoint import LongTailCheckpointer
from lt_det.engine.config import load_config, prepare_config
from lt_det.engine.trainer import LongTailTrainer

__all__ = ["LongTailCheckpointer", "LongTailTrainer", "load_config", "prepare_config"]
