"""Shared-prefix layout: a study's prompt once, followed by all of its reports, in one sequence.

A report attends to the prompt and to its own earlier tokens, and its positions restart at the prompt's end, so each
report sees exactly what it would see alone, at P + sum(T_i) tokens instead of G (P + T).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor
from torch._dynamo import mark_dynamic
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.utils.rnn import pad_sequence
from torch.utils._pytree import tree_map_only

from capo.logprobs import linear_logps
from capo.types import Policy, Prompt

PROMPT, PADDING = -1, -2  # segment ids; reports count from 0
BLOCK = 128  # side of a block of FlexAttention's masks


@dataclass(frozen=True)
class Layout:
    """B studies, one per row of length L; their R reports, in row order, have N tokens."""

    prompts: tuple[Prompt, ...]
    token_ids: Tensor  # [B, L] int64, report tokens; 0 elsewhere
    segments: Tensor  # [B, L] int64, PROMPT, PADDING or the report's index in its row
    positions: Tensor  # [3, B, L] int64
    predictors: Tensor  # [N] int64, flat index of the hidden state that predicts each report token
    targets: Tensor  # [N] int64
    mask: Tensor  # [R, T] bool, True on report tokens; flat order of its True cells is that of `targets`

    @property
    def num_tokens(self) -> int:
        """B x L, what the decoder computes."""
        return self.token_ids.numel()

    @cached_property
    def attention(self) -> "SharedPrefixMask":
        """bool [B, 1, L, L]: causal, to the prompt or within a report; padding attends to itself only."""
        return SharedPrefixMask(self.segments)

    @cached_property
    def block_mask(self) -> BlockMask:
        """The same rule for all rows in sequence, [1, 1, M, M], for FlexAttention, which skips empty blocks."""
        segments = one_row(self.segments, dim=0, fill=PADDING)[0]
        rows = torch.arange(len(self.segments), device=segments.device)[:, None].expand_as(self.segments)
        rows = one_row(rows, dim=0)[0]

        def visible(_: Tensor, __: Tensor, query: Tensor, key: Tensor) -> Tensor:
            own = segments[key]
            reads = (own != PADDING) & ((own == PROMPT) | (own == segments[query])) & (rows[query] == rows[key])
            return (query >= key) & reads | (query == key)

        length = len(segments)
        mask = _mask_maker(segments.device.type)(visible, 1, None, length, length, device=segments.device)
        # Otherwise a number of blocks that equals the number of heads is compiled as a constant too.
        for tensor in (segments, rows, *(part for part in mask.as_tuple() if isinstance(part, Tensor))):
            mark_dynamic(tensor, [dim for dim, size in enumerate(tensor.shape) if size > 1])
        return mask

    def to(self, device: torch.device) -> "Layout":
        """The same layout with its tensors on `device`; the prompts stay where they are."""
        moved = {f.name: getattr(self, f.name).to(device) for f in fields(self) if f.name != "prompts"}
        return replace(self, **moved)

    def pad(self, flat: Tensor) -> Tensor:
        """[N] values of the report tokens -> [R, T], 0 outside the mask; differentiable."""
        return flat.new_zeros(self.mask.shape).masked_scatter(self.mask, flat)


class SharedPrefixMask(Tensor):
    """A bool mask with which `scaled_dot_product_attention` computes no scores between reports.

    Prompts attend to themselves, and each report to its prompt and itself: for G reports of T tokens after a prompt of
    P that is P^2 + G T (P + T) scores, not (P + G T)^2. The output at padding is arbitrary, and nothing reads it. Every
    other function gets the dense mask.

    Args:
        segments: [B, L] int64 as in `Layout`, with one report at least.

    Source: the technique is that of `torch.nn.attention.bias.CausalBias`.
    """

    segments: Tensor

    def __new__(cls, segments: Tensor) -> "SharedPrefixMask":
        mask = torch.empty(0, dtype=torch.bool, device=segments.device).as_subclass(cls)
        mask.segments = segments
        return mask

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is scaled_dot_product_attention:
            return _attend(*args, **kwargs or {})
        args, kwargs = tree_map_only(cls, lambda mask: mask.dense, (args, kwargs or {}))
        return func(*args, **kwargs)

    @cached_property
    def dense(self) -> Tensor:
        """bool [B, 1, L, L]."""
        length = self.segments.shape[1]
        query, key = self.segments[:, :, None], self.segments[:, None, :]
        causal = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()
        visible = causal & (key != PADDING) & ((key == PROMPT) | (key == query))
        # A row without any visible key gives NaN in softmax.
        return (visible | torch.eye(length, dtype=torch.bool, device=query.device))[:, None]

    @cached_property
    def parts(self) -> "_Parts":
        return _Parts.of(self.segments)


@dataclass(frozen=True)
class _Parts:
    """Which of the B x L tokens of a layout are those of its prompts and of its R reports, as flat indices."""

    prompt: int  # P, tokens of the longest prompt
    queries: Tensor  # [R, T] int64, of each report; 0 after its end
    keys: Tensor  # [R, P + T] int64, of its prompt and itself; 0 after the end of each
    visible: Tensor  # [R, 1, T, P + T] bool
    order: Tensor  # [B, L] int64, of each token in B prompts of P and R reports of T, one after another; 0 for padding

    @classmethod
    def of(cls, segments: Tensor) -> "_Parts":
        tokens = torch.arange(segments.numel(), device=segments.device).view_as(segments)
        groups = [
            [own[row == segment] for segment in range(PROMPT, int(row.max()) + 1)]
            for own, row in zip(tokens, segments, strict=True)
        ]
        prompts = pad_sequence([group[0] for group in groups], batch_first=True, padding_value=-1)
        reports = pad_sequence([own for group in groups for own in group[1:]], batch_first=True, padding_value=-1)
        before = torch.cat([prompt.expand(len(group) - 1, -1) for prompt, group in zip(prompts, groups, strict=True)])
        causal = torch.ones(2 * reports.shape[1:], dtype=torch.bool, device=tokens.device).tril()
        visible = [each.expand(len(reports), len(causal), -1) for each in ((before >= 0)[:, None], causal)]
        sequence = torch.cat([prompts.flatten(), reports.flatten()])
        used = sequence >= 0
        order = torch.zeros_like(tokens)
        order.view(-1)[sequence[used]] = used.nonzero()[:, 0]
        keys = torch.cat([before, reports], 1)
        return cls(prompts.shape[1], reports.clamp(min=0), keys.clamp(min=0), torch.cat(visible, -1)[:, None], order)


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: SharedPrefixMask,
    dropout_p: float = 0.0,
    is_causal: bool = False,  # the mask is so already
    **options: Any,
) -> Tensor:
    """`scaled_dot_product_attention`: [B, H, L, d], [B, K, L, d] twice -> [B, H, L, d]."""
    options["dropout_p"], shape = dropout_p, attn_mask.segments.shape
    if not query.shape[::2] == key.shape[::2] == shape:
        return scaled_dot_product_attention(query, key, value, attn_mask.dense, **options)
    parts = attn_mask.parts
    first = slice(parts.prompt)
    prompts = scaled_dot_product_attention(
        query[:, :, first], key[:, :, first], value[:, :, first], is_causal=True, **options
    )
    queries, keys, values = (
        _take(_tokens(states), index, states.shape[-1])
        for states, index in ((query, parts.queries), (key, parts.keys), (value, parts.keys))
    )
    reports = scaled_dot_product_attention(queries, keys, values, parts.visible, **options)
    return _take(torch.cat([_tokens(prompts), _tokens(reports)]), parts.order, value.shape[-1])


def _tokens(states: Tensor) -> Tensor:
    """[B, H, L, d] -> [B L, H d]."""
    return states.transpose(1, 2).flatten(2).flatten(0, 1)


def _take(tokens: Tensor, index: Tensor, width: int) -> Tensor:
    """Rows of [N, H d] at indices [R, T] -> [R, H, T, d]."""
    # Not tokens[index]: the tokens of a prompt are read once per report, and the gradients of an index race on a CPU.
    return torch.nn.functional.embedding(index, tokens).view(*index.shape, -1, width).transpose(1, 2)


@cache
def _mask_maker(device: str) -> Callable[..., BlockMask]:
    """Compiled on a GPU, so that no [M, M] mask is written to memory."""
    return torch.compile(create_block_mask, dynamic=True) if device == "cuda" else create_block_mask


def in_blocks(layout: Layout) -> bool:
    """Whether attention uses FlexAttention, which has kernels with gradients on a GPU only."""
    return layout.segments.is_cuda


def one_row(values: Tensor, *, dim: int, fill: int = 0) -> Tensor:
    """[.., B, L, ..] -> [.., 1, M, ..]: the rows at `dim` in sequence, then `fill` up to whole blocks, at least two.

    torch.compile makes another graph for each dimension of size 1. Here no dimension changes between 1 and more, so
    that one graph serves every layout.
    """
    flat = values.flatten(dim, dim + 1)
    shape = list(flat.shape)
    shape[dim] = max(2 * BLOCK, -(-shape[dim] // BLOCK) * BLOCK) - shape[dim]
    return torch.cat([flat, flat.new_full(shape, fill)], dim).unsqueeze(dim)


def pack(prompts: Sequence[Prompt], responses: Sequence[Sequence[Tensor]]) -> Layout:
    """Lay out one study per row, on the CPU.

    `responses` are for each prompt its reports as [T] int64 token ids, EOS included; any number, of any length above 0.
    """
    if len(prompts) != len(responses) or not prompts:
        raise ValueError(f"expected reports for each prompt, got {len(responses)} groups and {len(prompts)} prompts")
    for prompt, group in zip(prompts, responses, strict=True):
        if any(len(response) == 0 for response in group):
            raise ValueError(f"study {prompt.study_id}: a report without tokens cannot be trained on")
    length = max(len(p.input_ids) + sum(map(len, group)) for p, group in zip(prompts, responses, strict=True))
    token_ids = torch.zeros(len(prompts), length, dtype=torch.int64)
    segments = torch.full_like(token_ids, PADDING)
    positions = torch.zeros(3, len(prompts), length, dtype=torch.int64)
    predictors, reports = [], []
    for row, (prompt, group) in enumerate(zip(prompts, responses, strict=True)):
        end = len(prompt.input_ids)
        segments[row, :end] = PROMPT
        positions[:, row, :end] = prompt.positions
        last = row * length + end - 1
        for index, response in enumerate(group):
            start, end = end, end + len(response)
            token_ids[row, start:end] = response
            segments[row, start:end] = index
            steps = torch.arange(len(response))
            positions[:, row, start:end] = prompt.next_position + steps
            # The prompt's last token predicts the first token of every report.
            predictors.append(torch.where(steps == 0, last, row * length + start + steps - 1))
            reports.append(response)
    lengths = torch.tensor([len(r) for r in reports])
    mask = torch.arange(int(lengths.max()) if len(reports) else 0) < lengths[:, None]
    sources, targets = (torch.cat([token_ids.new_zeros(0), *each]) for each in (predictors, reports))
    return Layout(tuple(prompts), token_ids, segments, positions, sources, targets, mask)


def micro_batches(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Split rows into micro-batches of at most `token_budget` padded tokens, longest rows together.

    A row over the budget is a micro-batch of its own: rows are never cut.
    """
    batches: list[list[int]] = []
    # Longest first, so that a row never adds padding to those before it.
    for row in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= token_budget:
            batches[-1].append(row)
        else:
            batches.append([row])
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
    prompts = policy.embed(layout.prompts, features)
    length = layout.token_ids.shape[1]
    padded = torch.stack([torch.nn.functional.pad(p, (0, 0, 0, length - len(p))) for p in prompts])
    is_prompt = (layout.segments == PROMPT)[..., None]
    reports = policy.embed_tokens(layout.token_ids)
    reports = torch.nn.functional.pad(reports, (0, padded.shape[-1] - reports.shape[-1]))
    embeds = torch.where(is_prompt, padded, reports)
    if in_blocks(layout):
        hidden = policy.decoder(one_row(embeds, dim=0), one_row(layout.positions, dim=1), layout.block_mask)
    else:
        # One report per row, as in SFT, is plainly causal: padding comes last and is not read.
        shared = bool((layout.segments > 0).any())
        hidden = policy.decoder(embeds, layout.positions, layout.attention if shared else None)
    # Not hidden[predictors]: reports share the prompt's last state, and the gradients of an index race on a CPU.
    hidden, head = torch.nn.functional.embedding(layout.predictors, hidden.flatten(0, 1)), policy.output_weight()
    logps, entropy = linear_logps(hidden, head, layout.targets, temperature=temperature, suppressed=suppressed)
    return layout.pad(logps), layout.pad(entropy)
