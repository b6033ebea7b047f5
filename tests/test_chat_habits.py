"""Servers as they are: each refuses, ignores or wraps something, and the model's own answer is right."""

import json

import pytest
from judge_server import JudgeServer, completion, impatient, says, status, verdict

from radflow.rewards.judge.llm import CriticalityLlm

YES = verdict("yes", "An effusion is described.")
SMALL, LARGE = 300, 1200  # tokens


def refuses(code, body, *fields, without=lambda body: False):
    """A server that answers `code` to every request with one of these fields."""

    def habit(request):
        return status(code, body) if without(request) or set(fields) & request.keys() else says(YES)

    return habit


def has_system(request):
    return request["messages"][0]["role"] == "system"


def asks_for(kind):
    """ "schema": for a JSON object with a schema."""
    return lambda request: kind in (request.get("response_format", {}).get("type"), *request.get("response_format", ()))


def ignores_new_limit(request):
    used = 50 if "max_tokens" in request else 5000
    return status(200, completion(YES, usage={"prompt_tokens": 9, "completion_tokens": used}))


def ignores_new_limit_and_refuses_both(request):
    if {"max_tokens", "max_completion_tokens"} <= request.keys():
        return status(400, {"error": {"message": "max_tokens and max_completion_tokens cannot both be set"}})
    return ignores_new_limit(request)


def thinks_long(tokens):
    """Its thoughts take that many; until then the reply is cut."""

    def habit(request):
        if request["max_completion_tokens"] >= tokens:
            return says(f"<think>long thoughts</think>{YES}")
        cut = completion("<think>long tho")
        cut["choices"][0]["finish_reason"] = "length"
        return status(200, cut)

    return habit


def accepts_little(request):
    """Any other field is answered without a word why."""
    roles = [message["role"] for message in request["messages"]]
    little = {"path", "model", "messages", "max_tokens", "stream"}
    return says(YES) if request.keys() <= little and roles == ["user"] else status(400)


def usage(prompt, answer):
    return lambda _: status(200, completion(YES, usage={"prompt_tokens": prompt, "completion_tokens": answer}))


def always(fault):
    return lambda _: fault


THINKING = {"type": "thinking", "thinking": [{"type": "text", "text": "no"}]}
WRAPPED = {
    "thoughts": f"<think>\nMaybe. {verdict('no')}\n</think>\n\n{YES}",
    "empty thoughts": f"<think>\n\n</think>\n\n{YES}",
    "thoughts whose beginning is in the prompt": f"It is no. {verdict('no')}\n</think>\n{YES}",
    "two thoughts": f"<think>a</think><think>b</think>{YES}",
    "thoughts of Magistral": f"[THINK]no[/THINK]{YES}",
    "thoughts of Kimi": f"◁think▷no◁/think▷{YES}",
    "channels": f"<|channel|>analysis<|message|>no<|end|><|start|>assistant<|channel|>final<|message|>{YES}<|return|>",
    "parts": [{"type": "text", "text": YES}],
    "parts with thoughts": [THINKING, {"type": "text", "text": YES}],
    "half in each part": [{"type": "text", "text": YES[:20]}, {"type": "output_text", "text": YES[20:]}],
    "texts": [YES],
    "byte order mark": "\ufeff" + YES,
    "fence": f"```json\n{YES}\n```",
    "fence in one line": f"```JSON {YES} ```",
    "fence without a name": f"\n```\n{YES}\n```\n",
    "stop tokens": f"{YES}<|im_end|>\n<|endoftext|>",
    "stop token of Llama": f"{YES}</s>",
}
HABITS = {name: always(says(content)) for name, content in WRAPPED.items()}
HABITS |= {
    "thoughts in a field of their own": always(says(YES, reasoning_content="no", reasoning="no")),
    "byte order mark before the body": always(status(200, "\ufeff" + json.dumps(completion(YES)))),
    "blank lines before the body": always(status(200, "\n \n" + json.dumps(completion(YES)))),
    "usage beyond all numbers": usage(10**400, 10**400),
    "usage below zero": usage(-5, -5),
    "usage in words": usage("many", None),
    "usage as a list": always(status(200, {**completion(YES), "usage": [1, 2]})),
    "no new name of the limit": refuses(
        422,
        {"detail": [{"type": "extra_forbidden", "loc": ["body", "max_completion_tokens"]}]},
        "max_completion_tokens",
    ),
    "ignores the new name of the limit": ignores_new_limit,
    "ignores it, and refuses both": ignores_new_limit_and_refuses_both,
    "no system role": refuses(400, {"message": "System role not supported", "code": 400}, without=has_system),
    "fails for the system role": refuses(
        500, {"error": {"message": "Conversation roles must alternate user/assistant", "code": 500}}, without=has_system
    ),
    "no schema": refuses(
        400, {"error": {"message": "response_format is unavailable"}}, without=asks_for("json_schema")
    ),
    "JSON without a schema only": refuses(
        400, {"error": "extra field"}, without=lambda r: asks_for("json_schema")(r) or asks_for("schema")(r)
    ),
    "no format": refuses(400, {"error": "unknown field response_format"}, "response_format"),
    "no word why": refuses(422, "", "response_format"),
    "fails for a format": refuses(500, {"error": {"message": "grammar", "code": 500}}, "response_format"),
    "says nothing in a format": lambda request: says("" if "response_format" in request else YES),
    "says null for a schema": lambda request: says(None if asks_for("json_schema")(request) else YES),
    "texts as lists of parts only": refuses(
        422,
        {"detail": [{"loc": ["body", "messages", 0, "content"], "msg": "Input should be a valid list"}]},
        without=lambda request: isinstance(request["messages"][0]["content"], str),
    ),
    "its own temperature": refuses(
        400,
        {"error": {"message": "Unsupported value", "param": "temperature", "code": "unsupported_value"}},
        "temperature",
    ),
    "an error with status 200": refuses(
        200, {"error": {"message": "Unsupported parameter: response_format", "code": 400}}, "response_format"
    ),
    "accepts little": accepts_little,
    "thinks for long": thinks_long(LARGE),
    "thinks for very long": thinks_long(4 * LARGE),
}


