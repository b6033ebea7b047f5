"""From the parts of the rewards to advantages: of whole reports, or of the tokens of each section."""

from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from capo.advantages import GroupAdvantages, estimate_advantages
from capo.config import RlConfig
from radflow.data.sections import SectionParser, parse_sections
from radflow.pipeline.batch import Batch
from radflow.rewards.hierarchy import TRUTH
from radflow.rewards.registry import METRICS


def advantages_of(
    batch: Batch,
    rl: RlConfig,
    weights: Mapping[str, float],
    decode: Callable[[Tensor], str],
    *,
    parse: SectionParser = parse_sections,
) -> GroupAdvantages:
    """Advantages of a step's reports, [N] (paper eq. 1), or with `rl.credit` section of their tokens, [N, T].

    With credit by section, the tokens of a section are paid by every part of the reward but those that read the other
    section only. A report whose Findings do not end before its Impression has one advantage, that of all parts.

    Args:
        weights: of the parts of the reward; 1 for others.
        decode: token ids to text.
    """
    if rl.advantage == "decoupled":  # truth as a part of its own: as a factor of each it would decide all of them
        names, terms = [*batch.part_names, TRUTH], batch.objectives
    else:
        names, terms = batch.part_names, batch.terms
    counted = None if rl.edits.counted else batch.sampled
    advantages = partial(estimate_advantages, rl.advantage, eps=rl.advantage_eps, counted=counted)

    def estimate(without: str | None = None) -> GroupAdvantages:
        columns = [i for i, name in enumerate(names) if without is None or _reads(name) != without]
        chosen = torch.tensor([weights.get(names[i], 1.0) for i in columns])
        return advantages(terms[:, columns], batch.group_index, chosen)

    whole = estimate()
    if rl.credit == "report":
        return whole
    findings, impression = (estimate(without=other).advantages for other in ("impression", "findings"))
    rollouts = [rollout for group in batch.groups for rollout in group]
    rows = whole.advantages[:, None].repeat(1, max(len(rollout.response_ids) for rollout in rollouts))
    for row, rollout, of_findings, of_impression in zip(rows, rollouts, findings, impression, strict=True):
        start = impression_start(rollout.response_ids, decode, parse)
        if start is not None:
            row[:start], row[start:] = of_findings, of_impression
    return replace(whole, advantages=rows)


def impression_start(ids: Tensor, decode: Callable[[Tensor], str], parse: SectionParser = parse_sections) -> int | None:
    """Index of the first token after the Findings, the header of the Impression; None if they are not in this order, or
    written in markup."""
    text = decode(ids)
    sections = parse(text)
    if sections.status != "ok" or not (sections.findings in text and sections.impression in text):
        return None
    # The last of each: a text may occur earlier too, as that of another section.
    end = text.rfind(sections.findings, 0, text.rfind(sections.impression)) + len(sections.findings)
    return bisect_right(range(len(ids)), end, key=lambda count: len(decode(ids[:count]))) - 1


def _reads(name: str) -> str:
    return METRICS[name].reads if name in METRICS else "report"
