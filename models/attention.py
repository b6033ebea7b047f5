"""Attention of the language model: a dense mask goes to transformers' own function, a block mask to FlexAttention."""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch._dynamo import mark_dynamic
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import pad
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

NAME = "radflow"
SMALLEST_HEAD = 16  # of FlexAttention's kernels; they round other sizes up to a power of two themselves


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | BlockMask | None,
    *,
    scaling: float,
    **options: object,
) -> tuple[Tensor, None]:
    """[B, H, L, d], [B, K, S, d] twice and a mask -> [B, L, H, d]; a group of H / K query heads shares a key head."""
    if not isinstance(attention_mask, BlockMask):
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    width = query.shape[-1]
    if width < SMALLEST_HEAD:
        query, key, value = (pad(states, (0, SMALLEST_HEAD - width)) for states in (query, key, value))
    for states in (query, key, value):
        mark_dynamic(states, 2)  # even where the length equals another size by chance
    flex = _flex(query.device.type)
    out = flex(query, key, value, block_mask=attention_mask, scale=scaling, enable_gqa=True)
    return out[..., :width].transpose(1, 2), None


@cache
def _flex(device: str) -> Callable[..., Tensor]:
    """Compiled where its kernels exist; elsewhere the definition, which has no gradient but says what is right."""
    return torch.compile(flex_attention, dynamic=True) if device == "cuda" else flex_attention


AttentionInterface.register(NAME, attend)
