"""The sizes that were published, built without memory: parameters, and the blocks that sharding wraps."""

import json

import pytest
import torch
from torch import nn

from radflow.models.loading import architecture
from radflow.models.qwen_vl import FAMILIES, QwenVL

FIRST_VISION = {
    "depth": 32,
    "num_heads": 16,
    "in_chans": 3,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "spatial_patch_size": 14,
    "temporal_patch_size": 2,
}
QWEN2_5_VISION = {
    **FIRST_VISION,
    "hidden_act": "silu",
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
    "tokens_per_second": 2,
}
QWEN3_VISION = {
    "depth": 24,
    "num_heads": 16,
    "in_channels": 3,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_position_embeddings": 2304,
    "deepstack_visual_indexes": [5, 11, 17],
    "model_type": "qwen3_vl",
}


def flat(kind, *, hidden, intermediate, layers, heads, kv_heads, vocabulary, tied, vision):
    """config.json as Qwen2-VL and Qwen2.5-VL were published."""
    return {
        "model_type": kind,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "hidden_act": "silu",
        "tie_word_embeddings": tied,
        "image_token_id": 151655,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "max_window_layers": layers,
        "sliding_window": 32768,
        "use_sliding_window": False,
        "torch_dtype": "bfloat16",
        "vision_config": vision,
    }


def nested(*, hidden, intermediate, layers, tied, vision):
    """config.json as Qwen3-VL was published."""
    text = {
        "model_type": "qwen3_vl_text",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "head_dim": 128,
        "num_hidden_layers": layers,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 151936,
        "tie_word_embeddings": tied,
        "rms_norm_eps": 1e-6,
        "rope_theta": 5000000,
        "attention_bias": False,
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
    }
    return {
        "model_type": "qwen3_vl",
        "tie_word_embeddings": tied,
        "image_token_id": 151655,
        "text_config": text,
        "vision_config": {**vision, "out_hidden_size": hidden},
    }


SEVEN = {"hidden": 3584, "intermediate": 18944, "layers": 28, "heads": 28, "kv_heads": 4, "vocabulary": 152064}
PUBLISHED = {
    "Qwen2-VL-2B": (
        2_208_985_600,
        flat(
            "qwen2_vl",
            hidden=1536,
            intermediate=8960,
            layers=28,
            heads=12,
            kv_heads=2,
            vocabulary=151936,
            tied=True,
            vision={**FIRST_VISION, "embed_dim": 1280, "mlp_ratio": 4, "hidden_size": 1536},
        ),
    ),
    "Qwen2-VL-7B": (
        8_291_375_616,
        flat(
            "qwen2_vl",
            **SEVEN,
            tied=False,
            vision={**FIRST_VISION, "embed_dim": 1280, "mlp_ratio": 4, "hidden_size": 3584},
        ),
    ),
    "Qwen2.5-VL-3B": (
        3_754_622_976,
        flat(
            "qwen2_5_vl",
            hidden=2048,
            intermediate=11008,
            layers=36,
            heads=16,
            kv_heads=2,
            vocabulary=151936,
            tied=True,
            vision={**QWEN2_5_VISION, "out_hidden_size": 2048},
        ),
    ),
    "Qwen2.5-VL-7B": (
        8_292_166_656,
        flat("qwen2_5_vl", **SEVEN, tied=False, vision={**QWEN2_5_VISION, "out_hidden_size": 3584}),
    ),
    "Qwen2.5-VL-72B": (
        73_410_777_344,
        flat(
            "qwen2_5_vl",
            hidden=8192,
            intermediate=29568,
            layers=80,
            heads=64,
            kv_heads=8,
            vocabulary=152064,
            tied=False,
            vision={**QWEN2_5_VISION, "intermediate_size": 3456, "out_hidden_size": 8192},
        ),
    ),
    "Qwen3-VL-4B": (4_437_815_808, nested(hidden=2560, intermediate=9728, layers=36, tied=True, vision=QWEN3_VISION)),
    "Qwen3-VL-8B": (
        8_767_123_696,
        nested(
            hidden=4096,
            intermediate=12288,
            layers=36,
            tied=False,
            vision={
                **QWEN3_VISION,
                "depth": 27,
                "hidden_size": 1152,
                "intermediate_size": 4304,
                "deepstack_visual_indexes": [8, 16, 24],
            },
        ),
    ),
}


@pytest.fixture(scope="module", params=sorted(PUBLISHED))
def published(request, tmp_path_factory):
    """Name, parameters as published, the policy on the meta device."""
    parameters, config = PUBLISHED[request.param]
    folder = tmp_path_factory.mktemp("config")
    (folder / "config.json").write_text(json.dumps(config))
    found = architecture(folder)
    with torch.device("meta"):
        policy = QwenVL(FAMILIES[found.model_type](found))
    policy.model.tie_weights()
    return request.param, parameters, config, policy


def test_parameters_are_as_many_as_published(published):
    _, parameters, config, policy = published
    assert sum(p.numel() for p in policy.parameters()) == parameters
    tied = policy.output_weight() is policy.model.get_input_embeddings().weight
    assert tied == config["tie_word_embeddings"]


def test_every_layer_is_one_block_of_sharding(published):
    _, _, config, policy = published
    blocks = policy.blocks()
    text = config.get("text_config", config)
    assert len(blocks) == len(set(blocks)) == config["vision_config"]["depth"] + text["num_hidden_layers"]
    # what is left outside of them, and gathered for the whole forward: embedding, head, patches, mergers, norms
    inside = {id(p) for block in blocks for p in block.parameters()}
    outside = sum(p.numel() for p in policy.parameters() if id(p) not in inside)
    head = text["vocab_size"] * text["hidden_size"] * (1 if config["tie_word_embeddings"] else 2)
    assert head < outside < head + 0.2e9
    assert {type(m).__name__ for m in blocks} == {*policy.model._no_split_modules, "LastLayer"}
    assert not [m for m in policy.modules() if isinstance(m, nn.ModuleList) and len(m) > 3 and m[0] not in blocks]


def test_rotary_embedding_and_positions_follow_the_published_config(published):
    name, _, config, policy = published
    rope = policy.model.config.text_config.rope_parameters
    text = config.get("text_config", config)
    assert rope["rope_theta"] == text["rope_theta"] and rope["rope_type"] == "default"
    assert rope["mrope_section"] == text["rope_scaling"]["mrope_section"]
    assert bool(rope.get("mrope_interleaved")) == name.startswith("Qwen3")
    assert policy.head_dim == 128
