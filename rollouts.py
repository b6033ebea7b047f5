"""One batch of rollouts: sampled, scored while others are still decoded, made into cases, written down."""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from tqdm import tqdm

from capo.advantages import group_advantages
from capo.clipping import critical_clip
from capo.journal import write_lines
from capo.ranks import Ranks
from capo.rollout import Request
from capo.stopping import StopRequested
from capo.trainer import RlConfig
from capo.types import Case, Prompt, Rollout
from data.studies import Study
from rewards.base import Score
from rewards.workers import RewardWorkers, scores_of


@dataclass(frozen=True)
class Batch:
    """The studies of one step with G reports each, in the order of their sample index, and what these scored."""

    studies: tuple[Study, ...]
    prompts: tuple[Prompt, ...]
    groups: tuple[tuple[Rollout, ...], ...]
    texts: tuple[tuple[str, ...], ...]
    scores: tuple[tuple[Score, ...], ...]
    seconds_rollout: float
    seconds_reward: float  # spent waiting for rewards after the last report was there
    seconds_parts: Mapping[str, float]  # part of the reward -> seconds that all workers together spent on it

    def cases(self, critical: Mapping[str, bool], config: RlConfig) -> tuple[list[Case], dict[str, float]]:
        """Advantages within each study, and the cases of one optimiser batch."""
        totals = [float("nan") if s.total is None else s.total for group in self.scores for s in group]
        members = [number for number, group in enumerate(self.groups) for _ in group]
        result = group_advantages(torch.tensor(totals), torch.tensor(members), eps=config.advantage_eps)
        advantages = result.advantages.split([len(group) for group in self.groups])
        cases = [
            Case(prompt, group, values, critical[study.id])
            for prompt, group, values, study in zip(self.prompts, self.groups, advantages, self.studies, strict=True)
        ]
        spread = {
            "zero_std_groups": result.num_zero_std,
            "missing_rewards": result.num_missing,
            "critical_studies": sum(case.critical for case in cases),
        }
        return cases, spread

    def metrics(self) -> dict[str, float | None]:
        """Means over the step's reports: total, each part where it is known, length, truncation; how many reports lack
        a part that could not be computed (keys only for parts that some lack); where time went."""
        flat = [s for group in self.scores for s in group]
        totals = [s.total for s in flat if s.total is not None]
        reports = [report for group in self.groups for report in group]
        row: dict[str, float | None] = {
            "reward": statistics.fmean(totals) if totals else None,
            "reward_std": statistics.pstdev(totals) if totals else None,
        }
        for name in flat[0].parts:
            known = [s.parts[name] for s in flat if s.parts[name] is not None]
            row[f"reward_{name}"] = statistics.fmean(known) if known else None
        lacking = Counter(name for s in flat for name in s.missing)
        row |= {f"reward_missing_{name}": count for name, count in sorted(lacking.items())}
        row["length"] = statistics.fmean(len(report.response_ids) for report in reports)
        row["truncated"] = statistics.fmean(report.truncated for report in reports)
        row |= {"seconds_rollout": self.seconds_rollout, "seconds_reward": self.seconds_reward}
        return row | {f"seconds_{name}": seconds for name, seconds in self.seconds_parts.items()}


def sample_and_score(
    written: Iterable[Rollout],
    requests: Sequence[Request],
    studies: Sequence[Study],
    decode: Callable[[torch.Tensor], str],
    workers: RewardWorkers,
) -> Batch:
    """Collect the reports of every request; a group goes to the reward as soon as its last report is there.

    Args:
        written: the reports of `requests`, as the engine ends them.
        studies: of the requests, in their order.
    """
    began = time.perf_counter()
    groups: dict[str, dict[int, Rollout]] = {study.id: {} for study in studies}
    sizes = {request.prompt.study_id: len(request.seeds) for request in requests}
    references = {study.id: study.report for study in studies}
    texts, pending = {}, {}
    for report in written:
        group = groups[report.study_id]
        group[report.sample] = report
        if len(group) == sizes[report.study_id]:
            texts[report.study_id] = tuple(decode(group[i].response_ids) for i in range(len(group)))
            pending[report.study_id] = workers.submit(
                texts[report.study_id], [references[report.study_id]] * len(group)
            )
    sampled = time.perf_counter()
    scored = {study.id: scores_of(pending[study.id], study_id=study.id) for study in studies}
    return Batch(
        studies=tuple(studies),
        prompts=tuple(request.prompt for request in requests),
        groups=tuple(tuple(groups[study.id][i] for i in range(len(groups[study.id]))) for study in studies),
        texts=tuple(texts[study.id] for study in studies),
        scores=tuple(scored[study.id].scores for study in studies),
        seconds_rollout=sampled - began,
        seconds_reward=time.perf_counter() - sampled,
        seconds_parts=_summed(item.seconds for item in scored.values()),
    )


