"""tools/install_detectron2.py on small made-up trees; nothing is downloaded or installed."""

import hashlib
import io
import subprocess
import sys
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from tests.tools.load import load_tool


@pytest.fixture(scope="module")
def script():
    return load_tool("install_detectron2")


def edit(script, file="pkg/a.py", old="np.int)", new="int)", count=2):
    return script.Edit(file, old, new, count, "numpy 1.24")


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg/a.py").write_text("f(np.int)\ng(np.int)\nh(np.int64)\n")
    return tmp_path


def test_edit_replaces_every_occurrence_and_nothing_else(script, tree):
    script.apply_edits(tree, [edit(script)])
    assert (tree / "pkg/a.py").read_text() == "f(int)\ng(int)\nh(np.int64)\n"


def test_edits_of_one_file_build_on_each_other(script, tree):
    script.apply_edits(tree, [edit(script), edit(script, old="g(int)", new="g()", count=1)])
    assert (tree / "pkg/a.py").read_text() == "f(int)\ng()\nh(np.int64)\n"


@pytest.mark.parametrize(
    "change, message",
    [
        ({"old": "np.gone)"}, r"pkg/a.py: expected 'np.gone\)' 2 time\(s\), found it 0 time"),
        ({"count": 3}, r"pkg/a.py: expected 'np.int\)' 3 time\(s\), found it 2 time"),
        ({"count": 1}, r"pkg/a.py: expected 'np.int\)' 1 time\(s\), found it 2 time"),
        ({"file": "pkg/b.py"}, "pkg/b.py: no such file"),
    ],
)
def test_edit_that_does_not_fit_fails_and_writes_nothing(script, tree, change, message):
    before = (tree / "pkg/a.py").read_text()
    first = edit(script, old="h(", new="k(", count=1)
    with pytest.raises(script.InstallError, match=message):
        script.apply_edits(tree, [first, edit(script, **change)])
    assert (tree / "pkg/a.py").read_text() == before


def test_wrong_hash_names_the_file_and_both_hashes(script, tmp_path):
    path = tmp_path / "x.tar.gz"
    path.write_bytes(b"other")
    found = hashlib.sha256(b"other").hexdigest()
    script.check_sha256(path, found)
    with pytest.raises(script.InstallError, match=f"x.tar.gz .*{found}, not {'0' * 64}"):
        script.check_sha256(path, "0" * 64)


