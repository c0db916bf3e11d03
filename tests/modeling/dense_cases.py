"""Small dense detectors and images for the tests."""

from __future__ import annotations

import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

from lt_det.engine import load_config

CLASSES = 4
SMALL = [
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.RESNETS.RES2_OUT_CHANNELS", 16),
    *("MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.WIDTH_PER_GROUP", 4),
    *("MODEL.FPN.OUT_CHANNELS", 64, "MODEL.RETINANET.NUM_CONVS", 1),
    *("MODEL.RETINANET.NUM_CLASSES", CLASSES, "MODEL.LT.CLASS_COUNTS", [40, 30, 20, 10]),
]


def config(kind="retinanet", *options):
    """Of a quick recipe, smaller. `kind` is "retinanet" or "atss"."""
    cfg = load_config(f"configs/quick/base/lvis_{kind}_r18_fpn.yaml", [*SMALL, *options])
    if "MODEL.LT.LOSS.NAME" not in options:
        cfg.MODEL.LT.LOSS.NAME = "EFL"
    return cfg


def detector(kind="retinanet", *options, seed=0):
    """In training mode."""
    torch.manual_seed(seed)
    return build_model(config(kind, *options))


def image(labels, seed=0, size=64, sides=(16, 48)):
    """A training image with objects of these classes at random places."""
    generator = torch.Generator().manual_seed(seed)
    target = Instances((size, size))
    low, high = sides
    corner = torch.rand(len(labels), 2, generator=generator) * (size - high)
    extent = low + torch.rand(len(labels), 2, generator=generator) * (high - low)
    target.gt_boxes = Boxes(torch.cat([corner, corner + extent], dim=1))
    target.gt_classes = torch.tensor(labels, dtype=torch.int64)
    pixels = torch.rand(3, size, size, generator=generator) * 255
    return {"image": pixels, "instances": target, "height": size, "width": size}
