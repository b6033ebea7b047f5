"""Columns of `score` that a language model fills: it lists the errors of each report, and scores follow from these."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from tqdm import tqdm

from radflow.data.protocols import Pairs
from radflow.evaluation.table_metrics import Cells, TableMetric
from radflow.rewards.judge.asker import Asker
from radflow.rewards.judge.config import JudgeConfig
from radflow.rewards.judge.prompts import Prompt
from radflow.rewards.judge.report_errors import GREEN_LIKE, Errors, crimson

LlmMetric = Literal["green_like", "crimson"]
PROMPTS: dict[LlmMetric, Callable[[], Prompt[Errors]]] = {"green_like": lambda: GREEN_LIKE, "crimson": crimson}
LABELS: dict[LlmMetric, str] = {"green_like": "GREEN-like", "crimson": "CRIMSON's prompt"}
_CHUNK = 64  # reports asked about between two movements of the bar


@dataclass(frozen=True)
class LlmScores:
    """What the model said of every pair."""

    rows: Sequence[TableMetric] = ()
    cells: Cells = field(default_factory=dict)
    listed: Sequence[dict[str, object]] = ()  # one line per report and metric: what the model listed
    notes: Sequence[str] = ()


def ask_errors(metrics: Sequence[LlmMetric], judge: JudgeConfig, pairs: Pairs) -> LlmScores:
    """Scores of reports by each metric; a report without an answer has none, and a note counts these.

    Raises:
        ValueError: judge.model is not set, or what asking needs is not there.
    """
    if not metrics:
        return LlmScores()
    prompts = {metric: PROMPTS[metric]() for metric in metrics}
    asker, rows, cells, listed, notes = Asker(judge), [], dict[str, np.ndarray](), list[dict[str, object]](), []
    for metric, prompt in prompts.items():
        name = f"{metric}_llm"
        found = _ask(asker, prompt, list(zip(pairs.references, pairs.predictions, strict=True)), title=name)
        asked = {"metric": name, "prompt": prompt.version, "model": asker.model}
        for study_id, errors in zip(pairs.ids, found, strict=True):
            answer = {"score": None, "listed": None} if errors is None else vars(errors)
            listed.append({"study_id": study_id, **asked, **answer})
        rows.append(TableMetric(name, f"{LABELS[metric]} ({prompt.version}, {asker.model})", name))
        cells[name] = np.array([np.nan if errors is None else errors.score for errors in found], dtype=np.float64)
        if missing := found.count(None):
            why = f"have no answer ({asker.last_trouble}); rerun the command to ask about these"
            notes.append(f"{name}: {missing} of {len(found)} reports {why}")
    stats = asker.stats
    notes.append(f"{asker.model}: {stats.asked} asked, {stats.cached} known before, cost {stats.spent:.4g}")
    asker.close()
    return LlmScores(rows, cells, listed, notes)


def _ask(asker: Asker, prompt: Prompt[Errors], pairs: Sequence[tuple[str, str]], *, title: str) -> list[Errors | None]:
    found: list[Errors | None] = []
    with tqdm(total=len(pairs), desc=title, unit="report", disable=None, leave=False) as bar:
        for first in range(0, len(pairs), _CHUNK):
            answers = asker.ask(prompt, pairs[first : first + _CHUNK])
            found += answers
            bar.update(len(found) - bar.n)
            bar.set_postfix_str(f"cost so far {asker.stats.spent:.4g}")
    return found
