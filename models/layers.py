"""What is ours in transformers' model: the decoder's attention and last layer, the norms, and two modules of the tower.

The tower gets one attention call for all windows of a length, and its patch embedding as a matrix product. Layers and
names of weights stay transformers'; our modules hold the same children.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo import mark_dynamic
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import embedding, linear, pad, scaled_dot_product_attention
from transformers import AttentionInterface, vision_utils
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_layers import GradientCheckpointingLayer

from radflow.models.gradients import RmsNorm, rotate

ATTENTION_NAME = "radflow"
SMALLEST_HEAD = 16  # of FlexAttention's kernels; they round other sizes up to a power of two themselves


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | BlockMask | None, **options: Any
) -> tuple[Tensor, None]:
    """Attention of the language model: a block mask goes to FlexAttention, others to PyTorch's kernels.

    [B, H, L, d], [B, K, S, d] twice and a mask -> [B, L, H, d]; a group of H / K query heads shares a key head.
    """
    if not isinstance(mask, BlockMask):
        if mask is None or query.shape[2] == 1:
            return sdpa_attention_forward(module, query, key, value, mask, **options)
        # transformers would copy keys and values for each query head.
        out = scaled_dot_product_attention(query, key, value, mask, scale=options["scaling"], enable_gqa=True)
        return out.transpose(1, 2), None
    width = query.shape[-1]
    if width < SMALLEST_HEAD:
        query, key, value = (pad(states, (0, SMALLEST_HEAD - width)) for states in (query, key, value))
    for states in (query, key, value):
        mark_dynamic(states, 2)  # even if the length equals another size by chance
    flex = _flex(query.device.type)
    out = flex(query, key, value, block_mask=mask, scale=options["scaling"], enable_gqa=True)
    return out[..., :width].transpose(1, 2), None


@cache
def _flex(device: str) -> Callable[..., Tensor]:
    """Compiled on a GPU, which has kernels for it; elsewhere the definition, which is right but has no gradient."""
    flex: Any = flex_attention
    return torch.compile(flex, dynamic=True) if device == "cuda" else flex


AttentionInterface.register(ATTENTION_NAME, attend)


class LastLayer(GradientCheckpointingLayer):
    """The decoder's last layer, whose MLP computes only the states that are wanted: of a prompt, its last token's."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.self_attn, self.mlp = layer.self_attn, layer.mlp
        self.input_layernorm, self.post_attention_layernorm = layer.input_layernorm, layer.post_attention_layernorm

    def forward(self, hidden_states: Tensor, *, wanted: Tensor | None = None, **options: Any) -> Tensor:
        """[B, L, D] -> the same, or of `wanted`, [N] indices into B x L, [1, N, D]."""
        attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **options)
        hidden_states = hidden_states + attended
        if wanted is not None:
            # Not an index: reports share the prompt's last state, and the gradients of an index race on a CPU.
            hidden_states = embedding(wanted, hidden_states.flatten(0, 1))[None]
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


@dataclass(frozen=True)
class Segments:
    """Which of N patches attend to each other: those of one segment, which is a window or an image."""

    groups: tuple[tuple[int, int], ...]  # how many segments of which length, shortest first
    order: Tensor | None  # [N] int64, patches segment by segment in the order of the groups; None: they are in it
    back: Tensor | None  # [N] int64, the inverse

    @classmethod
    def of(cls, segment_ids: Tensor, device: torch.device) -> "Segments":
        """From the segment of each patch, [N] int64 on the CPU."""
        lengths = segment_ids.bincount()
        found, counts = lengths[lengths > 0].unique(return_counts=True)
        order = sort_by_length(segment_ids)
        groups = tuple(zip(counts.tolist(), found.tolist(), strict=True))
        if torch.equal(order, torch.arange(len(segment_ids))):
            return cls(groups, None, None)
        return cls(groups, order.to(device), order.argsort().to(device))


def sort_by_length(segment_ids: Tensor) -> Tensor:
    """[N] patches, those of the shortest segments first; within a length, segment by segment."""
    return (segment_ids.bincount()[segment_ids] * (segment_ids.max() + 1) + segment_ids).argsort(stable=True)


def _segment_ids(bounds: Tensor) -> Tensor:
    """The segment of each patch, from cumulative lengths [segments + 1]."""
    lengths = bounds.diff().long()
    return torch.arange(len(lengths)).repeat_interleave(lengths)


