"""From the hidden state of a slot to its next token, and the log-probability of exactly the distribution drawn from."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from capo.checks import check_range

BLOCK = 1024  # tokens summed to one entry of the outer cumulative sum


@dataclass(frozen=True)
class SamplingConfig:
    """How reports are decoded."""

    temperature: float = 1.0
    """0 decodes greedily."""
    top_p: float = 1.0
    """Keep the smallest set of tokens whose probability reaches this; 1 keeps all. Below 1, behaviour_logps are of
    the truncated distribution: training needs 1."""
    top_k: int = 0
    """Keep this many most probable tokens; 0 keeps all. Training needs 0, as it needs top_p 1."""
    max_new_tokens: int = 128
    """A report without EOS after this many tokens is cut and marked truncated."""
    prefill_tokens: int = 16384
    """Prompt tokens of one prefill; more prompts wait for the next. Lower it if memory is short."""
    slots: int = 64
    """Generation batch size: reports decoded concurrently."""

    def __post_init__(self) -> None:
        check_range(self, "temperature", "top_k", least=0)
        check_range(self, "top_p", above=0, most=1)
        check_range(self, "max_new_tokens", "prefill_tokens", "slots", least=1)


def sample_seed(seed: int, stage: str, step: int, study_id: str, sample: int) -> int:
    """Seed of one report's random numbers. It depends on nothing else: not on batch, slot, rank or world size."""
    key = f"{seed}/{stage}/{step}/{study_id}/{sample}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1


def uniforms(seed: int, count: int) -> Tensor:
    """[count] float64 in [0, 1): the one random number of each token of a report."""
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pack_linear(weight: Tensor, bias: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    """x -> x weight^T + bias, [S, in] -> [S, out], with a copy of the weight in the order that a CPU's kernel reads.

    For the few rows of a decoding step it is two to three times as fast as the weight itself, and a row does not depend
    on how many others there are. Without such a kernel the weight itself is read.
    """
    kernels = torch.ops.mkldnn
    here = weight.device.type == "cpu" and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    half = here and weight.dtype == torch.bfloat16 and kernels._is_mkldnn_bf16_supported()
    if not half and not (here and weight.dtype == torch.float32):
        return lambda rows: torch.nn.functional.linear(rows, weight, bias)
    copy = kernels._reorder_linear_weight(weight.detach().contiguous())
    return lambda rows: kernels._linear_pointwise(rows, copy, bias, "none", [], "")


def choose(logits: Tensor, uniform: Tensor, config: SamplingConfig) -> tuple[Tensor, Tensor]:
    """Next token of each slot, by inversion of the cumulative distribution.

    Args:
        logits: [S, V], untouched by temperature, -inf where suppressed.
        uniform: [S] float64 in [0, 1).

    Returns:
        tokens: [S] int64.
        logps: [S] float32 under the distribution sampled from. Greedy: under the untempered one.
    """
    logits = logits.float()
    if config.temperature == 0:
        highest, tokens = logits.max(-1)
        return tokens, highest - logits.logsumexp(-1)
    if config.temperature != 1:
        logits = logits / config.temperature
    logits = _truncate(logits, config)
    return _invert(logits, uniform)


def _invert(logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Token where the cumulative distribution of each row passes `uniform`, [S]; its log-probability, [S] float32.

    The cumulative sum is taken over blocks of the vocabulary and then inside one block, so that only those few sums
    are float64: one cumulative sum over everything costs more than the product that made the logits.
    """
    probabilities = logits.softmax(-1)
    slots, vocabulary = probabilities.shape
    whole = vocabulary // BLOCK * BLOCK
    blocks = probabilities[:, :whole].view(slots, whole // BLOCK, BLOCK)
    cumulative = torch.cat([blocks.sum(-1), probabilities[:, whole:].sum(-1, keepdim=True)], 1).double().cumsum(-1)
    block, rest = _search(cumulative, uniform * cumulative[:, -1])
    columns = block[:, None] * BLOCK + torch.arange(BLOCK, device=block.device)
    beyond = columns >= vocabulary
    members = probabilities.gather(1, columns.masked_fill(beyond, 0)).masked_fill(beyond, 0.0)
    inside, _ = _search(members.double().cumsum(-1), rest)
    chosen = members.gather(1, inside[:, None])[:, 0].double()
    return block * BLOCK + inside, (chosen / cumulative[:, -1]).log().float()


def _search(cumulative: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    """First cumulative sum above the threshold, [S], and how far the threshold is beyond the sum before it."""
    # Kept below the total, so that rounding cannot point beyond the last entry that is not 0.
    total = cumulative[:, -1]
    threshold = torch.minimum(threshold, total.nextafter(torch.zeros_like(total)))[:, None]
    index = torch.searchsorted(cumulative, threshold, right=True)
    before = torch.where(index > 0, cumulative.gather(1, (index - 1).clamp(min=0)), 0.0)
    return index[:, 0], (threshold - before)[:, 0]


def _truncate(logits: Tensor, config: SamplingConfig) -> Tensor:
    """Keep the logits of the top-k and then of the top-p tokens, -inf elsewhere; [S, V] -> [S, V]."""
    if not config.top_k and config.top_p == 1:
        return logits
    ordered, order = logits.sort(descending=True)
    # As elsewhere, top-p reads the probabilities that top-k left.
    in_top_k = torch.arange(logits.shape[1], device=logits.device) < (config.top_k or logits.shape[1])
    probabilities = ordered.masked_fill(~in_top_k, -torch.inf).softmax(-1)
    keep = in_top_k & (probabilities.cumsum(-1) - probabilities < config.top_p)
    kept = torch.zeros_like(logits, dtype=torch.bool).scatter(1, order, keep.expand_as(logits))
    return logits.masked_fill(~kept, -torch.inf)
