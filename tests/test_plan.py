"""The memory model against what really is allocated."""

import pytest
import torch

from capo.packing import pack, report_logps
from models.lora import LoraConfig, add_lora
from models.qwen_vl import load
from models.start import ModelConfig
from models.tiny import TinyConfig, build_tiny
from plan import Load, Sizes, layer_bytes, memory, sizes_at, total

CHECKPOINT = ModelConfig(path="somewhere")


class TextPrompt:
    study_id, num_tokens, next_position = "x", 192, 192
    input_ids = torch.arange(192) % 97 + 10
    positions = torch.arange(192).expand(3, 192)


def kept(policy, dtype):
    """Bytes that autograd holds for one token, parameters aside."""
    own = {p.untyped_storage().data_ptr() for p in policy.parameters()}
    held = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = (storage.nbytes(), tensor)  # the tensor too: a freed address would be used again
        return tensor

    layout = pack([TextPrompt()], [[torch.arange(32) + 10, torch.arange(32) + 20]])
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        report_logps(policy, layout, features=[torch.zeros(0, policy.hidden_size, dtype=dtype)])
    return sum(size for size, _ in held.values()) / layout.num_tokens


@pytest.mark.parametrize("case", [("lora", torch.float32), ("lora", torch.bfloat16), ("full", torch.float32)], ids=str)
def test_activations_of_a_layer_are_as_the_formula_says(tmp_path, case):
    training, dtype = case
    measured = {}
    for layers in (2, 4):
        folder = tmp_path / str(layers)
        build_tiny(folder, ["some text"] * 5, TinyConfig(hidden_size=512, layers=layers, vocab_size=300), seed=0)
        policy = load(folder, dtype=dtype)
        if training == "lora":
            add_lora(policy, LoraConfig(), seed=0)
        else:
            policy.vision.requires_grad_(False)
        measured[layers] = kept(policy, dtype)
        sizes = sizes_at(folder, CHECKPOINT)
    formula = layer_bytes(sizes, lora=training == "lora", bf16=dtype == torch.bfloat16)
    # the formula leaves out what does not grow with the widths: the adapters' inner values, a norm's scales
    assert (measured[4] - measured[2]) / 2 == pytest.approx(formula, rel=0.04)


def test_parameters_are_counted_as_loaded(tiny_dir):
    policy = load(tiny_dir)
    sizes = sizes_at(tiny_dir, CHECKPOINT)
    assert sizes.parameters == sum(p.numel() for p in policy.parameters())
    add_lora(policy, LoraConfig(), seed=0)
    assert sizes.trained == sum(p.numel() for p in policy.parameters() if p.requires_grad)


def test_a_sharded_model_by_hand():
    sizes = Sizes(8_000_000_000, 80_000_000, 200_000_000, 32, 4096, 12288, 32 * 2 * 8 * 128)
    load = Load(micro_batch=1000, slots=32, cached=1500)
    alone = memory(sizes, CHECKPOINT, load, sharding="replicate", world=8, local=8)
    assert alone["weights"] == 16.0 and alone["gradients and Adam"] == pytest.approx(0.96)
    # 1,536 cached tokens a slot of 2 x 32 x 8 x 128 values of 2 bytes
    assert alone["rollout"] == pytest.approx(32 * 1536 * 65536 * 2 / 1e9)
    # 40 D + 10 I bytes a token and layer
    assert alone["training pass"] == pytest.approx(1000 * 32 * (40 * 4096 + 10 * 12288) / 1e9)
    split = memory(sizes, CHECKPOINT, load, sharding="full", world=8, local=8)
    assert split["weights"] == 2.0 and split["rollout"] == pytest.approx(alone["rollout"] + 16.0)
    assert total(alone) == pytest.approx(16 + 0.96 + alone["training pass"] + 1.5)


def test_what_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match="found none"):
        sizes_at(tmp_path, CHECKPOINT)
