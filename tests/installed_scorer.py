"""The wheel, and what somebody who has nothing else does with it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
LEFT_OUT = shutil.ignore_patterns(".*", "runs", "build", "dist", "*.egg-info", "__pycache__")
NORMAL = "Findings: The heart is normal. No effusion. Impression: No acute abnormality."
EFFUSION = "Findings: The heart is normal. Small left effusion. Impression: Small left effusion."
LISTS = """
import radflow, sys
result = radflow.score([REPORTS[1], REPORTS[1]], REPORTS, num_resamples=100)
assert result.values["label_f1_rules"] == 0.5, result.values
assert result.columns["label_f1_rules"] == [0.0, 1.0]
assert "torch" not in sys.modules
print(radflow.__file__)
"""


def build_wheel(folder: Path) -> Path:
    """Built from a copy of the sources: an earlier build has no part in it, and nothing stays in the checkout."""
    shutil.copytree(ROOT, folder / "source", ignore=LEFT_OUT)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder / "dist", "."]
    run = subprocess.run(command, cwd=folder / "source", capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    (built,) = (folder / "dist").glob("radflow-*.whl")
    return built


def score_as_a_stranger(python: Path, home: Path) -> None:
    """Score, compare, label and look at help with the commands of an environment, in an empty folder."""
    home.mkdir()
    environment = {"PATH": os.environ["PATH"], "HOME": str(home)}

    def run(*words: object) -> str:
        command = [str(python.parent / "radflow"), *map(str, words)]
        done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert run("--version").startswith("radflow ")
    references, constant = home / "references.json", home / "constant.json"
    references.write_text(json.dumps({"a": NORMAL, "b": EFFUSION}), encoding="utf-8")
    constant.write_text(json.dumps({"a": EFFUSION, "b": EFFUSION}), encoding="utf-8")
    run("score", "--predictions", constant, "--references", references, "--out", home / "scores")
    summary = json.loads((home / "scores" / "summary.json").read_text(encoding="utf-8"))
    (label_f1,) = (row["value"] for row in summary["metrics"] if row["metric"] == "label_f1_rules")
    assert label_f1 == 0.5
    assert "references - constant" in run("compare", constant, references, "--references", references)
    (home / "reports.jsonl").write_text(json.dumps({"id": 1, "report": EFFUSION}) + "\n", encoding="utf-8")
    assert json.loads(run("label", home / "reports.jsonl"))["labels"]["Pleural Effusion"] == 1
    for command in ("cases", "prepare", "train"):
        assert run(command, "--help")
    lists = [str(python), "-c", f"REPORTS = {[NORMAL, EFFUSION]!r}{LISTS}"]
    shown = subprocess.run(lists, cwd=home, env=environment, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    assert Path(shown.stdout.strip()).is_relative_to(python.parent.parent)
