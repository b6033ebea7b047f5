"""The files next to the weights of the published families, made here, and pictures for them."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from radflow.models.tiny import TinyConfig, build_tiny
from radflow.models.training_data import SETTINGS

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
REQUEST = "Report this chest radiograph: Findings and Impression."


def published(folder: Path, family: str) -> Path:
    """A folder with the files next to the weights as the hub has them."""
    sizes = {"hidden_size": 64, "layers": 1, "heads": 2, "kv_heads": 1, "vision_hidden": 64, "vision_depth": 2}
    build_tiny(folder, [REQUEST, "Findings: Clear."] * 5, TinyConfig(family=family, vocab_size=400, **sizes), seed=0)
    for name in (SETTINGS, "chat_template.jinja", "model.safetensors"):
        (folder / name).unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATES[family]}))
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSORS[family]))
    return folder


def picture(height, width, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))
