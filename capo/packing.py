"""Shared-prefix layout: a study's prompt once, followed by all of its reports, and studies one after another.

A report attends to the prompt and to its own earlier tokens, and its positions restart at the prompt's end, so each
report sees exactly what it would see alone, at P + sum(T_i) tokens instead of G (P + T). Nothing is padded.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, cached_property
from itertools import accumulate, chain
from typing import Any

import torch
from torch import Tensor
from torch._dynamo import mark_dynamic
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from torch.nn.functional import embedding, pad, scaled_dot_product_attention
from torch.nn.utils.rnn import pad_sequence
from torch.utils._pytree import tree_map_only

from capo.logprobs import linear_logps
from capo.types import Policy, Prompt

BLOCK = 128  # side of a block of FlexAttention's masks
LEAST_SCORES = 2**13  # that one more call of attention must save; in the demo a call costs about as much

Sizes = tuple[tuple[int, ...], ...]  # per study: tokens of its prompt and of each of its reports


@dataclass(frozen=True)
class Layout:
    """M tokens: of each prompt, then of each of its reports. The R reports have N of them."""

    prompts: tuple[Prompt, ...]
    sizes: Sizes
    positions: Tensor  # [3, M] int64
    predictors: Tensor  # [N] int64, index of the hidden state that predicts each report token
    targets: Tensor  # [N] int64, report tokens
    mask: Tensor  # [R, T] bool, True on report tokens; flat order of its True cells is that of `targets`

    @property
    def num_tokens(self) -> int:
        """M, what the decoder computes."""
        return self.positions.shape[1]

    @cached_property
    def attention(self) -> "SharedPrefixMask":
        """bool [1, 1, M, M]: causal, to the prompt or within a report."""
        return SharedPrefixMask(self.sizes, self.positions.device)

    @cached_property
    def block_mask(self) -> BlockMask:
        """The same rule for FlexAttention, which skips empty blocks: [1, 1, L, L], with padding up to whole blocks."""
        segments, prefixes = (whole_blocks(each, dim=0, fill=-1) for each in self.attention.segments)

        def visible(_: Tensor, __: Tensor, query: Tensor, key: Tensor) -> Tensor:
            own = segments[key]
            return (query >= key) & ((own == segments[query]) | (own == prefixes[query]))

        length = len(segments)
        mask = _mask_maker(segments.device.type)(visible, 1, None, length, length, device=segments.device)
        # Otherwise a number of blocks that equals the number of heads is compiled as a constant too.
        for tensor in (segments, prefixes, *(part for part in mask.as_tuple() if isinstance(part, Tensor))):
            mark_dynamic(tensor, [dim for dim, size in enumerate(tensor.shape) if size > 1])
        return mask

    def to(self, device: torch.device) -> "Layout":
        """The same layout with its tensors on `device`; the prompts stay where they are."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("prompts", "sizes")}
        return replace(self, **{name: tensor.to(device) for name, tensor in tensors.items()})

    def pad(self, flat: Tensor) -> Tensor:
        """[N] values of the report tokens -> [R, T], 0 outside the mask; differentiable."""
        return flat.new_zeros(self.mask.shape).masked_scatter(self.mask, flat)


