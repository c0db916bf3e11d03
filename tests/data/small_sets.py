"""Small annotation files for the tests of the loaders."""

import json
import random
from pathlib import Path

SQUARE = [10.0, 10.0, 30.0, 10.0, 30.0, 30.0, 10.0, 30.0]


def annotation(id, image_id, category_id, **changes):
    ann = {
        "id": id,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [10.0, 10.0, 20.0, 20.0],
        "area": 400.0,
        "segmentation": [list(SQUARE)],
    }
    ann.update(changes)
    return ann


def small_set():
    """Images 5 and 9 (100 x 80), classes 2 cat, 4 dog, 7 elk, annotations 11, 12 and 17."""
    return {
        "images": [
            {"id": 9, "width": 100, "height": 80, "file_name": "a/nine.png"},
            {"id": 5, "width": 100, "height": 80, "file_name": "a/five.png"},
        ],
        "categories": [
            {"id": 7, "name": "elk"},
            {"id": 2, "name": "cat"},
            {"id": 4, "name": "dog"},
        ],
        "annotations": [
            annotation(11, 9, 2),
            annotation(12, 5, 7),
            annotation(17, 5, 4),
        ],
    }


def write_set(folder, data, name="set.json"):
    """Write `data` and the folders its images would lie in; returns (json file, image root)."""
    folder = Path(folder)
    path, root = folder / name, folder / "images"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    for part in ("a", "train2017"):
        (root / part).mkdir(parents=True, exist_ok=True)
    return str(path), str(root)


def random_set(seed, *, coco=False, num_images=12, num_classes=9, num_annotations=60):
    """A clean set in LVIS form, or with `coco` in COCO form with crowds and gaps in the ids."""
    rng = random.Random(seed)
    ids = rng.sample(range(1, 4 * num_classes), num_classes) if coco else range(1, num_classes + 1)
    categories = [{"id": i, "name": f"class {i}", "frequency": rng.choice("rcf")} for i in ids]
    images = [_random_image(rng, i, list(ids), coco) for i in rng.sample(range(1, 999), num_images)]
    annotations = [
        _random_annotation(rng, i, rng.choice(images), rng.choice(categories)["id"], coco)
        for i in rng.sample(range(1, 9999), num_annotations)
    ]
    rng.shuffle(categories)
    return {"images": images, "annotations": annotations, "categories": categories}


def _random_image(rng, id, category_ids, coco):
    image = {"id": id, "width": rng.randint(40, 90), "height": rng.randint(40, 90)}
    if coco:
        return {**image, "file_name": f"{id:012d}.jpg"}
    picked = rng.sample(category_ids, 4)
    return {
        **image,
        "coco_url": f"http://images.cocodataset.org/train2017/{id:012d}.jpg",
        "neg_category_ids": picked[:2],
        "not_exhaustive_category_ids": picked[2:],
    }


def _random_annotation(rng, id, image, category_id, coco):
    x, y = rng.uniform(0, 20), rng.uniform(0, 20)
    w, h = rng.uniform(1, 19), rng.uniform(1, 19)
    ann = annotation(
        id,
        image["id"],
        category_id,
        bbox=[x, y, w, h],
        segmentation=[[x, y, x + w, y, x + w, y + h]] * rng.randint(1, 3),
    )
    if not coco:
        return ann
    ann["iscrowd"] = int(rng.random() < 0.3)
    if ann["iscrowd"]:
        size = [image["height"], image["width"]]
        ann["segmentation"] = {"size": size, "counts": [7, 5, size[0] * size[1] - 12]}
    elif rng.random() < 0.5:
        ann["keypoints"] = [rng.randint(0, 30), rng.randint(0, 30), 2] * 2
    return ann
