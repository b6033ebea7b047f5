# ruff: noqa: RUF001, RUF003 - full-width punctuation and the long s are meant
"""Deterministic section parser: report text -> Findings, Impression and the rest (paper 4.2, parser rule)."""

import re
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from radflow.data.files import read_words

Reach = Literal["anywhere", "line", "title"]
Status = Literal["ok", "missing_findings", "missing_impression", "ambiguous"]


@dataclass(frozen=True)
class Sections:
    """Parts of a report, each a substring of its text without surrounding white space."""

    findings: str
    impression: str
    status: Status
    other: dict[str, str] = field(default_factory=dict)


TABLE = read_words("headers")["header"]  # rows of the section, where its names count as a header, and the names
OF_NAME = {name: row for row in TABLE for name in row["names"]}


def _names_pattern() -> str:
    """A regular expression of every name, longest first, so that none is cut short by its own beginning.

    Names are grouped by their first two characters: for most words of a text, one comparison then ends the search.
    """
    groups: dict[str, list[str]] = {}
    for name in sorted(OF_NAME, key=len, reverse=True):
        groups.setdefault(name[:2], []).append(re.escape(name[2:]).replace(r"\ ", r"\s+"))
    return "|".join(f"{re.escape(start)}(?:{'|'.join(ends)})" for start, ends in groups.items())


# ASCII: else "ſ" would match an "s", and be a name that the table does not hold.
_NAME = re.compile(rf"(?<![A-Za-z0-9])(?:{_names_pattern()})(?![A-Za-z0-9])", re.IGNORECASE | re.ASCII)

_GAP = "[ \t\r\xa0\u3000]"  # white space within a line
# What may stand before a header: Markdown or a bracket, and at the start of a line a bullet or a number.
_MARKUP = r"[*_\[(【〔「<]{0,4}"
_BULLET = rf"(?:\d{{1,2}}[.)、]|[IVX]{{1,4}}[.)]|[A-Za-z][.)]|[一二三四五六七八九十]{{1,2}}、|[-•>*#]{{1,6}}){_GAP}*"
_START = rf"{_GAP}*(?P<header>(?:{_BULLET}){{0,3}}{_MARKUP})\Z"
# What precedes a header, strongest first.
_CONTEXTS = {
    "paragraph": re.compile(rf"(?:\n{_GAP}*\n|[.!?:;。；！？：]{_GAP}*\n){_START}"),
    "line": re.compile(rf"\n{_START}"),
    "sentence": re.compile(rf"(?:[.!?:;)\]][*_\"']{{0,3}}\s+|[。；！？：]\s*)(?P<header>{_MARKUP})\Z"),
    "word": re.compile(r"\s(?P<header>[*_\[(]{0,3})\Z"),
}
_FIRST = re.compile(rf"\s*{_START}")  # at the start of the text
_NEXT = re.compile(rf"{_GAP}*(?P<header>{_MARKUP})\Z")  # after another header, on its line
_MARKER = re.compile(r"(?<=[.!?:;])(?:\s+\d{1,2}[.)]){1,3}\Z", re.ASCII)  # "2." of "Clear. 2. Impression: Normal."
REACH = 48  # characters looked at before a name; that many blanks count as the start of a line

_CLOSE = r"(?:\*{1,3}|_{2,3}|[\])】〕」>]{1,2})?"
_NOTE = rf"(?:{_GAP}*\([^()\n]{{1,40}}\))?"  # IMPRESSION (PRELIMINARY):
_COLON = re.compile(rf"{_CLOSE}{_NOTE}{_GAP}*[:：](?:\*{{1,3}}|_{{2,3}})?")
_BRACKET = re.compile(r"[\]】〕」]")
_END = re.compile(rf"{_CLOSE}{_NOTE}{_GAP}*(?=\n|\Z)")
_DASH = re.compile(rf"{_CLOSE}{_GAP}*(?:[-–—=]+|\.)(?=\s)")
_TEXT = re.compile(rf"(?={_GAP}+(?:[A-Z]?[a-z]|[A-Z] [a-z]|#?\d|_))")
_BLANK = re.compile(_GAP)


class _Rule(NamedTuple):
    """A name in one of these contexts, followed by this and written so, is a header."""

    contexts: tuple[str, ...]
    after: re.Pattern
    written: Literal["any", "capital", "capitals", "no letters"]


