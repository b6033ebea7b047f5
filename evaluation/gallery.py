"""`evaluate.py gallery`: what a reward pays for edits of references, honest ones and exploits, before RL finds out."""

import dataclasses
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Annotated, Literal

from tqdm import tqdm
from tyro.conf import arg

from capo.checks import check_range
from capo.journal import write_json, write_whole
from radflow.data.phantoms import make_studies
from radflow.data.report_files import Report, read_report_file
from radflow.data.sections import SectionParser, render_report
from radflow.evaluation.exploits import EDITS, edit_report
from radflow.evaluation.stated import read_source
from radflow.pipeline.command_line import say
from radflow.pipeline.tables import Table, csv_document, number
from radflow.rewards.config import RewardConfig
from radflow.rewards.hierarchy import HierarchicalReward
from radflow.rewards.judge.config import JudgeConfig
from radflow.rewards.registry import LABELERS, build_reward
from radflow.rewards.types import Labeler

REFERENCE, PARAPHRASE, DROPPED = "reference", "paraphrase", "one finding dropped"
CONSTANT, COPY = "constant normal report", "every other edit"
HONEST = (
    *(REFERENCE, PARAPHRASE, "reordered", DROPPED),
    *("one dropped from the Findings", "one dropped from the Impression", "wrong grade by one step"),
)
LIES = (
    *("wrong side everywhere", "wrong grade by two steps", "one finding negated", "each finding also denied"),
    *("all denied, normal Impression", "measurements replaced", "dangerous advice added"),
)
ORDERS = (
    *((REFERENCE, PARAPHRASE), (PARAPHRASE, DROPPED), (DROPPED, CONSTANT)),
    *((DROPPED, lie) for lie in LIES),
    (REFERENCE, COPY),
)
PAID = 0.05  # share of studies from which on the reward pays for an exploit
STUDIES_PER_CALL = 16  # of the reward, with all edits of each
PHANTOM_SIZE = 56  # pixels; nobody looks at them here

Texts = Mapping[str, str]  # edit -> report
Rewards = Mapping[str, float]  # edit -> reward of a study


