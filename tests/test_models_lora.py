import pytest
import torch

from evaluate import prompt_of
from models.lora import LoraConfig, LoraLinear, reference, add_lora, merge_lora


@pytest.fixture
def hidden(policy, processor, studies):
    prompt = prompt_of(processor, studies[0])
    length = len(prompt.input_ids)
    mask = torch.ones(length, length, dtype=torch.bool).tril()[None, None]

    def run():
        embeds = policy.embed([prompt], policy.features([prompt]))[0][None]
        return policy.trunk(embeds, prompt.positions[:, None], mask)

    return run


def randomise(policy):
    generator = torch.Generator().manual_seed(1)
    for module in policy.modules():
        if isinstance(module, LoraLinear):
            module.lora_b.data.normal_(0, 0.02, generator=generator)


def test_adapters_start_as_identity_on_every_language_layer_and_nothing_else(policy, hidden):
    before = hidden()
    names = add_lora(policy, LoraConfig(rank=4), seed=0)
    # 4 layers x (q, k, v, o, gate, up, down)
    assert len(names) == 28 and not any("visual" in name for name in names)
    assert torch.equal(hidden(), before)


def test_every_adapter_learns_and_the_base_stays(policy, hidden):
    add_lora(policy, LoraConfig(rank=4), seed=0)
    randomise(policy)
    hidden().square().sum().backward()
    for name, parameter in policy.named_parameters():
        assert (parameter.grad is not None) == ("lora_" in name), name
        if "lora_" in name:
            assert parameter.grad.abs().max() > 0, name


def test_off_is_the_base_and_merged_is_the_adapted_model(policy, hidden):
    base = hidden()
    add_lora(policy, LoraConfig(rank=4), seed=0)
    randomise(policy)
    adapted = hidden()
    assert (adapted - base).abs().max() > 1e-3
    with reference(policy):
        assert torch.equal(hidden(), base)
    assert torch.equal(hidden(), adapted)
    merge_lora(policy)
    assert not any(isinstance(module, LoraLinear) for module in policy.modules())
    torch.testing.assert_close(hidden(), adapted, atol=1e-5, rtol=1e-5)


def test_one_layer_by_hand():
    # W = 2, A = 3, B = 5, alpha / rank = 16 / 1: y = 2 x + 16 * 5 * 3 x = 242 x
    linear = torch.nn.Linear(1, 1, bias=False)
    linear.weight.data.fill_(2.0)
    layer = LoraLinear(linear, LoraConfig(rank=1), torch.Generator())
    layer.lora_a.data.fill_(3.0)
    layer.lora_b.data.fill_(5.0)
    assert layer(torch.ones(1, 1)).item() == 242.0
    assert float(layer.merged()(torch.ones(1, 1))) == 242.0


def test_pattern_without_a_match_is_refused(policy):
    with pytest.raises(ValueError, match="matches no linear layer"):
        add_lora(policy, LoraConfig(targets="nothing"), seed=0)
