"""Overlap of words: BLEU per report as ReXrank computes it, BLEU over the corpus, and ROUGE-L.

Scripts written without blanks (`radflow.rewards.unspaced`) are compared by character; tables then say so, since neither
metric is published for them.
"""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cache, lru_cache

from radflow.rewards import unspaced
from radflow.rewards.memory import remember
from radflow.rewards.unspaced import has_characters

ORDERS = (1, 2, 3, 4)  # of n-grams
UNREAD = 0.05  # share of words above which a set of references does not fit ROUGE-L


class Bleu:
    """Sentence BLEU with n-grams up to an order, in [0, 1], as in ReXrank (fast_bleu, which is BLEU-2).

    Tokens: lower case, a space before every full stop, split on single spaces; nothing else separates. Smoothing
    method 1 (a zero numerator becomes 0.1); 0 when no word matches or the candidate is empty. A character of a script
    without blanks, its full stop included, is a token.

    Args:
        order: 1 to 4; the logs of the precisions of 1 to `order` have equal weights.

    Source: rajpurkarlab/CXR-Report-Metric.
    """

    def __init__(self, order: int) -> None:
        self.order = order

    def __call__(self, candidates: Sequence[str], references: Sequence[str]) -> list[float]:
        pair = tuple(candidates), tuple(references)
        precisions = zip(*(_precisions(*pair, n) for n in ORDERS[: self.order]), strict=True)
        return [self._one(*of_one) for of_one in zip(*map(_cut, pair), precisions, strict=True)]

    def _one(self, candidate: list[str], reference: list[str], precisions: Sequence[Fraction]) -> float:
        from nltk.translate.bleu_score import SmoothingFunction, brevity_penalty

        if not precisions[0].numerator:
            return 0.0
        logs = (1 / self.order * math.log(p) for p in SmoothingFunction().method1(precisions))
        return float(brevity_penalty(len(reference), len(candidate)) * math.exp(math.fsum(logs)))


def ngram_counts(candidates: Sequence[str], references: Sequence[str]) -> list[list[int]]:
    """What each report adds to corpus BLEU: for n = 1 to 4 the matches, then the n-grams of the candidate; its tokens
    and those of the reference."""
    pair = tuple(candidates), tuple(references)
    matches = [[precision.numerator for precision in _precisions(*pair, n)] for n in ORDERS]
    lengths = [[len(words) for words in _cut(texts)] for texts in pair]
    # As published: a candidate of fewer than n tokens has no n-gram. nltk counts one.
    totals = [[max(0, length - n + 1) for length in lengths[0]] for n in ORDERS]
    return [list(counts) for counts in zip(*matches, *totals, *lengths, strict=True)]


# BLEU-1 to BLEU-4 and the corpus values ask for the same reports one after the other.
@lru_cache(maxsize=len(ORDERS))
def _precisions(candidates: tuple[str, ...], references: tuple[str, ...], n: int) -> list[Fraction]:
    """Share of each candidate's n-grams that its reference has, each at most as often as there; not reduced."""
    from nltk.translate.bleu_score import modified_precision

    pairs = zip(_cut(candidates), _cut(references), strict=True)
    return [modified_precision([reference], candidate, n) for candidate, reference in pairs]


@lru_cache(maxsize=2)
def _cut(texts: tuple[str, ...]) -> list[list[str]]:
    return [tokens(text) for text in texts]


def tokens(text: str) -> list[str]:
    """Words as ReXrank's BLEU cuts them, and characters of scripts without blanks."""
    return [token for token in unspaced.set_apart(text.lower()).replace(".", " .").split(" ") if token]


class RougeL:
    """ROUGE-L F-measure with stemming, in [0, 1], as the rouge-score package defines it; two empty texts score 0.

    Tokens and stems are the package's, each word stemmed once; its table of the longest common subsequence is not, for
    that takes minutes on long texts. A letter of a script without blanks is a token. Of all others the package reads
    a-z and 0-9 only.
    """

    def __call__(self, candidates: Sequence[str], references: Sequence[str]) -> list[float]:
        return [self._one(_rouge_tokens(c), _rouge_tokens(r)) for c, r in zip(candidates, references, strict=True)]

    def _one(self, candidate: Sequence[str], reference: Sequence[str]) -> float:
        if not candidate or not reference:
            return 0.0
        common = longest_common_subsequence(candidate, reference)
        precision, recall = common / len(candidate), common / len(reference)
        return 2 * precision * recall / (precision + recall) if common else 0.0


def longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest sequence of tokens that both hold in this order.

    A row of the usual table is one integer, a bit per token of the shorter side: 0 where the row grows by one. The
    next row then takes four operations, whatever its length: 0.6 s for 40,000 against 40,000 tokens.

    Source: Hyyro, Bit-parallel LCS-length computation revisited, 2004.
    """
    shorter, longer = sorted((first, second), key=len)
    where: dict[str, int] = {}  # token -> bits of its indices
    for index, token in enumerate(shorter):
        where[token] = where.get(token, 0) | 1 << index
    row = everything = (1 << len(shorter)) - 1
    for found in filter(None, map(where.get, longer)):
        matches = row & found
        row = (row + matches | row - matches) & everything
    return len(shorter) - row.bit_count()


def _rouge_tokens(text: str) -> list[str]:
    return [token for word in unspaced.words(text) for token in _stems(word)]


# Words recur, and stemming them is most of the work.
@remember
def _stems(word: str) -> tuple[str, ...]:
    return (word,) if has_characters(word) else tuple(_rouge_tokenizer()(word))


@cache
def _rouge_tokenizer() -> Callable[[str], list[str]]:
    from rouge_score.tokenizers import DefaultTokenizer

    return DefaultTokenizer(use_stemmer=True).tokenize


def notes_on_tokens(references: Sequence[str]) -> list[str]:
    """What BLEU and ROUGE-L of these references are, if they are not as published or do not fit."""
    notes = []
    if characters := sum(map(has_characters, references)):
        scripts = "Chinese, Japanese, Korean, Thai, Lao, Burmese or Khmer"
        notes.append(
            f"BLEU (BLEU-2 also in RadCliQ) and ROUGE-L by character, not as published: {characters} of"
            f" {len(references)} references hold {scripts}, each character of which is a token"
        )
    if (share := unread_share(references)) > UNREAD:
        reads = "ROUGE-L reads a-z, 0-9 and scripts without blanks only"
        notes.append(f"{share:.0%} of the words of the references have other letters, and {reads}; rely on BLEU")
    return notes


def unread_share(texts: Sequence[str]) -> float:
    """Share of the words of all texts that have a letter which ROUGE-L drops."""
    odd = [word for text in texts if not text.isascii() for word in unspaced.words(text) if not word.isascii()]
    unread = sum(not has_characters(word) for word in odd)
    return unread / sum(len(unspaced.words(text)) for text in texts) if unread else 0.0