class SharedPrefixMask(Tensor):
    """A bool mask with which `scaled_dot_product_attention` computes no scores between reports or studies.

    A prompt and its first report are one causal sequence; each other report attends to its prompt and itself: for G
    reports of T tokens after a prompt of P that is (P + T)^2 + (G - 1) T (P + T) scores, not (P + G T)^2. Every other
    function gets the dense mask.

    Args:
        sizes: as in `Layout`.

    Source: the technique is that of `torch.nn.attention.bias.CausalBias`.
    """

    sizes: Sizes
    mask_device: torch.device

    def __new__(cls, sizes: Sizes, device: torch.device) -> "SharedPrefixMask":
        mask = torch.empty(0, dtype=torch.bool, device=device).as_subclass(cls)
        mask.sizes, mask.mask_device = sizes, device
        return mask

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is scaled_dot_product_attention:
            return _attend(*args, **kwargs or {})
        args, kwargs = tree_map_only(cls, lambda mask: mask.dense, (args, kwargs or {}))
        return func(*args, **kwargs)

    @cached_property
    def segments(self) -> Tensor:
        """Of each token: the number of its prompt or report, and that of its study's prompt, [2, M] int64."""
        lengths, counts = torch.tensor(list(chain(*self.sizes))), torch.tensor(list(map(len, self.sizes)))
        prompts = (counts.cumsum(0) - counts).repeat_interleave(counts)
        return torch.stack([torch.arange(len(lengths)), prompts]).repeat_interleave(lengths, 1).to(self.mask_device)

    @cached_property
    def dense(self) -> Tensor:
        """bool [1, 1, M, M]."""
        segments, prefixes = self.segments.unbind()
        return ((segments == segments[:, None]) | (segments == prefixes[:, None])).tril()[None, None]

    @cached_property
    def parts(self) -> "_Parts":
        return _Parts.of(self.sizes, self.mask_device)


@dataclass(frozen=True)
class _Parts:
    """Which of the M tokens attention computes together: each prompt with its first report, and each other report, in
    buckets of similar length. Indices are 0 after the end of a sequence.
    """

    queries: Tensor  # [sum of R T] int64, of one bucket after another
    keys: Tensor  # [sum of R S] int64
    query_shapes: tuple[torch.Size, ...]  # (R, T) of each bucket
    key_shapes: tuple[torch.Size, ...]  # (R, S)
    visible: tuple[Tensor | None, ...]  # [R, 1, T, S] bool; None: causal
    order: Tensor  # [M] int64, of each token in `queries`

    @classmethod
    def of(cls, sizes: Sizes, device: torch.device) -> "_Parts":
        studies = _indices(sizes)
        firsts = [torch.cat(study[:2]) for study in studies]
        others = [(prompt, report) for prompt, *reports in studies for report in reports[1:]]
        of_firsts = bucket_by_length([(len(first), len(first)) for first in firsts], LEAST_SCORES)
        of_others = bucket_by_length([(len(own), len(prompt) + len(own)) for prompt, own in others], LEAST_SCORES)
        buckets = [_causal([firsts[i] for i in bucket]) for bucket in of_firsts]
        buckets += [_after_prompts([others[i] for i in bucket]) for bucket in of_others]
        queries, keys, visible = zip(*buckets, strict=True)
        sequence, seen = (torch.cat([each.flatten() for each in part]) for part in (queries, keys))
        order = torch.empty(sum(map(sum, sizes)), dtype=torch.int64)
        order[sequence[sequence >= 0]] = (sequence >= 0).nonzero()[:, 0]
        return cls(
            queries=sequence.clamp(min=0).to(device),
            keys=seen.clamp(min=0).to(device),
            query_shapes=tuple(each.shape for each in queries),
            key_shapes=tuple(each.shape for each in keys),
            visible=tuple(None if mask is None else mask.to(device) for mask in visible),
            order=order.to(device),
        )


_Bucket = tuple[Tensor, Tensor, Tensor | None]  # queries, keys and what they see; -1 after the end of a sequence


def _causal(sequences: Sequence[Tensor]) -> _Bucket:
    """Of prompts with their first reports."""
    stacked = _stack(sequences)
    return stacked, stacked, None


def _after_prompts(pairs: Sequence[tuple[Tensor, Tensor]]) -> _Bucket:
    """Of other reports, each with its prompt, which see their prompt and themselves."""
    prompts, reports = (_stack(each) for each in zip(*pairs, strict=True))
    causal = torch.ones(2 * reports.shape[1:], dtype=torch.bool).tril()
    visible = [each.expand(len(reports), len(causal), -1) for each in ((prompts >= 0)[:, None], causal)]
    return reports, torch.cat([prompts, reports], 1), torch.cat(visible, -1)[:, None]


