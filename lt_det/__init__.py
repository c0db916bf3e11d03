"""Long-tailed recognition on Detectron2.

``lt_det.losses`` needs torch alone. Everything else needs Detectron2, and importing
``lt_det.modeling`` (which ``lt_det.engine`` does) registers the heads with it.
"""

__version__ = "0.1.0"
