# ruff: noqa: RUF001
"""Keywords of a report, from a lexicon file in English and Chinese, and KeyWordMatch.

The paper's KeyWordMatch uses a private labeler trained on annotated reports. This one looks words up: what counts as a
mention, what denies it, which side it is on. Its scores are named `keyword_f1_rules`.
"""

import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from radflow.rewards.rules.entity_rules import agreement_f1
from radflow.rewards.rules.findings import GRADES
from radflow.rewards.rules.negation import REACH, cut_points, mentions, piece_bounds, sentences
from radflow.rewards.types import Finding

CAROTID = Path(__file__).parent / "lexicons" / "carotid.json"
# What "..." may skip: words of the same piece of a sentence that do not negate.
_SKIP = r"(?:(?!\b(?:no|not|normal|without)\b|未|无|正常)[^,，、;；。]){0,40}?"
_PIECE = re.compile(
    r"[,，;；]|\b(?:and|or|with|without)\b|伴|合并|并(?=[左右双两])|[及和、](?=[左右双两])", re.IGNORECASE
)
# "Right side: ... ." is of that side until another one is named.
_HEADING = re.compile(r"(?:[^:：,，]{1,30}[:：]|on the [^:,]{1,20}[:,])", re.IGNORECASE)
_NUMBER = r"(?<![\d.])(\d{1,3})(?:\.\d{1,3})?"
_SHARE = re.compile(
    rf"(<|＜|less than|under|below|小于|不足|低于)?\s?(?:{_NUMBER}\s?[%％]?\s?(?:[-–~～至]|to)\s?)?{_NUMBER}\s?[%％]",
    re.IGNORECASE,
)
_COMMA = re.compile(r"[,，;；]")
_LISTED = re.compile(r"[及和与或、均皆都也已\s]")
_CHINESE = re.compile(r"[\u4e00-\u9fff]")


@dataclass(frozen=True)
class Keyword:
    """One keyword of a lexicon."""

    name: str
    terms: tuple[str, ...]
    """Wordings; "..." matches up to 40 characters of the same piece. A blank also matches a hyphen."""
    sided: bool = False
    """The side belongs to the keyword: plaque on the left is another finding than plaque on the right."""
    graded: bool = False
    """The lexicon's words for grades, and shares in percent, say how severe it is."""
    covers: tuple[str, ...] = ()
    """Keywords that an Impression may call by this one."""
    implies: tuple[str, ...] = ()
    """Keywords that an Impression may leave out next to this one."""

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        return _any_of(self.terms)


