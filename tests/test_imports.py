"""Who may import whom (design, section 2), read from the source files."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lt_det"

# What a part of the package may import of the rest; itself is always allowed.
LEAVES = {"registry", "errors", "dist", "environment"}
ALLOWED = {
    "registry": set(),
    "errors": set(),
    "dist": set(),
    "environment": set(),
    "config": set(),
    "losses": {"registry", "dist"},
    "modeling": {"losses"} | LEAVES,
    "evaluation": LEAVES,
    "data": {"evaluation"} | LEAVES,
    "engine": {"modeling", "data", "evaluation", "losses", "config"} | LEAVES,
}


def imports_of(path: Path) -> set[str]:
    """Full dotted names that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


FILES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_import_direction(path):
    part = part_of(path)
    assert part in ALLOWED, f"{part} is not in the plan: add it to ALLOWED and to the README"
    used = {name.split(".")[1] for name in imports_of(path) if name.startswith("lt_det.")}
    wrong = used - ALLOWED[part] - {part, "__version__"}
    assert not wrong, f"{path} may not import lt_det.{', lt_det.'.join(sorted(wrong))}"


@pytest.mark.parametrize(
    "path", [p for p in FILES if part_of(p) in ("losses", "dist", "registry")], ids=lambda p: p.stem
)
def test_losses_need_torch_alone(path):
    top = {name.split(".")[0] for name in imports_of(path)}
    third_party = top - set(sys.stdlib_module_names) - {"lt_det"}
    assert third_party <= {"torch"}


def test_losses_import_without_detectron2():
    """In a process where importing Detectron2 fails."""
    code = (
        "import sys; sys.modules['detectron2'] = None; sys.modules['fvcore'] = None\n"
        "import torch, lt_det.losses as l\n"
        "loss = l.build_loss('EQLv2', num_classes=2, has_background=True)\n"
        "print(loss(torch.zeros(1, 3), torch.tensor([0]))['loss_cls'].item())"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    # Three outputs at probability one half: 3 ln 2.
    assert abs(float(out.stdout) - 2.0794415) < 1e-6


def test_setup_imports_no_torch():
    assert not any(
        name.split(".")[0] in ("torch", "detectron2") for name in imports_of(ROOT / "setup.py")
    )
