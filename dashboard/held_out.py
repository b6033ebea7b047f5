"""The first screen of a finished run: held-out studies, and what each of the two policies gets right and wrong."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from radflow.dashboard.marks import Case, Marker
from radflow.dashboard.run_files import RunFiles, evenly
from radflow.dashboard.studies import StudySource, shorten
from radflow.rewards.rules.errors import COSTS

SHOWN, SIDE = 5, 256
READ = 400  # studies whose reports are read; at more than a few milliseconds each the page would take too long


@dataclass(frozen=True)
class Pair:
    """The reports of two policies about one study."""

    id: str
    texts: tuple[str, str, str]
    """Reference, SFT, CAPO."""
    normal: bool
    """The reference states nothing abnormal."""
    added: float
    """Cost of CAPO's errors minus that of SFT's, weighted as in the truth of a report."""


@dataclass(frozen=True)
class HeldOut:
    """What the page shows of them."""

    cases: Sequence[Case]
    studies: int
    read: int
    fewer: int
    """Studies of those read in which CAPO's errors cost less than SFT's."""
    more: int


def pick_held_out(run: RunFiles, source: StudySource) -> HeldOut | None:
    """The studies of the first screen; None before the evaluation."""
    if not (reports := run.held_out()):
        return None
    marker = Marker(run.config.get("reward", {}).get("expert", ""))
    pairs = [_compare(study_id, reports[study_id], marker) for study_id in evenly(list(reports), READ)]
    fewer, more = sum(pair.added < 0 for pair in pairs), sum(pair.added > 0 for pair in pairs)
    cases = [_show(pair, marker, source) for pair in choose(pairs)]
    return HeldOut(cases, len(reports), len(pairs), fewer, more)


def choose(pairs: Sequence[Pair]) -> list[Pair]:
    """The SHOWN pairs whose errors differ most, the first among equals; one where CAPO is worse and one normal study
    are among them, if there are any."""
    ranked = sorted(pairs, key=lambda pair: -abs(pair.added))
    worse, normal = (pair for pair in ranked if pair.added > 0), (pair for pair in ranked if pair.normal)
    kept = list(dict.fromkeys([*islice(worse, 1), *islice(normal, 1), *ranked]))[:SHOWN]
    return sorted(kept, key=ranked.index)


def _compare(study_id: str, texts: tuple[str, str, str], marker: Marker) -> Pair:
    reference, sft, capo = (shorten(text) for text in texts)
    first, second = (sum(COSTS[error.kind] for error in marker.errors(text, reference)) for text in (sft, capo))
    return Pair(study_id, (reference, sft, capo), marker.is_normal(reference), second - first)


def _show(pair: Pair, marker: Marker, source: StudySource) -> Case:
    reference, sft, capo = pair.texts
    columns = marker.mark(reference, {"SFT": sft, "CAPO": capo})
    compared = "better than SFT" if pair.added < 0 else "worse than SFT" if pair.added > 0 else "as SFT"
    remark = f"{'normal study, ' if pair.normal else ''}CAPO {compared}"
    return Case(pair.id, source.images(pair.id, SIDE), columns, remark)
