"""Prompts are what the checkpoint's chat template and transformers' image processor make of a study."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from radflow.data.studies import load_image
from radflow.models.loading import load_image_processor, tokens_of_largest_image
from radflow.models.processing import SETTINGS, ProcessorConfig, ReportProcessor, prompt_texts
from radflow.models.tiny import TinyConfig, build_tiny

# What the published templates render for turns of text and images; Qwen2-VL's and Qwen2.5-VL's is the same.
TURN = (
    "<|im_start|>{{ turn.role }}\n{% if turn.content is string %}{{ turn.content }}{% else %}"
    "{% for item in turn.content %}{% if item.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in item %}{{ item.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
)
OPENING = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
HELPFUL = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
QWEN2 = (
    f"{{% for turn in messages %}}{{% if loop.first and turn.role != 'system' %}}{HELPFUL}{{% endif %}}"
    f"{TURN}{{% endfor %}}{OPENING}"
)
QWEN3 = f"{{% for turn in messages %}}{TURN}{{% endfor %}}{OPENING}"
TEMPLATES = {"qwen2_vl": QWEN2, "qwen2_5_vl": QWEN2, "qwen3_vl": QWEN3}
SYSTEM = {"qwen2_vl": HELPFUL, "qwen2_5_vl": HELPFUL, "qwen3_vl": ""}
# As published, but for the upper limit, which is 12,845,056 and 16,777,216 there: larger than a test needs.
PREPROCESSORS = {
    "qwen2_vl": {
        "min_pixels": 3136,
        "max_pixels": 401408,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2VLProcessor",
    },
    "qwen3_vl": {
        "size": {"longest_edge": 401408, "shortest_edge": 65536},
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "processor_class": "Qwen3VLProcessor",
    },
}
PREPROCESSORS["qwen2_5_vl"] = PREPROCESSORS["qwen2_vl"]
SIZES = [
    (1, 1),
    (1, 2),
    (1, 200),
    (200, 1),
    (2, 399),
    (5, 1000),
    (1000, 5),
    (14, 14),
    (27, 29),
    (28, 28),
    (29, 27),
    (32, 32),
    (33, 31),
    (41, 43),
    (55, 57),
    (56, 56),
    (64, 64),
    (70, 98),
    (84, 84),
    (98, 70),
    (100, 1),
    (112, 500),
    (224, 224),
    (255, 257),
    (300, 200),
    (512, 512),
    (640, 480),
    (640, 641),
    (30, 2500),
    (1200, 900),
]
REQUEST = "Report this chest radiograph: Findings and Impression."


def published(folder: Path, family: str) -> Path:
    """Files beside the weights as the hub has them."""
    sizes = {"hidden_size": 64, "layers": 1, "heads": 2, "kv_heads": 1, "vision_hidden": 64, "vision_depth": 2}
    build_tiny(folder, [REQUEST, "Findings: Clear."] * 5, TinyConfig(family=family, vocab_size=400, **sizes), seed=0)
    for name in (SETTINGS, "chat_template.jinja", "model.safetensors"):
        (folder / name).unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATES[family]}))
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSORS[family]))
    return folder


@pytest.fixture(scope="module", params=sorted(TEMPLATES))
def checkpoint(request, tmp_path_factory) -> tuple[str, Path]:
    return request.param, published(tmp_path_factory.mktemp("published") / request.param, request.param)


@pytest.fixture
def copied(checkpoint, tmp_path) -> tuple[str, Path]:
    return checkpoint[0], Path(shutil.copytree(checkpoint[1], tmp_path / "copied"))


def picture(height, width, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def expanded(text: str, counts) -> str:
    """One placeholder in the text for each image -> as many as it has tokens, as transformers' processors do it."""
    first, *others = text.split("<|image_pad|>")
    assert len(others) == len(counts)
    return first + "".join("<|image_pad|>" * count + after for count, after in zip(counts, others, strict=True))


