import re
from pathlib import Path

from setuptools import find_packages, setup

VERSION = re.search(
    r'^__version__ = "(.+)"', (Path(__file__).parent / "lt_det/__init__.py").read_text(), re.M
)[1]

setup(
    name="lt_det",
    version=VERSION,
    description="Long-tailed recognition on Detectron2",
    author="The lt_det authors",
    license="Apache-2.0",
    packages=find_packages(include=("lt_det", "lt_det.*")),
    python_requires=">=3.10",
    # Not here, because pip would replace what the user has: torch and torchvision
    # (tools/requirements-torch.txt), Detectron2 and the LVIS API, whose released form breaks with
    # numpy >= 1.24 and asks for the OpenCV that needs a desktop (tools/install_detectron2.py).
    install_requires=[
        "numpy>=1.26",
        "Pillow>=10",
        "fvcore>=0.1.5",
        "matplotlib>=3.7",
        "orjson",
        "pycocotools>=2.0.7",
        "tabulate",
        "tensorboard",
        "tqdm",
    ],
    extras_require={"dev": ["pytest==9.2.0", "ruff==0.17.5"]},
)
