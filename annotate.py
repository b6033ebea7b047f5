"""Label every training reference as critical or normal, once.

    python train.py annotate --config configs/my.yaml                       labels by rules -> criticality.jsonl
    ... --source llm --judge.model gpt-4o                                   by a language model (docs/judge.md)
    ... --corrected labels.jsonl                                            labels of a person go before them

It prints the share of critical studies and ten examples of each kind. Killed or with questions left unanswered, it goes
on when the same command is started again; nothing that was answered is asked again.
"""

import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from capo.journal import read_lines, write_lines
from capo.ranks import Ranks
from capo.stopping import StopRequested, StopSignal
from data.corpus import load_corpus
from data.studies import Study
from parts import in_parts
from rewards.base import Labeler
from rewards.catalogue import Backends
from rewards.corrections import read_corrections
from rewards.criticality import Criticality, CriticalityRules
from rewards.judge import CriticalityLlm
from run_folder import read_config
from stages import Config, in_run

SHORT = {"--source": "--criticality.source", "--corrected": "--criticality.corrected"}
AT_ONCE = 32  # reports asked about between two looks at whether the run should stop
EXAMPLES = 10  # of each kind
SHOWN = 240  # characters of an example

Row = Mapping[str, object]


def command(argv: Sequence[str]) -> None:
    """`train.py annotate`."""
    argv = ["=".join([SHORT.get(name, name), *value]) for name, *value in (word.split("=", 1) for word in argv)]
    config = read_config(Config, argv, default=Path("configs/demo.yaml"), description=__doc__)

    def work(ranks: Ranks, stop: StopSignal) -> None:
        studies = load_corpus(config.data, seed=config.seed).train
        rows = label_references(config, studies, lambda: labeler_of(config), ranks, stop)
        if ranks.first:
            print(summary(rows))
            print(examples(rows, studies, seed=config.seed))

    in_run(config, work)


def labeler_of(config: Config) -> Labeler:
    return Backends(config.reward, config.judge).rules


def label_references(
    config: Config, studies: Sequence[Study], labeler: Callable[[], Labeler], ranks: Ranks, stop: StopSignal
) -> list[Row]:
    """Rows of id, critical, reason and source, one a study -> criticality.jsonl; the same on every rank.

    Args:
        labeler: what rules stand on, built when they are asked.

    Raises:
        ValueError: questions stayed unanswered (what was answered is kept), the corrected file has a mistake, or
            labels would change under a CAPO stage that has begun.
        StopRequested: some rank was stopped.
    """
    folder = config.run_dir / "criticality"
    corrected = _corrections(config, studies, folder, ranks)
    if ranks.first:
        _reopen(folder, corrected)
    ranks.meet()
    judge = _Judge(config, labeler, stop)
    try:
        found = in_parts(
            folder, studies, config.explore.part_size, lambda part, _: judge.rows(part, skip=corrected), ranks,
            title="criticality",
        )  # fmt: skip
    finally:
        judge.close()
    _say_what_it_took(ranks, judge)
    rows = [_row(str(row["id"]), corrected[row["id"]]) if row["id"] in corrected else row for row in found]
    if missing := [str(row["id"]) for row in rows if row["critical"] is None]:
        why = f" ({judge.last_trouble})" if judge.last_trouble else ""
        raise ValueError(
            f"criticality: {len(missing)} of {len(rows)} reports have no label{why}: {', '.join(missing[:20])}. The "
            "answers so far are kept: start the same command again, or label these studies in a file and give it as "
            "--criticality.corrected"
        )
    if ranks.first:
        _write(config.run_dir, rows)
    return rows


class _Judge:
    """Rules or model, built when the first part is labelled: a finished stage needs no server."""

    def __init__(self, config: Config, labeler: Callable[[], Labeler], stop: StopSignal) -> None:
        self._config, self._labeler, self._stop = config, labeler, stop
        self._judge: CriticalityRules | CriticalityLlm | None = None

    def rows(self, studies: Sequence[Study], *, skip: Mapping[str, Criticality]) -> list[Row]:
        """The source's labels; critical is None where it has none, or was not asked because a person knows better."""
        if self._judge is None:
            by_rules = self._config.criticality.source == "rules"
            self._judge = (
                CriticalityRules(self._labeler()) if by_rules else CriticalityLlm.from_config(self._config.judge)
            )
        labels: dict[str, Criticality | None] = {}
        asked = [study for study in studies if study.id not in skip]
        for first in range(0, len(asked), AT_ONCE):
            if self._stop.requested:
                raise StopRequested("stopped while references were labelled")
            some = asked[first : first + AT_ONCE]
            labels |= zip([study.id for study in some], self._judge([study.report for study in some]), strict=True)
        return [_row(study.id, labels.get(study.id)) for study in studies]

    @property
    def stats(self) -> dict[str, float]:
        return asdict(self._judge.stats) if isinstance(self._judge, CriticalityLlm) else {}

    @property
    def last_trouble(self) -> str:
        return self._judge.asker.last_trouble if isinstance(self._judge, CriticalityLlm) else ""

    def close(self) -> None:
        if isinstance(self._judge, CriticalityLlm):
            self._judge.asker.close()


