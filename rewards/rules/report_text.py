"""The parts of a report that describe the examination, without indication, comparison and technique."""

import re

# A header is at the beginning, on a new line or after a sentence, and ends in a colon; or it fills its line.
_ASIDE = (
    r"(?:clinical |reason for |brief )?(?:indications?|history|information|exam\w*|stud(?:y|ies)|request)"
    r"(?: for (?:exam\w*|stud(?:y|ies)))?|comparisons?(?: exam\w*)?|techniques?|procedure|type of exam\w*|views?"
    r"|clinical"
    r"|(?:final )?examination|exam date|date|notification|recommendations?|signed|dictated|wet read by"
    r"|history and indication"
)
_TOLD = (
    r"findings?(?: and impressions?)?|impressions?|conclusions?|opinion|addendum|report"
    r"|results?|wet read|interpretation|final report"
)
_NAME = rf"(?:(?P<aside>{_ASIDE})|(?P<told>{_TOLD}))"
_HEADER = re.compile(
    rf"(?:\A|\n|(?<=[.!?;]) )(?:[#*_]+\s*)?{_NAME}(?:\s*(?:[*_]+\s*)?:(?:[*_]+)?|[*_]*(?=\n|\Z))", re.IGNORECASE
)


# How far an aside goes, by whether headers announce the report itself.
_PARAGRAPH = {
    True: re.compile(r"\A.*?(?:\n\n|\Z)", re.DOTALL),
    False: re.compile(r"\A.*?(?:(?<=[.!?])\s|\n\n|\Z)", re.DOTALL),
}


def tidy(text: str) -> str:
    """Single spaces, no spaces around line ends, at most one empty line at a time.

    Patterns that skip white space themselves would take quadratic time on a text of nothing but line ends.
    """
    lines = [" ".join(line.split()) for line in text.splitlines()]
    kept = [line for number, line in enumerate(lines) if line or (number and lines[number - 1])]
    return "\n".join(kept)


def examination(text: str) -> str:
    """The text without headers and without the sections that do not describe this examination.

    Such a section ends at the next header or empty line. If no header announces findings or an impression, it ends
    with its first sentence: what follows "Comparison: None." is the report.
    """
    text = tidy(text)
    matches = [*_HEADER.finditer(text)]
    if not matches:
        return text
    announced = any(match["told"] for match in matches)
    parts = [text[: matches[0].start()]]
    for number, match in enumerate(matches):
        end = matches[number + 1].start() if number + 1 < len(matches) else len(text)
        body = text[match.end() : end].strip()
        parts.append(body if match["told"] else _PARAGRAPH[announced].sub("", body, count=1))
    return "\n\n".join(part.strip() for part in parts if part.strip())
