"""One of several wordings, chosen by the study's generator or, for a perfect report, always the first."""

from collections.abc import Mapping, Sequence

import numpy as np


class Wording:
    """Chooses among the paraphrases of a name, which are format strings; without a generator always the first."""

    def __init__(self, wordings: Mapping[str, Sequence[str]], generator: np.random.Generator | None) -> None:
        self.wordings, self.generator = wordings, generator

    def __call__(self, name: str, **values: object) -> str:
        variants = self.wordings[name]
        return variants[self.index(len(variants))].format(**values)

    def index(self, count: int) -> int:
        """An index below `count`; 0 for a perfect report."""
        return 0 if self.generator is None else int(self.generator.integers(count))

    def happens(self, chance: float) -> bool:
        """False for a perfect report: nothing is left out or hedged there."""
        return self.generator is not None and bool(self.generator.random() < chance)


def sentence(text: str) -> str:
    """With a capital and a full stop."""
    return text[0].upper() + text[1:] + "."


def listing(parts: Sequence[str]) -> str:
    """a; a and b; a, b and c."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
