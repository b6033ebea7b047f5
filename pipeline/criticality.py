"""Label every training reference as critical or normal, once: by rules or a language model, and by a person first."""

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from capo.checkpoint import check_product
from capo.journal import digests_path, write_lines, write_sealed
from capo.ranks import Ranks
from capo.stopping import StopSignal
from radflow.dashboard.checks import check_criticality
from radflow.dashboard.run_files import read_rows, read_selected
from radflow.data.corpus import load_corpus
from radflow.data.readers.tables import escape_control
from radflow.data.sections import SectionParser
from radflow.data.studies import Study
from radflow.pipeline.corrections import read_corrections
from radflow.pipeline.resumable import resumable_map
from radflow.pipeline.run import check_products, run_on_ranks, seal_product
from radflow.pipeline.run_config import Config
from radflow.rewards.judge.asker import Asker
from radflow.rewards.judge.llm import CriticalityLlm
from radflow.rewards.registry import Backends
from radflow.rewards.rules.criticality import Criticality, CriticalityRules
from radflow.rewards.types import Labeler

AT_ONCE = 32  # reports asked about together
EXAMPLES = 10  # of each kind
SHOWN = 240  # characters of an example

Row = Mapping[str, object]


def annotate_references(config: Config) -> None:
    """Label the references of a run, and print the share of critical ones with examples of each kind."""

    def work(ranks: Ranks, stop: StopSignal) -> None:
        ranks.stage = "criticality"
        studies = ranks.do_or_stop(partial(load_corpus, config.data, seed=config.seed), stop).train
        check_products(config.run_dir, ranks)
        backends = Backends(config.reward, SectionParser(config.data.headers))
        rows = label_references(config, studies, lambda: backends.rules, ranks, stop)
        if ranks.is_main:
            seal_product(config.run_dir, "criticality")
            print(summarise(rows))
            print(format_examples(rows, studies, seed=config.seed))

    run_on_ranks(config, work)


def label_references(
    config: Config, studies: Sequence[Study], labeler: Callable[[], Labeler], ranks: Ranks, stop: StopSignal
) -> list[Row]:
    """Rows of id, critical, reason and source, one per study -> criticality.jsonl; the same on every rank.

    Args:
        labeler: builds what the rules read.

    Raises:
        ValueError: questions stayed unanswered (what was answered is kept), the corrected file has a mistake, or
            labels would change under a CAPO stage that has begun.
        StopRequested: some rank was stopped.
    """
    folder, size = config.run_dir / "criticality", config.criticality.part_size
    judge = _Judge(config, labeler, stop, shown=ranks.is_main)
    corrected = _read_corrected(config, studies, folder, ranks)
    if ranks.is_main:
        _remove_incomplete(folder, corrected)
    ranks.barrier()
    work = partial(judge.rows, skip=corrected)
    try:
        found = resumable_map(folder, studies, size, work, ranks, title="criticality")
    finally:
        if judge.llm:
            judge.llm.asker.close()
    _print_counts(ranks, asdict(judge.llm.stats) if judge.llm else {})
    rows = [_to_row(str(row["id"]), corrected[str(row["id"])]) if row["id"] in corrected else row for row in found]
    if missing := [str(row["id"]) for row in rows if row["critical"] is None]:
        why = f" ({judge.llm.asker.last_trouble})" if judge.llm and judge.llm.asker.last_trouble else ""
        some = f"{len(missing)} of {len(rows)} reports have no label{why}: {', '.join(missing[:20])}"
        advice = "rerun the same command, or label these studies in a file and name it in criticality.corrected"
        raise ValueError(f"criticality: {some}. The answers so far are kept: {advice}")
    if ranks.is_main:
        _write_labels(config.run_dir, rows)
        warn_if_one_sided(config, rows)
    return rows


class _Judge:
    """Rules or model, built when the first part is labelled: a finished stage needs no server."""

    def __init__(self, config: Config, labeler: Callable[[], Labeler], stop: StopSignal, *, shown: bool) -> None:
        self._config, self._labeler, self._stop, self._hidden = config, labeler, stop, None if shown else True
        self._judge: CriticalityRules | CriticalityLlm | None = None

    def rows(self, studies: Sequence[Study], _: str, *, skip: Mapping[str, Criticality]) -> list[Row]:
        """The source's labels; `critical` is None if it has none, or was not asked because of a correction."""
        if self._judge is None:
            who = self._config.criticality
            if who.source == "rules":
                self._judge = CriticalityRules(self._labeler(), who.definition)
            else:
                self._judge = CriticalityLlm(Asker(self._config.judge), who.definition)
        labels: dict[str, Criticality | None] = {}
        asked = [study for study in studies if study.id not in skip]
        with tqdm(total=len(asked), desc="labelled", unit="report", leave=False, disable=self._hidden) as bar:
            for first in range(0, len(asked), AT_ONCE):
                some = asked[first : first + AT_ONCE]
                with self._stop.at_once():  # answers that came are in the judge's cache
                    found = self._judge([study.report for study in some])
                labels |= zip([study.id for study in some], found, strict=True)
                bar.update(len(some))
                bar.set_postfix_str(f"cost so far {self.llm.stats.spent:.4g}" if self.llm else "")
        return [_to_row(study.id, labels.get(study.id)) for study in studies]

    @property
    def llm(self) -> CriticalityLlm | None:
        """The model, if one was asked."""
        return self._judge if isinstance(self._judge, CriticalityLlm) else None