def _summed(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for seconds in parts:
        for name, value in seconds.items():
            total[name] = total.get(name, 0.0) + value
    return total


class LazyPrompt:
    """The prompt of a study that another rank wrote the reports of: built only if this rank comes to train on it."""

    def __init__(self, study_id: str, num_tokens: int, build: Callable[[], Prompt]) -> None:
        self.study_id, self.num_tokens, self._build = study_id, num_tokens, build

    @cached_property
    def _built(self) -> Prompt:
        return self._build()

    def __getattr__(self, name: str) -> object:
        return getattr(self._built, name)


def exchange(mine: Batch | None, studies: Sequence[Study], ranks: Ranks, build: Callable[[Study], Prompt]) -> Batch:
    """The batch of all ranks, the same on each, from the part that each sampled.

    Args:
        mine: None when this rank was stopped before it was done.
        studies: of the whole batch, in order.
        build: makes the prompt of a study.

    Raises:
        StopRequested: some rank was stopped.
    """
    parts = ranks.gather(None if mine is None else _rows(mine))
    if any(part is None for part in parts):
        raise StopRequested(f"stopped in stage {ranks.stage}, as asked")
    if ranks.size == 1:
        return mine
    own = dict(zip((study.id for study in mine.studies), mine.prompts, strict=True))
    rows = {row["id"]: row for part in parts for row in part["rows"]}
    return Batch(
        studies=tuple(studies),
        prompts=tuple(
            own[study.id] if study.id in own else LazyPrompt(study.id, rows[study.id]["length"], partial(build, study))
            for study in studies
        ),
        groups=tuple(
            tuple(_rollout(study.id, i, r) for i, r in enumerate(rows[study.id]["reports"])) for study in studies
        ),
        texts=tuple(tuple(r["text"] for r in rows[study.id]["reports"]) for study in studies),
        scores=tuple(tuple(_score(r) for r in rows[study.id]["reports"]) for study in studies),
        seconds_rollout=max(part["seconds"][0] for part in parts),
        seconds_reward=max(part["seconds"][1] for part in parts),
        seconds_parts=_summed(part["seconds_parts"] for part in parts),
    )


def _rows(batch: Batch) -> dict[str, object]:
    rows = []
    for study, prompt, group, texts, scores in zip(
        batch.studies, batch.prompts, batch.groups, batch.texts, batch.scores, strict=True
    ):
        reports = [
            {
                "tokens": report.response_ids.tolist(),
                "logps": report.behaviour_logps.tolist(),
                "truncated": report.truncated,
                "text": text,
                **_score_row(score),
            }
            for report, text, score in zip(group, texts, scores, strict=True)
        ]
        rows.append({"id": study.id, "length": prompt.num_tokens, "reports": reports})
    seconds = [batch.seconds_rollout, batch.seconds_reward]
    return {"rows": rows, "seconds": seconds, "seconds_parts": dict(batch.seconds_parts)}


def _score_row(score: Score) -> dict[str, object]:
    """A score as JSON, whole; `_score` reads it back."""
    return {
        "total": score.total,
        "parts": dict(score.parts),
        "missing": list(score.missing),
        "left_out": list(score.left_out),
    }


def _score(row: Mapping) -> Score:
    return Score(row["total"], row["parts"], tuple(row["missing"]), tuple(row["left_out"]))


def _rollout(study_id: str, sample: int, row: Mapping) -> Rollout:
    return Rollout(
        study_id, sample, torch.tensor(row["tokens"]), torch.tensor(row["logps"]), truncated=row["truncated"]
    )


def watched(
    written: Iterable[Rollout], title: str, total: int, *, leave: bool = True, shown: bool = True
) -> Iterator[Rollout]:
    """The reports as they come, behind a bar with reports and tokens a second."""
    began, tokens = time.perf_counter(), 0
    hidden = None if shown else True  # None: where there is no terminal
    with tqdm(total=total, desc=title, unit="report", disable=hidden, mininterval=1, leave=leave) as bar:
        for report in written:
            tokens += len(report.response_ids)
            bar.set_postfix_str(f"{tokens / (time.perf_counter() - began):.0f} tokens/s", refresh=False)
            bar.update()
            yield report


def write_batch(path: Path, batch: Batch, cases: Sequence[Case], config: RlConfig) -> None:
    """Every report of a step with every part of its reward, its advantage and its clip range."""
    flags = torch.tensor([case.critical for case in cases])
    clips = critical_clip(flags, eps_normal=config.eps_normal, tightening=config.tightening).tolist()
    rows = []
    for study, case, texts, scores, clip in zip(batch.studies, cases, batch.texts, batch.scores, clips, strict=True):
        reports = [
            {
                "report": text,
                "tokens": len(report.response_ids),
                "truncated": report.truncated,
                **_score_row(item),
                "advantage": advantage,
            }
            for text, report, item, advantage in zip(
                texts, case.rollouts, scores, case.advantages.tolist(), strict=True
            )
        ]
        rows.append(
            {"id": study.id, "critical": case.critical, "eps": clip, "reference": study.report, "reports": reports}
        )
    write_lines(path, rows)
