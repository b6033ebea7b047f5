# ruff: noqa: RUF001 - full-width punctuation and the long s are meant
"""Where the headers of a report are: names of the table by what is around them, and names of examinations."""

import re
from collections.abc import Iterator
from typing import Literal, NamedTuple

from radflow.data.header_table import GAP, ORNAMENTS, Describes, Header, Headers, Reach, fold

# What may stand before a header: Markdown, a quote or a bracket, and at the start of a line a bullet or a number.
_MARKUP = r"[*_\[({【〔「<\"'“]{0,4}"
_BULLET = (
    rf"(?:\(?\d{{1,2}}[.)、]|[IVX]{{1,4}}[.)]|[A-Za-z][.)]|[一二三四五六七八九十]{{1,2}}、|[-–—•>*#=~_]{{1,20}}){GAP}*"
)
_START = rf"{GAP}*(?P<header>(?:{_BULLET}){{0,3}}{_MARKUP})\Z"
# A line that ends so goes on in the next one, which may be a single word.
_GOES_ON = "a|an|the|no|of|and|or|with|without|in|on|to|for|from|by|is|are|as|this|these|any|prior|previous|acute"
# What precedes a header, strongest first. A comma without a blank is all that some tables keep of a line end.
_CONTEXTS = {
    "paragraph": re.compile(rf"(?:\n{GAP}*\n|[.!?:;。；！？：]{GAP}*\n){_START}"),
    "wrapped": re.compile(rf"(?:[,/(]|(?<![A-Za-z])(?:{_GOES_ON})){GAP}*\n{_START}"),
    "line": re.compile(rf"\n{_START}"),
    "sentence": re.compile(rf"(?:[.!?:;)\]][*_\"']{{0,3}}(?:\s+|(?=,))|[。；！？：]\s*)(?P<header>,?\s*{_MARKUP})\Z"),
    "glued": re.compile(rf"[.!?;)](?P<header>{_MARKUP})\Z"),
    "word": re.compile(r"(?:\s|(?=,))(?P<header>,?[*_\[(]{0,3})\Z"),
}
_FIRST = re.compile(rf"\s*{_START}")  # at the start of the text
_NEXT = re.compile(rf"{GAP}*(?P<header>{_MARKUP})\Z")  # after another header, on its line
SHOWN = 400  # characters looked at between a header and the name of an examination
REACH = 48  # characters looked at before a name; that many blanks count as the start of a line

_CLOSE = r"(?:\*{1,3}|_{2,3}|[\])】〕」>]{1,2})?"
_NOTE = rf"(?:{GAP}*\([^()\n]{{1,40}}\))?"  # IMPRESSION (PRELIMINARY):
_BY = rf"(?:{GAP}+(?:by|BY|By){GAP}[^:\n]{{1,40}})?"  # Wet read by Dr. ___ at 9 pm:
_COLON = re.compile(rf"{_CLOSE}{_NOTE}{_BY}{GAP}*[.…]{{0,20}}[:：]{{1,3}}(?:\*{{1,3}}|_{{2,3}}|-(?=\s))?(?:{GAP}*,)?")
_BRACKET = re.compile(r"[\]】〕」]")
RULE = r"[-–—=*_~#]"  # a rule after or under a header
_END = re.compile(rf"{_CLOSE}{_NOTE}{GAP}*{RULE}{{0,20}}{GAP}*(?:\n{GAP}*{RULE}{{3,}}{GAP}*)?(?=\n|\Z)")
_COMMA = re.compile(rf"{_CLOSE}{GAP}*,(?=\S)")
_DASH = re.compile(rf"{_CLOSE}(?:{GAP}*(?:[-–—=|>;]+|\.)(?=\s)|\t| {{3}})")
_SPACED_DASH = re.compile(rf"{_CLOSE}{GAP}+[-–—=|>]+(?=\s)")
_BOLD = re.compile(r"(?:\*{2,3}|__)(?=\s)")
_DATE = rf"(?:{GAP}*[,-]?{GAP}*(?:[Dd]ated|DATED|[Oo]n|ON)?{GAP}*\d[\d/.: -]{{3,20}}(?:[AP]M)?)?"
_TITLE_COLON, _TITLE_END = (
    re.compile(rf"{_DATE}{_COLON.pattern}(?:{_DATE}{GAP}*(?=\n))?"),
    re.compile(_DATE + _END.pattern),
)
_ORNAMENTS = re.compile(ORNAMENTS)
_TEXT = re.compile(rf"(?={GAP}+(?:[A-ZÀ-Þ]?[a-zß-ÿ]|[A-ZÀ-Þ] [a-zß-ÿ]|#?\d|_))")
_BLANK = re.compile(GAP)
_ANY = re.compile("")


class _Rule(NamedTuple):
    """A name in one of these contexts, followed by this and written so, is a header."""

    contexts: tuple[str, ...]
    after: re.Pattern
    written: Literal["any", "capital", "capitals", "Chinese"]


