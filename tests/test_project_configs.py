"""Every YAML of configs/ is a config of train.py, and those named after a model hold what they promise."""

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from dataset_files import write_csv, write_json
from PIL import Image

from capo.config import RlConfig
from radflow.data.corpus import load_corpus
from radflow.data.prepare import main as prepare_main
from radflow.data.readers.records import split_of_patient
from radflow.pipeline.run_config import Config, read_config

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
PRESET = ROOT / "configs" / "presets" / "paper.yaml"
PAPER = ["qwen2_5_vl_3b", "qwen2_5_vl_7b", "qwen3_vl_4b", "mimic_cxr", "rexgradient", "carotid_us"]


def read(path: Path, *options: str) -> Config:
    return read_config(Config, path, options)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_parses_and_each_value_arrives(path):
    config = read(path)

    def compare(written, parsed, key):
        for name, value in written.items():
            arrived = parsed[name] if isinstance(parsed, dict) else getattr(parsed, name)
            if isinstance(value, dict):
                compare(value, arrived, f"{key}{name}.")
            else:
                expected = tuple(value) if isinstance(value, list) else value
                assert arrived == expected or str(arrived) == str(expected), f"{key}{name}"

    compare(yaml.safe_load(path.read_text(encoding="utf-8")), config, "")


@pytest.mark.parametrize("name", PAPER)
def test_configs_of_real_checkpoints_have_the_papers_setting(name):
    (path,) = [path for path in CONFIGS if path.stem == name]
    config = read(path)
    assert re.fullmatch(r"Qwen/Qwen[\w.-]+@[0-9a-f]{40}", config.model.path) and config.model.training == "lora"
    assert config.model.lora.rank == 8 and config.rl.group_size == 4 and config.explore.fraction == 0.1
    assert config.sft.optimizer.lr == config.rl.optimizer.lr == 1e-5
    assert config.sft.batch_size == config.rl.studies_per_step == 8  # 1 on each of 8 GPUs


def test_prompt_and_window_come_from_yaml_and_command_line(tmp_path, refuse):
    path = tmp_path / "own.yaml"
    parts = ["{images}", "Klinik: {indication}\n", "Befund und Beurteilung?"]
    config = {
        "model": {"processor": {"prompt": parts, "system": "Du bist Radiologe."}, "path": "Some/Model@main"},
        "data": {"window": {"levels": [-160, 240]}},
    }
    path.write_text(yaml.safe_dump(config))
    read_back = read(path)
    assert read_back.model.processor.prompt == tuple(parts) and read_back.model.path == "Some/Model@main"
    assert read_back.model.processor.max_pixels is None and read_back.data.window.levels == (-160, 240)
    over = read(path, "--model.processor.prompt", "{images}", "Report.", "--model.processor.max-pixels", "5000")
    assert over.model.processor.prompt == ("{images}", "Report.") and over.model.processor.max_pixels == 5000
    for options, said in (
        (("--model.processor.prompt", "Report."), "expected {images} exactly once"),
        (("--data.window.percentiles", "1", "99"), "expected window.percentiles or window.levels, got both"),
    ):
        assert said in refuse(lambda words: read(path, *words), options)


def test_any_metric_can_be_explored_by_from_yaml_and_command_line(tmp_path):
    path = tmp_path / "own.yaml"
    start = {"model": {"path": "Some/Model"}, "reward": {"plugin": "mine:my_metric"}}
    path.write_text(yaml.safe_dump({**start, "explore": {"weights": {"my_metric": 2, "bleu2": 1}}}))
    assert read(path).explore.weights == {"my_metric": 2.0, "bleu2": 1.0}
    assert read(path, "--explore.weights", "radgraph_f1", "1").explore.weights == {"radgraph_f1": 1.0}
    path.write_text(yaml.safe_dump(start))
    assert read(path).explore.weights == {"bleu2": 1.0, "entity_f1_rules": 1.0, "label_f1_rules": 1.0}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--rollout.slots", "3"), "expected rollout.slots of at least rl.group_size, got 3 and 4"),
        (("--rollout.temperature", "0"), "expected rollout.temperature above 0, top_p 1 and top_k 0"),
        (("--rollout.top-p", "0.9"), "trains on the distribution that it samples from, got 1.0, 0.9 and 0"),
        (("--rollout.top-k", "50"), "expected rollout.temperature above 0, top_p 1 and top_k 0"),
        (("--rollout.temperature", "nan"), "expected temperature"),
        (("--rl.objective", "gspo", "--rl.credit", "section"), "expected credit report with objective gspo"),
        (("--rl.dual-clip", "1"), "expected dual_clip above 1"),
        (("--rl.vision", "trained"), "expected rl.vision frozen with model.training lora"),
        (("--evaluate.part-size", "0"), "expected part_size of at least 1"),
        (("--evaluate.validate-every", "-1"), "validate_every of at least 0"),
        (("--criticality.part-size", "0"), "expected criticality.part_size of at least 1"),
    ],
)
def test_impossible_settings_are_refused_by_their_key(tmp_path, refuse, options, said):
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump({"model": {"path": "Some/Model"}}))
    assert said in refuse(lambda words: read(path, *words), options)


