"""`evaluate.py cases`: studies side by side, image, reference and systems, as in the paper's Figure 3."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from capo.journal import write_whole
from data.protocols import Protocol, prediction_text, reference_text
from data.report_files import Report, read_report_file
from evaluation.findings import Span, spans, verdicts
from evaluation.inputs import studies_of
from reporting.cases import shown_text
from reporting.page import CONTROL, FOLDER, environment
from reporting.studies import StudySource

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
TEMPLATE = "cases.html.jinja"


@dataclass(frozen=True)
class Column:
    """One report of a case."""

    name: str
    spans: Sequence[Span]
    counts: Mapping[str, int]  # agrees, contradicts, alone; empty for the reference


@dataclass(frozen=True)
class Case:
    """One study of the page."""

    id: str
    images: Sequence[str]  # data URIs
    columns: Sequence[Column]  # the reference first


@dataclass(frozen=True)
class CasesConfig:
    """Which studies are shown, and how."""

    predictions: tuple[Path, ...]
    references: Path | None
    manifest: Path
    out: Path
    ids: tuple[str, ...] = ()
    """Studies to show, in this order; by default the first ones that all files have."""
    image_root: Path | None = None
    """Folder that image paths start from; the manifest's own by default."""
    most: int = 20
    """Studies shown where none are named."""
    protocol: Protocol = "rexrank"
    side: int = 512
    """Pixels of an image."""

    def __post_init__(self) -> None:
        if self.most < 1 or self.side < 64:
            raise ValueError(
                f"expected --most of at least 1 and --side of at least 64, got {self.most} and {self.side}"
            )


def write_cases(config: CasesConfig) -> int:
    """Write the page, whole and in one file; returns the number of studies.

    Raises:
        ValueError: a study that is asked for is in none of the files, or nothing is common to them.
    """
    references = read_report_file(config.references or config.manifest, "references")
    systems = {_name(path, config.predictions): read_report_file(path, "predictions") for path in config.predictions}
    studies = studies_of(config.manifest, config.image_root)
    chosen = _chosen(config, references, systems, studies)
    source = StudySource(studies.__getitem__)
    cases = [_case(study_id, references[study_id], systems, source, config) for study_id in chosen]
    html = (
        environment()
        .get_template(TEMPLATE)
        .render(
            title=f"Cases of {', '.join(systems)}",
            names=list(systems),
            cases=cases,
            style=Markup((FOLDER / "page.css").read_text(encoding="utf-8")),
            policy=POLICY,
            protocol=config.protocol,
        )
    )
    write_whole(config.out, CONTROL.sub("\N{REPLACEMENT CHARACTER}", html))
    return len(cases)


def _name(path: Path, paths: Sequence[Path]) -> str:
    return path.stem if [other.stem for other in paths].count(path.stem) == 1 else str(path)


def _chosen(config: CasesConfig, references: Mapping, systems: Mapping[str, Mapping], studies: Mapping) -> list[str]:
    sides = {"references": references, "manifest": studies, **systems}
    for study_id in config.ids:
        if absent := [name for name, side in sides.items() if study_id not in side]:
            raise ValueError(f"study {study_id}: expected it in every file, not found in {', '.join(absent)}")
    if config.ids:
        return list(config.ids)
    shared = [study_id for study_id in references if all(study_id in side for side in sides.values())]
    if not shared:
        raise ValueError(
            "expected studies that references, manifest and all predictions have, got none; rename the ids"
        )
    return shared[: config.most]


def _case(
    study_id: str, reference: Report, systems: Mapping[str, Mapping[str, Report]], source: StudySource,
    config: CasesConfig,
) -> Case:  # fmt: skip
    expected = shown_text(reference_text(reference, config.protocol) or "")
    written = {name: shown_text(prediction_text(side[study_id], config.protocol)) for name, side in systems.items()}
    target = verdicts(expected)
    columns = [Column("Reference", spans(expected, _all_systems(written)), {})]
    for name, text in written.items():
        pieces = spans(text, target)
        counts = {kind: sum(p.standing == kind for p in pieces) for kind in ("agrees", "contradicts", "alone")}
        columns.append(Column(name, pieces, counts))
    return Case(study_id, source.images(study_id, config.side), columns)


def _all_systems(written: Mapping[str, str]) -> dict[str, int]:
    """What a reference is coloured against: the first system's verdicts, and where it is silent those of the next."""
    merged: dict[str, int] = {}
    for text in written.values():
        for name, value in verdicts(text).items():
            merged.setdefault(name, value)
    return merged
