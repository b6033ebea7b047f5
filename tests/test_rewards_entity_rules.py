import pytest

from radflow.rewards.rules.entity_rules import EntityF1Rules, entities, sides


def f1(candidate, reference):
    return EntityF1Rules()([candidate], [reference])[0]


def test_entities_by_hand():
    assert entities("There is a small left pleural effusion.") == {
        ("Pleural Effusion", "present"),
        ("Pleural Effusion", "present", "modify", "small"),
        ("Pleural Effusion", "present", "located_at", "left"),
    }
    assert entities("No pneumothorax.") == {("Pneumothorax", "absent")}


def test_the_wrong_side_costs_one_of_three_entities():
    # two of three entities are shared on both sides: 2 x 2 / 6
    assert f1("Small left pleural effusion.", "Small right pleural effusion.") == pytest.approx(2 / 3)


def test_negation_is_no_agreement():
    assert f1("No pleural effusion.", "Pleural effusion.") == 0


def test_modifiers_stay_with_their_finding():
    found = entities("Small left effusion and large right pneumothorax.")
    assert ("Pleural Effusion", "present", "located_at", "left") in found and (
        "Pleural Effusion",
        "present",
        "located_at",
        "right",
    ) not in found
    assert ("Pneumothorax", "present", "modify", "large") in found and (
        "Pneumothorax",
        "present",
        "modify",
        "small",
    ) not in found


def test_wording_and_repetition_do_not_count():
    assert f1("The heart is normal. The heart is normal.", "Heart size is normal.") == 1


def test_silence_is_no_agreement():
    assert f1("", "Foo.") == 0 and f1("Foo.", "Foo.") == 1 and f1("", "Pleural effusion.") == 0


def test_carotid_reports_have_entities_too():
    found = entities("Soft plaque in the left carotid bulb with severe stenosis.")
    assert {
        ("Plaque", "present", "modify", "soft"),
        ("Plaque", "present", "located_at", "left"),
        ("Stenosis", "present"),
    } <= found


def test_sides_of_what_is_there():
    text = "Bilateral effusions. Left consolidation. No right pneumothorax. Edema."
    assert sides(text) == {"Pleural Effusion": {"left", "right"}, "Consolidation": {"left"}}


def test_sections_about_something_else_have_no_entities():
    assert entities("INDICATION: effusion. FINDINGS: No pneumothorax.") == {("Pneumothorax", "absent")}
