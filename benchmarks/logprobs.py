"""Log-probabilities of report tokens, forward and backward: chunked against dense, in seconds and memory.

`make bench` runs it, with the vocabulary of Qwen2.5-VL and a frozen head.
"""

import multiprocessing
import resource
import time

import torch

from capo.logprobs import linear_logps

TOKENS, HIDDEN, VOCABULARY, CHUNK = 1024, 512, 151_936, 128


def dense(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """What most trainers do: all [N, V] logits at one time."""
    return (hidden @ weight.T).log_softmax(-1).gather(-1, targets[:, None])[:, 0]


def chunked(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return linear_logps(hidden, weight, targets, chunk=CHUNK)[0]


def measure(name: str) -> tuple[float, float, float]:
    """Seconds, MB above what the inputs take, and norm of the hidden states' gradient (to see that they agree)."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, HIDDEN, generator=generator).requires_grad_()
    weight = torch.randn(VOCABULARY, HIDDEN, generator=generator) / HIDDEN**0.5  # frozen, as with LoRA
    targets = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    {"dense": dense, "chunked": chunked}[name](hidden, weight, targets).sum().backward()
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return seconds, (peak - before) / 1024, float(hidden.grad.norm())


def main() -> None:
    print(f"{TOKENS} tokens, hidden size {HIDDEN}, vocabulary {VOCABULARY}, chunks of {CHUNK}, float32, CPU")
    for name in ("dense", "chunked"):
        # A process each: peak memory never goes down within one.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            seconds, megabytes, norm = pool.apply(measure, (name,))
        print(f"{name:8s} {seconds:6.2f} s {megabytes:8.0f} MB   gradient norm {norm:.5f}")


if __name__ == "__main__":
    main()
