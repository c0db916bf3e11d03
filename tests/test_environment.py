"""The messages about torch and torchvision that do not fit each other."""

import sys
import types
from importlib import metadata

import pytest

from lt_det import environment
from lt_det.environment import (
    EnvironmentProblem,
    check_torch_pair,
    describe_problem,
    matching_torchvision,
)

NMS = "operator torchvision::nms does not exist"


@pytest.mark.parametrize(
    "torch_version, series",
    [("2.0.1", "0.15"), ("2.4.0+cu121", "0.19"), ("2.14.1+cpu", "0.29"), ("1.13.1", None)],
)
def test_series_of_torchvision(torch_version, series):
    assert matching_torchvision(torch_version) == series


def test_matching_pairs_have_no_problem():
    assert describe_problem("2.14.1+cu130", "13.0", "0.29.1+cu130") is None
    assert describe_problem("2.4.1+cpu", None, "0.19.1+cpu") is None
    assert describe_problem("1.13.1", "11.7", "0.14.1") is None


def test_cpu_torch_beside_cuda_torchvision():
    text = describe_problem("2.14.1+cpu", None, "0.29.1", NMS)
    assert "torch 2.14.1+cpu (CPU-only)" in text
    assert "CPU-only torch beside a CUDA torchvision" in text
    assert 'pip install --force-reinstall torch==2.14.1 "torchvision==0.29.*"' in text


def test_other_releases_win_over_the_error_that_they_cause():
    text = describe_problem("2.14.1", "13.0", "0.28.0", NMS)
    assert "torch 2.14.1 needs torchvision 0.29.*" in text
    assert "CPU-only" not in text


def test_a_longer_series_is_not_taken_for_a_shorter_one():
    assert "needs torchvision 0.2" in describe_problem("2.5.0", None, "0.2.0")
    assert "needs torchvision 0.20.*" in describe_problem("2.5.0", None, "0.200.0")


def test_an_unknown_import_error_is_passed_on():
    assert "libjpeg.so.8 is missing" in describe_problem(
        "2.14.1", "13.0", "0.29.1", "libjpeg.so.8 is missing"
    )


def install(monkeypatch, torch_version, cuda, torchvision_version, error):
    """Make imports see a made-up torch and a torchvision that raises `error`."""
    torch = types.SimpleNamespace(
        __version__=torch_version, version=types.SimpleNamespace(cuda=cuda)
    )

    def import_module(name):
        if name == "torch":
            return torch
        if error:
            raise error
        return types.SimpleNamespace()

    monkeypatch.setattr(environment.importlib, "import_module", import_module)
    monkeypatch.setattr(metadata, "version", lambda name: torchvision_version)


def test_check_returns_the_versions_of_a_good_pair(monkeypatch):
    install(monkeypatch, "2.14.1", "13.0", "0.29.1", None)
    assert check_torch_pair() == ("2.14.1", "0.29.1")


def test_check_explains_the_error_of_torchvision(monkeypatch):
    install(monkeypatch, "2.14.1+cpu", None, "0.29.1", RuntimeError(NMS))
    with pytest.raises(EnvironmentProblem, match="CPU-only torch beside a CUDA torchvision"):
        check_torch_pair()


@pytest.mark.parametrize("missing", ["torch", "torchvision"])
def test_check_says_how_to_install_what_is_missing(monkeypatch, missing):
    install(monkeypatch, "2.14.1", "13.0", "0.29.1", None)
    if missing == "torch":
        monkeypatch.undo()
        monkeypatch.setitem(sys.modules, "torch", None)
    else:

        def version(name):
            raise metadata.PackageNotFoundError(name)

        monkeypatch.setattr(metadata, "version", version)
    with pytest.raises(EnvironmentProblem, match="tools/requirements-torch.txt") as caught:
        check_torch_pair()
    assert missing in str(caught.value)
