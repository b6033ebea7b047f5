"""Which references are critical, by the paper's definition and by the one that counts what is urgent or new."""

import pytest

from radflow.data.sections import parse_sections
from radflow.rewards.rules.chexpert_rules import ChexpertRules
from radflow.rewards.rules.criticality import CriticalityRules

RULES = ChexpertRules(parse_sections)


def test_criticality_names_its_reason():
    normal, device, abnormal, old = CriticalityRules(RULES)(
        [
            "No effusion. Heart size is normal.",
            "No effusion. Pacemaker.",
            "Left effusion, possible pneumonia.",
            "Clear lungs. Calcified aorta.",
        ]
    )
    assert (normal.critical, normal.reason, normal.source) == (False, "no abnormal finding", "rules")
    assert (device.critical, device.reason) == (True, "Support Devices")
    assert (abnormal.critical, abnormal.reason) == (True, "Pleural Effusion, Pneumonia")
    assert (old.critical, old.reason) == (True, "Calcification")


@pytest.mark.parametrize(
    ("report", "reason"),
    [
        ("Small left pneumothorax.", "Pneumothorax"),
        ("Possible pneumonia.", "Pneumonia"),  # suspected is enough
        ("New nodule in the left lung.", "Lung Lesion"),
        ("Moderate effusion, increased since yesterday.", "Pleural Effusion"),
        ("Acute compression fracture of T12.", "Fracture, Vertebral compression"),
        ("The endotracheal tube is in the right main bronchus.", "position of a device"),
        ("HISTORY: Pneumonia.\nFINDINGS: Left consolidation.", "Consolidation"),
    ],
)
def test_what_is_urgent_or_new_is_critical_by_both_definitions(report, reason):
    (acute,) = CriticalityRules(RULES, "acute")([report])
    assert (acute.critical, acute.reason) == (True, reason)
    assert CriticalityRules(RULES)([report])[0].critical


@pytest.mark.parametrize(
    "report",
    [
        "Mild cardiomegaly.",
        "Stable moderate cardiomegaly.",
        "5 mm nodule, stable since 2010.",
        "Pacemaker. Status post sternotomy.",
        "The endotracheal tube is in good position.",
        "Severe degenerative changes. Scoliosis.",
        "Old rib fractures.",
        "Bibasilar atelectasis.",
        "Small effusion, unchanged. The effusion is seen on the left.",
        "Emphysema. Calcified granuloma.",
    ],
)
def test_what_is_old_mild_or_chronic_is_critical_by_the_papers_definition_only(report):
    (paper,), (acute,) = (CriticalityRules(RULES, definition)([report]) for definition in ("paper", "acute"))
    assert paper.critical and not acute.critical and acute.reason == "no acute finding"


def test_history_is_not_critical():
    report = "INDICATION: Pneumothorax.\nFINDINGS: The lungs are clear."
    assert not any(CriticalityRules(RULES, d)([report])[0].critical for d in ("paper", "acute"))
