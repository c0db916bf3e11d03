#!/usr/bin/env python
"""Install Detectron2 and the LVIS API beside the torch that is already there.

Of Detectron2 the package index has ``detectron2-cdo`` 0.5: no C++ sources, and older than
Python 3.10, numpy 2 and Pillow 10. Of the LVIS API it has 0.5.3, older than numpy 1.24. This
script fetches each, checks its hash, applies the edits listed below and installs the result
as a pure-Python ``detectron2`` 0.5+ltdet.* and ``lvis`` 0.5.3+ltdet.*.
A Detectron2 that works is kept. torch, torchvision, numpy and Pillow are never changed.
"""

import argparse
import base64
import hashlib
import importlib.util
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
OLDEST_PYTHON = (3, 10)
KEPT = ("torch", "torchvision", "numpy", "Pillow")
# pip 26.1 and later refuse the metadata of detectron2-cdo (an extra that names a direct URL).
# setuptools and wheel are what its metadata step needs.
BUILD_TOOLS = ("pip==25.3", "setuptools==80.9.0", "wheel==0.45.1")
OPENCV = ("opencv-python-headless", "opencv-python", "opencv-contrib-python")


class Edit(NamedTuple):
    """Replace `old`, which occurs `count` times in `file`, by `new`."""

    file: str
    old: str
    new: str
    count: int
    reason: str


class Source(NamedTuple):
    """A distribution on the index, and what becomes of it."""

    name: str  # of what is installed
    requirement: str  # on the index
    sha256: str
    probe: str  # a program that fails unless the installed one works
    edits: tuple
    requires: tuple


class InstallError(Exception):
    """Something the user has to act on."""


BYTES = "torch.frombuffer(bytearray(buffer), dtype=torch.uint8)"
NMS_ROTATED = "from detectron2 import _C\n\n    return _C.nms_rotated"
# reason: (file, old text, new text, how often the old text is there)
D2_EDITS = {
    "Pillow 10 removed the alias": (
        ("data/transforms/transform.py", "Image.LINEAR", "Image.BILINEAR", 1),
    ),
    "numpy 1.24 removed the aliases": (
        ("data/build.py", "dtype=np.int\n", "dtype=int\n", 1),
        ("data/build.py", "dtype=np.int)", "dtype=int)", 1),
        ("data/datasets/pascal_voc.py", "dtype=np.str)", "dtype=str)", 1),
        ("evaluation/pascal_voc_evaluation.py", "np.bool)", "bool)", 2),
        ("evaluation/sem_seg_evaluation.py", "np.int)", "int)", 2),
        ("evaluation/sem_seg_evaluation.py", "np.float)", "float)", 5),
        ("structures/masks.py", "np.bool)", "bool)", 2),
        ("utils/visualizer.py", "np.bool)", "bool)", 3),
        ("utils/video_visualizer.py", "np.bool)", "bool)", 1),
    ),
    "setuptools 82 removed pkg_resources": (
        ("model_zoo/model_zoo.py", "import pkg_resources\n", "", 1),
        ("model_zoo/model_zoo.py", "pkg_resources.resource_filename(", "os.path.join(", 1),
        ("model_zoo/model_zoo.py", '"detectron2.model_zoo", ', "os.path.dirname(__file__), ", 1),
    ),
    "Python 3.11 takes no sample of a set": (
        ("data/common.py", "(self._fallback_candidates,", "(sorted(self._fallback_candidates),", 1),
    ),
    "torch 2.2 removed caffe2, without which detectron2.export could not be imported": (
        ("export/__init__.py", "from .api import *\n", "", 1),
    ),
    "torch 2.4 deprecated torch.cuda.amp": (
        ("engine/train_loop.py", "from torch.cuda.amp import", "from torch.amp import", 2),
        ("engine/train_loop.py", "GradScaler()", 'GradScaler("cuda")', 1),
        ("engine/train_loop.py", "autocast()", 'autocast("cuda")', 1),
    ),
    "torch 2.0 deprecated typed storages": (
        ("utils/comm.py", "    storage = torch.ByteStorage.from_buffer(buffer)\n", "", 1),
        ("utils/comm.py", "torch.ByteTensor(storage)", BYTES, 1),
    ),
    "torch warns of it on every run": (
        ("data/detection_utils.py", " = Boxes(boxes)", " = Boxes(np.array(boxes))", 2),
        ("modeling/anchor_generator.py", "_y, shifts_x)", '_y, shifts_x, indexing="ij")', 1),
    ),
    "asked through _C, the missing operator explains itself": (
        ("layers/nms.py", "return torch.ops.detectron2.nms_rotated", NMS_ROTATED, 1),
    ),
    "the fast evaluator is compiled; pycocotools gives the same numbers": (
        ("evaluation/coco_evaluation.py", "use_fast_impl=True", "use_fast_impl=False", 2),
    ),
}

