"""Where data sets lie."""

from __future__ import annotations

import os


def datasets_root() -> str:
    """``$DETECTRON2_DATASETS``, by default ``datasets``; ``~`` is expanded, as Detectron2 does."""
    return os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
