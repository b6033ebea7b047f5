"""Ranges of configuration values."""

from math import inf


def check_range(config: object, *names: str, above: float = -inf, least: float = -inf, most: float = inf) -> None:
    """Raise ValueError unless every named field is greater than `above`, at least `least` and at most `most`."""
    for name in names:
        value = getattr(config, name)
        if not (above < value and least <= value <= most):
            bounds = [f"{word} {bound}" for word, bound in (("above", above), ("of at least", least)) if bound > -inf]
            bounds += [f"at most {most}"] if most < inf else []
            raise ValueError(f"expected {name} {' and '.join(bounds)}, got {value}")
