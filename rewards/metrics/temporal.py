"""Temporal F1: which words of change (new, worse, unchanged, resolved ...) two reports have in common.

A word counts if the cleaned text holds it, or if stanza's radiology model marks it as an observation or a modifier of
one: cleaning "stable/improved" leaves one word. As RadEval 2.2 computes it.

Source: Libra, arXiv:2411.19378 (libra/eval/temporal_f1.py); the words are those of arXiv:2301.04558.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from radflow.rewards.memory import MB, remember
from radflow.rewards.metrics.encoder import check_directories, in_one_line, pick_device

WORD = re.compile(
    r"""\b(?:
    bigger|change|cleared|constant|decrease|decreased|decreasing|elevated|elevation|enlarged|enlargement|enlarging|
    expanded|greater|growing|improved|improvement|improving|increase|increased|increasing|larger|new|persistence|
    persistent|persisting|progression|progressive|reduced|removal|resolution|resolved|resolving|smaller|stability|
    stable|stably|unaltered|unchanged|unfolded|worse|worsen|worsened|worsening
    )\b""",
    re.VERBOSE,
)
MARKED = {"OBSERVATION", "OBSERVATION_MODIFIER"}
EPSILON = 1e-10  # a prediction with such words against a reference without any scores this
# What to load; a download of the same leaves nothing to fetch.
PIPELINE = {"package": "radiology", "processors": {"tokenize": "default", "ner": "radiology"}}


@dataclass(frozen=True)
class TemporalConfig:
    """Where stanza's models are."""

    path: Path | None = None
    """Directory that stanza downloaded to: resources.json and en/."""
    device: str = "auto"
    """`cpu`, `cuda`, or `auto` for a GPU if there is one."""


class TemporalF1:
    """F1 of the sets of such words, per report; 1 if neither report has any.

    Args:
        annotate: text -> stanza's document.
    """

    def __init__(self, annotate: Callable[[str], Any]) -> None:
        self.annotate = annotate
        self._kept = remember(self._words, most_bytes=16 * MB)

    @classmethod
    def load(cls, config: TemporalConfig) -> "TemporalF1":
        """ValueError if stanza or its models are absent or do not load."""
        check_directories("stanza", config.path)
        try:
            import stanza

            if tuple(map(int, stanza.__version__.split(".")[:2])) < (1, 13):
                raise ValueError(f"expected 1.13 or newer, which unpickles tensors only, got {stanza.__version__}")
            options = {"dir": str(config.path), "download_method": None, "device": pick_device(config.device)}
            pipeline = stanza.Pipeline("en", **PIPELINE, **options, logging_level="ERROR", verbose=False)
        except Exception as error:  # its own for each kind of absent file, and those of torch
            raise ValueError(
                f"stanza: cannot load {config.path}: {in_one_line(error)}; install the package, and download its "
                "models again if they are damaged"
            ) from error
        return cls(pipeline)

    def __call__(self, candidates: Sequence[str], references: Sequence[str]) -> list[float]:
        pairs = zip(candidates, references, strict=True)
        return [f1(self._kept(candidate), self._kept(reference)) for candidate, reference in pairs]

    def _words(self, text: str) -> frozenset[str]:
        if not text.strip():
            return frozenset()
        marked = {entity.text.lower() for entity in self.annotate(text).entities if entity.type in MARKED}
        return frozenset(words_in(text) | {*filter(WORD.fullmatch, marked)})


def words_in(text: str) -> set[str]:
    """Words of change in a text without its marks; hyphens and underscores separate, other marks vanish."""
    return set(WORD.findall(re.sub(r"[^\w\s.,:;()]", "", re.sub("[_-]+", " ", text)).lower()))


def f1(found: frozenset[str], expected: frozenset[str]) -> float:
    """As published: 1 for two empty sets, and EPSILON added to every count."""
    if not expected:
        return EPSILON if found else 1.0
    both = len(found & expected) + EPSILON
    precision, recall = both / (len(found) + EPSILON), both / (len(expected) + EPSILON)
    return 2 * precision * recall / (precision + recall + EPSILON)
