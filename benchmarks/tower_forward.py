"""The vision tower of Qwen2.5-VL-3B, four blocks of its 32, forward: transformers' against the rebuilt one.

    python benchmarks/tower_forward.py [--rounds 5] [--threads 2]

One image of 448 x 448 pixels and one of 1036 x 1036, random weights; the last of the four blocks attends to whole
images, as every eighth does in the published tower. The patch embedding is measured separately.
"""

import functools
from collections.abc import Callable

import torch
from harness import arguments, compare
from torch import nn
from transformers import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

from radflow.models.layers import rebuild_tower, tower_inputs

SIZES = (448, 1036)
VISION = {
    "depth": 4,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "out_hidden_size": 2048,
    "fullatt_block_indexes": [3],
    "window_size": 112,
    "patch_size": 14,
}


def tower(**options: int) -> nn.Module:
    config = Qwen2_5_VLConfig(vision_config=VISION | options).vision_config
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    return Qwen2_5_VisionTransformerPretrainedModel(config).eval()


def whole(side: int, *, rebuilt: bool) -> Callable[[], float]:
    """The work: features of one image."""
    made, grids = tower(), torch.tensor([[1, side // 14, side // 14]])
    if rebuilt:
        rebuild_tower(made)
    pixels = torch.randn(int(grids.prod()), 1176, generator=torch.Generator().manual_seed(1))

    @torch.no_grad()
    def work() -> float:
        given = tower_inputs(made, grids, pixels.device) if rebuilt else {}
        return float(made(pixels, grid_thw=grids, **given).pooler_output.abs().mean())

    return work


def patches(side: int, *, rebuilt: bool) -> Callable[[], float]:
    """The work: the patch embedding of one image."""
    made = tower(depth=1)
    if rebuilt:
        rebuild_tower(made)
    pixels = torch.randn((side // 14) ** 2, 1176, generator=torch.Generator().manual_seed(1))

    @torch.no_grad()
    def work() -> float:
        return float(made.patch_embed(pixels).abs().mean())

    return work


if __name__ == "__main__":
    options = arguments(__doc__)
    variants, against = {}, {}
    for title, make in (("tower", whole), ("patch embedding", patches)):
        for side in SIZES:
            names = [f"{title}, {side} x {side}: {who}" for who in ("transformers", "rebuilt")]
            for name, rebuilt in zip(names, (False, True), strict=True):
                variants[name], against[name] = functools.partial(make, side, rebuilt=rebuilt), names[0]
    compare(
        "tower_forward",
        variants,
        setting="Qwen2.5-VL-3B's vision tower, 4 of its 32 blocks, forward, float32, one image",
        rounds=options.rounds,
        threads=options.threads,
        against=against,
    )
