"""The names of __init__.py for type checkers; a test compares the two."""

from capo.advantages import (
    GroupAdvantages,
    batch_advantages,
    centred_advantages,
    decoupled_advantages,
    estimate_advantages,
    group_advantages,
    leave_one_out_advantages,
    sum_parts,
    variance_shares,
)
from capo.clipping import critical_clip
from capo.config import EditsConfig, OptimizerConfig, RlConfig
from capo.explore import ExploreConfig, composite_score, select_hard
from capo.kl import KL_ESTIMATES, corrected_k3, k1, k2, k3
from capo.logprobs import linear_logps
from capo.loss import (
    OBJECTIVES,
    LossTerms,
    capo_loss,
    dapo_loss,
    dr_grpo_loss,
    grpo_loss,
    gspo_loss,
    policy_loss,
    report_mean,
    sampler_weights,
    sequence_ratio,
    token_mean,
    token_ratio,
)
from capo.metrics import LossMetrics, PolicyMetrics, ScoringMetrics
from capo.packing import Layout, micro_batches, pack, report_logps
from capo.ranks import Ranks
from capo.rollout import Engine, Request
from capo.sampling import SamplingConfig, sample_seed
from capo.sft import SftConfig, sft_step
from capo.trainer import Trainer
from capo.types import Case, Policy, Prompt, Rollout

__version__: str
__all__ = [
    "GroupAdvantages",
    "batch_advantages",
    "centred_advantages",
    "decoupled_advantages",
    "estimate_advantages",
    "group_advantages",
    "leave_one_out_advantages",
    "sum_parts",
    "variance_shares",
]
__all__ += ["critical_clip"]
__all__ += ["EditsConfig", "OptimizerConfig", "RlConfig"]
__all__ += ["ExploreConfig", "composite_score", "select_hard"]
__all__ += ["KL_ESTIMATES", "corrected_k3", "k1", "k2", "k3"]
__all__ += ["linear_logps"]
__all__ += [
    "OBJECTIVES",
    "LossTerms",
    "capo_loss",
    "dapo_loss",
    "dr_grpo_loss",
    "grpo_loss",
    "gspo_loss",
    "policy_loss",
    "report_mean",
    "sampler_weights",
    "sequence_ratio",
    "token_mean",
    "token_ratio",
]
__all__ += ["LossMetrics", "PolicyMetrics", "ScoringMetrics"]
__all__ += ["Layout", "micro_batches", "pack", "report_logps"]
__all__ += ["Ranks"]
__all__ += ["Engine", "Request"]
__all__ += ["SamplingConfig", "sample_seed"]
__all__ += ["SftConfig", "sft_step"]
__all__ += ["Trainer"]
__all__ += ["Case", "Policy", "Prompt", "Rollout"]
