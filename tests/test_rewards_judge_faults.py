"""The judge's server fails in every way: no crash, no wrong label, nothing asked twice, and the counts are right."""

import multiprocessing
import os
import signal
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from multiprocessing.pool import ThreadPool

import pytest
from judge_server import JudgeServer, cut, impatient, reset, says, slow, status, verdict

from radflow.rewards.judge.asker import JudgeStats
from radflow.rewards.judge.llm import ConsistencyLlm, CriticalityLlm

SERVER_FAULTS = {
    "500": status(500, "Internal Server Error"),
    "503 with a page": status(503, "<html>busy</html>"),
    "reset connection": reset,
    "body cut short": cut,
    "truncated JSON": status(200, '{"choices": [{"message": {"content": "{\\"answer\\": \\"no'),
    "no choices": status(200, {"choices": []}),
    "another schema": status(200, {"error": {"message": "overloaded"}}),
    "a list": status(200, [1, 2]),
    "nested too deep": status(200, "[" * 100_000),
    "empty body": status(200, ""),
    "429": status(429),
}
BAD_REPLIES = {
    "truncated answer": says('{"answer": "no", "reason": "the lu'),
    "prose": says("No."),
    "other keys": says('{"verdict": "no"}'),
    "a refusal in prose": says("I'm sorry, but I can't assist with that."),
}
REFUSALS = {
    "refusal field": says(None, refusal="I can't help with that."),
    "filter of the host": status(400, {"error": {"code": "content_filter", "message": "filtered"}}),
}


def judge_at(server, tmp_path, **options):
    return CriticalityLlm.from_config(impatient(server.url, tmp_path / "c.sqlite", **options))


@pytest.mark.parametrize("fault", SERVER_FAULTS.values(), ids=SERVER_FAULTS)
def test_after_a_fault_the_question_is_asked_again(fault, tmp_path):
    with JudgeServer(script=[fault, fault]) as server:
        judge = judge_at(server, tmp_path, retries=2)
        assert judge(["A."])[0].critical
        assert judge.stats == JudgeStats(1, 0, 0, 0, 0, retried=2, spent=0.0) and len(server.requests) == 3
        judge.asker.close()


@pytest.mark.parametrize(
    "fault", [*SERVER_FAULTS.values(), status(401), status(404)], ids=[*SERVER_FAULTS, "401", "404"]
)
def test_a_fault_that_stays_leaves_the_question_unanswered_not_answered_no(fault, tmp_path):
    with JudgeServer(always=fault) as server:
        judge = judge_at(server, tmp_path, retries=1)
        assert judge(["A.", "A."]) == [None, None]
        assert judge.stats.asked == 1 and judge.stats.missing == 2 and judge.stats.cached == 0
        assert judge.asker.last_trouble
        assert ConsistencyLlm(judge.asker)(["F."], ["I."]) == [None]
        judge.asker.close()


def test_a_slow_server_is_left_after_the_time_limit_though_bytes_keep_coming(tmp_path):
    with JudgeServer(script=[slow(3.0)]) as server:
        judge = judge_at(server, tmp_path, timeout_s=0.3)
        began = time.monotonic()
        assert judge(["A."])[0].critical
        assert 0.3 <= time.monotonic() - began < 2.0 and judge.stats.retried == 1
        judge.asker.close()


@pytest.mark.parametrize("fault", BAD_REPLIES.values(), ids=BAD_REPLIES)
def test_a_reply_of_wrong_form_is_asked_for_once_more(fault, tmp_path):
    with JudgeServer(script=[fault]) as server:
        judge = judge_at(server, tmp_path)
        assert judge(["A."])[0].critical and judge.stats.retried == 1
        first, second = server.asked()
        assert second.startswith(first) and "An earlier reply was not of this form" in second
        judge.asker.close()
    with JudgeServer(always=fault) as server:
        judge = judge_at(server, tmp_path / "other")
        assert judge(["A."]) == [None] and len(server.requests) == 2
        judge.asker.close()


@pytest.mark.parametrize("fault", REFUSALS.values(), ids=REFUSALS)
def test_a_refusal_is_missing_and_not_argued_with(fault, tmp_path):
    with JudgeServer(script=[fault]) as server:
        judge = judge_at(server, tmp_path)
        assert judge(["A."]) == [None] and len(server.requests) == 1
        assert judge.stats.refused == judge.stats.missing == 1
        assert judge(["A."])[0].critical  # it is no answer, so that the next run may ask again
        judge.asker.close()


