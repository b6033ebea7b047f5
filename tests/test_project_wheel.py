"""The wheel: what a user's site-packages gets."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
from installed_scorer import build_wheel, score_as_a_stranger
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


def read_metadata(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return message_from_bytes(archive.read(name))


def test_wheel_holds_capo_and_everything_else_as_radflow(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    info = f"radflow-{read_metadata(wheel)['Version']}.dist-info"
    assert {name.split("/")[0] for name in names} == {"capo", "radflow", info}
    folders = ("chat", "rewards", "models", "data", "pipeline", "evaluation", "dashboard")
    sources = [*(ROOT / "capo").glob("*"), *ROOT.glob("*.py")]
    sources += [path for folder in folders for path in (ROOT / folder).rglob("*")] + [*(ROOT / "configs").glob("*")]
    relative = {p.relative_to(ROOT).as_posix() for p in sources if p.is_file() and "__pycache__" not in p.parts}
    expected = {name if name.startswith("capo/") else f"radflow/{name}" for name in relative}
    assert {name for name in names if not name.startswith(info)} == expected
    assert f"{info}/licenses/LICENSE" in names


def test_wheel_needs_torch_alone(wheel):
    requirements = [Requirement(line) for line in read_metadata(wheel).get_all("Requires-Dist")]
    assert [r.name for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})] == ["torch"]


def test_wheel_says_what_it_is(wheel):
    info = read_metadata(wheel)
    assert (info["Name"], info["License-Expression"], info["Requires-Python"]) == ("radflow", "Apache-2.0", ">=3.11")
    assert set(info.get_all("Provides-Extra")) == {"train", "score", "study", "test", "dicom", "tensorboard", "wandb"}


USERS_FILE = """
import torch
from capo import Trainer, capo_loss, critical_clip, group_advantages, k3

advantages = group_advantages(torch.tensor([1.0, 2.0]), torch.tensor([0, 0])).advantages
logps, mask = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
clip = critical_clip(torch.tensor([True, False]))
terms = capo_loss(logps, logps, advantages, mask, clip=clip, num_reports=2, kl=k3(logps, logps, mask), beta=0.1)
reveal_type(terms.loss)
reveal_type(Trainer.step)
capo_loss(logps, logps, advantages, mask, clip="narrow", num_reports=2, beta="much")
"""


def test_mypy_strict_sees_the_types_of_the_wheel(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site", [name for name in archive.namelist() if name.startswith("capo/")])
    (tmp_path / "user.py").write_text(USERS_FILE, encoding="utf-8")
    environment = {**os.environ, "MYPYPATH": str(tmp_path / "site"), "PYTHONPATH": ""}
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "user.py"]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    *lines, summary = run.stdout.splitlines()
    assert summary.startswith("Found 2 errors in 1 file"), run.stdout + run.stderr
    notes, errors = ([line for line in lines if kind in line] for kind in ("note: Revealed", "error:"))
    assert len(errors) == 2 and all('"capo_loss" has incompatible type "str"' in line for line in errors)
    assert "Tensor" in notes[0] and "def (self: capo.trainer.Trainer) -> dict[str, float]" in notes[1]


def test_the_readmes_import_works_from_the_wheel_alone(wheel, tmp_path):
    code = "import capo.loss; from capo import capo_loss; assert capo_loss; print(capo.loss.__file__)"
    environment = {**os.environ, "PYTHONPATH": str(wheel)}
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert Path(run.stdout.strip()).is_relative_to(wheel)


def test_the_installed_commands_score_outside_the_checkout(wheel, tmp_path):
    """The wheel in an environment of its own; only what it depends on comes from the one of the tests."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    python = tmp_path / "env" / "bin" / "python"
    install = ["--python", python, "install", "--quiet", "--no-deps", wheel]
    subprocess.run([sys.executable, "-m", "pip", *install], check=True)
    for words in (["-m", "radflow", "score"], ["-c", "from radflow import score"]):  # without the extra
        run = subprocess.run([python, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert run.returncode == 1 and run.stderr.rstrip().endswith("is not installed: pip install 'radflow[score]'")
    (site,) = (tmp_path / "env" / "lib").glob("*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    score_as_a_stranger(python, tmp_path / "home")
