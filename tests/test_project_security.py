"""What docs/security.md promises and no other test holds."""

import json
import re
import shutil
import socket
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from radflow.data.prefetch import ImageCache, decode_studies
from radflow.data.studies import Study, check_studies
from radflow.models.processing import ReportProcessor
from radflow.models.qwen_vl import load
from radflow.models.start import ModelConfig
from radflow.models.tiny import train_tokenizer
from radflow.pipeline.run_config import Config, read_config
from radflow.rewards.metrics.encoder import load_model_config, load_tokenizer
from radflow.rewards.radgraph.cache import GraphCache

ROOT = Path(__file__).parent.parent
# Row of docs/security.md -> the tests that hold it.
HELD_BY = {
    "checkpoints": [
        "test_models_loading::test_pickles_are_refused_with_the_way_to_convert_them",
        "test_project_security::test_code_in_a_checkpoint_is_not_run_and_nobody_is_asked_to",
        "test_rewards_hub::test_every_fetch_names_its_commit",
        "test_project_configs::test_configs_of_real_checkpoints_have_the_papers_setting",
    ],
    "CheXbert, RadGraph": [
        "test_rewards_chexbert::test_a_pickle_that_would_run_code_is_refused",
        "test_rewards_radgraph_model::test_weights_that_would_run_code_are_not_loaded",
    ],
    "manifests": ["test_data_prepare::test_names_that_lead_out_of_the_root_are_refused"],
    "images, DICOM": [
        "test_data_images::test_a_small_file_that_unfolds_to_400_million_pixels_is_refused_unread",
        "test_data_dicom::test_a_deflated_file_is_read_and_a_bomb_refused_before_it_takes_memory",
    ],
    "reports, predictions": [
        "test_models_processing::test_no_text_brings_a_special_token_in_or_loses_a_character",
        "test_dashboard_pages::test_texts_of_models_and_data_stay_texts",
        "test_dashboard_pages::test_nothing_on_the_page_comes_from_elsewhere",
        "test_evaluate_cases::test_one_file_with_everything_in_it_and_nothing_of_a_report_alive",
        "test_evaluate_inputs::test_no_cell_of_a_csv_file_is_run_by_a_spreadsheet",
    ],
    "endpoints": [
        "test_project_security::test_no_program_trusts_what_others_hand_over",
        "test_chat_endpoint::test_redirects_are_not_followed",
        "test_chat_endpoint::test_an_endless_body_is_left_after_its_first_mebibytes",
        "test_chat_endpoint::test_the_key_is_in_no_log_no_file_and_no_message",
        "test_chat_config::test_a_key_does_not_travel_in_the_clear",
    ],
    "run folders, configs": [
        "test_project_security::test_no_program_trusts_what_others_hand_over",
        "test_capo_checkpoint::test_facts_are_readable_without_torch",
    ],
    "packages": ["test_project_layout::test_make_installs_by_hash_alone"],
    "judge, served model": [
        "test_project_security::test_nothing_that_sends_or_copies_is_on_by_default",
        "test_chat_config::test_every_other_host_needs_allow_external",
    ],
    "errors of endpoints": ["test_chat_endpoint::test_what_the_server_says_is_shown_without_the_report"],
    "hub": ["test_project_security::test_the_tests_reach_this_machine_only"],
    "Weights & Biases": ["test_dashboard_trackers::test_wandb_gets_numbers_and_nothing_of_the_machine"],
    "TensorBoard files": ["test_dashboard_trackers::test_what_tensorboard_was_sent_is_read_back"],
    "`export/`": ["test_models_export::test_no_exported_file_holds_a_sentence_or_an_id_of_a_study"],
    "small model's tokenizer": [
        "test_project_security::test_a_token_of_the_small_model_is_at_most_one_word_and_a_number_one_digit"
    ],
    "judge's cache": ["test_rewards_answer_cache::test_the_file_holds_no_report"],
    "`reward.radgraph.cache`": ["test_project_security::test_caches_hold_neither_reports_nor_ids"],
    "`data.cache_dir`": ["test_project_security::test_caches_hold_neither_reports_nor_ids"],
    "run folder, pages, predictions": ["test_dashboard_pages::test_nothing_on_the_page_comes_from_elsewhere"],
    "terminal, `status.json`": ["test_project_security::test_what_is_wrong_with_a_study_is_said_without_its_report"],
    "plug-ins": [],  # they are given texts and may do with them what they like
}
CODE = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\nclass Own: ...\n"


def bring_code(folder: Path) -> None:
    """Let config and tokenizer of a checkpoint ask for classes of a file next to them."""
    (folder / "own.py").write_text(CODE)
    for name, kinds in (("config.json", ("AutoConfig", "AutoModel")), ("tokenizer_config.json", ("AutoTokenizer",))):
        path = folder / name
        settings = json.loads(path.read_text()) if path.exists() else {"model_type": "own"}
        values = {kind: ["own.Own", "own.Own"] if kind == "AutoTokenizer" else "own.Own" for kind in kinds}
        path.write_text(json.dumps({**settings, "auto_map": values}))


