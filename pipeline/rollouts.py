"""The rollouts of a step: sampled, scored while others are still sampled, exchanged, made into cases, written down."""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from capo.advantages import GroupAdvantages
from capo.journal import write_lines
from capo.ranks import Ranks
from capo.rollout import Engine, Request
from capo.sampling import sample_seed
from capo.stopping import StopRequested
from capo.types import Case, Prompt, Rollout
from radflow.data.studies import Study
from radflow.models.qwen_vl import QwenVL
from radflow.pipeline.generation import build_prompt, prepare_generation, with_progress
from radflow.pipeline.run import Run
from radflow.rewards.types import Score
from radflow.rewards.workers import RewardWorkers, scores_of


def rollout_engine(policy: QwenVL, run: Run, suppressed: Tensor, *, num_studies: int) -> Engine:
    """The engine of this rank for steps of `num_studies` studies."""
    config = run.config
    reports = -(-num_studies // run.ranks.size) * config.rl.group_size
    return Engine(
        policy,
        sampling=config.rollout,
        eos_id=run.processor.eos_id,
        suppressed=suppressed,
        slots=min(config.rollout.slots, reports),
    )


def sample(engine: Engine, run: Run, prompts: Sequence[Prompt], *, step: int) -> Iterator[Rollout]:
    """G reports for each prompt of this rank, each as soon as it ends.

    Raises:
        StopRequested: the run was asked to stop.
    """
    seed, group = run.config.seed, run.config.rl.group_size
    requests = [
        Request(prompt, tuple(sample_seed(seed, "rl", step, prompt.study_id, i) for i in range(group)))
        for prompt in prompts
    ]
    shown, title = run.ranks.is_main, f"rollouts of step {step}"
    with prepare_generation(cast(QwenVL, engine.policy)):
        written = engine.rollout(requests, stop=run.stop)
        yield from with_progress(written, title, group * len(requests), leave=False, shown=shown)


def score(
    rollouts: Iterable[Rollout], run: Run, studies: Sequence[Study], prompts: Sequence[Prompt], workers: RewardWorkers
) -> "Batch":
    """The rewards of a step's reports (paper eq. 4 to 7): each rank scores what it sampled, and all learn of all.

    Args:
        rollouts: of this rank, as they end.
        studies: of the whole step, in order.
        prompts: of this rank's share of them.

    Raises:
        StopRequested: some rank was stopped.
    """
    own = [studies[i] for i in run.ranks.assign([1] * len(studies))]
    try:
        mine = score_groups(rollouts, own, prompts, run.config.rl.group_size, run.processor.decode, workers)
    except StopRequested:
        mine = None
    return all_gather_batch(mine, studies, run.ranks, partial(build_prompt, run.processor))


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

    @property
    def rewards(self) -> Tensor:
        """[N] float32, the total of each report; NaN if it could not be computed."""
        return torch.tensor([float("nan") if s.total is None else s.total for group in self.scores for s in group])

    @property
    def group_index(self) -> Tensor:
        """[N] int64, the number of each report's study in the batch."""
        return torch.tensor([number for number, group in enumerate(self.groups) for _ in group])

    def select(self, labels: Mapping[str, bool]) -> Tensor:
        """[studies] bool, the label of each study."""
        return torch.tensor([labels[study.id] for study in self.studies])

    def cases(self, advantages: Tensor, critical: Tensor, clip: Tensor) -> list[Case]:
        """What one optimiser batch trains on.

        Args:
            advantages: [N], of each report (paper eq. 1).
            critical: [studies] bool.
            clip: [studies], eps_i of each study (paper eq. 9).
        """
        per_study = advantages.split([len(group) for group in self.groups])
        columns = zip(self.prompts, self.groups, per_study, critical.tolist(), clip.tolist(), strict=True)
        return [Case(*column) for column in columns]

    def metrics(self, advantages: GroupAdvantages, critical: Tensor) -> dict[str, float | None]:
        """Means over the step's reports: total, each known part, length, truncation; how many reports lack a part that
        could not be computed (keys only for parts that some lack); seconds; counts of groups, rewards and studies."""
        flat = [s for group in self.scores for s in group]
        totals = [s.total for s in flat if s.total is not None]
        reports = [report for group in self.groups for report in group]
        row: dict[str, float | None] = {
            "reward": statistics.fmean(totals) if totals else None,
            "reward_std": statistics.pstdev(totals) if totals else None,
        }
        for name in flat[0].parts:
            known = [value for s in flat if (value := s.parts[name]) is not None]
            row[f"reward_{name}"] = statistics.fmean(known) if known else None
        lacking = Counter(name for s in flat for name in s.missing)
        row |= {f"reward_missing_{name}": count for name, count in sorted(lacking.items())}
        row["length"] = statistics.fmean(len(report.response_ids) for report in reports)
        row["truncated"] = statistics.fmean(report.truncated for report in reports)
        row |= {"seconds_rollout": self.seconds_rollout, "seconds_reward": self.seconds_reward}
        row |= {f"seconds_{name}": seconds for name, seconds in self.seconds_parts.items()}
        row |= {"zero_std_groups": advantages.num_zero_std, "missing_rewards": advantages.num_missing}
        return row | {"critical_studies": int(critical.sum())}


def score_groups(
    rollouts: Iterable[Rollout],
    studies: Sequence[Study],
    prompts: Sequence[Prompt],
    group_size: int,
    decode: Callable[[Tensor], str],
    workers: RewardWorkers,
) -> Batch:
    """Collect the reports of every study; a group goes to the reward as soon as its last report is there.

    Args:
        rollouts: the reports of `prompts`, as the engine ends them.
        prompts: of the studies, in their order.
    """
    began = time.perf_counter()
    groups: dict[str, dict[int, Rollout]] = {study.id: {} for study in studies}
    references = {study.id: study.report for study in studies}
    texts, pending = {}, {}
    for report in rollouts:
        study_id, group = report.study_id, groups[report.study_id]
        group[report.sample] = report
        if len(group) == group_size:
            texts[study_id] = tuple(decode(group[i].response_ids) for i in range(group_size))
            pending[study_id] = workers.submit(texts[study_id], [references[study_id]] * group_size)
    sampled = time.perf_counter()
    scored = {study.id: scores_of(pending[study.id], study_id=study.id) for study in studies}
    return Batch(
        studies=tuple(studies),
        prompts=tuple(prompts),
        groups=tuple(tuple(groups[study.id][i] for i in range(group_size)) for study in studies),
        texts=tuple(texts[study.id] for study in studies),
        scores=tuple(scored[study.id].scores for study in studies),
        seconds_rollout=sampled - began,
        seconds_reward=time.perf_counter() - sampled,
        seconds_parts=_sum_seconds(item.seconds for item in scored.values()),
    )


def _sum_seconds(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
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

    def __getattr__(self, name: str) -> Any:
        return getattr(self._built, name)


def all_gather_batch(
    mine: Batch | None, studies: Sequence[Study], ranks: Ranks, build: Callable[[Study], Prompt]
) -> Batch:
    """The batch of all ranks, the same on each, from the share that each sampled.

    Args:
        mine: None when this rank was stopped before it was done.
        studies: of the whole batch, in order.
        build: makes the prompt of a study.

    Raises:
        StopRequested: some rank was stopped.
    """
    shares = ranks.all_gather_or_stop(None if mine is None else _to_json(mine))
    assert mine is not None
    if ranks.size == 1:
        return mine
    prompts: dict[str, Any] = dict(zip((study.id for study in mine.studies), mine.prompts, strict=True))
    rows = {row["id"]: row for share in shares for row in share["rows"]}
    for study in studies:
        if study.id not in prompts:
            prompts[study.id] = LazyPrompt(study.id, rows[study.id]["length"], partial(build, study))
    reports = [(study.id, rows[study.id]["reports"]) for study in studies]
    return Batch(
        studies=tuple(studies),
        prompts=tuple(prompts[study.id] for study in studies),
        groups=tuple(tuple(_read_rollout(name, i, row) for i, row in enumerate(group)) for name, group in reports),
        texts=tuple(tuple(row["text"] for row in group) for _, group in reports),
        scores=tuple(tuple(_read_score(row) for row in group) for _, group in reports),
        seconds_rollout=max(share["seconds"][0] for share in shares),
        seconds_reward=max(share["seconds"][1] for share in shares),
        seconds_parts=_sum_seconds(share["seconds_parts"] for share in shares),
    )


def _to_json(batch: Batch) -> dict[str, Any]:
    rows = []
    for study, prompt, *columns in zip(
        batch.studies, batch.prompts, batch.groups, batch.texts, batch.scores, strict=True
    ):
        reports = [
            {
                "tokens": rollout.response_ids.tolist(),
                "logps": rollout.behaviour_logps.tolist(),
                "truncated": rollout.truncated,
                "text": text,
                **asdict(score),
            }
            for rollout, text, score in zip(*columns, strict=True)
        ]
        rows.append({"id": study.id, "length": prompt.num_tokens, "reports": reports})
    seconds = [batch.seconds_rollout, batch.seconds_reward]
    return {"rows": rows, "seconds": seconds, "seconds_parts": dict(batch.seconds_parts)}


def _read_score(row: Mapping[str, Any]) -> Score:
    return Score(row["total"], row["parts"], tuple(row["missing"]), tuple(row["left_out"]))


def _read_rollout(study_id: str, sample: int, row: Mapping[str, Any]) -> Rollout:
    tokens, logps = torch.tensor(row["tokens"]), torch.tensor(row["logps"])
    return Rollout(study_id, sample, tokens, logps, truncated=row["truncated"])


def write_rollouts(path: Path, batch: Batch, cases: Sequence[Case]) -> None:
    """Every report of a step with every part of its reward, its advantage and the clip range that the loss used."""
    rows = []
    for study, case, texts, scores in zip(batch.studies, cases, batch.texts, batch.scores, strict=True):
        reports = [
            {
                "report": text,
                "tokens": len(rollout.response_ids),
                "truncated": rollout.truncated,
                **asdict(score),
                "advantage": advantage,
            }
            for text, rollout, score, advantage in zip(
                texts, case.rollouts, scores, case.advantages.tolist(), strict=True
            )
        ]
        row = {"id": study.id, "critical": case.critical, "eps": case.clip, "reference": study.report}
        rows.append({**row, "reports": reports})
    write_lines(path, rows)
