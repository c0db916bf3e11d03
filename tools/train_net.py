#!/usr/bin/env python
"""Train and evaluate.

    python tools/train_net.py --config-file configs/lvis_eqlv2.yaml --num-gpus 8
    python tools/train_net.py --config-file configs/lvis_eqlv2.yaml --num-gpus 8 --resume
    python tools/train_net.py --config-file configs/lvis_eqlv2.yaml --eval-only \
        MODEL.WEIGHTS output/lvis_eqlv2/model_final.pth
    torchrun --nproc-per-node 8 tools/train_net.py --config-file configs/lvis_eqlv2.yaml

The flags are Detectron2's; KEY VALUE pairs at the end override the configuration file.
"""

import sys

from lt_det.environment import check_torch_pair

check_torch_pair()

from detectron2.engine import default_argument_parser, default_setup  # noqa: E402

from lt_det.engine import LongTailCheckpointer, LongTailTrainer  # noqa: E402
from lt_det.engine import load_config, prepare_config  # noqa: E402
from lt_det.engine.launch import run  # noqa: E402
from lt_det.engine.trainer import evaluate  # noqa: E402
from lt_det.errors import LtDetError  # noqa: E402


def main(args):
    """One process of the run."""
    cfg = load_config(args.config_file, args.opts)
    counts = prepare_config(cfg, training=not args.eval_only)
    cfg.freeze()
    default_setup(cfg, args)
    if args.eval_only:
        model = LongTailTrainer.build_model(cfg)
        checkpointer = LongTailCheckpointer(model, cfg.OUTPUT_DIR, strict_shapes=True)
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        return evaluate(cfg, model, counts, weights=cfg.MODEL.WEIGHTS)
    trainer = LongTailTrainer(cfg, counts)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


if __name__ == "__main__":
    arguments = default_argument_parser().parse_args()
    try:
        run(main, arguments)
    except LtDetError as error:
        sys.exit(f"error: {error}")
