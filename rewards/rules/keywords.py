# ruff: noqa: RUF001
"""Keywords of a report, from a lexicon file in English and Chinese: labels of carotid ultrasound, and KeyWordMatch.

The paper's KeyWordMatch uses a private labeler trained on annotated reports. This one looks words up: what counts as a
mention, what denies it, which side it is on. Its scores are named `keyword_f1_rules`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from radflow.rewards.rules.entity_rules import agreement_f1
from radflow.rewards.rules.negation import cut_points, mentions, piece_bounds, sentences
from radflow.rewards.rules.report_text import describe_with
from radflow.rewards.types import Finding, Parser

CAROTID = Path(__file__).parent / "lexicons" / "carotid.json"
# What "..." may skip: words of the same piece of a sentence that do not negate.
_SKIP = r"(?:(?!\b(?:no|not|normal|without)\b|未|无|正常)[^,，、;；。]){0,40}?"
_PIECE = re.compile(r",|，|;|；|\band\b|\bor\b", re.IGNORECASE)
_COMMA = re.compile(r"[,，;；]")
_CHINESE = re.compile(r"[\u4e00-\u9fff]")
_PLAQUE = ("plaque_left", "plaque_right", "soft_plaque", "hard_plaque", "mixed_plaque")
_STENOSIS = ("stenosis_mild", "stenosis_moderate", "stenosis_severe")
LABELS: tuple[str, ...] = (*_PLAQUE, *_STENOSIS, "increased_imt", "increased_velocity", "normal")


@dataclass(frozen=True)
class Keyword:
    """One keyword of a lexicon."""

    name: str
    terms: tuple[str, ...]
    """Wordings; "..." matches up to 40 characters of the same piece. A blank also matches a hyphen."""
    sided: bool = False
    """The side belongs to the keyword: plaque on the left is another finding than plaque on the right."""

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        # longest first, so that a term hides the shorter one inside it
        return re.compile("|".join(map(_pattern, sorted(self.terms, key=len, reverse=True))), re.IGNORECASE)


@dataclass(frozen=True)
class Found:
    """One mention in a text."""

    keyword: str
    side: str
    """left, right, or empty if none is stated or the keyword has none."""
    present: bool
    """False if the text denies it; hedged mentions are present."""


@dataclass(frozen=True)
class Lexicon:
    """Keywords with the words that deny them."""

    name: str
    keywords: tuple[Keyword, ...]
    normal: Keyword
    """What says that all is normal; it counts only if no other keyword is present."""
    denied: Mapping[str, tuple[str, ...]]
    """Chinese words that deny: before a keyword, after it, and those that end what the first reach."""
    sides: Mapping[str, tuple[str, ...]]
    """left, right, both -> words."""

    @classmethod
    def load(cls, path: str | Path = CAROTID) -> "Lexicon":
        """Read a lexicon file of the form of lexicons/carotid.json; ValueError names the key that is wrong."""
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{error.lineno}: expected a lexicon in JSON, got {error.msg}") from error
        _expect_keys(content, {"name", "keywords", "normal", "denied", "sides"}, f"{path}")
        keywords = tuple(_keyword(name, entry, str(path)) for name, entry in content["keywords"].items())
        _expect_keys(content["normal"], {"name", "terms"}, f"{path}: normal")
        normal = Keyword(content["normal"]["name"], _strings(content["normal"]["terms"], f"{path}: normal.terms"))
        denied = _table(content["denied"], {"before", "after", "ends"}, f"{path}: denied")
        sides = _table(content["sides"], {"left", "right", "both"}, f"{path}: sides")
        return cls(content["name"], keywords, normal, denied, sides)

    def mentions(self, text: str) -> list[Finding]:
        """Every mention of a keyword, with the sides stated for it."""
        return [
            Finding(
                keyword.name, 0 if self._denied_in_chinese(sentence, match) else value, self._sides(sentence, match)
            )
            for sentence in sentences(text)
            for keyword in self.keywords
            for match, value in mentions(keyword.pattern, sentence)
            if value is not None
        ]

    def find(self, text: str) -> set[Found]:
        """Every keyword that the text asserts or denies."""
        sided = {keyword.name for keyword in self.keywords if keyword.sided}
        return {
            Found(mention.name, side, mention.value != 0)
            for mention in self.mentions(text)
            for side in (mention.sides or {""} if mention.name in sided else {""})
        }

    def says_normal(self, text: str) -> bool:
        """A wording of normality occurs, or something is denied."""
        return self.normal.pattern.search(text) is not None or any(not one.present for one in self.find(text))

    def _denied_in_chinese(self, sentence: str, match: re.Match[str]) -> bool:
        if not _CHINESE.search(sentence):
            return False
        start, end = piece_bounds(cut_points(_COMMA, sentence), match.start(), match.end())
        before, after = sentence[start : match.start()], sentence[match.end() : end]
        # the last denial before the keyword counts unless the clause turns positive after it: "未见狭窄但可见斑块"
        denial = max((before.rfind(word) + len(word) for word in self.denied["before"] if word in before), default=0)
        if denial and not any(word in before[denial:] for word in self.denied["ends"]):
            return True
        return any(word in after for word in self.denied["after"])

    def _sides(self, sentence: str, match: re.Match[str]) -> frozenset[str]:
        """Sides named in the piece that holds the keyword, else the last one named before it in the sentence."""
        start, end = piece_bounds(cut_points(_PIECE, sentence), match.start(), match.end())
        here = [side for _, side in self._named(sentence[start:end])]
        earlier = [side for _, side in self._named(sentence[:start])][-1:]
        return frozenset(
            side for name in here or earlier for side in (("left", "right") if name == "both" else (name,))
        )

    def _named(self, text: str) -> list[tuple[int, str]]:
        """Start and side of every word for a side, in order."""
        patterns = {side: "|".join(map(_pattern, words)) for side, words in self.sides.items()}
        return sorted((m.start(), side) for side, p in patterns.items() for m in re.finditer(p, text, re.IGNORECASE))


def _pattern(term: str) -> str:
    """Regular expression of a term: whole words in Latin script, plurals too; characters in Chinese."""
    parts = [r"[\s-]+".join(map(re.escape, re.split(r"[\s-]+", part.strip()))) for part in term.split("...")]
    return _SKIP.join(_bounded(part) for part in parts)


def _bounded(part: str) -> str:
    begin = r"\b" if re.match(r"[a-z0-9]", part, re.IGNORECASE) else ""
    return begin + part + (r"s?\b" if re.search(r"[a-z0-9]$", part, re.IGNORECASE) else "")


def _keyword(name: str, entry: Any, where: str) -> Keyword:
    _expect_keys(entry, {"terms"}, f"{where}: {name}", optional=["sided"])
    sided = entry.get("sided", False)
    if not isinstance(sided, bool):
        raise ValueError(f"{where}: {name}.sided: expected true or false, got {sided!r}")
    return Keyword(name, _strings(entry["terms"], f"{where}: {name}.terms"), sided)


def _strings(value: object, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(v, str) and v.strip() for v in value):
        raise ValueError(f"{where}: expected a list of words that is not empty, got {value!r}")
    return tuple(value)


def _table(value: Any, keys: set[str], where: str) -> dict[str, tuple[str, ...]]:
    _expect_keys(value, keys, where)
    return {key: _strings(words, f"{where}.{key}") for key, words in value.items()}


def _expect_keys(value: Any, keys: set[str], where: str, *, optional: Sequence[str] = ()) -> None:
    if not isinstance(value, dict) or not keys <= set(value) <= {*keys, *optional}:
        got = sorted(value) if isinstance(value, dict) else "no object"
        raise ValueError(f"{where}: expected the keys {sorted(keys)}, got {got}")


class CarotidRules:
    """Positive keyword labels of each report or section; uncertain counts as positive.

    Args:
        parse: section parser; history, comparison, technique and the like are not read.
    """

    labels = LABELS
    normal = "normal"
    ignorable = frozenset({"normal"})
    covers: Mapping[str, set[str]] = MappingProxyType({})

    def __init__(self, parse: Parser) -> None:
        self._described = describe_with(parse)

    def __call__(self, texts: Sequence[str]) -> list[set[str]]:
        return [self.certain(text) for text in texts]

    def certain(self, text: str) -> set[str]:
        """Labels asserted, hedged ones included."""
        return set(_carotid(self._described(text)) & set(LABELS))

    def abnormalities(self, text: str) -> set[str]:
        """Every label but that of a normal examination."""
        return self.certain(text) - self.ignorable

    def findings(self, text: str) -> list[Finding]:
        """Every keyword asserted or denied, with its side; the degrees of a stenosis are its grades."""
        return list(_carotid_findings(self._described(text)))


class KeywordMatch:
    """F1 of the keywords that candidate and reference assert, per report, in [0, 1].

    A keyword with a side counts once for each side stated. Denied keywords do not count; if nothing is asserted, the
    lexicon's normal keyword counts. Two reports without any keyword agree only when they are the same text.
    """

    name = "keyword_f1_rules"

    def __init__(self, lexicon: Lexicon) -> None:
        self.lexicon = lexicon

    @classmethod
    def with_lexicon(cls, path: str | Path | None = None) -> "KeywordMatch":
        """With a lexicon file; by default the carotid lexicon of this package."""
        return cls(Lexicon.load(path or CAROTID))

    def __call__(self, candidates: Sequence[str], references: Sequence[str]) -> list[float]:
        extract = partial(positive_keywords, lexicon=self.lexicon)
        return [agreement_f1(c, r, extract) for c, r in zip(candidates, references, strict=True)]


def positive_keywords(text: str, lexicon: Lexicon) -> frozenset[str]:
    """Names of the keywords that a text asserts, with `_left` or `_right` if the keyword has a side."""
    found = lexicon.find(text)
    present = frozenset(f"{one.keyword}_{one.side}" if one.side else one.keyword for one in found if one.present)
    if not present and lexicon.says_normal(text):
        return frozenset({lexicon.normal.name})
    return present


@lru_cache(maxsize=65536)
def _carotid_findings(text: str) -> tuple[Finding, ...]:
    return tuple(_graded(mention) for mention in _lexicon().mentions(text))


def _graded(mention: Finding) -> Finding:
    if mention.name not in _STENOSIS:
        return mention
    return replace(mention, name="stenosis", grades=frozenset({_STENOSIS.index(mention.name) + 1}))


@cache
def _lexicon() -> Lexicon:
    return Lexicon.load()


@lru_cache(maxsize=65536)
def _carotid(text: str) -> frozenset[str]:
    return positive_keywords(text, _lexicon())
