"""A small Qwen-VL from its config, with a tokenizer trained on the corpus, written in the published layout."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import GenerationConfig, PreTrainedTokenizerFast
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from radflow.models.processing import ProcessorConfig, ReportProcessor, prompt_texts
from radflow.models.qwen_vl import FAMILIES, QwenVL

FIXED = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
LEAST_VOCAB = 256 + len(FIXED["special_tokens"])


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
        sizes = {name: value for name, value in vars(self).items() if name != "family"}
        if small := [name for name, value in sizes.items() if value < 1]:
            raise ValueError(f"expected {small[0]} of at least 1, got {sizes[small[0]]}")
        if self.hidden_size % (8 * self.heads) or self.heads % self.kv_heads or self.vision_hidden % 64:
            raise ValueError(
                "expected hidden_size a multiple of 8 x heads, heads a multiple of kv_heads and vision_hidden of 64, "
                f"got {self.hidden_size}, {self.heads}, {self.kv_heads} and {self.vision_hidden}"
            )
        if self.vocab_size < LEAST_VOCAB:
            raise ValueError(f"expected vocab_size of at least {LEAST_VOCAB}, got {self.vocab_size}")


def build_tiny(directory: Path, corpus: Sequence[str], config: TinyConfig, *, seed: int) -> None:
    """Write a randomly initialised checkpoint: config, safetensors, tokenizer, preprocessor config, chat template."""
    # The request itself is part of every prompt: repeated, so that its words get merges too.
    tokenizer = train_tokenizer([*corpus, *prompt_texts() * 20], config.vocab_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FAMILIES[config.family](architecture(config, tokenizer))
    model.generation_config = GenerationConfig(**_ids(tokenizer, "text_tokens"), pad_token_id=tokenizer.pad_token_id)
    QwenVL(model).save(directory, ReportProcessor(tokenizer, image_processor(config), ProcessorConfig()))


def image_processor(config: TinyConfig) -> Qwen2VLImageProcessorPil:
    """As published for the family: patches of 14, of 16 since Qwen3-VL."""
    if config.family != "qwen3_vl":
        return Qwen2VLImageProcessorPil(patch_size=14, merge_size=2, temporal_patch_size=2)
    half = [0.5, 0.5, 0.5]
    return Qwen2VLImageProcessorPil(patch_size=16, merge_size=2, temporal_patch_size=2, image_mean=half, image_std=half)


def train_tokenizer(corpus: Sequence[str], vocab_size: int) -> Any:
    """Byte-level BPE with Qwen2's pre-tokenisation and its special tokens."""
    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(FIXED["words"]), behavior="isolated")
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_only])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet, special = sorted(pre_tokenizers.ByteLevel.alphabet()), FIXED["special_tokens"]
    size = vocab_size - len(special)
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_special_tokens(special)  # last, as in the published vocabularies
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=[token for token in special if token not in ("<|im_end|>", "<|endoftext|>")],
        chat_template=FIXED["chat_template"],
        model_max_length=32768,
        clean_up_tokenization_spaces=False,
    )


def architecture(config: TinyConfig, tokenizer: Any) -> Any:
    """The config of the model, of transformers' class for its family."""
    return FAMILIES[config.family].config_class(
        text_config=_text(config, tokenizer),
        vision_config=_vision(config),
        **FIXED["model"],
        **_ids(tokenizer, "model_tokens"),
    )


def _ids(tokenizer: Any, table: str) -> dict[str, int]:
    return {key: tokenizer.convert_tokens_to_ids(token) for key, token in FIXED[table].items()}


def _text(config: TinyConfig, tokenizer: Any) -> dict[str, object]:
    head_dim = config.hidden_size // config.heads
    quarter = head_dim // 8
    # temporal, height and width share the half head dimension 1 : 1.5 : 1.5, as in the published models
    spatial = quarter + quarter // 2
    sections = [head_dim // 2 - 2 * spatial, spatial, spatial]
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": sections}
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": config.hidden_size,
        "intermediate_size": config.hidden_size * 3,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "max_position_embeddings": 32768,
        "rope_parameters": rope,
        **FIXED["model"],
        **_ids(tokenizer, "text_tokens"),
    }
    if config.family == "qwen3_vl":
        text["head_dim"], rope["mrope_interleaved"] = head_dim, True
    return text


def _vision(config: TinyConfig) -> dict[str, object]:
    width, depth = config.vision_hidden, config.vision_depth
    common = {**FIXED["vision"], "depth": depth, "num_heads": width // 32}
    if config.family == "qwen2_vl":  # its names: embed_dim inside, hidden_size towards the language model
        return {**common, "embed_dim": width, "hidden_size": config.hidden_size, "mlp_ratio": 3, "patch_size": 14}
    common |= {"hidden_size": width, "intermediate_size": width * 3, "out_hidden_size": config.hidden_size}
    if config.family == "qwen3_vl":
        deepstack = list(range(min(depth, config.layers) - 1))
        return {**common, "patch_size": 16, "num_position_embeddings": 16**2, "deepstack_visual_indexes": deepstack}
    return {**common, "patch_size": 14, "window_size": 112, "fullatt_block_indexes": list(range(depth))}
