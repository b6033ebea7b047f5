"""The one mutable object: a policy, its optimiser, and the steps that change them."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from capo.config import OptimizerConfig, RlConfig
from capo.fsdp import sharded_modules
from capo.kl import KL_ESTIMATES, k3
from capo.loss import OBJECTIVES, LossTerms, sampler_weights
from capo.metrics import LossMetrics, ScoringMetrics
from capo.packing import Layout, micro_batches, pack, report_logps
from capo.ranks import Ranks
from capo.types import Case, Policy


@dataclass(frozen=True)
class _MicroBatch:
    """Cases of one forward pass, with what stays fixed over the inner epochs. [R, T]: R reports, T tokens."""

    layout: Layout
    features: list[Tensor] | None  # None when the vision tower is trained
    sampled_logps: Tensor  # [R, T], the sampler's own
    reference_logps: Tensor  # [R, T]
    advantages: Tensor  # [R, T]
    critical: Tensor  # [R] bool
    clip: Tensor  # [R], eps_i of each report's case
    sampled: Tensor  # [R] bool, False for edited copies
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
        groups = [decayed, {"params": vectors, "weight_decay": 0.0}]
        # AdamW's other ways hold several copies of what is trained for the time of an update.
        self.optimizer = torch.optim.AdamW(groups, lr=config.lr, fused=True)
        for parameter in self.parameters:  # as AdamW makes it at the first update; here, so that it can be loaded
            zeros = (torch.zeros_like(parameter) for _ in range(2))
            self.optimizer.state[parameter] = dict(zip(("exp_avg", "exp_avg_sq"), zeros, strict=True))
            self.optimizer.state[parameter]["step"] = torch.zeros((), device=parameter.device)
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
        span = max(1, self.num_steps - 1 - config.warmup_steps)  # the last step is at the end of the cosine
        progress = min(1.0, (self.num_updates - config.warmup_steps) / span)
        share = config.final_lr_share
        return config.lr * (share + (1 - share) * 0.5 * (1 + math.cos(math.pi * progress)))

    def capo_step(
        self,
        cases: Sequence[Case],
        config: RlConfig,
        *,
        temperature: float,
        suppressed: Tensor | None,
        max_tokens: int = 0,
    ) -> dict[str, float | None]:
        """One CAPO step (paper eq. 8): `inner_epochs` passes over a batch of rollouts, each report clipped by the range
        of its case, with the KL to the reference.

        Edited copies add to the policy term: the loss is divided by the number of sampled reports (or their tokens), so
        that these count as much as they would without copies. The KL and all metrics of log-probabilities are of
        sampled reports, as its estimates hold for those only.

        Args:
            cases: one per study, with its reports, their advantages (eq. 1) and its clip range (eq. 9).
            temperature, suppressed: as when sampling; every log-probability here is of that distribution.
            max_tokens: the longest report that sampling allows; the objective `dr_grpo` divides by it.

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
                counts = {**_counts(mini_batch), "max_tokens": max_tokens}
                for index, micro in enumerate(micros):
                    logps, entropy = _logps(self.policy, micro.layout, micro.features, options)
                    if micro.behaviour_logps is None:
                        micro = micros[index] = _with_behaviour(micro, logps.detach(), entropy, before)
                    terms = _objective(micro, logps, config, counts)
                    torch.autograd.backward(terms.loss)
                    losses.add(terms, critical=micro.critical, sampled=micro.sampled)
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
        responses = [[rollout.response_ids for rollout in case.rollouts] for case in cases]
        layout = pack([case.prompt for case in cases], responses).to(self.policy.device)
        features = self.policy(lambda: self.policy.features(layout.prompts)) if self.frozen_vision else None
        reports = [(case, rollout) for case in cases for rollout in case.rollouts]
        assert self.reference is not None
        with self.reference() as policy:
            reference_logps, _ = _logps(policy, layout, features, options)
        device = layout.mask.device
        return _MicroBatch(
            layout=layout,
            features=features,
            sampled_logps=_pad(layout, [rollout.behaviour_logps for _, rollout in reports]),
            reference_logps=reference_logps,
            advantages=_pad(layout, [row for case in cases for row in _token_advantages(case)]),
            critical=torch.tensor([case.critical for case, _ in reports], dtype=torch.bool, device=device),
            clip=torch.tensor([case.clip for case, _ in reports], dtype=torch.float32, device=device),
            sampled=torch.tensor([rollout.edited is None for _, rollout in reports], dtype=torch.bool, device=device),
        )

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


