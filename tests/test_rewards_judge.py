"""The LLM judge when all goes well: what is asked, once, and what is said when it is built."""

import asyncio
import json
import subprocess
import sys
import threading
import time

import pytest
from judge_server import KEY, JudgeServer, impatient, verdict

from radflow.rewards.judge.config import JudgeConfig
from radflow.rewards.judge.llm import ConsistencyLlm, CriticalityLlm
from radflow.rewards.rules.criticality import Criticality

FINDINGS, IMPRESSION = "Small left pleural effusion.", "Left pleural effusion."


def test_consistency_is_one_minus_one_or_missing_and_empty_sections_are_not_asked(tmp_path):
    def answer(text):
        return verdict("no" if "Pneumothorax" in text else "yes")

    with JudgeServer(answer) as server:
        judge = ConsistencyLlm.from_config(impatient(server.url, tmp_path / "c.sqlite"))
        findings = [FINDINGS, FINDINGS, "", FINDINGS, "  \n"]
        impressions = [IMPRESSION, "Pneumothorax.", IMPRESSION, " ", ""]
        assert judge(findings, impressions) == [1.0, -1.0, -1.0, -1.0, -1.0]
        assert judge.name == "consistency_llm" and len(server.requests) == 2
        assert (judge.stats.asked, judge.stats.cached, judge.stats.missing) == (2, 0, 0)
        assert judge([], []) == []
        judge.asker.close()


def test_criticality_carries_the_reason_and_the_model(tmp_path):
    with JudgeServer(
        lambda text: verdict("no", "says normal") if "Clear" in text else verdict("yes", "fluid")
    ) as server:
        judge = CriticalityLlm.from_config(impatient(server.url, tmp_path / "c.sqlite"))
        assert judge(["Clear lungs.", "Effusion."]) == [
            Criticality(False, "says normal", "tiny-judge"),
            Criticality(True, "fluid", "tiny-judge"),
        ]
        judge.asker.close()


def test_nothing_is_asked_twice_in_a_batch_in_a_process_or_by_the_next_run(tmp_path):
    config = {"cache": tmp_path / "c.sqlite"}
    with JudgeServer() as server:
        judge = CriticalityLlm.from_config(impatient(server.url, **config))
        assert len(judge(["A.", "B.", "A.", " A. "])) == 4  # surrounding space is no difference
        judge(["B.", "C."])
        assert (judge.stats.asked, judge.stats.cached) == (3, 3)
        judge.asker.close()
        later = CriticalityLlm.from_config(impatient(server.url, **config))
        assert [found.critical for found in later(["C.", "A.", "B."])] == [True] * 3
        assert (later.stats.asked, later.stats.cached) == (0, 3)
        assert len(server.requests) == 3
        # Another model, and another question about the same text, are other questions.
        other = CriticalityLlm.from_config(impatient(server.url, model="other", **config))
        other(["A."])
        assert len(server.requests) == 4
        for one in (later, other):
            one.asker.close()


def test_no_more_questions_at_a_time_than_allowed(tmp_path):
    with JudgeServer(takes_s=0.03) as server:
        judge = CriticalityLlm.from_config(impatient(server.url, tmp_path / "c.sqlite", concurrency=3))
        judge([f"report {n}" for n in range(12)])
        judge.asker.close()
    assert server.most_at_once == 3


def test_it_can_be_asked_inside_a_running_event_loop(tmp_path):
    async def notebook_cell(judge):
        return judge(["A."])

    with JudgeServer() as server:
        judge = CriticalityLlm.from_config(impatient(server.url, tmp_path / "c.sqlite"))
        assert asyncio.run(notebook_cell(judge))[0].critical
        judge.asker.close()


def test_the_request_asks_for_json_and_carries_the_key_in_its_header_only(tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with JudgeServer() as server:
        judge = CriticalityLlm.from_config(impatient(server.url, tmp_path / "c.sqlite", api_key_env="JUDGE_KEY"))
        judge(["A."])
        judge.asker.close()
    (request,) = server.requests
    assert request["path"] == "/v1/chat/completions" and request["model"] == "tiny-judge"
    assert request["response_format"]["type"] == "json_schema" and request["temperature"] == 0
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}" and KEY not in json.dumps(request)
    assert "abnormal, pathological, or clinically significant finding?" in request["messages"][0]["content"]


def test_what_is_missing_is_said_when_the_judge_is_built(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"expected judge\.model"):
        ConsistencyLlm.from_config(JudgeConfig(cache=tmp_path / "c"))
    config = JudgeConfig(model="m", api_key_env="NO_SUCH_KEY", cache=tmp_path / "c")
    with pytest.raises(ValueError, match="NO_SUCH_KEY is not set"):
        ConsistencyLlm.from_config(config)
    monkeypatch.setenv("NO_SUCH_KEY", KEY + "\n")  # a line end would come back in an error about the header
    with pytest.raises(ValueError, match="without spaces and line ends") as refused:
        ConsistencyLlm.from_config(config)
    assert KEY not in str(refused.value)
    for name in ("httpx", "tenacity"):
        with monkeypatch.context() as without:
            without.setitem(sys.modules, name, None)
            with pytest.raises(ValueError, match=f"pip install {name}"):
                ConsistencyLlm.from_config(JudgeConfig(model="m", cache=tmp_path / "c"))


def test_after_an_interruption_nothing_further_is_asked_and_the_judge_can_be_asked_again(tmp_path, monkeypatch):
    """Ctrl-C in a notebook, while 20 questions wait."""
    with JudgeServer(takes_s=0.05) as server:
        judge = CriticalityLlm.from_config(impatient(server.url, tmp_path / "c.sqlite", concurrency=2))
        real = judge.asker._threads.imap_unordered

        def interrupted(*arguments):
            results = real(*arguments)
            yield next(results)
            raise KeyboardInterrupt

        with monkeypatch.context() as once, pytest.raises(KeyboardInterrupt):
            once.setattr(judge.asker._threads, "imap_unordered", interrupted)
            judge([f"r{n}" for n in range(20)])
        time.sleep(0.3)
        assert len(server.requests) <= 5
        assert None not in judge([f"r{n}" for n in range(20)]) and len(server.requests) == 20
        judge.asker.close()
    assert "claims" not in [thread.name for thread in threading.enumerate()]


def test_importing_the_judge_is_cheap():
    heavy = {"torch", "transformers", "httpx", "tenacity", "numpy"}
    code = f"import radflow.rewards.judge.llm, sys; print(*({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
