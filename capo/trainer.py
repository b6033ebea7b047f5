"""The one mutable object: a policy, its optimiser, and the steps that change them."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from capo.clipping import critical_clip
from capo.kl import k3
from capo.loss import capo_loss
from capo.metrics import LossMetrics, ScoringMetrics
from capo.packing import Layout, micro_batches, pack, report_logps
from capo.types import Case, Policy


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with linear warm-up and decay, and how much is computed at one time."""

    lr: float = 1e-5
    """Peak learning rate (the paper: 1e-5 for LoRA)."""
    final_lr_share: float = 0.1
    """Learning rate of the last step, as a share of the peak; cosine in between."""
    warmup_steps: int = 0
    """Steps of linear warm-up."""
    weight_decay: float = 0.0
    """Decoupled weight decay, on matrices only."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this global norm."""
    token_budget: int = 8192
    """Padded tokens of one micro-batch; lower it when memory is short. The gradient does not depend on it."""

    def __post_init__(self) -> None:
        if self.lr <= 0 or self.max_grad_norm <= 0 or self.token_budget < 1 or self.warmup_steps < 0:
            raise ValueError(
                "expected lr > 0, max_grad_norm > 0, token_budget >= 1 and warmup_steps >= 0, got "
                f"{self.lr}, {self.max_grad_norm}, {self.token_budget} and {self.warmup_steps}"
            )
        if not 0 <= self.final_lr_share <= 1:
            raise ValueError(f"expected final_lr_share in [0, 1], got {self.final_lr_share}")


