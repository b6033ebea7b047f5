# ruff: noqa: RUF001
"""A lexicon file of keywords: what counts as a mention, what denies it, which side it is on. English and Chinese."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from rewards.negation import mentions, sentences

CAROTID = Path(__file__).parent / "lexicons" / "carotid.json"
# What "..." may skip: words of the same piece of a sentence that turn nothing round.
_SKIP = r"(?:(?!\b(?:no|not|normal|without)\b|未|无|正常)[^,，、;；。]){0,40}?"
_PIECE = re.compile(r",|，|;|；|\band\b|\bor\b", re.IGNORECASE)
_CHINESE = re.compile(r"[\u4e00-\u9fff]")


@dataclass(frozen=True)
class Keyword:
    """One keyword of a lexicon."""

    name: str
    terms: tuple[str, ...]
    """Wordings; "..." stands for up to 40 characters of the same piece. A blank also matches a hyphen."""
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
    """left, right, or empty where none is stated or the keyword has none."""
    present: bool
    """False where the text denies it; hedged mentions are present."""


@dataclass(frozen=True)
class Lexicon:
    """Keywords with the words that deny them."""

    name: str
    keywords: tuple[Keyword, ...]
    normal: Keyword
    """What says that all is normal; it counts only where no other keyword is present."""
    denied: Mapping[str, tuple[str, ...]]
    """Chinese words that deny: before a keyword, after it, and those that end what the first reach."""
    sides: Mapping[str, tuple[str, ...]]
    """left, right, both -> words."""

    @classmethod
    def load(cls, path: str | Path = CAROTID) -> "Lexicon":
        """Read a lexicon file; the form is that of lexicons/carotid.json.

        Raises:
            ValueError: no JSON, or something is missing, superfluous or of another kind; the message names it.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{error.lineno}: expected a lexicon in JSON, got {error.msg}") from error
        _expect_keys(content, {"name", "keywords", "normal", "denied", "sides"}, f"{path}")
        keywords = tuple(_keyword(name, entry, str(path)) for name, entry in content["keywords"].items())
        _expect_keys(content["normal"], {"name", "terms"}, f"{path}: normal")
        normal = Keyword(content["normal"]["name"], _strings(content["normal"]["terms"], f"{path}: normal.terms"))
        tables = {}
        for table, keys in (("denied", {"before", "after", "ends"}), ("sides", {"left", "right", "both"})):
            _expect_keys(content[table], keys, f"{path}: {table}")
            tables[table] = {key: _strings(words, f"{path}: {table}.{key}") for key, words in content[table].items()}
        return cls(content["name"], keywords, normal, tables["denied"], tables["sides"])

    def find(self, text: str) -> set[Found]:
        """Every keyword that the text asserts or denies."""
        found = set()
        for sentence in sentences(text):
            for keyword in self.keywords:
                for match, value in mentions(keyword.pattern, sentence):
                    if value is not None:
                        present = value != 0 and not self._denied_in_chinese(sentence, match)
                        sides = self._sides(sentence, match) if keyword.sided else {""}
                        found |= {Found(keyword.name, side, present) for side in sides}
        return found

    def says_normal(self, text: str) -> bool:
        """A wording of normality occurs, or something is denied."""
        return self.normal.pattern.search(text) is not None or any(not one.present for one in self.find(text))

    def _denied_in_chinese(self, sentence: str, match: re.Match[str]) -> bool:
        if not _CHINESE.search(sentence):
            return False
        start, end = _piece(sentence, match, re.compile(r"[,，;；]"))
        before, after = sentence[start : match.start()], sentence[match.end() : end]
        # the last denial before the keyword counts unless the clause turns positive behind it: "未见狭窄但可见斑块"
        denial = max((before.rfind(word) + len(word) for word in self.denied["before"] if word in before), default=0)
        if denial and not any(word in before[denial:] for word in self.denied["ends"]):
            return True
        return any(word in after for word in self.denied["after"])

    def _sides(self, sentence: str, match: re.Match[str]) -> set[str]:
        """Sides named in the piece that holds the keyword, else the last one named before it in the sentence."""
        start, end = _piece(sentence, match, _PIECE)
        here = [side for _, side in self._named(sentence[start:end])]
        earlier = [side for _, side in self._named(sentence[:start])][-1:]
        found = {side for name in here or earlier for side in (("left", "right") if name == "both" else (name,))}
        return found or {""}

    def _named(self, text: str) -> list[tuple[int, str]]:
        places = [
            (match.start(), side)
            for side, words in self.sides.items()
            for match in re.finditer("|".join(map(_pattern, words)), text, re.IGNORECASE)
        ]
        return sorted(places)


def _piece(sentence: str, match: re.Match[str], cut: re.Pattern[str]) -> tuple[int, int]:
    """Start and end of the part of a sentence, between two cuts, that holds the match."""
    cuts = [0, *(found.end() for found in cut.finditer(sentence)), len(sentence)]
    return max(c for c in cuts if c <= match.start()), min(c for c in cuts if c >= match.end())


def _pattern(term: str) -> str:
    """Regular expression of a term: whole words in Latin script, plurals too; characters in Chinese."""
    parts = [r"[\s-]+".join(map(re.escape, re.split(r"[\s-]+", part.strip()))) for part in term.split("...")]
    bounded = [
        (r"\b" if re.match(r"[a-z0-9]", part, re.IGNORECASE) else "")
        + part
        + (r"s?\b" if re.search(r"[a-z0-9]$", part, re.IGNORECASE) else "")
        for part in parts
    ]
    return _SKIP.join(bounded)


def _keyword(name: str, entry: object, where: str) -> Keyword:
    _expect_keys(entry, {"terms"}, f"{where}: {name}", optional={"sided"})
    sided = entry.get("sided", False)
    if not isinstance(sided, bool):
        raise ValueError(f"{where}: {name}.sided: expected true or false, got {sided!r}")
    return Keyword(name, _strings(entry["terms"], f"{where}: {name}.terms"), sided)


def _strings(value: object, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(v, str) and v.strip() for v in value):
        raise ValueError(f"{where}: expected a list of words that is not empty, got {value!r}")
    return tuple(value)


def _expect_keys(value: object, keys: set[str], where: str, *, optional: Sequence[str] | set[str] = ()) -> None:
    found = set(value) if isinstance(value, dict) else None
    if found is None or not keys <= found or found - keys - set(optional):
        got = "no object" if found is None else sorted(found)
        raise ValueError(f"{where}: expected the keys {sorted(keys)}, got {got}")
