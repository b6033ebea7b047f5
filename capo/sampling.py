"""From the hidden state of a slot to its next token, and the log-probability of exactly the distribution drawn from."""

import hashlib
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


def choose(logits: Tensor, uniform: Tensor, config: SamplingConfig, suppressed: Tensor) -> tuple[Tensor, Tensor]:
    """Next token of each slot, by inversion of the cumulative distribution.

    Args:
        logits: [S, V], untouched by temperature.
        uniform: [S] float64 in [0, 1).
        suppressed: [V] bool.

    Returns:
        tokens: [S] int64.
        logps: [S] float32 under the distribution sampled from. Greedy: under the untempered one.
    """
    logits = logits.float().masked_fill(suppressed, -torch.inf)
    if config.temperature == 0:
        highest, tokens = logits.max(-1)
        return tokens, highest - logits.logsumexp(-1)
    if config.temperature != 1:
        logits = logits / config.temperature
    logits = _truncate(logits, config)
    tokens, log_total = _invert(logits, uniform)
    return tokens, logits.gather(1, tokens[:, None])[:, 0] - log_total


def _invert(logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Token where the cumulative distribution of each row passes `uniform`, [S]; log of the normaliser, [S] float32.

    The cumulative sum is taken over blocks of the vocabulary and then inside one block, so that only those few sums
    are float64: one cumulative sum over everything costs more than the product that made the logits.
    """
    (slots, vocabulary), highest = logits.shape, logits.amax(-1)
    # In the memory order of the logits, which come from the engine with the slots innermost.
    weights = logits.new_zeros(-(-vocabulary // BLOCK) * BLOCK, slots).t()
    torch.sub(logits, highest[:, None], out=weights[:, :vocabulary])
    weights[:, :vocabulary].exp_()
    blocks = weights.view(slots, -1, BLOCK)
    cumulative = blocks.sum(-1).double().cumsum(-1)
    block, rest = _search(cumulative, uniform * cumulative[:, -1])
    inside, _ = _search(blocks[torch.arange(slots, device=block.device), block].double().cumsum(-1), rest)
    return block * BLOCK + inside, highest + cumulative[:, -1].log().float()


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
