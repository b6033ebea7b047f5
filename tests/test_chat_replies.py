"""Texts of replies and errors, by hand."""

import re
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from radflow.chat.replies import clean, cut_out, parse_completion, parse_error, parse_retry_after


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("Findings: Clear.", "Findings: Clear."),
        ("<think>no end, so no answer", ""),
        ("Nodule <5 mm. I think </s>", "Nodule <5 mm. I think"),
        ("```\na\n```\n```\nb\n```", "```\na\n```\n```\nb\n```"),  # two blocks are not one answer
        ("```Findings: x.```", "Findings: x."),  # no name of a language
        ("\ufeff <think>a</think>\n\ufeffFindings: x.\n", "Findings: x."),
    ],
)
def test_thoughts_fences_and_stop_tokens_are_no_part_of_what_is_said(content, expected):
    assert clean(content) == expected
    assert clean(clean(content)) == expected


@pytest.mark.parametrize(
    "data", [None, [], {}, {"choices": []}, {"choices": [{}]}, {"choices": [{"message": "x"}]}, "x"]
)
def test_anything_else_is_no_completion(data):
    with pytest.raises(ValueError, match="no chat completion"):
        parse_completion(data)


ERRORS = [
    ({"error": {"message": "The model `x` does not exist", "code": "model_not_found"}}, "The model `x` does not exist"),
    ({"object": "error", "message": "The model `x` does not exist.", "code": 404}, "The model `x` does not exist."),
    ({"error": 'model "x" not found, try pulling it first'}, 'model "x" not found, try pulling it first'),
    ({"detail": "Not Found"}, "Not Found"),
    ({"detail": [{"loc": ["body", "n"], "msg": "extra"}]}, '[{"loc": ["body", "n"], "msg": "extra"}]'),
    ("<html>Bad Gateway</html>", "<html>Bad Gateway</html>"),
    ({"message": "no Route matched with those values"}, "no Route matched with those values"),
    (None, ""),
    ([], ""),
    ({"error": {"message": ""}}, ""),
]


@pytest.mark.parametrize(("data", "shown"), ERRORS)
def test_what_the_server_says_is_shown_in_every_form_of_error(data, shown):
    assert parse_error(data, private="A report.", public="").message == shown


def test_words_of_the_report_are_cut_out_of_an_error_however_it_quotes_them():
    report = "Mrs Example-Name has TB.\nStable since 2019."
    for quoted in (report, repr(report), repr(repr(report)), report.upper(), report[:9], "'TB'", "Exam", "xample"):
        shown = cut_out(f"bad input: {quoted} at line 1", report)
        assert shown.startswith("bad input: ") and shown.endswith("at line 1") and "…" in shown
        assert not [word for word in ("Mrs", "Exam", "Name", "TB", "2019") if word.casefold() in shown.casefold()], (
            shown
        )
    assert cut_out('got "Frau M\\u00fcller"', "Frau Müller hustet") == 'got "…"'
    assert cut_out("model not found", "No mass was found.", public="what is found, and what not") == "model not found"
    assert cut_out("A" * 9000, "") == "…" and len(cut_out("ab " * 9000, "")) < 310


@given(st.text(max_size=60), st.text(alphabet="ab .,\n'\"", max_size=60))
def test_no_word_of_the_report_is_left(message, report):
    shown = cut_out(f"{message} {report} {report!r}", report)
    assert not set(re.findall(r"\w+", shown)) & set(re.findall(r"\w+", report))


def test_retry_after_is_seconds_or_a_date():
    assert parse_retry_after("7") == 7.0 and parse_retry_after(" 0.5 ") == 0.5
    soon = parse_retry_after(format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True))
    assert 27 < soon <= 30
    assert parse_retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert parse_retry_after("soon") is None and parse_retry_after("-3") is None and parse_retry_after(None) is None
