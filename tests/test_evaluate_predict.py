"""One report for one study on the command line."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from transformers_greedy import greedy

from radflow import evaluate
from radflow.models.processing import ProcessorConfig, ReportProcessor
from radflow.models.qwen_vl import load
from radflow.models.training_data import TrainingData
from radflow.pipeline import generation

REPORT = "Findings: Clear lungs. Impression: Normal."


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "frontal.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120), dtype=np.uint8)).save(path)
    return str(path)


@pytest.fixture
def deep(tmp_path):
    path = tmp_path / "deep.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 4096, (112, 112), dtype=np.uint16)).save(path)
    return str(path)


def predict(*options: str) -> None:
    evaluate.main(["predict", *options])


def test_the_report_is_that_of_a_greedy_decoding_by_transformers(tiny_dir, image, deep, capsys):
    predict(
        "--model",
        str(tiny_dir),
        "--image",
        image,
        "--image",
        deep,
        "--prior",
        image,
        "--indication",
        "Cough.",
        "--comparison",
        "2019.",
        "--levels",
        "1000",
        "3000",
        "--json",
        "--max-new-tokens",
        "20",
    )
    found = json.loads(capsys.readouterr().out)
    frontal = Image.open(image).convert("RGB")
    window = np.clip((np.asarray(Image.open(deep), dtype=np.float64) - 1000) / 2000, 0, 1)
    lateral = Image.fromarray((window * 255).round().astype(np.uint8)).convert("RGB")
    processor, policy = ReportProcessor.load(tiny_dir), load(tiny_dir)
    asked = processor.prompt("s", [frontal, lateral], prior_images=[frontal], indication="Cough.", comparison="2019.")
    theirs = greedy(policy, processor, asked, max_new_tokens=20)
    assert found["report"] == processor.decode(theirs) and found["report"]
    assert found["status"] == "truncated"  # an untrained model does not end


@pytest.fixture
def writes(monkeypatch, image):
    """Have the model write a given text, ended or cut."""

    def set_report(text: str, *, truncated: bool = False) -> None:
        class Writes:
            def __init__(self, policy, **options):
                pass

            def rollout(self, requests, *, stop):
                return (SimpleNamespace(response_ids=text, study_id=image, truncated=truncated) for _ in requests)

        monkeypatch.setattr(generation, "Engine", Writes)
        monkeypatch.setattr(ReportProcessor, "decode", lambda self, ids: ids)

    return set_report


@pytest.mark.parametrize(
    ("report", "truncated", "shown"),
    [
        (REPORT, False, "Findings: Clear lungs.\n\nImpression: Normal.\n\nStatus: ok\n"),
        (REPORT, True, "Findings: Clear lungs.\n\nImpression: Normal.\n\nStatus: truncated\n"),
        ("Findings: Clear.", False, "Findings: Clear.\n\nImpression: -\n\nStatus: missing impression\n"),
        ("no header", False, "no header\n\nStatus: missing findings\n"),
    ],
)
def test_sections_and_status_are_printed(tiny_dir, image, capsys, writes, report, truncated, shown):
    writes(report, truncated=truncated)
    predict("--model", str(tiny_dir), "--image", image)
    unknown = "unknown, the model's folder does not say it"
    assert capsys.readouterr().out == f"{shown}Model: {tiny_dir}\nTraining data: {unknown}\n"
    predict("--model", str(tiny_dir), "--image", image, "--json")
    found = json.loads(capsys.readouterr().out)
    assert found["report"] == report and found["status"].replace("_", " ") in shown
    assert found["model"] == str(tiny_dir) and found["training_data"] == unknown


def test_it_is_asked_as_it_was_trained(tiny_dir, tmp_path, image, writes, monkeypatch):
    config = ProcessorConfig(task="carotid_us", max_pixels=56 * 56)
    load(tiny_dir).save(tmp_path / "trained", ReportProcessor.load(tiny_dir, config))
    writes(REPORT)
    asked = []
    monkeypatch.setattr(
        generation, "build_prompt", lambda processor, study: asked.append((processor.config.task, study))
    )
    monkeypatch.setattr(generation, "Request", lambda prompt, seeds: None)
    predict("--model", str(tmp_path / "trained"), "--image", image)
    assert asked[0][0] == "carotid_us" and str(asked[0][1].images[0]) == image


PHANTOMS = TrainingData("400 chest phantoms", synthetic=True)
REAL = TrainingData("18,000 studies of mimic.jsonl", synthetic=False)


@pytest.mark.parametrize(
    ("trained_on", "said"),
    [
        ([PHANTOMS], "synthetic images only (400 chest phantoms); its report of a patient's image means nothing"),
        ([PHANTOMS, REAL], "400 chest phantoms, then 18,000 studies of mimic.jsonl"),
        ([TrainingData("Qwen/Q", synthetic=False), PHANTOMS], "Qwen/Q, then 400 chest phantoms"),
        ([], "none, its weights are random"),
    ],
)
def test_what_a_model_was_trained_on_is_said_of_a_copy_too(tiny_dir, tmp_path, image, capsys, writes, trained_on, said):
    load(tiny_dir).save(tmp_path / "model", ReportProcessor.load(tiny_dir, trained_on=trained_on))
    shutil.move(tmp_path / "model", tmp_path / "copy")
    writes(REPORT)
    predict("--model", str(tmp_path / "copy"), "--image", image)
    assert f"Training data: {said}\n" in capsys.readouterr().out
    predict("--model", str(tmp_path / "copy"), "--image", image, "--json")
    assert json.loads(capsys.readouterr().out)["training_data"] == said


def test_of_a_run_the_capo_policy_is_taken_or_that_of_sft(tiny_dir, tmp_path, image, capsys, writes):
    (tmp_path / "config.yaml").touch()
    with pytest.raises(SystemExit, match="expected a run with rl/model or sft/model, it has neither yet"):
        predict("--model", str(tmp_path), "--image", image)
    writes(REPORT)
    for stage in ("sft", "rl"):
        shutil.copytree(tiny_dir, tmp_path / stage / "model")
        predict("--model", str(tmp_path), "--image", image)
        assert f"Model: {tmp_path / stage / 'model'}\n" in capsys.readouterr().out


@pytest.mark.parametrize("record", ["[3]", '[{"name": "x"}]', '[{"name": 5, "synthetic": true}]', '"phantoms"'])
def test_a_damaged_record_of_the_training_data_is_refused(tiny_dir, tmp_path, record):
    shutil.copytree(tiny_dir, tmp_path / "model")
    path = tmp_path / "model" / "radflow_prompt.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "trained_on": json.loads(record)}))
    with pytest.raises(ValueError, match=r"radflow_prompt.json: expected objects of name and synthetic"):
        ReportProcessor.load(tmp_path / "model")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model", "MODEL", "--image", "absent.png"], "error: .*image absent.png does not exist"),
        (["--model", "absent", "--image", "IMAGE"], "error: absent: expected a Qwen-VL checkpoint directory"),
        (["--model", "MODEL", "--image", "IMAGE", "--levels", "5", "1"], "error: expected window.levels rising"),
    ],
)
def test_mistakes_end_with_one_line(tiny_dir, image, options, said):
    options = [{"MODEL": str(tiny_dir), "IMAGE": image}.get(option, option) for option in options]
    with pytest.raises(SystemExit, match=said):
        predict(*options)


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit):
        predict("--help")
    shown = capsys.readouterr().out
    for option in ("--model", "--image", "--prior", "--indication", "--comparison", "--levels", "--json"):
        assert option in shown
