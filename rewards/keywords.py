"""Keyword labels of a carotid ultrasound report by rules."""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType

from rewards.chexpert_rules import SENTENCE, polarity

LABELS = (
    "plaque_left", "plaque_right", "soft_plaque", "hard_plaque", "mixed_plaque", "stenosis_mild", "stenosis_moderate",
    "stenosis_severe", "increased_imt", "increased_velocity", "normal",
)  # fmt: skip
_PLAQUE = re.compile(r"\bplaques?\b", re.IGNORECASE)
_THICK = r"(?:intima[- ]media(?: thickness)?|\bimt\b)"
_RULES = {
    "increased_imt": rf"(?:increased|thicken\w+) (?:\w+ )?{_THICK}|{_THICK}[^.]*?(?:increased|thicken\w+)",
    "increased_velocity": r"(?:increased|elevated) (?:\w+ )*?(?:velocity|flow)"
    r"|(?:velocity|flow)[^.]*?(?:increased|elevated)",
    "stenosis_mild": r"mild (?:\w+ )?stenosis",
    "stenosis_moderate": r"moderate (?:\w+ )?stenosis",
    "stenosis_severe": r"severe (?:\w+ )?stenosis",
}
_PATTERNS = {label: re.compile(pattern, re.IGNORECASE) for label, pattern in _RULES.items()}
_NORMALITY = re.compile(r"\bnormal\b|\bno (?:\w+ ){0,3}(?:abnormality|plaque|stenosis)", re.IGNORECASE)
_CUT = re.compile(r",|\band\b", re.IGNORECASE)


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
        return set(_positive(text))

    def abnormalities(self, text: str) -> set[str]:
        """Every label but that of a normal examination."""
        return self.certain(text) - self.ignorable


@lru_cache(maxsize=65536)
def _positive(text: str) -> frozenset[str]:
    found: set[str] = set()
    for sentence in SENTENCE.split(text):
        for piece in _CUT.split(sentence):
            mention = _PLAQUE.search(piece)
            if mention and polarity(piece[: mention.start()], mention.group(), piece[mention.end() :]) != 0:
                found |= {f"plaque_{side}" for side in ("left", "right") if re.search(rf"\b{side}\b", piece, re.I)}
                found |= {
                    f"{kind}_plaque" for kind in ("soft", "hard", "mixed") if re.search(rf"\b{kind}\b", piece, re.I)
                }
            for label, pattern in _PATTERNS.items():
                match = pattern.search(piece)
                if match and polarity(piece[: match.start()], match.group(), piece[match.end() :]) != 0:
                    found.add(label)
    if not found and _NORMALITY.search(text):
        found = {"normal"}
    return frozenset(found)
