import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radflow.data.sections import parse_sections
from radflow.rewards.rules.chexpert_rules import LABELS, ChexpertRules, label_report
from radflow.rewards.rules.criticality import CriticalityRules

RULES = ChexpertRules(parse_sections)


def known(text):
    """What a text says of the 13 findings, and whether it is normal."""
    return {label: value for label, value in RULES.values(text).items() if value is not None}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("There is a small left pleural effusion.", {"Pleural Effusion": 1}),
        ("The heart is mildly enlarged.", {"Cardiomegaly": 1}),
        ("Small left PTX. ETT and NGT in situ.", {"Pneumothorax": 1, "Support Devices": 1}),
        ("Mild pulmonary vascular congestion, bibasilar opacities.", {"Edema": 1, "Lung Opacity": 1}),
        # before
        ("There is no evidence of pneumonia.", {"Pneumonia": 0, "No Finding": 1}),
        (
            "No pleural effusion, pneumothorax or focal consolidation.",
            {"Pleural Effusion": 0, "Pneumothorax": 0, "Consolidation": 0, "No Finding": 1},
        ),
        (
            "The lungs do not demonstrate infiltrate or effusion.",
            {"Lung Opacity": 0, "Pleural Effusion": 0, "No Finding": 1},
        ),
        ("Neither effusion nor pneumothorax.", {"Pleural Effusion": 0, "Pneumothorax": 0, "No Finding": 1}),
        ("The heart is not enlarged.", {"Cardiomegaly": 0, "No Finding": 1}),
        # after
        ("Pneumothorax is not seen.", {"Pneumothorax": 0, "No Finding": 1}),
        (
            "Effusion, pneumothorax and consolidation are not seen.",
            {"Pleural Effusion": 0, "Pneumothorax": 0, "Consolidation": 0, "No Finding": 1},
        ),
        ("The effusion has resolved.", {"Pleural Effusion": 0, "No Finding": 1}),
        ("Pleural effusion: none.", {"Pleural Effusion": 0, "No Finding": 1}),
        ("The chest tube has been removed.", {"Support Devices": 0, "No Finding": 1}),
        # what looks like a denial
        ("No change in the left effusion.", {"Pleural Effusion": 1}),
        ("The consolidation has largely resolved.", {"Consolidation": 1}),
        ("9 mm nodule, not seen on prior exams.", {"Lung Lesion": 1}),
        ("The effusion is not significantly changed.", {"Pleural Effusion": 1}),
        ("The effusion is not without loculation.", {"Pleural Effusion": 1}),
        ("Not without effusion.", {"Pleural Effusion": 1}),
        # where a denial ends
        ("No effusion but there is edema.", {"Pleural Effusion": 0, "Edema": 1}),
        ("No pneumothorax with small effusion.", {"Pneumothorax": 0, "Pleural Effusion": 1}),
        ("No pneumothorax, small effusion.", {"Pneumothorax": 0, "Pleural Effusion": 1}),
        ("No pneumothorax is seen and there is edema.", {"Pneumothorax": 0, "Edema": 1}),
        ("No effusion, with the exception of atelectasis.", {"Pleural Effusion": 0, "Atelectasis": 1}),
        ("Apart from cardiomegaly, no abnormality.", {"Cardiomegaly": 1}),
        ("Mild cardiomegaly, otherwise normal.", {"Cardiomegaly": 1}),
        # doubt
        ("Possible pneumonia.", {"Pneumonia": -1}),
        ("Pneumonia cannot be excluded.", {"Pneumonia": -1}),
        ("Cannot exclude pneumonia.", {"Pneumonia": -1}),
        ("Pneumonia has not been ruled out.", {"Pneumonia": -1}),
        ("Atelectasis versus pneumonia.", {"Atelectasis": -1, "Pneumonia": -1}),
        ("Small effusions, if any.", {"Pleural Effusion": -1}),
        # the opacity is certain, its cause is not
        ("Left opacity, which may represent pneumonia.", {"Lung Opacity": 1, "Pneumonia": -1}),
        ("No opacity suspicious for pneumonia.", {"Lung Opacity": 0, "Pneumonia": 0, "No Finding": 1}),
        ("Opacity compatible with atelectasis.", {"Lung Opacity": 1, "Atelectasis": 1}),
        # another time, a question, a plan
        ("History of pneumonia. Lungs are clear.", {"No Finding": 1}),
        ("Rule out pneumonia.", {}),
        ("Follow up to document resolution of pneumonia.", {}),
        ("If pneumonia is suspected, CT is more sensitive.", {}),
        # normal statements deny
        ("Heart size is normal.", {"Cardiomegaly": 0, "No Finding": 1}),
        (
            "Cardiomediastinal silhouette is within normal limits.",
            {"Cardiomegaly": 0, "Enlarged Cardiomediastinum": 0, "No Finding": 1},
        ),
        ("Heart size is upper limits of normal.", {"Cardiomegaly": 0, "No Finding": 1}),
        ("No acute cardiopulmonary abnormality.", {"No Finding": 1}),
        ("Pacemaker in place. Lungs are clear.", {"Support Devices": 1, "No Finding": 1}),
        ("Lungs are clear. Degenerative changes of the spine.", {}),
        # lines and sentences
        ("No effusion. Later: a right effusion.", {"Pleural Effusion": 1}),
        ("There is no pleural\neffusion.", {"Pleural Effusion": 0, "No Finding": 1}),
        ("- No pneumothorax\n- Small effusion", {"Pneumothorax": 0, "Pleural Effusion": 1}),
        ("", {}),
        ("Lorem ipsum dolor.", {}),
    ],
)
def test_statements_by_hand(text, expected):
    assert known(text) == expected


