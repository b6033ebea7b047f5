# ruff: noqa: RUF001 - full-width punctuation and the long s are meant
"""Deterministic section parser: report text -> Findings, Impression and the rest (paper 4.2, parser rule)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import Literal

from radflow.data.header_search import KEPT, REACH, RULE, Found, find_headers
from radflow.data.header_table import GAP, Headers, key, load_headers
from radflow.data.markup import plain_text

Status = Literal["ok", "missing_findings", "missing_impression", "ambiguous"]


@dataclass(frozen=True)
class Sections:
    """Parts of a report; all but `described` are substrings of its plain text without surrounding white space."""

    findings: str
    impression: str
    status: Status
    described: str
    """All text that describes this examination, without headers: no history, comparison, technique, preliminary reading
    that a final one replaces, discussion or recommendation. Its parts are separated by empty lines."""
    other: dict[str, str] = field(default_factory=dict)

    @property
    def undivided(self) -> bool:
        """Whether it describes the examination without Findings and Impression."""
        return bool(self.described) and not (self.findings or self.impression)


_MARKER = re.compile(r"(?<=[.!?:;])(?:\s+\d{1,2}[.)]){1,3}\Z", re.ASCII)  # "2." of "Clear. 2. Impression: Normal."
# How far a section about something else than this examination reaches, if no header ends it. A paragraph ends before
# "LUNGS:" too, a comparison or technique also with a line that ends a sentence, or with its answer "None".
_PARAGRAPH_END = rf"\n{GAP}*(?:\n|(?=[A-ZÀ-Þ][A-Za-zÀ-ÿ ,/&-]{{1,40}}:))"
_ANSWER = "none|nil|n/?a|not available|unavailable|no (?:prior|previous)|ningun|no hay|keine|aucun|pas d|nenhum|无"
_PARAGRAPH = re.compile(rf".*?(?:{_PARAGRAPH_END}|\Z)", re.DOTALL)
_LINE_OF_IT = re.compile(
    rf"(?i:{_ANSWER})[^.\n]*(?:\.(?=\s)|\n|\Z)|.*?(?:(?<=[.!?。]){GAP}*\n|{_PARAGRAPH_END}|\Z)", re.DOTALL
)
_SENTENCE = re.compile(rf".*?(?:(?<=[.!?])\s|[。！？]|{_PARAGRAPH_END}|\Z)", re.DOTALL)
_EXAMINATION = re.compile(rf"[^\n]*\n(?={GAP}*[A-ZÀ-Þ][a-zß-ÿ]+ +[a-zß-ÿ])|{_LINE_OF_IT.pattern}", re.DOTALL)
_ASIDE = {"comparison": _LINE_OF_IT, "technique": _LINE_OF_IT, "examination": _EXAMINATION}

# Last lines that are no text of the report: initials, dates, a physician; and the keywords that some tables append.
_CLOSING = re.compile(
    rf"{GAP}*(?:{RULE}*|[A-Z]{{2,4}}[/:][A-Za-z]{{2,4}}"
    r"|(?:Dr|Dra|Prof|PD)\b\.?(?: (?:med|univ)\b\.?)*(?: [A-ZÀ-Þ][\w.'-]*){1,4}"
    r"|[A-Z][\w ]{0,30}[Rr]adi[oó]log(?:ist|ista|ue|e|in)"
    r"|(?:[DTR][DT]?[: ]+)?[\d_/.:, -]{6,20}(?:[AP]\.?M\.?)?(?:\s+[DT]: [\d_/.:, -]{6,20})?"
    rf"|[^\n.:]{{0,20}}[^\n:]{{3,30}}, ?(?:M\.?D|D\.?O|M\.?B\.?B\.?S|F\.?R\.?C\.?R|Ph\.?D)\.?){GAP}*"
)
_RULE_LINE = re.compile(r"\s*(?:[-–—=*~#]{3,}|_{4,})")
_GLUED = re.compile(r"(?<=[.!?]),?(?=[a-z])|,(?=[a-z])")
_KEYWORD = r"(?!(?:no|not|and|or|with|without) )[a-z0-9][^.!?:;\n,]{0,60}"
_KEYWORDS = re.compile(rf",?{_KEYWORD}(?:,{{1,3}} ?{_KEYWORD}){{3,}}[, ]*")


@dataclass(frozen=True)
class SectionParser:
    """Splits a report at its headers; never raises over a text, in time proportional to it.

    A section that occurs twice, one header for both, or an Impression before the Findings is ambiguous. So is a report
    whose sections, written out again, are parsed differently. A header without text is a missing section. FINAL REPORT
    discards the findings and impression before it, a preliminary reading, unless nothing follows it. Findings without a
    header follow the name of the examination, REPORT, or the end of what a comparison, technique or indication says.
    """

    headers: Path | None = None
    """TOML file with further [[header]] rows, as in words/headers."""

    def __call__(self, text: str) -> Sections:
        table = load_headers(self.headers)
        sections, names_left = _split(plain_text(text, table.named), table)
        if sections.status == "ok" and (names_left or _names_impression(sections.findings, table)):
            again, _ = _split(render_report(sections.findings, sections.impression), table)
            if (again.findings, again.impression) != (sections.findings, sections.impression):
                return replace(sections, status="ambiguous")
        return sections


parse_sections = SectionParser()


def render_report(findings: str, impression: str) -> str:
    """A report as the model is taught to write it, and as metrics read it (ReXrank's order and headers)."""
    return f"Findings: {findings} Impression: {impression}"


def _names_impression(findings: str, table: Headers) -> bool:
    """Whether the last words of the Findings and the header written after them are one name: END OF IMPRESSION."""
    return key(findings[-REACH:]).endswith(table.before_impression)


def _split(text: str, table: Headers) -> tuple[Sections, bool]:
    """The sections, and whether their texts may hold names of headers."""
    text = text[: _end_of_text(text)]
    headers, names_left = find_headers(text, table)
    starts = [*(header.start for header in headers), len(text)]
    parts = [(header, _body(text[header.end : end])) for header, end in zip(headers, starts[1:], strict=True)]
    described = [i for i, (header, body) in enumerate(parts) if body and header.describes != "never"]
    bodies: dict[str, list[tuple[int, str]]] = {}
    for i, (header, body) in enumerate(parts):
        if header.section == "final report" and described and i <= described[-1]:
            bodies = {name: found for name, found in bodies.items() if name not in KEPT}
        elif body and header.section != "final report":
            bodies.setdefault(header.section, []).append((header.start, body))
    unnamed = bodies.pop("body", [])
    announced = bool(unnamed or bodies.keys() & {"findings", "both"})
    if not bodies.keys() & {"findings", "both"} and (unnamed := unnamed or _findings_without_header(text, parts)):
        bodies["findings"] = unnamed
    status = _status(bodies)
    first = {name: found[0][1] for name, found in bodies.items()}
    untitled = Found("", "yes", 0, 0), text[: starts[0]].strip()
    told = _described([untitled, *parts], announced)
    sections = Sections(first.pop("findings", ""), first.pop("impression", ""), status, told, first)
    return sections, names_left or not announced


def _body(text: str) -> str:
    """The text of a section, without the rule or number that leads to the next header."""
    text = text.strip()
    while (lines := text.rpartition("\n"))[0] and _RULE_LINE.fullmatch(lines[2]):
        text = lines[0].rstrip()
    return _MARKER.sub("", text) if text[-2:-1].isdigit() else text


def _end_of_text(text: str) -> int:
    """Where the lines that close a report begin."""
    end = len(text.rstrip())
    while (start := text.rfind("\n", 0, end)) > 0 and _CLOSING.fullmatch(text, start + 1, end):
        end = start
    last = max(text.rfind(mark, 0, end) for mark in ".!?\n") + 1
    if glued := _GLUED.search(text, last, end):
        return glued.start() if _KEYWORDS.fullmatch(text, glued.start(), end) else end
    return end


def _findings_without_header(text: str, parts: Sequence[tuple[Found, str]]) -> list[tuple[int, str]]:
    """The text after the last section before the Impression that is about something else; else sentences that end with
    a line before the Impression."""
    before = list(takewhile(lambda part: part[0].section != "impression", parts))
    for header, body in reversed(before):
        rest = _rest(header, body) if header.describes == "never" else body
        if rest and header.section not in ("addendum", "wet read", "summary"):
            return [(header.end, rest)]
    opening = text[: parts[0][0].start] if parts and not before else ""
    return [(0, opening.strip())] if re.search(rf"[.!?。]{GAP}*\n\s*\Z", opening) else []


def _rest(header: Found, body: str) -> str:
    """What follows the text of a section about something else, if no header does."""
    return _ASIDE.get(header.section, _PARAGRAPH).sub("", body, count=1).strip()


def _after_a_sentence(header: Found, body: str) -> str:
    return _SENTENCE.sub("", body, count=1).strip()


def _nothing(header: Found, body: str) -> str:
    return ""


def _described(parts: Sequence[tuple[Found, str]], announced: bool) -> str:
    """The text that describes the examination.

    A section about something else reaches to the next header if the Findings are announced; else it is one paragraph,
    for Findings without a header follow it. If nothing is left then, it is one sentence: what follows
    "Comparison: None." is the report.
    """
    for rest in (_nothing, _rest, _after_a_sentence)[not announced :]:
        told = [(header, body if header.describes != "never" else rest(header, body)) for header, body in parts]
        if described := "\n\n".join(_without_preliminary(told)):
            return described
    return ""


def _without_preliminary(told: Sequence[tuple[Found, str]]) -> list[str]:
    """Those texts that no final reading replaces. The first has no header, and replaces nothing."""
    final = max((i for i, (header, _) in enumerate(told) if header.section == "final report"), default=0)
    after = told[max(final, 1) :]
    replacing = {"yes", "never"} if final else {"yes"}
    replaced = any(text and header.describes in replacing for header, text in after)
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
