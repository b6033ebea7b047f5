"""What may import what, what an import costs, and that every dependency is pinned."""

import ast
import configparser
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PACKAGES = ("capo", "rewards", "models", "data")
PROGRAMS = {*(path.stem for path in ROOT.glob("*.py")), "evaluation", "reporting"}  # these two folders belong to them


def imported_roots(path: Path) -> Iterator[tuple[int, str]]:
    """(line, top-level name) of every import in a file, those inside functions included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: expected an absolute import"
            yield node.lineno, node.module.split(".")[0]


def modules_of(package: str) -> list[Path]:
    modules = sorted((ROOT / package).rglob("*.py"))
    assert modules, f"expected modules in {package}/, found none"
    return modules


def loaded_by(statement: str) -> set[str]:
    """Top-level names in sys.modules after `statement` ran in a fresh interpreter at the root of the project."""
    code = f"{statement}\nimport sys\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_neither_one_another_nor_the_programs(package):
    forbidden = {*PACKAGES, *PROGRAMS} - {package}
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: imports {name}"
        for path in modules_of(package)
        for line, name in imported_roots(path)
        if name in forbidden
    ]
    assert not wrong, "\n".join(wrong)


def test_reporting_reads_runs_without_the_rest():
    """It follows a run on any machine: of the packages it needs the journal, the stop signal and the studies only."""
    allowed = {"capo.journal", "capo.stopping", "data.phantoms", "data.readers.manifest", "data.studies"}
    wrong = []
    for path in modules_of("reporting"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in {*PACKAGES, *PROGRAMS} - {"reporting"}:
                wrong += [f"{path.name}:{node.lineno}: {node.module}"] if node.module not in allowed else []
    assert not wrong, "\n".join(wrong)
    names = [path.stem for path in modules_of("reporting") if path.stem != "__init__"]
    loaded = loaded_by("\n".join(f"import reporting.{name}" for name in names))
    assert "reporting" in loaded and not loaded & {"torch", "transformers", "tensorboard", "wandb"}


def test_capo_imports_torch_and_the_standard_library_only():
    allowed = {"capo", "torch", *sys.stdlib_module_names}
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: imports {name}"
        for path in modules_of("capo")
        for line, name in imported_roots(path)
        if name not in allowed
    ]
    assert not wrong, "\n".join(wrong)


def test_importing_the_loss_adds_nothing_to_what_torch_loads():
    # What torch loads by itself differs between builds, so that the loss is compared with it, not with a list.
    added = loaded_by("import capo.loss") - loaded_by("import torch") - sys.stdlib_module_names
    assert added == {"capo"}


@pytest.mark.parametrize("package", ["rewards", "data"])
def test_every_module_of_rewards_and_data_imports_without_torch(package):
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in modules_of(package)]
    loaded = loaded_by("\n".join(f"import {name.removesuffix('.__init__')}" for name in names))
    assert package in loaded
    assert not loaded & {"torch", "transformers", "tokenizers"}


def pins() -> dict[str, str]:
    """Distribution -> version of constraints.txt; every line must fix one version."""
    found = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            match = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.]+)", line)
            assert match, f"constraints.txt: expected name==version, got {line!r}"
            found[canonicalize_name(match[1])] = match[2]
    return found


def declared_requirements() -> list[Requirement]:
    """Everything that setup.cfg asks for, extras included."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    lists = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    return [Requirement(line) for text in lists for line in text.split("\n") if line.strip()]


# Extras that only the environment of `make test-peers` has: what they bring along is pinned too, and seen there.
ELSEWHERE = {"wandb"}


def installed(name: str) -> bool:
    return any(True for _ in metadata.distributions(name=name))


def with_dependencies(requirements: list[Requirement]) -> list[Requirement]:
    """These and everything that they bring along in this environment, by the metadata of what is installed."""
    waiting, found = list(requirements), {}
    while waiting:
        requirement = waiting.pop()
        if str(requirement) in found or requirement.name == "radflow":
            continue
        found[str(requirement)] = requirement
        if requirement.name in ELSEWHERE and not installed(requirement.name):
            continue
        for child in map(Requirement, metadata.requires(requirement.name) or []):
            extras = requirement.extras or {""}
            if child.marker is None or any(child.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(child)
    return list(found.values())


def test_every_dependency_has_one_pinned_version_that_suits_all():
    pinned = pins()
    for requirement in with_dependencies(declared_requirements()):
        name = canonicalize_name(requirement.name)
        # CUDA builds of torch bring packages whose versions torch itself fixes.
        if not any(specifier.operator == "==" for specifier in requirement.specifier):
            assert name in pinned, f"constraints.txt lacks a version of {requirement}"
        if name in pinned:
            assert requirement.specifier.contains(pinned[name]), f"pinned to {pinned[name]}: {requirement}"


def test_the_build_backend_is_pinned_like_everything_else():
    # An isolated build does not read constraints.txt, so that pyproject.toml repeats the version.
    assert f'"setuptools=={pins()["setuptools"]}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_ci_runs_the_readmes_command():
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert lines[-1] == "make test"
