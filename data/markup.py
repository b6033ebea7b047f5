"""Plain text of a report that is stored as HTML, as tagged sections (XML or JSON), or with other line ends."""

import json
import re
from collections.abc import Callable, Iterator
from html import unescape
from typing import Any

_JSON = re.compile(r"\s*(?:```\w*\s*)?(?=\{|\[\s*\{)")
_TAGGED = re.compile(r"</[A-Za-z]|<(?:br|p|hr|li|div)\b[^<>]*>|&(?:#x?[0-9A-Fa-f]+|[A-Za-z]\w{1,15});", re.IGNORECASE)
_BLOCKS = frozenset("br p div hr li ul ol table tr td th section article pre h1 h2 h3 h4 h5 h6 dt dd".split())  # noqa: SIM905
_TAG = re.compile(
    r"<!--[^<>]*+-->|<[!?][^<>]*+>"
    r"|<(?P<close>/?)(?P<name>[A-Za-z][\w.:-]*+)(?:\s(?:(?:[Ll]abel|name|title)=[\"'](?P<label>[^<>\"']*+)|[^<>])*+)?/?>"
)
_WHOLE = re.compile(r"<([A-Za-z]\w*+)(?:\s[^<>]*+)?>([^<>]{1,80})</\1>(?:\s{0,5}:)?")  # <td>Findings</td>
_LINE_END = re.compile(r"\r\n?|\\r\\n|\\n|[\v\f\x85\u2028\u2029]")

IsHeader = Callable[[str], Any]


def plain_text(text: str, is_header: IsHeader) -> str:
    """The text without markup; the same text if it has none.

    An element (or its label, name or title) or a JSON key that is named as a header opens a line "NAME:". Text outside
    of such elements is then no part of the report. Never raises.
    """
    if text[:1] == "\ufeff":
        text = text[1:]
    if start := _JSON.match(text):
        text = _of_json(text[start.end() :].rstrip().removesuffix("```"), text, is_header)
    if ("<" in text or "&" in text) and _TAGGED.search(text):
        text = _of_tags(text, is_header)
    has_lines = "\n" in text or (text.isprintable() and "\\" not in text)
    return text if has_lines else _LINE_END.sub("\n", text)


def _of_json(content: str, text: str, is_header: IsHeader) -> str:
    """The texts of an object or a list of objects; the text as it is if it holds no JSON."""
    try:
        values = list(_values(json.loads(content)))
    except (ValueError, RecursionError):
        return text
    named = [(name, value) for name, value in values if is_header(name)]
    if named:
        return "\n\n".join(f"{name}:\n{value}" for name, value in named)
    return "\n\n".join(value for _, value in values)


def _values(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Names and texts, in order; texts of a list are lines of one."""
    if isinstance(value, dict):
        for inner, part in value.items():
            yield from _values(part, _spaced(inner))
    elif isinstance(value, list) and all(isinstance(part, str) for part in value):
        yield name, "\n".join(value)
    elif isinstance(value, list):
        for part in value:
            yield from _values(part, name)
    elif isinstance(value, str):
        yield name, value


def _spaced(name: str) -> str:
    """clinical_history and clinicalHistory as words."""
    return re.sub(r"[_-]+|(?<=[a-z])(?=[A-Z])", " ", name)


def _of_tags(text: str, is_header: IsHeader) -> str:
    """Regular expressions instead of a parser: html.parser takes a minute for 20,000 unclosed tags."""

    def titled(whole: re.Match[str]) -> str:
        return f"\n\n{named}:\n" if is_header(named := unescape(whole[2]).strip(" \t\n:\xa0")) else whole[0]

    text = _WHOLE.sub(titled, text)
    outside: list[str] = []
    sections: list[list[str]] = []
    opened: list[tuple[str, list[str]]] = [("", outside)]  # elements around what is read, and where their text goes
    end = 0
    for tag in _TAG.finditer(text):
        opened[-1][1].append(text[end : tag.start()])
        end = tag.end()
        name, names = (tag["name"] or "").lower(), [_spaced(tag["name"] or ""), tag["label"] or ""]
        if not tag["close"] and (header := next(filter(is_header, names), None)):
            sections.append([f"\n\n{header.upper()}:\n"])
            opened.append((name, sections[-1]))
        elif tag["close"] and opened[-1][0] == name:
            opened.pop()
        elif name in _BLOCKS:
            opened[-1][1].append("\n")
    opened[-1][1].append(text[end:])
    return unescape("".join(part for section in sections or [outside] for part in section))
