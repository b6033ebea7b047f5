"""The vision tower with one attention call for all windows of a length, and its patch embedding as a matrix product.

Layers and names of weights stay those of transformers' tower; two kinds of module are replaced by ones that hold the
same children.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention
from transformers.models.qwen2_vl.modeling_qwen2_vl import apply_rotary_pos_emb_vision
from transformers.vision_utils import (
    get_vision_cu_seqlens,
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
    get_vision_window_index,
)


@dataclass(frozen=True)
class Segments:
    """Which of N patches attend to each other: those of one segment, a window or an image."""

    groups: tuple[tuple[int, int], ...]  # how many segments of which length, shortest first
    order: Tensor | None  # [N] int64, patches segment by segment in the order of the groups; None: they lie so
    back: Tensor | None  # [N] int64, the inverse

    @classmethod
    def of(cls, owners: Tensor, device: torch.device) -> "Segments":
        """From the segment of each patch, [N] int64 on the CPU."""
        lengths = owners.bincount()
        found, counts = lengths[lengths > 0].unique(return_counts=True)
        order = by_length(owners)
        groups = tuple(zip(counts.tolist(), found.tolist(), strict=True))
        if torch.equal(order, torch.arange(len(owners))):
            return cls(groups, None, None)
        return cls(groups, order.to(device), order.argsort().to(device))

    @classmethod
    def of_bounds(cls, bounds: Tensor, device: torch.device) -> "Segments":
        """From the cumulative lengths [segments + 1] that transformers' own tower computes."""
        return cls.of(_owners(bounds.cpu()), device)


def by_length(owners: Tensor) -> Tensor:
    """[N] patches, those of the shortest segments first; within a length, segment by segment."""
    return (owners.bincount()[owners] * (owners.max() + 1) + owners).argsort(stable=True)


def _owners(bounds: Tensor) -> Tensor:
    lengths = bounds.diff().long()
    return torch.arange(len(lengths)).repeat_interleave(lengths)


class VisionAttention(nn.Module):
    """Attention within segments: one call for all segments of a length."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.qkv, self.proj, self.num_heads = attention.qkv, attention.proj, attention.num_heads

    def forward(
        self,
        hidden_states: Tensor,
        cu_seqlens: Tensor | Segments,
        position_embeddings: tuple[Tensor, Tensor],
        **_: object,
    ) -> Tensor:
        """[N, D] -> [N, D]; transformers' own generation gives cumulative lengths, `tower_inputs` segments."""
        segments = cu_seqlens
        if not isinstance(segments, Segments):
            segments = Segments.of_bounds(segments, hidden_states.device)
        qkv = self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = qkv.unbind(1)
        query, key = apply_rotary_pos_emb_vision(query, key, *position_embeddings)
        return self.proj(_within(segments, query, key, value).flatten(1))


def _within(segments: Segments, *states: Tensor) -> Tensor:
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
    """A convolution whose kernel is its stride, on patches that are cut out already: a matrix product."""

    def __init__(self, proj: nn.Conv3d) -> None:
        super().__init__()
        self.proj = proj

    def forward(self, pixels: Tensor) -> Tensor:
        """[N, C] of any type -> [N, D] of the weight's."""
        weight = self.proj.weight
        return linear(pixels.to(weight.dtype), weight.flatten(1), self.proj.bias)


def rebuild(tower: nn.Module) -> None:
    """Put both modules into transformers' tower."""
    tower.patch_embed = PatchEmbedding(tower.patch_embed.proj)
    for block in tower.blocks:
        block.attn = VisionAttention(block.attn)


def tower_inputs(tower: nn.Module, grids: Tensor, device: torch.device) -> dict[str, Tensor | Segments]:
    """What a tower derives from the grids of its images, [images, 3] on the CPU, computed there: the device is never
    waited for. Windows of one length come one after another, whichever images they are from."""
    merge = tower.spatial_merge_size
    given: dict[str, Tensor | Segments] = {"position_ids": get_vision_position_ids(grids, merge).to(device)}
    images = _owners(get_vision_cu_seqlens(grids))
    if hasattr(tower, "window_size"):
        index, bounds = get_vision_window_index(grids, merge, tower.window_size, tower.patch_size)
        windows = _owners(bounds)
        order = by_length(windows[:: merge**2])
        index, windows = index[order], windows.view(-1, merge**2)[order].flatten()
        given |= {"window_index": index.to(device), "cu_window_seqlens": Segments.of(windows, device)}
        images = images.view(-1, merge**2)[index].flatten()
    if hasattr(tower, "pos_embed"):
        indices, weights = get_vision_interpolation_indices_and_weights(
            grids, tower.num_grid_per_side, mode=tower.interpolation_mode,
            align_corners=tower.interpolation_align_corners, spatial_merge_size=merge,
        )  # fmt: skip
        given |= {"interp_indices": indices.to(device), "interp_weights": weights.to(device)}
    return {**given, "cu_seqlens": Segments.of(images, device)}
