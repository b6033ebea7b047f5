"""What a run can choose of its optimiser and of CAPO."""

from dataclasses import dataclass, field
from typing import Literal

from capo.advantages import Estimator
from capo.checks import check_choices, check_range
from capo.clipping import check_clip
from capo.loss import check_sampler_cap


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
    """Tokens of one micro-batch; lower it when memory is short. The gradient does not depend on it."""
    max_bad_updates: int = 5
    """The run stops after this many updates in a row whose gradient is not finite; such updates are skipped."""

    def __post_init__(self) -> None:
        check_range(self, "lr", "max_grad_norm", above=0)
        check_range(self, "token_budget", "max_bad_updates", least=1)
        check_range(self, "warmup_steps", "weight_decay", least=0)
        check_range(self, "final_lr_share", least=0, most=1)


@dataclass(frozen=True)
class EditsConfig:
    """Copies of sampled reports in which one finding is made right against the reference; they join their group."""

    share: float = 0.25
    """Copies per group, as a share of its reports, rounded up; 0 makes none."""
    when: Literal["always", "missed_by_all"] = "always"
    """missed_by_all: only for a finding that no report of the group has."""
    counted: bool = False
    """Whether copies enter the mean and the std of their group. Otherwise sampled reports have the advantages that they
    would have without copies, and each copy that which it would have if it alone had joined."""

    def __post_init__(self) -> None:
        check_range(self, "share", least=0, most=1)
        check_choices(self, "when")


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
    objective: Literal["capo", "dapo", "gspo", "dr_grpo"] = "capo"
    """capo: GRPO if tightening is 1. dapo: mean over tokens, upper range 1.4 eps. gspo: one ratio per report, upper
    range 4/3 eps; its eps_normal is about 3e-4. dr_grpo: every report divided by rollout.max_new_tokens. All clip each
    case by its own eps."""
    advantage: Estimator = "decoupled"
    """group: the total reward normalised within its group (GRPO, the paper). decoupled: each part of the reward
    normalised within its group, then summed (GDPO). batch: the std is that of the whole step. centred: no std (Dr.
    GRPO). leave_one_out: against the mean of the siblings (RLOO)."""
    credit: Literal["report", "section"] = "report"
    """report: every token has the advantage of the whole report. section: parts of the reward that read one section
    count for the tokens of that section only."""
    edits: EditsConfig = field(default_factory=EditsConfig)
    truncated: Literal["keep", "mask", "punish"] = "keep"
    """Reports that reach rollout.max_new_tokens. mask: they leave the loss. punish: reports lose up to 1 point as they
    come within truncated_margin tokens of the limit (DAPO)."""
    truncated_margin: int = 16
    """Tokens before the limit within which the punishment grows."""
    resample: int = 0
    """How often a group without spread is sampled anew, from other random numbers, before it counts as it is."""
    eps_normal: float = 0.2
    """Clip range of normal cases."""
    tightening: float = 4.0
    """A critical case is clipped to eps_normal / tightening; 1 clips all cases by the same range."""
    dual_clip: float | None = None
    """Bounds the loss of a bad report whose probability has grown, at this many times its advantage (above 1)."""
    beta: float = 0.02
    """Weight of the KL to the frozen SFT policy."""
    kl: Literal["k1", "k2", "k3", "corrected_k3"] = "k3"
    """Estimate of the KL (capo/kl.py). The gradient of k1 is 0 on average: it does not hold the policy back."""
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
        check_choices(self, "objective", "advantage", "credit", "truncated", "kl", "sampler_correction")
        check_clip(self.eps_normal, self.tightening)
        check_range(self, "beta", "resample", "advantage_eps", least=0)
        if self.dual_clip is not None:
            check_range(self, "dual_clip", above=1)
        check_sampler_cap(self.sampler_cap)
        if self.sampler_correction == "off" and self.sampler_cap != type(self).sampler_cap:
            raise ValueError(
                f"sampler_cap is {self.sampler_cap} but sampler_correction is off; set it to token or report, or leave "
                "sampler_cap out"
            )
        if self.truncated != "punish" and self.truncated_margin != type(self).truncated_margin:
            raise ValueError(
                f"truncated_margin is {self.truncated_margin} but truncated is {self.truncated}; set it to punish, or "
                "leave truncated_margin out"
            )
        check_range(self, "steps", "studies_per_step", "inner_epochs", "mini_batches", "checkpoint_every", least=1)
        check_range(self, "truncated_margin", least=1)
        check_range(self, "group_size", least=2)  # one report has no group to beat
        check_range(self, "balance", least=0, most=1)
        if self.objective == "gspo" and self.credit == "section":
            raise ValueError("expected credit report with objective gspo, got section: it has one ratio per report")
        if self.mini_batches > self.studies_per_step:
            most = f"at most {self.studies_per_step} (studies_per_step)"
            raise ValueError(f"expected mini_batches of {most}, got {self.mini_batches}")
