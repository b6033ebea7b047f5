"""`train.py export`: files that others load, greedy as evaluated, and a card that says only what it may."""

import dataclasses
import json
import os
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, GenerationConfig

from capo.journal import write_json
from capo.sampling import SamplingConfig
from radflow import train
from radflow.data.corpus import Corpus, DataConfig, load_corpus
from radflow.models.adapter_files import load_adapter, read_config
from radflow.models.export import export_merged, generation_config
from radflow.models.loading import read_json
from radflow.models.model_card import (
    Card,
    fence,
    front_matter,
    hide_folders,
    inline,
    license_of,
    name_with_commit,
    render,
)
from radflow.models.processing import ProcessorConfig, ReportProcessor
from radflow.models.qwen_vl import load
from radflow.models.start import ModelConfig
from radflow.models.tiny import TinyConfig, build_tiny
from radflow.models.training_data import TrainingData
from radflow.pipeline.export import read_request
from radflow.pipeline.generation import ReportWriter, build_prompt, suppressed_mask
from radflow.pipeline.run import training_data
from radflow.pipeline.run_config import Config, note_checkpoint
from radflow.pipeline.run_config import read_config as read_run_config

SMALL = [
    "--data.num-train",
    "12",
    "--data.num-test",
    "4",
    "--data.image-size",
    "56",
    "--warmup.steps",
    "0",
    "--sft.steps",
    "4",
    "--sft.batch-size",
    "4",
    "--explore.part-size",
    "5",
    "--explore.fraction",
    "0.5",
    "--rl.steps",
    "2",
    "--rl.studies-per-step",
    "3",
    "--rl.optimizer.lr",
    "0.01",
    "--rl.optimizer.warmup-steps",
    "0",
    "--sft.optimizer.lr",
    "0.01",
    "--sft.optimizer.warmup-steps",
    "0",
    "--rollout.max-new-tokens",
    "12",
    "--evaluate.max-new-tokens",
    "12",
    "--evaluate.baseline-sample",
    "3",
    "--model.training",
    "lora",
    "--model.lora.vision",
    "True",
]


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory, studies):
    folder = tmp_path_factory.mktemp("base") / "model"
    sizes = TinyConfig(hidden_size=64, layers=2, vision_hidden=64, vision_depth=1, vocab_size=400)
    build_tiny(folder, [study.report for study in studies], sizes, seed=0)
    return folder


@pytest.fixture(scope="module")
def finished(base_dir, tmp_path_factory):
    """A LoRA run, to its end: SFT adapter, RL adapter, export."""
    folder = tmp_path_factory.mktemp("runs") / "lora"
    config = str(Path(train.__file__).parent / "configs" / "demo.yaml")
    train.main(["--config", config, "--run-dir", str(folder), "--model.path", str(base_dir), *SMALL])
    return folder


def test_models_and_exports_say_what_they_were_trained_on(finished, studies):
    merged = finished / "export" / "rl" / "merged"
    # nothing is recorded of the base, so this is no model that saw synthetic images only
    base, phantoms = TrainingData("model", synthetic=False), TrainingData("12 chest phantoms", synthetic=True)
    assert ReportProcessor.load(merged).trained_on == (base, phantoms)
    data = DataConfig(source="manifest", manifest=Path("/data/mimic.jsonl"))
    config, corpus = Config(data=data, model=ModelConfig(path=str(merged))), Corpus(tuple(studies[:7]), ())
    real = TrainingData("7 studies of mimic.jsonl", synthetic=False)
    assert training_data(config, corpus, merged) == [base, phantoms, real]
    scratch = Config(model=ModelConfig(training="full"))
    assert training_data(scratch, corpus, merged) == [TrainingData("7 chest phantoms", synthetic=True)]


def refused(*argv):
    with pytest.raises(SystemExit) as stopped:
        train.main(["export", *map(str, argv)])
    return str(stopped.value.code)


