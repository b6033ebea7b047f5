"""The rule labeler, criticality and consistency against the manual coding of real reports: tables and kinds of errors.

python benchmarks/labeler.py                  # both halves; writes results/labeler.csv
python benchmarks/labeler.py --half first     # the half that the rules may be changed for
"""

import argparse
import csv
import json
import os
import random
import re
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import table, write
from tqdm import tqdm

from radflow.data.sections import parse_sections
from radflow.evaluation.label import Report as Input
from radflow.evaluation.label import label_reports
from radflow.rewards.rules.chexpert_rules import LABELS, ChexpertRules
from radflow.rewards.rules.consistency import ConsistencyRules
from radflow.rewards.rules.criticality import CriticalityRules

RULES = ChexpertRules(parse_sections)
UNCODED = "No Indexing"  # not coded: neither normal nor abnormal

# MeSH heading -> label. A heading after "qualifier:" counts only with one of its qualifiers.
SAYS = {
    "Cardiomegaly": {"cardiomegaly", "cardiac shadow:enlarged"},
    "Lung Opacity": {"opacity", "infiltrate", "airspace disease", "density:lung"},
    "Lung Lesion": {"nodule", "mass", "granuloma", "calcified granuloma", "cavitation"},
    "Edema": {"pulmonary edema", "pulmonary congestion", "heart failure"},
    "Consolidation": {"consolidation"},
    "Pneumonia": {"pneumonia"},
    "Atelectasis": {"pulmonary atelectasis", "volume loss"},
    "Pneumothorax": {"pneumothorax", "hydropneumothorax", "hemopneumothorax"},
    "Pleural Effusion": {"pleural effusion", "hydropneumothorax", "hemopneumothorax", "hemothorax"},
    "Pleural Other": {"pleura", "thickening:pleura", "cicatrix:pleura", "calcinosis:pleura"},
    "Fracture": {"fractures, bone"},
    "Support Devices": {
        "catheters, indwelling",
        "implanted medical device",
        "medical device",
        "surgical instruments",
        "stents",
        "tube, inserted",
        "sutures",
        "breast implants",
    },
    "Enlarged Cardiomediastinum": {"mediastinum:enlarged", "mediastinum:prominent", "mediastinum:widened"},
}
# Headings that leave open whether the label holds: such a report does not count for that label, unless another says it.
LEAVES_OPEN = {
    "Cardiomegaly": {"cardiac shadow", "heart", "heart atria", "heart ventricles"},
    "Lung Opacity": {
        "density",
        "consolidation",
    },
    "Lung Lesion": {"granulomatous disease", "cysts", "neoplasms", "density", "opacity:round"},
    "Pleural Effusion": {"costophrenic angle"},
    "Support Devices": {"foreign bodies", "spinal fusion"},
    "Enlarged Cardiomediastinum": {"mediastinum", "cardiac shadow", "cardiomegaly"},
}
_LUNG = {"lung", "base", "apex", "hilum", "lingula", "upper lobe", "middle lobe", "lower lobe"}

# Problems that "no acute disease" contradicts, unless they are coded mild or borderline. Left out: opacities, nodules
# and atelectasis, which are often scars, granulomas and minimal bands, with which real Impressions say so.
SERIOUS = {
    "pleural effusion",
    "infiltrate",
    "airspace disease",
    "pneumonia",
    "consolidation",
    "pneumothorax",
    "mass",
    "hydropneumothorax",
    "pulmonary edema",
    "pulmonary congestion",
    "heart failure",
}
SLIGHT = {"mild", "borderline"}
# An enlarged heart is not acute; without a grade, nothing in the coding says whether it is new.
SERIOUS_IF = {"cardiomegaly": {"moderate", "severe"}, "cardiac shadow": {"moderate", "severe"}}
# A word of the Impression by which it names a coded problem; independent of the labeler's own table.
NAMED_BY = {
    "Cardiomegaly": "cardiomeg|enlarged (?:heart|cardiac)",
    "Lung Opacity": "opaci|infiltrat|air ?space",
    "Edema": "edema|congest",
    "Lung Lesion": "nodul|mass|granulom",
    "Consolidation": "consolid",
    "Pneumonia": "pneumonia",
    "Atelectasis": "atelect",
    "Pneumothorax": "pneumothora",
    "Pleural Effusion": "effusion",
    "Fracture": "fractur",
}
DENSITIES = {"Lung Opacity", "Lung Lesion", "Edema", "Consolidation", "Pneumonia", "Atelectasis"}  # read as one another


