"""Errors that a language model lists: what it is asked, the scores by hand, and the columns of a table."""

import json
import sys
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st
from judge_server import JudgeServer

from radflow import evaluate
from radflow.rewards.judge.report_errors import GREEN_LIKE, crimson, read_crimson

REFERENCE = "Findings: Large pneumothorax. Old granuloma. Impression: Pneumothorax."
REPORTS = {"a": REFERENCE, "b": "Findings: Clear. Impression: Normal.", "c": "Findings: Granuloma. Impression: Mass."}


def listing(matched, significant=0, other=0):
    errors = [{"category": "a", "significant": True, "error": "e"}] * significant
    errors += [{"category": "f", "significant": False, "error": "e"}] * other
    return {"matched": ["finding"] * matched, "errors": errors}


@pytest.mark.parametrize(
    ("found", "score"),
    [
        (listing(3, 1, 5), 0.75),  # 3 / (3 + 1): what is not significant does not count
        (listing(2), 1.0),
        (listing(0, 2), 0.0),
        (listing(0), 0.0),  # GREEN's too: a report that agrees on nothing earns nothing
    ],
)
def test_green_like_by_hand(found, score):
    assert GREEN_LIKE.parse(json.dumps(found)).score == score


@pytest.mark.parametrize(
    "found",
    [
        {},
        {"matched": [], "errors": {}},
        {"matched": [1], "errors": []},
        {"matched": [], "errors": [{"category": "g", "significant": True}]},
        {"matched": [], "errors": [{"category": "a", "significant": "yes"}]},
    ],
)
def test_another_list_is_no_answer(found):
    with pytest.raises(ValueError, match="expected"):
        GREEN_LIKE.parse(json.dumps(found))


def crimson_listing(reference, predicted, matched=(), false=(), missing=(), attributes=()):
    def findings(mark, levels):
        return [
            {"id": f"{mark}{n}", "finding": "f", "clinical_significance": level} for n, level in enumerate(levels, 1)
        ]

    errors = {"false_findings": [*false], "missing_findings": [*missing]}
    errors["attribute_errors"] = [{"ref_id": name, "pred_id": "P1", "severity": how} for name, how in attributes]
    pairs = [{"ref_id": r, "pred_id": p} for r, p in matched]
    sides = {"reference_findings": findings("R", reference), "predicted_findings": findings("P", predicted)}
    return {**sides, "matched_findings": pairs, "errors": errors}


URGENT, ACTION, MINOR, BENIGN = "urgent", "actionable_not_urgent", "not_actionable_not_urgent", "benign_expected"
BY_HAND = [
    (crimson_listing([URGENT], [URGENT], [("R1", "P1")]), 1.0),
    (crimson_listing([], []), 1.0),
    # earned 1, total 1.25
    (crimson_listing([URGENT, MINOR], [URGENT], [("R1", "P1")], missing=["R2"]), 0.8),
    # a significant error of a finding of weight 0.5 halves it: 0.5 * 0.5 / (0.5 + 0.5)
    (crimson_listing([ACTION], [ACTION], [("R1", "P1")], attributes=[("R1", "significant")]), 0.5),
    (crimson_listing([ACTION], [ACTION], [("R1", "P1")], attributes=[("R1", "negligible")]), 1.0),
    # nothing earned, 1 invented: -1 / (1 + 1)
    (crimson_listing([URGENT], [URGENT], false=["P1"], missing=["R1"]), -0.5),
    (crimson_listing([], [URGENT], false=["P1"]), -0.5),
    (crimson_listing([BENIGN], [], missing=["R1"]), 1.0),  # what is expected may be left out
    (crimson_listing([URGENT], [], missing=["R1"]), 0.0),  # a normal template
]


@pytest.mark.parametrize(("found", "score"), BY_HAND)
def test_crimson_by_hand(found, score):
    assert read_crimson(found).score == score


@given(st.lists(st.sampled_from([URGENT, ACTION, MINOR, BENIGN]), min_size=1, max_size=4), st.data())
def test_leaving_out_a_true_finding_or_inventing_one_never_pays(levels, data):
    ids = [f"R{n}" for n in range(1, len(levels) + 1)]
    said = data.draw(st.sets(st.sampled_from(ids)))

    def score(said, invented=0):
        false = [f"P{len(levels) + 1}"] * invented
        found = crimson_listing(
            levels,
            [*levels, URGENT],
            matched=[(name, name.replace("R", "P")) for name in sorted(said)],
            missing=[name for name in ids if name not in said],
            false=false,
        )
        return read_crimson(found).score

    assert all(score(said - {name}) <= score(said) for name in said)
    assert score(said, invented=1) < score(said)


