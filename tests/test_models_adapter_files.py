"""Adapters on disk in PEFT's format: written, read back, stacked; refused where they mean something else.

tests/test_peers_peft.py holds them against PEFT itself.
"""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from radflow.models.adapter_files import CONFIG, WEIGHTS, load_adapter, read_config, save_adapter, stack
from radflow.models.lora import LoraConfig, adapters, add_lora, merge_lora
from radflow.models.qwen_vl import load
from radflow.models.tiny import TinyConfig, build_tiny
from radflow.pipeline.generation import build_prompt


def adapted(policy, config, seed):
    add_lora(policy, config, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for adapter in adapters(policy).values():
        adapter.lora_b.data.normal_(0, 0.02, generator=generator)
    return policy


@pytest.fixture
def saved(policy, tmp_path):
    save_adapter(adapted(policy, LoraConfig(rank=4), 1), tmp_path / "adapter", LoraConfig(rank=4), base="some/base")
    return tmp_path / "adapter"


def change(folder, **keys):
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **keys}))


def test_files_have_pefts_names_and_read_back_as_the_same_model(tiny_dir, policy, saved, processor, studies, states):
    weights = load_file(saved / WEIGHTS)
    name = "base_model.model.model.language_model.layers.3.mlp.down_proj"
    assert len(weights) == 56 and weights[f"{name}.lora_A.weight"].shape == (4, 576)
    assert weights[f"{name}.lora_B.weight"].shape == (192, 4)
    config, base = read_config(saved)
    assert config == LoraConfig(rank=4) and base == "some/base"
    again = load(tiny_dir)
    assert load_adapter(again, saved) == config
    prompt = build_prompt(processor, studies[0])
    assert torch.equal(states(again, prompt), states(policy, prompt))
    assert {name for name, p in again.named_parameters() if p.requires_grad} == {
        name for name, p in policy.named_parameters() if p.requires_grad
    }


def test_vision_targets_survive_the_way_to_disk(tiny_dir, policy, tmp_path):
    config = LoraConfig(rank=2, alpha=3.5, vision=True, merger=True)
    save_adapter(adapted(policy, config, 2), tmp_path / "a", config, base="b")
    again = load(tiny_dir)
    assert load_adapter(again, tmp_path / "a").alpha == 3.5
    assert list(adapters(again)) == list(adapters(policy)) and any("merger" in name for name in adapters(again))


def test_an_earlier_adapter_is_replaced_and_only_one_rank_writes(policy, saved):
    before = load_file(saved / WEIGHTS)
    merge_lora(policy)
    adapted(policy, LoraConfig(rank=2), 5)
    save_adapter(policy, saved, LoraConfig(rank=2), base="b", write=False)
    assert all(torch.equal(t, before[name]) for name, t in load_file(saved / WEIGHTS).items())
    save_adapter(policy, saved, LoraConfig(rank=2), base="b")
    assert read_config(saved)[0].rank == 2 and sorted(p.name for p in saved.parent.iterdir()) == ["adapter"]


def test_rslora_is_read_at_its_own_scale(tiny_dir, saved):
    change(saved, use_rslora=True, lora_alpha=6)
    again = load(tiny_dir)
    load_adapter(again, saved)
    # alpha / sqrt(r) = 6 / 2
    assert {adapter.scale for adapter in adapters(again).values()} == {3.0}


