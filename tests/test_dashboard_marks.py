"""Marks: what each finding of a report is called against the reference, and where it is in the text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from radflow.dashboard.marks import Marker, summarize
from radflow.rewards.rules.errors import FindingError

REFERENCE = "Findings: Small left effusion. No pneumothorax. Impression: Small left effusion."
CHEST, CAROTID = Marker("chexpert_rules"), Marker("carotid_rules")


def marked(text, reference=REFERENCE, marker=CHEST):
    """(words, mark, note) of what is marked."""
    column = marker.mark_report("x", text, reference)
    return [(span.text.lower(), span.mark, span.note) for span in column.spans if span.mark != "plain"]


def test_right_denied_and_made_up_findings_by_hand():
    text = "Findings: No effusion. No pneumothorax. Cardiomegaly. No edema."
    assert marked(text) == [  # the reference does not speak of an edema
        ("effusion", "denied", "denied"),
        ("pneumothorax", "right", ""),
        ("cardiomegaly", "wrong", "made up"),
    ]
    column = CHEST.mark_report("x", text, REFERENCE)
    assert column.counts == {"missed": 1, "denied": 1, "made up": 1} and column.listed == [
        "missed: left pleural effusion"
    ]
    assert column.right == 1  # the pneumothorax; the denied effusion is missed too
    columns = [column, CHEST.mark_report("x", "Effusion. Recommend biopsy.", REFERENCE)]
    counted = {"right": 1, "inexact": 1, "wrong": 1, "denied": 1, "missed": 1, "other": 1}
    assert summarize(columns) == counted


def test_a_finding_with_a_wrong_mention_is_not_counted_as_right():
    column = CHEST.mark_report("x", "Findings: Small right effusion. Impression: Small left effusion.", REFERENCE)
    assert column.right == 0 and column.counts["wrong side"] == 1


def test_a_possible_finding_that_is_left_out_is_listed():
    column = CHEST.mark_report("x", "No effusion.", "Possible pneumonia.")
    assert column.counts == {"inexact": 1} and column.listed == ["inexact: the reference has possible pneumonia"]


@pytest.mark.parametrize(
    ("text", "reference", "kinds"),
    [
        ("Findings: Small right effusion. Impression: Small left effusion.", REFERENCE, ["wrong side", ""]),
        ("Findings: Large left effusion. Impression: Small left effusion.", REFERENCE, ["wrong grade", ""]),
        ("Small bilateral effusions.", REFERENCE, ["wrong side"]),
        ("Findings: Clear. Impression: Moderate right pneumothorax.", "Moderate left pneumothorax.", ["wrong side"]),
        ("Possible effusion.", REFERENCE, ["inexact"]),
        ("Lung opacity.", "Findings: Pneumonia.", ["inexact"]),  # the broader finding
        ("Pneumonia. Lung opacity.", "Pneumonia.", ["", "made up"]),
        ("Edema.", "No edema.", ["made up"]),
    ],
)
def test_only_the_mention_that_is_wrong_is_marked_as_wrong(text, reference, kinds):
    assert [note for _, _, note in marked(text, reference)] == kinds


def test_an_error_about_a_whole_sentence_is_marked_where_the_sentence_follows_a_header():
    # the rules read wording in the whole text, where a sentence may begin with a header, and findings without headers
    marker = Marker("chexpert_rules")
    marker.errors = lambda text, reference: [FindingError("side", "Impression: Small left effusion.")]
    found = marked("Findings: Left effusion. Impression: Small left effusion.", REFERENCE, marker)
    assert [note for _, _, note in found] == ["", "wrong side"]


def test_a_side_that_is_missed_is_named():
    column = CHEST.mark_report("x", "Findings: Small left effusion.", "Findings: Small bilateral effusions.")
    assert column.listed == ["missed: right pleural effusion"]


def test_what_no_word_of_the_report_shows_is_listed():
    column = CHEST.mark_report("x", "Findings: A 9 mm nodule. Recommend biopsy.", "Findings: A 4 mm nodule.")
    assert column.listed == ["other measurement: 9 mm", "other advice: Recommend biopsy."]


def test_the_reference_shows_what_it_asserts():
    column = CHEST.mark_reference(REFERENCE)
    assert [span.text for span in column.spans if span.mark == "stated"] == ["effusion", "effusion"]
    assert column.counts is None and not column.listed


def test_what_the_indication_asks_is_shown_and_not_marked():
    text = "Indication: pneumonia?\n\nFindings: Small left effusion. Impression: Small left effusion."
    shown, found = CHEST.mentions(text)
    assert "pneumonia?" in shown and {mention.finding.name for mention in found} == {"Pleural Effusion"}


def test_carotid_reports_are_read_by_their_own_rules():
    found = marked("Findings: Soft plaque on the left. No stenosis.", "Findings: No plaque. Mild stenosis.", CAROTID)
    assert found == [("soft plaque", "wrong", "made up"), ("stenosis", "denied", "denied")]
    found = marked(
        "Severe stenosis of the right ICA. Plaque on the left.", "Mild stenosis. Plaque on the left.", CAROTID
    )
    assert [note for _, _, note in found] == ["wrong grade", ""]


def test_a_title_says_what_was_read_and_what_the_reference_says():
    (span,) = (s for s in CHEST.mark_report("x", "Large left effusion.", REFERENCE).spans if s.mark != "plain")
    assert span.title == "severe left pleural effusion: wrong grade; the reference: mild left pleural effusion"


SENTENCES = (
    "Small effusion.",
    "No edema, effusion or pneumothorax.",
    "Right effusion and left effusion.",
    "1. Clear lungs.",
    "Findings:",
    "Impression:",
    "History:",
    "The heart\nis big",
    "Soft plaque left, hard plaque right.",
    "未见斑块",
    "",
)
REPORTS = st.lists(st.sampled_from(SENTENCES) | st.text(max_size=20), max_size=12).map(" ".join)


@pytest.mark.parametrize("marker", [CHEST, CAROTID], ids=["chest", "carotid"])
@given(text=REPORTS, reference=REPORTS)
def test_the_pieces_are_the_whole_text(marker, text, reference):
    spans = marker.mark_report("x", text, reference).spans
    assert "".join(span.text for span in spans) == " ".join(text.split())


@pytest.mark.parametrize("marker", [CHEST, CAROTID], ids=["chest", "carotid"])
@given(text=REPORTS)
def test_a_report_that_is_its_reference_has_nothing_wrong(marker, text):
    column = marker.mark_report("x", text, text)
    assert not column.counts and {span.mark for span in column.spans} <= {"right", "plain"}


@given(text=REPORTS)
def test_a_finding_is_where_its_words_are(text):
    shown, found = CHEST.mentions(text)
    assert all(shown[one.start : one.end].lower() == one.finding.mention for one in found)
