"""Prompts are what the checkpoint's chat template and transformers' image processor make of a study."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from published_processor import PREPROCESSORS, REQUEST, SYSTEM, TEMPLATES, picture, published
from transformers import AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from radflow.data.studies import load_image
from radflow.models.processing import ProcessorConfig, ReportProcessor, prompt_texts

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


@pytest.fixture(scope="module", params=sorted(TEMPLATES))
def checkpoint(request, tmp_path_factory) -> tuple[str, Path]:
    return request.param, published(tmp_path_factory.mktemp("published") / request.param, request.param)


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


def test_real_radiographs_give_transformers_pixels(checkpoint, shared):
    family, folder = checkpoint
    images = [
        load_image(path, study_id="s") for path in sorted((shared / "data/iu_xray_hires/images").rglob("*.*g"))[:2]
    ]
    assert images
    prompt = ReportProcessor.load(folder).prompt("s", images)
    theirs = Qwen2VLImageProcessorPil(**PREPROCESSORS[family])(images, return_tensors="pt")
    assert torch.equal(prompt.pixel_values, theirs["pixel_values"])
