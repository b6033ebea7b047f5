"""The wheel with all that it depends on, in an empty environment per version of Python."""

import shutil
import subprocess

import pytest
from installed_scorer import ROOT, build_wheel, score_as_a_stranger


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_a_stranger_installs_it_and_scores(version, wheel, tmp_path):
    interpreter = shutil.which(f"python{version}")
    if interpreter is None or subprocess.run([interpreter, "-c", ""], check=False).returncode:
        pytest.skip(f"no python{version} on this machine")
    subprocess.run([interpreter, "-m", "venv", tmp_path / "env"], check=True)
    python = tmp_path / "env" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", "torch==2.13.0"]
    subprocess.run([*install, f"{wheel}[score]", "pandas"], check=True)
    score_as_a_stranger(python, tmp_path / "home")
    frame = "from radflow import score; f = score(['No effusion.'], ['No effusion.'], num_resamples=100).to_pandas();"
    check = f"{frame} assert f.index.name == 'study_id' and f['bleu2']['1'] == 1.0, f"
    subprocess.run([python, "-c", check], cwd=tmp_path, check=True)
