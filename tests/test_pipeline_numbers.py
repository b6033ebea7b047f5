"""No number that a stage cannot mean gets past the config."""

import dataclasses
import re
import typing
from collections.abc import Iterator
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest

from radflow.evaluation.gallery import GalleryConfig
from radflow.evaluation.generate import GenerateConfig
from radflow.evaluation.measuring import MeasureConfig
from radflow.evaluation.weights import Weights
from radflow.models.start import ModelConfig
from radflow.pipeline.command_line import DEFAULT_CONFIG
from radflow.pipeline.run_config import Config, read_config

RUN = Config(model=ModelConfig(training="full"))
PROGRAMS = (
    RUN,
    GenerateConfig(Path("studies.jsonl"), Path("out.json"), model="model"),
    MeasureConfig(),
    GalleryConfig(phantoms="chest"),
    Weights(),
)
# A composite score, the F of unrelated texts, and grey levels of a CT.
MAY_BE_NEGATIVE = {"explore.threshold", "reward.bertscore.baseline", "data.window.levels"}


def numbers(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, str, str]]:
    """Dotted key, the dataclass that has it, its field and type, of each number at any depth."""
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, shown = getattr(config, field.name), str(hints[field.name])
        if dataclasses.is_dataclass(value):
            yield from numbers(value, f"{prefix}{field.name}.")
        elif re.search(r"\b(int|float)\b", shown):
            yield prefix + field.name, config, field.name, shown


def changed(owner: Any, name: str, kind: str, value: float) -> Any:
    before = getattr(owner, name)
    if isinstance(before, typing.Mapping):
        return dataclasses.replace(owner, **{name: {**before, next(iter(before)): value}})
    return dataclasses.replace(owner, **{name: (value, 100.0) if "tuple" in kind else value})


@pytest.mark.parametrize("config", PROGRAMS, ids=lambda config: type(config).__name__)
def test_every_field_refuses_numbers_that_mean_nothing(config):
    found = list(numbers(config))
    passed = []
    for key, owner, name, kind in found:
        values = (nan, inf, -inf, -1) if "float" in kind else (-1,)
        for value in values:
            if value == -1 and key in MAY_BE_NEGATIVE:
                continue
            try:
                changed(owner, name, kind, value)
            except ValueError as error:
                assert name in str(error) or "weights" in str(error), (key, str(error))
            else:
                passed.append((key, value))
    assert found and not passed


def test_the_config_refuses_what_a_section_forgot():
    @dataclasses.dataclass(frozen=True)
    class Careless:
        """A section without checks."""

        rate: float = nan

    with pytest.raises(ValueError, match=r"expected rl\.rate as a finite number, .* got nan"):
        dataclasses.replace(RUN, rl=Careless())
    with pytest.raises(ValueError, match=r"expected rl\.steps as a finite number, below 2\^63"):
        dataclasses.replace(RUN, rl=dataclasses.replace(RUN.rl, steps=2**63))


@pytest.mark.parametrize(
    ("option", "value"),
    [("rl.beta", "nan"), ("rollout.temperature", "0"), ("explore.weights", "bleu inf"), ("seed", "-1")],
)
def test_the_command_line_names_the_key(option, value, capsys):
    with pytest.raises(SystemExit) as stopped:
        read_config(Config, DEFAULT_CONFIG, [f"--{option}", *value.split()])
    assert stopped.value.code not in (0, None)
    assert option.rpartition(".")[2] in capsys.readouterr().err
