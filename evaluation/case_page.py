"""`evaluate.py cases`: a page of studies like the paper's Figure 3."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from markupsafe import Markup
from tyro.conf import OmitArgPrefixes

from capo.checks import check_range
from capo.journal import write_whole
from radflow.dashboard.render import CONTROL, FOLDER, environment
from radflow.dashboard.studies import StudySource, shorten
from radflow.data.protocols import Protocol, prediction_text, reference_text
from radflow.data.report_files import read_report_file
from radflow.data.sections import parse_sections
from radflow.evaluation.inputs import name_files, studies_of
from radflow.evaluation.rules import DEFAULT_LABELER, LabelerName, choose_rules
from radflow.rewards.rules.keywords import Lexicon
from radflow.rewards.rules.negation import mentions as mentions_of
from radflow.rewards.rules.negation import sentences
from radflow.rewards.rules.terms import TermFile, read_statements

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
TEMPLATE = "cases.html.jinja"
PRESENT, DENIED, UNCERTAIN = 1, 0, -1
SAID = {PRESENT: "present", DENIED: "denied", UNCERTAIN: "uncertain"}
CHEST_TERMS: tuple[TermFile, ...] = ("chexpert", "other_findings")
Standing = Literal["agrees", "contradicts", "alone", "plain"]


@dataclass(frozen=True)
class Mention:
    """One statement of a report, by its position in the report's text with single spaces."""

    name: str
    value: int  # 1 present, 0 denied, -1 uncertain
    start: int
    end: int


@dataclass(frozen=True)
class Span:
    """A piece of a report as it is shown."""

    text: str
    standing: Standing
    title: str  # what is stated, for a tooltip; empty for plain text


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
    """Show studies side by side: image, reference, systems; agreeing and contradicting findings are coloured."""
    references = read_report_file(config.references or config.manifest, "references")
    systems = {name: read_report_file(path, "predictions") for name, path in name_files(config.predictions).items()}
    studies = studies_of(config.manifest, config.image_root)
    chosen = _chosen(config, references, systems, studies)
    expected = {i: shorten(reference_text(references[i], config.protocol) or "") for i in chosen}
    files = (*config.predictions, config.references)
    labeler = choose_rules(config.labeler, None, files, list(expected.values())).labeler
    source = StudySource(studies.__getitem__)
    cases = []
    for study_id, text in expected.items():
        written = {n: shorten(prediction_text(side[study_id], config.protocol)) for n, side in systems.items()}
        cases.append(Case(study_id, source.images(study_id, config.side), _columns(text, written, labeler)))
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


def _columns(expected: str, written: Mapping[str, str], labeler: LabelerName) -> list[Column]:
    """The reference, coloured against the first system that speaks of a finding, and what each system wrote."""
    merged: dict[str, int] = {}
    for text in written.values():
        merged = verdicts(text, labeler) | merged
    target, columns = verdicts(expected, labeler), [Column("Reference", spans(expected, merged, labeler), {})]
    for name, text in written.items():
        pieces = spans(text, target, labeler)
        counts = {kind: sum(p.standing == kind for p in pieces) for kind in ("agrees", "contradicts", "alone")}
        columns.append(Column(name, pieces, counts))
    return columns


def mentions(text: str, labeler: LabelerName = DEFAULT_LABELER, *, nested: bool = False) -> tuple[str, list[Mention]]:
    """The text with single spaces, and its statements in order, those within longer ones only if `nested`. Sections
    about something else than this examination are shown, and read for nothing."""
    shown, cursor, found = " ".join(text.split()), 0, []
    for sentence in sentences(parse_sections(text).described):
        begin = shown.find(sentence, cursor)
        if begin < 0:  # cut at a line end in the middle of a word or sentence
            continue
        cursor, end = begin + len(sentence), 0
        # the longest wording of those that begin at one character
        for one in sorted(_read(sentence, labeler), key=lambda one: (one.start, -one.end)):
            if nested or one.start >= end:
                found.append(Mention(one.name, one.value, begin + one.start, begin + one.end))
                end = one.end
    return shown, found


def _read(sentence: str, labeler: LabelerName) -> Iterator[Mention]:
    if labeler == "carotid_rules":
        found = ((k.name, *one) for k in _carotid().keywords for one in mentions_of(k.pattern, sentence))
        yield from (Mention(name, value, *match.span()) for name, match, value in found if value is not None)
    else:
        for said in (one for file in CHEST_TERMS for one in read_statements(file, sentence)):
            yield Mention(said.name, said.value, said.start, said.end)


_carotid = cache(Lexicon.load)


def verdicts(text: str, labeler: LabelerName = DEFAULT_LABELER) -> dict[str, int]:
    """Finding -> what the report says of it altogether: positive wins over uncertain, uncertain over denied."""
    found: dict[str, int] = {}
    nested = labeler == "carotid_rules"  # a soft plaque is a plaque too
    for one in mentions(text, labeler, nested=nested)[1]:
        found[one.name] = max(found.get(one.name, one.value), one.value, key=(DENIED, UNCERTAIN, PRESENT).index)
    return found


def spans(text: str, other: Mapping[str, int], labeler: LabelerName = DEFAULT_LABELER) -> list[Span]:
    """The whole text in pieces, each with how it compares with the verdicts of another report.

    A finding agrees if the other report says the same (uncertain counts as present), contradicts if one asserts what
    the other denies, and is alone if the other does not speak of it."""
    shown, found = mentions(text, labeler)
    pieces, cursor = [], 0
    for mention in found:
        title = f"{mention.name}: {SAID[mention.value]}"
        if mention.name in other:
            title += f" (the other report: {SAID[other[mention.name]]})"
        pieces.append(Span(shown[cursor : mention.start], "plain", ""))
        pieces.append(Span(shown[mention.start : mention.end], standing(mention, other), title))
        cursor = mention.end
    return [piece for piece in (*pieces, Span(shown[cursor:], "plain", "")) if piece.text]


def standing(mention: Mention, other: Mapping[str, int]) -> Standing:
    """How one statement compares with the other report; a denial that the other does not speak of is no finding."""
    if mention.name not in other:
        return "plain" if mention.value == DENIED else "alone"
    return "agrees" if (mention.value == DENIED) == (other[mention.name] == DENIED) else "contradicts"
