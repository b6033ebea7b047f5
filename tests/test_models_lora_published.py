"""The published sizes of Qwen2.5-VL on the meta device: nothing is allocated, every number is worked by hand."""

from dataclasses import dataclass

import pytest
import torch
from transformers import Qwen2_5_VLConfig

from radflow.models.lora import LoraConfig, adapters, add_lora
from radflow.models.qwen_vl import FAMILIES, QwenVL
from radflow.models.start import ModelConfig
from radflow.pipeline.memory_plan import Load, Sizes, memory

VISION = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "patch_size": 14,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
}


@dataclass(frozen=True)
class Published:
    """Numbers of a config.json, and the parameters that its model page states."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    vocabulary: int
    tied: bool
    kv_heads: int
    parameters: int

    def config(self):
        text = {
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "intermediate_size": self.intermediate,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": self.tied,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        }
        return Qwen2_5_VLConfig(
            text_config=text, vision_config={**VISION, "out_hidden_size": self.hidden}, tie_word_embeddings=self.tied
        )

    def by_hand(self):
        """Embeddings, decoder layers, last norm; patch embedding, vision blocks, merger; head."""
        keys = self.hidden // self.heads * self.kv_heads
        attention = 2 * self.hidden**2 + 2 * self.hidden * keys + self.hidden + 2 * keys  # q, k and v have a bias
        layer = attention + 3 * self.hidden * self.intermediate + 2 * self.hidden
        width, inner = VISION["hidden_size"], VISION["intermediate_size"]
        block = (width * 3 * width + 3 * width) + (width**2 + width) + 2 * width  # qkv, proj, two norms
        block += 2 * (width * inner + inner) + inner * width + width
        merged = 4 * width
        merger = width + merged**2 + merged + merged * self.hidden + self.hidden
        vision = 3 * 2 * 14 * 14 * width + VISION["depth"] * block + merger
        embeddings = self.vocabulary * self.hidden
        return embeddings * (1 if self.tied else 2) + self.layers * layer + self.hidden + vision

    def adapted_by_hand(self, rank):
        """rank x (in + out) of the seven layers, times the decoder layers."""
        keys = self.hidden // self.heads * self.kv_heads
        pairs = [(self.hidden, self.hidden)] * 2 + [(self.hidden, keys)] * 2 + [(self.hidden, self.intermediate)] * 3
        return self.layers * rank * sum(a + b for a, b in pairs)


MODELS = {
    "3B": Published(2048, 36, 16, 11008, 151_936, True, kv_heads=2, parameters=3_754_622_976),
    "7B": Published(3584, 28, 28, 18944, 152_064, False, kv_heads=4, parameters=8_292_166_656),
}


@pytest.fixture(params=sorted(MODELS))
def published(request):
    return MODELS[request.param]


def on_meta(published):
    with torch.device("meta"):
        policy = QwenVL(FAMILIES["qwen2_5_vl"](published.config()))
    policy.model.tie_weights()
    return policy


def test_parameters_blocks_and_lora_targets_are_all_found(published):
    policy = on_meta(published)
    counted = sum(p.numel() for p in policy.parameters())
    assert counted == published.by_hand() == published.parameters
    assert len(policy.blocks()) == 32 + published.layers  # what FSDP wraps one at a time
    names = add_lora(policy, LoraConfig(rank=8), seed=0)
    kinds = {name.split("layers.")[1].split(".", 1)[1] for name in names}
    assert len(names) == 7 * published.layers and len(kinds) == 7
    trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    assert trained == published.adapted_by_hand(8)


def test_vision_and_merger_targets_are_found_too(published):
    policy = on_meta(published)
    names = add_lora(policy, LoraConfig(vision=True, merger=True), seed=0)
    # qkv, proj, gate, up, down of 32 blocks; two layers of the merger
    assert len(names) == len(adapters(policy)) == 7 * published.layers + 5 * 32 + 2


def test_plan_counts_the_same_and_its_memory_is_bytes_by_hand(published):
    sizes = Sizes.of(published.config(), ModelConfig(path="published"))
    assert sizes.parameters == published.parameters and sizes.trained == published.adapted_by_hand(8)
    load = Load(micro_batch=2048, slots=4, cached=2048, prefill=0)
    parts = memory(sizes, ModelConfig(path="published"), load, sharding="replicate", world=1, local=1)
    assert parts["weights"] == pytest.approx(2 * published.parameters / 1e9) and parts["reference"] == 0
    # gradient and two moments, 4 bytes each
    assert parts["gradients and Adam"] == pytest.approx(12 * published.adapted_by_hand(8) / 1e9)
    # 4 slots of 2,048 tokens, keys and values of 128 in 2 bytes for each kv head and layer
    cached = 4 * 2048 * 2 * 128 * 2 * published.kv_heads * published.layers
    assert parts["rollout"] == pytest.approx(cached / 1e9)
