"""The judge and a small real model in llama.cpp's server: `make test-served`."""

import sys
from pathlib import Path

import pytest
from llama_server import MODEL, llama_server

from radflow.rewards.judge.asker import Asker
from radflow.rewards.judge.config import JudgeConfig
from radflow.rewards.judge.report_errors import GREEN_LIKE

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import served_judge


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with llama_server(tmp_path_factory.mktemp("server")) as url:
        yield url


def test_every_question_ends_as_yes_no_or_missing(url, capsys):
    rows, stats, seconds = served_judge.ask(url, MODEL)
    with capsys.disabled():
        served_judge.write(MODEL, rows, stats, seconds)
    for row in rows:
        assert row.yes + row.no + row.missing == served_judge.NUM_QUESTIONS
    assert stats.asked + stats.cached >= 2 * served_judge.NUM_QUESTIONS - stats.missing
    # The grammar of llama.cpp holds any model to the form, once it has refused the other form.
    assert stats.missing <= 2


def test_errors_are_listed_in_the_form_or_missing(url, tmp_path):
    """So small a model may never end its list: it is asked with 100, 400 and 1600 tokens."""
    patience = {"timeout_s": 120.0, "retries": 0, "concurrency": 1, "max_tokens": 100}
    asker = Asker(JudgeConfig(url=url, model=MODEL, cache=tmp_path / "c.sqlite", **patience))
    reports = [("Findings: Effusion. Impression: Effusion.", "Findings: Clear. Impression: Normal.")]
    for errors in asker.ask(GREEN_LIKE, reports):
        assert errors is None or (0 <= errors.score <= 1 and isinstance(errors.listed["errors"], list))
    asker.close()