def test_a_list_of_targets_is_read_as_peft_reads_it(tiny_dir, saved):
    change(saved, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
    weights = {name: tensor for name, tensor in load_file(saved / WEIGHTS).items() if "self_attn" in name}
    save_file(weights, saved / WEIGHTS)
    again = load(tiny_dir)
    load_adapter(again, saved)
    assert len(adapters(again)) == 4 * 4


OLD = {"model.language_model.": "model.", "model.visual.": "visual."}  # names before transformers 4.52


@pytest.mark.parametrize(
    "targets",
    [
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        r"model\.layers\.\d+\.(self_attn|mlp)\.\w+",  # of the old names: the tower's begin with visual
        r"^(?!.*visual).*_proj",
    ],
    ids=str,
)
def test_an_adapter_with_the_names_before_4_52_is_on_the_same_layers(tiny_dir, policy, saved, targets):
    weights = load_file(saved / WEIGHTS)
    for new, old in OLD.items():
        weights = {name.replace(f"base_model.model.{new}", f"base_model.model.{old}"): t for name, t in weights.items()}
    save_file(weights, saved / WEIGHTS)
    excluded = {"exclude_modules": ".*visual.*"} if isinstance(targets, list) else {}
    change(saved, target_modules=targets, **excluded)
    again = load(tiny_dir)
    config = load_adapter(again, saved)
    assert list(adapters(again)) == list(adapters(policy)) == add_lora(load(tiny_dir), config, seed=0)
    for name, adapter in adapters(again).items():
        assert torch.equal(adapter.lora_b, adapters(policy)[name].lora_b)


@pytest.mark.parametrize("excluded", [".*visual.*", ["qkv", "proj", "visual.blocks.0.mlp.gate_proj", "x"]], ids=str)
def test_modules_that_are_excluded_have_no_adapter(tiny_dir, saved, excluded):
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    change(saved, target_modules=targets, exclude_modules=excluded)
    again = load(tiny_dir)
    if isinstance(excluded, str):
        load_adapter(again, saved)
        assert len(adapters(again)) == 4 * 7 and not any("visual" in name for name in adapters(again))
    else:  # the tower's other layers are targets, and the file has none for them
        with pytest.raises(ValueError, match=r"missing, for example .*visual\.blocks\.0\.mlp\.down_proj") as caught:
            load_adapter(again, saved)
        assert "blocks.0.mlp.gate_proj" not in str(caught.value)


def test_sft_and_rl_adapters_stack_into_one_of_the_base(tiny_dir, processor, studies, tmp_path, states):
    policy = adapted(load(tiny_dir), LoraConfig(rank=4), 1)
    save_adapter(policy, tmp_path / "sft", LoraConfig(rank=4), base="published/base")
    merge_lora(policy)
    second = LoraConfig(rank=2, alpha=1.0)
    save_adapter(adapted(policy, second, 2), tmp_path / "rl", second, base="runs/x/sft/model")
    stack(tmp_path / "sft", tmp_path / "rl", tmp_path / "both")
    config, base = read_config(tmp_path / "both")
    # the first one's scale, 16 / 4, over the ranks of both
    assert (config.rank, config.alpha, base) == (6, 24.0, "published/base")
    again = load(tiny_dir)
    load_adapter(again, tmp_path / "both")
    prompt = build_prompt(processor, studies[0])
    torch.testing.assert_close(states(again, prompt), states(policy, prompt), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"peft_type": "LOHA"}, "with peft_type LORA, got 'LOHA'"),
        ({"use_dora": True}, "use_dora True is not supported"),
        ({"bias": "all"}, "bias 'all' is not supported"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern .* is not supported"),
        ({"alpha_pattern": {"q_proj": 2}}, "alpha_pattern .* is not supported"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save .* is not supported"),
        ({"layers_to_transform": [1]}, "layers_to_transform .* is not supported"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa' is not supported"),
        ({"of_a_later_version": 1}, "of_a_later_version 1 is not supported"),
        ({"target_modules": ["q_proj", "lm_head"]}, "got some that match lm_head; leave it out"),
        ({"target_modules": ".*"}, "got some that match lm_head; leave it out"),
        ({"r": None}, "expected the key r"),
        ({"r": 8}, r"expected .*\.lora_A\.weight to be \[8, .* got \[4, "),
        ({"target_modules": ["q_proj"]}, "48 more, for example"),
        ({"target_modules": r".*(_proj|\.qkv)"}, "missing, for example"),
        ({"target_modules": ["nothing"]}, "expected A and B of 0 layers"),
    ],
    ids=str,
)
def test_what_would_compute_something_else_is_refused(tiny_dir, saved, keys, said):
    change(saved, **keys)
    policy = load(tiny_dir)
    with pytest.raises(ValueError, match=said):
        load_adapter(policy, saved)
    assert not adapters(policy)


def test_adapters_of_another_base_and_broken_files_are_refused(tiny_dir, saved, tmp_path):
    narrow, deeper = tmp_path / "narrow", tmp_path / "deeper"
    build_tiny(narrow, ["some text"] * 5, TinyConfig(hidden_size=128, vision_hidden=64, vision_depth=1), seed=0)
    build_tiny(deeper, ["some text"] * 5, TinyConfig(layers=5, vision_hidden=64, vision_depth=1), seed=0)
    with pytest.raises(ValueError, match="belongs to another base model"):
        load_adapter(load(narrow), saved)
    with pytest.raises(ValueError, match=r"14 missing, for example .*layers\.4"):
        load_adapter(load(deeper), saved)
    (saved / WEIGHTS).write_bytes((saved / WEIGHTS).read_bytes()[:1000])
    with pytest.raises(ValueError, match="expected a safetensors file"):
        load_adapter(load(tiny_dir), saved)
    (saved / CONFIG).write_text("[]")
    with pytest.raises(ValueError, match="expected a JSON object, got list"):
        load_adapter(load(tiny_dir), saved)
    with pytest.raises(ValueError, match="expected a JSON object, got a file that cannot be read"):
        read_config(tmp_path / "nowhere")


def test_the_stack_by_hand(tmp_path):
    # 1 x 1 layers: s1 B1 A1 = 2 * 3 * 5 = 30, s2 B2 A2 = 0.5 * 4 * 7 = 14
    for name, a, b, alpha in (("one", 5.0, 3.0, 2.0), ("two", 7.0, 4.0, 0.5)):
        folder = tmp_path / name
        folder.mkdir()
        keys = {"peft_type": "LORA", "r": 1, "lora_alpha": alpha, "target_modules": "x"}
        (folder / CONFIG).write_text(json.dumps(keys))
        parts = {"lora_A": torch.tensor([[a]]), "lora_B": torch.tensor([[b]])}
        save_file({f"base_model.model.x.{key}.weight": tensor for key, tensor in parts.items()}, folder / WEIGHTS)
    stack(tmp_path / "one", tmp_path / "two", tmp_path / "both")
    weights, config = load_file(tmp_path / "both" / WEIGHTS), read_config(tmp_path / "both")[0]
    a, b = (weights[f"base_model.model.x.{key}.weight"] for key in ("lora_A", "lora_B"))
    assert a.tolist() == [[5.0], [7.0]] and b.tolist() == [[3.0, 1.0]]
    assert math.isclose(float(config.alpha / config.rank * b @ a), 44.0)