def bucket_by_length(sizes: Sequence[tuple[int, int]], least: int) -> list[list[int]]:
    """Buckets of the indices of `sizes`, (height, width) each, in which all are padded to the highest and the widest.

    The highest come first. One more bucket saves at least `least` cells of padding, which is what its calls cost.
    """
    order = sorted(range(len(sizes)), key=lambda i: sizes[i], reverse=True)
    return _split(order, sizes, least) if order else []


def _split(order: list[int], sizes: Sequence[tuple[int, int]], least: int) -> list[list[int]]:
    heights, widths = zip(*(sizes[i] for i in order), strict=True)
    widest, widest_after = list(accumulate(widths, max)), list(accumulate(widths[::-1], max))[::-1]
    cells = [
        cut * heights[0] * widest[cut - 1] + (len(order) - cut) * heights[cut] * widest_after[cut]
        for cut in range(1, len(order))
    ]
    if not cells or len(order) * heights[0] * widest[-1] - min(cells) < least:
        return [order]
    cut = 1 + cells.index(min(cells))
    return [*_split(order[:cut], sizes, least), *_split(order[cut:], sizes, least)]


def _indices(sizes: Sizes) -> list[list[Tensor]]:
    """Of the tokens of each prompt and of each of its reports, [T] int64 each."""
    tokens = iter(torch.split(torch.arange(sum(map(sum, sizes))), list(chain(*sizes))))
    return [[next(tokens) for _ in study] for study in sizes]


def _stack(sequences: Sequence[Tensor]) -> Tensor:
    """[T] int64 each -> [R, longest], -1 after the end of each."""
    return pad_sequence(list(sequences), batch_first=True, padding_value=-1)


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: SharedPrefixMask,
    dropout_p: float = 0.0,
    is_causal: bool = False,  # the mask is so already
    **options: Any,
) -> Tensor:
    """`scaled_dot_product_attention`: [1, H, M, d], [1, K, M, d] twice -> [1, H, M, d]."""
    options["dropout_p"], length = dropout_p, sum(map(sum, attn_mask.sizes))
    if not (len(query) == 1 and query.shape[2] == key.shape[2] == length):
        return scaled_dot_product_attention(query, key, value, attn_mask.dense, **options)
    parts = attn_mask.parts
    queries = _take(query, parts.queries, parts.query_shapes)
    keys, values = (_take(each, parts.keys, parts.key_shapes) for each in (key, value))
    attended = [
        scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, **options).transpose(1, 2)
        for q, k, v, mask in zip(queries, keys, values, parts.visible, strict=True)
    ]
    rows = torch.cat([each.flatten(2).flatten(0, 1) for each in attended])
    return embedding(parts.order, rows).view(1, length, -1, value.shape[-1]).transpose(1, 2)


