"""CAPO: GRPO with a clip range per case. Every module imports torch and the standard library only.

The names below can be imported from here (`from capo import capo_loss`); a name loads its own module and no other.
`__init__.pyi` repeats them for type checkers.
"""

from importlib import import_module

__version__ = "0.1.0"

_NAMES = {
    "advantages": "GroupAdvantages batch_advantages centred_advantages decoupled_advantages estimate_advantages "
    "group_advantages leave_one_out_advantages sum_parts variance_shares",
    "clipping": "critical_clip",
    "config": "EditsConfig OptimizerConfig RlConfig",
    "explore": "ExploreConfig composite_score select_hard",
    "kl": "KL_ESTIMATES corrected_k3 k1 k2 k3",
    "logprobs": "linear_logps",
    "loss": "OBJECTIVES LossTerms capo_loss dapo_loss dr_grpo_loss gspo_loss grpo_loss policy_loss report_mean "
    "sampler_weights sequence_ratio token_mean token_ratio",
    "metrics": "LossMetrics PolicyMetrics ScoringMetrics",
    "packing": "Layout micro_batches pack report_logps",
    "ranks": "Ranks",
    "rollout": "Engine Request",
    "sampling": "SamplingConfig sample_seed",
    "sft": "SftConfig sft_step",
    "trainer": "Trainer",
    "types": "Case Policy Prompt Rollout",
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names.split()}
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'capo' has no attribute {name!r}")
    return getattr(import_module(f"capo.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