def test_retry_after_holds_for_every_question_and_has_an_upper_limit(tmp_path):
    with JudgeServer(script=[status(429, Retry_After="0.4")]) as server:
        judge = judge_at(server, tmp_path, concurrency=1, backoff_max_s=10.0)
        judge(["A.", "B."])
        judge.asker.close()
        assert server.times[1] - server.times[0] >= 0.4 and len(server.requests) == 3
    date = format_datetime(datetime.now(UTC) + timedelta(hours=2), usegmt=True)
    with JudgeServer(script=[status(503, Retry_After=date), status(429, Retry_After="7200")]) as server:
        judge = judge_at(server, tmp_path / "other", backoff_max_s=0.1)
        began = time.monotonic()
        assert judge(["A."])[0].critical and 0.2 <= time.monotonic() - began < 2.0
        judge.asker.close()


def test_without_quota_nothing_is_repeated(tmp_path):
    with JudgeServer(always=status(429, {"error": {"code": "insufficient_quota"}})) as server:
        judge = judge_at(server, tmp_path)
        assert judge(["A."]) == [None] and len(server.requests) == 1
        assert judge.asker.last_trouble == "status 429 (insufficient_quota)"
        judge.asker.close()


def test_a_mixture_of_faults_over_many_questions_gives_every_label_right(tmp_path):
    """Faults come at fixed requests; whatever they hit, an odd report is critical and an even one is not."""

    def answer(text):
        number = int(text.split("report ")[1].split(".")[0])
        return verdict("yes" if number % 2 else "no", str(number))

    kinds = [*SERVER_FAULTS.values(), *BAD_REPLIES.values()]
    script = [kinds[n % len(kinds)] if n % 3 == 0 else None for n in range(60)]
    with JudgeServer(answer, script=script) as server:
        judge = judge_at(server, tmp_path, retries=6)
        reports = [f"report {n}." for n in range(40)]
        found = judge(reports)
        for number, label in enumerate(found):
            assert label is None or (label.critical, label.reason) == (number % 2 == 1, str(number))
        stats = judge.stats
        assert stats.asked == 40 and stats.cached == 0 and stats.missing == found.count(None)
        assert stats.asked + stats.retried == len(server.requests)
        # A second time only what is missing is asked; it may meet the rest of the faults.
        assert None not in judge(reports) and judge.stats.asked == 40 + stats.missing
        assert judge.stats.asked + judge.stats.retried == len(server.requests)
        judge.asker.close()


# ---- a server that is down


def test_a_server_that_is_down_for_the_whole_run_leaves_every_score_missing(tmp_path, caplog):
    with JudgeServer() as server:
        url = server.url
    judge = ConsistencyLlm.from_config(impatient(url, tmp_path / "c.sqlite", retries=3))
    for step in range(5):
        scores = judge([f"finding {step} {n}." for n in range(6)] + [""], ["i."] * 7)
        assert scores == [None] * 6 + [-1.0]
    assert judge.stats.missing == 30 and judge.stats.cached == 0 and judge.asker.last_trouble == "ConnectError"
    # The first question was tried four times; a server that failed it is tried once per question until it answers.
    assert judge.stats.asked == 30 and judge.stats.retried == 3
    assert caplog.text.count("leaves questions unanswered: ConnectError") == 1
    judge.asker.close()


def test_a_server_that_is_back_is_asked_patiently_again(tmp_path):
    with JudgeServer(script=[status(503)] * 4 + [None, status(503)]) as server:
        judge = judge_at(server, tmp_path, retries=1, concurrency=1)
        assert judge(["A.", "B.", "C."]) == [None] * 3  # two requests, one, one
        assert judge(["D.", "E."])[0].critical and judge.stats.retried == 2  # one for A, one for E
        judge.asker.close()


def test_a_busy_server_works(tmp_path):
    with JudgeServer(script=[status(429)] * 6) as server:
        judge = judge_at(server, tmp_path, retries=2, concurrency=1)
        assert judge(["A.", "B."]) == [None, None] and judge.stats.retried == 4
        assert judge(["A.", "B."])[1].critical and len(server.requests) == 8
        judge.asker.close()


# ---- budget


def test_the_budget_in_calls_holds_and_what_it_did_not_reach_is_missing(tmp_path):
    with JudgeServer(script=[status(500)]) as server:
        judge = judge_at(server, tmp_path, max_calls=5, concurrency=1)
        found = judge([f"r{n}" for n in range(9)])
        assert len(server.requests) == 5 and found.count(None) == 5  # one of the five calls was a retry
        assert judge.stats.over_budget == judge.stats.missing == 5 and judge.stats.asked == 4
        assert judge.asker.last_trouble.startswith("the budget is used up; raise judge.max_calls")
        judge.asker.close()
        richer = judge_at(server, tmp_path, max_calls=10)
        assert None not in richer([f"r{n}" for n in range(9)]) and len(server.requests) == 10
        assert richer.stats.asked == 5 and richer.stats.cached == 4
        richer.asker.close()