@dataclass(frozen=True)
class RlConfig:
    """The objective, how many reports a step samples, and how often it uses them."""

    steps: int = 1000
    """Batches of rollouts."""
    studies_per_step: int = 8
    """Studies in a batch of rollouts."""
    group_size: int = 4
    """G, reports sampled for each study (the paper: 4)."""
    balance: float = 0.0
    """0 draws every selected study alike; 1 every set of Impression labels alike, however rare; in between, a power."""
    eps_normal: float = 0.2
    """Clip range of normal cases."""
    tightening: float = 4.0
    """A critical case is clipped to eps_normal / tightening; 1 gives GRPO."""
    beta: float = 0.02
    """Weight of the KL to the frozen SFT policy."""
    inner_epochs: int = 2
    """Passes over a batch of rollouts. With 1 pass and 1 mini-batch the clip range has no effect."""
    mini_batches: int = 1
    """Optimiser steps in one pass; cases are split evenly."""
    advantage_eps: float = 1e-4
    """Added to the std of a group's rewards."""
    checkpoint_every: int = 20
    """Steps between checkpoints; a killed run repeats fewer than this."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        if not 0 < self.eps_normal < 1 or self.tightening < 1 or self.beta < 0:
            raise ValueError(
                "expected 0 < eps_normal < 1, tightening >= 1 and beta >= 0, got "
                f"{self.eps_normal}, {self.tightening} and {self.beta}"
            )
        counts = ("steps", "studies_per_step", "inner_epochs", "mini_batches", "checkpoint_every")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} of at least 1, got {getattr(self, name)}")
        if not 0 <= self.balance <= 1:
            raise ValueError(f"expected balance in [0, 1], got {self.balance}")
        if self.group_size < 2:
            raise ValueError(
                f"expected group_size of at least 2, got {self.group_size}: one report has no group to beat"
            )
        if self.mini_batches > self.studies_per_step:
            raise ValueError(
                f"expected mini_batches of at most {self.studies_per_step} (studies_per_step), got {self.mini_batches}"
            )


@dataclass(frozen=True)
class _Scored:
    """A micro-batch with what stays fixed over the inner epochs."""

    layout: Layout
    features: list[Tensor] | None  # None when the vision tower is trained
    sampled_logps: Tensor  # [R, T], the sampler's own
    reference_logps: Tensor  # [R, T]
    advantages: Tensor  # [R]
    critical: Tensor  # [R] bool


class Trainer:
    """Changes a policy, step by step.

    Args:
        policy: its trainable parameters are optimised.
        num_steps: optimiser steps of the whole run, for the learning-rate schedule.
        reference: gives the frozen SFT policy for the time of a `with`; a context manager, because with LoRA the
            reference is the policy itself with its adapters off. Needed for `improve` only.
        frozen_vision: the tower is not trained, so its features are computed once a step and shared.
    """

    def __init__(
        self,
        policy: Policy,
        config: OptimizerConfig,
        *,
        num_steps: int,
        reference: Callable[[], AbstractContextManager[Policy]] | None = None,
        frozen_vision: bool = False,
    ) -> None:
        self.policy, self.config, self.num_steps = policy, config, num_steps
        self.reference, self.frozen_vision = reference, frozen_vision
        self.parameters = [p for p in policy.parameters() if p.requires_grad]
        if not self.parameters:
            raise ValueError("the policy has no trainable parameter; add LoRA adapters or unfreeze it")
        matrices = [p for p in self.parameters if p.ndim > 1]
        vectors = [p for p in self.parameters if p.ndim <= 1]
        decayed = {"params": matrices, "weight_decay": config.weight_decay}
        self.optimizer = torch.optim.AdamW([decayed, {"params": vectors, "weight_decay": 0.0}], lr=config.lr)
        self.num_updates = 0
        self.num_skipped = 0

    def step(self) -> dict[str, float]:
        """Clip the accumulated gradient, update, clear. A gradient that is not finite is dropped and counted."""
        lr = self.learning_rate()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
        if norm.isfinite():
            self.optimizer.step()
        else:
            self.num_skipped += 1
        self.optimizer.zero_grad(set_to_none=True)
        self.num_updates += 1
        return {"grad_norm": float(norm), "learning_rate": lr, "updates_skipped": self.num_skipped}

    def learning_rate(self) -> float:
        """Of the next update: linear warm-up, then cosine from lr to lr * final_lr_share."""
        config = self.config
        if self.num_updates < config.warmup_steps:
            return config.lr * (self.num_updates + 1) / config.warmup_steps
        span = max(1, self.num_steps - config.warmup_steps)
        progress = min(1.0, (self.num_updates - config.warmup_steps) / span)
        share = config.final_lr_share
        return config.lr * (share + (1 - share) * 0.5 * (1 + math.cos(math.pi * progress)))

    def improve(
        self, cases: Sequence[Case], config: RlConfig, *, temperature: float, banned: Tensor | None
    ) -> dict[str, float]:
        """One CAPO step: `inner_epochs` passes over a batch of rollouts.

        Args:
            cases: one study each, with its reports and their advantages.
            temperature, banned: as when sampling; every log-probability here is of that distribution.

        Returns:
            Metrics of the step (docs/reading-a-run.md lists them).
        """
        if config.mini_batches > len(cases):
            raise ValueError(f"expected at least {config.mini_batches} studies (rl.mini_batches), got {len(cases)}")
        before, losses = ScoringMetrics(), LossMetrics()
        options = {"temperature": temperature, "banned": banned}
        parts = [cases[i :: config.mini_batches] for i in range(config.mini_batches)]
        micros = [[self._prepare(rows, options) for rows in self._micro_batches(part)] for part in parts]
        # The first part meets the very policy that sampled: its first training pass gives the behaviour logps as well.
        behaviour = [[None] * len(micros[0])] + [[self._behaviour(m, options, before) for m in p] for p in micros[1:]]
        steps = []
        for _ in range(config.inner_epochs):
            for number, part in enumerate(parts):
                num_reports = sum(len(case.rollouts) for case in part)
                for place, micro in enumerate(micros[number]):
                    known = behaviour[number][place]
                    logps, entropy = report_logps(self.policy, micro.layout, features=micro.features, **options)
                    if known is None:
                        known = behaviour[number][place] = logps.detach()
                        self._compare(micro, known, entropy, before)
                    self._backward(micro, logps, known, config, num_reports, losses)
                steps.append(self.step())
        gradient = sum(step["grad_norm"] for step in steps) / len(steps)
        metrics = {**asdict(losses.read(num_updates=len(steps))), **before.read()}
        return {**metrics, **steps[-1], "grad_norm": gradient}

    def _micro_batches(self, cases: Sequence[Case]) -> list[list[Case]]:
        lengths = [len(c.prompt.input_ids) + sum(len(r.response_ids) for r in c.rollouts) for c in cases]
        return [[cases[i] for i in rows] for rows in micro_batches(lengths, self.config.token_budget)]

    @torch.no_grad()
    def _prepare(self, cases: Sequence[Case], options: dict[str, Any]) -> _Scored:
        """The layout of a micro-batch, and reference log-probabilities in it."""
        layout = pack([case.prompt for case in cases], [[r.response_ids for r in case.rollouts] for case in cases])
        layout = layout.to(self.policy.device)
        features = self.policy.features(layout.prompts) if self.frozen_vision else None
        with self.reference() as reference:
            reference_logps, _ = report_logps(reference, layout, features=features, **options)
        sampled = torch.cat([r.behaviour_logps for case in cases for r in case.rollouts])
        return _Scored(
            layout=layout,
            features=features,
            sampled_logps=layout.pad(sampled.to(reference_logps)),
            reference_logps=reference_logps,
            advantages=torch.cat([case.advantages for case in cases]).to(reference_logps),
            critical=torch.tensor([case.critical for case in cases for _ in case.rollouts], device=layout.mask.device),
        )

    @torch.no_grad()
    def _behaviour(self, micro: _Scored, options: dict[str, Any], before: ScoringMetrics) -> Tensor:
        """Log-probabilities of the policy that sampled, [R, T], in the very layout that is trained on.

        The sampler's own come from another path and differ in the last digits (in bf16 by more than a critical case's
        clip range), so they are only compared, never used.
        """
        behaviour, entropy = report_logps(self.policy, micro.layout, features=micro.features, **options)
        self._compare(micro, behaviour, entropy, before)
        return behaviour

    @staticmethod
    def _compare(micro: _Scored, behaviour: Tensor, entropy: Tensor, before: ScoringMetrics) -> None:
        mask = micro.layout.mask
        before.add(micro.sampled_logps, behaviour, k3(behaviour, micro.reference_logps, mask), entropy, mask)

    @staticmethod
    def _backward(
        micro: _Scored, logps: Tensor, behaviour: Tensor, config: RlConfig, num_reports: int, losses: LossMetrics
    ) -> None:
        clip = critical_clip(micro.critical, eps_normal=config.eps_normal, tightening=config.tightening)
        terms = capo_loss(
            logps,
            behaviour,
            micro.advantages,
            micro.layout.mask,
            clip=clip,
            num_reports=num_reports,
            kl=k3(logps, micro.reference_logps, micro.layout.mask),
            beta=config.beta,
        )
        terms.loss.backward()
        losses.add(terms, critical=micro.critical)

    def state_dict(self) -> dict[str, object]:
        """All a resumed run needs beside the random seeds, which derive from the step."""
        trained = {name: p.detach() for name, p in self.policy.named_parameters() if p.requires_grad}
        return {
            "parameters": trained,
            "optimizer": self.optimizer.state_dict(),
            "num_updates": self.num_updates,
            "num_skipped": self.num_skipped,
        }

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Restore in place; parameter names must match exactly.

        Raises:
            ValueError: the checkpoint holds other parameters than the policy trains.
        """
        mine = {name: p for name, p in self.policy.named_parameters() if p.requires_grad}
        if differing := sorted(set(mine) ^ set(state["parameters"])):
            raise ValueError(f"checkpoint and policy train different parameters, for example {differing[0]}")
        with torch.no_grad():
            for name, parameter in mine.items():
                parameter.copy_(state["parameters"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.num_updates, self.num_skipped = state["num_updates"], state["num_skipped"]