def _num_tokens(case: Case) -> int:
    return case.prompt.num_tokens + sum(len(rollout.response_ids) for rollout in case.rollouts)


def _logps(
    policy: Policy, layout: Layout, features: list[Tensor] | None, options: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    return policy(lambda: report_logps(policy, layout, features=features, **options))


def _pad(layout: Layout, rows: Sequence[Tensor]) -> Tensor:
    """Values of the tokens of each report, [T] each -> [R, T] float32 on the layout's device."""
    return layout.pad(torch.cat([torch.zeros(0), *rows]).to(layout.mask.device, torch.float32))


def _token_advantages(case: Case) -> list[Tensor]:
    """Of the tokens of each report, [T] each."""
    lengths = [len(rollout.response_ids) for rollout in case.rollouts]
    rows = zip(case.advantages, lengths, strict=True)
    return [row[:length] if row.ndim else row.expand(length) for row, length in rows]


def _with_behaviour(micro: _MicroBatch, logps: Tensor, entropy: Tensor, before: ScoringMetrics) -> _MicroBatch:
    """With log-probabilities of the policy that sampled, in the very layout that is trained on.

    The sampler's own come from another path and differ in the last digits (in bf16 by more than a critical case's
    clip range), so no ratio is taken of them: they are compared, and give the weights of `sampler_correction`. A copy
    has none, and neither has a token whose sampler gave none; with the trainer's its weight is 1.
    """
    mask = micro.layout.mask & micro.sampled[:, None]
    before.add(
        micro.sampled_logps, logps, k3(logps, micro.reference_logps, mask), torch.where(mask, entropy, 0.0), mask
    )
    known = mask & ~micro.sampled_logps.isnan()
    return replace(micro, sampled_logps=torch.where(known, micro.sampled_logps, logps), behaviour_logps=logps)


def _objective(micro: _MicroBatch, logps: Tensor, config: RlConfig, counts: dict[str, int]) -> LossTerms:
    """The run's objective on a micro-batch (paper eq. 8), its KL and, if asked for, the sampler's correction in it."""
    behaviour, mask, weights = micro.behaviour_logps, micro.layout.mask, None
    assert behaviour is not None
    if config.sampler_correction != "off":
        level, cap = config.sampler_correction, config.sampler_cap
        weights = sampler_weights(behaviour, micro.sampled_logps, mask, level=level, cap=cap)
    own = mask & micro.sampled[:, None]
    kl = KL_ESTIMATES[config.kl](logps, behaviour, micro.reference_logps, own)
    batch, options = (logps, behaviour, micro.advantages, mask), {"kl": kl, "beta": config.beta, "weights": weights}
    return OBJECTIVES[config.objective](*batch, clip=micro.clip, dual_clip=config.dual_clip, **options, **counts)


def _counts(cases: Sequence[Case]) -> dict[str, int]:
    """What the losses of a mini-batch are divided by, whichever rank and micro-batch its cases are in; 1 if every
    report of it was cut and masked."""
    rollouts = [rollout for case in cases for rollout in case.rollouts if rollout.edited is None]
    num_tokens = sum(len(rollout.response_ids) for rollout in rollouts)
    return {"num_reports": max(1, len(rollouts)), "num_tokens": max(1, num_tokens)}
