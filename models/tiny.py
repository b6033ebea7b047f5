"""A small Qwen-VL from its config, with a tokenizer trained on the corpus, written in the published layout."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import GenerationConfig, PretrainedConfig, PreTrainedTokenizerFast
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from models.processing import ProcessorConfig, ReportProcessor, prompt_texts
from models.qwen_vl import FAMILIES, QwenVL

SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
# How Qwen2 cuts text before byte-pair merges: contractions, words, single digits, punctuation, line breaks.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% if message.content is string %}"
    "{{ message.content }}{% else %}{% for part in message.content %}{% if part.type == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


# Qwen's 0.02 suits widths in the thousands; at a width of 192 it leaves activations so small that learning starts late.
INITIALIZER_RANGE = 0.06


@dataclass(frozen=True)
class TinyConfig:
    """Sizes of the small model; the defaults give about 3 M parameters."""

    family: Literal["qwen2_vl", "qwen2_5_vl", "qwen3_vl"] = "qwen2_5_vl"
    """Architecture of the model."""
    hidden_size: int = 192
    """Width of the language model, a multiple of 8 x heads."""
    layers: int = 4
    """Decoder layers."""
    heads: int = 4
    """Attention heads."""
    kv_heads: int = 2
    """Heads of keys and values; divides heads."""
    vision_hidden: int = 128
    """Width of the vision tower."""
    vision_depth: int = 3
    """Blocks of the vision tower, all with attention over the whole image."""
    vocab_size: int = 1500
    """Tokens of the byte-level BPE, special tokens included; a small corpus may fill fewer."""

    def __post_init__(self) -> None:
        if self.hidden_size % (8 * self.heads) or self.heads % self.kv_heads or self.vision_hidden % 64:
            raise ValueError(
                "expected hidden_size a multiple of 8 x heads, heads a multiple of kv_heads and vision_hidden of 64, "
                f"got {self.hidden_size}, {self.heads}, {self.kv_heads} and {self.vision_hidden}"
            )
        if self.vocab_size < 256 + len(SPECIAL_TOKENS):
            raise ValueError(f"expected vocab_size of at least {256 + len(SPECIAL_TOKENS)}, got {self.vocab_size}")


def build_tiny(directory: Path, corpus: Sequence[str], config: TinyConfig, *, seed: int) -> None:
    """Write a randomly initialised checkpoint: config, safetensors, tokenizer, preprocessor config, chat template."""
    # The request itself is part of every prompt: repeated, so that its words get merges too.
    tokenizer = train_tokenizer([*corpus, *prompt_texts() * 20], config.vocab_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FAMILIES[config.family](architecture(config, tokenizer))
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.convert_tokens_to_ids("<|endoftext|>"),
        eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
        pad_token_id=tokenizer.pad_token_id,
    )
    QwenVL(model).save(directory, ReportProcessor(tokenizer, image_processor(config), ProcessorConfig()))


def image_processor(config: TinyConfig) -> Qwen2VLImageProcessorPil:
    """As published for the family: patches of 14, of 16 since Qwen3-VL."""
    if config.family != "qwen3_vl":
        return Qwen2VLImageProcessorPil(patch_size=14, merge_size=2, temporal_patch_size=2)
    half = [0.5, 0.5, 0.5]
    return Qwen2VLImageProcessorPil(patch_size=16, merge_size=2, temporal_patch_size=2, image_mean=half, image_std=half)


def train_tokenizer(corpus: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE with Qwen2's pre-tokenisation and its special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    # Special tokens last, as in the published vocabularies.
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=[t for t in SPECIAL_TOKENS if t not in ("<|im_end|>", "<|endoftext|>")],
        chat_template=CHAT_TEMPLATE,
        model_max_length=32768,
        clean_up_tokenization_spaces=False,
    )


def architecture(config: TinyConfig, tokenizer: PreTrainedTokenizerFast) -> PretrainedConfig:
    special = tokenizer.convert_tokens_to_ids
    return FAMILIES[config.family].config_class(
        text_config=_text(config, tokenizer),
        vision_config=_vision(config),
        initializer_range=INITIALIZER_RANGE,
        tie_word_embeddings=True,
        image_token_id=special("<|image_pad|>"),
        video_token_id=special("<|video_pad|>"),
        vision_start_token_id=special("<|vision_start|>"),
        vision_end_token_id=special("<|vision_end|>"),
    )


def _text(config: TinyConfig, tokenizer: PreTrainedTokenizerFast) -> dict[str, object]:
    head_dim = config.hidden_size // config.heads
    quarter = head_dim // 8
    # temporal, height and width share the half head dimension 1 : 1.5 : 1.5, as in the published models
    spatial = quarter + quarter // 2
    rope = {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [head_dim // 2 - 2 * spatial, spatial, spatial],
    }
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": config.hidden_size,
        "intermediate_size": config.hidden_size * 3,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "max_position_embeddings": 32768,
        "rope_parameters": rope,
        "initializer_range": INITIALIZER_RANGE,
        "tie_word_embeddings": True,
        "bos_token_id": tokenizer.convert_tokens_to_ids("<|endoftext|>"),
        "eos_token_id": tokenizer.convert_tokens_to_ids("<|im_end|>"),
    }
    if config.family == "qwen3_vl":
        text["head_dim"], rope["mrope_interleaved"] = head_dim, True
    return text


def _vision(config: TinyConfig) -> dict[str, object]:
    common = {
        "initializer_range": INITIALIZER_RANGE,
        "depth": config.vision_depth,
        "num_heads": config.vision_hidden // 32,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    if config.family == "qwen2_vl":  # its names: embed_dim inside, hidden_size towards the language model
        own = {"embed_dim": config.vision_hidden, "hidden_size": config.hidden_size, "mlp_ratio": 3, "patch_size": 14}
        return {**common, **own}
    common |= {
        "hidden_size": config.vision_hidden,
        "intermediate_size": config.vision_hidden * 3,
        "out_hidden_size": config.hidden_size,
    }
    if config.family == "qwen3_vl":
        deepstack = list(range(min(config.vision_depth, config.layers) - 1))
        return {
            **common, "patch_size": 16, "num_position_embeddings": 16**2, "deepstack_visual_indexes": deepstack
        }  # fmt: skip
    every_block = list(range(config.vision_depth))
    return {**common, "patch_size": 14, "window_size": 112, "fullatt_block_indexes": every_block}
