"""`capo_loss` against the losses of TRL, verl and Liger on the same log-probabilities, and the cost of importing it.

`make bench` runs it in the environment that has the peers. Each does forward and backward 50 times, with a range for
each case and the plain k3 to a reference.
"""

import statistics
import subprocess
import sys
from collections.abc import Callable

import torch
from harness import arguments, compare
from torch import Tensor

from capo.clipping import critical_clip
from capo.kl import k3
from capo.loss import capo_loss

REPORTS, TOKENS, REPEATS, BETA = 64, 512, 50, 0.02


class Batch:
    """64 reports of up to 512 tokens, a third of them critical."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.behaviour = -torch.rand(REPORTS, TOKENS, generator=generator)
        noise = torch.randn(REPORTS, TOKENS, generator=generator)
        self.logps = (self.behaviour + 0.1 * noise).requires_grad_()
        self.reference = self.behaviour - 0.05 * noise
        self.advantages = torch.randn(REPORTS, generator=generator)
        lengths = torch.randint(TOKENS // 4, TOKENS + 1, (REPORTS,), generator=generator)
        self.mask = torch.arange(TOKENS) < lengths[:, None]
        self.clip = critical_clip(torch.arange(REPORTS) % 3 == 0)


def ours() -> Callable[[], float]:
    batch = Batch()
    return work_of(
        batch,
        lambda: (
            capo_loss(
                batch.logps,
                batch.behaviour,
                batch.advantages,
                batch.mask,
                clip=batch.clip,
                num_reports=REPORTS,
                kl=k3(batch.logps, batch.reference, batch.mask),
                beta=BETA,
            ).loss
        ),
    )


def liger() -> Callable[[], float]:
    from liger_kernel.chunked_loss.grpo_loss import LigerFusedLinearGRPOFunction

    batch = Batch()
    mask, clip = batch.mask.float(), batch.clip[:, None]
    return work_of(
        batch,
        lambda: LigerFusedLinearGRPOFunction.ppo_loss_fn(
            batch.logps,
            mask,
            batch.advantages,
            mask,
            ref_per_token_logps=batch.reference,
            old_per_token_logps=batch.behaviour,
            epsilon_low=clip,
            epsilon_high=clip,
            beta=BETA,
            loss_type="grpo",
            max_completion_length=TOKENS,
        )[0],
    )


def verl() -> Callable[[], float]:
    from verl.trainer.ppo.core_algos import agg_loss, compute_policy_loss_vanilla, kl_penalty
    from verl.workers.config import ActorConfig

    batch = Batch()
    config = ActorConfig(
        strategy="fsdp",
        clip_ratio=0.2,
        clip_ratio_low=0.2,
        clip_ratio_high=0.2,
        clip_ratio_c=1e9,
        ppo_micro_batch_size_per_gpu=1,
        rollout_n=1,
    )
    for name in ("clip_ratio_low", "clip_ratio_high"):
        object.__setattr__(config, name, batch.clip[:, None])
    mask, mode = batch.mask.float(), "seq-mean-token-mean"
    advantages = batch.advantages[:, None].expand(REPORTS, TOKENS)

    def loss() -> Tensor:
        policy, _ = compute_policy_loss_vanilla(
            batch.behaviour, batch.logps, advantages, mask, loss_agg_mode=mode, config=config
        )
        return policy + BETA * agg_loss(kl_penalty(batch.logps, batch.reference, "low_var_kl"), mask, mode)

    return work_of(batch, loss)


def work_of(batch: Batch, loss_of: Callable[[], Tensor]) -> Callable[[], float]:
    def once() -> None:
        batch.logps.grad = None
        loss_of().backward()

    def work() -> float:
        for _ in range(REPEATS):
            once()
        return float(batch.logps.grad.norm())

    once()
    return work


def import_milliseconds(rounds: int) -> float:
    """Median of what `import capo.loss` adds to `import torch`, in fresh interpreters."""
    program = "import time, torch; b = time.perf_counter(); import capo.loss; print(time.perf_counter() - b)"
    times = []
    for _ in range(rounds):
        done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
        times.append(1000 * float(done.stdout))
    return statistics.median(times)


if __name__ == "__main__":
    options = arguments(__doc__)
    import_ms = import_milliseconds(options.rounds)
    print(f"import capo.loss after import torch: {import_ms:.1f} ms")
    compare(
        "loss",
        {"capo_loss": ours, "Liger 0.8.5 ppo_loss_fn": liger, "verl 0.9.1 vanilla": verl},
        setting=f"{REPORTS} reports of up to {TOKENS} tokens, {REPEATS} times forward and backward, float32",
        rounds=options.rounds,
        threads=options.threads,
        facts={"import_ms": import_ms},
    )