SOURCES = (
    Source(
        name="detectron2",
        requirement="detectron2-cdo==0.5",
        sha256="53c9e79e9cc943e80419c588ea44b5479507a8628ed14a4e06bd093e29311b18",
        probe="import detectron2.engine, detectron2.evaluation, detectron2.modeling",
        edits=tuple(
            Edit(f"detectron2/{file}", *rest, reason)
            for reason, rows in D2_EDITS.items()
            for file, *rest in rows
        ),
        # As upstream, less black, future and pydot (formatter, caffe2). shapely is what cropping
        # needs to cut polygons; upstream leaves it to the user.
        requires=(
            "cloudpickle",
            "fvcore>=0.1.5,<0.1.6",
            "hydra-core>=1.1",
            "iopath>=0.1.7",
            "matplotlib",
            "numpy",
            "omegaconf>=2.1",
            "Pillow>=7.1",
            "pycocotools>=2.0.2",
            "shapely",
            "tabulate",
            "tensorboard",
            "termcolor>=1.1",
            "tqdm>4.29.0",
            "yacs>=0.1.8",
        ),
    ),
    Source(
        name="lvis",
        requirement="lvis==0.5.3",
        sha256="4f07153330df342b3161fafb46641ce7c02864113a8ddf0d6ffab6b02407bef0",
        probe="import inspect, lvis, numpy; "
        "assert hasattr(numpy, 'float') or 'np.float)' not in inspect.getsource(lvis.LVISEval)",
        edits=(
            Edit("lvis/eval.py", "dtype=np.float)", "dtype=float)", 2, "numpy 1.24 removed it"),
        ),
        requires=("matplotlib", "numpy", "pycocotools"),
    ),
)

# What upstream's setup.py installs as detectron2.projects.*
PROJECTS = ("DeepLab/deeplab", "PointRend/point_rend", "Panoptic-DeepLab/panoptic_deeplab")

# detectron2._C. The first three are what detectron2.utils.collect_env asks for.
C_STUB = '''\
"""Takes the place of the compiled operators, which this pure-Python Detectron2 does not have."""


def get_compiler_version():
    return "none (pure-Python build)"


def get_cuda_version():
    return "none (pure-Python build)"


def has_cuda():
    return False


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    raise AttributeError(
        f"detectron2._C.{name} is a compiled operator, and this Detectron2 is a pure-Python "
        "build. Deformable convolution, rotated boxes and the fast COCO evaluator "
        "(use_fast_impl=True) need a Detectron2 built from its source repository."
    )
'''


def say(text):
    """Print one line of progress."""
    print(f"[detectron2] {text}", flush=True)


def check_sha256(path, expected):
    """Raise InstallError unless the file `path` has the SHA-256 `expected`."""
    found = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    if found != expected:
        raise InstallError(
            f"{path} is not the file expected: its SHA-256 is {found}, not {expected}"
        )


def apply_edits(tree, edits):
    """Apply `edits` to the files under `tree`.

    Raises InstallError, before anything is written, if a text is not there as often as expected.
    """
    texts = {}
    for edit in edits:
        path = Path(tree, edit.file)
        if path not in texts:
            if not path.is_file():
                raise InstallError(f"{edit.file}: no such file, expected for: {edit.reason}")
            texts[path] = path.read_text(encoding="utf-8")
        found = texts[path].count(edit.old)
        if found != edit.count:
            raise InstallError(
                f"{edit.file}: expected {edit.old!r} {edit.count} time(s), "
                f"found it {found} time(s) (the edit is for: {edit.reason})"
            )
        texts[path] = texts[path].replace(edit.old, edit.new)
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")


