"""`evaluate.py cases`: a page of studies like the paper's Figure 3."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup
from tyro.conf import OmitArgPrefixes, Positional

from capo.checks import check_range
from capo.journal import write_whole
from radflow.dashboard.marks import Case, Marker, summarize
from radflow.dashboard.render import CONTROL, FOLDER, environment
from radflow.dashboard.studies import StudySource, shorten
from radflow.data.protocols import Protocol, prediction_text, reference_text
from radflow.data.report_files import Report, ReportFile, read_report_file
from radflow.evaluation.inputs import align, name_files, notes_on, studies_of
from radflow.evaluation.rules import LabelerName, choose_rules, run_configs
from radflow.pipeline.command_line import say

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
TEMPLATE = "cases.html.jinja"
POLICIES = ("sft", "capo")  # whose held-out reports a run writes
LONGEST = 20_000  # characters of a text that are read and shown


@dataclass(frozen=True)
class CasesConfig:
    """Which studies are shown, and how."""

    out: Path
    """The page, one file."""
    runs: Positional[tuple[Path, ...]] = ()
    """Folders of runs, whose held-out reports, references and images are shown."""
    predictions: tuple[Path, ...] = ()
    """One file or folder of reports, or several; a run's folder is one too."""
    manifest: Path | None = None
    """JSONL manifest of studies with images; by default the studies of the run that the reports belong to."""
    references: Path | None = None
    """File or folder of references; by default those of the manifest, or of the run."""
    ids: tuple[str, ...] = ()
    """Studies to show, in this order; by default the first ones that all files have."""
    image_root: Path | None = None
    """Folder that image paths of the manifest start from; the manifest's own by default."""
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
        if not self.runs and not self.predictions:
            raise ValueError("expected the folder of a run or files of predictions, got neither")
        if self.image_root is not None and self.manifest is None:
            raise ValueError("expected a manifest with image_root, whose images it finds, got none; name the manifest")


@dataclass(frozen=True)
class Inputs:
    """What the page is made from."""

    files: Sequence[Path]
    systems: Mapping[str, Mapping[str, Report]]
    """Name -> reports by study id."""
    references: Mapping[str, Report]
    source: StudySource
    """Finds images."""
    known: Mapping[str, object] | None
    """Studies of the manifest; None for those of a run, which a page shows without images too."""
    notes: Sequence[str]
    """On how the files were read."""


def write_cases(config: OmitArgPrefixes[CasesConfig]) -> None:
    """Show studies side by side: image, reference, systems; right and wrong findings are coloured and counted."""
    inputs = _read(config)
    chosen, notes = _choose(config, inputs)
    texts = {i: reference_text(inputs.references[i], config.protocol) or "" for i in chosen}
    marker = Marker(choose_rules(config.labeler, None, inputs.files, list(texts.values())).labeler)
    notes, cases, cut = [*inputs.notes, *notes], [], 0
    for study_id, reference in texts.items():
        written = {name: prediction_text(side[study_id], config.protocol) for name, side in inputs.systems.items()}
        cut += sum(len(text) > LONGEST for text in (reference, *written.values()))
        columns = marker.mark(shorten(reference, LONGEST), {n: shorten(text, LONGEST) for n, text in written.items()})
        cases.append(Case(study_id, inputs.source.images(study_id, config.side), columns))
    if cut:
        notes.append(f"{cut} texts are longer than {LONGEST:,} characters, their ends not shown and not read")
    if without := [case.id for case in cases if not case.images]:
        notes += notes_on({"studies without an image on this machine": without})
    totals = {name: summarize(case.columns[n] for case in cases) for n, name in enumerate(inputs.systems, 1)}
    style, title = Markup((FOLDER / "page.css").read_text(encoding="utf-8")), f"Cases of {', '.join(totals)}"
    head = {"title": title, "totals": totals, "notes": notes, "protocol": config.protocol}
    html = environment().get_template(TEMPLATE).render(cases=cases, style=style, policy=POLICY, **head)
    write_whole(config.out, CONTROL.sub("\N{REPLACEMENT CHARACTER}", html))
    say("\n".join([*notes, f"{len(cases)} studies in {config.out}"]))


def _read(config: CasesConfig) -> Inputs:
    """Reports, references and where images are found: in the manifest, else as the run of the reports finds them.

    Raises:
        ValueError: a file is not there or of another form, or the reports belong to no run and no manifest is given.
    """
    files = [path for run in config.runs for path in _held_out(run)]
    for given in config.predictions:
        files += _held_out(given) if (given / "config.yaml").is_file() else [given]
    written = {name: read_report_file(path, "predictions") for name, path in name_files(files).items()}
    own, known = config.references, None
    if config.manifest is not None:
        known = studies_of(config.manifest, config.image_root)
        references = read_report_file(own or config.manifest, "references")
        source = StudySource(known.__getitem__)
    else:
        runs = {path.parent: settings for path, settings in run_configs(files) if "data" in settings}
        if not runs:
            raise ValueError("expected a manifest, or reports in the folder eval of a run, got none; name the manifest")
        references = _references_of(runs) if own is None else read_report_file(own, "references")
        source = StudySource.of_config(next(iter(runs.values())))
    systems = {name: align(file, references)[0] for name, file in written.items()}
    notes = dict.fromkeys(note for side in (references, *written.values()) for note in side.notes)
    return Inputs(files, systems, references, source, known, list(notes))


def _held_out(run: Path) -> list[Path]:
    """The files of the policies' held-out reports."""
    files = [path for policy in POLICIES if (path := run / "eval" / f"{policy}.json").is_file()]
    if not files:
        wanted = f"expected a run with held-out reports ({', '.join(f'eval/{policy}.json' for policy in POLICIES)})"
        raise ValueError(f"{run}: {wanted}, found none; finish the run, or name files of predictions")
    return files


def _references_of(runs: Iterable[Path]) -> ReportFile:
    """References of the first run; ValueError if another run has a different one for a study."""
    first, *others = ((run, read_report_file(run / "eval" / "references.json", "references")) for run in runs)
    for run, references in others:
        if differing := [i for i in first[1].keys() & references.keys() if first[1][i] != references[i]]:
            wanted = f"expected runs over the same studies, the references of {first[0]} and {run} differ"
            raise ValueError(f"study {min(differing)}: {wanted}; name the manifest of these studies")
    return first[1]


def _choose(config: CasesConfig, inputs: Inputs) -> tuple[list[str], list[str]]:
    """Ids of the studies shown, and notes on those that are left out."""
    sides: dict[str, Mapping[str, object]] = {"references": inputs.references, **inputs.systems}
    if inputs.known is not None:
        sides["manifest"] = inputs.known
    for study_id in config.ids:
        if absent := [name for name, side in sides.items() if study_id not in side]:
            raise ValueError(f"study {study_id}: expected it in every file, not found in {', '.join(absent)}")
    if config.ids:
        return list(config.ids), []
    every = dict.fromkeys(study_id for side in sides.values() for study_id in side)
    lacking = {name: [study_id for study_id in every if study_id not in side] for name, side in sides.items()}
    if not (shared := [study_id for study_id in every if all(study_id in side for side in sides.values())]):
        raise ValueError(f"expected studies that {', '.join(sides)} all have, got none; rename the ids")
    notes = notes_on({f"studies that {name} lacks, not shown": ids for name, ids in lacking.items() if ids})
    if len(shared) > config.most:
        notes.append(f"the first {config.most} of {len(shared)} studies that all of them have")
    return shared[: config.most], notes
