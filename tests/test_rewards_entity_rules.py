import pytest

from rewards.entity_rules import EntityF1Rules, entities


def f1(candidate, reference):
    return EntityF1Rules()([candidate], [reference])[0]


def test_entities_by_hand():
    assert entities("There is a small left pleural effusion.") == {
        ("Pleural Effusion", "present"),
        ("Pleural Effusion", "present", "small"),
        ("Pleural Effusion", "present", "left"),
    }
    assert entities("No pneumothorax.") == {("Pneumothorax", "absent")}


def test_the_wrong_side_costs_one_of_three_entities():
    # two of three entities are shared on both sides: 2 x 2 / 6
    assert f1("Small left pleural effusion.", "Small right pleural effusion.") == pytest.approx(2 / 3)


def test_negation_is_no_agreement():
    assert f1("No pleural effusion.", "Pleural effusion.") == 0


def test_modifiers_stay_with_their_finding():
    found = entities("Small left effusion and large right pneumothorax.")
    assert ("Pleural Effusion", "present", "left") in found and ("Pleural Effusion", "present", "right") not in found
    assert ("Pneumothorax", "present", "large") in found and ("Pneumothorax", "present", "small") not in found


def test_wording_and_repetition_do_not_count():
    assert f1("The heart is normal. The heart is normal.", "Heart size is normal.") == 1


def test_silence_is_no_agreement():
    assert f1("", "Foo.") == 0 and f1("Foo.", "Foo.") == 1 and f1("", "Pleural effusion.") == 0


def test_carotid_reports_have_entities_too():
    found = entities("Soft plaque in the left carotid bulb with severe stenosis.")
    assert {("Plaque", "present", "soft"), ("Plaque", "present", "left"), ("Stenosis", "present")} <= found
