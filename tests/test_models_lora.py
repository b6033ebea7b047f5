"""LoRA on a tiny model: identity at the start, folded and unfolded, and nothing else moves."""

import re

import pytest
import torch

from capo.config import OptimizerConfig
from capo.trainer import Trainer
from radflow.models.lora import (
    LANGUAGE,
    MERGER,
    VISION,
    LoraConfig,
    LoraLinear,
    adapters,
    add_lora,
    cast_once,
    merge_lora,
    reference,
    trainable_table,
)
from radflow.models.qwen_vl import FAMILIES, load
from radflow.models.tiny import TinyConfig, build_tiny
from radflow.pipeline.generation import build_prompt


@pytest.fixture
def hidden(policy, processor, studies, states):
    return lambda: states(policy, build_prompt(processor, studies[0]))


def randomise(policy):
    generator = torch.Generator().manual_seed(1)
    for adapter in adapters(policy).values():
        adapter.lora_b.data.normal_(0, 0.02, generator=generator)


def test_adapters_start_as_identity_on_every_language_layer_and_nothing_else(policy, hidden):
    before = hidden()
    names = add_lora(policy, LoraConfig(rank=4), seed=0)
    # 4 layers x (q, k, v, o, gate, up, down)
    assert len(names) == 28 and not any("visual" in name for name in names)
    assert list(adapters(policy)) == names and names[0] == "model.language_model.layers.0.self_attn.q_proj"
    assert torch.equal(hidden(), before)


@pytest.mark.parametrize("vision", [False, True])
def test_every_adapter_learns_and_the_base_stays_through_updates(policy, hidden, vision):
    add_lora(policy, LoraConfig(rank=4, vision=vision, merger=vision), seed=0)
    randomise(policy)  # B = 0 has no gradient for A
    frozen = {name: p.clone() for name, p in policy.named_parameters() if "lora_" not in name}
    trainer = Trainer(policy, OptimizerConfig(lr=1e-2), num_steps=3)
    for _ in range(3):
        hidden().square().sum().backward()
        for name, parameter in policy.named_parameters():
            assert (parameter.grad is not None) == ("lora_" in name), name  # a frozen tower has none at all
            if "lora_" in name:
                assert parameter.grad.abs().max() > 0, name
        trainer.step()
    assert any("visual" in name for name in adapters(policy)) == vision
    assert all(torch.equal(p, frozen[name]) for name, p in policy.named_parameters() if name in frozen)


def test_reference_is_the_base_also_inside_itself_and_after_an_error(policy, hidden):
    base = hidden()
    add_lora(policy, LoraConfig(rank=4), seed=0)
    randomise(policy)
    adapted = hidden()
    assert (adapted - base).abs().max() > 1e-3
    with reference(policy):
        with reference(policy):
            assert torch.equal(hidden(), base)
        assert torch.equal(hidden(), base)  # the inner one does not switch the adapters on
    with pytest.raises(KeyError), reference(policy):
        raise KeyError
    assert torch.equal(hidden(), adapted)


def test_the_merged_model_is_the_adapted_one_and_is_saved_under_the_names_of_a_plain_one(
    policy, hidden, processor, tmp_path
):
    names = policy.state_dict().keys()
    add_lora(policy, LoraConfig(rank=4), seed=0)
    randomise(policy)
    adapted = hidden()
    merge_lora(policy)
    assert not adapters(policy) and policy.state_dict().keys() == names
    torch.testing.assert_close(hidden(), adapted, atol=1e-5, rtol=1e-5)
    policy.save(tmp_path / "now", processor)
    saved = load(tmp_path / "now").state_dict()
    assert all(torch.equal(saved[name], weight) for name, weight in policy.state_dict().items())


def test_one_layer_by_hand():
    # W = 2, A = 3, B = 5, alpha / rank = 16 / 1: y = 2 x + 16 * 5 * 3 x = 242 x
    linear = torch.nn.Linear(1, 1, bias=False)
    linear.weight.data.fill_(2.0)
    layer = LoraLinear(linear, LoraConfig(rank=1), torch.Generator())
    layer.lora_a.data.fill_(3.0)
    layer.lora_b.data.fill_(5.0)
    assert layer(torch.ones(1, 1)).item() == 242.0
    assert float(layer.merge()(torch.ones(1, 1))) == 242.0


