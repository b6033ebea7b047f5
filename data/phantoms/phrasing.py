"""One of several wordings, chosen by the study's generator or, for a perfect report, always the first."""

from collections.abc import Sequence

import numpy as np


class Wording:
    """Chooses among paraphrases; without a generator always the first."""

    def __init__(self, generator: np.random.Generator | None) -> None:
        self.generator = generator

    def __call__(self, *variants: str) -> str:
        return variants[0] if self.generator is None else variants[int(self.generator.integers(len(variants)))]

    def happens(self, chance: float) -> bool:
        """False for a perfect report: nothing is left out or hedged there."""
        return self.generator is not None and bool(self.generator.random() < chance)


def sentence(text: str) -> str:
    """With a capital and a full stop."""
    return text[0].upper() + text[1:] + "."


def listing(parts: Sequence[str]) -> str:
    """a; a and b; a, b and c."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