def vision(count: int) -> str:
    return f"<|vision_start|>{'<|image_pad|>' * count}<|vision_end|>"


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pixels_and_token_ids_equal_transformers_for_every_size(checkpoint, size):
    family, folder = checkpoint
    processor, image = ReportProcessor.load(folder), picture(*size)
    prompt = processor.prompt("s", [image], indication="Cough.")
    images = Qwen2VLImageProcessorPil(**PREPROCESSORS[family])
    theirs = images([image], return_tensors="pt")
    assert torch.equal(prompt.pixel_values, theirs["pixel_values"])
    assert torch.equal(prompt.image_grid_thw, theirs["image_grid_thw"])
    side = 2 * PREPROCESSORS[family]["patch_size"]
    low, high = (3136, 401408) if family != "qwen3_vl" else (65536, 401408)
    height, width = smart_resize(*size, factor=side, min_pixels=low, max_pixels=high)
    count = height * width // side**2
    assert count >= 1 and (prompt.input_ids == processor.image_id).sum() == count
    content = [{"type": "image"}, {"type": "text", "text": "Indication: Cough.\n"}, {"type": "text", "text": REQUEST}]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATES[family]
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    assert prompt.input_ids.tolist() == tokenizer(expanded(rendered, [count]))["input_ids"]


def test_a_prompt_with_everything_by_hand(checkpoint):
    family, folder = checkpoint
    images = [picture(60, 90, 1), picture(200, 60, 2), picture(97, 120, 3)]
    prompt = ReportProcessor.load(folder).prompt(
        "s", images[:2], prior_images=images[2:], indication="Cough. ", comparison=" 2019\n"
    )
    one, two, three = (prompt.image_grid_thw.prod(-1) // 4).tolist()
    text = (
        f"{SYSTEM[family]}<|im_start|>user\n{vision(one)}{vision(two)}Prior study: {vision(three)}"
        f"Indication: Cough. \nComparison:  2019\n\n{REQUEST}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert prompt.input_ids.tolist() == AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    images = Qwen2VLImageProcessorPil(**PREPROCESSORS[family])(images, return_tensors="pt")
    assert torch.equal(prompt.pixel_values, images["pixel_values"])  # in the order of the prompt
    assert prompt.pixel_values.dtype == torch.float32 and prompt.num_tokens == len(prompt.input_ids)


def test_own_prompt_order_views_and_system_turn(checkpoint):
    _, folder = checkpoint
    config = ProcessorConfig(
        prompt=(
            "Before: {prior_images}\n",
            "Views {{in order}}: {views}.\n",
            "{images}",
            "Klinik: {indication}. Befund?",
        ),
        system="Du bist Radiologe.",
    )
    processor, now, before = ReportProcessor.load(folder, config), picture(60, 90, 1), picture(200, 60, 2)
    prompt = processor.prompt("s", [now], prior_images=[before], views=["frontal", "lateral"], indication="Husten")
    earlier, later = (prompt.image_grid_thw.prod(-1) // 4).tolist()
    head = "<|im_start|>system\nDu bist Radiologe.<|im_end|>\n<|im_start|>user\n"
    tail = "<|im_end|>\n<|im_start|>assistant\n"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    asked = f"Before: {vision(earlier)}\nViews {{in order}}: frontal, lateral.\n{vision(later)}Klinik: Husten. Befund?"
    assert prompt.input_ids.tolist() == tokenizer(head + asked + tail)["input_ids"]
    processed = processor.image_processor([before, now], return_tensors="pt")
    assert torch.equal(prompt.pixel_values, processed["pixel_values"])
    # what a study lacks leaves no trace: no heading, no comma
    bare = processor.prompt("s", [now]).input_ids.tolist()
    assert bare == tokenizer(head + vision(later) + tail)["input_ids"]


def test_the_carotid_task_asks_for_an_ultrasound(checkpoint):
    processor = ReportProcessor.load(checkpoint[1], ProcessorConfig(task="carotid_us"))
    text = processor.tokenizer.decode(processor.prompt("s", [picture(56, 56)]).input_ids)
    assert "Report this carotid ultrasound: Findings and Impression.<|im_end|>" in text and "radiograph" not in text


SPECIAL = ["<|im_end|>", "<|im_start|>", "<|image_pad|>", "<|vision_start|>", "<|endoftext|>", "<tool_call>"]


@pytest.fixture(scope="module")
def with_tool_calls(tmp_path_factory) -> ReportProcessor:
    """Qwen's tokenizers have tokens that they do not call special too."""
    processor = ReportProcessor.load(published(tmp_path_factory.mktemp("tools") / "c", "qwen2_5_vl"))
    processor.tokenizer.add_tokens(["<tool_call>"])
    return ReportProcessor(processor.tokenizer, processor.image_processor, ProcessorConfig())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(SPECIAL), st.text(max_size=6)), max_size=6).map("".join))
