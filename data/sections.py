"""Deterministic section parser: report text -> Findings, Impression and the rest (paper 4.2, parser rule)."""

import re
from dataclasses import dataclass, field
from typing import Literal

Status = Literal["ok", "missing_findings", "missing_impression", "ambiguous"]

# Header as written -> section. Longer headers come first, so that none is cut short by its own beginning.
HEADERS = {
    "findings and impression": "both",
    "clinical information": "indication",
    "clinical indication": "indication",
    "clinical history": "indication",
    "reason for exam": "indication",
    "impressions": "impression",
    "conclusions": "impression",
    "conclusion": "impression",
    "indication": "indication",
    "impression": "impression",
    "comparison": "comparison",
    "technique": "technique",
    "findings": "findings",
    "finding": "findings",
    "opinion": "impression",
    "history": "indication",
    "addendum": "addendum",
    "wet read": "wet read",
}
_NAME = "(?i:" + "|".join(sorted(map(re.escape, HEADERS), key=len, reverse=True)) + ")"
_OPEN = r"(?:\d+[.)]\s*|#+\s*)?(?:\*\*|__)?"
_COLON = r"\s*(?:(?:\*\*|__)\s*:|:\s*(?:\*\*|__)?)"
_HEADER = re.compile(
    # followed by a colon: at the start of a line or after a sentence in any case, elsewhere only with a capital
    # (one way only to match a run of empty lines: several would take time quadratic in its length)
    rf"(?:(?:\A\s*|\n[^\S\n]*|(?<=[.!?:;)])\s+){_OPEN}(?P<start>{_NAME})|(?<=\s)(?=[A-Z])(?P<inline>{_NAME})){_COLON}"
    # or alone on its line
    rf"|(?:\A|\n)[ \t]*{_OPEN}(?P<alone>{_NAME})(?:\*\*|__)?[ \t]*(?=\n|\Z)"
)


@dataclass(frozen=True)
class Sections:
    """Parts of a report, each a substring of its text without surrounding white space."""

    findings: str
    impression: str
    status: Status
    other: dict[str, str] = field(default_factory=dict)


def parse_sections(text: str) -> Sections:
    """Split a report at its headers; never raises.

    A section that occurs twice, one header for both, or an Impression before the Findings is ambiguous: which text was
    meant is anybody's guess. A header with nothing behind it is a missing section.
    """
    found: dict[str, list[tuple[int, str]]] = {}
    matches = list(_HEADER.finditer(text))
    for number, match in enumerate(matches):
        end = matches[number + 1].start() if number + 1 < len(matches) else len(text)
        body = text[match.end() : end].strip()
        name = next(filter(None, match.group("start", "inline", "alone")))
        found.setdefault(HEADERS[name.lower()], []).append((match.start(), body))
    bodies = {name: [body for _, body in parts if body] for name, parts in found.items()}
    first = {name: values[0] if values else "" for name, values in bodies.items()}
    findings, impression = first.pop("findings", ""), first.pop("impression", "")
    return Sections(findings, impression, _status(found, bodies), first)


def _status(found: dict[str, list[tuple[int, str]]], bodies: dict[str, list[str]]) -> Status:
    if "both" in found or any(len(bodies.get(name, [])) > 1 for name in ("findings", "impression")):
        return "ambiguous"
    if not bodies.get("findings"):
        return "missing_findings"
    if not bodies.get("impression"):
        return "missing_impression"
    return "ambiguous" if found["impression"][0][0] < found["findings"][0][0] else "ok"