def test_money_is_counted_by_the_usage_that_the_server_reports(tmp_path):
    usage = {"prompt_tokens": 1000, "completion_tokens": 100}
    with JudgeServer(usage=usage) as server:
        judge = judge_at(server, tmp_path, input_price=2.5, output_price=10.0, max_money=1.0)
        judge(["A.", "B."])
        # 2 x (1000 x 2.5 + 100 x 10) / 1 000 000
        assert judge.stats.spent == pytest.approx(2 * 0.0035)
        judge.asker.close()


def test_a_request_that_could_cost_more_than_is_left_is_not_sent(tmp_path):
    # An answer of 300 tokens at 10 a million costs up to 0.003, the prompt some more: the third request does not fit.
    with JudgeServer(usage={"prompt_tokens": 0, "completion_tokens": 300}) as server:
        options = {"output_price": 10.0, "max_money": 0.008, "concurrency": 1}
        judge = judge_at(server, tmp_path, **options)
        assert judge(["A.", "B.", "C."]).count(None) == 1 and len(server.requests) == 2
        assert judge.stats.spent == pytest.approx(0.006) and judge.stats.over_budget == 1
        judge.asker.close()


def test_a_request_whose_price_is_unknown_counts_with_the_most_it_can_cost(tmp_path):
    for fault, charged in ((slow(1.0), True), (says(verdict("yes")), True), (status(500), False)):
        with JudgeServer(always=fault) as server:
            folder = tmp_path / str(len(list(tmp_path.iterdir())))
            judge = judge_at(server, folder, output_price=10.0, max_money=1.0, retries=0, timeout_s=0.2)
            judge(["A."])
            assert judge.stats.spent == pytest.approx(0.003 if charged else 0.0)
            judge.asker.close()


# ---- several processes


def ask_in_process(config, reports, out):
    judge = CriticalityLlm.from_config(config)
    found = judge(reports)
    out.put(([label and label.critical for label in found], vars(judge.stats)))


def in_processes(config, batches):
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    processes = [context.Process(target=ask_in_process, args=(config, batch, out)) for batch in batches]
    for process in processes:
        process.start()
    results = [out.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    return results


def test_processes_that_share_a_cache_share_its_questions_and_its_budget(tmp_path):
    reports = [f"report {n}" for n in range(30)]
    with JudgeServer(takes_s=0.02) as server:
        config = impatient(server.url, tmp_path / "c.sqlite", concurrency=4, claim_s=30.0)
        results = in_processes(config, [reports[n:] + reports[:n] for n in range(0, 24, 3)])
        assert all(found == [True] * 30 for found, _ in results)
        assert len(server.requests) == len(set(server.asked())) == 30
        assert sum(stats["asked"] for _, stats in results) == 30
        assert sum(stats["cached"] for _, stats in results) == 7 * 30
        # The same eight with a budget of 10 calls more, on other questions.
        config = impatient(server.url, tmp_path / "c.sqlite", max_calls=40)
        results = in_processes(config, [[f"{name}{n}" for n in range(2)] for name in "abcdefgh"])
        assert len(server.requests) == 40
        assert sum(stats["asked"] for _, stats in results) == 10 and sum(stats["missing"] for _, stats in results) == 6


def test_questions_of_a_killed_process_are_asked_by_the_next_and_its_answers_are_kept(tmp_path):
    reports = [f"report {n}" for n in range(8)]
    with JudgeServer(takes_s=0.25) as server:
        config = impatient(server.url, tmp_path / "c.sqlite", concurrency=2, claim_s=0.5)
        context = multiprocessing.get_context("spawn")
        out = context.Queue()
        process = context.Process(target=ask_in_process, args=(config, reports, out))
        process.start()
        until = time.monotonic() + 60
        while len(server.requests) < 5 and time.monotonic() < until:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        begun = set(server.asked())
        judge = CriticalityLlm.from_config(config)
        assert None not in judge(reports)
        assert judge.stats.asked + judge.stats.cached == 8
        # At most the two that were under way are asked again.
        assert judge.stats.cached >= 4 - 2 and len(server.requests) <= 8 + config.concurrency
        assert len(set(server.asked())) == 8 and len(begun) >= 5
        judge.asker.close()


def test_a_long_question_keeps_its_claim(tmp_path):
    """Its answer takes several claim times: the claim is renewed, and the other process waits."""
    with JudgeServer(takes_s=2.5) as server:
        config = impatient(server.url, tmp_path / "c.sqlite", claim_s=1.0)
        first, second = CriticalityLlm.from_config(config), CriticalityLlm.from_config(config)
        tasks = [ThreadPool(1).apply_async(judge, (["A."],)) for judge in (first, second)]
        assert all(task.get(30)[0].critical for task in tasks) and len(server.requests) == 1
        assert first.stats.asked + second.stats.asked == first.stats.cached + second.stats.cached == 1
        first.asker.close()
        second.asker.close()
