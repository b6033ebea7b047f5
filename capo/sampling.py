"""From the hidden state of a slot to its next token, and the log-probability of exactly the distribution drawn from."""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SamplingConfig:
    """How reports are decoded."""

    temperature: float = 1.0
    """0 decodes greedily."""
    top_p: float = 1.0
    """Keep the smallest set of tokens whose probability reaches this; 1 keeps all."""
    top_k: int = 0
    """Keep this many most probable tokens; 0 keeps all."""
    max_new_tokens: int = 128
    """A report without EOS after this many tokens is cut and marked truncated."""

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0 or self.max_new_tokens < 1:
            raise ValueError(
                "expected temperature >= 0, 0 < top_p <= 1, top_k >= 0 and max_new_tokens >= 1, got "
                f"{self.temperature}, {self.top_p}, {self.top_k} and {self.max_new_tokens}"
            )


def sample_seed(seed: int, stage: str, step: int, study_id: str, sample: int) -> int:
    """Seed of one report's random numbers. It depends on nothing else: not on batch, slot, rank or world size."""
    key = f"{seed}/{stage}/{step}/{study_id}/{sample}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1


def uniforms(seed: int, count: int) -> Tensor:
    """[count] float64 in [0, 1): the one random number of each token of a report."""
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def choose(logits: Tensor, uniform: Tensor, config: SamplingConfig, banned: Tensor) -> tuple[Tensor, Tensor]:
    """Next token of each slot, by inversion of the cumulative distribution.

    Args:
        logits: [S, V], untouched by temperature.
        uniform: [S] float64 in [0, 1).
        banned: [V] bool.

    Returns:
        tokens: [S] int64.
        logps: [S] float32 under the distribution sampled from. Greedy: under the untempered one.
    """
    logits = logits.float().masked_fill(banned, -torch.inf)
    if config.temperature == 0:
        logps, tokens = logits.log_softmax(-1).max(-1)
        return tokens, logps
    logps = _truncate((logits / config.temperature).log_softmax(-1), config)
    cumulative = logps.double().exp().cumsum(-1)
    # Scaled by the total and kept below it, so that rounding cannot point beyond the last possible token.
    total = cumulative[:, -1]
    threshold = torch.minimum(uniform * total, total.nextafter(torch.zeros_like(total)))
    tokens = torch.searchsorted(cumulative, threshold[:, None], right=True)
    return tokens[:, 0], logps.gather(1, tokens)[:, 0]


def _truncate(logps: Tensor, config: SamplingConfig) -> Tensor:
    """Keep the top-k and then the top-p tokens and renormalise; [S, V] -> [S, V]."""
    if not config.top_k and config.top_p == 1:
        return logps
    ordered, order = logps.sort(descending=True)
    rank = torch.arange(logps.shape[1], device=logps.device)
    keep = rank < (config.top_k or logps.shape[1])
    before = ordered.exp().cumsum(-1) - ordered.exp()
    keep = keep & (before < config.top_p)
    kept = torch.zeros_like(logps, dtype=torch.bool).scatter(1, order, keep.expand_as(logps))
    return logps.masked_fill(~kept, -torch.inf).log_softmax(-1)
