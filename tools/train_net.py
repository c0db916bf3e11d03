#!/usr/bin/env python
"""Train and evaluate.

    python tools/train_net.py --config-file configs/lvis_eqlv2.yaml --num-gpus 8
    python tools/train_net.py --config-file configs/lvis_eqlv2.yaml --num-gpus 8 --resume
    python tools/train_net.py --config-file configs/lvis_eqlv2.yaml --eval-only \
        MODEL.WEIGHTS output/lvis_eqlv2/model_final.pth
    python tools/train_net.py --config-file configs/lvis_eqlv2.yaml --eval-only --resume
    torchrun --nproc-per-node 8 tools/train_net.py --config-file configs/lvis_eqlv2.yaml

The flags are Detectron2's; KEY VALUE pairs at the end override the configuration file. With
--eval-only, --resume takes the last checkpoint of OUTPUT_DIR, and detections that a killed
evaluation of the same weights and configuration has left there are not made again.
"""

import sys
import warnings

from lt_det.environment import EnvironmentProblem, check_torch_pair

# Detectron2 and fvcore script small functions at import; nothing a user can do about it.
warnings.filterwarnings("ignore", message=".*torch.jit.script.* is deprecated")


def configure(args, ranks=None):
    """Configuration and class counts of this run; nothing is written."""
    from lt_det.engine import load_config, prepare_config

    cfg = load_config(args.config_file, args.opts)
    counts = prepare_config(cfg, training=not args.eval_only, ranks=ranks)
    cfg.freeze()
    return cfg, counts


def main(args):
    """One process of the run."""
    from lt_det.engine import LongTailTrainer
    from lt_det.engine.launch import begin, log_to_terminal
    from lt_det.engine.trainer import evaluate_checkpoint

    log_to_terminal()
    cfg, counts = configure(args)
    if args.eval_only:
        return evaluate_checkpoint(
            cfg,
            counts,
            resume=args.resume,
            before_writing=lambda: begin(cfg, args),
            config_file=args.config_file,
        )
    begin(cfg, args)
    trainer = LongTailTrainer(cfg, counts, config_file=args.config_file)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


def command():
    """Parse the command line and run; errors that a user can act on end in one line."""
    from detectron2.engine import default_argument_parser
    from torch.multiprocessing.spawn import ProcessRaisedException

    from lt_det.engine.launch import run
    from lt_det.errors import LtDetError, user_message

    args = default_argument_parser().parse_args()
    try:
        if args.num_gpus > 1:
            # Once, before several processes find the same fault.
            configure(args, ranks=args.num_gpus * args.num_machines)
        run(main, args)
    except LtDetError as error:
        sys.exit(f"error: {user_message(error)}")
    except ProcessRaisedException as error:  # of one of several processes
        if "lt_det.errors." not in str(error):
            raise
        sys.exit(f"error: {str(error).rsplit('Error: ', 1)[-1].strip()}")


if __name__ == "__main__":
    try:
        check_torch_pair()
    except EnvironmentProblem as problem:
        sys.exit(f"error: {problem}")
    command()