@pytest.mark.parametrize("habit", HABITS.values(), ids=HABITS)
def test_the_answer_is_found_and_the_habit_is_learned_once(habit, tmp_path):
    with JudgeServer(habit=habit) as server:
        judge = CriticalityLlm.from_config(impatient(server.url, tmp_path / "c.sqlite", retries=1, max_tokens=SMALL))
        (found,) = judge(["Large effusion."])
        assert found.critical and found.reason == "An effusion is described."
        learned = len(server.requests)
        assert learned <= 8
        assert all(one.critical for one in judge(["A.", "B.", "C.", "D."]))
        assert len(server.requests) == learned + 4 and judge.stats.missing == 0
        judge.asker.close()


def test_only_what_is_refused_is_given_up(tmp_path):
    """The words of the refusal say what it is about; the schema need not go because the system role has to."""
    with JudgeServer(habit=HABITS["no system role"]) as server:
        judge = CriticalityLlm.from_config(impatient(server.url, tmp_path / "c.sqlite"))
        judge(["A."])
        judge.asker.close()
    first, second = server.requests
    assert second["response_format"]["type"] == "json_schema" and second["temperature"] == 0
    (merged,) = second["messages"]
    assert merged == {"role": "user", "content": "\n\n".join(one["content"] for one in first["messages"])}


def test_a_failure_that_names_a_field_is_not_tried_again_as_it_is(tmp_path):
    """What llama-cpp-python's server says to a schema."""
    said = "'loc': ('body', 'response_format', 'type'), 'msg': \"Input should be 'text' or 'json_object'\""
    refusal = {"error": {"message": f"1 validation error: {said}", "type": "internal_server_error"}}
    with JudgeServer(habit=refuses(500, refusal, without=asks_for("json_schema"))) as server:
        judge = CriticalityLlm.from_config(impatient(server.url, tmp_path / "c.sqlite", retries=4))
        assert judge(["A."])[0].critical and len(server.requests) == 2
        judge.asker.close()


def test_one_question_learns_for_all_that_are_asked_with_it(tmp_path):
    with JudgeServer(habit=HABITS["no format"], takes_s=0.05) as server:
        judge = CriticalityLlm.from_config(impatient(server.url, tmp_path / "c.sqlite", concurrency=8))
        assert all(one.critical for one in judge([f"r{n}" for n in range(16)]))
        judge.asker.close()
    assert sum("response_format" in request for request in server.requests) == 3


def test_a_question_that_is_refused_for_what_it_holds_changes_nothing_for_others(tmp_path):
    """A report beyond the context of the model: it is missing, and the next is asked with the schema as before."""

    def habit(request):
        if "long" in request["messages"][-1]["content"]:
            return status(400, {"error": {"message": "maximum context length is 4096 tokens, reduce max_tokens"}})
        return says(YES)

    with JudgeServer(habit=habit) as server:
        judge = CriticalityLlm.from_config(impatient(server.url, tmp_path / "c.sqlite"))
        assert [found and found.critical for found in judge(["A."]) + judge(["long " * 9]) + judge(["B."])] == [
            *(True, None, True)
        ]
        assert "maximum context length is 4096 tokens" in judge.asker.last_trouble
        judge.asker.close()
    assert len(server.requests) == 3 and all("response_format" in request for request in server.requests)
