"""The whole method in miniature: it finishes, it explains what is wrong, and a kill changes nothing."""

import json
import signal
import time

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from small_run import ROOT, SMALL, count_lines, start_run

from capo.ranks import Ranks
from capo.stopping import StopRequested
from radflow import train
from radflow.dashboard.archive import Archive
from radflow.models.start import ModelConfig
from radflow.pipeline.run import run_on_ranks
from radflow.pipeline.run_config import Config


def kill_when(folder, reached, limit=120):
    process, until = start_run(folder), time.monotonic() + limit
    while not reached():
        assert process.poll() is None, f"ended before the kill: {process.stderr.read()[-800:]}"
        assert time.monotonic() < until, "the moment to kill never came"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    process = start_run(folder)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-2000:]
    return folder


def test_every_stage_leaves_its_product(finished):
    selected = json.loads((finished / "explore/selection.json").read_text())["selected"]
    assert len(selected) == 10  # half of 20
    scores = [json.loads(line) for line in (finished / "explore/scores.jsonl").read_text().splitlines()]
    assert len(scores) == 20
    worst = sorted(scores, key=lambda row: row["s"])[:10]
    assert {row["id"] for row in worst} == set(selected)
    assert count_lines(finished / "criticality.jsonl") == 20
    rows = [json.loads(line) for line in (finished / "rl/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert rows[0]["kl_before"] == 0.0 and all(row["sampler_gap_max"] < 1e-3 for row in rows)
    first = Archive(finished / "rl/rollouts").members()[0].read()[0]
    assert len(first["reports"]) == 4 and first["eps"] == pytest.approx(0.05 if first["critical"] else 0.2)
    for report in first["reports"]:
        parts = report["parts"]
        # with the weights of configs/demo.yaml
        earned = parts["syntax"] + parts["entity_f1_rules"] + 2 * (parts["label_f1_rules"] or 0)
        consistent = 0.25 * parts["consistency_rules"]
        if "consistency_rules" in report["left_out"]:
            consistent = 0.0
        earned += max(consistent, 0) * (0 if parts["contradictions_rules"] else parts["entity_f1_rules"])
        expected = parts["guard"] * parts["truth_rules"] * earned + min(consistent, 0)
        assert report["total"] == pytest.approx(expected)
    table = (finished / "eval/table.md").read_text()
    for shown in ("total reward", "BLEU-2", "best constant", "nearest neighbour", "distinct reports"):
        assert shown in table
    assert not list(finished.rglob("*.tmp"))


def test_a_run_killed_in_every_stage_ends_with_the_same_table(finished, tmp_path):
    folder = tmp_path / "killed"
    kill_when(folder, lambda: count_lines(folder / "warmup/metrics.jsonl") >= 2)
    kill_when(folder, lambda: count_lines(folder / "sft/metrics.jsonl") >= 12)
    kill_when(folder, lambda: len(list(folder.glob("explore/predictions/*.jsonl"))) >= 2)
    kill_when(folder, lambda: count_lines(folder / "rl/metrics.jsonl") >= 2)
    kill_when(folder, lambda: (folder / "eval/sft.json").exists())
    process = start_run(folder)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-2000:]
    for name in ("eval/table.json", "eval/capo.json", "explore/selection.json"):
        assert (folder / name).read_text() == (finished / name).read_text(), name
    for stage in ("warmup", "sft", "rl"):
        timed = [
            [{k: v for k, v in json.loads(line).items() if not k.startswith("seconds")} for line in text.splitlines()]
            for text in ((run / stage / "metrics.jsonl").read_text() for run in (folder, finished))
        ]
        assert timed[0] == timed[1], stage


def test_a_finished_run_is_only_read(finished, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    before = (finished / "eval/table.json").stat().st_mtime_ns
    train.main(["--run-dir", str(finished), *SMALL])
    assert "total reward" in capsys.readouterr().out
    assert (finished / "eval/table.json").stat().st_mtime_ns == before


def test_exploration_may_read_metrics_that_are_no_parts_of_the_reward(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    options = ["--stages", "sft,explore", "--sft.steps", "2", "--reward.preset", "bleu"]
    options += ["--evaluate.metrics", "rouge_l", "--explore.weights", "entity_f1_rules", "1", "label_f1_rules", "1"]
    train.main(["--run-dir", str(tmp_path / "run"), *SMALL, *options])
    row = json.loads((tmp_path / "run/explore/scores.jsonl").read_text().splitlines()[0])
    names = ["total", "bleu2", "entity_f1_rules", "label_f1_rules", "rouge_l"]
    names += ["made_up_findings", "missed_findings", "label_f1_true_state"]
    assert list(row) == ["id", "s", *names] and row["total"] <= row["bleu2"]


def test_lora_on_a_checkpoint_keeps_the_sft_policy_as_reference(finished, tmp_path, monkeypatch):
    """Adapters switched off after a LoRA-SFT would be the base model: the KL would not start at 0."""
    monkeypatch.chdir(ROOT)
    base, folder = finished / "sft/model", tmp_path / "lora"
    options = ["--model.path", str(base), "--model.training", "lora", "--sft.optimizer.warmup-steps", "0"]
    train.main(["--run-dir", str(folder), *SMALL, *options, "--stages", "sft,explore,criticality,rl"])
    rows = [json.loads(line) for line in (folder / "rl/metrics.jsonl").read_text().splitlines()]
    assert rows[0]["kl_before"] == 0.0 and rows[-1]["kl_before"] > 0
    weights = {
        stage: load_file(path / "model.safetensors")
        for stage, path in {"base": base, "sft": folder / "sft/model", "rl": folder / "rl/model"}.items()
    }
    assert weights["base"].keys() == weights["sft"].keys() == weights["rl"].keys()
    for name, tensor in weights["base"].items():
        adapted = "layers" in name and "proj.weight" in name and "visual" not in name
        for stage in ("sft", "rl"):
            assert torch.equal(tensor, weights[stage][name]) != adapted, (stage, name)


def test_carotid_phantoms_run_with_their_own_expert(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    options = ["--data.modality", "carotid", "--reward.expert", "carotid_rules", "--model.processor.task", "carotid_us"]
    train.main(["--run-dir", str(tmp_path / "carotid"), *SMALL, *options])
    assert "label F1 of the Impression (true state)" in capsys.readouterr().out


def refused(monkeypatch, *argv):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as stopped:
        train.main([*argv])
    return str(stopped.value.code)


def test_another_config_in_the_same_folder_is_refused(finished, monkeypatch):
    message = refused(monkeypatch, "--run-dir", str(finished), *SMALL, "--rl.beta", "0.5")
    assert "rl.beta was 0.1, is 0.5" in message


def test_a_stage_whose_input_is_missing_names_it(tmp_path, monkeypatch):
    message = refused(monkeypatch, "--run-dir", str(tmp_path / "r"), *SMALL, "--stages", "rl")
    assert "stage rl needs" in message and "run stage sft first" in message


def test_unknown_stage_is_refused(tmp_path, monkeypatch, capsys):
    refused(monkeypatch, "--run-dir", str(tmp_path / "r"), "--stages", "sft,dance")
    assert "'dance'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("missing image", "study s1: image"),
        ("truncated image", "study s1: image"),
        ("empty report", "study s1: an empty report"),
        ("duplicate id", "study s0: the id occurs 2 times"),
        ("patient in two splits", "patient p0 is in split val"),
    ],
)
def test_bad_studies_stop_a_run_before_anything_is_written(tmp_path, monkeypatch, damage, said):
    rows = []
    for number, split in enumerate(["train", "train", "train", "val"]):
        image = tmp_path / f"{number}.jpg"
        Image.fromarray(np.random.default_rng(number).integers(0, 255, (64, 64), dtype=np.uint8)).save(image)
        rows.append(
            {
                "id": f"s{number}",
                "patient_id": f"p{number}",
                "images": [image.name],
                "split": split,
                "findings": "Clear.",
                "impression": "Normal.",
            }
        )
    if damage == "missing image":
        (tmp_path / "1.jpg").unlink()
    elif damage == "truncated image":
        (tmp_path / "1.jpg").write_bytes((tmp_path / "1.jpg").read_bytes()[:700])
    elif damage == "empty report":
        rows[1] |= {"findings": "", "impression": ""}
    elif damage == "duplicate id":
        rows[1]["id"] = "s0"
    else:
        rows[3]["patient_id"] = "p0"
    manifest, folder = tmp_path / "manifest.jsonl", tmp_path / "run"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--data.source", "manifest", "--data.manifest", str(manifest), "--data.eval-split", "val"]
    assert said in refused(monkeypatch, "--run-dir", str(folder), *options)
    assert {path.name for path in folder.iterdir()} <= {"config.yaml", "environment.json", "lock"}


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_is_valid(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = train.parse_config(["--config", str(path)])
    written = yaml.safe_load(path.read_text())
    assert str(config.run_dir) == written["run_dir"] and config.rl.steps == written["rl"]["steps"]


def test_every_rank_leaves_when_its_work_is_done_and_when_it_is_stopped(tmp_path, monkeypatch):
    left = []
    monkeypatch.setattr(Ranks, "shutdown", lambda ranks: left.append(ranks.rank))
    config = Config(run_dir=tmp_path / "run", model=ModelConfig(training="full"))

    def stopped(ranks, stop):
        raise StopRequested("stopped")

    for work in (lambda ranks, stop: None, stopped):
        run_on_ranks(config, work)
    assert left == [0, 0]
