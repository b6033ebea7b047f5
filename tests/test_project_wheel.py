"""The wheel: what a user's site-packages gets."""

import os
import shutil
import subprocess
import sys
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
LEFT_OUT = shutil.ignore_patterns(".*", "runs", "build", "dist", "*.egg-info", "__pycache__")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy of the sources, so that nothing of an earlier build takes part and nothing is left behind."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "source", ignore=LEFT_OUT)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder / "dist", "."]
    run = subprocess.run(command, cwd=folder / "source", capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    (built,) = (folder / "dist").glob("radflow-*.whl")
    return built


def read_metadata(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return message_from_bytes(archive.read(name))


def test_wheel_holds_capo_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    info = f"radflow-{read_metadata(wheel)['Version']}.dist-info"
    assert {name.split("/")[0] for name in names} == {"capo", info}
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "capo").glob("*.py")}
    assert {name for name in names if name.startswith("capo/")} == modules
    assert f"{info}/licenses/LICENSE" in names


def test_wheel_needs_torch_alone(wheel):
    requirements = [Requirement(line) for line in read_metadata(wheel).get_all("Requires-Dist")]
    assert [r.name for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})] == ["torch"]


def test_wheel_says_what_it_is(wheel):
    info = read_metadata(wheel)
    assert (info["Name"], info["License-Expression"], info["Requires-Python"]) == ("radflow", "Apache-2.0", ">=3.11")
    assert set(info.get_all("Provides-Extra")) == {"train", "eval", "study", "test", "dicom", "tensorboard", "wandb"}


def test_the_readmes_import_works_from_the_wheel_alone(wheel, tmp_path):
    code = "import capo.loss; from capo.loss import capo_loss; print(capo.loss.__file__)"
    environment = {**os.environ, "PYTHONPATH": str(wheel)}
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert Path(run.stdout.strip()).is_relative_to(wheel)