def _take(states: Tensor, indices: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """[1, H, M, d] at indices of M, [R, T] of each bucket one after another -> [R, H, T, d] of each."""
    # Not states[indices]: the tokens of a prompt are read once per report, and the gradients of an index race on a CPU.
    # Of all buckets at once: the gradient of each call of the embedding is as large as the states.
    taken = embedding(indices, states[0].transpose(0, 1).flatten(1))
    parts = torch.split(taken, [shape.numel() for shape in shapes])
    return [part.view(*shape, -1, states.shape[-1]).transpose(1, 2) for part, shape in zip(parts, shapes, strict=True)]


@cache
def _mask_maker(device: str) -> Callable[..., BlockMask]:
    """Compiled on a GPU, so that no [M, M] mask is written to memory."""
    return torch.compile(create_block_mask, dynamic=True) if device == "cuda" else create_block_mask


def in_blocks(layout: Layout) -> bool:
    """Whether attention uses FlexAttention, which has kernels with gradients on a GPU only."""
    return layout.positions.is_cuda


def whole_blocks(values: Tensor, *, dim: int, fill: int = 0) -> Tensor:
    """[.., M, ..] -> [.., L, ..]: with `fill` at the end of `dim`, up to whole blocks, at least two.

    torch.compile makes another graph for each dimension of size 1. Here none changes between 1 and more, so that one
    graph serves every layout.
    """
    shape = list(values.shape)
    shape[dim] = max(2 * BLOCK, -(-shape[dim] // BLOCK) * BLOCK) - shape[dim]
    return torch.cat([values, values.new_full(shape, fill)], dim)


def pack(prompts: Sequence[Prompt], responses: Sequence[Sequence[Tensor]]) -> Layout:
    """Lay out studies one after another, on the CPU.

    `responses` are for each prompt its reports as [T] int64 token ids, EOS included; any number, of any length above 0.
    """
    if len(prompts) != len(responses) or not prompts:
        raise ValueError(f"expected reports for each prompt, got {len(responses)} groups and {len(prompts)} prompts")
    for prompt, group in zip(prompts, responses, strict=True):
        if any(len(response) == 0 for response in group):
            raise ValueError(f"study {prompt.study_id}: a report without tokens cannot be trained on")
    sizes = tuple((len(p.input_ids), *map(len, group)) for p, group in zip(prompts, responses, strict=True))
    positions = []
    for prompt, (_, *lengths) in zip(prompts, sizes, strict=True):
        steps = [torch.arange(length).expand(3, -1) + prompt.next_position for length in lengths]
        positions += [prompt.positions, *steps]
    # The prompt's last token predicts the first token of every report.
    predictors = [torch.cat([own[0][-1:], report[:-1]]) for own in _indices(sizes) for report in own[1:]]
    reports = list(chain(*responses))
    none = torch.zeros(0, dtype=torch.int64)
    ends = torch.tensor([len(report) for report in reports], dtype=torch.int64)[:, None]
    return Layout(
        prompts=tuple(prompts),
        sizes=sizes,
        positions=torch.cat(positions, 1),
        predictors=torch.cat([none, *predictors]),
        targets=torch.cat([none, *reports]),
        mask=torch.arange(max(map(len, reports), default=0)) < ends,
    )


def micro_batches(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Split studies into micro-batches of at most `token_budget` tokens, the longest together.

    A study over the budget is a micro-batch of its own: studies are never cut.
    """
    batches: list[list[int]] = []
    used = 0
    for study in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        used += lengths[study]
        if not batches or used > token_budget:
            batches.append([])
            used = lengths[study]
        batches[-1].append(study)
    return batches


def report_logps(
    policy: Policy,
    layout: Layout,
    *,
    features: Sequence[Tensor] | None = None,
    temperature: float = 1.0,
    suppressed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy of every report token, [R, T] each, 0 outside `layout.mask`.

    Args:
        features: image features of the layout's prompts; None runs the vision tower.
        temperature, suppressed: as when sampling.
    """
    if features is None:
        features = policy.features(layout.prompts)
    embeds, positions = _embed(policy, layout, features), layout.positions[:, None]
    if in_blocks(layout):
        embeds, positions = whole_blocks(embeds, dim=1), whole_blocks(positions, dim=2)
    mask = layout.block_mask if in_blocks(layout) else layout.attention
    hidden = policy.decoder(embeds, positions, mask, wanted=layout.predictors)
    logps, entropy = linear_logps(
        hidden, policy.output_weight(), layout.targets, temperature=temperature, suppressed=suppressed
    )
    return layout.pad(logps), layout.pad(entropy)


def _embed(policy: Policy, layout: Layout, features: Sequence[Tensor]) -> Tensor:
    """Input embeddings of all tokens, [1, M, W]."""
    prompts = policy.embed(layout.prompts, features)
    reports = policy.embed_tokens(layout.targets)
    reports = pad(reports, (0, prompts[0].shape[-1] - reports.shape[-1]))
    groups = torch.split(reports, [sum(lengths) for _, *lengths in layout.sizes])
    return torch.cat(list(chain(*zip(prompts, groups, strict=True))))[None]