def unpack(archive, folder):
    """Unpack a checked source archive or wheel; return the directory that holds its packages."""
    if zipfile.is_zipfile(archive):
        zipfile.ZipFile(archive).extractall(folder)
        return Path(folder)
    with tarfile.open(archive) as tar:
        # Python before 3.10.12 and 3.11.4 has no filters.
        tar.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    return next(Path(folder).iterdir())


def complete_detectron2(tree):
    """Put what upstream's setup.py would add into ``detectron2/``: projects and ``_C``."""
    for project in PROJECTS:
        source = Path(tree, "projects", project)
        source.rename(Path(tree, "detectron2/projects", source.name))
    Path(tree, "detectron2/_C.py").write_text(C_STUB)


def target_version(source):
    """Version under which `source` is installed: that of the original, marked with our edits."""
    digest = hashlib.sha256(repr((source.edits, source.requires, C_STUB)).encode()).hexdigest()
    return f"{source.requirement.partition('==')[2]}+ltdet.e{digest[:7]}"


def opencv_requirement():
    """The OpenCV to ask for: the one that is there, else the one that needs no desktop.

    Both Detectron2's visualizer and the LVIS API import cv2; all of OpenCV's distributions
    write the same files, so that a second one would break the first.
    """
    for name in OPENCV:
        if installed_version(name):
            return (name,)
    return () if importlib.util.find_spec("cv2") else OPENCV[:1]