def test_no_text_brings_a_special_token_in_or_loses_a_character(with_tool_calls, text):
    processor, image = with_tool_calls, picture(56, 56)
    special = processor.tokenizer.added_tokens_decoder
    ids = processor.prompt("s", [image], indication=text or "x").input_ids.tolist()
    plain = processor.prompt("s", [image], indication="x").input_ids.tolist()
    assert [i for i in ids if i in special] == [i for i in plain if i in special]
    report = processor.encode_report(text)
    assert not set(report[:-1].tolist()) & set(special)
    assert processor.decode(report) == processor.tokenizer.backend_tokenizer.normalizer.normalize_str(text).strip()


def test_reports_are_encoded_as_the_tokenizer_encodes_plain_text(with_tool_calls):
    for text in (
        "Findings: Clear.\n\nImpression: 2.5 cm, 超声.",
        "re\u0301sume\u0301",
    ):  # accents apart: NFC joins them
        expected = with_tool_calls.tokenizer(text)["input_ids"]
        assert with_tool_calls.encode_report(text)[:-1].tolist() == expected


def test_the_tokenizer_of_a_tiny_model_learns_from_these_texts():
    # The ids of a tiny model, and with them every figure of the demo, follow from this list.
    assert sorted(prompt_texts()) == sorted(
        [
            "Report this chest radiograph: Findings and Impression.",
            "Report this carotid ultrasound: Findings and Impression.",
            "Prior study: ",
            "Indication: ",
            "Comparison: ",
            "user\n",
            "assistant\n",
        ]
    )


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        (("Report.",), "expected {images} exactly once"),
        (("{images}", "{images}"), "expected {images} exactly once"),
        (("{images} {views}",), "expected {images} without another field"),
        (("{images}", "{age}"), "prompt part '{age}': expected fields among {images}, {prior_images}, {views}"),
        (("{images}", "{}"), "expected fields among"),
        (("{images}", "{views!r}"), "expected fields among"),
        (("{images}", "a {"), "prompt part 'a {': .*; write a brace of the text twice"),
    ],
)
def test_prompts_that_cannot_be_filled_are_refused(prompt, said):
    with pytest.raises(ValueError, match=said):
        ProcessorConfig(prompt=prompt)


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
    with pytest.raises(ValueError, match="expected settings of the image processor, found none"):
        ReportProcessor.load(folder)
    (folder / "processor_config.json").unlink()
    with pytest.raises(ValueError, match=r"expected preprocessor_config.json or processor_config.json, found neither"):
        ReportProcessor.load(folder)


# --- the chat template


@pytest.mark.parametrize("place", ["chat_template.json", "chat_template.jinja", "tokenizer_config.json"])
def test_the_chat_template_is_found_where_it_was_published(copied, place):
    family, folder = copied
    expected = ReportProcessor.load(folder).prompt("s", [picture(56, 56)]).input_ids
    (folder / "chat_template.json").unlink()
    if place == "chat_template.jinja":
        (folder / place).write_text(TEMPLATES[family])
    else:
        path = folder / place
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


def test_real_radiographs_give_transformers_pixels(checkpoint, shared):
    family, folder = checkpoint
    images = [
        load_image(path, study_id="s") for path in sorted((shared / "data/iu_xray_hires/images").rglob("*.*g"))[:2]
    ]
    assert images
    prompt = ReportProcessor.load(folder).prompt("s", images)
    theirs = Qwen2VLImageProcessorPil(**PREPROCESSORS[family])(images, return_tensors="pt")
    assert torch.equal(prompt.pixel_values, theirs["pixel_values"])
