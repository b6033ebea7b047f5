"""The rollouts of a step: sampled, scored while others are still sampled, sampled anew if they show no difference."""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Protocol, cast

import torch
from torch import Tensor

from capo.config import RlConfig
from capo.rollout import Engine, Request
from capo.sampling import sample_seed
from capo.stopping import StopRequested, StopSignal
from capo.types import Prompt, Rollout
from radflow.data.studies import Study
from radflow.models.qwen_vl import QwenVL
from radflow.pipeline.batch import Batch, all_gather_batch, sum_seconds
from radflow.pipeline.generation import build_prompt, prepare_generation, with_progress
from radflow.pipeline.run import Run
from radflow.pipeline.served_rollouts import ServedAdapter, ServedEngine
from radflow.rewards.types import Score, Scored
from radflow.rewards.workers import RewardWorkers, scores_of

OVERLONG = "overlong"  # the part of the reward that punishes reports near the token limit


class ReportSampler(Protocol):
    """What samples the reports of a step."""

    def rollout(self, requests: Iterable[Request], *, stop: StopSignal | None = None) -> Iterator[Rollout]:
        """Every requested report, each as it ends."""


class LocalEngine(Engine):
    """The engine of a policy in training, which it makes ready for the time of a rollout."""

    def rollout(self, requests: Iterable[Request], *, stop: StopSignal | None = None) -> Iterator[Rollout]:
        with prepare_generation(cast(QwenVL, self.policy)):
            yield from super().rollout(requests, stop=stop)