def _to_row(study_id: str, label: Criticality | None) -> Row:
    unlabelled = dict.fromkeys(("critical", "reason", "source"))
    return {"id": study_id, **(unlabelled if label is None else asdict(label))}


def _read_corrected(config: Config, studies: Sequence[Study], folder: Path, ranks: Ranks) -> Mapping[str, Criticality]:
    """Of the file that is given now, else of the one given last: it is kept, so that no correction gets lost."""
    kept, given = folder / "corrected.jsonl", config.criticality.corrected
    if given is None and not kept.exists():
        return {}
    if given is None:
        check_product(kept, Ranks(), advice="restore it, or give the labels again in criticality.corrected")
    labels = read_corrections(given or kept, {study.id for study in studies})
    if given is not None and ranks.is_main:
        write_sealed(kept, [_to_row(study_id, label) for study_id, label in labels.items()])
    return labels


def _remove_incomplete(folder: Path, corrected: Mapping[str, Criticality]) -> None:
    """Remove part files that lack labels; what they hold comes from the judge's cache again, unasked."""
    for path in sorted(folder.glob("part_*.jsonl")):
        if any(row["critical"] is None and row["id"] not in corrected for row in read_rows(path, kind="labels")):
            path.unlink()
            digests_path(path).unlink(missing_ok=True)


def _print_counts(ranks: Ranks, stats: Mapping[str, Any]) -> None:
    counts: Counter[str] = Counter()
    for each in ranks.all_gather(stats):
        counts.update(each)
    if ranks.is_main and counts:
        print(f"judge: {', '.join(f'{name} {number:g}' for name, number in counts.items())}", flush=True)


def _write_labels(run_dir: Path, rows: Sequence[Row]) -> None:
    path = run_dir / "criticality.jsonl"
    before, now = ({row["id"]: row["critical"] for row in some} for some in (read_rows(path), rows))
    if before and before != now and (run_dir / "rl").exists():
        changed = sum(before.get(study_id) != critical for study_id, critical in now.items())
        begun = f"the CAPO stage in {run_dir / 'rl'} has begun with the old ones"
        advice = "remove that folder, or choose another run_dir"
        raise ValueError(f"{path}: {changed} labels would change, but {begun}; {advice}")
    write_lines(path, rows)


def summarise(rows: Sequence[Row]) -> str:
    """One line: how many are critical, and who said so."""
    critical, sources = sum(bool(row["critical"]) for row in rows), Counter(str(row["source"]) for row in rows)
    by = ", ".join(f"{escape_control(source)} {number}" for source, number in sorted(sources.items()))
    share = f"{critical} of {len(rows)} references are critical ({critical / len(rows):.1%})"
    return f"criticality: {share}, {len(rows) - critical} normal; labelled by {by}"


def warn_if_one_sided(config: Config, rows: Sequence[Row]) -> None:
    """Say so before RL if nearly all or nearly none of the references that it trains on are critical."""
    if warning := check_criticality(rows, read_selected(config.run_dir), config.criticality.definition):
        print(f"warning: {warning.text}", flush=True)


def format_examples(rows: Sequence[Row], studies: Sequence[Study], *, seed: int) -> str:
    """Some references of each kind, drawn at random, with the reason."""
    reports, lines = {study.id: study.report for study in studies}, []
    for critical, kind in ((True, "critical"), (False, "normal")):
        some = [row for row in rows if row["critical"] is critical]
        drawn = random.Random(seed).sample(some, min(EXAMPLES, len(some)))
        lines.append(f"{kind}, {len(drawn)} of {len(some)}:")
        for row in drawn:
            lines.append(f"  {escape_control(str(row['id']))}: {shorten(reports[str(row['id'])])}")
            lines.append(f"      because: {shorten(str(row['reason']))} ({escape_control(str(row['source']))})")
    return "\n".join(lines)


def shorten(text: str) -> str:
    """`text` in one line of at most `SHOWN` characters and an ellipsis, before escapes."""
    line = " ".join(text.split())
    return escape_control(line if len(line) <= SHOWN else line[:SHOWN].rstrip() + " ...")
