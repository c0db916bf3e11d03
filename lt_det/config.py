"""The keys that lt_det adds to a Detectron2 configuration, with their defaults.

Everything of ours lives under ``MODEL.LT``, ``DATALOADER.LT``, ``DATASETS.LT``, ``SOLVER.LT``
and ``TEST.LT``; no key of Detectron2 is redefined.
"""

from __future__ import annotations

import ast

from detectron2.config import CfgNode as CN

# Nodes that take any name, checked later against a constructor, and the key that names whose.
OPEN_PARAMS = {
    "MODEL.LT.LOSS.PARAMS": "MODEL.LT.LOSS.NAME",
    "DATALOADER.LT.SAMPLER.PARAMS": "DATALOADER.LT.SAMPLER.RULE",
}


def add_lt_config(cfg: CN) -> CN:
    """Add lt_det's keys to `cfg`, in place.

    Returns:
        `cfg`.
    """
    cfg.MODEL.LT = CN()
    # The classification loss of the head. Names: lt_det.losses.LOSS_REGISTRY.
    cfg.MODEL.LT.LOSS = CN()
    cfg.MODEL.LT.LOSS.NAME = "SoftmaxCE"
    # Parameters of the loss, checked against its constructor,
    # e.g. {gamma: 12.0, mu: 0.8, alpha: 4.0}.
    cfg.MODEL.LT.LOSS.PARAMS = CN(new_allowed=True)

    # "" takes the classifier that the loss asks for; "linear" or "cosine" overrides it.
    cfg.MODEL.LT.CLASSIFIER = CN()
    cfg.MODEL.LT.CLASSIFIER.NAME = ""
    # Factor on the cosine. 20 is Seesaw's, 30 is Softmax-EQL's and GCL's.
    cfg.MODEL.LT.CLASSIFIER.SCALE = 20.0
    # Standard deviation of a linear classifier's initial weights.
    cfg.MODEL.LT.CLASSIFIER.INIT_STD = 0.01
    # Probability that every output starts with, through the bias. -1: what the loss asks for
    # (0.001 for the sigmoid losses, none for the softmax losses). 0: no prior.
    cfg.MODEL.LT.CLASSIFIER.PRIOR_PROB = -1.0

    # Post-hoc calibration, at inference alone: "" = none, "NorCal", "LogitAdjustment" (both by
    # MODEL.LT.CLASS_COUNTS) or "TauNorm" (by the norms of a linear classifier).
    cfg.MODEL.LT.CALIBRATION = CN()
    cfg.MODEL.LT.CALIBRATION.NAME = ""
    # At least 0, 0 = no change; -1 = not set. tools/calibrate.py finds it on held-out images.
    cfg.MODEL.LT.CALIBRATION.STRENGTH = -1.0

    # A learned factor on each output of the classifier (LWS, MiSLAS). Image classification.
    cfg.MODEL.LT.CLASS_SCALE = False

    # Image classification (MODEL.META_ARCHITECTURE "LongTailClassifier").
    cfg.MODEL.LT.NUM_CLASSES = 1000
    # Output of the backbone that is pooled; "" = its last one.
    cfg.MODEL.LT.FEATURE = ""
    # Mixup: alpha of the Beta distribution; 0 = none.
    cfg.MODEL.LT.MIXUP = 0.0

    # A second stage of training. Run folder or checkpoint of the first one: its weights are
    # loaded, the state of its loss is not.
    cfg.MODEL.LT.FIRST_STAGE = ""
    # Modules that start anew instead, by dotted name, e.g. ("classifier",).
    cfg.MODEL.LT.START_ANEW = ()
    # Modules that do not train, e.g. ("backbone",), also without a first stage. Image
    # classification; detectors have MODEL.BACKBONE.FREEZE_AT.
    cfg.MODEL.LT.FREEZE = ()
    # Batch normalisation in them: "eval" uses the running statistics; "update" goes on updating
    # these (MiSLAS's shifted batch normalisation).
    cfg.MODEL.LT.FREEZE_NORM = "eval"
    # Checkpoint whose backbone this model starts with, a detector's or a classifier's.
    cfg.MODEL.LT.BACKBONE_WEIGHTS = ""

    # Semantic segmentation. The number of classes, the value of ignored pixels, the widths, the
    # norm and the weight of the loss are Detectron2's MODEL.SEM_SEG_HEAD.
    cfg.MODEL.LT.SEM_SEG = CN()
    # 3 x 3 convolutions of an FCNHead, and whether their input is concatenated to their output.
    cfg.MODEL.LT.SEM_SEG.NUM_CONVS = 2
    cfg.MODEL.LT.SEM_SEG.CONCAT_INPUT = True
    # Sides of the grids that a UPerNetHead pools its last feature to.
    cfg.MODEL.LT.SEM_SEG.POOL_SIZES = (1, 2, 3, 6)
    # Share of the channels that are dropped before the classifier of an FCNHead or UPerNetHead.
    cfg.MODEL.LT.SEM_SEG.DROPOUT = 0.1
    # An FCNHead beside the main one, with the same loss and statistics of its own, for training
    # only. FEATURE: the output of the backbone that it sees, e.g. "res4"; "" = no such head.
    cfg.MODEL.LT.SEM_SEG.AUX = CN()
    cfg.MODEL.LT.SEM_SEG.AUX.FEATURE = ""
    cfg.MODEL.LT.SEM_SEG.AUX.CHANNELS = 256
    cfg.MODEL.LT.SEM_SEG.AUX.NUM_CONVS = 1
    cfg.MODEL.LT.SEM_SEG.AUX.WEIGHT = 0.4
    # Training examples per class where the model is a detector as well (PanopticFPN), whose
    # MODEL.LT.CLASS_COUNTS are those of its boxes.
    cfg.MODEL.LT.SEM_SEG.CLASS_COUNTS = []

    # Which classes take part in the classification loss of a region (detectors).
    cfg.MODEL.LT.FEDERATED = CN()
    # "": all. "annotated": those that the image's lists of LVIS say are present or verified to
    # be absent; all where a data set has no such lists. "sampled": those present in the batch
    # and sampled ones, with probability proportional to count^POWER.
    cfg.MODEL.LT.FEDERATED.MODE = ""
    # Classes that take part in all under "sampled".
    cfg.MODEL.LT.FEDERATED.NUM_SAMPLED = 50
    cfg.MODEL.LT.FEDERATED.POWER = 0.5

    # Dense (one-stage) detectors: LongTailRetinaNet, LongTailATSS, LongTailFCOS. Classes, features,
    # convolutions, norm, kind of box loss, score threshold and candidates of a level are
    # Detectron2's MODEL.RETINANET, anchors its MODEL.ANCHOR_GENERATOR.
    cfg.MODEL.LT.DENSE = CN()
    # What the losses are divided by. "ranks": positives of all ranks over the number of ranks;
    # "running": the running mean of that; "local": positives of the own rank.
    cfg.MODEL.LT.DENSE.NORMALIZER = "ranks"
    # A batch without positives is divided by the "running" mean, or by "one" (released), which
    # makes it weigh in weights and statistics as much as a usual batch has positives.
    cfg.MODEL.LT.DENSE.EMPTY_BATCH = "running"
    # Pairs of anchor and class of all levels together that go into non-maximum suppression, after
    # MODEL.RETINANET.TOPK_CANDIDATES_TEST of each level; 0 = all of those.
    cfg.MODEL.LT.DENSE.TOPK = 6000
    # Clip boxes to the image before non-maximum suppression, not after it.
    cfg.MODEL.LT.DENSE.CLIP_BEFORE_NMS = False
    # Factor on the box regression loss. BY_IOU: a positive weighs as much as its predicted box
    # overlaps its object, and the sum of these weights is the divisor.
    cfg.MODEL.LT.DENSE.BOX_WEIGHT = 1.0
    cfg.MODEL.LT.DENSE.BOX_WEIGHT_BY_IOU = False
    # LongTailATSS: anchors of a level that may become positives of an object.
    cfg.MODEL.LT.DENSE.ATSS_TOPK = 18
    # LongTailATSS: predict the IoU of a box and multiply the score by it; factor on its loss.
    cfg.MODEL.LT.DENSE.IOU_BRANCH = True
    cfg.MODEL.LT.DENSE.IOU_WEIGHT = 1.0

    # Training examples per class. Empty: counted from DATASETS.TRAIN at the start of a run and
    # written here, so that config.yaml holds what the loss was built with.
    cfg.MODEL.LT.CLASS_COUNTS = []
    # What is counted: "instances" (boxes), "images" (that hold the class) or "pixels" (semantic
    # segmentation).
    cfg.MODEL.LT.COUNT_UNIT = "instances"

    cfg.DATASETS.LT = CN()
    # Own data sets, without code. A list of
    # {name: my_train, json: /path/train.json, images: /path/images, format: lvis | coco}
    # or, for image classification,
    # {name: my_train, list: /path/train.txt, images: /path/images, classes: /path/names.txt}
    # or, for semantic segmentation, with a PNG of the same name for each image,
    # {name: my_train, labels: /path/maps, images: /path/images, classes: /path/names.txt,
    #  zero_is_unlabelled: False}.
    cfg.DATASETS.LT.REGISTER = []
    # r / c / f borders in training images of a class: r <= first, c <= second, f above.
    # Used where the annotation file has no `frequency` of its own.
    cfg.DATASETS.LT.GROUP_BORDERS = (10, 100)
    # Groups of semantic segmentation. "pixels", "images": the classes ranked by training pixels or
    # images, in thirds (head, common, tail; the larger thirds first if they differ in size).
    # "borders": GROUP_BORDERS, in training images.
    cfg.DATASETS.LT.SEM_SEG = CN()
    cfg.DATASETS.LT.SEM_SEG.GROUP_BY = "pixels"
    # Where class counts, and the contents of large annotation files, are cached.
    # "" is <DETECTRON2_DATASETS>/lt_det_cache.
    cfg.DATASETS.LT.CACHE_DIR = ""

    cfg.DATALOADER.LT = CN()
    # Image classification. AUGMENT: "crop" (random crop of a random size, ImageNet's), "cifar"
    # (padding and crop), "none".
    cfg.DATALOADER.LT.IMAGE = CN()
    cfg.DATALOADER.LT.IMAGE.AUGMENT = "crop"
    # Side of the training and test crop, and shorter side that test images are resized to first.
    cfg.DATALOADER.LT.IMAGE.SIZE = 224
    cfg.DATALOADER.LT.IMAGE.RESIZE = 256
    # Of a random crop: share of the image and width over height.
    cfg.DATALOADER.LT.IMAGE.SCALE = (0.08, 1.0)
    cfg.DATALOADER.LT.IMAGE.RATIO = (0.75, 4 / 3)
    # Brightness, contrast, saturation; (0, 0, 0) = none.
    cfg.DATALOADER.LT.IMAGE.JITTER = (0.0, 0.0, 0.0)
    cfg.DATALOADER.LT.IMAGE.FLIP = True
    # Zeros around a CIFAR image before it is cropped, in pixels.
    cfg.DATALOADER.LT.IMAGE.PAD = 4
    # Under "cifar", a set whose decoded images take up to so many MiB is held in memory.
    cfg.DATALOADER.LT.IMAGE.CACHE_MB = 4096
    # Images of a test batch.
    cfg.DATALOADER.LT.IMAGE.TEST_BATCH = 256
    # Semantic segmentation. The size of INPUT.MIN_SIZE_TRAIN and MAX_SIZE_TRAIN is multiplied by a
    # random number between these.
    cfg.DATALOADER.LT.SEM_SEG = CN()
    cfg.DATALOADER.LT.SEM_SEG.RATIO = (1.0, 1.0)
    # Random brightness, contrast, saturation and hue.
    cfg.DATALOADER.LT.SEM_SEG.COLOR = False
    # An image file that is missing, truncated or of another size than its annotation says:
    # "error" stops and names it, "skip" takes the next image of the set and counts.
    cfg.DATALOADER.LT.BAD_IMAGE = "error"
    # What DATALOADER.SAMPLER_TRAIN "LongTailSampler" does.
    cfg.DATALOADER.LT.SAMPLER = CN()
    # How often the images of each class are wanted. Names: lt_det.data.rules.SAMPLING_RULES.
    cfg.DATALOADER.LT.SAMPLER.RULE = "sqrt"
    # Parameters of the rule, checked against its constructor, e.g. {threshold: 0.001}.
    cfg.DATALOADER.LT.SAMPLER.PARAMS = CN(new_allowed=True)
    # "repeat": an epoch holds each image as often as its factor says. "draw": an epoch is as many
    # draws with replacement as there are images (one class an image, as in the classification
    # literature).
    cfg.DATALOADER.LT.SAMPLER.FORM = "repeat"

    cfg.SOLVER.LT = CN()
    # Forward/backward passes per optimiser step. SOLVER.IMS_PER_BATCH stays the number of
    # images of one step, over all ranks and passes, so the learning rate needs no change.
    cfg.SOLVER.LT.ACCUMULATION_STEPS = 1

    # Learning rate of the classifier, as a multiple of that of all else (MiSLAS trains its second
    # stage with 0.05 to 0.5).
    cfg.SOLVER.LT.CLASSIFIER_LR_FACTOR = 1.0

    cfg.TEST.LT = CN()
    # Resamples of the test images for the confidence intervals of a result; 0 = none.
    cfg.TEST.LT.BOOTSTRAP = 1000
    # Keep pooled features and classifier weights of an evaluation (image classification), for
    # tools/plot_classification.py.
    cfg.TEST.LT.KEEP_FEATURES = False
    # tau-normalisation of a linear classifier at inference; 0 = none. Image classification.
    cfg.TEST.LT.TAU_NORM = 0.0
    # Semantic segmentation. Side of the windows that an image is cut into; 0 = the whole image.
    cfg.TEST.LT.SEM_SEG = CN()
    cfg.TEST.LT.SEM_SEG.WINDOW = 0
    # Pixels from one window to the next; 0 = two thirds of the side.
    cfg.TEST.LT.SEM_SEG.STRIDE = 0
    # Factors on the size of the test image, and whether each is also seen mirrored: the scores
    # are averaged.
    cfg.TEST.LT.SEM_SEG.SCALES = (1.0,)
    cfg.TEST.LT.SEM_SEG.FLIP = False
    # Boundary IoU beside IoU.
    cfg.TEST.LT.SEM_SEG.BOUNDARY = False
    # Predictions to keep: "" = none, "png" = label maps, "json" = Detectron2's run lengths.
    cfg.TEST.LT.SEM_SEG.SAVE = ""
    # Metric that decides which checkpoint is kept as model_best.pth, e.g. "segm/APr"; with
    # several test sets "lvis_v1_val/segm/APr". "": none is kept. Needs TEST.EVAL_PERIOD > 0.
    cfg.TEST.LT.BEST_METRIC = ""
    return cfg


