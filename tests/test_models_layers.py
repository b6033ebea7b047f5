"""The rebuilt vision tower against transformers' own, untouched: three families, images and windows of unequal size."""

import copy

import pytest
import torch
from torch.nn import functional
from transformers import Qwen2_5_VLConfig, Qwen2VLConfig, Qwen3VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
    Qwen2_5_VLRMSNorm,
)
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

from radflow.models import layers

COMMON = {"depth": 3, "num_heads": 2, "spatial_merge_size": 2, "temporal_patch_size": 2}
WIDE = {**COMMON, "hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 24}
TOWERS = {
    "qwen2_vl": (
        Qwen2VisionTransformerPretrainedModel,
        Qwen2VLConfig,
        {**COMMON, "embed_dim": 32, "hidden_size": 24, "mlp_ratio": 2, "patch_size": 14},
    ),
    "qwen2_5_vl": (
        Qwen2_5_VisionTransformerPretrainedModel,
        Qwen2_5_VLConfig,
        {**WIDE, "patch_size": 14, "window_size": 112, "fullatt_block_indexes": [1]},
    ),
    "qwen3_vl": (
        Qwen3VLVisionModel,
        Qwen3VLConfig,
        {**WIDE, "patch_size": 16, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]},
    ),
}
# Patches: windows of 8 x 8 are cut at the borders to 8 x 4, 4 x 8, 4 x 4 and 8 x 2; two images are of one size.
GRIDS = torch.tensor([[1, 12, 20], [1, 8, 8], [1, 10, 18], [1, 12, 20]])

ROUNDING = 2e-6  # rotations and norms are float32 in both; the last digit of the largest feature, 13.7, is 1e-6


@pytest.fixture(params=sorted(TOWERS))
def towers(request):
    """Transformers' tower, and the same with our modules."""
    kind, config, options = TOWERS[request.param]
    torch.manual_seed(0)
    settings = config(vision_config={**options, "initializer_range": 0.2}).vision_config
    settings._attn_implementation = "sdpa"
    theirs = kind(settings).eval().double()
    ours = copy.deepcopy(theirs)
    layers.rebuild_tower(ours)
    return theirs, ours


def pixels_of(tower, device="cpu"):
    weight = tower.patch_embed.proj.weight
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(int(GRIDS.prod(-1).sum()), weight[0].numel(), generator=generator)
    return pixels.to(device)


def outputs(found):
    return [found.pooler_output, *(getattr(found, "deepstack_features", None) or ())]


def run(tower, device="cpu"):
    given = layers.tower_inputs(tower, GRIDS, torch.device(device))
    return outputs(tower(pixels_of(tower, device), grid_thw=GRIDS, **given))


def test_features_and_gradients_equal_those_of_the_tower_as_published(towers):
    theirs, ours = towers
    expected, found = outputs(theirs(pixels_of(theirs), grid_thw=GRIDS)), run(ours)
    torch.testing.assert_close(found, expected, atol=ROUNDING, rtol=0)
    for values in (expected, found):
        sum((value * torch.linspace(-1, 1, value.numel()).view_as(value)).sum() for value in values).backward()
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    for (name, a), b in zip(theirs.named_parameters(), ours.parameters(), strict=True):
        assert (a.grad - b.grad).norm() <= 1e-6 * a.grad.norm() + 1e-9, name


def test_transformers_may_drive_the_rebuilt_tower_too(towers):
    theirs, ours = towers
    found = outputs(ours(pixels_of(ours), grid_thw=GRIDS))
    torch.testing.assert_close(found, outputs(theirs(pixels_of(theirs), grid_thw=GRIDS)), atol=ROUNDING, rtol=0)


def test_attention_is_called_once_for_all_windows_of_a_length(towers, monkeypatch):
    _, ours = towers
    calls = []
    monkeypatch.setattr(
        layers,
        "scaled_dot_product_attention",
        lambda *states: calls.append(states[0].shape[::2]) or functional.scaled_dot_product_attention(*states),
    )
    run(ours)
    # images: one of 64 patches, one of 180 and two of 240, in each block
    images = [(1, 64), (1, 180), (2, 240)]
    if not hasattr(ours, "window_size"):
        assert calls == images * 3
        return
    # 12 x 20: two whole windows, one 8 x 4, two 4 x 8, one 4 x 4; 10 x 18: two whole, one 8 x 2, two 2 x 8, one 2 x 2
    windows = [(1, 4), (2 + 3, 16), (2 * 3, 32), (2 * 2 + 1 + 2, 64)]
    assert calls == windows + images + windows


def test_the_host_never_waits_for_the_device(towers):
    # a tensor on the meta device holds no values: whoever asks for one, as tolist() or item() do, gets an error
    _, ours = towers
    found = run(ours.to("meta"), "meta")
    assert found[0].shape == (int(GRIDS.prod(-1).sum()) // 4, 24)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("trained", [True, False], ids=["trained", "frozen"])
def test_a_norm_and_its_gradients_equal_those_of_transformers(dtype, trained):
    generator = torch.Generator().manual_seed(0)
    states, upstream = (torch.randn(2, 5, 48, generator=generator) for _ in range(2))
    states[0, 0] *= 0.01  # where epsilon counts
    theirs = Qwen2_5_VLRMSNorm(48, eps=1e-3)
    theirs.weight.data.normal_(generator=generator)
    theirs = theirs.to(dtype).requires_grad_(trained)
    ours = layers.RmsNorm(copy.deepcopy(theirs))
    gradients = []
    for norm in (theirs, ours):
        given = states.to(dtype).requires_grad_()
        found = norm(given)
        found.backward(upstream.to(dtype))
        gradients.append([found, given.grad, norm.weight.grad])
    for a, b in zip(*gradients, strict=True):
        if a is None:
            assert b is None and not trained
        else:
            assert a.dtype == b.dtype == dtype
            # gradients pass through a few roundings of `dtype`
            assert (a - b).norm() <= 2 * torch.finfo(dtype).eps * a.norm()
