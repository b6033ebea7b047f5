"""The one mutable object: a policy, its optimiser, and the steps that change them."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from capo.checks import check_range
from capo.clipping import check_clip
from capo.fsdp import sharded_modules
from capo.kl import k3
from capo.loss import OBJECTIVES, LossTerms, check_sampler_cap, sampler_weights
from capo.metrics import LossMetrics, ScoringMetrics
from capo.packing import Layout, micro_batches, pack, report_logps
from capo.ranks import Ranks
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
        check_range(self, "lr", "max_grad_norm", above=0)
        check_range(self, "token_budget", "max_bad_updates", least=1)
        check_range(self, "warmup_steps", least=0)
        check_range(self, "final_lr_share", least=0, most=1)


@dataclass(frozen=True)
class RlConfig:
    """The objective, how many reports a step samples, and how often it uses them."""

    steps: int = 1000
    """Batches of rollouts."""
    studies_per_step: int = 8
    """Studies in a batch of rollouts."""
    group_size: int = 4
    """G, reports sampled for each study (the paper: 4)."""
    vision: Literal["frozen", "trained"] = "frozen"
    """The vision tower, when all weights are trained; frozen, its features are computed once per step."""
    balance: float = 0.0
    """0 draws studies with equal probability; 1 sets of Impression labels, however rare; in between, a power."""
    objective: Literal["capo", "dapo", "gspo"] = "capo"
    """capo: GRPO where tightening is 1. dapo: mean over tokens, upper range 1.4 eps. gspo: one ratio a report, upper
    range 4/3 eps; its eps_normal is about 3e-4. All clip each case by its own eps."""
    eps_normal: float = 0.2
    """Clip range of normal cases."""
    tightening: float = 4.0
    """A critical case is clipped to eps_normal / tightening; 1 clips all cases by the same range."""
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
        check_clip(self.eps_normal, self.tightening)
        check_range(self, "beta", least=0)
        if self.sampler_correction not in ("off", "token", "report"):
            raise ValueError(f"expected sampler_correction as off, token or report, got {self.sampler_correction!r}")
        check_sampler_cap(self.sampler_cap)
        if self.sampler_correction == "off" and self.sampler_cap != type(self).sampler_cap:
            raise ValueError(
                f"sampler_cap is {self.sampler_cap} but sampler_correction is off; set it to token or report, or leave "
                "sampler_cap out"
            )
        check_range(self, "steps", "studies_per_step", "inner_epochs", "mini_batches", "checkpoint_every", least=1)
        check_range(self, "group_size", least=2)  # one report has no group to beat
        check_range(self, "balance", least=0, most=1)
        if self.mini_batches > self.studies_per_step:
            most = f"at most {self.studies_per_step} (studies_per_step)"
            raise ValueError(f"expected mini_batches of {most}, got {self.mini_batches}")


@dataclass(frozen=True)
class _MicroBatch:
    """Cases of one forward pass, with what stays fixed over the inner epochs. [R, T]: R reports, T tokens."""

    layout: Layout
    features: list[Tensor] | None  # None when the vision tower is trained
    sampled_logps: Tensor  # [R, T], the sampler's own
    reference_logps: Tensor  # [R, T]
    advantages: Tensor  # [R]
    critical: Tensor  # [R] bool
    clip: Tensor  # [R], eps_i of each report's case
    behaviour_logps: Tensor | None = None  # [R, T], None before the first pass of the policy that sampled


class DivergedError(RuntimeError):
    """Too many updates in a row had a gradient that is not finite."""


class Trainer:
    """Changes a policy, step by step.

    Args:
        policy: its trainable parameters are optimised.
        num_steps: optimiser steps of the whole run, for the learning-rate schedule.
        reference: gives the frozen SFT policy for the time of a `with`; a context manager, because with LoRA the
            reference is the policy itself with its adapters off. Needed for `capo_step` only.
        frozen_vision: the tower is not trained, so its features are computed once per step and shared.
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
        vectors = [p for p in self.parameters if p.ndim <= 1]
        decayed = {"params": [p for p in self.parameters if p.ndim > 1], "weight_decay": config.weight_decay}
        # On a GPU, AdamW's other ways hold several copies of what is trained for the time of an update.
        fused = all(parameter.is_cuda for parameter in self.parameters)
        groups = [decayed, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=config.lr, fused=fused)
        for parameter in self.parameters:  # as AdamW makes it at the first update; here, so that it can be loaded
            zeros = (torch.zeros_like(parameter) for _ in range(2))
            self.optimizer.state[parameter] = dict(zip(("exp_avg", "exp_avg_sq"), zeros, strict=True))
            self.optimizer.state[parameter]["step"] = torch.zeros((), device=parameter.device if fused else None)
        self.num_updates = self.num_skipped = 0
        self.num_bad = 0  # skipped in a row

    def step(self) -> dict[str, float]:
        """Add up the gradients of all ranks, clip, update, clear. A gradient that is not finite is dropped and counted;
        `max_bad_updates` of them in a row raise DivergedError."""
        lr = self.learning_rate()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        # AdamW and the sum over ranks would leave out those without; ranks differ in which those are.
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.ranks.barrier()  # names a rank that hangs in its backward pass before the exchange's own timeout
        if not self.sharded:
            self.ranks.all_reduce_gradients(self.parameters)
        total = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
        norm = float(total.full_tensor() if isinstance(total, DTensor) else total)
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

    def capo_step(
        self, cases: Sequence[Case], config: RlConfig, *, temperature: float, suppressed: Tensor | None
    ) -> dict[str, float]:
        """One CAPO step (paper eq. 8): `inner_epochs` passes over a batch of rollouts, each report clipped by the range
        of its case, with the KL to the reference.

        Args:
            cases: one per study, with its reports, their advantages (eq. 1) and its clip range (eq. 9).
            temperature, suppressed: as when sampling; every log-probability here is of that distribution.

        Returns:
            Metrics of the step (docs/reading-a-run.md lists them).
        """
        if config.mini_batches * self.ranks.size > len(cases):
            needed = config.mini_batches * self.ranks.size
            raise ValueError(f"expected at least {needed} studies (mini_batches x ranks), got {len(cases)}")
        if self.reference is None:
            raise ValueError("expected a frozen policy for the KL, got none; give the trainer its `reference`")
        before = ScoringMetrics(level=config.sampler_correction, cap=config.sampler_cap)
        losses, steps = LossMetrics(), []
        options = {"temperature": temperature, "suppressed": suppressed}
        mini_batches = [cases[i :: config.mini_batches] for i in range(config.mini_batches)]
        own = [[self._prepare(rows, options) for rows in micros] for micros in self._assign(mini_batches)]
        # The first mini-batch is trained on by the very policy that sampled: its first pass gives the behaviour too.
        own[1:] = [[self._score(micro, options, before) for micro in micros] for micros in own[1:]]
        for _ in range(config.inner_epochs):
            for mini_batch, micros in zip(mini_batches, own, strict=True):
                counts = _counts(mini_batch)
                for index, micro in enumerate(micros):
                    logps, entropy = _logps(self.policy, micro.layout, micro.features, options)
                    if micro.behaviour_logps is None:
                        micro = micros[index] = _with_behaviour(micro, logps.detach(), entropy, before)
                    terms = _objective(micro, logps, config, counts)
                    torch.autograd.backward(terms.loss)
                    losses.add(terms, critical=micro.critical)
                steps.append(self.step())
        gradient = sum(step["grad_norm"] for step in steps) / len(steps)
        metrics = {**asdict(losses.read(self.ranks, num_updates=len(steps))), **before.read(self.ranks)}
        return {**metrics, **steps[-1], "grad_norm": gradient}

    def _assign(self, mini_batches: Sequence[Sequence[Case]]) -> list[list[list[Case]]]:
        """The micro-batches of this rank for each mini-batch; ranks take cases of about equally many tokens.

        Every rank gets equally many, because every pass of a sharded policy needs all ranks: one that has none left
        repeats a case without its reports.
        """
        shares = []
        for mini_batch in mini_batches:
            own = [mini_batch[i] for i in self.ranks.assign([_num_tokens(case) for case in mini_batch])]
            rows = micro_batches([_num_tokens(case) for case in own], self.config.token_budget)
            shares.append([[own[i] for i in indices] for indices in rows])
        counts = self.ranks.all_gather([len(share) for share in shares])
        for number, share in enumerate(shares):
            idle = replace(share[-1][0], rollouts=(), advantages=share[-1][0].advantages[:0])
            share += [[idle]] * (max(count[number] for count in counts) - len(share))
        return shares

    @torch.no_grad()
    def _prepare(self, cases: Sequence[Case], options: dict[str, Any]) -> _MicroBatch:
        """The layout of a micro-batch, and reference log-probabilities in it."""
        layout = pack([case.prompt for case in cases], [[r.response_ids for r in case.rollouts] for case in cases])
        layout = layout.to(self.policy.device)
        features = self.policy(lambda: self.policy.features(layout.prompts)) if self.frozen_vision else None
        logps = [rollout.behaviour_logps for case in cases for rollout in case.rollouts]
        sampled = torch.cat([torch.zeros(0), *logps]).to(self.policy.device)
        advantages = torch.cat([case.advantages for case in cases]).to(sampled)
        critical = torch.tensor([case.critical for case in cases for _ in case.rollouts], dtype=torch.bool)
        clip = torch.tensor([case.clip for case in cases for _ in case.rollouts], dtype=torch.float32)
        assert self.reference is not None
        with self.reference() as policy:
            reference_logps, _ = _logps(policy, layout, features, options)
        per_report = (advantages, critical.to(sampled.device), clip.to(sampled.device))
        return _MicroBatch(layout, features, layout.pad(sampled), reference_logps, *per_report)

    @torch.no_grad()
    def _score(self, micro: _MicroBatch, options: dict[str, Any], before: ScoringMetrics) -> _MicroBatch:
        return _with_behaviour(micro, *_logps(self.policy, micro.layout, micro.features, options), before)

    def state(self) -> tuple[dict[str, Tensor], dict[str, object]]:
        """All that a resumed run needs besides the random seeds, which derive from the step: tensors, and numbers.

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

    def restore(self, facts: Mapping[str, Any]) -> None:
        """The numbers that `state` gave."""
        counters = (int(facts[name]) for name in ("num_updates", "num_skipped", "num_bad"))
        self.num_updates, self.num_skipped, self.num_bad = counters
        for moments in self.optimizer.state.values():
            moments["step"].fill_(int(facts["adam_steps"]))


def _logps(
    policy: Policy, layout: Layout, features: list[Tensor] | None, options: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    return policy(lambda: report_logps(policy, layout, features=features, **options))


def _with_behaviour(micro: _MicroBatch, logps: Tensor, entropy: Tensor, before: ScoringMetrics) -> _MicroBatch:
    """With log-probabilities of the policy that sampled, in the very layout that is trained on.

    The sampler's own come from another path and differ in the last digits (in bf16 by more than a critical case's
    clip range), so no ratio is taken of them: they are compared, and give the weights of `sampler_correction`.
    """
    before.add(
        micro.sampled_logps, logps, k3(logps, micro.reference_logps, micro.layout.mask), entropy, micro.layout.mask
    )
    return replace(micro, behaviour_logps=logps)


def _objective(micro: _MicroBatch, logps: Tensor, config: RlConfig, counts: dict[str, int]) -> LossTerms:
    """The run's objective on a micro-batch (paper eq. 8), its KL and, if asked for, the sampler's correction in it."""
    behaviour, mask, weights = micro.behaviour_logps, micro.layout.mask, None
    assert behaviour is not None
    if config.sampler_correction != "off":
        level, cap = config.sampler_correction, config.sampler_cap
        weights = sampler_weights(behaviour, micro.sampled_logps, mask, level=level, cap=cap)
    batch, kl = (logps, behaviour, micro.advantages, mask), k3(logps, micro.reference_logps, mask)
    return OBJECTIVES[config.objective](*batch, clip=micro.clip, kl=kl, beta=config.beta, weights=weights, **counts)


def _counts(cases: Sequence[Case]) -> dict[str, int]:
    """What the losses of a mini-batch are divided by, whichever rank and micro-batch its cases are in."""
    lengths = [len(rollout.response_ids) for case in cases for rollout in case.rollouts]
    return {"num_reports": len(lengths), "num_tokens": sum(lengths)}


def _num_tokens(case: Case) -> int:
    return case.prompt.num_tokens + sum(len(rollout.response_ids) for rollout in case.rollouts)
