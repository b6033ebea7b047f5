"""A stranger's first run: from a folder and a table to a trained model, with the commands of docs/data.md."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from test_data_dicom import made, written

ROOT = Path(__file__).parents[1]
FINDINGS = (
    "Clear lungs.",
    "Small left effusion.",
    "Right lower lobe opacity.",
    "The heart is enlarged.",
    "No fracture.",
)


def commands():
    """The first block of commands of the page."""
    block = (ROOT / "docs/data.md").read_text(encoding="utf-8").partition("```sh\n")[2].partition("```")[0]
    return block.strip().splitlines()


def drawn(kind, rng):
    levels = rng.integers(0, 4096, (72, 64)).astype(np.uint16)
    if kind == "dcm":
        return written(made(levels, WindowCenter=2048, WindowWidth=4096))
    file = io.BytesIO()
    eight = (levels >> 4).astype(np.uint8)
    Image.fromarray(levels if kind == "16.png" else eight).save(file, "JPEG" if kind == "jpg" else "PNG")
    return file.getvalue()


def test_five_commands_from_an_empty_folder_to_a_trained_model(tmp_path):
    rng, rows = np.random.default_rng(0), ["Study ID;Patient;Report"]
    (tmp_path / "mine/images").mkdir(parents=True)
    for number in range(30):
        kind = ("png", "16.png", "jpg", "dcm")[number % 4]
        (tmp_path / f"mine/images/{1000 + number}.{kind}").write_bytes(drawn(kind, rng))
        text = " ".join(FINDINGS[i] for i in rng.permutation(5)[:3])
        rows.append(f'{1000 + number}.0;{number // 2};"FINDINGS: {text} Case {number}.\n\nIMPRESSION:\nNormal."')
    (tmp_path / "mine/reports.csv").write_text("\r\n".join(rows), encoding="cp1252")
    for name in ("train.py", "evaluate.py", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    listed = commands()
    assert len(listed) == 5
    printed = ""
    for command in listed:
        ran = subprocess.run(
            command, shell=True, cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True
        )
        assert ran.returncode == 0, f"{command}\n{ran.stdout[-2000:]}\n{ran.stderr[-2000:]}"
        printed += ran.stdout
    assert "studies 30 of 30" in printed and "images 30" in printed
    assert "id from 'Study ID', report from 'Report', patient_id from 'Patient'" in printed
    lines = (tmp_path / "mine/studies.jsonl").read_text().splitlines()
    held_out = [study["id"] for study in map(json.loads, lines) if study["split"] == "test"]
    assert held_out and set(json.loads((tmp_path / "mine/reports.json").read_text())) == set(held_out)
    assert (tmp_path / "mine/studies.html").read_text().count("<img") == 24
    assert (tmp_path / "runs/first_run/dashboard.html").exists() and (tmp_path / "mine/scores/summary.md").exists()