def _row(study_id: str, label: Criticality | None) -> Row:
    if label is None:
        return {"id": study_id, "critical": None, "reason": None, "source": None}
    return {"id": study_id, "critical": label.critical, "reason": label.reason, "source": label.source}


def _corrections(config: Config, studies: Sequence[Study], folder: Path, ranks: Ranks) -> Mapping[str, Criticality]:
    """Of the file that is given now, else of the one given last: it is kept, so that no correction gets lost."""
    kept, given = folder / "corrected.jsonl", config.criticality.corrected
    if given is None and not kept.exists():
        return {}
    labels = read_corrections(given or kept, {study.id for study in studies})
    if given is not None and ranks.first:
        write_lines(kept, [_row(study_id, label) for study_id, label in labels.items()])
    return labels


def _reopen(folder: Path, corrected: Mapping[str, Criticality]) -> None:
    """Remove part files that lack labels; what they hold comes from the judge's cache again, unasked."""
    for path in sorted(folder.glob("part_*.jsonl")):
        if any(row["critical"] is None and row["id"] not in corrected for row in read_lines(path)):
            path.unlink()


def _say_what_it_took(ranks: Ranks, judge: _Judge) -> None:
    counts: Counter[str] = Counter()
    for stats in ranks.gather(judge.stats):
        counts.update(stats)
    if ranks.first and counts:
        print(f"judge: {', '.join(f'{name} {number:g}' for name, number in counts.items())}", flush=True)


def _write(run_dir: Path, rows: Sequence[Row]) -> None:
    path = run_dir / "criticality.jsonl"
    before, now = ({row["id"]: row["critical"] for row in some} for some in (read_lines(path), rows))
    if before and before != now and (run_dir / "rl").exists():
        changed = sum(before.get(study_id) != critical for study_id, critical in now.items())
        raise ValueError(
            f"{path}: {changed} labels would change, but the CAPO stage in {run_dir / 'rl'} has begun with the old "
            "ones; remove that folder, or choose another --run-dir"
        )
    write_lines(path, rows)


def summary(rows: Sequence[Row]) -> str:
    """One line: how many are critical, and who said so."""
    critical, sources = sum(bool(row["critical"]) for row in rows), Counter(str(row["source"]) for row in rows)
    by = ", ".join(f"{printable(source)} {number}" for source, number in sorted(sources.items()))
    return (
        f"criticality: {critical} of {len(rows)} references are critical ({critical / len(rows):.1%}), "
        f"{len(rows) - critical} normal; labelled by {by}"
    )


def examples(rows: Sequence[Row], studies: Sequence[Study], *, seed: int) -> str:
    """Some references of each kind, drawn at random, with the reason."""
    reports, lines = {study.id: study.report for study in studies}, []
    for critical, kind in ((True, "critical"), (False, "normal")):
        some = [row for row in rows if row["critical"] is critical]
        drawn = random.Random(seed).sample(some, min(EXAMPLES, len(some)))
        lines.append(f"{kind}, {len(drawn)} of {len(some)}:")
        for row in drawn:
            lines.append(f"  {printable(str(row['id']))}: {shortened(reports[str(row['id'])])}")
            lines.append(f"      because: {shortened(str(row['reason']))} ({printable(str(row['source']))})")
    return "\n".join(lines)


def shortened(text: str) -> str:
    """`text` in one line of at most `SHOWN` characters and an ellipsis, before escapes."""
    line = " ".join(text.split())
    return printable(line if len(line) <= SHOWN else line[:SHOWN].rstrip() + " ...")


def printable(text: str) -> str:
    """`text` with control characters escaped: a report or a reason must not steer the terminal."""
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)