_LINE = ("paragraph", "wrapped", "line")
_INSIDE = ("next", "sentence")
_ON_A_LINE = (
    _Rule(_LINE, _COLON, "any"),
    _Rule(_LINE, _BRACKET, "any"),
    _Rule(("paragraph", "line"), _END, "any"),
    _Rule(("wrapped",), _END, "capital"),
    _Rule(("paragraph", "line"), _SPACED_DASH, "any"),
    _Rule(_LINE, _BOLD, "any"),
    _Rule(_LINE, _DASH, "capital"),
    _Rule(_LINE, _TEXT, "capitals"),
    _Rule(_LINE, _BLANK, "Chinese"),
)
_IN_A_PARAGRAPH = (
    _Rule(_INSIDE, _COLON, "any"),
    _Rule(("word", "glued"), _COLON, "capital"),
    _Rule(_INSIDE, _TEXT, "capitals"),
    _Rule(("sentence",), _END, "capitals"),
    _Rule(("sentence",), _COMMA, "capitals"),
    _Rule(_INSIDE, _BOLD, "any"),
    _Rule(_INSIDE, _BRACKET, "Chinese"),
    _Rule(_INSIDE, _BLANK, "Chinese"),
)
_RULES: dict[Reach, tuple[_Rule, ...]] = {
    "line": _ON_A_LINE,
    "sign-off": (_Rule((*_LINE, *_INSIDE), _ANY, "any"),),
    "anywhere": _ON_A_LINE + _IN_A_PARAGRAPH,
}
_LONGER = {"line": _LINE, "anywhere": _LINE + _INSIDE}  # reach -> contexts of HISTORY OF PRESENT COMPLAINT:
KEPT = ("findings", "body", "both", "impression")


class Found(NamedTuple):
    section: str
    describes: Describes
    start: int  # of the header's ornaments, where the section before it ends
    end: int  # where its text begins


def find_headers(text: str, table: Headers) -> tuple[list[Found], bool]:
    """Every header, in order, and whether the Findings or the Impression contain a name that is no header."""
    folded = fold(text)
    found: list[Found] = []
    position, last_end, names_left = 0, 0, False
    while match := table.name.search(folded, position):
        context, start = _context(text, match.start(), last_end)
        header = table.named(match[0])
        assert header is not None, match[0]
        end = _header_end(text, folded, match.span(), context, header, table)
        if end is None:
            position = match.start() + 1  # it may hold one: "see findings and Impression:"
            names_left = names_left or not found or found[-1].section in KEPT
        else:
            position = last_end = end
            found.append(Found(header.section, header.describes, start, end))
    return _with_titles(text, folded, found, table), names_left


def _header_end(
    text: str, folded: str, span: tuple[int, int], context: str, header: Header, table: Headers
) -> int | None:
    """Where the text of a header begins; None if the name is no header."""
    name = text[slice(*span)]
    joined = table.joined.match(folded, span[1])
    end = joined.end() if joined else span[1]
    for rule in _RULES[header.reach]:
        if context in rule.contexts and _is_written(name, rule.written) and (after := rule.after.match(text, end)):
            return after.end()
    if header.describes == "never" and context in _LONGER.get(header.reach, ()) and _is_written(name, "capital"):
        longer = table.longer.match(text, end)
        colon = longer and _COLON.match(text, longer.end())
        return colon and colon.end()
    return None


def _with_titles(text: str, folded: str, found: list[Found], table: Headers) -> list[Found]:
    """The headers with the names of examinations ("PORTABLE AP CHEST:"), which open Findings that have no header.

    A title that directly follows another header, or is inside the Findings, is text of that section. So are the titles
    of an Impression that begins with one.
    """
    merged: list[Found] = []
    later = found[::-1]
    for line_end, start in _title_lines(folded, table):
        while later and later[-1].start <= start:
            merged.append(later.pop())
        before = merged[-1] if merged else None
        title = table.title.match(folded, start)
        if not title or (before and before.end > start) or (later and later[-1].start < title.end()):
            continue
        end = _title_end(text, title, before)
        if end is not None and (before is None or _opens(folded, title, before, table)):
            merged.append(Found("body", "yes", line_end - (text[line_end - 1 : line_end] == ","), end))
    return merged + later[::-1]


def _title_lines(folded: str, table: Headers) -> Iterator[tuple[int, int]]:
    """Start of each line that may begin with the name of an examination, and of the name in it."""
    first = _ORNAMENTS.match(folded)
    yield 0, first.end() if first else 0
    yield from ((line.start() + 1, line.end()) for line in table.title_line.finditer(folded))


def _title_end(text: str, title: re.Match[str], before: Found | None) -> int | None:
    """Where the text after the name of an examination begins; None if it is none."""
    name = text[title.start() : title.end()].lstrip("0123456789 -")
    # "Chest: clear" alone is a part of the Findings, and "Chest CT: May 4" of a comparison.
    listed = " " not in name.strip() or (before is not None and before.section == "comparison")
    if (colon := _TITLE_COLON.match(text, title.end())) and _is_written(name, "capitals" if listed else "capital"):
        return colon.end()
    end = _TITLE_END.match(text, title.end()) or _COMMA.match(text, title.end())
    return end.end() if end and _is_written(name, "capitals" if before else "capital") else None


def _opens(folded: str, title: re.Match[str], before: Found, table: Headers) -> bool:
    """Whether the name of an examination opens a section after this header."""
    if before.section in ("findings", "both"):
        return False
    so_far = folded[before.end : min(title.start(), before.end + SHOWN)].strip(" \t\r\n,*#_-")
    if before.section == "body":  # another region of the same reading, or another reading of the same region
        regions = [{*table.region.findall(part)} for part in (folded[before.start : before.end], title[0])]
        return not so_far or bool(regions[0] & regions[1])
    divided = before.section == "impression" and table.title.match(so_far)
    return before.section == "final report" or bool(so_far and not divided)


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
    chinese = name[0] >= "\u2e80"
    if how == "Chinese":
        return chinese
    return name.isupper() if how == "capitals" else chinese or name[0].isupper()
