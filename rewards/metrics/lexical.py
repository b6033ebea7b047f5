"""Overlap of words: BLEU-2 as ReXrank computes it, and ROUGE-L."""

import math
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import Any


class Bleu2:
    """Sentence BLEU with 1- and 2-grams, in [0, 1], as in ReXrank (fast_bleu).

    Tokens: lower case, a space before every full stop, split on single spaces; nothing else separates. Smoothing
    method 1 (a zero numerator becomes 0.1); 0 when no word matches or the candidate is empty.

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
    """Words as ReXrank's BLEU cuts them."""
    return [token for token in text.lower().replace(".", " .").split(" ") if token]


class RougeL:
    """ROUGE-L F-measure with stemming, in [0, 1], by the rouge-score package; two empty texts score 0."""

    def __call__(self, candidates: Sequence[str], references: Sequence[str]) -> list[float]:
        pairs = zip(candidates, references, strict=True)
        return [_rouge_scorer().score(reference, candidate)["rougeL"].fmeasure for candidate, reference in pairs]


@cache
def _rouge_scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import DefaultTokenizer

    tokenizer = DefaultTokenizer(use_stemmer=True)
    # Stemming is most of the work, and the same reference comes again for each report of a group.
    tokenizer.tokenize = lru_cache(maxsize=1024)(tokenizer.tokenize)
    return RougeScorer(["rougeL"], tokenizer=tokenizer)
