"""What a report says of other parts of the body, and of other people (lexicons/bodies.toml)."""

import re
from functools import cache

from radflow.rewards.memory import remember
from radflow.rewards.rules.patterns import read_patterns

_REACH = 80  # characters


def without_other_sections(text: str) -> str:
    """A text without its sections about other parts of the body: from a header such as "LEFT KNEE:" to the next."""
    patterns, pieces, cursor = _patterns(), [], 0
    while header := patterns["header"].search(text, cursor):
        pieces.append(text[cursor : header.start()])
        end = patterns["end"].search(text, header.end())
        cursor = end.start() if end else len(text)
    return "".join([*pieces, text[cursor:]])


@remember
def is_elsewhere(sentence: str) -> bool:
    """The sentence is about another part of the body and no part of the chest, or about a relative."""
    patterns = _patterns()
    if patterns["body"].search(sentence) and not patterns["chest"].search(sentence):
        return True
    return patterns["family"].search(sentence) is not None


def is_of_another_organ(sentence: str, start: int, end: int) -> bool:
    """sentence[start:end] is of another organ by the words next to it: "small bowel edema", "mass in the kidney"."""
    before, after = sentence[max(0, start - _REACH) : start], sentence[end : end + _REACH]
    return _patterns()["before"].search(before) is not None or _patterns()["after"].match(after) is not None


@cache
def _patterns() -> dict[str, re.Pattern[str]]:
    file = read_patterns("bodies")
    forms = {"header": "{}", "end": "{}", "before": r"\b(?:{})\Z", "after": "{}"}
    rows = file.content["elsewhere"].items()
    return {name: file.compile(words, f"elsewhere.{name}", forms.get(name, r"\b(?:{})\b")) for name, words in rows}
