"""Studies, reports and rewards without a model: the reward of a report is its length."""

import dataclasses
from concurrent.futures import Future

import torch

from capo.clipping import critical_clip
from capo.config import RlConfig
from capo.types import Rollout
from radflow.pipeline.credit import advantages_of
from radflow.pipeline.rollouts import score_groups
from radflow.rewards.config import RewardConfig
from radflow.rewards.types import Copy, Score, Scored


@dataclasses.dataclass
class ToyPrompt:
    study_id: str
    num_tokens: int = 3


@dataclasses.dataclass
class ToyStudy:
    id: str
    report: str


def encode(text):
    return torch.zeros(len(text), dtype=torch.int64)


def decode(ids):
    return "x" * len(ids)


class ToyWorkers:
    """Gives every report its length as reward, and None to the empty one."""

    def __init__(self):
        self.submitted, self.look = [], lambda: None
        self.config = RewardConfig(workers=2)

    def score(self, text):
        total = float(len(text)) if text else None
        return Score(total, {"part": None}, terms={"part": total} if text else {})

    def copies(self, candidates):
        return ()

    def submit(self, candidates, references):
        self.submitted.append((candidates, references))
        future = Future()
        scores = tuple(self.score(text) for text in candidates)
        future.set_result(Scored(scores, {"part": 0.25}, self.copies(candidates)))
        return future


class LackingWorkers(ToyWorkers):
    """The second part of a group's first report cannot be computed, so that it counts for none of the group."""

    def submit(self, candidates, references):
        future = Future()
        lacking = {"missing": ("judge",), "left_out": ("judge",), "terms": {"part": 1.0}}
        whole = Score(2.0, {"part": 1.5, "judge": 1.0}, left_out=("judge",), terms={"part": 2.0, "judge": 1.0})
        scores = Score(1.0, {"part": 0.5, "judge": None}, **lacking), *[whole] * (len(candidates) - 1)
        future.set_result(Scored(scores, {"part": 0.25, "judge": 2.0}))
        return future


class CopyingWorkers(ToyWorkers):
    """Makes a copy of the first report of each group, longer by `more` characters."""

    def __init__(self, more=2):
        super().__init__()
        self.more = more

    def copies(self, candidates):
        text = candidates[0] + "y" * self.more
        score = self.score(text)
        halved = dataclasses.replace(score, terms={name: 2 * term for name, term in score.terms.items()}, truth=0.5)
        return (Copy(text, "missed: effusion", 0, halved),)


def report(study, sample, length, *, truncated=False):
    return Rollout(study, sample, encode("x" * length), torch.full((length,), -1.0), truncated=truncated)


def reports_of(lengths):
    """Reports of these lengths for each study."""
    return [report(study, i, length) for study, row in lengths.items() for i, length in enumerate(row)]


def collect(written, workers=None, *, names="ab", max_tokens=100, **rl):
    studies = [ToyStudy(name, f"ref {name}") for name in names]
    prompts = [ToyPrompt(name) for name in names]
    config = RlConfig(**{"group_size": 2, **rl})
    return score_groups(written, studies, prompts, config, max_tokens, encode, decode, workers or ToyWorkers())


LABELS = {"a": True, "b": False}


def train_on(batch, labels=LABELS, *, masked=False, rl=None, **clip):
    """The cases that train.py makes of a batch, and the metrics of the step."""
    advantages, critical = advantages_of(batch, rl or RlConfig(advantage="group"), {}, decode), batch.select(labels)
    cases = batch.cases(advantages.advantages, critical, critical_clip(critical, **clip), masked=masked)
    return cases, batch.metrics(advantages, critical)
