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
PACKAGES = ("capo", "rewards", "models", "data")  # none imports another
CLIENT = "chat"  # imports none of ours; rewards and what joins the packages ask servers through it
# What joins them, each importing only what comes before it.
JOINING = ("dashboard", "pipeline", "evaluation", "train", "evaluate", "__main__", "__init__")
ALL = (*PACKAGES, CLIENT, *JOINING)


def imported_modules(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name without the leading `radflow.`) of every import in a file, those inside functions included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.removeprefix("radflow.")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: expected an absolute import"
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}".removeprefix("radflow.")


def modules_of(package: str) -> list[Path]:
    modules = [ROOT / f"{package}.py"] if (ROOT / f"{package}.py").exists() else sorted((ROOT / package).rglob("*.py"))
    assert modules, f"expected modules in {package}/, found none"
    return modules


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def loaded_by(statement: str) -> set[str]:
    """Names in sys.modules after `statement` ran in a fresh interpreter: top-level ones, and radflow.<package>."""
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return {name.removeprefix("radflow.").split(".")[0] for name in run.stdout.split()}


@pytest.mark.parametrize("package", ALL)
def test_packages_import_only_what_comes_before_them(package):
    before = {*PACKAGES, CLIENT, *JOINING[: JOINING.index(package)]} if package in JOINING else set()
    before |= {CLIENT} if package == "rewards" else set()
    forbidden = {*ALL} - before - {package}
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: imports {name}"
        for path in modules_of(package)
        for line, name in imported_modules(path)
        if name.split(".")[0] in forbidden
    ]
    assert not wrong, "\n".join(wrong)


def test_every_import_names_the_packages_as_users_do():
    """`import rewards` works in the checkout by accident, as a second copy of every module."""
    bare = {*ALL} - {"capo"}
    wrong = []
    for path in [*(ROOT / "tests").glob("*.py"), *(p for name in ALL for p in modules_of(name))]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            wrong += [f"{path.name}:{node.lineno}: {name}" for name in names if name.split(".")[0] in bare]
    assert not wrong, "\n".join(wrong)


def test_no_imports_go_in_a_circle():
    files = {dotted(path): path for name in ALL for path in modules_of(name)}
    graph = {}
    for name, path in files.items():
        prefixes = ([".".join(target.split(".")[:n]) for n in (1, 2, 3, 4)] for _, target in imported_modules(path))
        graph[name] = {prefix for each in prefixes for prefix in each[::-1] if prefix in files and prefix != name}
        graph[name] -= {parent for parent in graph[name] if name.startswith(f"{parent}.")}
    while leaves := [name for name, targets in graph.items() if not targets & graph.keys()]:
        for name in leaves:
            del graph[name]
    assert not graph, f"a circle among {sorted(graph)}"


def test_the_root_holds_the_programs_and_packages_stay_small():
    assert sorted(path.name for path in ROOT.glob("*.py")) == ["__init__.py", "__main__.py", "evaluate.py", "train.py"]
    folders = {path.parent for name in ALL for path in modules_of(name)} - {ROOT}
    assert not [folder for folder in folders if len(list(folder.glob("*.py"))) > 23]


def test_the_dashboard_reads_runs_without_the_rest():
    """It follows a run on any machine: the packages lend it journal, stop signal, studies and rules only."""
    allowed = ("capo.journal", "capo.stopping", "data.phantoms", "data.readers.manifest", "data.sections")
    allowed += ("data.studies", "rewards.memory", "rewards.registry", "rewards.rules", "rewards.types")
    wrong = []
    for path in modules_of("dashboard"):
        imports = [(line, name) for line, name in imported_modules(path) if name.split(".")[0] in PACKAGES]
        wrong += [f"{path.name}:{line}: {name}" for line, name in imports if not name.startswith(allowed)]
    assert not wrong, "\n".join(wrong)
    loaded = loaded_by("\n".join(f"import radflow.{dotted(path)}" for path in modules_of("dashboard")))
    assert "dashboard" in loaded and not loaded & {"torch", "transformers", "tensorboard", "wandb"}


def test_capo_imports_torch_and_the_standard_library_only():
    allowed = {"capo", "torch", *sys.stdlib_module_names}
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: imports {name}"
        for path in modules_of("capo")
        for line, name in imported_modules(path)
        if name.split(".")[0] not in allowed
    ]
    assert not wrong, "\n".join(wrong)


