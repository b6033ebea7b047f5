"""`evaluate.py label`: label reports by rules."""

import io
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm
from tyro.conf import Positional

from capo.journal import write_whole
from radflow.data.sections import SectionParser
from radflow.rewards.rules.chexpert_rules import ChexpertRules
from radflow.rewards.rules.consistency import ConsistencyRules
from radflow.rewards.rules.criticality import CriticalityRules

Scalar = str | int | float | bool | None
WHOLE = ("report", "text")
SECTIONS = ("findings", "impression")


@dataclass(frozen=True)
class Report:
    """One input line."""

    id: Scalar
    text: str
    findings: str
    impression: str  # both empty if the report came whole


def read_report(line: str, where: str) -> Report:
    """Parse one line; ValueError, beginning with `where`, if it is no JSON object with an id and a report."""
    try:
        content = json.loads(line, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: expected one JSON object per line, got {line.strip()[:60]!r} ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{where}: expected a JSON object, got {type(content).__name__}")
    if "id" not in content or isinstance(content["id"], dict | list):
        got = f"{content['id']!r}"[:60] if "id" in content else f"the keys {sorted(content)}"
        raise ValueError(f"{where}: expected an id that is a string, a number, true, false or null, got {got}")
    given = {key: content[key] for key in (*WHOLE, *SECTIONS) if content.get(key) is not None}
    for key, text in given.items():
        if not isinstance(text, str):
            raise ValueError(f"{where}: expected {key} to be a string or null, got {text!r:.60}")
    if not given:
        expected = "the report under report or text, or findings and impression"
        raise ValueError(f"{where}: expected {expected}, got the keys {sorted(content)}")
    sections = {key: given.get(key, "") for key in SECTIONS}
    whole = next((given[key] for key in WHOLE if key in given), None)
    if whole is None:
        whole = "\n\n".join(f"{key.capitalize()}: {text}" for key, text in sections.items() if text.strip())
    return Report(content["id"], whole, **sections)


def read_reports(lines: Iterable[bytes], name: str) -> list[Report]:
    """Parse all lines of a file in UTF-8; the first wrong one raises."""
    reports = []
    for number, raw in enumerate(lines, start=1):
        where = f"{name}:{number}"
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{where}: expected text in UTF-8, got byte {raw[error.start]:#04x}") from error
        if line.strip():
            reports.append(read_report(line, where))
    return reports


def label_reports(reports: Iterable[Report], parse: SectionParser) -> Iterator[dict[str, object]]:
    """Labels, criticality and consistency of each report as one JSON-able object."""
    labeler = ChexpertRules(parse)
    judge_criticality, judge_consistency = CriticalityRules(labeler), ConsistencyRules(labeler)
    for report in reports:
        (judged,) = judge_criticality([report.text])
        found: dict[str, object] = {"id": report.id, "labels": labeler.values(report.text), "critical": judged.critical}
        if report.findings.strip() and report.impression.strip():
            (agreed,) = judge_consistency([report.findings], [report.impression])
            found["consistent"] = agreed > 0
        yield found


def label(reports: Positional[str], out: str = "-", headers: Path | None = None) -> None:
    """Label the reports of a file by rules.

    Input: JSON lines, each an object with `id` (any string, number, true, false or null) and the report, whole under
    `report` or `text`, or as `findings` and `impression`, or one of them. Other keys are ignored, and so are blank
    lines.

    Output: for each input line, in order, one object with `id`; `labels`, the 14 CheXpert labels with 1 (present), 0
    (denied), -1 (uncertain) or null (not mentioned); `critical`, true if anything abnormal is asserted; and, if
    findings and impression are both given, `consistent`, true if they agree. docs/labeler.md says how well.

    Args:
        reports: JSON lines; - reads standard input.
        out: JSON lines; - writes standard output.
        headers: TOML file with further headers of reports, as `data.headers` of a run.
    """
    parse = SectionParser(headers)
    content = sys.stdin.buffer.read() if reports == "-" else Path(reports).read_bytes()
    read = read_reports(io.BytesIO(content), reports)
    if out != "-" and not Path(out).parent.is_dir():  # before the work, not after it
        raise ValueError(f"{out}: expected an existing folder, got none at {Path(out).parent}; create it")
    labels = label_reports(tqdm(read, desc="label", unit="report", disable=None), parse)
    written = "".join(json.dumps(found) + "\n" for found in labels)
    if out == "-":
        sys.stdout.write(written)
    else:
        write_whole(Path(out), written)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