def test_code_in_a_checkpoint_is_not_run_and_nobody_is_asked_to(tiny_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked whether to run code"))
    policy, encoder = tmp_path / "policy", tmp_path / "encoder"
    shutil.copytree(tiny_dir, policy)
    encoder.mkdir()
    for folder in (policy, encoder):
        bring_code(folder)
    assert load(policy).vocab_size and ReportProcessor.load(policy).image_id
    for refuse in (load_model_config, lambda path: load_tokenizer(path, SimpleNamespace(model_type="own"))):
        with pytest.raises(ValueError, match="expected the directory of an encoder"):
            refuse(str(encoder))
    assert not list(tmp_path.rglob("ran"))


def test_no_program_trusts_what_others_hand_over():
    others = ("tests", ".venv", "build")  # and environments of other names
    sources = [p for p in ROOT.rglob("*.py") if not p.relative_to(ROOT).parts[0].startswith(others)]
    texts = {path: path.read_text(encoding="utf-8") for path in sources}
    unsafe = (
        r"trust_remote_code=True|weights_only=False|yaml\.(unsafe_)?load\(|pickle\.loads?\(|verify=False|shell=True"
    )
    assert not [path.name for path, text in texts.items() if re.search(unsafe, text)]
    unstated = r"torch\.load\((?![^\n]*weights_only=True)"
    assert not [path.name for path, text in texts.items() if re.search(unstated, text)]


def test_the_tests_reach_this_machine_only():
    # conftest.py: every run, score and page of the suite is made under this rule
    with pytest.raises(PermissionError, match="this machine only, got one to 192"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=1).close()


def test_a_token_of_the_small_model_is_at_most_one_word_and_a_number_one_digit():
    reports = ["Frau Meyer, MRN 48151623, wurde heute untersucht. No pneumothorax."] * 50
    vocabulary = train_tokenizer(reports, 4000).get_vocab()
    words = [token for token in vocabulary if not token.startswith("<|")]
    assert "\u0120pneumothorax" in words  # a word with the blank before it
    assert not [word for word in words if "\u0120" in word[1:] or re.search(r"\d\d", word)]


def sends_or_copies(config: Config) -> list[object]:
    """Settings that would let text, images or ids out of the run's folder, where they are on."""
    asks = "llm" in (config.reward.consistency, config.criticality.source) or config.rollout.engine != "local"
    tracking = config.tracking.tensorboard or config.tracking.wandb != "off"
    external = config.judge.allow_external or config.served.allow_external
    copies = (config.data.cache_dir, config.reward.radgraph.cache, config.reward.plugin)
    return [one for one in (asks, tracking, external, *copies) if one]


def test_nothing_that_sends_or_copies_is_on_by_default():
    assert sends_or_copies(Config(model=ModelConfig(training="full"))) == []
    assert sends_or_copies(read_config(Config, ROOT / "configs" / "demo.yaml")) == []


def test_caches_hold_neither_reports_nor_ids(tmp_path):
    graphs = GraphCache(tmp_path / "graphs.sqlite", model="m")
    graphs.write({"Mrs Example has a nodule.": {"1": {"tokens": "nodule", "label": "OBS-DP", "relations": []}}})
    source = tmp_path / "Example_Anna.png"
    Image.new("L", (64, 64)).save(source)
    study = Study("Example_Anna", "Example", "train", (source,), findings="Clear.", impression="Clear.")
    small = ImageCache(tmp_path / "images", 32).fetch(study, source)
    assert small.exists() and graphs.read(["Mrs Example has a nodule."])
    for path in [tmp_path / "graphs.sqlite", small]:
        assert b"Example" not in path.read_bytes() and "Example" not in str(path.relative_to(tmp_path))


def test_what_is_wrong_with_a_study_is_said_without_its_report(tmp_path):
    images = (tmp_path / "absent.png",)
    studies = [Study("s1", "p1", "train", images, "Mrs Example has a nodule.", "", indication="Mrs Example.")] * 2
    said = []
    for check in (check_studies, decode_studies, lambda found: check_studies([replace(found[0], images=())])):
        with pytest.raises(ValueError, match="study s1") as error:
            check(studies)
        said.append(str(error.value))
    assert "2 times" in said[0] and "absent.png" in said[1] and "no image" in said[2]
    assert "Example" not in "".join(said)


def test_every_row_of_the_page_is_held_by_tests_that_exist():
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    rows = [line.split(" | ")[0].removeprefix("| ") for line in page.splitlines() if line.startswith("| ")]
    assert [row for row in rows if row not in ("input", "destination", "--")] == [*HELD_BY]
    for name in (name for names in HELD_BY.values() for name in names):
        file, test = name.split("::")
        assert f"def {test}(" in (ROOT / "tests" / f"{file}.py").read_text(encoding="utf-8"), name
