"""The paper's two questions to a language model: is a report consistent, and does it describe anything abnormal?"""

from collections.abc import Sequence
from typing import Self

from radflow.rewards.judge import prompts
from radflow.rewards.judge.asker import Asker, JudgeStats
from radflow.rewards.judge.config import JudgeConfig
from radflow.rewards.rules.criticality import Criticality, Definition


class _LlmJudge:
    """A judge that asks its questions through an `Asker`."""

    def __init__(self, asker: Asker) -> None:
        self.asker = asker

    @classmethod
    def from_config(cls, config: JudgeConfig) -> Self:
        return cls(Asker(config))

    @property
    def stats(self) -> JudgeStats:
        return self.asker.stats


class ConsistencyLlm(_LlmJudge):
    """+1 if the Impression follows from the Findings, -1 if it does not (paper 4.2), None if no answer came.

    If a section is empty the score is -1, and nothing is asked.
    """

    name = "consistency_llm"

    def __call__(self, findings: Sequence[str], impressions: Sequence[str]) -> list[float | None]:
        pairs = [(f.strip(), i.strip()) for f, i in zip(findings, impressions, strict=True)]
        whole = [pair for pair in pairs if all(pair)]
        found = self.asker.ask(prompts.CONSISTENCY, whole)
        answers = dict(zip(whole, found, strict=True))
        scores: list[float | None] = []
        for pair in pairs:
            answer = answers.get(pair, prompts.Answer(False, "a section is empty"))
            scores.append(None if answer is None else 1.0 if answer.yes else -1.0)
        return scores


class CriticalityLlm(_LlmJudge):
    """A report is critical if it describes something abnormal (paper 4.3); None if no answer came.

    Args:
        definition: `acute` asks for something urgent, new or worsening.
    """

    def __init__(self, asker: Asker, definition: Definition = "paper") -> None:
        super().__init__(asker)
        self.question = prompts.CRITICALITY if definition == "paper" else prompts.CRITICALITY_ACUTE

    def __call__(self, reports: Sequence[str]) -> list[Criticality | None]:
        answers = self.asker.ask(self.question, [(report.strip(),) for report in reports])
        return [None if a is None else Criticality(a.yes, a.reason, self.asker.model) for a in answers]
