"""`from capo import ...`: every name, for Python and for type checkers, and nothing loaded that is not asked for."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import capo

ROOT = Path(__file__).parents[1]


def test_every_exported_name_can_be_imported_and_is_in_the_stub_file():
    assert {*capo.__all__} <= {*dir(capo)} and len(capo.__all__) > 40
    exported = {name: getattr(capo, name) for name in capo.__all__}
    assert all(value.__module__.startswith("capo.") for name, value in exported.items() if not name.isupper())
    with pytest.raises(AttributeError, match="no_such_loss"):
        capo.no_such_loss  # noqa: B018
    stub = ast.parse((ROOT / "capo" / "__init__.pyi").read_text(encoding="utf-8"))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    assert {alias.name: node.module for node in imports for alias in node.names} == {
        name: f"capo.{module}" for name, module in capo._MODULE_OF.items()
    }


def test_a_name_loads_its_own_module_only():
    code = "import capo, sys; assert 'torch' not in sys.modules; capo.capo_loss; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {name for name in run.stdout.split() if name.startswith("capo")} == {"capo", "capo.loss"}