def write_wheel(tree, name, version, requires, folder):
    """Pack the package `name` under `tree` as a pure-Python wheel; return its path."""
    info = f"{name}-{version}.dist-info"
    files = {
        path.relative_to(tree).as_posix(): path.read_bytes()
        for path in sorted(Path(tree, name).rglob("*"))
        if path.is_file() and path.suffix != ".pyc"
    }
    for path in sorted(Path(tree).glob("**/LICENSE"))[:1]:
        files[f"{info}/LICENSE"] = path.read_bytes()
    head = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    head += [
        f"Summary: {name}, pure Python, with the edits of lt_det's tools/install_detectron2.py"
    ]
    head += [f"Requires-Dist: {requirement}" for requirement in requires]
    files[f"{info}/METADATA"] = "\n".join([*head, ""]).encode()
    files[f"{info}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: lt_det\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    record = ""
    for file, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        record += f"{file},sha256={digest},{len(data)}\n"
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    wheel = Path(folder, f"{name}-{version}-py3-none-any.whl")
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for file, data in files.items():
            archive.writestr(file, data)
    return wheel


def installed_version(name):
    """Version of the installed distribution `name`, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def probe(source):
    """Try the installed `source` in a process of its own.

    Returns where it is ("" if nowhere) and what is wrong with it (None if it works).
    """
    find = (
        f"import importlib.util as u; s = u.find_spec({source.name!r}); print(s and s.origin or '')"
    )
    # From an empty directory, so that a folder called detectron2/ is not taken for the package.
    with tempfile.TemporaryDirectory() as empty:
        command = [sys.executable, "-W", "ignore", "-c", f"{find}\n{source.probe}"]
        result = subprocess.run(command, cwd=empty, capture_output=True, text=True)
    location = (result.stdout.splitlines() or [""])[0]
    problem = (result.stderr.strip() or "it stopped").splitlines()[-1]
    return location and str(Path(location).parent), problem if result.returncode else None


def keep_reason(source):
    """What is installed of `source`, if it can stay; None if `source` has to be installed.

    Raises InstallError for a Detectron2 that is there, is not ours and does not work.
    """
    version = installed_version(source.name) or "of unknown version"
    ours = "+ltdet." in version
    if ours and version != target_version(source):
        return None  # made by another version of this script
    location, problem = probe(source)
    if not problem:
        return f"{source.name} {version} in {location}"
    if location and not ours and source.name == "detectron2":
        raise InstallError(
            f"the Detectron2 in {location} does not work:\n  {problem}\n"
            "Mend it (one built from source has to be built again after a change of torch), "
            "or run this script with --force to replace it."
        )
    return None


def run_pip(*arguments, tools=None):
    """Run pip, from the directory `tools` if given; raise InstallError with its last lines."""
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    if tools:
        paths = [str(tools), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    command = [sys.executable, "-m", "pip", *map(str, arguments)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    if result.returncode:
        output = f"{result.stdout}\n{result.stderr}"
        errors = [line for line in output.splitlines() if "error" in line.lower()]
        raise InstallError("pip failed:\n  " + "\n  ".join(errors[-8:] or output.splitlines()[-8:]))


def fetch(source, folder):
    """Download `source` into `folder` with pip, which checks the hash before it runs anything."""
    folder = Path(folder)
    tools = folder / "tools"
    pin = folder / "pin.txt"
    pin.write_text(f"{source.requirement} --hash=sha256:{source.sha256}\n")
    try:
        run_pip("install", "-q", "--no-deps", "--target", tools, *BUILD_TOOLS)
        form = "--no-binary" if source.name == "detectron2" else "--only-binary"
        options = ("--no-deps", "--no-build-isolation", form, ":all:", "-d", folder / "got")
        run_pip("download", "-q", *options, "-r", pin, tools=tools)
    except InstallError as error:
        raise InstallError(
            f"could not download {source.requirement}. Is there a network, and an index that has "
            f"it? A copy of the file can be given with --sdist.\n{error}"
        ) from error
    return next((folder / "got").iterdir())


def install(source, archive=None):
    """Fetch, check, edit, pack and install `source`; `archive` is a local copy of it."""
    with tempfile.TemporaryDirectory() as folder:
        say(f"{archive or source.requirement}: fetching and checking")
        archive = archive or fetch(source, folder)
        check_sha256(archive, source.sha256)
        tree = unpack(archive, Path(folder, "tree"))
        if source.name == "detectron2":
            complete_detectron2(tree)
        apply_edits(tree, source.edits)
        requires = source.requires + opencv_requirement()
        wheel = write_wheel(tree, source.name, target_version(source), requires, folder)
        kept = [f"{name}=={installed_version(name)}" for name in KEPT if installed_version(name)]
        constraints = Path(folder, "kept.txt")
        constraints.write_text("\n".join(kept))
        say(f"{len(source.edits)} edits applied; installing {source.name} {target_version(source)}")
        if source.name == "detectron2":
            # The same files under another name; pip would leave its record behind.
            run_pip("uninstall", "-q", "-y", "detectron2-cdo")
        run_pip("install", "-q", "-c", constraints, wheel)
    location, problem = probe(source)
    if problem:
        raise InstallError(f"{source.name} was installed in {location} but fails: {problem}")


def check_environment():
    """Raise InstallError unless Python, pip, torch and torchvision are fit for use."""
    if sys.version_info < OLDEST_PYTHON:
        raise InstallError("Python 3.10 or later is needed, this is " + sys.version.split()[0])
    # Not find_spec: looking for pip makes older setuptools hand out the standard distutils, and
    # then importing setuptools, which triton does, fails.
    if not installed_version("pip"):
        raise InstallError("this Python has no pip; run: python -m ensurepip")
    # By path: lt_det itself may need the Detectron2 that is not here yet.
    spec = importlib.util.spec_from_file_location("environment", ROOT / "lt_det/environment.py")
    environment = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(environment)
    try:
        say("torch {} with torchvision {}".format(*environment.check_torch_pair()))
    except environment.EnvironmentProblem as problem:
        raise InstallError(str(problem)) from problem


def main(arguments=None):
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--force", action="store_true", help="replace a Detectron2 that is there")
    parser.add_argument("--sdist", metavar="PATH", help="local copy of the detectron2-cdo archive")
    options = parser.parse_args(arguments)
    try:
        check_environment()
        for source in SOURCES:
            force = options.force and source.name == "detectron2"
            kept = None if force else keep_reason(source)
            if kept:
                say(f"keeping {kept}")
                continue
            install(source, options.sdist if source.name == "detectron2" else None)
    except InstallError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
