"""Keywords of carotid ultrasound reports: the labeler of the phantoms, and KeyWordMatch by rules.

The paper's KeyWordMatch stands on a private labeler trained on annotated reports, which nobody else can run. This one
looks words up in a lexicon file, and reports as `keyword_f1_rules`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from types import MappingProxyType

from rewards.lexicon import Lexicon

LABELS = (
    "plaque_left", "plaque_right", "soft_plaque", "hard_plaque", "mixed_plaque", "stenosis_mild", "stenosis_moderate",
    "stenosis_severe", "increased_imt", "increased_velocity", "normal",
)  # fmt: skip


class CarotidRules:
    """Positive keyword labels of each text; uncertain counts as positive."""

    labels = LABELS
    normal = "normal"
    ignorable = frozenset({"normal"})
    covers: Mapping[str, set[str]] = MappingProxyType({})

    def __call__(self, texts: Sequence[str]) -> list[set[str]]:
        return [self.certain(text) for text in texts]

    def certain(self, text: str) -> set[str]:
        """Labels asserted; this labeler does not tell hedged ones apart."""
        return set(_carotid(text) & set(LABELS))

    def abnormalities(self, text: str) -> set[str]:
        """Every label but that of a normal examination."""
        return self.certain(text) - self.ignorable


@dataclass(frozen=True)
class Overlap:
    """Agreement of two sets of keywords, each in [0, 1]."""

    precision: float
    recall: float
    f1: float

    @classmethod
    def of_counts(cls, common: int, written: int, expected: int) -> "Overlap":
        """From the numbers of keywords in common, in the candidate and in the reference; 0 where there is none."""
        total = written + expected
        return cls(
            common / written if written else 0.0,
            common / expected if expected else 0.0,
            2 * common / total if total else 0.0,
        )


class KeywordMatch:
    """Precision, recall and F1 of the keywords that candidate and reference assert.

    A keyword with a side counts once for each side stated. Denied keywords do not count; where nothing is asserted,
    the lexicon's normal keyword stands. Two reports without any keyword agree only when they are the same text.
    """

    name = "keyword_f1_rules"

    def __init__(self, lexicon: Lexicon) -> None:
        self.lexicon = lexicon

    @classmethod
    def with_lexicon(cls, path: str | Path | None = None) -> "KeywordMatch":
        """Of a lexicon file; without one, of the carotid lexicon that comes along."""
        return cls(Lexicon.load() if path is None else Lexicon.load(path))

    def __call__(self, candidates: Sequence[str], references: Sequence[str]) -> list[float]:
        return [overlap.f1 for overlap in self.per_report(candidates, references)]

    def per_report(self, candidates: Sequence[str], references: Sequence[str]) -> list[Overlap]:
        """One overlap for each pair of reports."""
        return [self._one(c, r) for c, r in zip(candidates, references, strict=True)]

    def corpus(self, candidates: Sequence[str], references: Sequence[str]) -> Overlap:
        """One overlap over all reports: the counts are summed first, so that long reports weigh more."""
        pairs = [
            (asserted(c, self.lexicon), asserted(r, self.lexicon)) for c, r in zip(candidates, references, strict=True)
        ]
        return Overlap.of_counts(
            sum(len(c & r) for c, r in pairs), sum(len(c) for c, _ in pairs), sum(len(r) for _, r in pairs)
        )

    def _one(self, candidate: str, reference: str) -> Overlap:
        written, expected = asserted(candidate, self.lexicon), asserted(reference, self.lexicon)
        if not written and not expected:
            same = float(candidate.strip() == reference.strip())
            return Overlap(same, same, same)
        return Overlap.of_counts(len(written & expected), len(written), len(expected))


def asserted(text: str, lexicon: Lexicon) -> frozenset[str]:
    """Names of the keywords that a text asserts, with `_left` or `_right` where the keyword has a side."""
    found = lexicon.find(text)
    present = frozenset(f"{one.keyword}_{one.side}" if one.side else one.keyword for one in found if one.present)
    if not present and lexicon.says_normal(text):
        return frozenset({lexicon.normal.name})
    return present


@cache
def _lexicon() -> Lexicon:
    return Lexicon.load()


@lru_cache(maxsize=65536)
def _carotid(text: str) -> frozenset[str]:
    return asserted(text, _lexicon())
