"""Which labeler and which lexicon read a set of references, and whether they are made for these."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from radflow.data.sections import SectionParser, parse_sections
from radflow.rewards.metrics.lexical import notes_on_tokens
from radflow.rewards.registry import LABELERS
from radflow.rewards.rules.criticality import Definition
from radflow.rewards.rules.keywords import CAROTID, Lexicon, positive_keywords
from radflow.rewards.unspaced import has_characters

LabelerName = Literal["chexpert_rules", "carotid_rules"]
DEFAULT_LABELER: LabelerName = "chexpert_rules"
READ_LABELS = ("labels_rules", "label_f1_rules", "consistency_rules")


@dataclass(frozen=True)
class Rules:
    """What reads labels, keywords and criticality."""

    labeler: LabelerName = DEFAULT_LABELER
    lexicon: Path | None = None
    missing: Mapping[str, str] = field(default_factory=dict)  # metrics or label cells -> why they are left out
    definition: Definition = "paper"  # of criticality
    tokens: tuple[str, ...] = ()  # notes on what BLEU and ROUGE-L read
    by_character: bool = False  # as these then are

    @property
    def labels_fit(self) -> bool:
        return "labels_rules" not in self.missing


def choose_rules(
    labeler: LabelerName | None,
    lexicon: Path | None,
    files: Sequence[Path | None],
    references: Sequence[str],
    parse: SectionParser = parse_sections,
) -> Rules:
    """Those that are named, else those of the run that wrote the files, else chest labels and carotid keywords.

    A labeler is refused if it finds something abnormal in fewer than one reference in ten while another one does in at
    least one in four: it reads another organ, and would call every reference normal. (Of real chest reports about one
    in three has an abnormal Impression, and two in three are abnormal as a whole.) References that are all normal suit
    every labeler. A labeler without a single label for any reference, not even the normal one, and a lexicon without a
    keyword in one reference in ten are refused if they were named; as a default they only leave their metrics out.

    Raises:
        ValueError: the labeler or the lexicon is not made for these references.
    """
    run = read_run_rewards(files)
    name: LabelerName = labeler or run.get("expert", DEFAULT_LABELER)
    words = lexicon or (Path(run["lexicon"]) if run.get("lexicon") else None)
    missing = {}
    if reason := _unlabelled(name, references, parse):
        if labeler is not None:
            raise ValueError(f"{reason}; choose the one made for these reports, or none to leave its metrics out")
        missing = dict.fromkeys(READ_LABELS, f"{reason}; choose one that is made for these reports")
    if reason := _without_keywords(words or CAROTID, references):
        if lexicon is not None:
            raise ValueError(f"{reason}; choose one for these reports, or none to leave keyword F1 out")
        missing["keyword_f1_rules"] = f"{reason}; choose one for these reports"
    definition, by_character = run.get("definition", "paper"), any(map(has_characters, references))
    return Rules(name, words, missing, definition, tuple(notes_on_tokens(references)), by_character)


def _unlabelled(name: LabelerName, references: Sequence[str], parse: SectionParser) -> str | None:
    """Why a labeler can say nothing of these references; None if it can."""
    labeler = LABELERS[name](parse)
    abnormal = sum(bool(labeler.abnormalities(text)) for text in references)
    if 10 * abnormal < len(references):
        for other, make in LABELERS.items():
            if 4 * (more := sum(bool(make(parse).abnormalities(text)) for text in references)) >= len(references):
                found = f"it finds something abnormal in {abnormal} of {len(references)}, {other} in {more}"
                wanted = f"expected references that the labeler {name} is made for"
                raise ValueError(f"{wanted}: {found}; choose the labeler {other}")
    if any(labeler(references)):
        return None
    return f"expected references that the labeler {name} finds a label in, it finds none in any of {len(references)}"


def _without_keywords(path: Path, references: Sequence[str]) -> str | None:
    """Why a lexicon compares nothing but the words for "normal"; None if it compares more."""
    lexicon = Lexicon.load(path)
    named = sum(bool(positive_keywords(text, lexicon) - {lexicon.normal.name}) for text in references)
    if 10 * named >= len(references):
        return None
    return f"{named} of {len(references)} references name a keyword of the lexicon {lexicon.name}"


def read_run_rewards(files: Sequence[Path | None]) -> dict[str, Any]:
    """Labeler, lexicon and definition of criticality of the run in whose folder `eval` the files lie, if in any.

    Runs with different definitions of criticality are compared by the paper's.

    Raises:
        ValueError: they belong to runs with different labelers or lexicons.
    """
    found: dict[str, Any] = {}
    definitions = set()
    for config, written in run_configs(files):
        reward = written.get("reward") or {}
        expert = "carotid_rules" if reward.get("expert") == "carotid_rules" else DEFAULT_LABELER
        own = {"expert": expert, "lexicon": reward.get("lexicon")}
        if found and own != found:
            got = f"{config} has {own} and another run {found}"
            wanted = "expected files of runs with one labeler and one lexicon"
            raise ValueError(f"{wanted}, {got}; choose the labeler and the lexicon")
        found = own
        definitions.add((written.get("criticality") or {}).get("definition", "paper"))
    return found | ({"definition": definitions.pop()} if len(definitions) == 1 else {})


def run_configs(files: Sequence[Path | None]) -> Iterator[tuple[Path, dict[str, Any]]]:
    for file in files:
        folder = Path() if file is None else file.resolve().parent
        config = folder.parent / "config.yaml"
        if folder.name == "eval" and config.is_file():
            from radflow.dashboard.run_files import read_yaml  # only runs have YAML files

            yield config, read_yaml(config) or {}
