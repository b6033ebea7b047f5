"""The files of a processor: pixel limits, where a chat template is found, what is refused and what is kept."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from published_processor import PREPROCESSORS, QWEN3, TEMPLATES, picture, published

from radflow.models.loading import load_image_processor, tokens_of_largest_image
from radflow.models.processing import ProcessorConfig, ReportProcessor
from radflow.models.training_data import SETTINGS


@pytest.fixture(scope="module", params=sorted(TEMPLATES))
def checkpoint(request, tmp_path_factory) -> tuple[str, Path]:
    return request.param, published(tmp_path_factory.mktemp("published") / request.param, request.param)


@pytest.fixture
def copied(checkpoint, tmp_path) -> tuple[str, Path]:
    return checkpoint[0], Path(shutil.copytree(checkpoint[1], tmp_path / "copied"))


# --- pixel limits


def test_the_configs_pixel_limits_go_before_the_published_ones(checkpoint):
    family, folder = checkpoint
    image, side = picture(600, 600), 2 * PREPROCESSORS[family]["patch_size"]
    published_count = len(ReportProcessor.load(folder).prompt("s", [image]).pixel_values) // 4
    assert published_count == round(600 / side) ** 2
    small = ReportProcessor.load(folder, ProcessorConfig(max_pixels=120 * 120, min_pixels=56 * 56))
    assert len(small.prompt("s", [image]).pixel_values) // 4 == (120 // side) ** 2
    limits = {"min_pixels": None, "max_pixels": 448 * 448}
    assert tokens_of_largest_image(load_image_processor(folder, **limits)) == 448 * 448 // side**2
    with pytest.raises(ValueError, match="expected max_pixels of at least min_pixels, got 64 and"):
        load_image_processor(folder, min_pixels=None, max_pixels=64)
    with pytest.raises(ValueError, match="max_pixels of at least min_pixels, got 100, 4096, 2048 and 50"):
        ProcessorConfig(min_pixels=100, max_pixels=50)
    with pytest.raises(ValueError, match="of at least 1"):
        ProcessorConfig(max_pixels=0)


def test_a_processor_config_holds_the_image_processor_too(copied):
    _, folder = copied
    image = picture(300, 200)
    expected = ReportProcessor.load(folder).prompt("s", [image])
    nested = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").unlink()
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": nested, "processor_class": "X"}))
    assert torch.equal(ReportProcessor.load(folder).prompt("s", [image]).pixel_values, expected.pixel_values)
    (folder / "processor_config.json").write_text("{}")
    with pytest.raises(ValueError, match="expected settings of the image processor, got"):
        ReportProcessor.load(folder)
    (folder / "processor_config.json").unlink()
    with pytest.raises(ValueError, match=r"expected preprocessor_config.json or processor_config.json, found neither"):
        ReportProcessor.load(folder)


# --- the chat template


@pytest.mark.parametrize("name", ["chat_template.json", "chat_template.jinja", "tokenizer_config.json"])
def test_the_chat_template_is_found_where_it_was_published(copied, name):
    family, folder = copied
    expected = ReportProcessor.load(folder).prompt("s", [picture(56, 56)]).input_ids
    (folder / "chat_template.json").unlink()
    if name == "chat_template.jinja":
        (folder / name).write_text(TEMPLATES[family])
    else:
        path = folder / name
        before = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps({**before, "chat_template": TEMPLATES[family]}))
    assert torch.equal(ReportProcessor.load(folder).prompt("s", [picture(56, 56)]).input_ids, expected)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (
            "",
            "expected a chat template in chat_template.jinja, chat_template.json or tokenizer_config.json, found none",
        ),
        (QWEN3.replace("<|image_pad|>", ""), "that writes <|image_pad|> once for one image, got 0"),
        (QWEN3.replace("assistant\n", "assistant\n<think>\n"), "models that think first .* take the Instruct edition"),
    ],
)
def test_chat_templates_that_leave_no_place_for_image_or_report_are_refused(copied, template, said):
    _, folder = copied
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    with pytest.raises(ValueError, match=said.replace("|", r"\|")) as error:
        ReportProcessor.load(folder)
    assert str(folder) in str(error.value)


def test_the_first_published_tokenizer_files_give_the_same_ids(copied):
    _, folder = copied
    expected = ReportProcessor.load(folder).prompt("s", [picture(56, 56)], indication="Cough, é 2.5").input_ids
    model = json.loads((folder / "tokenizer.json").read_text())
    special = {str(t["id"]): {k: v for k, v in t.items() if k != "id"} for t in model["added_tokens"]}
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "added_tokens_decoder": special,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "bos_token": None,
        "unk_token": None,
        "errors": "replace",
        "additional_special_tokens": [t["content"] for t in special.values()],
        "model_max_length": 32768,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "vocab.json").write_text(json.dumps(model["model"]["vocab"]))
    (folder / "merges.txt").write_text("\n".join(" ".join(pair) for pair in model["model"]["merges"]))
    processor = ReportProcessor.load(folder)
    assert torch.equal(processor.prompt("s", [picture(56, 56)], indication="Cough, é 2.5").input_ids, expected)
    assert set(processor.suppressed_ids) | {processor.eos_id} == {int(i) for i in special}
    (folder / "tokenizer.json").unlink()
    again = ReportProcessor.load(folder).prompt("s", [picture(56, 56)], indication="Cough, é 2.5").input_ids
    assert torch.equal(again, expected)


# --- what is refused, what is kept


@pytest.fixture
def damaged(tiny_dir, tmp_path) -> Path:
    return shutil.copytree(tiny_dir, tmp_path / "damaged")


def edit(path: Path, change) -> None:
    loaded = json.loads(path.read_text())
    change(loaded)
    path.write_text(json.dumps(loaded))


def test_files_of_different_checkpoints_are_refused(damaged):
    edit(damaged / "config.json", lambda c: c.update(image_token_id=7))
    with pytest.raises(ValueError, match=r"expected 7 as id of <\|image_pad\|>, as config.json says, got \d+"):
        ReportProcessor.load(damaged)
    edit(damaged / "config.json", lambda c: c["text_config"].update(vocab_size=300))
    with pytest.raises(ValueError, match=r"damaged: the tokenizer has \d+ tokens and the model 300 embeddings"):
        ReportProcessor.load(damaged)


def test_a_preprocessor_with_other_patches_is_refused(damaged):
    edit(damaged / "preprocessor_config.json", lambda c: c.update(patch_size=16))
    with pytest.raises(ValueError, match=r"expected 14 as side of a patch, as config.json says, got 16"):
        ReportProcessor.load(damaged)


@pytest.mark.parametrize(
    ("file", "key", "value", "said"),
    [
        ("preprocessor_config.json", "resample", None, "`resample` must be specified"),  # only when an image is read
        ("preprocessor_config.json", "patch_size", 10**9, "patch_size 1000000000"),  # would fill the memory there
        ("tokenizer_config.json", "pad_token", "", "a special token without an id among .*'pad_token': ''"),
    ],
)
def test_settings_that_would_fail_when_they_are_used_are_refused_when_they_are_loaded(damaged, file, key, value, said):
    edit(damaged / file, lambda c: c.update({key: value}))
    with pytest.raises(ValueError, match=rf"{file}.*: expected .*, got .*{said}.*; copy it again$"):
        ReportProcessor.load(damaged)


def test_a_tokenizer_without_image_token_and_none_at_all_are_refused(damaged):
    text = (damaged / "tokenizer.json").read_text()
    (damaged / "tokenizer.json").write_text(text.replace("<|image_pad|>", "<|other|>"))
    edit(damaged / "tokenizer_config.json", lambda c: c.pop("extra_special_tokens"))
    with pytest.raises(ValueError, match=r"expected a Qwen-VL tokenizer, its token <\|image_pad\|> is missing"):
        ReportProcessor.load(damaged)
    (damaged / "tokenizer_config.json").unlink()
    with pytest.raises(ValueError, match="expected tokenizer files of a Qwen-VL checkpoint, found none"):
        ReportProcessor.load(damaged)


def test_an_image_longer_than_the_processor_takes_is_refused_by_study(processor):
    with pytest.raises(ValueError, match="study s9: expected images at most 200 times as long as wide, got 201 x 1"):
        processor.prompt("s9", [picture(56, 56), picture(1, 201)])


@pytest.fixture
def gullible(processor, monkeypatch):
    """A processor whose tokenizer does not know `sanitize_control_tokens`, as that of transformers before 5.23."""
    apply = type(processor.tokenizer).apply_chat_template
    monkeypatch.setattr(
        type(processor.tokenizer),
        "apply_chat_template",
        lambda self, chat, sanitize_control_tokens, **options: apply(self, chat, **options),
    )
    return processor


def test_a_tokenizer_that_takes_names_of_control_tokens_for_tokens_is_refused(gullible, tiny_dir):
    with pytest.raises(
        ValueError, match=r"model: expected the name of <\|\w+\|> in a text to stay text, .* got the token 2 times more"
    ):
        ReportProcessor.load(tiny_dir)


def test_an_image_token_without_an_image_is_refused_by_study(gullible):
    with pytest.raises(ValueError, match=r"study s7: expected 2 <\|image_pad\|> in the prompt, .* got 3"):
        gullible.prompt("s7", [picture(56, 56)] * 2, indication="See <|image_pad|>.")


def test_a_saved_model_is_asked_as_it_was_trained(tiny_dir, tmp_path):
    config = ProcessorConfig(
        max_pixels=84 * 84,
        min_pixels=56 * 56,
        task="carotid_us",
        prompt=("{images}", "Befund?"),
        system="é",
        max_prompt_tokens=99,
    )
    trained = ReportProcessor.load(tiny_dir, config)
    trained.save(tmp_path)
    shutil.copy(tiny_dir / "config.json", tmp_path)
    again = ReportProcessor.load(tmp_path)
    asked, wanted = (p.prompt("s", [picture(200, 200)]) for p in (again, trained))
    assert torch.equal(asked.input_ids, wanted.input_ids) and torch.equal(asked.pixel_values, wanted.pixel_values)
    assert again.config.task == "carotid_us" and again.config.max_prompt_tokens == 99
    assert "chat_control_tokens" not in json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert (tmp_path / "chat_template.jinja").read_text() == trained.tokenizer.chat_template
    # a config that is given replaces all of it
    assert ReportProcessor.load(tmp_path, ProcessorConfig()).template[0] == "{images}" != again.template
    (tmp_path / SETTINGS).write_text('{"tasks": 3}')
    with pytest.raises(ValueError, match=r"radflow_prompt.json: expected the settings of a prompt"):
        ReportProcessor.load(tmp_path)
