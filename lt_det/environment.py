"""Is the installed torch usable beside the installed torchvision?

The usual way to break an environment is to have one of the two replaced: a CPU-only torch
beside a CUDA torchvision, or a pair from different releases. torchvision then fails with
``operator torchvision::nms does not exist``, far from the cause. This module says what is
wrong and which command mends it. It needs the standard library alone, and imports torch only
inside :func:`check_torch_pair`.
"""

from __future__ import annotations

import importlib
import re
from importlib import metadata

# torchvision 0.N belongs to torch 2.(N - 15): 0.15 came with 2.0, 0.29 with 2.14.
_MINOR_OFFSET = 15


class EnvironmentProblem(RuntimeError):
    """torch and torchvision cannot be used together; the message says what to do."""


def matching_torchvision(torch_version: str) -> str | None:
    """The torchvision series that belongs to `torch_version`.

    Args:
        torch_version: such as ``"2.14.1+cpu"``.

    Returns:
        A series such as ``"0.29"``; None if `torch_version` is not a torch 2 release.
    """
    match = re.match(r"2\.(\d+)", torch_version)
    return f"0.{int(match[1]) + _MINOR_OFFSET}" if match else None


def describe_problem(
    torch_version: str,
    torch_cuda: str | None,
    torchvision_version: str,
    import_error: str | None = None,
) -> str | None:
    """Explain why this torch and this torchvision do not fit.

    Args:
        torch_version: version of torch, with its local part (``+cpu``, ``+cu130``) if any.
        torch_cuda: CUDA release that torch was built for, None for a CPU-only build.
        torchvision_version: version of torchvision.
        import_error: what importing torchvision raised, None if it was imported.

    Returns:
        The problem and the command that mends it, or None if nothing is wrong.
    """
    series = matching_torchvision(torch_version)
    build = f"CUDA {torch_cuda}" if torch_cuda else "CPU-only"
    found = f"torch {torch_version} ({build}) and torchvision {torchvision_version}"
    if series and not f"{torchvision_version}.".startswith(f"{series}."):
        reason = f"torch {torch_version} needs torchvision {series}.*"
    elif import_error and "torchvision::nms" in import_error:
        reason = (
            "the two were built differently, such as a CPU-only torch beside a CUDA torchvision"
        )
    elif import_error:
        reason = f"importing torchvision failed: {import_error}"
    else:
        return None
    public = torch_version.partition("+")[0]
    wanted = f'"torchvision=={series}.*"' if series else "torchvision"
    return (
        f"{found} cannot be used together: {reason}.\n"
        "Install a matching pair, both from one index:\n"
        f"  python -m pip install --force-reinstall torch=={public} {wanted}\n"
        "or keep this torch and take its torchvision from the index that torch came from:\n"
        f"  python -m pip install --force-reinstall --no-deps --index-url URL {wanted}"
    )


def check_torch_pair() -> tuple[str, str]:
    """Check that torch and torchvision are installed and fit each other.

    Returns:
        The versions of torch and torchvision.

    Raises:
        EnvironmentProblem: one is missing, or they do not fit.
    """
    try:
        torch = importlib.import_module("torch")
        torchvision_version = metadata.version("torchvision")
    except (ImportError, OSError) as error:  # OSError: a shared library that torch needs
        raise EnvironmentProblem(
            f"torch and torchvision are needed, and one cannot be used: {error}.\n"
            "Install the pair that lt_det is tested with:\n"
            "  python -m pip install -r tools/requirements-torch.txt"
        ) from error
    import_error = None
    try:
        importlib.import_module("torchvision")
    except (ImportError, OSError, RuntimeError) as error:
        import_error = str(error)
    problem = describe_problem(
        torch.__version__, torch.version.cuda, torchvision_version, import_error
    )
    if problem:
        raise EnvironmentProblem(problem)
    return torch.__version__, torchvision_version
