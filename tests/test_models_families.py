"""Packed training and generation on Qwen2-VL, Qwen2.5-VL and Qwen3-VL, with 1 to 3 images of different sizes."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers_greedy import greedy

from capo import packing
from capo.packing import pack, report_logps
from capo.rollout import Request, rollout
from capo.sampling import SamplingConfig, sample_seed
from radflow.models.lora import LoraConfig, LoraLinear, add_lora
from radflow.models.processing import ProcessorConfig, ReportProcessor
from radflow.models.qwen_vl import FAMILIES, load
from radflow.models.tiny import TinyConfig, build_tiny
from radflow.pipeline.generation import suppressed_mask

SIZES = [(96, 96), (64, 160), (160, 96), (128, 64), (224, 96)]  # more than one window of Qwen2.5-VL's vision tower
REPORTS = ["Findings: Clear lungs. Impression: Normal.", "Small effusion.", "Findings: None."]


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def checkpoint(request, tmp_path_factory, studies):
    folder = tmp_path_factory.mktemp("family") / request.param
    config = TinyConfig(family=request.param, hidden_size=128, layers=3, heads=4, kv_heads=2, vision_depth=3)
    build_tiny(folder, [study.report for study in studies], config, seed=0)
    return folder, ReportProcessor.load(folder, ProcessorConfig())


def prompts_of(processor, count):
    """Every third has one image, every third two, every third three; sizes and requests differ."""
    prompts = []
    for number in range(count):
        noise = np.random.default_rng(number)
        images = [
            Image.fromarray(noise.integers(0, 256, (*SIZES[(number + i) % len(SIZES)], 3), dtype=np.uint8))
            for i in range(1 + number % 3)
        ]
        text = " ".join(["Cough."] * (number % 7))
        prompts.append(processor.prompt(f"s{number}", images[:1], prior_images=images[1:], indication=text))
    return prompts


def with_lora(folder):
    policy = load(folder)
    add_lora(policy, LoraConfig(rank=4), seed=1)
    for layer in policy.modules():
        if isinstance(layer, LoraLinear):  # as after some training: B = 0 has no gradient for A
            torch.nn.init.normal_(layer.lora_b, std=0.1, generator=torch.Generator().manual_seed(2))
    return policy


def gradients(policy):
    return {name: p.grad for name, p in policy.named_parameters() if p.requires_grad}


def test_packed_values_and_lora_gradients_equal_one_report_at_a_time(checkpoint):
    folder, processor = checkpoint
    prompts = prompts_of(processor, 3)
    ids = [processor.encode_report(text) for text in REPORTS]
    groups = [ids, ids[:1], [ids[2], ids[0], ids[1]]]
    weights = torch.linspace(-1, 1, 7)
    together, alone = with_lora(folder), with_lora(folder)
    packed, _ = report_logps(together, pack(prompts, groups), temperature=0.7)
    (packed.sum(1) @ weights).backward()
    row = 0
    for prompt, group in zip(prompts, groups, strict=True):
        for response in group:
            logps, _ = report_logps(alone, pack([prompt], [[response]]), temperature=0.7)
            # float32 round-off; the bounds are those that the packed path promises
            torch.testing.assert_close(packed[row, : len(response)], logps[0], atol=2e-5, rtol=0)
            (logps.sum() * weights[row]).backward()
            row += 1
    expected = gradients(alone)
    assert row == 7 and len(expected) == 2 * 7 * 3
    for name, gradient in gradients(together).items():
        assert (gradient - expected[name]).norm() <= 1e-4 * expected[name].norm(), name
        assert gradient.abs().max() > 0, name


def test_recomputed_activations_change_no_gradient_and_no_rollout(checkpoint):
    folder, processor = checkpoint
    prompts = prompts_of(processor, 2)
    layout = pack(prompts, [[processor.encode_report(text) for text in REPORTS]] * 2)
    results, reports = [], []
    for recompute in (False, True):
        policy = with_lora(folder)
        policy.vision.requires_grad_(True)
        if recompute:
            policy.recompute_activations()
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t.numel()) or t, lambda t: t):
            logps, _ = report_logps(policy, layout)
        logps.sum().backward()
        results.append((gradients(policy), sum(saved)))
        reports.append(write(policy, processor, prompts, 1.0, 8))
    (kept, bytes_kept), (recomputed, bytes_recomputed) = results
    assert kept.keys() == recomputed.keys() and any("visual" in name for name in kept)
    assert all(torch.equal(kept[name], recomputed[name]) for name in kept)
    assert bytes_recomputed < bytes_kept / 2
    assert all(torch.equal(a.response_ids, b.response_ids) for a, b in zip(*reports, strict=True))


def test_wanted_states_are_those_of_all_and_the_last_mlp_computes_no_others(checkpoint):
    folder, processor = checkpoint
    policy, prompts = load(folder), prompts_of(processor, 1) * 2
    computed = []
    policy.blocks()[-1].mlp.register_forward_hook(lambda _, inputs, output: computed.append(output.shape[:-1]))
    embeds = torch.stack(policy.embed(prompts, policy.features(prompts)))
    positions, length = torch.stack([prompt.positions for prompt in prompts], 1), embeds.shape[1]
    wanted = torch.tensor([length - 1, 3, 2 * length - 1, length - 1])
    states = [
        policy.decoder(embeds, positions, None).flatten(0, 1)[wanted],
        policy.decoder(embeds, positions, None, wanted=wanted),
    ]
    assert computed == [(2, length), (1, 4)]
    torch.testing.assert_close(*states, atol=2e-5, rtol=0)  # a product of fewer rows sums in another order
    weights, trained = torch.linspace(-1, 1, states[0].numel()).view_as(states[0]), list(policy.parameters())
    gradients = [
        torch.autograd.grad((each * weights).sum(), trained, retain_graph=True, allow_unused=True) for each in states
    ]
    assert sum(each is not None for each in gradients[0]) > 50
    for every, some in zip(*gradients, strict=True):
        assert (every is None) == (some is None)
        assert every is None or (every - some).norm() <= 1e-4 * every.norm()


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@torch.no_grad()
def test_block_masks_of_flex_attention_see_what_dense_masks_see(checkpoint, monkeypatch):
    folder, processor = checkpoint
    ids = [processor.encode_report(text) for text in REPORTS]
    layout = pack(prompts_of(processor, 3), [ids, ids[:1], ids[1:]])  # rows of several lengths: padding too
    policy = load(folder)
    dense, _ = report_logps(policy, layout)
    monkeypatch.setattr(packing, "in_blocks", lambda layout: True)
    blocks, _ = report_logps(policy, layout)
    # two orders of summation in float32; a token seen too much or too little shows in the second digit
    torch.testing.assert_close(blocks, dense, atol=2e-5, rtol=0)


def write(policy, processor, prompts, temperature, tokens):
    requests = [Request(p, tuple(sample_seed(0, "t", 0, p.study_id, i) for i in range(2))) for p in prompts]
    sampling = SamplingConfig(temperature=temperature, max_new_tokens=tokens)
    options = {"eos_id": processor.eos_id, "suppressed": suppressed_mask(policy, processor), "slots": 24}
    written = rollout(policy, requests, sampling=sampling, **options)
    return sorted(written, key=lambda r: (int(r.study_id[1:]), r.sample))


def test_greedy_equals_generate_on_50_prompts(checkpoint):
    folder, processor = checkpoint
    policy, prompts = load(folder), prompts_of(processor, 50)
    ours = write(policy, processor, prompts, 0.0, 16)[::2]
    lengths = set()
    for prompt, report in zip(prompts, ours, strict=True):
        theirs = greedy(policy, processor, prompt, max_new_tokens=16)
        assert report.response_ids.tolist() == theirs.tolist(), prompt.study_id
        lengths.add(len(prompt.input_ids))
    assert len(lengths) > 10  # prompts of many lengths shared the slots
    assert len({tuple(report.response_ids.tolist()) for report in ours}) > 5  # and the images made a difference


def test_sampled_behaviour_logps_equal_recomputed_ones(checkpoint):
    folder, processor = checkpoint
    policy, prompts = load(folder), prompts_of(processor, 6)
    suppressed, reports = suppressed_mask(policy, processor), write(policy, processor, prompts, 0.9, 24)
    groups = [reports[2 * i : 2 * i + 2] for i in range(6)]
    with torch.no_grad():
        layout = pack(prompts, [[r.response_ids for r in group] for group in groups])
        logps, _ = report_logps(policy, layout, temperature=0.9, suppressed=suppressed)
    sampled = layout.pad(torch.cat([r.behaviour_logps for r in reports]))
    torch.testing.assert_close(logps, sampled, atol=1e-4, rtol=0)
