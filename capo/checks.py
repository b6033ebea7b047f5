"""Ranges and choices of configuration values."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from math import inf
from numbers import Integral, Real
from typing import Any, get_args, get_type_hints


def check_range(config: Any, *names: str, above: float = -inf, least: float = -inf, most: float = inf) -> None:
    """Raise ValueError unless every named field is finite, above `above`, at least `least` and at most `most`.

    A field declared int takes whole numbers only. NaN is in no range, and True and False are no numbers.
    """
    whole = {field.name for field in fields(config) if field.type is int}
    for name in names:
        value = getattr(config, name)
        kind: Any = Integral if name in whole else Real
        if isinstance(value, bool) or not isinstance(value, kind):
            raise ValueError(f"expected {name} as a {'whole ' * (name in whole)}number, got {value!r}")
        if not (above < value < inf and least <= value <= most):
            bounds = [f"{word} {bound}" for word, bound in (("above", above), ("of at least", least)) if bound > -inf]
            bounds += [f"at most {most}"] if most < inf else [] if abs(value) < inf else ["finite"]
            raise ValueError(f"expected {name} {' and '.join(bounds)}, got {value}")


def check_numbers(value: Any, name: str = "") -> None:
    """Raise ValueError if a number of a config, or of what it holds, is NaN, infinite or whole and beyond 64 bits.

    Args:
        value: a dataclass, mapping, sequence or single value.
        name: its dotted key, for the message.
    """
    limit = 2**63 if isinstance(value, int) else inf
    if isinstance(value, int | float) and not -limit < value < limit:
        raise ValueError(f"expected {name} as a finite number, below 2^63 if it is whole, got {value}")
    items: Any = ()
    if is_dataclass(value):
        items = ((field.name, getattr(value, field.name)) for field in fields(value))
    elif isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, tuple | list):
        items = enumerate(value)
    for key, item in items:
        check_numbers(item, f"{name}.{key}".lstrip("."))


def check_choices(config: object, *names: str) -> None:
    """Raise ValueError unless every named field has one of the values of its Literal type."""
    hints = get_type_hints(type(config))
    for name in names:
        value, choices = getattr(config, name), get_args(hints[name])
        if value not in choices:
            raise ValueError(f"expected {name} as one of {', '.join(choices)}, got {value!r}")