@dataclass(frozen=True)
class GalleryConfig:
    """Which references are edited, and by which reward the edits are scored."""

    references: Annotated[Path | None, arg(aliases=("--manifest",))] = None
    """File or folder of references, or a manifest: every form that `score` reads."""
    phantoms: Literal["chest", "carotid"] | None = None
    """Synthetic studies instead of a file."""
    split: str = "all"
    """Only references of this split."""
    headers: Path | None = None
    """TOML file with further headers of reports, as `data.headers` of a run."""
    reward: RewardConfig = field(default_factory=RewardConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    studies: int = 300
    """Most studies that are drawn; a study has about 25 edits."""
    normal: bool = False
    """Edit normal studies too. By default only studies that the labeler of `reward.expert` finds abnormal."""
    seed: int = 0
    """Of phantoms, of the studies that are drawn, and of edits."""
    out: Path | None = None
    """Also write the table, as .csv or .json."""

    def __post_init__(self) -> None:
        check_range(self, "studies", least=1)
        check_range(self, "seed", least=0)
        if (self.references is None) == (self.phantoms is None):
            raise ValueError("expected references or phantoms (chest, carotid), and not both; name what is edited")
        if self.out is not None and self.out.suffix not in (".csv", ".json"):
            raise ValueError(f"expected out to end in .csv or .json, got {self.out}")


@dataclass(frozen=True)
class EditRow:
    """What one edit earns."""

    edit: str
    reward: float | None
    """Mean over the studies where it can be made; None if there is none."""
    difference: float | None
    """Mean of reward minus that of the reference."""
    made: float
    """Share of the studies where it can be made."""
    paid: float | None
    """Share of the studies where it earns as much as or more than the honest report with one finding dropped, among
    those where both can be made and differ."""


@dataclass(frozen=True)
class OrderRow:
    """In what share of the studies one edit earns more than another; the reference may earn as much."""

    better: str
    worse: str
    holds: float | None
    """Among the studies where both can be made and differ; None if there is none."""
    studies: int

    @property
    def name(self) -> str:
        return f"{self.better} {'>=' if self.better == REFERENCE else '>'} {self.worse}"


@dataclass(frozen=True)
class Gallery:
    """A reward on the edits of some studies."""

    edits: Sequence[EditRow]
    orders: Sequence[OrderRow]
    notes: Sequence[str]

    @property
    def paid(self) -> list[EditRow]:
        """Exploits that the reward pays for."""
        return [row for row in self.edits if row.edit not in HONEST and (row.paid or 0.0) > PAID]


def gallery(config: Annotated[GalleryConfig, arg(name="")]) -> None:
    """Score edits of reference reports by a reward, to see which exploits it pays for before RL does.

    Raises:
        ValueError: a file does not fit, a model of the reward is not there, or no study is abnormal.
    """
    reward = build_reward(config.reward, SectionParser(config.headers), judge=config.judge)
    made = measure_gallery(config, reward)
    say(shown(made))
    if config.out is not None:
        write(made, config)
        say(f"written to {config.out}")


def measure_gallery(config: GalleryConfig, reward: HierarchicalReward) -> Gallery:
    """Every edit of the drawn studies, scored; those of a study are one group, so that they have the same parts."""
    reports, notes = read_studies(config)
    chosen, labeler = draw(reports, reward.labeler, config), reward.labeler
    texts, rewards, without = [], [], 0
    parts = [chosen[i : i + STUDIES_PER_CALL] for i in range(0, len(chosen), STUDIES_PER_CALL)]
    with tqdm(total=len(chosen), desc="gallery", unit="study", disable=None) as bar:
        for part in parts:
            edited = [make_edits(study_id, reports, labeler, config) for study_id in part]
            for own, found in zip(edited, _score(reward, edited), strict=True):
                without += len(own) - len(found)
                texts.append(own)
                rewards.append(found)
            bar.update(len(part))
    notes = [*notes, f"{len(chosen)} studies, seed {config.seed}; {'all' if config.normal else 'abnormal ones only'}"]
    if without:
        notes.append(f"{without} reports could not be scored, and are left out")
    return Gallery(
        edits=[_edit_row(name, texts, rewards) for name in EDITS],
        orders=[_order_row(better, worse, texts, rewards) for better, worse in ORDERS],
        notes=notes,
    )


def read_studies(config: GalleryConfig) -> tuple[dict[str, tuple[str, str]], list[str]]:
    """Findings and Impression by study id, and a note on those that lack one.

    Raises:
        ValueError: no study of the split has both.
    """
    if config.references is None:
        assert config.phantoms is not None  # the config says so
        drawn = make_studies(
            config.phantoms, num_train=2 * config.studies, num_val=0, num_test=0, seed=config.seed, size=PHANTOM_SIZE
        )
        return {study.id: (study.findings, study.impression) for study in drawn}, []
    read = read_report_file(config.references, "references")
    reports = {study_id: report for study_id, report in read.items() if config.split in ("all", report.split)}
    if not reports:
        raise ValueError(f"{config.references}: expected studies of split {config.split}, got none; correct the split")
    parse = SectionParser(config.headers)
    found = {study_id: _sections(report, parse) for study_id, report in reports.items()}
    whole = {study_id: both for study_id, both in found.items() if all(text.strip() for text in both)}
    if not whole:
        wanted = "expected references with Findings and an Impression"
        raise ValueError(f"{config.references}: {wanted}, got none among {len(reports)}")
    lacking = len(reports) - len(whole)
    left_out = [f"{lacking} references without Findings or Impression are left out"] if lacking else []
    return whole, [*read.notes, *left_out]


def _sections(report: Report, parse: SectionParser) -> tuple[str, str]:
    if report.divided:
        return report.findings or "", report.impression or ""
    sections = parse(report.text or "")
    return sections.findings, sections.impression


def draw(reports: Mapping[str, tuple[str, str]], labeler: Labeler, config: GalleryConfig) -> list[str]:
    """Ids of the studies that are edited, in the order of the file.

    Raises:
        ValueError: none is abnormal.
    """
    order = list(reports)
    random.Random(config.seed).shuffle(order)
    chosen = set()
    for study_id in order:
        if config.normal or labeler.abnormalities("\n\n".join(reports[study_id])) - labeler.ignorable:
            chosen.add(study_id)
        if len(chosen) == config.studies:
            break
    if not chosen:
        wanted = f"expected abnormal studies, the labeler of reward.expert {config.reward.expert} finds none"
        experts = ", ".join(LABELERS)
        raise ValueError(f"{wanted} among {len(reports)}; choose reward.expert ({experts}), or normal for all studies")
    return [study_id for study_id in reports if study_id in chosen]


def make_edits(study_id: str, reports: Mapping[str, tuple[str, str]], labeler: Labeler, config: GalleryConfig) -> Texts:
    """Every edit of a study that can be made."""
    generator = random.Random(f"{config.seed}/{study_id}")
    other = next((one for one in generator.sample(list(reports), min(9, len(reports))) if one != study_id), None)
    source = read_source(
        *reports[study_id],
        labeler,
        modality="carotid" if config.reward.expert == "carotid_rules" else "chest",
        generator=generator,
        other=None if other is None else render_report(*reports[other]),
    )
    made = {name: edit_report(name, source, seed=config.seed, study_id=study_id) for name in EDITS}
    return {name: text for name, text in made.items() if text is not None}


def _score(reward: HierarchicalReward, edited: Sequence[Texts]) -> list[Rewards]:
    """Rewards of each study's edits, those that could be computed; the same text is scored once."""
    rows = [(i, text) for i, texts in enumerate(edited) for text in dict.fromkeys(texts.values())]
    references = [edited[i][REFERENCE] for i, _ in rows]
    scores = reward([text for _, text in rows], references, groups=[i for i, _ in rows])
    totals = {row: score.total for row, score in zip(rows, scores, strict=True)}
    found = ({name: totals[i, text] for name, text in texts.items()} for i, texts in enumerate(edited))
    return [{name: total for name, total in own.items() if total is not None} for own in found]


def _edit_row(name: str, texts: Sequence[Texts], rewards: Sequence[Rewards]) -> EditRow:
    values = [own[name] for own in rewards if name in own]
    above = [own[name] - own[REFERENCE] for own in rewards if name in own and REFERENCE in own]
    pairs = _both(name, DROPPED, texts, rewards)
    return EditRow(
        edit=name,
        reward=_mean(values),
        difference=_mean(above),
        made=sum(name in own for own in texts) / len(texts),
        paid=_mean([float(own >= dropped) for own, dropped in pairs]),
    )


def _order_row(better: str, worse: str, texts: Sequence[Texts], rewards: Sequence[Rewards]) -> OrderRow:
    if worse == COPY:
        holds = [own[better] >= max(own.values()) for own in rewards if better in own]
    else:
        pairs = _both(better, worse, texts, rewards)
        holds = [first >= second if better == REFERENCE else first > second for first, second in pairs]
    return OrderRow(better, worse, _mean([float(held) for held in holds]), len(holds))


def _both(first: str, second: str, texts: Sequence[Texts], rewards: Sequence[Rewards]) -> list[tuple[float, float]]:
    """Rewards of two edits, of the studies where both are scored and differ."""
    return [
        (own[first], own[second])
        for own, written in zip(rewards, texts, strict=True)
        if first in own and second in own and written[first] != written[second]
    ]


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def shown(made: Gallery) -> str:
    """Both tables, the notes, and which exploits the reward pays for."""
    edits = [
        [row.edit, number(row.reward), number(row.difference, signed=True), _percent(row.made), _percent(row.paid)]
        for row in made.edits
    ]
    orders = [[row.name, _percent(row.holds), str(row.studies)] for row in made.orders]
    tables = [
        Table("Edits", ["edit", "reward", "to reference", "made", f"at least as {DROPPED}"], edits),
        Table("Orders", ["order", "holds", "studies"], orders),
    ]
    return "\n\n".join([*(table.text() for table in tables), "\n".join(made.notes), "\n".join(verdict(made))])


def verdict(made: Gallery) -> list[str]:
    """Which exploits the reward pays for, in plain words."""
    honest = f"the honest report with {DROPPED}"
    means = f"earn as much as {honest}, or more, in over {100 * PAID:.0f} % of the studies"
    if not made.paid:
        return [f"This reward pays for no exploit: none of these edits {means}."]
    return [
        f"This reward pays for {len(made.paid)} exploits, which {means}:",
        *(f"  {row.edit}: {_percent(row.paid)}" for row in made.paid),
    ]


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def write(made: Gallery, config: GalleryConfig) -> None:
    """The table as CSV (a row for each edit, then for each order) or as JSON."""
    assert config.out is not None  # the caller asked for it
    edits = [dataclasses.asdict(row) for row in made.edits]
    orders = [{"order": row.name, **dataclasses.asdict(row)} for row in made.orders]
    if config.out.suffix == ".json":
        paid = [row.edit for row in made.paid]
        write_json(config.out, {"edits": edits, "orders": orders, "paid": paid, "notes": list(made.notes)})
        return
    columns = ["edit", "reward", "difference", "made", "paid", "order", "holds", "studies"]
    write_whole(config.out, csv_document(columns, [*edits, *orders]))