def test_wrong_hash_stops_before_anything_is_unpacked(script, tmp_path, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("went on after a wrong hash")

    monkeypatch.setattr(script, "unpack", never)
    monkeypatch.setattr(script, "run_pip", never)
    path = tmp_path / "x.tar.gz"
    path.write_bytes(b"other")
    with pytest.raises(script.InstallError, match="SHA-256"):
        script.install(script.SOURCES[0], path)


def test_unpack_gives_the_directory_that_holds_the_packages(script, tmp_path):
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as tar:
        info = tarfile.TarInfo("x-1.0/pkg/__init__.py")
        info.size = 4
        tar.addfile(info, io.BytesIO(b"1+1\n"))
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as wheel:
        wheel.writestr("pkg/__init__.py", "1+1\n")
    for archive in ("x.tar.gz", "x.whl"):
        tree = script.unpack(tmp_path / archive, tmp_path / f"{archive}.d")
        assert (tree / "pkg/__init__.py").read_text() == "1+1\n"


@pytest.fixture
def detectron2_tree(script, tmp_path):
    for project in script.PROJECTS:
        (tmp_path / "projects" / project).mkdir(parents=True)
        (tmp_path / "projects" / project / "__init__.py").write_text("")
    (tmp_path / "detectron2/projects").mkdir(parents=True)
    for package in ("detectron2", "detectron2/projects"):
        (tmp_path / package / "__init__.py").write_text("")
    (tmp_path / "detectron2/config.yaml").write_text("A: 1\n")
    (tmp_path / "LICENSE").write_text("Apache\n")
    script.complete_detectron2(tmp_path)
    return tmp_path


def run(tree, program):
    return subprocess.run(
        [sys.executable, "-c", program], cwd=tree, capture_output=True, text=True, check=True
    ).stdout


def test_projects_belong_to_the_package(detectron2_tree):
    program = "from detectron2.projects import deeplab, point_rend, panoptic_deeplab as p; print(p)"
    assert "detectron2/projects/panoptic_deeplab" in run(detectron2_tree, program)


def test_c_stub_explains_itself_on_use(detectron2_tree):
    program = (
        "from detectron2 import _C\n"
        "try: _C.nms_rotated(1)\n"
        "except AttributeError as error: print(error)"
    )
    text = run(detectron2_tree, program)
    assert "detectron2._C.nms_rotated is a compiled operator" in text
    assert "rotated boxes" in text and "source" in text


def test_c_stub_can_be_probed(detectron2_tree):
    program = (
        "import detectron2._C as _C, importlib, importlib.util, inspect, pickle\n"
        "print(hasattr(_C, 'nms_rotated'), getattr(_C, 'deform_conv_forward', 'none'))\n"
        "print(hasattr(_C, '__path__'), hasattr(_C, '__wrapped__'), 'has_cuda' in dir(_C))\n"
        "print(importlib.util.find_spec('detectron2._C').origin == _C.__file__)\n"
        "print(importlib.reload(_C) is _C, inspect.getmodule(_C.has_cuda) is _C)\n"
        "print(_C.has_cuda(), _C.get_compiler_version() == _C.get_cuda_version())\n"
    )
    assert run(detectron2_tree, program).split() == (
        "False none False False True True True True False True".split()
    )


def test_wheel_is_complete_and_readable(script, detectron2_tree, tmp_path):
    (tmp_path / "out").mkdir()
    path = script.write_wheel(
        detectron2_tree, "detectron2", "0.5+ltdet.e1", ("numpy", "tqdm>4"), tmp_path / "out"
    )
    site = tmp_path / "site"
    zipfile.ZipFile(path).extractall(site)
    found = next(metadata.distributions(name="detectron2", path=[str(site)]))
    assert found.version == "0.5+ltdet.e1"
    assert found.requires == ["numpy", "tqdm>4"]
    files = {str(file): file for file in found.files}
    for name in ("detectron2/_C.py", "detectron2/config.yaml", "detectron2/projects/deeplab"):
        assert any(file.startswith(name) for file in files)
    assert f"detectron2-{found.version}.dist-info/LICENSE" in files
    for file in files.values():  # as RECORD says, which pip checks
        if file.hash:
            data = Path(file.locate()).read_bytes()
            digest = hashlib.sha256(data).digest()
            assert file.size == len(data)
            assert file.hash.value == script.base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def with_installed(script, monkeypatch, versions, location="/env/detectron2", problem=None):
    monkeypatch.setattr(script, "installed_version", versions.get)
    monkeypatch.setattr(script, "probe", lambda source: (location, problem))


@pytest.mark.parametrize("version", ["0.5", "0.6", "0.6+cu130", None])
def test_a_detectron2_that_works_is_kept(script, monkeypatch, version):
    with_installed(script, monkeypatch, {"detectron2": version})
    kept = script.keep_reason(script.SOURCES[0])
    assert (version or "unknown version") in kept and "/env/detectron2" in kept


def test_main_installs_nothing_when_everything_works(script, monkeypatch, capsys):
    with_installed(script, monkeypatch, {"detectron2": "0.6", "lvis": "0.5.3"})
    monkeypatch.setattr(script, "check_environment", lambda: None)
    monkeypatch.setattr(script, "install", lambda *args: pytest.fail("installed something"))
    assert script.main([]) == 0
    assert "keeping detectron2 0.6" in capsys.readouterr().out


def test_a_build_of_ours_is_kept_until_the_edits_change(script, monkeypatch):
    source = script.SOURCES[0]
    with_installed(script, monkeypatch, {"detectron2": script.target_version(source)})
    assert script.keep_reason(source)
    assert script.keep_reason(source._replace(edits=source.edits[1:])) is None


def test_a_broken_detectron2_of_the_user_is_not_touched(script, monkeypatch, capsys):
    with_installed(script, monkeypatch, {"detectron2": "0.6"}, problem="undefined symbol: x")
    monkeypatch.setattr(script, "check_environment", lambda: None)
    monkeypatch.setattr(script, "install", lambda *args: pytest.fail("replaced it"))
    assert script.main([]) == 1
    error = capsys.readouterr().err
    assert "/env/detectron2" in error and "undefined symbol: x" in error and "--force" in error


def test_force_replaces_detectron2_and_only_that(script, monkeypatch):
    with_installed(script, monkeypatch, {"detectron2": "0.6", "lvis": "0.5.3"})
    monkeypatch.setattr(script, "check_environment", lambda: None)
    done = []
    monkeypatch.setattr(script, "install", lambda source, archive: done.append(source.name))
    assert script.main(["--force"]) == 0
    assert done == ["detectron2"]


def test_torch_numpy_and_pillow_are_held_where_they_are(script, detectron2_tree, monkeypatch):
    source = script.SOURCES[0]._replace(edits=())
    monkeypatch.setattr(script, "installed_version", {"torch": "2.5.1+cpu", "numpy": "2.0.0"}.get)
    monkeypatch.setattr(script, "check_sha256", lambda *args: None)
    monkeypatch.setattr(script, "complete_detectron2", lambda tree: None)
    monkeypatch.setattr(script, "unpack", lambda *args: detectron2_tree)
    monkeypatch.setattr(script, "probe", lambda source: ("/env/detectron2", None))
    held = []

    def run_pip(command, *arguments):
        if command == "install":
            held.extend(arguments[arguments.index("-c") + 1].read_text().split())

    monkeypatch.setattr(script, "run_pip", run_pip)
    script.install(source, "archive")
    assert held == ["torch==2.5.1+cpu", "numpy==2.0.0"]


def test_opencv_that_is_there_is_not_joined_by_a_second_one(script, monkeypatch):
    monkeypatch.setattr(script, "installed_version", {"opencv-python": "4.10"}.get)
    assert script.opencv_requirement() == ("opencv-python",)
    monkeypatch.setattr(script, "installed_version", {}.get)
    monkeypatch.setattr(script.importlib.util, "find_spec", lambda name: None)
    assert script.opencv_requirement() == ("opencv-python-headless",)
    monkeypatch.setattr(script.importlib.util, "find_spec", lambda name: name)
    assert script.opencv_requirement() == ()  # from another package manager


def test_pip_is_not_looked_for_through_the_import_system(script, monkeypatch):
    """Doing so makes older setuptools hand out the standard distutils, which breaks triton."""
    looked_for = []
    real = script.importlib.util.find_spec
    monkeypatch.setattr(
        script.importlib.util, "find_spec", lambda name: looked_for.append(name) or real(name)
    )
    script.check_environment()
    assert "pip" not in looked_for


def test_old_python_is_refused(script, monkeypatch, capsys):
    monkeypatch.setattr(script.sys, "version_info", (3, 9, 1))
    assert script.main([]) == 1
    assert "Python 3.10 or later" in capsys.readouterr().err


def test_failed_download_says_what_to_do(script, monkeypatch, tmp_path):
    def run_pip(*arguments, **keywords):
        raise script.InstallError("ERROR: No matching distribution found")

    monkeypatch.setattr(script, "run_pip", run_pip)
    with pytest.raises(script.InstallError, match="could not download detectron2-cdo==0.5.*") as e:
        script.fetch(script.SOURCES[0], tmp_path)
    assert "--sdist" in str(e.value) and "No matching distribution" in str(e.value)
