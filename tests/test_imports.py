"""Imports run one way, and the operators need torch alone."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LINT = shutil.which("lint-imports", path=sysconfig.get_path("scripts"))


@pytest.mark.skipif(LINT is None, reason="import-linter is not installed")
def test_folders_import_only_folders_above_them():
    done = subprocess.run(
        [str(LINT), "--config", str(ROOT / "pyproject.toml"), "--no-cache"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 kept, 0 broken" in done.stdout


def test_the_operators_need_only_torch_and_triton():
    """What ief_kernels imports from outside, within functions too; triton exists on some machines alone."""
    found = set()
    for path in (ROOT / "ief_kernels").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {name.name.split(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found.add((node.module or "").split(".")[0])
    assert found - set(sys.stdlib_module_names) - {"ief_kernels"} <= {"torch", "triton"}


def test_importing_triton_is_left_to_the_first_kernel():
    code = "import sys, ief_kernels, iefvad; assert 'triton' not in sys.modules, 'imported too early'"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