def test_importing_the_loss_adds_nothing_to_what_torch_loads():
    # What torch loads by itself differs between builds, so that the loss is compared with it, not with a list.
    added = loaded_by("import capo.loss") - loaded_by("import torch") - sys.stdlib_module_names
    assert added == {"capo"}


@pytest.mark.parametrize("package", ["rewards", "data", "chat"])
def test_every_module_of_rewards_data_and_chat_imports_without_torch(package):
    loaded = loaded_by("\n".join(f"import radflow.{dotted(path)}" for path in modules_of(package)))
    assert package in loaded
    assert not loaded & {"torch", "transformers", "tokenizers"}


LOCKS = ROOT / "requirements" / "lock"


def pins() -> dict[str, str]:
    """Distribution -> version of constraints.txt; every line must fix one version."""
    found = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            match = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.]+)", line)
            assert match, f"constraints.txt: expected name==version, got {line!r}"
            found[canonicalize_name(match[1])] = match[2]
    return found


def locked(name: str) -> dict[str, str]:
    """Distribution -> version of what a lock installs here; every entry must have hashes, and nothing but them."""
    text = (LOCKS / name).read_text(encoding="utf-8").replace(" \\\n", " ")
    found = {}
    for line in filter(None, (line for line in text.splitlines() if not line.startswith("#"))):
        match = re.fullmatch(r"([^ ]+==[^ ]+(?: ; .*?)?)((?: +--hash=sha256:[0-9a-f]{64})+)", line)
        assert match, f"{name}: expected name==version with hashes, got {line[:80]!r}"
        requirement = Requirement(match[1])
        if requirement.marker is None or requirement.marker.evaluate():
            found[canonicalize_name(requirement.name)] = next(iter(requirement.specifier)).version
    return found


def declared_requirements() -> list[Requirement]:
    """Everything that setup.cfg asks for, extras included."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    lists = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    return [Requirement(line) for text in lists for line in text.split("\n") if line.strip()]


# Extras that only the environment of `make test-peers` has: its lock pins them and what they bring along.
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
    pinned = locked("peers.txt") | pins()
    for requirement in with_dependencies(declared_requirements()):
        name = canonicalize_name(requirement.name)
        # CUDA builds of torch bring packages whose versions torch itself fixes.
        if not any(specifier.operator == "==" for specifier in requirement.specifier):
            assert name in pinned, f"constraints.txt lacks a version of {requirement}"
        if name in pinned:
            assert requirement.specifier.contains(pinned[name]), f"pinned to {pinned[name]}: {requirement}"


def test_the_lock_installs_the_pinned_versions_and_nothing_else():
    pinned = pins()
    assert locked("cpu.txt") == {"torch": f"{pinned['torch']}+cpu"}
    assert locked("main.txt") | {"torch": pinned["torch"]} == pinned
    assert locked("build.txt") == {"setuptools": pinned["setuptools"]}
    # torch's build for CUDA needs the same versions of what both builds need
    cuda = {name: version for name, version in locked("cuda.txt").items() if name in pinned}
    assert "torch" in cuda and cuda == {name: pinned[name] for name in cuda}


@pytest.mark.parametrize("name", ["encoder", "gpu-wheels", "peers", "peers-alone"])
def test_every_requirement_has_its_hashes(name):
    lines = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    asked = [Requirement(line) for line in lines if line and not line.startswith("#")]
    versions = locked(f"{name}.txt")
    assert [r for r in asked if not r.specifier.contains(versions[canonicalize_name(r.name)], prereleases=True)] == []


def test_make_installs_by_hash_alone():
    # Two commands may not: the checkout itself, which has no dependencies of its own then, and the served judge's.
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    assert "HASHED := --require-hashes --no-deps\n" in makefile
    installs = [line.strip() for line in makefile.splitlines() if "pip install" in line and "$(HASHED)" not in line]
    assert [line.split("pip install")[1].strip() for line in installs] == [
        "--no-deps --no-build-isolation -e .",
        "-c constraints.txt -r requirements/served.txt",
    ]


def test_the_build_backend_is_pinned_like_everything_else():
    # An isolated build does not read constraints.txt, so that pyproject.toml repeats the version.
    assert f'"setuptools=={pins()["setuptools"]}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_ci_runs_the_readmes_command():
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert lines[-1] == "make test"
