"""`linear_logps` against all logits at once, TRL's chunked path and Liger's torch path, forward and backward.

The head is frozen, as with LoRA; vocabulary of Qwen2.5-VL, hidden size of its 3B model. `make bench` runs it in the
environment that has the peers.
"""

from collections.abc import Callable

import torch
from harness import arguments, compare
from torch import Tensor

from capo.logprobs import linear_logps

TOKENS, HIDDEN, VOCABULARY = 1024, 2048, 151_936


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.empty(TOKENS, HIDDEN).normal_(generator=generator).requires_grad_()
    weight = torch.empty(VOCABULARY, HIDDEN).normal_(std=HIDDEN**-0.5, generator=generator)
    return hidden, weight, torch.randint(VOCABULARY, (TOKENS,), generator=generator)


def ours() -> Callable[[], float]:
    return work_of(lambda hidden, weight, targets: linear_logps(hidden, weight, targets)[0])


def all_logits() -> Callable[[], float]:
    return work_of(
        lambda hidden, weight, targets: (hidden @ weight.T).log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    )


def trl() -> Callable[[], float]:
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    # Its own output also has the entropy, as ours; 8192 columns are its trainer's width
    return work_of(
        lambda hidden, weight, targets: ChunkedLogProbFunction.apply(
            hidden, weight, None, targets, 1.0, 8192, None, 1.0, ("entropy",)
        )[0]
    )


def liger() -> Callable[[], float]:
    from liger_kernel.chunked_loss.fused_linear_ppo import (
        _SELECTIVE_LOGPROB_VOCAB_CHUNK_SIZE,
        _ChunkedSelectiveLogProbFunction,
    )

    return work_of(
        lambda hidden, weight, targets: _ChunkedSelectiveLogProbFunction.apply(
            hidden, weight, targets, None, 1.0, _SELECTIVE_LOGPROB_VOCAB_CHUNK_SIZE
        )
    )


def work_of(logps_of: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[], float]:
    hidden, weight, targets = inputs()
    logps_of(hidden[:8], weight[:64], targets[:8] % 64).sum().backward()  # first calls set up thread pools
    hidden.grad = None

    def work() -> float:
        # Weights that differ: the gradient of a plain sum would hide a mixed-up row
        out = torch.linspace(0.5, 1.5, TOKENS)
        (logps_of(hidden, weight, targets) @ out).backward()
        return float(hidden.grad.norm())

    return work


if __name__ == "__main__":
    options = arguments(__doc__)
    variants = {"linear_logps": ours, "all logits": all_logits, "TRL 1.16 chunked": trl, "Liger 0.8.5 torch": liger}
    compare(
        "logps",
        variants,
        setting=f"{TOKENS} tokens, hidden size {HIDDEN}, vocabulary {VOCABULARY}, float32, head frozen",
        rounds=options.rounds,
        threads=options.threads,
        # Logits, and the gradient of the hidden states.
        gflop=dict.fromkeys(variants, 4 * TOKENS * HIDDEN * VOCABULARY / 1e9),
    )
