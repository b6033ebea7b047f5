"""Errors of a report about the findings of its reference, and the share of a reward that they leave."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radflow.data.phantoms import make_studies
from radflow.data.sections import parse_sections
from radflow.rewards.config import RewardConfig
from radflow.rewards.registry import build_reward
from radflow.rewards.rules.errors import FindingErrors, TruthRules

REFERENCE = "Small left pleural effusion. The heart is mildly enlarged. A 5 mm nodule is seen. No pneumothorax."
REWARDS = {
    modality: build_reward(RewardConfig(expert=expert), parse_sections)
    for modality, expert in (("chest", "chexpert_rules"), ("carotid", "carotid_rules"))
}
CHEST = REWARDS["chest"].labeler
ERRORS = FindingErrors(CHEST)


def errors(candidate, reference=REFERENCE):
    return sorted((error.kind, error.about) for error in ERRORS(candidate, reference))


@pytest.mark.parametrize(
    ("written", "instead", "expected"),
    [
        ("", "", []),
        ("Small left", "Small right", [("side", "Pleural Effusion")]),
        ("Small left", "Small bilateral", [("made up", "Pleural Effusion")]),
        ("Small left", "Small", [("inexact", "Pleural Effusion")]),
        ("Small left", "Moderate left", [("inexact", "Pleural Effusion")]),
        ("Small left", "Large left", [("grade", "Pleural Effusion")]),
        ("Small left", "Possible small left", [("inexact", "Pleural Effusion")]),
        ("mildly", "severely", [("grade", "Cardiomegaly")]),
        ("5 mm", "0.5 cm", []),
        ("5 mm", "9 mm", [("measurement", "9 mm")]),
        ("A 5 mm nodule is seen.", "", [("missed", "Lung Lesion")]),
        ("A 5 mm nodule is seen.", "No nodule.", [("denied", "Lung Lesion"), ("missed", "Lung Lesion")]),
        ("A 5 mm nodule is seen.", "A 5 mm nodule. There is no nodule.", [("denied", "Lung Lesion")]),
        ("A 5 mm nodule is seen.", "A 5 mm opacity is seen.", [("inexact", "Lung Lesion")]),
        ("No pneumothorax", "Left pneumothorax", [("made up", "Pneumothorax")]),
        ("No pneumothorax.", "", [("unsaid", "Pneumothorax")]),
        ("No pneumothorax", "No pneumothorax. Correlate clinically", []),
        (
            "No pneumothorax",
            "No pneumothorax. Discharge the patient without treatment",
            [("advice", "Discharge the patient without treatment.")],
        ),
    ],
)
def test_each_kind_of_error_by_hand(written, instead, expected):
    assert written in REFERENCE
    assert errors(REFERENCE.replace(written, instead)) == expected


def test_a_finding_that_the_reference_only_suspects_may_be_left_out_for_less():
    assert errors("", "Possible pneumonia.") == [("inexact", "Pneumonia")]
    assert errors("No pneumonia.", "Possible pneumonia.") == [("denied", "Pneumonia"), ("inexact", "Pneumonia")]


def test_a_denial_of_one_side_or_one_size_denies_no_other():
    reference = "Small left effusion. No right effusion."
    assert errors(reference, reference) == errors("Small left effusion. No large effusion.", reference) == []
    for denial in ("No right effusion.", "No large effusion.", "No new effusion."):
        assert errors(f"Small left effusion. {denial}", "Small left effusion.") == []
    assert errors("Small left effusion. No left effusion.", "Small left effusion.") == [("denied", "Pleural Effusion")]


@pytest.mark.parametrize(
    ("reference", "candidate", "expected"),
    [
        ("Bibasilar opacities, left greater than right.", "Bibasilar opacities, right greater than left.", "side"),
        ("Severe dextroscoliosis.", "Severe levoscoliosis.", "side"),
        ("Mild to moderate scoliosis and severe edema.", "Severe to moderate scoliosis and severe edema.", "grade"),
        ("Haziness in the right lung and left base.", "Haziness in the left lung and right base.", "side"),
        # both sentences of the reference are there, in the other order
        ("Small left effusion. Small right effusion.", "Small right effusion. Small left effusion.", None),
        ("Left lung is clear.", "Right lung is clear.", None),  # of what is normal, it may be true of both
    ],
)
def test_a_sentence_with_another_word_for_side_or_grade_contradicts(reference, candidate, expected):
    assert {kind for kind, _ in errors(candidate, reference)} - {"inexact"} == ({expected} if expected else set())


def test_a_sentence_that_is_said_of_both_sides_is_no_exchange_of_sides():
    reference = "Consolidation in the left upper lobe. Some consolidation in the right lung."
    candidate = "Consolidation in the left upper lobe. Consolidation in the right upper lobe."
    assert errors(candidate, reference) == []


def test_a_side_that_the_reference_gives_to_the_finding_in_other_words_is_true():
    # The reference says the same of the other side in the candidate's very words: no side was exchanged.
    reference = "There is a large left effusion. A small right effusion is present."
    assert "side" not in dict(errors("A moderate left effusion is present.", reference))
    assert "side" in dict(errors("A moderate left effusion is present.", "A small right effusion is present."))


def test_advice_after_a_sentence_without_a_full_stop_is_found():
    reference = "No acute cardiopulmonary process is seen"
    found = errors(f"{reference} Emergency surgery is recommended.", reference)
    assert [kind for kind, _ in found] == ["advice"]


def test_advice_that_the_reference_gives_is_no_error():
    reference = "5 mm nodule. Recommend follow-up CT in 6 months."
    assert errors("5 mm nodule. CT in 6 months is recommended.", reference) == []
    assert [kind for kind, _ in errors("5 mm nodule. Recommend biopsy now.", reference)] == ["advice"]


def test_truth_by_hand():
    # wrong side 9, finding missed 1: 1 / (1 + 10)
    candidate = "Small right pleural effusion. The heart is mildly enlarged. No pneumothorax."
    assert TruthRules(ERRORS)([candidate, REFERENCE], [REFERENCE] * 2) == [pytest.approx(1 / 11), 1.0]


@pytest.mark.parametrize("modality", REWARDS)
def test_no_report_has_errors_against_itself(modality):
    labeler = REWARDS[modality].labeler
    reports = [s.report for s in make_studies(modality, num_train=200, num_val=0, num_test=0, seed=2, size=56)]
    assert TruthRules(FindingErrors(labeler))(reports, reports) == [1.0] * len(reports)


@settings(max_examples=50, deadline=None)
@given(st.permutations([f"{sentence}." for sentence in REFERENCE.rstrip(".").split(". ")]))
def test_every_true_sentence_more_makes_a_report_at_least_as_true(sentences):
    reports = [" ".join(sentences[:count]) for count in range(len(sentences) + 1)]
    values = TruthRules(ERRORS)(reports, [REFERENCE] * len(reports))
    assert values == sorted(values) and values[0] == 1 / (1 + 3 + 0.25) and values[-1] == 1.0


def test_a_side_in_a_carotid_report_belongs_to_its_finding():
    reference = "Soft plaque in the left carotid bulb with severe stenosis. No right carotid plaque."
    rules = TruthRules(FindingErrors(REWARDS["carotid"].labeler))
    swapped = "Soft plaque in the right carotid bulb with severe stenosis. No left carotid plaque."
    mild = reference.replace("severe", "mild")
    assert rules([reference], [reference]) == [1.0]
    assert rules([swapped], [reference])[0] <= 0.1 and rules([mild], [reference])[0] <= 0.1