def test_the_adapter_and_the_merged_model_of_a_run_are_its_policy(finished, base_dir, states, studies):
    export = finished / "export" / "rl"
    assert {path.name for path in export.iterdir()} == {"adapter", "digests.json", "merged"}
    policy, processor = load(finished / "rl" / "model"), ReportProcessor.load(base_dir, ProcessorConfig())
    prompt = build_prompt(processor, studies[0])
    expected = states(policy, prompt)
    assert torch.equal(states(load(export / "merged"), prompt), expected)
    base = load(base_dir)
    assert (states(base, prompt) - expected).abs().max() > 1e-2
    # The run's own RL adapter is made for its SFT policy; the exported one, of both ranks, for the base.
    assert read_config(finished / "sft" / "adapter")[1] == str(base_dir)
    assert read_config(finished / "rl" / "adapter")[1] == str(finished / "sft" / "model")
    config = load_adapter(base, export / "adapter")
    assert config.rank == 16 and read_config(export / "adapter")[1] == str(base_dir)
    torch.testing.assert_close(states(base, prompt), expected, atol=1e-4, rtol=1e-4)
    sft = load(finished / "sft" / "model")
    load_adapter(sft, finished / "rl" / "adapter")
    torch.testing.assert_close(states(sft, prompt), expected, atol=1e-5, rtol=1e-5)


def test_vision_adapters_learn_under_capo_too(finished):
    """Features computed once a step, as for a frozen tower, would leave them at 0."""
    weights = load_file(finished / "rl" / "adapter" / "adapter_model.safetensors")
    vision = [tensor for name, tensor in weights.items() if "visual" in name and "lora_B" in name]
    assert len(vision) == 5 and all(tensor.abs().max() > 0 for tensor in vision)


def test_transformers_writes_the_reports_of_the_evaluation_by_default(finished, studies):
    merged = finished / "export" / "rl" / "merged"
    policy, processor = load(merged), ReportProcessor.load(merged, ProcessorConfig())
    sampling = SamplingConfig(temperature=0.0, max_new_tokens=12)
    ours = [r for r, _ in ReportWriter(policy, processor, sampling, slots=4).write(studies[:4], title="x")]
    theirs = AutoModelForImageTextToText.from_pretrained(merged)
    for study, report in zip(studies[:4], ours, strict=True):
        prompt = build_prompt(processor, study)
        ids = prompt.input_ids[None]
        written = theirs.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=prompt.pixel_values,
            image_grid_thw=prompt.image_grid_thw,
            mm_token_type_ids=(ids == processor.image_id).int(),
        )
        assert processor.decode(written[0, ids.shape[1] :]) == report


def test_generation_config_is_greedy_and_bans_what_the_run_banned(finished):
    model = finished / "rl" / "model"
    # as in a published config: another decoding than the one evaluated
    assert not json.loads((model / "generation_config.json").read_text()).get("suppress_tokens")
    config = GenerationConfig.from_pretrained(finished / "export" / "rl" / "merged")
    suppressed = suppressed_mask(load(model), ReportProcessor.load(model, ProcessorConfig()))
    assert config.suppress_tokens == suppressed.nonzero()[:, 0].tolist()
    assert not config.do_sample and config.max_new_tokens == 12
    assert generation_config(model, max_new_tokens=7).max_new_tokens == 7


