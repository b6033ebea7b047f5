"""The paper's two questions to a large language model: is a report consistent, and does it describe anything abnormal?

Nothing heavy is loaded here; httpx is imported when a judge is built, the server is first reached when it is asked.
"""

from collections.abc import Sequence

from rewards.asking import Asker, JudgeStats
from rewards.criticality import Criticality
from rewards.judge_config import JudgeConfig
from rewards.judge_prompts import CONSISTENCY, CRITICALITY

__all__ = ["ConsistencyLlm", "CriticalityLlm", "JudgeConfig", "JudgeStats"]


class ConsistencyLlm:
    """+1 where the Impression follows from the Findings, -1 where it does not (paper 4.2), None where no answer came.

    Without one of the sections there is nothing to agree with: -1, and nothing is asked.
    """

    name = "consistency_llm"

    def __init__(self, asker: Asker) -> None:
        self.asker = asker

    @classmethod
    def from_config(cls, config: JudgeConfig) -> "ConsistencyLlm":
        return cls(Asker(config))

    @property
    def stats(self) -> JudgeStats:
        return self.asker.stats

    def __call__(self, findings: Sequence[str], impressions: Sequence[str]) -> list[float | None]:
        pairs = [(f.strip(), i.strip()) for f, i in zip(findings, impressions, strict=True)]
        answers = iter(self.asker.ask(CONSISTENCY, [pair for pair in pairs if all(pair)]))
        scores: list[float | None] = []
        for pair in pairs:
            answer = next(answers) if all(pair) else False
            scores.append(None if answer is None else 1.0 if answer and answer.yes else -1.0)
        return scores


class CriticalityLlm:
    """Critical is every report that describes something abnormal (paper 4.3); None where no answer came."""

    def __init__(self, asker: Asker) -> None:
        self.asker = asker

    @classmethod
    def from_config(cls, config: JudgeConfig) -> "CriticalityLlm":
        return cls(Asker(config))

    @property
    def stats(self) -> JudgeStats:
        return self.asker.stats

    def __call__(self, reports: Sequence[str]) -> list[Criticality | None]:
        answers = self.asker.ask(CRITICALITY, [(report.strip(),) for report in reports])
        return [
            None if answer is None else Criticality(answer.yes, answer.reason, self.asker.config.model)
            for answer in answers
        ]
