"""Label reports by rules: python -m rewards.label reports.jsonl --out labels.jsonl

Input: JSON lines, each an object with `id` (any string, number, true, false or null) and the report, whole under
`report` or `text`, or as `findings` and `impression`, or one of them. Other keys are ignored, and so are blank lines.

Output: for each input line, in order, one object with `id`; `labels`, the 14 CheXpert labels with 1 (present), 0
(denied), -1 (uncertain) or null (not mentioned); `critical`, true where anything abnormal is asserted; and, where
findings and impression are both given, `consistent`, true where they agree. docs/labeler.md says how well.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from rewards.chexpert_rules import ChexpertRules, label_report
from rewards.consistency import ConsistencyRules
from rewards.criticality import CriticalityRules

Scalar = str | int | float | bool | None
WHOLE = ("report", "text")
SECTIONS = ("findings", "impression")


@dataclass(frozen=True)
class Report:
    """One input line."""

    id: Scalar
    text: str
    findings: str
    impression: str  # both empty where the report came whole


def read_report(line: str, where: str) -> Report:
    """Parse one line.

    Raises:
        ValueError: it is no JSON object with an id and a report; the message begins with `where`.
    """
    try:
        content = json.loads(line, parse_constant=_refuse)
    except ValueError as error:
        raise ValueError(f"{where}: expected one JSON object a line, got {line.strip()[:60]!r} ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{where}: expected a JSON object, got {type(content).__name__}")
    if "id" not in content or isinstance(content["id"], dict | list):
        got = f"{content['id']!r}"[:60] if "id" in content else f"the keys {sorted(content)}"
        raise ValueError(f"{where}: expected an id that is a string, a number, true, false or null, got {got}")
    given = {}
    for key in (*WHOLE, *SECTIONS):
        if key in content and content[key] is not None:
            if not isinstance(content[key], str):
                raise ValueError(f"{where}: expected {key} to be a string or null, got {content[key]!r:.60}")
            given[key] = content[key]
    if not given:
        raise ValueError(
            f"{where}: expected the report under report or text, or findings and impression, got the keys "
            f"{sorted(content)}"
        )
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


class RuleLabels:
    """Labels, criticality and consistency of a report as one JSON-able object."""

    def __init__(self) -> None:
        labeler = ChexpertRules()
        self._critical, self._judge = CriticalityRules(labeler), ConsistencyRules(labeler)

    def __call__(self, report: Report) -> dict[str, object]:
        (criticality,) = self._critical([report.text])
        found = {"id": report.id, "labels": label_report(report.text), "critical": criticality.critical}
        if report.findings.strip() and report.impression.strip():
            (agreed,) = self._judge([report.findings], [report.impression])
            found["consistent"] = agreed > 0
        return found


def main(arguments: Sequence[str] | None = None) -> None:
    summary, _, rest = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m rewards.label",
        description=summary,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("reports", help="JSON lines; - reads standard input")
    parser.add_argument("--out", default="-", help="JSON lines; - (the default) writes standard output")
    options = parser.parse_args(arguments)
    try:
        with _opened(options.reports) as lines:
            reports = read_reports(lines, options.reports)
        _check_folder(options.out)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    label = RuleLabels()
    bar = tqdm(reports, desc="label", unit="report", disable=None)
    _write("".join(json.dumps(label(report)) + "\n" for report in bar), options.out)


@contextmanager
def _opened(path: str):
    if path == "-":
        yield sys.stdin.buffer
        return
    with open(path, "rb") as file:
        yield file


def _check_folder(out: str) -> None:
    # before the work, not after it
    if out != "-" and not Path(out).parent.is_dir():
        raise ValueError(f"{out}: expected an existing folder, got none at {Path(out).parent}; create it")


def _write(content: str, out: str) -> None:
    """All of it or nothing: a file under its name is complete."""
    if out == "-":
        sys.stdout.buffer.write(content.encode("utf-8"))
        sys.stdout.buffer.flush()
        return
    temporary = Path(f"{out}.{os.getpid()}.part")
    temporary.write_bytes(content.encode("utf-8"))
    os.replace(temporary, out)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


if __name__ == "__main__":
    main()