def test_another_type_is_written_shard_by_shard_and_said_everywhere(policy, processor, tmp_path):
    policy.model.save_pretrained(tmp_path / "sharded", max_shard_size="2MB")
    processor.save(tmp_path / "sharded")
    export_merged(tmp_path / "sharded", tmp_path / "half", dtype=torch.bfloat16, max_new_tokens=5)
    shards = sorted(path.name for path in (tmp_path / "half").glob("*.safetensors"))
    assert len(shards) > 2 and shards == sorted(path.name for path in (tmp_path / "sharded").glob("*.safetensors"))
    whole = load(tmp_path / "half", dtype=None)
    for (name, tensor), full in zip(whole.state_dict().items(), policy.state_dict().values(), strict=True):
        assert tensor.dtype == torch.bfloat16 and torch.equal(tensor, full.to(torch.bfloat16)), name
    index = json.loads((tmp_path / "half" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(
        t.nbytes for name in shards for t in load_file(tmp_path / "half" / name).values()
    )
    assert json.loads((tmp_path / "half" / "config.json").read_text())["text_config"]["dtype"] == "bfloat16"


def test_unchanged_weights_take_no_second_place_on_disk(finished):
    files = [finished / "rl" / "model", finished / "export" / "rl" / "merged"]
    first, second = (os.stat(folder / "model.safetensors") for folder in files)
    assert first.st_ino == second.st_ino


def test_export_of_the_sft_stage_to_a_folder(finished, tmp_path, capsys):
    train.main(
        [
            "export",
            str(finished),
            "--stage",
            "sft",
            "--what",
            "adapter",
            "--out",
            str(tmp_path / "out"),
            "--dtype",
            "bfloat16",
        ]
    )
    assert "adapter of stage sft in" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["adapter"]
    weights = load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert "after supervised fine-tuning" in (tmp_path / "out" / "adapter" / "README.md").read_text()


def test_impossible_exports_are_refused(finished, tmp_path):
    assert "holds something; choose another one" in refused(finished)  # the run has exported itself already
    assert "expected the folder of a run" in refused(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.yaml").write_text((finished / "config.yaml").read_text())
    assert "stage sft has no model yet" in refused(other, "--stage", "sft")
    (tmp_path / "full" / "rl").mkdir(parents=True)
    (tmp_path / "full" / "config.yaml").write_text((finished / "config.yaml").read_text())
    (tmp_path / "full" / "rl" / "model").symlink_to(finished / "rl" / "model")
    assert "trained all weights, there is no adapter" in refused(tmp_path / "full", "--what", "both")


def front(text):
    _, matter, body = text.split("---\n", 2)
    return yaml.safe_load(matter), body


def test_card_holds_counts_and_metrics_and_no_text_of_a_study(finished):
    rows = [json.loads(line) for line in (finished / "criticality.jsonl").read_text().splitlines()]
    references = json.loads((finished / "eval" / "references.json").read_text())
    written = json.loads((finished / "eval" / "capo.json").read_text())
    for kind in ("adapter", "merged"):
        text = (finished / "export" / "rl" / kind / "README.md").read_text()
        matter, body = front(text)
        assert matter["library_name"] == {"adapter": "peft", "merged": "transformers"}[kind]
        assert matter["license"] == "other" and "base_model" not in matter  # a directory is no hub id
        assert "- studies trained on, supervised: 12\n- of these hard, reinforced: 6\n" in body
        assert f"- of the training studies critical: {sum(row['critical'] for row in rows)}\n" in body
        assert "- held out, split test: 4 studies" in body and "Not for clinical use" in body
        assert (finished / "eval" / "table.md").read_text().strip() in body
        assert "Report this chest radiograph: Findings and Impression." in body
        assert str(finished.parent) not in body
        # an untrained model writes a full stop, which is no text of a study
        texts = [entry["report"] for reports in (references, written) for entry in reports.values()]
        assert not [report for report in texts if len(report) > 9 and report in text]


def test_no_exported_file_holds_a_sentence_or_an_id_of_a_study(finished):
    config = read_run_config(Config, finished / "config.yaml")
    corpus = load_corpus(config.data, seed=config.seed)
    studies = [*corpus.train, *corpus.test]
    sentences = {part.strip().encode() for study in studies for part in study.report.split(".") if " " in part.strip()}
    ids = {study.id.encode() for study in studies}
    files = [path for path in (finished / "export").rglob("*") if path.is_file()]
    assert len(files) > 8 and len(sentences) > 12 and len(ids) == 16
    for path in files:
        content = path.read_bytes()
        assert not [one for one in sentences | ids if one in content], path.name


CARD = Card(
    kind="merged",
    stage="rl",
    base="",
    terms={"license": "other"},
    rank=None,
    request="Report this.",
    pixels=(1, 2),
    data={"source": "s"},
    metrics="| a |\n| --- |\n| 1 |",
    config="a: 1",
    versions={"torch": "2"},
)


@settings(max_examples=60, deadline=None)
@given(st.text(), st.sampled_from(["\n---\n", "```\n# head", "</p><script>", "| a | b |", "{{x}}", "\x1b[0m\r\n"]))
def test_no_setting_breaks_out_of_its_place(text, nasty):
    value = text + nasty + text
    card = dataclasses.replace(
        CARD, base=value, data={value: value}, request=value, config=yaml.safe_dump({"x": value}), versions={"v": value}
    )
    rendered = render(card)
    matter, body = front(rendered)
    assert matter == front(render(CARD))[0]
    headings = [line for line in outside_code(body) if line.startswith("#")]
    assert headings == [line for line in outside_code(front(render(CARD))[1]) if line.startswith("#")]
    shown = "\n".join(outside_code(body))
    assert "<script" not in shown and "\x1b" not in shown


def outside_code(text):
    """Lines outside fenced blocks, by the rule of CommonMark: a fence ends with one at least as long."""
    lines, fence = [], ""
    for line in text.split("\n"):
        marks = len(line) - len(line.lstrip("`"))
        if not fence and marks >= 3:
            fence = "`" * marks
        elif fence and marks >= len(fence) and not line.strip("`").strip():
            fence = ""
        elif not fence:
            lines.append(line)
    assert not fence
    return lines


def test_plain_words_and_fences_by_hand():
    assert fence("a\n````\nb", "yaml") == "`````yaml\na\n````\nb\n`````"
    assert inline("a|b\n<c> *d*") == r"a\|b &lt;c&gt; \*d\*"
    assert hide_folders("Qwen/Qwen2.5-VL-3B-Instruct") == "Qwen/Qwen2.5-VL-3B-Instruct"
    assert hide_folders("/home/someone/models/mine") == "mine"


def test_a_model_of_the_hub_is_named_with_the_commit_that_was_read(tmp_path):
    cached = tmp_path / "models--Some--Model-3B" / "snapshots" / ("1" * 40)
    for name in ("Some/Model-3B", "Some/Model-3B@main"):
        assert name_with_commit(name, cached) == f"Some/Model-3B@{'1' * 40}"
    assert name_with_commit("/home/someone/models/mine", Path("/home/someone/models/mine")) == "mine"
    write_json(tmp_path / "environment.json", {"commit": "c"})
    note_checkpoint(tmp_path, "Some/Model-3B@1")
    assert read_json(tmp_path / "environment.json") == {"commit": "c", "checkpoint": "Some/Model-3B@1"}


def test_hub_id_and_the_base_models_license_go_to_the_front_matter(tmp_path):
    matter = yaml.safe_load(front_matter(dataclasses.replace(CARD, base="Qwen/Qwen2.5-VL-3B-Instruct")))
    assert matter["base_model"] == "Qwen/Qwen2.5-VL-3B-Instruct" and matter["base_model_relation"] == "finetune"
    card = dataclasses.replace(CARD, kind="adapter", base=f"Some/Model-3B@{'1' * 40}", rank=8)
    assert yaml.safe_load(front_matter(card))["base_model"] == "Some/Model-3B"
    assert f"from_pretrained('Some/Model-3B', revision='{'1' * 40}')" in render(card)
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\nlicense_link: LICENSE\n---\n# Base\n")
    assert license_of(tmp_path) == {"license": "apache-2.0", "license_link": "LICENSE"}
    assert license_of(tmp_path / "nowhere")["license"] == "other"


def test_request_is_what_the_prompt_asks(processor):
    assert read_request(processor) == "Report this chest radiograph: Findings and Impression."