class VisionAttention(nn.Module):
    """Attention within segments: one call for all segments of a length."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.qkv, self.proj, self.num_heads = attention.qkv, attention.proj, attention.num_heads

    def forward(
        self, hidden_states: Tensor, cu_seqlens: Tensor | Segments, position_embeddings: Sequence[Tensor], **_: object
    ) -> Tensor:
        """[N, D] -> [N, D]; transformers' own generation gives cumulative lengths, `tower_inputs` segments."""
        segments = cu_seqlens
        if isinstance(segments, Tensor):
            segments = Segments.of(_segment_ids(segments.cpu()), hidden_states.device)
        qkv = self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, -1))
        query_and_key, value = qkv.split([2, 1], 1)
        query, key = rotate(query_and_key, *(each[:, None, None] for each in position_embeddings)).unbind(1)
        return self.proj(attend_within(segments, query, key, value[:, 0]).flatten(1))


def attend_within(segments: Segments, *states: Tensor) -> Tensor:
    """Query, key and value [N, H, d] -> [N, H, d]."""
    if segments.order is not None:
        states = tuple(each[segments.order] for each in states)
    sizes = [count * length for count, length in segments.groups]
    attended = []
    for (count, length), *parts in zip(segments.groups, *(each.split(sizes) for each in states), strict=True):
        batch = (part.unflatten(0, (count, length)).transpose(1, 2) for part in parts)
        attended.append(scaled_dot_product_attention(*batch).transpose(1, 2).flatten(0, 1))
    out = torch.cat(attended) if len(attended) > 1 else attended[0]
    return out if segments.back is None else out[segments.back]


class PatchEmbedding(nn.Module):
    """A convolution over patches that are cut out already, as a matrix product: its kernel is its stride."""

    def __init__(self, proj: nn.Conv3d) -> None:
        super().__init__()
        self.proj = proj

    def forward(self, pixels: Tensor) -> Tensor:
        """[N, C] of any type -> [N, D] of the weight's."""
        weight = self.proj.weight
        return linear(pixels.to(weight.dtype), weight.flatten(1), self.proj.bias)


def rebuild_decoder(decoder: Any) -> None:
    """Put the norms and the last layer into transformers' language model."""
    _rebuild_norms(decoder)
    decoder.layers[-1] = LastLayer(decoder.layers[-1])


def rebuild_tower(tower: Any) -> None:
    """Put the norms, the patch embedding and the attention into transformers' vision tower."""
    _rebuild_norms(tower)
    tower.patch_embed = PatchEmbedding(tower.patch_embed.proj)
    for block in tower.blocks:
        block.attn = VisionAttention(block.attn)


def _rebuild_norms(model: nn.Module) -> None:
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if hasattr(child, "variance_epsilon"):  # the norm classes of the families share nothing else
                setattr(parent, name, RmsNorm(child))


def tower_inputs(tower: Any, grids: Tensor, device: torch.device) -> dict[str, Tensor | Segments]:
    """What a tower derives from the grids of its images, [images, 3] on the CPU; computed there, so that nothing waits
    for the device. Windows of one length come one after another, whichever images they are from."""
    merge = tower.spatial_merge_size
    given: dict[str, Tensor | Segments] = {
        "position_ids": vision_utils.get_vision_position_ids(grids, merge).to(device)
    }
    images = _segment_ids(vision_utils.get_vision_cu_seqlens(grids))
    if hasattr(tower, "window_size"):
        index, bounds = vision_utils.get_vision_window_index(grids, merge, tower.window_size, tower.patch_size)
        windows = _segment_ids(bounds)
        order = sort_by_length(windows[:: merge**2])
        index, windows = index[order], windows.view(-1, merge**2)[order].flatten()
        given |= {"window_index": index.to(device), "cu_window_seqlens": Segments.of(windows, device)}
        images = images.view(-1, merge**2)[index].flatten()
    if hasattr(tower, "pos_embed"):
        way = {"mode": tower.interpolation_mode, "align_corners": tower.interpolation_align_corners}
        indices, weights = vision_utils.get_vision_interpolation_indices_and_weights(
            grids, tower.num_grid_per_side, spatial_merge_size=merge, **way
        )
        given |= {"interp_indices": indices.to(device), "interp_weights": weights.to(device)}
    return {**given, "cu_seqlens": Segments.of(images, device)}