def rollout_engine(policy: QwenVL, run: Run, suppressed: Tensor, *, num_studies: int) -> ReportSampler:
    """The engine of this rank for steps of `num_studies` studies."""
    config = run.config
    if config.rollout.engine == "served":
        return served_engine(policy, run, suppressed)
    reports = -(-num_studies // run.ranks.size) * config.rl.group_size
    return LocalEngine(
        policy,
        sampling=config.rollout,
        eos_id=run.processor.eos_id,
        suppressed=suppressed,
        slots=min(config.rollout.slots, reports),
    )


def served_engine(policy: QwenVL, run: Run, suppressed: Tensor) -> ServedEngine:
    """Of a policy whose adapter a server loads before each step, on top of sft/model."""
    config, base, folder = run.config, str(run.folder / "sft" / "model"), run.folder / "rl" / "served_adapter"
    adapter = ServedAdapter(policy, config.model.lora, config.served, base=base, folder=folder, ranks=run.ranks)
    return ServedEngine(
        adapter,
        run.processor,
        {study.id: study for study in run.corpus.train},
        sampling=config.rollout,
        suppressed=suppressed,
        needs_logps=config.rl.sampler_correction != "off",
    )


def sample(
    engine: ReportSampler, run: Run, prompts: Sequence[Prompt], *, step: int, attempt: int = 0
) -> Iterator[Rollout]:
    """G reports for each prompt of this rank, each as soon as it ends; other ones at every attempt.

    Raises:
        StopRequested: the run was asked to stop.
    """
    seed, group, stage = run.config.seed, run.config.rl.group_size, f"rl {attempt}" if attempt else "rl"
    requests = [
        Request(prompt, tuple(sample_seed(seed, stage, step, prompt.study_id, i) for i in range(group)))
        for prompt in prompts
    ]
    shown, title = run.ranks.is_main, f"rollouts of step {step}"
    written = engine.rollout(requests, stop=run.stop)
    yield from with_progress(written, title, group * len(requests), leave=False, shown=shown)


def score(rollouts: Iterable[Rollout], run: Run, studies: Sequence[Study], prompts: Sequence[Prompt]) -> Batch:
    """The rewards of a step's reports (paper eq. 4 to 7): each rank scores what it sampled, and all learn of all.

    Args:
        rollouts: of this rank, as they end.
        studies: of the whole step, in order.
        prompts: of this rank's share of them.

    Raises:
        StopRequested: some rank was stopped.
    """
    own = [studies[i] for i in run.ranks.assign([1] * len(studies))]
    limit, processor = run.config.rollout.max_new_tokens, run.processor
    try:
        mine = score_groups(
            rollouts, own, prompts, run.config.rl, limit, processor.encode_report, processor.decode, run.reward
        )
    except StopRequested:
        mine = None
    return all_gather_batch(mine, studies, run.ranks, partial(build_prompt, run.processor))


def sample_flat_groups_anew(batch: Batch, engine: Callable[[], ReportSampler], run: Run, *, step: int) -> Batch:
    """The batch with groups without spread sampled again, at most `rl.resample` times (dynamic sampling, DAPO,
    arXiv:2503.14476, section 3.2; there other studies take their turn)."""
    for attempt in range(1, run.config.rl.resample + 1):
        flat = batch.flat_groups()
        if not flat:
            break
        studies, prompts = [batch.studies[i] for i in flat], [batch.prompts[i] for i in flat]
        own = [prompts[i] for i in run.ranks.assign([1] * len(flat))]
        rollouts = sample(engine(), run, own, step=step, attempt=attempt)
        batch = batch.replace_groups(score(rollouts, run, studies, own))
    return batch


def score_groups(
    rollouts: Iterable[Rollout],
    studies: Sequence[Study],
    prompts: Sequence[Prompt],
    rl: RlConfig,
    max_tokens: int,
    encode: Callable[[str], Tensor],
    decode: Callable[[Tensor], str],
    workers: RewardWorkers,
) -> Batch:
    """Collect the reports of every study; a group goes to the reward as soon as its last report is there.

    Args:
        rollouts: the reports of `prompts`, as the engine ends them.
        prompts: of the studies, in their order.
        max_tokens: the longest report that sampling allows; a longer copy is left out.
        encode, decode: report to token ids and back.

    Raises:
        StopRequested: the run was asked to stop while a report was sampled or scored.
    """
    began = time.perf_counter()
    groups: dict[str, dict[int, Rollout]] = {study.id: {} for study in studies}
    references = {study.id: study.report for study in studies}
    texts: dict[str, list[str]] = {}
    pending: dict[str, Future[Scored]] = {}
    with ExitStack() as stack:
        for report in rollouts:
            study_id, group = report.study_id, groups[report.study_id]
            group[report.sample] = report
            if len(group) == rl.group_size:
                if not pending:
                    stack.enter_context(leave_cores(max(1, workers.config.workers)))  # 0: a thread scores
                texts[study_id] = [decode(group[i].response_ids) for i in range(rl.group_size)]
                pending[study_id] = workers.submit(texts[study_id], [references[study_id]] * rl.group_size)
    sampled = time.perf_counter()
    scored = {study.id: scores_of(pending[study.id], study_id=study.id, look=workers.look) for study in studies}
    waited = time.perf_counter() - sampled
    members = []
    for study in studies:
        reports = [groups[study.id][i] for i in range(rl.group_size)]
        rows = zip(reports, texts[study.id], scored[study.id].scores, strict=True)
        members.append([*rows, *_copies(study.id, scored[study.id], encode, max_tokens)])
    if rl.truncated == "punish":
        margin = rl.truncated_margin
        members = [[(r, t, punish(s, len(r.response_ids), max_tokens, margin)) for r, t, s in g] for g in members]
    return Batch(
        studies=tuple(studies),
        prompts=tuple(prompts),
        groups=tuple(tuple(rollout for rollout, _, _ in group) for group in members),
        texts=tuple(tuple(text for _, text, _ in group) for group in members),
        scores=tuple(tuple(score for _, _, score in group) for group in members),
        seconds_rollout=sampled - began,
        seconds_reward=waited,
        seconds_parts=sum_seconds(item.seconds for item in scored.values()),
        faults=tuple((study_id, fault) for study_id, item in scored.items() for fault in item.faults),
    )


@contextmanager
def leave_cores(count: int) -> Iterator[None]:
    """Let torch use fewer threads, at least one, so that `count` cores of the machine are free for other processes.

    The threads of an operation wait for the last of them: with one too many, each waits for the scheduler.
    """
    threads = torch.get_num_threads()
    spare = (os.cpu_count() or 1) - threads
    torch.set_num_threads(max(1, threads - max(0, count - spare)))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _copies(
    study_id: str, scored: Scored, encode: Callable[[str], Tensor], max_tokens: int
) -> Iterator[tuple[Rollout, str, Score]]:
    """Edited copies as members of their group, with text and score."""
    for copy in scored.copies:
        tokens = encode(copy.report)
        if len(tokens) <= max_tokens:
            unknown = torch.zeros(len(tokens))
            rollout = Rollout(study_id, copy.of, tokens, unknown, truncated=False, edited=copy.about)
            yield rollout, copy.report, copy.score


def punish(score: Score, num_tokens: int, max_tokens: int, margin: int) -> Score:
    """The score less up to 1 point for a report near the token limit: 0 until `margin` tokens before it, 1 at it.

    Source: soft overlong punishment, DAPO, arXiv:2503.14476, eq. 13.
    """
    penalty = -max(0.0, num_tokens - (max_tokens - margin)) / margin
    total = None if score.total is None else score.total + penalty
    terms = {} if score.total is None else {**score.terms, OVERLONG: penalty}  # a missing reward stays missing
    return replace(score, total=total, parts={**score.parts, OVERLONG: penalty}, terms=terms)
