"""Entities and relations of a report by rules, and the F1 of two sets of them: a local proxy for RadGraph.

Its name is its own: it is not the RadGraph score.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cache
from itertools import accumulate

from radflow.rewards.memory import remember
from radflow.rewards.rules.negation import cut_points, mentions, piece_bounds, sentences
from radflow.rewards.rules.patterns import read_patterns

# Tables of lexicons/entities.toml, in the order in which a word is looked up; a word of none is an observation.
KINDS = ("nothing", "sides", "modifiers", "numbers", "anatomy", "qualities")
_POLARITY = {1: "present", 0: "absent", -1: "uncertain"}
_CUT = re.compile(r",|\band\b|\bor\b|\bwith\b|\bwithout\b|\bbut\b|;", re.IGNORECASE)
_WORD = re.compile(r"\d+(?:\.\d+)?|[^\W_]+(?:'[^\W_]+)*")
# A phrase: words in a row, none of which is one of {0}.
_PHRASE = r"\b(?!(?:{0})\b)\w[\w'.-]*(?: (?!(?:{0})\b)\w[\w'.-]*)*"

Entity = tuple[str, ...]


@dataclass(frozen=True)
class Word:
    """A word of a sentence that names something."""

    text: str
    kind: str
    """One of KINDS, or observations."""
    value: str
    """present, absent or uncertain, as the phrase it is in."""
    piece: int
    """Where its piece of the sentence, between commas, "and", "or" and "with", begins."""


@remember
def entities(text: str) -> frozenset[Entity]:
    """Entities and their relations, word by word as RadGraph has them.

    An entity is (observation, polarity), the polarity present, absent or uncertain, or (structure or side, "anatomy"),
    of which those of an absent observation are told apart. A relation is (observation, polarity, word) for the
    structures, sides, grades and numbers that belong to an observation. An observation that is present has its side and
    "severe" in its name: on the other side it is another one.
    """
    return frozenset(entity for sentence in sentences(text) for entity in _sentence_entities(sentence))


class EntityF1Rules:
    """F1 of the entities and relations of candidate and reference, per report, in [0, 1].

    Two reports without any entity score 1 when they are the same text and 0 otherwise: silence is no agreement.
    """

    name = "entity_f1_rules"

    def __call__(self, candidates: Sequence[str], references: Sequence[str]) -> list[float]:
        return [agreement_f1(c, r, entities) for c, r in zip(candidates, references, strict=True)]


def agreement_f1(candidate: str, reference: str, extract: Callable[[str], AbstractSet[object]]) -> float:
    """F1 of what is extracted from two texts; if that is nothing, 1 for the same text and 0 for others."""
    first, second = extract(candidate), extract(reference)
    if not first and not second:
        return float(candidate.strip() == reference.strip())
    return 2 * len(first & second) / (len(first) + len(second))


@remember
def _sentence_entities(sentence: str) -> frozenset[Entity]:
    words = list(_words(sentence))
    heads = _heads(words)
    names = _names(words, heads)
    found: set[Entity] = set()
    for index, (word, head) in enumerate(zip(words, heads, strict=True)):
        location = word.kind in ("sides", "anatomy")
        if location:
            found.add((word.text, "anatomy of an absent one" if words[head].value == "absent" else "anatomy"))
        elif word.text != "normal":  # counts only with what is: a bare "Normal." agrees with no report
            found.add((names[index], word.value))
        if head != index and (location or word.kind in ("modifiers", "numbers")):
            found.add((names[head], words[head].value, word.text))
    return frozenset(found)


def _names(words: Sequence[Word], heads: Sequence[int]) -> list[str]:
    """Texts of the words; an observation that is present has its side, if it is one, and "severe" in its name."""
    said: dict[int, set[str]] = {}
    for word, head in zip(words, heads, strict=True):
        said.setdefault(head, set()).add(word.text)
    names = [word.text for word in words]
    for head, texts in said.items():
        sides = texts & {"left", "right"}
        if words[head].value == "present" and words[head].kind not in ("sides", "anatomy"):
            names[head] = " ".join([*(texts & {"severe"}), *(sides if len(sides) == 1 else ()), names[head]])
    return names


def _heads(words: Sequence[Word]) -> list[int]:
    """For each word the index of the observation that it belongs to; an observation belongs to itself.

    That is the next in its piece, or else the one before, or else the next or the one before in the sentence. A quality
    or a number is an observation if its piece has no other. Without observations each word belongs to itself.
    """
    complete = {word.piece for word in words if word.kind == "observations"}
    own = [w.kind == "observations" or (w.kind in ("qualities", "numbers") and w.piece not in complete) for w in words]
    indices = range(len(words))

    def nearest(last: int, index: int) -> int:
        return index if own[index] else last

    before, after = list(accumulate(indices, nearest)), list(accumulate(reversed(indices), nearest))[::-1]
    heads = []
    for index in indices:
        around = [i for i in (after[index], before[index]) if own[i]]
        far = [(words[i].piece != words[index].piece, words[i].kind != "observations") for i in around]
        heads.append(around[far.index(min(far))] if around else index)
    return heads


def _words(sentence: str) -> Iterator[Word]:
    """The words that name something; those of a question, a plan or another time are left out."""
    for text, pattern in _rewrites():
        sentence = pattern.sub(text, sentence)
    cuts = cut_points(_CUT, sentence)
    for phrase, value in mentions(_phrase(), sentence):
        if value is None:
            continue
        for match in _WORD.finditer(phrase.group().lower()):
            start = phrase.start() + match.start()
            piece = piece_bounds(cuts, start, start + 1)[0]
            for text, kind in _read_word(match.group()):
                yield Word(text, kind, _POLARITY[value], piece)


@remember
def _read_word(word: str) -> tuple[tuple[str, str], ...]:
    """What a word of a report is: the words that stand for it, each with its kind; () if it names nothing."""
    same, kinds = _tables()
    texts = next((name for name, pattern in same.items() if pattern.fullmatch(word)), word).split()
    read = [(text, next((k for k, p in kinds.items() if p.fullmatch(text)), "observations")) for text in texts]
    return tuple((text, kind) for text, kind in read if kind != "nothing")


@cache
def _phrase() -> re.Pattern[str]:
    file = read_patterns("entities")
    return file.compile(file.content["nothing"], "nothing", _PHRASE)


@cache
def _rewrites() -> list[tuple[str, re.Pattern[str]]]:
    """What replaces a wording in a sentence, and the wordings."""
    file = read_patterns("entities")
    return [(n, file.compile(w, f"rewrite.{n}", r"\b(?:{})\b")) for n, w in file.content["rewrite"].items()]


@cache
def _tables() -> tuple[dict[str, re.Pattern[str]], dict[str, re.Pattern[str]]]:
    """Words of the same meaning, by the one that stands for them; words by kind."""
    file = read_patterns("entities")
    same = {name: file.compile(wordings, f"same.{name}") for name, wordings in file.content["same"].items()}
    return same, {kind: file.compile(file.content[kind], kind) for kind in KINDS}
