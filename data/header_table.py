"""The table of headers: names, the section that each opens, and the patterns that find them (words/headers/*.toml)."""

import re
import tomllib
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from radflow.data.files import WORDS, read_words

Reach = Literal["anywhere", "line", "sign-off"]
Describes = Literal["yes", "always", "alone", "never"]

# Whether the text of a section describes this examination, and so is labelled. "yes": but not a reading that a final
# report replaces; "always": even before a final report; "alone": only if there is no other reading.
SECTIONS: Mapping[str, Describes] = {
    "both": "yes",
    "findings": "yes",
    "body": "yes",  # the Findings of a report that has no others
    "impression": "yes",
    "summary": "yes",
    "final report": "yes",
    "addendum": "always",
    "wet read": "alone",
    "indication": "never",
    "background": "never",
    "comparison": "never",
    "technique": "never",
    "examination": "never",
    "recommendation": "never",
    "notification": "never",
    "comment": "never",
    "signature": "never",
}

GAP = "[ \t\r\xa0\u3000]"  # white space within a line
ORNAMENTS = rf"{GAP}*+[^\w\n]{{0,8}}+"  # before the name of an examination
LETTER = "a-z0-9\xdf-\u024f"  # what a name in folded text neither follows nor precedes
_MARK = "[\u0300-\u036f]"  # an accent that is a character of its own
_ACCENTED = [chr(code) for code in range(0xC0, 0x250) if unicodedata.normalize("NFD", chr(code))[0].isascii()]
_PLAIN = {ord(char): unicodedata.normalize("NFD", char)[0].lower() for char in _ACCENTED}
_PLAIN |= {code: chr(code).lower() for code in [*range(0x41, 0x5B), *map(ord, "ÆØÞÐŒŁ")]}


def fold(text: str) -> str:
    """In lower case and without accents, every character at the index where it was."""
    return text.lower() if text.isascii() else text.translate(_PLAIN)


@dataclass(frozen=True)
class Header:
    """A row of the table: the section that a name opens, and where the name counts as a header."""

    section: str
    reach: Reach

    @property
    def describes(self) -> Describes:
        return SECTIONS[self.section]


@dataclass(frozen=True)
class Headers:
    """Every name, folded, and patterns over folded text (`longer`: over the text itself)."""

    of_name: Mapping[str, Header]
    name: re.Pattern[str]
    joined: re.Pattern[str]
    """ "/history" of INDICATION/HISTORY."""
    longer: re.Pattern[str]
    """ "OF PRESENT COMPLAINT" of HISTORY OF PRESENT COMPLAINT."""
    title_line: re.Pattern[str]
    """The break before a line that begins with a word of such a name, and the ornaments of the line. A comma without a
    blank is all that some tables keep of a line end."""
    title: re.Pattern[str]
    """The name of an examination."""
    region: re.Pattern[str]
    """A part of the body."""
    before_impression: tuple[str, ...]
    """What makes another name of "impression" that follows it: "end of"."""

    def named(self, written: str) -> Header | None:
        """The row of a name as it is written in a report."""
        return self.of_name.get(written) or self.of_name.get(key(written))


def key(name: str) -> str:
    """A name as the table has it: folded, ss for ß, a single space for any white space."""
    return " ".join(re.sub(_MARK, "", fold(name)).replace("ß", "ss").split())


@cache
def load_headers(further: Path | None = None) -> Headers:
    """The table of the project with the rows of a further file.

    Raises:
        ValueError: what is wrong with the further file, and in which row.
    """
    spelled: dict[str, str] = {}  # name -> as spelled in the table
    of_name: dict[str, Header] = {}
    for path in [*sorted((WORDS / "headers").glob("*.toml")), *([further] if further else [])]:
        for number, row in enumerate(_rows(path), 1):
            header = _header(row, f"{path}, header {number}")
            for name in row["names"]:
                known = of_name.setdefault(key(name), header)
                if known != header:
                    raise ValueError(
                        f"{path}, header {number}: expected {name!r} as in another row, with section {known.section!r} "
                        f"and reach {known.reach!r}, got {header.section!r} and {header.reach!r}; drop one of them"
                    )
                spelled[key(name)] = name if not name.isascii() else spelled.get(key(name), name)
    return _compile(of_name, spelled)


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ValueError(f"{path}: expected a TOML file of headers, got {error.strerror}; check the path") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected a TOML file of headers in UTF-8, got {error}") from error
    rows = content.get("header")
    if content.keys() != {"header"} or not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path}: expected [[header]] rows only, got the keys {sorted(content)}")
    return rows


