"""The one mutable object: a policy, its optimiser, and the steps that change them."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from capo.clipping import critical_clip
from capo.fsdp import sharded_modules
from capo.kl import k3
from capo.metrics import LossMetrics, ScoringMetrics
from capo.objectives import OBJECTIVES
from capo.packing import Layout, micro_batches, pack, report_logps
from capo.ranks import Ranks
from capo.ratio import check_sampler_cap, sampler_weights
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
    max_bad_updates: int = 5
    """The run stops after this many updates in a row whose gradient is not finite; such updates are skipped."""

    def __post_init__(self) -> None:
        if self.lr <= 0 or self.max_grad_norm <= 0 or self.token_budget < 1 or self.warmup_steps < 0:
            raise ValueError(
                "expected lr > 0, max_grad_norm > 0, token_budget >= 1 and warmup_steps >= 0, got "
                f"{self.lr}, {self.max_grad_norm}, {self.token_budget} and {self.warmup_steps}"
            )
        if self.max_bad_updates < 1:
            raise ValueError(f"expected max_bad_updates of at least 1, got {self.max_bad_updates}")
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
    objective: Literal["capo", "dapo", "gspo"] = "capo"
    """capo: GRPO where tightening is 1. dapo: mean over tokens, upper range 1.4 eps. gspo: one ratio a report, upper
    range 4/3 eps; its eps_normal is about 3e-4. All clip each case by its own eps."""
    eps_normal: float = 0.2
    """Clip range of normal cases."""
    tightening: float = 4.0
    """A critical case is clipped to eps_normal / tightening; 1 clips all cases alike."""
    beta: float = 0.02
    """Weight of the KL to the frozen SFT policy."""
    sampler_correction: Literal["off", "token", "report"] = "off"
    """Multiplies the policy term by the trainer's probability over the sampler's, of each token or of the whole report.
    For bf16, where the two differ (sampler_gap_mean)."""
    sampler_cap: float = 3.0
    """Largest such weight (TRL: 3; verl: 2)."""
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
        if self.objective not in OBJECTIVES:
            raise ValueError(f"expected objective as one of {', '.join(OBJECTIVES)}, got {self.objective!r}")
        if not 0 < self.eps_normal < 1 or self.tightening < 1 or self.beta < 0:
            raise ValueError(
                "expected 0 < eps_normal < 1, tightening >= 1 and beta >= 0, got "
                f"{self.eps_normal}, {self.tightening} and {self.beta}"
            )
        if self.sampler_correction not in ("off", "token", "report"):
            raise ValueError(f"expected sampler_correction as off, token or report, got {self.sampler_correction!r}")
        check_sampler_cap(self.sampler_cap)
        if self.sampler_correction == "off" and self.sampler_cap != type(self).sampler_cap:
            raise ValueError(
                f"sampler_cap is {self.sampler_cap} but sampler_correction is off; set it to token or report, or leave "
                "sampler_cap out"
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


class DivergedError(RuntimeError):
    """Too many updates in a row had a gradient that is not finite."""


class Trainer:
    """Changes a policy, step by step.

    Args:
        policy: its trainable parameters are optimised.
        num_steps: optimiser steps of the whole run, for the learning-rate schedule.
        reference: gives the frozen SFT policy for the time of a `with`; a context manager, because with LoRA the
            reference is the policy itself with its adapters off. Needed for `improve` only.
        frozen_vision: the tower is not trained, so its features are computed once a step and shared.
        ranks: the processes that train together; each computes the gradient of its own cases.
    """

    def __init__(
        self,
        policy: Policy,
        config: OptimizerConfig,
        *,
        num_steps: int,
        reference: Callable[[], AbstractContextManager[Policy]] | None = None,
        frozen_vision: bool = False,
        ranks: Ranks | None = None,
    ) -> None:
        self.policy, self.config, self.num_steps = policy, config, num_steps
        self.reference, self.frozen_vision = reference, frozen_vision
        self.ranks = ranks or Ranks()
        self.sharded = bool(sharded_modules(policy))
        self.parameters = [p for p in policy.parameters() if p.requires_grad]
        if not self.parameters:
            raise ValueError("the policy has no trainable parameter; add LoRA adapters or unfreeze it")
        matrices = [p for p in self.parameters if p.ndim > 1]
        vectors = [p for p in self.parameters if p.ndim <= 1]
        decayed = {"params": matrices, "weight_decay": config.weight_decay}
        # On a GPU, AdamW's other ways hold several copies of what is trained for the time of an update.
        fused = all(parameter.is_cuda for parameter in self.parameters)
        groups = [decayed, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=config.lr, fused=fused)
        for parameter in self.parameters:  # as AdamW makes it at the first update; here, so that it can be loaded
            zeros = (torch.zeros_like(parameter) for _ in range(2))
            self.optimizer.state[parameter] = dict(zip(("exp_avg", "exp_avg_sq"), zeros, strict=True))
            self.optimizer.state[parameter]["step"] = torch.zeros((), device=parameter.device if fused else None)
        self.num_updates = 0
        self.num_skipped = 0
        self.num_bad = 0  # skipped in a row

    def step(self) -> dict[str, float]:
        """Add up the gradients of all ranks, clip, update, clear. A gradient that is not finite is dropped and counted.

        Raises:
            DivergedError: `max_bad_updates` of them in a row.
        """
        lr = self.learning_rate()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        for parameter in self.parameters:  # AdamW would leave out those without, and ranks differ in which those are
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.ranks.meet()  # a rank that hangs in its backward pass is named here, not after the exchange's own timeout
        if not self.sharded:
            self.ranks.sum_gradients(self.parameters)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
        norm = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
        if math.isfinite(norm):
            self.optimizer.step()
            self.num_bad = 0
        else:
            self.num_skipped += 1
            self.num_bad += 1
        self.optimizer.zero_grad(set_to_none=True)
        self.num_updates += 1
        if self.num_bad >= self.config.max_bad_updates:
            raise DivergedError(
                f"{self.num_bad} updates in a row had a gradient that is not finite (update {self.num_updates}, "
                f"learning rate {lr:.2e}); the weights are those before the first of them. Lower lr or raise "
                "warmup_steps; if it happens at once, look for extreme values in the inputs or weights"
            )
        return {"grad_norm": norm, "learning_rate": lr, "updates_skipped": self.num_skipped}

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
        if config.mini_batches * self.ranks.size > len(cases):
            raise ValueError(
                f"expected at least {config.mini_batches * self.ranks.size} studies (rl.mini_batches x ranks), got "
                f"{len(cases)}"
            )
        before = ScoringMetrics(level=config.sampler_correction, cap=config.sampler_cap)
        losses = LossMetrics()
        options = {"temperature": temperature, "banned": banned}
        parts = [cases[i :: config.mini_batches] for i in range(config.mini_batches)]
        micros = [[self._prepare(rows, options) for rows in own] for own in self._shares(parts)]
        # The first part meets the very policy that sampled: its first training pass gives the behaviour logps as well.
        behaviour = [[None] * len(micros[0])] + [[self._behaviour(m, options, before) for m in p] for p in micros[1:]]
        steps = []
        for _ in range(config.inner_epochs):
            for number, part in enumerate(parts):
                counts = _counts(part)
                for place, micro in enumerate(micros[number]):
                    known = behaviour[number][place]
                    logps, entropy = self._logps(self.policy, micro, options)
                    if known is None:
                        known = behaviour[number][place] = logps.detach()
                        self._compare(micro, known, entropy, before)
                    self._backward(micro, logps, known, config, counts, losses)
                steps.append(self.step())
        gradient = sum(step["grad_norm"] for step in steps) / len(steps)
        metrics = {**asdict(losses.read(self.ranks, num_updates=len(steps))), **before.read(self.ranks)}
        return {**metrics, **steps[-1], "grad_norm": gradient}

    def _shares(self, parts: Sequence[Sequence[Case]]) -> list[list[list[Case]]]:
        """The micro-batches of this rank for each mini-batch; ranks take cases of about equally many tokens.

        Every rank gets equally many, because every pass of a sharded policy needs all ranks: one that has none left
        repeats a case without its reports.
        """
        shares = []
        for part in parts:
            own = [part[i] for i in self.ranks.share([_num_tokens(case) for case in part])]
            shares.append(self._micro_batches(own))
        counts = self.ranks.gather([len(share) for share in shares])
        for number, share in enumerate(shares):
            idle = replace(share[-1][0], rollouts=(), advantages=share[-1][0].advantages[:0])
            share += [[idle]] * (max(count[number] for count in counts) - len(share))
        return shares

    def _micro_batches(self, cases: Sequence[Case]) -> list[list[Case]]:
        lengths = [_num_tokens(case) for case in cases]
        return [[cases[i] for i in rows] for rows in micro_batches(lengths, self.config.token_budget)]

    def _logps(self, policy: Policy, micro: "_Scored", options: dict[str, Any]) -> tuple[Tensor, Tensor]:
        return policy(lambda: report_logps(policy, micro.layout, features=micro.features, **options))

    @torch.no_grad()
    def _prepare(self, cases: Sequence[Case], options: dict[str, Any]) -> _Scored:
        """The layout of a micro-batch, and reference log-probabilities in it."""
        layout = pack([case.prompt for case in cases], [[r.response_ids for r in case.rollouts] for case in cases])
        layout = layout.to(self.policy.device)
        features = self.policy(lambda: self.policy.features(layout.prompts)) if self.frozen_vision else None
        sampled = [r.behaviour_logps for case in cases for r in case.rollouts]
        sampled = torch.cat([torch.zeros(0), *sampled]).to(self.policy.device)
        scored = _Scored(
            layout=layout,
            features=features,
            sampled_logps=layout.pad(sampled),
            reference_logps=torch.zeros(()),
            advantages=torch.cat([case.advantages for case in cases]).to(sampled),
            critical=torch.tensor(
                [case.critical for case in cases for _ in case.rollouts], dtype=torch.bool, device=layout.mask.device
            ),
        )
        with self.reference() as reference:
            return replace(scored, reference_logps=self._logps(reference, scored, options)[0])

    @torch.no_grad()
    def _behaviour(self, micro: _Scored, options: dict[str, Any], before: ScoringMetrics) -> Tensor:
        """Log-probabilities of the policy that sampled, [R, T], in the very layout that is trained on.

        The sampler's own come from another path and differ in the last digits (in bf16 by more than a critical case's
        clip range), so no ratio is taken of them: they are compared, and give the weights of `sampler_correction`.
        """
        behaviour, entropy = self._logps(self.policy, micro, options)
        self._compare(micro, behaviour, entropy, before)
        return behaviour

    @staticmethod
    def _compare(micro: _Scored, behaviour: Tensor, entropy: Tensor, before: ScoringMetrics) -> None:
        mask = micro.layout.mask
        before.add(micro.sampled_logps, behaviour, k3(behaviour, micro.reference_logps, mask), entropy, mask)

    @staticmethod
    def _backward(
        micro: _Scored, logps: Tensor, behaviour: Tensor, config: RlConfig, counts: dict[str, int], losses: LossMetrics
    ) -> None:
        clip = critical_clip(micro.critical, eps_normal=config.eps_normal, tightening=config.tightening)
        terms = OBJECTIVES[config.objective](
            logps,
            behaviour,
            micro.advantages,
            micro.layout.mask,
            clip=clip,
            **counts,
            kl=k3(logps, micro.reference_logps, micro.layout.mask),
            beta=config.beta,
            weights=_weights(micro, behaviour, config),
        )
        terms.loss.backward()
        losses.add(terms, critical=micro.critical)

    def state(self) -> tuple[dict[str, Tensor], dict[str, object]]:
        """All that a resumed run needs beside the random seeds, which derive from the step: tensors, and numbers.

        The tensors are the live ones: to load a checkpoint is to fill them and to pass the numbers to `restore`.
        """
        tensors = {}
        for name, parameter in self.policy.named_parameters():
            if parameter.requires_grad:
                moments = self.optimizer.state[parameter]
                tensors[f"parameter/{name}"] = parameter.detach()
                tensors |= {f"{key}/{name}": moments[key] for key in ("exp_avg", "exp_avg_sq")}
        adam_steps = int(self.optimizer.state[self.parameters[0]]["step"])
        counters = {"num_updates": self.num_updates, "num_skipped": self.num_skipped, "num_bad": self.num_bad}
        return tensors, {**counters, "adam_steps": adam_steps}

    def restore(self, facts: Mapping[str, object]) -> None:
        """The numbers that `state` gave."""
        self.num_updates, self.num_skipped, self.num_bad = (
            int(facts[name]) for name in ("num_updates", "num_skipped", "num_bad")
        )
        for moments in self.optimizer.state.values():
            moments["step"].fill_(int(facts["adam_steps"]))


def _weights(micro: _Scored, behaviour: Tensor, config: RlConfig) -> Tensor | None:
    """What corrects the loss of each token for the sampler's own distribution, [R, T]; None if nothing does."""
    if config.sampler_correction == "off":
        return None
    return sampler_weights(
        behaviour, micro.sampled_logps, micro.layout.mask, level=config.sampler_correction, cap=config.sampler_cap
    )


def _counts(cases: Sequence[Case]) -> dict[str, int]:
    """What the losses of a mini-batch are divided by, whichever rank and micro-batch its cases are in."""
    lengths = [len(rollout.response_ids) for case in cases for rollout in case.rollouts]
    return {"num_reports": len(lengths), "num_tokens": sum(lengths)}


def _num_tokens(case: Case) -> int:
    return case.prompt.num_tokens + sum(len(rollout.response_ids) for rollout in case.rollouts)
