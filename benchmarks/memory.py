"""Memory per GPU of LoRA and full training of the published sizes, by the formulas of pipeline/memory_plan.py.

python benchmarks/memory.py
"""

from transformers import Qwen2_5_VLConfig

from radflow.models.start import ModelConfig
from radflow.pipeline.memory_plan import Load, Sizes, format_plan

# hidden, intermediate, layers, heads, kv heads, vocabulary, tied: config.json of Qwen2.5-VL-3B, 7B, 32B and 72B
PUBLISHED = {
    "3B": (2048, 11008, 36, 16, 2, 151936, True),
    "7B": (3584, 18944, 28, 28, 4, 152064, False),
    "32B": (5120, 27648, 64, 40, 8, 152064, False),
    "72B": (8192, 29568, 80, 64, 8, 152064, False),
}
# One study: prompt of 1,400 tokens, four reports of 256; eight prompts are read at one time
LOAD = Load(micro_batch=2424, slots=32, cached=1656, prefill=11200)


def architecture(name: str) -> Qwen2_5_VLConfig:
    hidden, intermediate, layers, heads, kv_heads, vocabulary, tied = PUBLISHED[name]
    return Qwen2_5_VLConfig(
        text_config={
            "hidden_size": hidden,
            "intermediate_size": intermediate,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "vocab_size": vocabulary,
            "tie_word_embeddings": tied,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        },
        vision_config={
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": hidden,
        },
        tie_word_embeddings=tied,
    )


if __name__ == "__main__":
    for name in PUBLISHED:
        for training in ("lora", "full"):
            model = ModelConfig(path="published", training=training, recompute_activations=True)
            print(f"### {name}, {training}\n\n{format_plan(Sizes.of(architecture(name), model), model, LOAD)}\n")
