"""Decoding from packed weights against the layers of transformers, on each family."""

import pytest
import torch

from capo.rollout import Engine, Request, SlotCache
from capo.sampling import SamplingConfig, pack_linear, sample_seed
from radflow.models import decoding
from radflow.models.decoding import PackedDecoder, packed
from radflow.models.lora import LoraConfig, adapters, add_lora, reference
from radflow.models.processing import ProcessorConfig, ReportProcessor
from radflow.models.qwen_vl import FAMILIES, load
from radflow.models.tiny import TinyConfig, build_tiny
from radflow.pipeline.generation import build_prompt, suppressed_mask
from radflow.pipeline.rollouts import LocalEngine

SLOTS, REACH = 5, 9


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def folder(request, tmp_path_factory, studies):
    path = tmp_path_factory.mktemp("decoding") / request.param
    build_tiny(path, [study.report for study in studies], TinyConfig(family=request.param, layers=2), seed=0)
    return path


def open_policy(folder, dtype=torch.float32, *, lora=False):
    policy = load(folder, dtype=dtype).requires_grad_(False)
    draws = torch.Generator().manual_seed(4)
    for name, weight in policy.named_parameters():
        if name.endswith("norm.weight"):  # all 1 in a model that was never trained
            weight.uniform_(0.5, 1.5, generator=draws)
    if lora:
        add_lora(policy, LoraConfig(rank=4), seed=1)
        for layer in adapters(policy).values():  # B = 0 changes nothing
            torch.nn.init.normal_(layer.lora_b, std=0.1, generator=torch.Generator().manual_seed(2))
    return policy


def filled_cache(policy):
    """Slots that hold 3 to 7 tokens of noise."""
    cache, noise = SlotCache(SLOTS), torch.Generator().manual_seed(3)
    shape = SLOTS, policy.num_kv_heads, 16, policy.head_dim
    dtype = policy.output_weight().dtype
    cache.keys, cache.values = (
        [torch.randn(shape, generator=noise).to(dtype) for _ in range(policy.num_layers)] for _ in range(2)
    )
    return cache.at(torch.arange(SLOTS) + 3, REACH)


@torch.no_grad()
def step(policy, decoder):
    """Hidden states of one token per slot, and what the cache holds afterwards."""
    cache, tokens = filled_cache(policy), torch.arange(SLOTS) + 20
    visible = torch.arange(REACH) <= cache.lengths[:, None]
    embeds = policy.embed_tokens(tokens)[:, None]
    mask = embeds.new_zeros(visible.shape).masked_fill(~visible, -torch.inf)[:, None, None]
    positions = (cache.lengths + 4).expand(3, -1)[..., None]
    return decoder(embeds, positions, mask, cache), torch.cat(cache.keys + cache.values)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 1e-5), (torch.bfloat16, 0.06)])
def test_a_step_is_that_of_the_layers_up_to_rounding(folder, lora, dtype, allowed):
    # States have a scale of 1, so that 0.06 is less than four steps of bfloat16 after two layers.
    policy = open_policy(folder, dtype, lora=lora)
    for made, expected in zip(
        step(policy, PackedDecoder(policy, pack_linear)), step(policy, policy.decoder), strict=True
    ):
        torch.testing.assert_close(made, expected, atol=allowed, rtol=allowed)


def test_adapters_that_are_off_are_left_out(folder):
    policy = open_policy(folder, lora=True)
    on = step(policy, PackedDecoder(policy, pack_linear))[0]
    with reference(policy):
        off, expected = (step(policy, each)[0] for each in (PackedDecoder(policy, pack_linear), policy.decoder))
    torch.testing.assert_close(off, expected, atol=1e-5, rtol=1e-5)
    assert float((on - off).abs().max()) > 0.01


def test_reports_are_those_of_the_layers_and_follow_the_weights(folder, studies):
    policy, processor = open_policy(folder, lora=True), ReportProcessor.load(folder, ProcessorConfig())
    seeds = tuple(sample_seed(0, "test", 0, "", i) for i in range(4))
    requests = [Request(build_prompt(processor, study), seeds) for study in studies[:3]]
    options = {"sampling": SamplingConfig(max_new_tokens=20), "eos_id": processor.eos_id, "slots": 8}
    options["suppressed"] = suppressed_mask(policy, processor)

    def write(engine):
        return {(r.study_id, r.sample): r.response_ids.tolist() for r in engine.rollout(requests)}

    plain, local = Engine(policy, **options), LocalEngine(policy, **options)
    first = write(local)
    assert first == write(plain) and policy.decode is None
    with torch.no_grad():
        for layer in adapters(policy).values():
            layer.lora_b.neg_()
    assert first != write(local) == write(plain)


def test_a_large_decoder_is_read_as_it_is(folder, monkeypatch):
    policy = open_policy(folder)
    size = sum(4 * each.numel() for each in policy.model.model.language_model.layers.parameters())
    for most, packs in ((size, True), (size - 1, False)):
        monkeypatch.setattr(decoding, "MOST_BYTES", most)
        with packed(policy, pack_linear):
            assert (policy.decode is not None) == packs


def test_copies_are_made_once_however_often_they_are_asked_for(folder):
    policy = open_policy(folder)
    with packed(policy, pack_linear):
        outer = policy.decode
        with packed(policy, pack_linear):
            assert policy.decode is outer
        assert policy.decode is outer
    assert policy.decode is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_packed_product_is_that_of_the_weight_and_a_row_does_not_depend_on_the_others(dtype):
    noise = torch.Generator().manual_seed(0)
    weight, rows = (torch.randn(size, 64, generator=noise, dtype=torch.float64).to(dtype) for size in (300, 33))
    bias = torch.randn(300, generator=noise, dtype=torch.float64).to(dtype)
    multiply = pack_linear(weight, bias)
    exact = rows.double() @ weight.double().t() + bias.double()
    # 64 products of a scale of 1 each; bfloat16 keeps 8 bits of a sum of up to about 30.
    allowed = {torch.float32: 2e-5, torch.bfloat16: 0.15, torch.float64: 1e-12}[dtype]
    torch.testing.assert_close(multiply(rows).double(), exact, atol=allowed, rtol=0)
    if dtype != torch.float64:
        assert torch.equal(multiply(rows)[:4], multiply(rows[:4]))