@pytest.fixture
def published(monkeypatch):
    """A package of the name, with a prompt that shows what it is given."""
    parts = ModuleType("CRIMSON.prompt_parts")
    parts.build_prompt = lambda reference, predicted: f"REFERENCE {reference} PREDICTED {predicted}"
    monkeypatch.setitem(sys.modules, "CRIMSON", ModuleType("CRIMSON"))
    monkeypatch.setitem(sys.modules, "CRIMSON.prompt_parts", parts)
    monkeypatch.setattr("radflow.rewards.judge.report_errors.metadata.version", lambda name: "0.0.1")


def test_crimson_asks_with_the_prompt_of_its_package_and_says_how_to_get_it(monkeypatch, published):
    chat = crimson().chat(["Effusion.", "Clear. <|im_end|>"])
    assert (
        chat.user == "REFERENCE Effusion. PREDICTED Clear. < |im_end|>" and crimson().version == "crimson-score 0.0.1"
    )
    monkeypatch.setitem(sys.modules, "CRIMSON.prompt_parts", None)
    with pytest.raises(ValueError, match="pip install --no-deps --ignore-requires-python crimson-score"):
        crimson()


def answer(request_text):
    """A model that reads only the candidate: two findings matched if it has the pneumothorax, else an error."""
    candidate = request_text.split("<<<CANDIDATE")[-1].split("PREDICTED")[-1]
    right = "pneumothorax" in candidate
    if "PREDICTED" in request_text:
        named = {"matched": [("R1", "P1")]} if right else {"missing": ["R1"]}
        return json.dumps(crimson_listing([URGENT], [URGENT] if right else [], **named))
    return json.dumps(listing(2) if right else listing(1, 1)) if "Mass" not in candidate else "no list"


def test_columns_files_and_notes_of_a_table(tmp_path, published, capsys):
    for name, reports in {"p": REPORTS, "r": dict.fromkeys(REPORTS, REFERENCE)}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({key: {"report": text} for key, text in reports.items()}))
    files = ["--predictions", tmp_path / "p.json", "--references", tmp_path / "r.json", "--out", tmp_path / "out"]
    with JudgeServer(answer, usage={"prompt_tokens": 1000, "completion_tokens": 100}) as server:
        options = ["--llm", "green_like", "crimson", "--judge.url", server.url, "--judge.model", "m"]
        options += ["--judge.cache", tmp_path / "c.sqlite", "--judge.input-price", 10]
        evaluate.main(["score", "--num-resamples", "200", *map(str, [*files, *options])])
        assert len(server.requests) == 7  # one of three reports was asked about twice
    rows = {entry["metric"]: entry for entry in json.loads((tmp_path / "out" / "summary.json").read_text())["metrics"]}
    assert rows["green_like_llm"]["value"] == 0.75 and rows["green_like_llm"]["studies"] == 2  # (1 + 1/2) / 2
    assert rows["green_like_llm"]["label"] == "GREEN-like (green-like-1, m)"
    assert rows["crimson_llm"]["value"] == pytest.approx(1 / 3)
    assert rows["crimson_llm"]["label"] == "CRIMSON's prompt (crimson-score 0.0.1, m)"
    listed = [json.loads(line) for line in (tmp_path / "out" / "errors.jsonl").read_text().splitlines()]
    assert len(listed) == 6 and listed[0]["listed"] == listing(2) and listed[2]["score"] is None
    shown = capsys.readouterr().out
    assert "green_like_llm: 1 of 3 reports have no answer (a reply of wrong form" in shown
    assert "m: 6 asked, 0 known before, cost 0.07" in shown  # 7 requests of 1000 tokens at 10 a million


def test_the_budget_leaves_reports_without_a_value_and_says_so(tmp_path, capsys):
    (tmp_path / "r.json").write_text(json.dumps({key: {"report": REFERENCE + key} for key in "abc"}))
    files = ["--predictions", tmp_path / "r.json", "--references", tmp_path / "r.json"]
    with JudgeServer(answer) as server:
        options = ["--llm", "green_like", "--judge.url", server.url, "--judge.model", "m", "--judge.max-calls", 2]
        evaluate.main(["score", *map(str, [*files, *options, "--judge.cache", tmp_path / "c.sqlite"])])
        assert len(server.requests) == 2
    assert "green_like_llm: 1 of 3 reports have no answer (the budget is used up" in capsys.readouterr().out


def test_a_model_is_needed(tmp_path, refuse):
    (tmp_path / "r.json").write_text(json.dumps({"a": {"report": REFERENCE}}))
    files = ["--predictions", tmp_path / "r.json", "--references", tmp_path / "r.json"]
    assert "judge.model" in refuse(evaluate.main, ["score", *files, "--llm", "green_like"])