@dataclass(frozen=True)
class Report:
    """One coded report."""

    uid: str
    findings: str
    impression: str
    mesh: str

    @property
    def normal(self) -> bool:
        return self.mesh == "normal"

    @property
    def text(self) -> str:
        return f"Findings: {self.findings} Impression: {self.impression}"


def read_reports(path: Path) -> list[Report]:
    """Reports with both sections, in the order of the file."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["findings"] and row["impression"]]
    return [Report(row["uid"], row["findings"], row["impression"], row["MeSH"].strip()) for row in rows]


def split(reports: Sequence[Report]) -> tuple[list[Report], list[Report]]:
    """The half that the rules were written on, and the half kept for the end: all reports shuffled with seed 0."""
    order = list(reports)
    random.Random(0).shuffle(order)
    return order[: len(order) // 2], order[len(order) // 2 :]


def coded(report: Report) -> tuple[set[str], set[str]]:
    """Labels that the coding states, and labels that it leaves open."""
    if report.normal:
        return {"No Finding"}, set()
    said, opened = (
        {label for label, headings in table.items() if any(_holds(h, report.mesh) for h in headings)}
        for table in (SAYS, LEAVES_OPEN)
    )
    if said <= {"Support Devices"} and "Support Devices" in said:
        opened = opened | {"No Finding"}  # a device is coded as abnormal and is no finding of the 14 labels
    return said, opened - said


def _holds(heading: str, mesh: str) -> bool:
    name, _, qualifier = heading.partition(":")
    for term in mesh.lower().split(";"):
        found, *qualifiers = (part.strip() for part in term.split("/"))
        wanted = _LUNG if qualifier == "lung" else {qualifier}
        if found == name and (not qualifier or wanted & set(qualifiers)):
            return True
    return False


@dataclass
class Count:
    """Agreement on one label."""

    both: int = 0
    rules_only: int = 0
    coding_only: int = 0

    def row(self) -> dict[str, float]:
        """Precision, recall, F1 and the counts they are made of."""
        found, stated = self.both + self.rules_only, self.both + self.coding_only
        return {
            "precision": self.both / found if found else 0.0,
            "recall": self.both / stated if stated else 0.0,
            "f1": 2 * self.both / (found + stated) if found + stated else 0.0,
            "coded": stated,
            "both": self.both,
            "rules_only": self.rules_only,
            "coding_only": self.coding_only,
        }


def label_scores(reports: Sequence[Report], *, uncertain: bool) -> dict[str, dict[str, float]]:
    """Per label, micro over all and over all but No Finding; `uncertain` says whether -1 counts as positive."""
    positive = (1, -1) if uncertain else (1,)
    counts = {label: Count() for label in LABELS}
    for report in reports:
        said, opened = coded(report)
        for label, value in RULES.values(report.text).items():
            if label in opened:
                continue
            counts[label].both += value in positive and label in said
            counts[label].rules_only += value in positive and label not in said
            counts[label].coding_only += value not in positive and label in said
    micro = _sum(counts.values())
    findings = _sum(count for label, count in counts.items() if label != "No Finding")
    scores = {label: count.row() for label, count in counts.items()}
    return {**scores, "micro": micro.row(), "micro of the findings": findings.row()}


def _sum(counts: Iterable[Count]) -> Count:
    parts = [(count.both, count.rules_only, count.coding_only) for count in counts]
    return Count(*map(sum, zip(*parts, strict=True)))


def criticality_scores(reports: Sequence[Report]) -> dict[str, float]:
    """Critical against coded as anything but normal."""
    found = [label.critical for label in CriticalityRules(RULES)([report.text for report in reports])]
    return _balanced([(f, not r.normal) for f, r in zip(found, reports, strict=True)])


def _balanced(pairs: Sequence[tuple[bool, bool]]) -> dict[str, float]:
    """Of (said, true)."""
    sensitivity = sum(said for said, true in pairs if true) / sum(true for _, true in pairs)
    specificity = sum(not said for said, true in pairs if not true) / sum(not true for _, true in pairs)
    return {
        "sensitivity": sensitivity,
        "specificity": specificity,
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "reports": len(pairs),
    }


def contradictions(reports: Sequence[Report], *, seed: int = 0) -> list[tuple[str, Report, Report]]:
    """(kind, study of the Findings, study of the Impression): one for each study that has any.

    - "false alarm": Findings of a normal study, an Impression that names a coded problem;
    - "missed": Findings of a study with a serious problem, the Impression of a normal one;
    - "another disease": both abnormal, no label in common, and the Impression names a problem that the Findings' study
      lacks.

    A study with a serious problem gets "missed" or "another disease" by a coin.
    """
    generator = random.Random(seed)
    labels = {report.uid: _family(coded(report)[0] | coded(report)[1]) for report in reports}
    normal = [report for report in reports if report.normal]
    named = {report.uid: _named(report) for report in reports}
    naming = [report for report in reports if not report.normal and named[report.uid]]
    pairs = []
    for report in reports:
        if report.normal:
            pairs.append(("false alarm", report, generator.choice(naming)))
        elif _serious(report) and generator.random() < 0.5:
            pairs.append(("missed", report, generator.choice(normal)))
        else:
            others = [o for o in naming if not labels[o.uid] & labels[report.uid] and _family(named[o.uid])]
            if others:
                pairs.append(("another disease", report, generator.choice(others)))
    return pairs


def _serious(report: Report) -> bool:
    terms = [[part.strip() for part in term.lower().split("/")] for term in report.mesh.split(";")]
    return any(
        (name in SERIOUS and not SLIGHT & {*qualifiers}) or SERIOUS_IF.get(name, set()) & {*qualifiers}
        for name, *qualifiers in terms
    )


def _named(report: Report) -> set[str]:
    """Coded labels that the Impression names outside a sentence with a denial."""
    sentences = re.split(r"(?<=[.;])\s", report.impression.lower())
    asserted = " ".join(s for s in sentences if not re.search(r"\b(?:no|not|without|negative|resolved|clear)\b", s))
    return {label for label in coded(report)[0] if label in NAMED_BY and re.search(NAMED_BY[label], asserted)}


def _family(labels: set[str]) -> set[str]:
    return {"density" if label in DENSITIES else label for label in labels} - {"Support Devices", "No Finding"}


def consistency_scores(reports: Sequence[Report]) -> dict[str, object]:
    """Own Impressions against swapped ones; sensitivity is the share of contradictions that are found."""
    judge = ConsistencyRules(RULES)
    swapped = contradictions(reports)
    own = judge([r.findings for r in reports], [r.impression for r in reports])
    other = judge([f.findings for _, f, _ in swapped], [i.impression for _, _, i in swapped])
    kinds = Counter(kind for kind, _, _ in swapped)
    found = Counter(kind for (kind, _, _), value in zip(swapped, other, strict=True) if value < 0)
    scores = _balanced([(value < 0, False) for value in own] + [(value < 0, True) for value in other])
    return {**scores, "kinds": {kind: {"pairs": kinds[kind], "found": found[kind] / kinds[kind]} for kind in kinds}}


def error_kinds(reports: Sequence[Report]) -> dict[str, dict[str, int]]:
    """How often the rules differ from the coding, by kind."""
    kinds: dict[str, Counter[str]] = {"labels": Counter(), "critical": Counter(), "consistent": Counter()}
    judge = ConsistencyRules(RULES)
    for report in reports:
        said, opened = coded(report)
        for label, value in RULES.values(report.text).items():
            if label in opened or (value == 1) == (label in said):
                continue
            kinds["labels"][_label_error(label, value)] += 1
        found = RULES.abnormalities(report.text)
        if found and report.normal:
            kinds["critical"][f"coded normal, the text has: {', '.join(sorted(found))}"] += 1
        elif not found and not report.normal:
            kinds["critical"]["coded abnormal, the rules find nothing"] += 1
        objection = judge.objection(report.findings, report.impression)
        if objection is not None:
            kinds["consistent"][f"own Impression refused: {objection}"] += 1
    return {name: dict(counter.most_common()) for name, counter in kinds.items()}


def _label_error(label: str, value: int | None) -> str:
    if label == "No Finding":
        return "No Finding: coded normal or not, and the rules differ"
    kinds = {1: "asserted, not coded", -1: "coded, hedged in the text (-1)", 0: "coded, denied in the text (0)"}
    return kinds[value] if value is not None else "coded, no mention found"


def measure(reports: Sequence[Report]) -> dict[str, object]:
    """Everything about one half; uncoded reports are left out."""
    indexed = [report for report in reports if report.mesh != UNCODED]
    return {
        "reports": len(indexed),
        "uncoded": len(reports) - len(indexed),
        "labels": label_scores(indexed, uncertain=False),
        "micro_f1_uncertain_positive": label_scores(indexed, uncertain=True)["micro"]["f1"],
        "criticality": criticality_scores(indexed),
        "consistency": consistency_scores(indexed),
        "errors": error_kinds(indexed),
    }


def milliseconds(reports: Sequence[Report]) -> float:
    """Time of the label command for one report, in a process that has not seen these sentences before."""
    inputs = [Input(report.uid, report.text, report.findings, report.impression) for report in reports]
    began = time.perf_counter()
    for _ in tqdm(label_reports(inputs), desc="time", total=len(inputs), disable=None):
        pass
    return 1000 * (time.perf_counter() - began) / len(reports)


def rows(halves: dict[str, dict]) -> list[list[str]]:
    """The table of both halves that the documentation quotes."""
    lines = []
    for label in (*LABELS, "micro", "micro of the findings"):
        cells = [label]
        for half in halves.values():
            scores = half["labels"][label]
            cells += [f"{scores[key]:.3f}" for key in ("precision", "recall", "f1")] + [str(scores["coded"])]
        lines.append(cells)
    return lines


def columns(halves: Sequence[str]) -> list[str]:
    return ["label", *(f"{key} ({half})" for half in halves for key in ("precision", "recall", "F1", "coded"))]


def main() -> None:
    shared = Path(os.environ.get("RADFLOW_SHARED", Path(__file__).parents[2] / "shared"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=shared / "data" / "iu_xray" / "indiana_reports.csv")
    parser.add_argument("--half", choices=("first", "kept", "both"), default="both", help="both writes the result file")
    options = parser.parse_args()
    reports = read_reports(options.data)
    halves = dict(zip(("first", "kept"), split(reports), strict=True))
    chosen = {name: half for name, half in halves.items() if options.half in (name, "both")}
    speed = milliseconds([report for half in chosen.values() for report in half])
    measured = {name: measure(half) for name, half in chosen.items()}
    content = {"setting": "Rules against the manual coding of real reports; an uncertain label (-1) is not positive"}
    content |= {"columns": columns(list(measured)), "rows": rows(measured), "ms_per_report": speed, "halves": measured}
    print(f"{content['setting']}\n\n{table(content)}\n\n{speed:.2f} ms per report\n")
    for name, half in measured.items():
        print(name, json.dumps({key: value for key, value in half.items() if key != "labels"}, indent=2))
    if options.half == "both":
        write("labeler", content)


if __name__ == "__main__":
    main()