def _header(row: dict[str, Any], where: str) -> Header:
    """A row of the table, checked."""
    if row.keys() != {"section", "reach", "names"}:
        raise ValueError(f"{where}: expected the keys section, reach and names, got {sorted(row)}")
    for column, allowed in (("section", [*SECTIONS]), ("reach", [*get_args(Reach)])):
        if row[column] not in allowed:
            raise ValueError(f"{where}: expected as {column} one of {', '.join(allowed)}, got {row[column]!r}")
    names = row["names"]
    if not isinstance(names, list) or not all(isinstance(name, str) and key(name) for name in names):
        raise ValueError(f"{where}: expected as names a list of words, got {names!r}")
    return Header(row["section"], row["reach"])


def _compile(of_name: Mapping[str, Header], spelled: Mapping[str, str]) -> Headers:
    def pattern(*sections: str) -> str:
        return _names_pattern(spelled[name] for name, header in of_name.items() if header.section in sections)

    asides = pattern(*(section for section, describes in SECTIONS.items() if describes == "never"))
    told = pattern("both", "findings", "impression")
    word = rf"(?!(?i:{told})(?![A-Za-z0-9]))(?:[A-ZÀ-Þ][A-Za-zÀ-ÿ]*|of|for|to|the|de|la|du|der|des|und|et|e|y|do|da)"
    return Headers(
        of_name,
        re.compile(rf"(?<![{LETTER}])(?:{_names_pattern(spelled.values())})(?![{LETTER}])"),
        re.compile(
            rf"(?:(?:{GAP}*[/&,+]{GAP}*|{GAP}+(?:and|or|und|oder|et|ou|y|e){GAP}+)(?:{asides})(?![{LETTER}])){{0,2}}"
        ),
        re.compile(rf"(?:{GAP}*[/&,+-]?{GAP}*{word}(?![A-Za-z0-9])){{1,5}}"),
        *_title_patterns(),
        tuple(name.removesuffix(" impression") for name in of_name if name.endswith(" impression")),
    )


def _names_pattern(names: Iterable[str]) -> str:
    """A regular expression of names, longest first, so that none is cut short by its own beginning.

    Names are grouped by their first two characters: for most words of a text, one comparison then ends the search.
    """
    groups: dict[str, list[str]] = {}
    for name in sorted(names, key=len, reverse=True):
        groups.setdefault(_spelling(name[:2]), []).append(_spelling(name[2:]))
    return "|".join(f"{start}(?:{'|'.join(ends)})" for start, ends in groups.items())


def _spelling(name: str) -> str:
    """A pattern of a name in folded text; an accent may follow its letter as a character of its own."""
    if "ß" in name:
        return "(?:ss|ß)".join(map(_spelling, name.split("ß")))
    letters = ((char, unicodedata.normalize("NFD", char.lower())) for char in name)
    return "".join(
        r"\s+" if char == " " else re.escape(fold(char)) + f"{_MARK}?" * (len(apart) > 1 and apart[0].isascii())
        for char, apart in letters
    )


def _title_patterns() -> tuple[re.Pattern[str], re.Pattern[str], re.Pattern[str]]:
    """Of a line that may begin with the name of an examination, of the name, and of a region in it."""
    words = read_words("titles")
    regions, others = (_names_pattern(sorted({*words[kind]})) for kind in ("regions", "others"))
    word = rf"(?>(?:{regions}|{others}|\d{{1,2}}v?(?![:/.]?\d))(?![{LETTER}]))"
    between = rf"(?>{GAP}*[,/&+()-]?{GAP}*)"
    region = rf"(?<![{LETTER}])(?:{regions})(?![{LETTER}])"
    named = rf"(?=[^\n:\uff1a]{{0,120}}?{region})"
    return (
        re.compile(rf"[\n,](?:(?<=\n)|(?<=[.!?],)(?=\S)){ORNAMENTS}(?={word})"),
        re.compile(rf"{named}{word}(?:{between}{word}){{0,15}}"),
        re.compile(region),
    )
