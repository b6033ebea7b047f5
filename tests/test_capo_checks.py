"""A value outside its range is refused by name."""

import dataclasses
import math
import re
import types
import typing

import numpy as np
import pytest

from capo.config import EditsConfig, OptimizerConfig, RlConfig
from capo.explore import ExploreConfig
from capo.sampling import SamplingConfig
from capo.sft import SftConfig
from capo.warmup import WarmupConfig
from radflow.data.windowing import WindowConfig
from radflow.evaluation.served_model import ServedModelConfig
from radflow.pipeline.run_config import Config

REFUSED = (
    (OptimizerConfig, "lr", 0.0, "above 0"),
    (OptimizerConfig, "token_budget", 0, "of at least 1"),
    (OptimizerConfig, "warmup_steps", -1, "of at least 0"),
    (OptimizerConfig, "final_lr_share", 1.5, "of at least 0 and at most 1"),
    (RlConfig, "group_size", 1, "of at least 2"),
    (RlConfig, "balance", float("nan"), "of at least 0 and at most 1"),
    (RlConfig, "beta", -0.1, "of at least 0"),
    (RlConfig, "resample", -1, "of at least 0"),
    (RlConfig, "dual_clip", 1.0, "above 1"),
    (EditsConfig, "share", 1.5, "of at least 0 and at most 1"),
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


# SamplingConfig: for each field, what no run can use. Sizes are whole numbers, and True is not 1.
IMPOSSIBLE = {
    "temperature": (-0.1, -1, math.nan, math.inf, -math.inf, True, "1"),
    "top_p": (0, 0.0, -0.5, 1.1, 2, math.nan, math.inf, -math.inf, True, None),
    "top_k": (-1, 2.5, math.nan, math.inf, False, "50"),
    "max_new_tokens": (0, -128, 64.5, math.nan, math.inf, True, None),
    "prefill_tokens": (0, -1, 0.5, math.nan, math.inf, -math.inf, True),
    "slots": (0, -64, 1.5, math.nan, math.inf, True, "8"),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in IMPOSSIBLE.items() for value in values])
def test_impossible_sampling_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"expected {name} .*, got {re.escape(repr(value))}"):
        SamplingConfig(**{name: value})


def test_every_field_of_sampling_is_checked():
    assert set(IMPOSSIBLE) == {field.name for field in dataclasses.fields(SamplingConfig)}


@pytest.mark.parametrize(
    ("config", "name", "value", "message"),
    [
        (OptimizerConfig, "lr", math.inf, "expected lr above 0 and finite, got inf"),
        (OptimizerConfig, "lr", math.nan, "expected lr above 0 and finite, got nan"),
        (ExploreConfig, "threshold", math.nan, "expected threshold finite, got nan"),
        (SftConfig, "steps", 10.0, "expected steps as a whole number, got 10.0"),
        (OptimizerConfig, "lr", "1e-5", "expected lr as a number, got '1e-5'"),
    ],
)
def test_what_is_no_number_of_its_kind_is_said_to_be_so(config, name, value, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        config(**{name: value})


def test_whole_numbers_are_allowed_where_fractions_are_and_numpys_count_as_numbers():
    assert SamplingConfig(temperature=1, slots=np.int64(3), top_p=np.float32(0.5)).slots == 3
    assert ExploreConfig(threshold=-1).threshold == -1


def configs_under(kind):
    """A dataclass and those of its fields, of theirs, and so on."""
    hints = typing.get_type_hints(kind)
    return {kind}.union(*(configs_under(hint) for hint in hints.values() if dataclasses.is_dataclass(hint)))


def float_fields():
    kinds = sorted(configs_under(Config) | {ServedModelConfig}, key=lambda kind: kind.__name__)
    for kind in kinds:
        for name, hint in typing.get_type_hints(kind).items():
            if float in (hint, *typing.get_args(hint)) and typing.get_origin(hint) in (None, types.UnionType):
                yield kind, name


@pytest.mark.parametrize(("kind", "name"), list(float_fields()))
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_fraction_of_a_run_may_be_nan_or_infinite(kind, name, value):
    with pytest.raises(ValueError, match=rf"{name}|weights|{name.split('_')[0]}"):
        kind(**{name: value})


def test_the_search_for_fractions_finds_those_of_every_package():
    found = {(kind.__name__, name) for kind, name in float_fields()}
    known = {("OptimizerConfig", "weight_decay"), ("RlConfig", "advantage_eps"), ("RewardConfig", "gamma")}
    known |= {("JudgeConfig", "max_money"), ("BertScoreConfig", "baseline"), ("LoraConfig", "alpha")}
    assert found > known | {("ParallelConfig", "timeout_s"), ("ServedModelConfig", "backoff_s")}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0])
def test_weights_of_exploration_are_finite(value):
    with pytest.raises(ValueError, match=r"expected explore\.weights finite"):
        ExploreConfig(weights={"bleu2": 1.0, "rouge_l": value})


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["percentiles", "levels"])
@pytest.mark.parametrize("index", [0, 1])
def test_bounds_of_a_window_are_finite(name, index, bad):
    bounds = [1.0, 99.0]
    bounds[index] = bad
    with pytest.raises(ValueError, match=f"window.{name}"):
        WindowConfig(**{name: tuple(bounds)})


@pytest.mark.parametrize(
    ("config", "name"),
    [(RlConfig, name) for name in ("objective", "advantage", "credit", "truncated", "kl", "sampler_correction")]
    + [(EditsConfig, "when")],
)
def test_a_choice_that_there_is_not_is_refused_by_name(config, name):
    with pytest.raises(ValueError, match=f"expected {name} as one of .*, got 'none of them'"):
        config(**{name: "none of them"})


def test_a_margin_that_has_no_effect_is_refused():
    with pytest.raises(ValueError, match="truncated_margin is 8 but truncated is mask"):
        RlConfig(truncated="mask", truncated_margin=8)
    with pytest.raises(ValueError, match="expected truncated_margin of at least 1, got 0"):
        RlConfig(truncated="punish", truncated_margin=0)
    assert RlConfig(truncated="punish", truncated_margin=8).truncated_margin == 8
