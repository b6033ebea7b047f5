"""Which parts of a report describe the examination: an indication asks, a comparison names another day."""

import re

# A header stands at the beginning, on a new line or after a sentence, and ends in a colon; or it fills its line.
_ASIDE = (
    r"(?:clinical |reason for |brief )?(?:indications?|history|information|exam\w*|stud(?:y|ies)|request)"
    r"(?: for (?:exam\w*|stud(?:y|ies)))?|comparisons?(?: exam\w*)?|techniques?|procedure|type of exam\w*|views?|clinical"
    r"|(?:final )?examination|exam date|date|notification|recommendations?|signed|dictated|wet read by|history and indication"
)
_TOLD = r"findings?(?: and impressions?)?|impressions?|conclusions?|opinion|addendum|report|results?|wet read|interpretation|final report"
_HEADER = re.compile(
    rf"(?:\A\s*|\n\s*|(?<=[.!?;])\s+)(?:[#*_]+\s*)?(?:(?P<aside>{_ASIDE})|(?P<told>{_TOLD}))\s*(?:[*_]+\s*)?:(?:[*_]+)?",
    re.IGNORECASE,
)


def examination(text: str) -> str:
    """The text without its headers, and without the sections that are about something else than this examination."""
    matches = [*_HEADER.finditer(text)]
    if not matches:
        return text
    parts = [text[: matches[0].start()]]
    for number, match in enumerate(matches):
        end = matches[number + 1].start() if number + 1 < len(matches) else len(text)
        if match["told"]:
            parts.append(text[match.end() : end])
    return "\n\n".join(part.strip() for part in parts if part.strip())