FINDINGS = {
    "effusion": "Pleural Effusion",
    "pneumothorax": "Pneumothorax",
    "consolidation": "Consolidation",
    "atelectasis": "Atelectasis",
    "pneumonia": "Pneumonia",
}


@given(st.lists(st.sampled_from(sorted(FINDINGS)), min_size=1, max_size=5, unique=True), st.booleans())
def test_a_denial_holds_for_every_item_of_a_list_in_any_order(names, before):
    listed = ", ".join(names[:-1]) + (" or " if len(names) > 1 else "") + names[-1]
    text = f"There is no {listed}." if before else f"{listed.capitalize()} is not seen."
    assert {k: v for k, v in known(text).items() if k != "No Finding"} == {FINDINGS[name]: 0 for name in names}


@given(st.permutations(["Left effusion.", "No pneumothorax.", "Possible pneumonia.", "Heart size is normal."]))
def test_the_order_of_sentences_does_not_matter(pieces):
    assert known(" ".join(pieces)) == {"Pleural Effusion": 1, "Pneumothorax": 0, "Pneumonia": -1, "Cardiomegaly": 0}


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=300))
def test_any_text_has_fourteen_labels(text):
    labels = RULES.values(text)
    assert tuple(labels) == LABELS and set(labels.values()) <= {1, 0, -1, None}


@pytest.mark.parametrize(
    "piece", ["no ", "no effusion, ", "a-", "effusion ", ", ", "not ", "heart ", "normal ", "\n", "x, "]
)
def test_long_repetitions_take_no_time(piece):
    # a pattern that backtracks would take minutes on 5,000 characters of a policy that repeats itself
    RULES.values(piece * (5_000 // len(piece)))


ELSEWHERE = [
    "INDICATION: Lung cancer, large effusion.\nFINDINGS: No edema.\nIMPRESSION: Clear.",
    "FINDINGS: No edema.\nIMPRESSION: Clear.\nRECOMMENDATION: CT to exclude pneumonia.",
    "WET READ: Large effusion.\n FINAL REPORT\n FINDINGS: No edema.\n\n IMPRESSION: Clear.",
    "PATIENT HISTORY: Pneumothorax. FINDINGS: No edema. IMPRESSION: Clear. DISCUSSION: Atelectasis or pneumonia.",
]


@pytest.mark.parametrize("report", ELSEWHERE)
def test_only_sections_about_the_examination_are_read(report):
    assert RULES.values(report) == label_report("No edema.\n\nClear.")
    assert RULES([report]) == [RULES.certain(report)] == [{"No Finding"}] and RULES.abnormalities(report) == set()
    (judged,) = CriticalityRules(RULES)([report])
    assert not judged.critical


@pytest.mark.parametrize("text", ["Small left effusion. No edema.", "Possible pneumonia.", "Normal chest."])
def test_a_text_has_the_same_labels_without_a_header_and_in_either_section(text):
    expected = label_report(text)
    for report in (text, f"FINDINGS: {text}", f"Impression:\n{text}", f"Indication: edema. Findings: {text}"):
        assert RULES.values(report) == expected


def test_uncertain_counts_as_positive_in_the_set_and_not_as_certain():
    assert RULES(["Possible pneumonia."]) == [{"Pneumonia"}]
    assert RULES.certain("Possible pneumonia.") == set()


def test_labels_are_the_fourteen_in_chexbert_order():
    assert len(LABELS) == 14 and LABELS[1] == "Cardiomegaly" and LABELS[9] == "Pleural Effusion"