class Statement(NamedTuple):
    """A mention of a keyword in a sentence."""

    keyword: Keyword
    start: int
    end: int
    value: int  # 1 present, 0 denied, -1 uncertain


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
    """Chinese words that deny: before a keyword, after it, and those that end what the first reach. Optional: neutral,
    what holds such a word and denies nothing; and in both languages other, with which another one is denied, and much,
    with which a moderate or severe one is."""
    sides: Mapping[str, tuple[str, ...]]
    """left, right, both -> words."""
    regions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Part of the organ -> words: what is denied in one part is not denied in another."""
    grades: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """minimal, mild, moderate, severe -> words."""

    @classmethod
    def load(cls, path: str | Path = CAROTID) -> "Lexicon":
        """Read a lexicon file of the form of lexicons/carotid.json; ValueError names the key that is wrong."""
        try:
            content = json.loads(Path(path).read_bytes())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: expected a lexicon in JSON, got {error}; correct it") from error
        keys, optional = {"name", "keywords", "normal", "denied", "sides"}, ["regions", "grades"]
        _expect_keys(content, keys, f"{path}", optional=optional)
        _expect_keys(content["keywords"], None, f"{path}: keywords")
        keywords = tuple(_keyword(name, entry, str(path)) for name, entry in content["keywords"].items())
        _expect_keys(content["normal"], {"name", "terms"}, f"{path}: normal")
        (name,) = _strings([content["name"]], f"{path}: name")
        (normal_name,) = _strings([content["normal"]["name"]], f"{path}: normal.name")
        normal = Keyword(normal_name, _strings(content["normal"]["terms"], f"{path}: normal.terms"))
        denied = _table(
            content["denied"], {"before", "after", "ends"}, f"{path}: denied", optional=["neutral", "other", "much"]
        )
        sides = _table(content["sides"], {"left", "right", "both"}, f"{path}: sides")
        regions = _table(content.get("regions", {}), None, f"{path}: regions")
        grades = _table(content.get("grades", {}), set(), f"{path}: grades", optional=GRADES)
        return cls(name, keywords, normal, denied, sides, regions, grades)

    def mentions(self, text: str) -> list[Finding]:
        """Every mention of a keyword, with the side, the part of the organ and the grade stated for it."""
        found, heading = [], frozenset[str]()
        for sentence in sentences(text):
            begin = _HEADING.match(sentence)
            named = [*self._side_pattern.finditer(begin.group())] if begin else []
            heading = _both_sides(named) if named else frozenset() if self._side_pattern.search(sentence) else heading
            found += [self._finding(one, sentence, heading) for one in self.statements(sentence)]
        return found

    def statements(self, sentence: str) -> list[Statement]:
        """Every mention of a keyword in a sentence; what denies another one ("no other plaque") is none."""
        found = []
        for keyword in self.keywords:
            for match, polarity in mentions(keyword.pattern, sentence):
                value = 0 if self._denied_in_chinese(sentence, match.start(), match.end()) else polarity
                if value is not None and not (value == 0 and self._is_of_others(sentence, match.start(), match.end())):
                    found.append(Statement(keyword, match.start(), match.end(), value))
        return found

    def _finding(self, one: Statement, sentence: str, heading: frozenset[str]) -> Finding:
        start, end = _around(_PIECE, sentence, one.start, one.end)
        regions = frozenset(name for name, words in self.regions.items() if _any_of(words).search(sentence, start, end))
        grades = self._grades(one, sentence, sentence[start:end]) if one.keyword.graded else frozenset[int]()
        sides = self._sides(sentence, start, end) or heading
        return Finding(one.keyword.name, one.value, sides, grades, regions=regions)

    def _grades(self, one: Statement, sentence: str, piece: str) -> frozenset[int]:
        grades = {GRADES.index(name) for name, words in self.grades.items() if _any_of(words).search(piece)}
        for below, first, last in _SHARE.findall(piece):
            grades |= {_grade_of(int(share) - bool(below)) for share in (first, last) if share}
        clause = sentence[_around(_COMMA, sentence, one.start, one.end)[0] : one.start]
        if one.value == 0 and not grades and _any_of(self.denied.get("much", ())).search(clause):
            grades = {GRADES.index("moderate"), GRADES.index("severe")}
        return frozenset(grades)

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

    def _denied_in_chinese(self, sentence: str, start: int, end: int) -> bool:
        if not _is_chinese(sentence):
            return False
        first, last = _around(_COMMA, sentence, start, end)
        before, after = sentence[first:start], sentence[end:last].rstrip(" 。.")
        for word in self.denied.get("neutral", ()):
            before = before.replace(word, "*")
        # the last denial before the keyword counts unless the clause turns positive after it: "未见狭窄但可见斑块"
        denial = max((before.rfind(word) + len(word) for word in self.denied["before"] if word in before), default=0)
        if denial and not any(word in before[denial:] for word in self.denied["ends"]):
            return True
        # "斑块及血栓均未见" denies both, "斑块处未见狭窄" no plaque
        for keyword in self.keywords:
            after = keyword.pattern.sub("", after)
        return re.sub(_LISTED, "", after) in self.denied["after"]

    def _is_of_others(self, sentence: str, start: int, end: int) -> bool:
        first, last = _around(_COMMA, sentence, start, end)
        return _any_of(self.denied.get("other", ())).search(sentence, first, last) is not None

    def _sides(self, sentence: str, start: int, end: int) -> frozenset[str]:
        """Sides named in a piece of a sentence, else the last one before it, else the first one in its clause."""
        named = _matches(self._side_pattern, sentence)
        first = bisect_right(named, start, key=re.Match.end)
        last = bisect_left(named, end, key=re.Match.start)
        clause = _around(_COMMA, sentence, start, end)[1]
        later = [match for match in named[last : last + 1] if match.start() < clause]
        return _both_sides(named[first:last] or named[max(0, first - 1) : first] or later)

    @cached_property
    def _side_pattern(self) -> re.Pattern[str]:
        # both first: "left and right" is no left
        groups = (f"(?P<{side}>{_any_of(self.sides[side]).pattern})" for side in ("both", "left", "right"))
        return re.compile("|".join(groups), re.IGNORECASE)


def _both_sides(named: Sequence[re.Match[str]]) -> frozenset[str]:
    sides = {str(match.lastgroup) for match in named}
    return frozenset({"left", "right"} if "both" in sides else sides)


def _around(cut: re.Pattern[str], sentence: str, start: int, end: int) -> tuple[int, int]:
    """Bounds of the piece that holds sentence[start:end], as far as REACH: sentences that never end take their time."""
    first, last = piece_bounds(cut_points(cut, sentence), start, end)
    return max(first, start - REACH), min(last, end + REACH)


@lru_cache(maxsize=64)  # each mention of a sentence asks
def _is_chinese(sentence: str) -> bool:
    return _CHINESE.search(sentence) is not None


@lru_cache(maxsize=64)
def _matches(pattern: re.Pattern[str], sentence: str) -> tuple[re.Match[str], ...]:
    return tuple(pattern.finditer(sentence))


def _grade_of(share: int) -> int:
    """Grade of a narrowing in percent: mild, from 50 moderate, from 70 severe (SRU consensus, Radiology 229, 2003)."""
    return GRADES.index("severe" if share >= 70 else "moderate" if share >= 50 else "mild")


@lru_cache(maxsize=256)
def _any_of(terms: Sequence[str]) -> re.Pattern[str]:
    """Any of the terms, longest first, so that one hides the shorter one inside it; of none, what matches nowhere."""
    return re.compile("|".join(map(_pattern, sorted(terms, key=len, reverse=True))) or "(?!)", re.IGNORECASE)


def _pattern(term: str) -> str:
    """Regular expression of a term: whole words in Latin script, plurals too; characters in Chinese."""
    parts = [r"[\s-]+".join(map(re.escape, re.split(r"[\s-]+", part.strip()))) for part in term.split("...")]
    return _SKIP.join(_bounded(part) for part in parts)


def _bounded(part: str) -> str:
    begin = r"\b" if re.match(r"[a-z0-9]", part, re.IGNORECASE) else ""
    return begin + part + (r"s?\b" if re.search(r"[a-z0-9]$", part, re.IGNORECASE) else "")


def _keyword(name: str, entry: Any, where: str) -> Keyword:
    flags, lists = ("sided", "graded"), ("covers", "implies")
    _expect_keys(entry, {"terms"}, f"{where}: {name}", optional=[*flags, *lists])
    for flag in flags:
        if not isinstance(value := entry.get(flag, False), bool):
            raise ValueError(f"{where}: {name}.{flag}: expected true or false, got {value!r}")
    return Keyword(
        name,
        _strings(entry["terms"], f"{where}: {name}.terms"),
        *(entry.get(flag, False) for flag in flags),
        *(_strings(entry[key], f"{where}: {name}.{key}") if key in entry else () for key in lists),
    )


def _strings(value: object, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(v, str) and v.strip() for v in value):
        raise ValueError(f"{where}: expected a list of words that is not empty, got {value!r}")
    return tuple(value)


def _table(
    value: Any, keys: set[str] | None, where: str, *, optional: Sequence[str] = ()
) -> dict[str, tuple[str, ...]]:
    _expect_keys(value, keys, where, optional=optional)
    return {key: _strings(words, f"{where}.{key}") for key, words in value.items()}


def _expect_keys(value: Any, keys: set[str] | None, where: str, *, optional: Sequence[str] = ()) -> None:
    """Keys None: any."""
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected an object, got {value!r:.100}")
    if keys is not None and not keys <= set(value) <= {*keys, *optional}:
        raise ValueError(f"{where}: expected the keys {sorted(keys)}, got {sorted(value)}")


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