_LINE = ("paragraph", "line")
_INSIDE = ("next", "sentence")
_ON_A_LINE = (
    _Rule(_LINE, _COLON, "any"),
    _Rule(_LINE, _BRACKET, "any"),
    _Rule(("paragraph",), _END, "any"),
    _Rule(("line",), _END, "capital"),
    _Rule(_LINE, _DASH, "capital"),
    _Rule(_LINE, _TEXT, "capitals"),
    _Rule(_LINE, _BLANK, "no letters"),
)
_IN_A_PARAGRAPH = (
    _Rule(_INSIDE, _COLON, "any"),
    _Rule(("word",), _COLON, "capital"),
    _Rule(_INSIDE, _TEXT, "capitals"),
    _Rule(("sentence",), _END, "capitals"),
    _Rule(_INSIDE, _BRACKET, "no letters"),
    _Rule(_INSIDE, _BLANK, "no letters"),
)
_RULES: dict[Reach, tuple[_Rule, ...]] = {
    "line": _ON_A_LINE,
    "title": (_Rule(_LINE, _COLON, "capitals"),),
    "anywhere": _ON_A_LINE + _IN_A_PARAGRAPH,
}
_KEPT = ("findings", "view findings", "impression")


class _Found(NamedTuple):
    section: str
    start: int  # of the header's ornaments, where the section before it ends
    end: int  # where its text begins


def parse_sections(text: str) -> Sections:
    """Split a report at its headers; never raises, in time proportional to the text.

    A section that occurs twice, one header for both, or an Impression before the Findings is ambiguous. So is a report
    whose sections, written out again, are parsed differently. A header without text is a missing section. FINAL REPORT
    discards the findings and impression before it, a preliminary reading. The name of the examination opens the
    Findings of a report that has no others.
    """
    sections, names_left = _split(text)
    if sections.status == "ok" and names_left:
        again, _ = _split(render_report(sections.findings, sections.impression))
        if (again.findings, again.impression) != (sections.findings, sections.impression):
            return replace(sections, status="ambiguous")
    return sections


def render_report(findings: str, impression: str) -> str:
    """A report as the model is taught to write it, and as metrics read it (ReXrank's order and headers)."""
    return f"Findings: {findings} Impression: {impression}"


def _split(text: str) -> tuple[Sections, bool]:
    """The sections, and whether their texts hold names of headers."""
    headers, names_left = _headers(text)
    bodies: dict[str, list[tuple[int, str]]] = {}
    for number, header in enumerate(headers):
        end = headers[number + 1].start if number + 1 < len(headers) else len(text)
        if header.section == "final report":
            bodies = {name: parts for name, parts in bodies.items() if name not in ("both", "findings", "impression")}
        elif body := _MARKER.sub("", text[header.end : end].strip()):
            bodies.setdefault(header.section, []).append((header.start, body))
    viewed = bodies.pop("view findings", [])
    if viewed and "findings" not in bodies and "both" not in bodies:
        bodies["findings"] = viewed
    status = _status(bodies)
    first = {name: parts[0][1] for name, parts in bodies.items()}
    return Sections(first.pop("findings", ""), first.pop("impression", ""), status, first), names_left


def _status(bodies: dict[str, list[tuple[int, str]]]) -> Status:
    findings, impression = bodies.get("findings", []), bodies.get("impression", [])
    if "both" in bodies or len(findings) > 1 or len(impression) > 1:
        return "ambiguous"
    if not findings:
        return "missing_findings"
    if not impression:
        return "missing_impression"
    return "ambiguous" if impression[0] < findings[0] else "ok"


def _headers(text: str) -> tuple[list[_Found], bool]:
    """Every header, in order, and whether the Findings or the Impression contain a name that is no header."""
    found: list[_Found] = []
    position, last_end, names_left = 0, 0, False
    while match := _NAME.search(text, position):
        context, start = _context(text, match.start(), last_end)
        header = OF_NAME[" ".join(match[0].lower().split())]
        end = _header_end(text, match, context, header["reach"])
        if end is None:
            position = match.start() + 1  # it may hold one: "see findings and Impression:"
            names_left = names_left or (bool(found) and found[-1].section in _KEPT)
        else:
            position = last_end = end
            found.append(_Found(header["section"], start, end))
    return found, names_left


def _header_end(text: str, name: re.Match, context: str, reach: Reach) -> int | None:
    """Where the text of a header begins; None if the name is no header."""
    for rule in _RULES[reach]:
        fits = context in rule.contexts and _is_written(name[0], rule.written)
        if fits and (after := rule.after.match(text, name.end())):
            return after.end()
    return None


def _context(text: str, start: int, last_end: int) -> tuple[str, int]:
    """What precedes a name, and where the ornaments before it begin."""
    offset = max(last_end, start - REACH)
    before = text[offset:start]
    if offset == 0 and (match := _FIRST.match(before)):
        return "paragraph", match.start("header")
    if offset == last_end and (match := _NEXT.match(before)):
        return "next", offset + match.start("header")
    for context, pattern in _CONTEXTS.items():
        if match := pattern.search(before):
            return context, offset + match.start("header")
    return "", start


def _is_written(name: str, how: str) -> bool:
    if how == "any":
        return True
    if how == "no letters":
        return not name[0].isascii()
    return name.isupper() if how == "capitals" else name[0].isupper() or not name[0].isascii()