def node_at(cfg: CN, key: str):
    """The node or value of a dotted key."""
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def open_params(cfg: CN, opts: list[str]) -> list[str]:
    """Let command-line `opts` set parameters of a loss or sampling rule that no YAML has named.

    ``merge_from_list`` refuses keys that do not exist; under the nodes of ``OPEN_PARAMS`` any
    name is allowed here and checked later. A node itself may be given as a dict.

    Returns:
        `opts` with one KEY VALUE pair for each parameter.
    """
    result: list[str] = []
    for key, value in zip(opts[0::2], opts[1::2], strict=True):
        node = next((n for n in OPEN_PARAMS if f"{key}.".startswith(f"{n}.")), None)
        for name, part in [(key, value)] if node is None else _flatten(key, value):
            if node is not None:
                _make_room(cfg, name)
            result += [name, part]
    return result


def _flatten(key: str, value: str) -> list[tuple[str, str]]:
    """(KEY.name, value) for each entry of a dict in text form, else the pair itself."""
    try:
        parsed = ast.literal_eval(value)
    except (SyntaxError, ValueError):
        parsed = value
    if not isinstance(parsed, dict):
        return [(key, value)]
    return [
        pair
        for name, part in parsed.items()
        for pair in _flatten(f"{key}.{name}", part if isinstance(part, str) else repr(part))
    ]


def _make_room(cfg: CN, key: str) -> None:
    """Make the nodes on the way to `key`, and an empty value there, if they are missing."""
    *nodes, name = key.split(".")
    for part in nodes:
        if not isinstance(cfg.get(part), CN):
            cfg[part] = CN(new_allowed=True)
        cfg = cfg[part]
    cfg.setdefault(name, None)
