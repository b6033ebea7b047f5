"""`evaluate.py cases`: a page of studies like the paper's Figure 3."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup
from tyro.conf import OmitArgPrefixes

from capo.checks import check_range
from capo.journal import write_whole
from radflow.dashboard.marks import Case, Marker
from radflow.dashboard.render import CONTROL, FOLDER, environment
from radflow.dashboard.studies import StudySource, shorten
from radflow.data.protocols import Protocol, prediction_text, reference_text
from radflow.data.report_files import read_report_file
from radflow.evaluation.inputs import name_files, studies_of
from radflow.evaluation.rules import LabelerName, choose_rules

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
TEMPLATE = "cases.html.jinja"


@dataclass(frozen=True)
class CasesConfig:
    """Which studies are shown, and how."""

    predictions: tuple[Path, ...]
    """One file or folder of reports, or several."""
    manifest: Path
    """JSONL manifest of studies with images."""
    out: Path
    """The page, one file."""
    references: Path | None = None
    """File or folder of references; by default those of the manifest."""
    ids: tuple[str, ...] = ()
    """Studies to show, in this order; by default the first ones that all files have."""
    image_root: Path | None = None
    """Folder that image paths start from; the manifest's own by default."""
    most: int = 20
    """Studies shown if none are named."""
    protocol: Protocol = "rexrank"
    """Which text is shown: both sections, or one."""
    labeler: LabelerName | None = None
    """Rules that read the findings that are coloured. Unset: those of the run that wrote the files, else chest."""
    side: int = 512
    """Largest side of an image in pixels."""

    def __post_init__(self) -> None:
        check_range(self, "most", least=1)
        check_range(self, "side", least=64)


def write_cases(config: OmitArgPrefixes[CasesConfig]) -> None:
    """Show studies side by side: image, reference, systems; right and wrong findings are coloured."""
    references = read_report_file(config.references or config.manifest, "references")
    systems = {name: read_report_file(path, "predictions") for name, path in name_files(config.predictions).items()}
    studies = studies_of(config.manifest, config.image_root)
    chosen = _chosen(config, references, systems, studies)
    expected = {i: shorten(reference_text(references[i], config.protocol) or "") for i in chosen}
    files = (*config.predictions, config.references)
    marker = Marker(choose_rules(config.labeler, None, files, list(expected.values())).labeler)
    source = StudySource(studies.__getitem__)
    cases = []
    for study_id, text in expected.items():
        written = {n: shorten(prediction_text(side[study_id], config.protocol)) for n, side in systems.items()}
        cases.append(Case(study_id, source.images(study_id, config.side), marker.mark(text, written)))
    style, title = Markup((FOLDER / "page.css").read_text(encoding="utf-8")), f"Cases of {', '.join(systems)}"
    texts = {"title": title, "names": list(systems), "protocol": config.protocol, "style": style, "policy": POLICY}
    html = environment().get_template(TEMPLATE).render(cases=cases, **texts)
    write_whole(config.out, CONTROL.sub("\N{REPLACEMENT CHARACTER}", html))
    print(f"{len(cases)} studies in {config.out}")


def _chosen(config: CasesConfig, references: Mapping, systems: Mapping[str, Mapping], studies: Mapping) -> list[str]:
    sides = {"references": references, "manifest": studies, **systems}
    for study_id in config.ids:
        if absent := [name for name, side in sides.items() if study_id not in side]:
            raise ValueError(f"study {study_id}: expected it in every file, not found in {', '.join(absent)}")
    if config.ids:
        return list(config.ids)
    if shared := [study_id for study_id in references if all(study_id in side for side in sides.values())]:
        return shared[: config.most]
    raise ValueError("expected studies that references, manifest and all predictions have, got none; rename the ids")
