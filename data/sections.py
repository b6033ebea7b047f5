# ruff: noqa: RUF001, RUF003 - full-width punctuation and the long s are meant
"""Deterministic section parser: report text -> Findings, Impression and the rest (paper 4.2, parser rule)."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from radflow.data.files import read_words

Reach = Literal["anywhere", "line", "title"]
Status = Literal["ok", "missing_findings", "missing_impression", "ambiguous"]


@dataclass(frozen=True)
class Sections:
    """Parts of a report; all but `described` are substrings of its text without surrounding white space."""

    findings: str
    impression: str
    status: Status
    described: str
    """All text that describes this examination, without headers: no history, comparison, technique, preliminary reading
    that a final one replaces, discussion or recommendation. Its parts are separated by empty lines."""
    other: dict[str, str] = field(default_factory=dict)


TABLE = read_words("headers")["header"]  # rows: a section, where its names count as a header, whether it describes
OF_NAME = {name: row for row in TABLE for name in row["names"]}


def _names_pattern(names: Iterable[str]) -> str:
    """A regular expression of names, longest first, so that none is cut short by its own beginning.

    Names are grouped by their first two characters: for most words of a text, one comparison then ends the search.
    """
    groups: dict[str, list[str]] = {}
    for name in sorted(names, key=len, reverse=True):
        groups.setdefault(name[:2], []).append(re.escape(name[2:]).replace(r"\ ", r"\s+"))
    return "|".join(f"{re.escape(start)}(?:{'|'.join(ends)})" for start, ends in groups.items())


# ASCII: else "ſ" would match an "s", and be a name that the table does not hold.
_NAME = re.compile(rf"(?<![A-Za-z0-9])(?:{_names_pattern(OF_NAME)})(?![A-Za-z0-9])", re.IGNORECASE | re.ASCII)

_GAP = "[ \t\r\xa0\u3000]"  # white space within a line
# What may stand before a header: Markdown or a bracket, and at the start of a line a bullet or a number.
_MARKUP = r"[*_\[(【〔「<]{0,4}"
_BULLET = rf"(?:\d{{1,2}}[.)、]|[IVX]{{1,4}}[.)]|[A-Za-z][.)]|[一二三四五六七八九十]{{1,2}}、|[-•>*#]{{1,6}}){_GAP}*"
_START = rf"{_GAP}*(?P<header>(?:{_BULLET}){{0,3}}{_MARKUP})\Z"
# What precedes a header, strongest first. A comma without a blank is all that some tables keep of a line end.
_CONTEXTS = {
    "paragraph": re.compile(rf"(?:\n{_GAP}*\n|[.!?:;。；！？：]{_GAP}*\n){_START}"),
    "line": re.compile(rf"\n{_START}"),
    "sentence": re.compile(rf"(?:[.!?:;)\]][*_\"']{{0,3}}(?:\s+|(?=,))|[。；！？：]\s*)(?P<header>,?\s*{_MARKUP})\Z"),
    "word": re.compile(r"(?:\s|(?=,))(?P<header>,?[*_\[(]{0,3})\Z"),
}
_FIRST = re.compile(rf"\s*{_START}")  # at the start of the text
_NEXT = re.compile(rf"{_GAP}*(?P<header>{_MARKUP})\Z")  # after another header, on its line
_MARKER = re.compile(r"(?<=[.!?:;])(?:\s+\d{1,2}[.)]){1,3}\Z", re.ASCII)  # "2." of "Clear. 2. Impression: Normal."
REACH = 48  # characters looked at before a name; that many blanks count as the start of a line

_CLOSE = r"(?:\*{1,3}|_{2,3}|[\])】〕」>]{1,2})?"
_NOTE = rf"(?:{_GAP}*\([^()\n]{{1,40}}\))?"  # IMPRESSION (PRELIMINARY):
_BY = rf"(?:{_GAP}+by{_GAP}[^:\n]{{1,40}})?"  # Wet read by Dr. ___ at 9 pm:
_COLON = re.compile(rf"{_CLOSE}{_NOTE}{_BY}{_GAP}*[:：](?:\*{{1,3}}|_{{2,3}})?(?:{_GAP}*,)?")
_BRACKET = re.compile(r"[\]】〕」]")
_END = re.compile(rf"{_CLOSE}{_NOTE}{_GAP}*(?=\n|\Z)")
_DASH = re.compile(rf"{_CLOSE}{_GAP}*(?:[-–—=]+|\.)(?=\s)")
_TEXT = re.compile(rf"(?={_GAP}+(?:[A-Z]?[a-z]|[A-Z] [a-z]|#?\d|_))")
_BLANK = re.compile(_GAP)
_ASIDES = _names_pattern(name for name, row in OF_NAME.items() if "describes" not in row)
_JOINED = re.compile(  # "/history" of INDICATION/HISTORY
    rf"(?:(?:{_GAP}*[/&,+]{_GAP}*|{_GAP}+(?:and|or){_GAP}+)(?:{_ASIDES})(?![A-Za-z0-9])){{0,2}}",
    re.IGNORECASE | re.ASCII,
)
_TOLD = _names_pattern(name for name, row in OF_NAME.items() if row["section"] in ("both", "findings", "impression"))
_WORD = rf"(?!(?i:{_TOLD})(?![A-Za-z0-9]))(?:[A-Z][A-Za-z]*|of|for|to|the)(?![A-Za-z0-9])"
_LONGER = re.compile(rf"(?:{_GAP}*[/&,+-]?{_GAP}*{_WORD}){{1,5}}{_COLON.pattern}")  # HISTORY OF PRESENT COMPLAINT:

# How far a section about something else than this examination reaches. A paragraph ends before "LUNGS:" too.
_PARAGRAPH_END = rf"\n{_GAP}*(?:\n|(?=[A-Z][A-Za-z ,/&-]{{1,40}}:))"
_SECTION = re.compile(r".*", re.DOTALL)
_PARAGRAPH = re.compile(rf".*?(?:{_PARAGRAPH_END}|\Z)", re.DOTALL)
_SENTENCE = re.compile(rf".*?(?:(?<=[.!?])\s|[。！？]|{_PARAGRAPH_END}|\Z)", re.DOTALL)


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
_LONGER_RULES = {"line": (_Rule(_LINE, _LONGER, "capital"),), "anywhere": (_Rule(_LINE + _INSIDE, _LONGER, "capital"),)}
_KEPT = ("findings", "view findings", "impression")


class _Found(NamedTuple):
    section: str
    describes: str  # yes, always, alone; empty: never
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
    starts = [*(header.start for header in headers), len(text)]
    pairs = zip(headers, starts[1:], strict=True)
    parts = [(header, _MARKER.sub("", text[header.end : end].strip())) for header, end in pairs]
    bodies: dict[str, list[tuple[int, str]]] = {}
    for header, body in parts:
        if header.section == "final report":
            bodies = {name: parts for name, parts in bodies.items() if name not in ("both", "findings", "impression")}
        elif body:
            bodies.setdefault(header.section, []).append((header.start, body))
    viewed = bodies.pop("view findings", [])
    if viewed and "findings" not in bodies and "both" not in bodies:
        bodies["findings"] = viewed
    status = _status(bodies)
    first = {name: found[0][1] for name, found in bodies.items()}
    untitled = _Found("", "yes", 0, 0), text[: starts[0]].strip()
    described = _described([untitled, *parts], "findings" in bodies or "both" in bodies)
    return Sections(first.pop("findings", ""), first.pop("impression", ""), status, described, first), names_left


def _described(parts: Sequence[tuple[_Found, str]], announced: bool) -> str:
    """The text that describes the examination.

    A section about something else reaches to the next header if the Findings are announced; else it is one paragraph,
    for Findings without a header follow it. If nothing is left then, it is one sentence: what follows
    "Comparison: None." is the report.
    """
    for aside in (_SECTION, _PARAGRAPH, _SENTENCE)[not announced :]:
        told = [(header, body if header.describes else aside.sub("", body, count=1).strip()) for header, body in parts]
        if described := "\n\n".join(_without_preliminary(told)):
            return described
    return ""


def _without_preliminary(told: Sequence[tuple[_Found, str]]) -> list[str]:
    """Those texts that no final reading replaces. The first has no header, and replaces nothing."""
    final = max((i for i, (header, _) in enumerate(told) if header.section == "final report"), default=0)
    after = told[max(final, 1) :]
    replaced = any(text and (header.describes == "yes" or (final and not header.describes)) for header, text in after)
    kept = []
    for i, (header, text) in enumerate(told):
        preliminary = header.describes == "alone" or (header.describes != "always" and i < final)
        if text and not (preliminary and replaced):
            kept.append(text)
    return kept


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
        end = _header_end(text, match, context, header)
        if end is None:
            position = match.start() + 1  # it may hold one: "see findings and Impression:"
            names_left = names_left or (bool(found) and found[-1].section in _KEPT)
        else:
            position = last_end = end
            found.append(_Found(header["section"], header.get("describes", ""), start, end))
    return found, names_left


def _header_end(text: str, name: re.Match, context: str, header: Mapping[str, Any]) -> int | None:
    """Where the text of a header begins; None if the name is no header."""
    joined = _JOINED.match(text, name.end())
    longer = () if "describes" in header else _LONGER_RULES[header["reach"]]
    for rule in _RULES[header["reach"]] + longer:
        fits = context in rule.contexts and _is_written(name[0], rule.written)
        if fits and joined and (after := rule.after.match(text, joined.end())):
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