def test_a_bf16_layer_keeps_no_float32_copies_for_its_backward_pass_and_still_trains_float32_weights():
    # x and the product in float32 were a third of a training pass's memory.
    torch.manual_seed(0)
    layer = LoraLinear(torch.nn.Linear(64, 96, dtype=torch.bfloat16), LoraConfig(rank=4), torch.Generator())
    layer.lora_b.data.normal_(0, 0.1)
    x, kept = torch.randn(2, 50, 64, dtype=torch.bfloat16, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        out = layer(x)
    assert out.dtype == torch.bfloat16 and out.shape == (2, 50, 96)
    assert not [t.shape for t in kept if t.dtype == torch.float32]
    # the activations that must be kept: x (for A) and A x (for B)
    assert sum(t.numel() for t in kept if t.numel() % 100 == 0) == 100 * (64 + 4)
    out.float().square().sum().backward()
    exact = [t.detach().double().requires_grad_() for t in (x, layer.lora_a, layer.lora_b)]
    wanted = torch.nn.functional.linear(exact[0], layer.base.weight.double(), layer.base.bias.double())
    (wanted + 4 * exact[0] @ exact[1].t() @ exact[2].t()).square().sum().backward()
    for mine, other in zip((x, layer.lora_a, layer.lora_b), exact, strict=True):
        assert (mine.grad.double() - other.grad).norm() < 0.02 * other.grad.norm()  # bf16: 8 bits of mantissa
    assert layer.lora_a.grad.dtype == layer.lora_b.grad.dtype == torch.float32


def test_adapters_cast_once_give_the_same_output_and_follow_updates_at_the_same_addresses(
    tiny_dir, processor, studies, states
):
    policy, prompt = load(tiny_dir, dtype=torch.bfloat16), build_prompt(processor, studies[0])
    add_lora(policy, LoraConfig(rank=4), seed=0)
    randomise(policy)
    adapter, addresses = next(iter(adapters(policy).values())), []
    for _ in range(2):
        with torch.no_grad():
            expected = states(policy, prompt)
            with cast_once(policy):
                assert torch.equal(states(policy, prompt), expected)
                addresses.append([tensor.data_ptr() for tensor in adapter._copies])
            adapter.lora_b.data.mul_(-1)
            assert not torch.equal(states(policy, prompt), expected)  # outside, training reads the weights themselves
    assert addresses[0] == addresses[1]


@pytest.fixture(params=sorted(FAMILIES))
def family(request, tmp_path):
    config = TinyConfig(family=request.param, hidden_size=64, layers=3, vision_hidden=64, vision_depth=3)
    build_tiny(tmp_path / "model", ["some text"] * 5, config, seed=0)
    return load(tmp_path / "model")


def test_the_three_patterns_cover_every_linear_layer_but_the_head_once(family):
    linear = [name for name, module in family.model.named_modules() if isinstance(module, torch.nn.Linear)]
    hits = {name: sum(bool(re.fullmatch(p, name)) for p in (LANGUAGE, VISION, MERGER)) for name in linear}
    assert {name for name, count in hits.items() if count != 1} == {"lm_head"} and hits["lm_head"] == 0
    assert set(add_lora(family, LoraConfig(vision=True, merger=True), seed=0)) == set(linear) - {"lm_head"}


def test_table_counts_by_hand(policy):
    add_lora(policy, LoraConfig(rank=4), seed=0)
    cells = [line.strip("| ").split(" | ") for line in trainable_table(policy).splitlines()]
    rows = {first: rest for first, *rest in cells}
    # hidden 192, keys and values 96 wide, MLP 576; 4 layers; rank x (in + out) each
    attention, mlp = 4 * 4 * (384 + 288 + 288 + 384), 4 * 4 * 3 * (192 + 576)
    assert rows["language attention"][:2] == ["16", "16"] and rows["language attention"][3] == f"{attention:,}"
    assert rows["language MLP"][:2] == ["12", "12"] and rows["language MLP"][3] == f"{mlp:,}"
    assert rows["vision attention"][1] == "0" and rows["vision attention"][3] == "0"
    base = sum(p.numel() for name, p in policy.named_parameters() if "lora_" not in name)
    assert rows["all"][1:] == ["28", f"{base:,}", f"{attention + mlp:,}", f"{100 * (attention + mlp) / base:.3f}"]


def test_patterns_without_a_match_are_refused(policy):
    with pytest.raises(ValueError, match="matches no linear layer"):
        add_lora(policy, LoraConfig(targets="nothing"), seed=0)
    with pytest.raises(ValueError, match=r"expected targets to be a regular expression"):
        LoraConfig(targets="*")
