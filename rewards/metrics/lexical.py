"""Overlap of words: BLEU-2 as ReXrank computes it, and ROUGE-L.

Scripts written without blanks (`radflow.rewards.unspaced`) are compared by character; tables then say so, since neither
metric is published for them.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from types import SimpleNamespace
from typing import Any

from radflow.rewards import unspaced
from radflow.rewards.unspaced import has_characters

UNREAD = 0.05  # share of words above which a set of references does not fit ROUGE-L


class Bleu2:
    """Sentence BLEU with 1- and 2-grams, in [0, 1], as in ReXrank (fast_bleu).

    Tokens: lower case, a space before every full stop, split on single spaces; nothing else separates. Smoothing
    method 1 (a zero numerator becomes 0.1); 0 when no word matches or the candidate is empty. A character of a script
    without blanks, its full stop included, is a token.

    Source: rajpurkarlab/CXR-Report-Metric.
    """

    def __call__(self, candidates: Sequence[str], references: Sequence[str]) -> list[float]:
        return [self._one(c, r) for c, r in zip(candidates, references, strict=True)]

    def _one(self, candidate: str, reference: str) -> float:
        words = tokens(candidate)
        value = float(_sentence_bleu()(words, tokens(reference))) if words else 0.0
        return 0.0 if math.isnan(value) else value


@cache
def _sentence_bleu() -> Callable[[list[str], list[str]], float]:
    # Loaded when first used: nltk takes a while to import.
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    smooth = SmoothingFunction().method1
    return lambda words, reference: sentence_bleu([reference], words, weights=(0.5, 0.5), smoothing_function=smooth)


def tokens(text: str) -> list[str]:
    """Words as ReXrank's BLEU cuts them, and characters of scripts without blanks."""
    return [token for token in unspaced.set_apart(text.lower()).replace(".", " .").split(" ") if token]


class RougeL:
    """ROUGE-L F-measure with stemming, in [0, 1], by the rouge-score package; two empty texts score 0.

    A letter of a script without blanks is a token. Of all others the package reads a-z and 0-9 only.
    """

    def __call__(self, candidates: Sequence[str], references: Sequence[str]) -> list[float]:
        pairs = zip(candidates, references, strict=True)
        return [_rouge_scorer().score(reference, candidate)["rougeL"].fmeasure for candidate, reference in pairs]


@cache
def _rouge_scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import DefaultTokenizer

    latin = DefaultTokenizer(use_stemmer=True)

    # Stemming is most of the work, and the same reference comes again for each report of a group.
    @lru_cache(maxsize=1024)
    def tokenize(text: str) -> list[str]:
        if not has_characters(text):
            return latin.tokenize(text)
        read = ([word] if has_characters(word) else latin.tokenize(word) for word in unspaced.words(text))
        return [token for found in read for token in found]

    return RougeScorer(["rougeL"], tokenizer=SimpleNamespace(tokenize=tokenize))


def notes_on_tokens(references: Sequence[str]) -> list[str]:
    """What BLEU-2 and ROUGE-L of these references are, if they are not as published or do not fit."""
    notes = []
    if characters := sum(map(has_characters, references)):
        scripts = "Chinese, Japanese, Korean, Thai, Lao, Burmese or Khmer"
        notes.append(
            f"BLEU-2 (also in RadCliQ) and ROUGE-L by character, not as published: {characters} of {len(references)}"
            f" references hold {scripts}, each character of which is a token"
        )
    if (share := unread_share(references)) > UNREAD:
        reads = "ROUGE-L reads a-z, 0-9 and scripts without blanks only"
        notes.append(f"{share:.0%} of the words of the references have other letters, and {reads}; rely on BLEU-2")
    return notes


def unread_share(texts: Sequence[str]) -> float:
    """Share of the words of all texts that have a letter which ROUGE-L drops."""
    odd = [word for text in texts if not text.isascii() for word in unspaced.words(text) if not word.isascii()]
    unread = sum(not has_characters(word) for word in odd)
    return unread / sum(len(unspaced.words(text)) for text in texts) if unread else 0.0
