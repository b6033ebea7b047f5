"""A value outside its range is refused by name."""

import pytest

from capo.explore import ExploreConfig
from capo.sampling import SamplingConfig
from capo.sft import SftConfig
from capo.trainer import OptimizerConfig, RlConfig
from capo.warmup import WarmupConfig

REFUSED = (
    (OptimizerConfig, "lr", 0.0, "above 0"),
    (OptimizerConfig, "token_budget", 0, "of at least 1"),
    (OptimizerConfig, "warmup_steps", -1, "of at least 0"),
    (OptimizerConfig, "final_lr_share", 1.5, "of at least 0 and at most 1"),
    (RlConfig, "group_size", 1, "of at least 2"),
    (RlConfig, "balance", float("nan"), "of at least 0 and at most 1"),
    (RlConfig, "beta", -0.1, "of at least 0"),
    (SftConfig, "batch_size", 0, "of at least 1"),
    (SamplingConfig, "top_p", 0.0, "above 0 and at most 1"),
    (SamplingConfig, "temperature", -1.0, "of at least 0"),
    (ExploreConfig, "fraction", 0.0, "above 0 and at most 1"),
    (WarmupConfig, "grid", -1, "of at least 0"),
)


@pytest.mark.parametrize(("config", "name", "value", "wanted"), REFUSED)
def test_a_value_outside_its_range_is_refused_by_name(config, name, value, wanted):
    with pytest.raises(ValueError, match=f"expected {name} {wanted}, got {value}"):
        config(**{name: value})


def test_the_bounds_themselves_are_allowed():
    assert OptimizerConfig(final_lr_share=1, warmup_steps=0, token_budget=1) and SamplingConfig(top_p=1, temperature=0)


@pytest.mark.parametrize("values", [{"eps_normal": 1.0}, {"tightening": 0.5}])
def test_a_clip_range_must_be_one(values):
    with pytest.raises(ValueError, match="expected 0 < eps_normal < 1 and tightening >= 1"):
        RlConfig(**values)