@pytest.mark.parametrize("name", ["demo", *PAPER])
def test_the_papers_preset_is_the_paper_whatever_the_config_says(name):
    (path,) = [path for path in CONFIGS if path.stem == name]
    changed = ["--rl.advantage", "decoupled"] if name == "demo" else []
    config = read_config(Config, path, preset=PRESET)
    rl, reward = config.rl, config.reward
    assert (rl.advantage, rl.credit, rl.edits.share, rl.objective, rl.kl) == ("group", "report", 0, "capo", "k3")
    assert (rl.group_size, rl.eps_normal, rl.tightening, rl.dual_clip) == (4, 0.2, 4, None)
    assert reward.printed and (reward.syntax, reward.domain, reward.consistent, reward.gamma) == (1, 1, 1, 1)
    assert config.explore.fraction == 0.1 and config.criticality.definition == "paper"
    assert read_config(Config, path, changed, preset=PRESET).rl.advantage == (changed or [None, "group"])[1]


def test_the_paper_states_its_numbers_and_the_preset_holds_them_all():
    stated = yaml.safe_load(PRESET.read_text(encoding="utf-8"))
    assert {"rl", "reward", "explore", "criticality", "rollout"} == stated.keys()
    every = {one.name for one in fields(RlConfig)}
    left = {"steps", "studies_per_step", "beta", "inner_epochs", "mini_batches", "checkpoint_every", "optimizer"}
    left |= {"truncated_margin", "sampler_cap", "advantage_eps"}  # of use with other choices only, or not printed
    assert stated["rl"].keys() == every - left  # a new key of the method must be decided there


@pytest.fixture
def published(tmp_path):
    """Two studies in the published layout of each dataset that has a config, by the root that the config names."""
    folder = tmp_path / "data/mimic-cxr"
    rows = [("a", 10000032, 50000000, "train"), ("b", 10000033, 50000001, "test")]
    write_csv(
        folder / "mimic-cxr-2.0.0-metadata.csv.gz",
        "dicom_id,subject_id,study_id,ViewPosition,StudyDate,StudyTime",
        *[[name, subject, study, "PA", 21800101, "1.0"] for name, subject, study, _ in rows],
    )
    splits = [[name, study, subject, split] for name, subject, study, split in rows]
    write_csv(folder / "mimic-cxr-2.0.0-split.csv.gz", "dicom_id,study_id,subject_id,split", *splits)
    for name, subject, study, _ in rows:
        image(folder / f"files/p10/p{subject}/s{study}/{name}.jpg")
        (folder / f"files/p10/p{subject}/s{study}.txt").write_text(f"FINDINGS: Clear {name}.\n\nIMPRESSION: Normal.")
    folder = tmp_path / "data/ReXGradient-160K"
    for split in ("train", "test"):
        header = "id,StudyDate,Findings,Impression,Indication,Comparison"
        write_csv(folder / f"metadata/{split}_metadata.csv", header, [split, 1, f"Clear {split}.", "Normal.", "", ""])
        paths = [f"../deid_png/{split}/0.png"]
        views = {split: {"PatientID": split, "ImagePath": paths, "ImageViewPosition": ["PA"]}}
        write_json(folder / f"metadata/{split}_metadata_view_position.json", views)
        image(folder / f"deid_png/{split}/0.png")
    folder = tmp_path / "data/carotid"
    of_split = {split_of_patient(f"P{i}", (70, 15, 15)): f"P{i}" for i in range(99)}
    patients = [of_split[split] for split in ("train", "test")]
    studies = [
        {"id": p, "patient_id": p, "images": [{"path": f"{p}.png", "mode": "b-mode"}], "report": f"Findings: {p}."}
        for p in patients
    ]
    for patient in patients:
        image(folder / f"{patient}.png")
    (folder / "carotid_us.jsonl").write_text("\n".join(map(json.dumps, studies)))
    return tmp_path


def image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (64, 64)).save(path)


@pytest.mark.parametrize("name", ["mimic_cxr", "rexgradient", "carotid_us"])
def test_the_commands_of_a_config_run_as_printed(published, monkeypatch, name):
    # once the images of none of them were found: no config named the folder that their paths start from
    text = (ROOT / f"configs/{name}.yaml").read_text(encoding="utf-8").replace("/data/", f"{published}/data/")
    prepare_command, train_command = re.findall(r"^#     (.+?)(?: {6}.*)?$", text, re.MULTILINE)
    monkeypatch.chdir(published)
    assert prepare_command.startswith("radflow prepare ")
    prepare_main(prepare_command.split()[2:])
    (published / "configs").mkdir()
    (published / f"configs/{name}.yaml").write_text(text)
    words = train_command.split()
    config = read(Path(words[words.index("--config") + 1]))
    corpus = load_corpus(config.data, seed=0)
    assert len(corpus.train) == len(corpus.test) == 1
