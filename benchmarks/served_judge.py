"""What a served model answers to the judge's two questions, 50 times each, and how often it agrees with the rules.

make test-served                                                          starts a small model and asks it
python benchmarks/served_judge.py --url http://127.0.0.1:11434/v1 --model qwen3      asks a server of yours
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import harness

from radflow.data.phantoms import make_studies
from radflow.data.sections import parse_sections
from radflow.data.studies import Study
from radflow.rewards.judge.asker import Asker, JudgeStats
from radflow.rewards.judge.config import JudgeConfig
from radflow.rewards.judge.llm import ConsistencyLlm, CriticalityLlm
from radflow.rewards.rules.chexpert_rules import ChexpertRules
from radflow.rewards.rules.consistency import ConsistencyRules
from radflow.rewards.rules.criticality import CriticalityRules

NUM_QUESTIONS = 50


@dataclass(frozen=True)
class Row:
    """Answers to one of the two questions."""

    question: str
    yes: int
    no: int
    missing: int
    rules_yes: int  # of all questions
    agreed: int  # of those that were answered


def ask(url: str, model: str) -> tuple[list[Row], JudgeStats, float]:
    """Both questions about phantoms; the answers, the counts of the judge, and seconds."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        asker = Asker(JudgeConfig(url=url, model=model, cache=Path(folder) / "judge.sqlite", timeout_s=300.0))
        rows = ask_both(asker, make_studies("chest", num_train=NUM_QUESTIONS, num_val=0, num_test=0, seed=11, size=8))
        stats = asker.stats
        asker.close()
    return rows, stats, time.perf_counter() - began


def ask_both(asker: Asker, studies: Sequence[Study]) -> list[Row]:
    """Every second pair of sections is one of two studies, which seldom agree."""
    rules, findings = ChexpertRules(parse_sections), [study.findings for study in studies]
    impressions = [studies[(i + i % 2) % len(studies)].impression for i in range(len(studies))]
    reports = [study.report for study in studies]
    consistent = ConsistencyLlm(asker)(findings, impressions), ConsistencyRules(rules)(findings, impressions)
    critical = CriticalityLlm(asker)(reports), CriticalityRules(rules)(reports)
    return [
        count("consistency", [None if v is None else v > 0 for v in consistent[0]], [v > 0 for v in consistent[1]]),
        count("criticality", [c and c.critical for c in critical[0]], [c.critical for c in critical[1]]),
    ]


def count(question: str, answers: Sequence[bool | None], rules: Sequence[bool]) -> Row:
    agreed = sum(answer is rule for answer, rule in zip(answers, rules, strict=True))
    return Row(question, answers.count(True), answers.count(False), answers.count(None), sum(rules), agreed)


def write(model: str, rows: Sequence[Row], stats: JudgeStats, seconds: float) -> None:
    setting = f"{NUM_QUESTIONS} questions of each kind about phantoms, answered by {model}"
    columns = ["question", "yes", "no", "missing", "yes by rules", "agrees with the rules"]
    answers = [[row.question, *map(str, (row.yes, row.no, row.missing, row.rules_yes, row.agreed))] for row in rows]
    table = {"setting": setting, "columns": columns, "rows": answers, "counts": stats, "seconds": round(seconds)}
    harness.write("served_judge", table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True, help="of an OpenAI-compatible API")
    parser.add_argument("--model", required=True, help="as the server names it")
    words = parser.parse_args()
    write(words.model, *ask(words.url, words.model))


if __name__ == "__main__":
    main()
