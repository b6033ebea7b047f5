"""The decoder for one token per report on a CPU: packed copies of its weights, and a few calls per layer."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import rms_norm, scaled_dot_product_attention
from transformers.models.qwen2_vl.modeling_qwen2_vl import rotate_half

from radflow.models.lora import LoraLinear
from radflow.models.qwen_vl import QwenVL

MOST_BYTES = 4 * 2**30  # of the copies; a larger decoder is read as it is

Multiply = Callable[[Tensor], Tensor]  # [S, in] -> [S, out]
Pack = Callable[[Tensor, Tensor | None], Multiply]  # of a weight [out, in] and a bias [out]


@contextmanager
def packed(policy: QwenVL, pack: Pack) -> Iterator[None]:
    """Decode with packed copies of the decoder's weights for the duration of a `with` in which they do not change.

    Args:
        pack: `capo.sampling.pack_linear`.
    """
    layers, before = policy.model.model.language_model.layers, policy.decode
    size = sum(each.numel() * each.element_size() for each in layers.parameters())
    if before is None and policy.device.type == "cpu" and size <= MOST_BYTES:
        policy.decode = PackedDecoder(policy, pack)
    try:
        yield
    finally:
        policy.decode = before


class PackedDecoder:
    """What `QwenVL.decoder` computes for one token per report: the same up to rounding."""

    def __init__(self, policy: QwenVL, pack: Pack) -> None:
        text = policy.model.model.language_model
        self.layers = [_Layer(layer, policy, pack) for layer in text.layers]
        self.rotary, self.norm = text.rotary_emb, _norm(text.norm)

    def __call__(self, embeds: Tensor, positions: Tensor, mask: Tensor, cache: Any) -> Tensor:
        """[S, 1, D], [3, S, 1], mask [S, 1, 1, reach] added to the scores -> hidden [S, 1, D], normed."""
        rotation = self.rotary(embeds, positions)
        hidden = embeds[:, 0]
        for index, layer in enumerate(self.layers):
            hidden = layer(hidden, rotation, mask, lambda *new, index=index: cache.update(*new, index))
        return self.norm(hidden)[:, None]


class _Layer:
    """One layer; query, key and value are one product, gate and up another."""

    def __init__(self, layer: Any, policy: QwenVL, pack: Pack) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.kv_heads, self.head_dim, self.scale = policy.num_kv_heads, policy.head_dim, attention.scaling
        self.qkv = _Product([attention.q_proj, attention.k_proj, attention.v_proj], pack)
        self.out, self.down = _Product([attention.o_proj], pack), _Product([mlp.down_proj], pack)
        self.gate_up, self.activate = _Product([mlp.gate_proj, mlp.up_proj], pack), mlp.act_fn
        self.norms = _norm(layer.input_layernorm), _norm(layer.post_attention_layernorm)
        self.norm_heads = _norm_heads(attention, self.kv_heads)

    def __call__(self, hidden: Tensor, rotation: Sequence[Tensor], mask: Tensor, remember: Callable) -> Tensor:
        before, after = self.norms
        hidden = hidden + self._attend(before(hidden), rotation, mask, remember)
        gate, up = self.gate_up(after(hidden)).chunk(2, -1)
        return hidden + self.down(self.activate(gate) * up)

    def _attend(self, hidden: Tensor, rotation: Sequence[Tensor], mask: Tensor, remember: Callable) -> Tensor:
        """[S, D] -> [S, D]; `remember` adds keys and values to the cache and gives all that are to be read."""
        cos, sin = rotation
        heads = self.qkv(hidden).unflatten(-1, (-1, self.head_dim))
        heads, value = heads.tensor_split([-self.kv_heads], 1)
        heads = self.norm_heads(heads)
        query, key = (heads * cos + rotate_half(heads) * sin).tensor_split([-self.kv_heads], 1)
        keys, values = remember(key[:, :, None], value[:, :, None])
        # The query heads that share a key head are the rows of one attention: nothing is copied for each of them.
        grouped = query.unflatten(1, (self.kv_heads, -1))
        return self.out(_attention(grouped, keys, values, mask, self.scale).flatten(1))


class _Product:
    """Linear layers of one input as one product with a packed copy of their weights, adapters folded in.

    Folded into half precision, most of a small update would be rounded away: there adapters stay separate.

    Args:
        layers: `nn.Linear` or `LoraLinear`.
    """

    @torch.no_grad()
    def __init__(self, layers: Sequence[Any], pack: Pack) -> None:
        bases = [layer.base if isinstance(layer, LoraLinear) else layer for layer in layers]
        weight = torch.cat([base.weight for base in bases])
        self.adapters: list[tuple[slice, LoraLinear]] = []  # those that stay separate, and their columns
        start = 0
        for layer, base in zip(layers, bases, strict=True):
            columns = slice(start, start + base.out_features)
            start = columns.stop
            if not (isinstance(layer, LoraLinear) and layer.enabled):
                continue
            if weight.dtype == torch.float32:
                layer.fold_into(weight[columns])
            else:
                self.adapters.append((columns, layer))
        self.multiply = pack(weight, None if bases[0].bias is None else torch.cat([base.bias for base in bases]))

    def __call__(self, rows: Tensor) -> Tensor:
        out = self.multiply(rows)
        for columns, adapter in self.adapters:
            adapter.add_to(out[:, columns], rows)
        return out


def _attention(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float) -> Tensor:
    """[S, K, G, d], [S, K, reach, d] twice, [S, 1, 1, reach] -> [S, K, G, d]."""
    if query.dtype != torch.float32:  # products would be rounded before the softmax
        return scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scale)
    # For the few rows of one token, two products take half as long as the kernel for many.
    return ((query * scale) @ keys.transpose(-1, -2)).add_(mask).softmax(-1) @ values


def _norm(norm: Any) -> Multiply:
    """An RMSNorm over the last dimension as one call."""
    return lambda states: rms_norm(states, norm.weight.shape, norm.weight, norm.variance_epsilon)


def _norm_heads(attention: Any, kv_heads: int) -> Multiply:
    """What Qwen3-VL does to each head of query and key, [S, H + K, d]; the others nothing."""
    if not hasattr(attention, "q_norm"):
        return lambda heads: heads
    query, key = attention.q_norm, attention.k_norm
    weights = [query.weight.expand(kv_heads * attention.num_key_value_groups, -1), key.weight.expand(kv_heads, -1)]
    weight = torch.cat(weights)
    return lambda heads: rms_norm(heads, weight.shape[-1:], None, query.variance_epsilon) * weight
