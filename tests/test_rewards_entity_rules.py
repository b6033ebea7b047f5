import json
import statistics
import time

import pytest

from radflow.data.phantoms import make_studies
from radflow.rewards.rules.entity_rules import EntityF1Rules, entities


def f1(candidate, reference):
    return EntityF1Rules()([candidate], [reference])[0]


def test_entities_by_hand():
    assert entities("There is a small left pleural effusion.") == {
        ("left effusion", "present"),
        ("left effusion", "present", "left"),
        ("left effusion", "present", "mild"),
        ("left effusion", "present", "pleural"),
        ("mild", "present"),
        ("left", "anatomy"),
        ("pleural", "anatomy"),
    }
    assert entities("No focal lung consolidation.") == {
        ("consolidation", "absent"),
        ("consolidation", "absent", "lung"),
        ("focal", "absent"),
        ("lung", "anatomy of an absent one"),
    }
    assert entities("Heart size is within normal limits.") == {
        ("normal", "present", "heart"),
        ("heart", "anatomy"),
    }


def test_the_wrong_side_is_another_finding():
    # "mild" and "pleural" of seven entities are shared on both sides: 2 x 2 / 14
    assert f1("Small left pleural effusion.", "Small right pleural effusion.") == pytest.approx(2 / 7)


def test_a_wrong_grade_costs_its_words_and_two_steps_the_finding():
    # one step: the grade and its relation, 2 x 5 / 14; two steps: "left" and "pleural" are left, 2 x 2 / 14
    assert f1("Small left pleural effusion.", "Moderate left pleural effusion.") == pytest.approx(5 / 7)
    assert f1("Small left pleural effusion.", "Large left pleural effusion.") == pytest.approx(2 / 7)


@pytest.mark.parametrize(
    "finding",
    ["pleural effusion", "right upper lobe consolidation", "displaced rib fracture", "plaque", "hydronephrosis"],
)
def test_negation_is_no_agreement(finding):
    assert f1(f"No {finding}.", f"{finding.capitalize()}.") == 0
    assert f1(f"There is no evidence of {finding}.", f"There is {finding}.") == 0
    assert f1(f"Possible {finding}.", f"There is no {finding}.") == 0


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ("Heart size normal.", "Heart size is normal."),
        ("Mediastinum unremarkable.", "The mediastinum is within normal limits."),
        ("Lungs clear.", "The lungs are clear."),
        ("Peak systolic velocity normal.", "Peak systolic velocity is normal."),
        ("Cortical thickness normal.", "The cortical thickness appears normal."),
        ("Epiglottis normal.", "The epiglottis is normal."),
        ("Small right effusion.", "A small effusion is noted on the right."),
        ("No pneumothorax.", "There is no pneumothorax identified."),
        ("Mild cardiomegaly.", "The heart is mildly enlarged."),
        ("Cardiomegaly.", "The cardiac silhouette is enlarged."),
        ("Trace left effusion.", "There is a tiny left effusion."),
        ("Bilateral opacities.", "Opacities are seen bilaterally."),
        ("Bibasilar atelectasis.", "Bilateral basilar atelectasis is present."),
        ("Left-sided pleural fluid.", "A left pleural effusion is demonstrated."),
    ],
)
def test_the_same_meaning_has_the_same_entities(short, long):
    assert entities(short) == entities(long)


def test_wording_order_and_repetition_do_not_count():
    assert f1("The heart is normal. The heart is normal.", "Heart size is normal.") == 1
    assert f1("No effusion. Lungs are clear.", "Lungs are clear. No effusion.") == 1


def test_modifiers_stay_with_their_finding():
    found = entities("Small left effusion and large right pneumothorax.")
    assert ("left effusion", "present", "mild") in found and ("severe right pneumothorax", "present") in found
    swapped = entities("Large right effusion and small left pneumothorax.")
    # the words are the same, what they belong to is not
    assert {e for e in found & swapped if "effusion" in e[0] or "pneumothorax" in e[0]} == set()


@pytest.mark.parametrize(
    ("sentence", "relation"),
    [
        ("A 9 mm nodule is seen in the right upper lobe.", ("right nodule", "present", "9")),
        ("Endotracheal tube tip is 4.5 cm above the carina.", ("tube", "present", "4.5")),
        ("Left intima-media thickness is 1.2 mm.", ("left 1.2", "present", "thickness")),
        ("Opacities, greater on the left, have increased.", ("left opacities", "present", "left")),
        ("Effusion in the left base has worsened.", ("left effusion", "present", "base")),
        ("The aorta is tortuous and calcified.", ("tortuous", "present", "aorta")),
        ("Old fracture of T12.", ("fracture", "present", "t12")),
    ],
)
def test_relations_of_measurements_sides_and_places(sentence, relation):
    assert relation in entities(sentence)


def test_a_finding_denied_on_one_side_has_no_other_name_than_on_the_other():
    assert ("effusion", "absent") in entities("No left effusion.") & entities("No right effusion.")


def test_a_bare_normal_agrees_with_no_report():
    assert f1("Normal.", "The heart is normal. Lungs are clear.") == 0 and f1("Normal.", "Normal.") == 1


def test_silence_is_no_agreement():
    assert f1("", "Foo.") == 0 and f1("Foo.", "Foo.") == 1 and f1("", "Pleural effusion.") == 0
    assert f1("It is as noted.", "It is as noted.") == 1 and f1("It is as noted.", "As seen.") == 0


@pytest.mark.parametrize("study", ["chest", "carotid"])
def test_copies_of_reports_agree_fully_and_all_scores_are_shares(study):
    reports = [s.findings for s in make_studies(study, num_train=40, num_val=0, num_test=0, seed=2, size=56)]
    assert EntityF1Rules()(reports, reports) == [1.0] * len(reports)
    assert all(0 <= score < 1 for score in EntityF1Rules()(reports[1:], reports[:-1]) if score != 1)
    assert EntityF1Rules()(reports[1:], reports[:-1]) == EntityF1Rules()(reports[:-1], reports[1:])


def test_carotid_reports_have_entities_too():
    found = entities("Soft plaque in the left carotid bulb with severe stenosis.")
    assert {
        ("left plaque", "present", "soft"),
        ("left plaque", "present", "bulb"),
        ("severe stenosis", "present"),
    } <= found
    assert f1("Hard plaque in the left bulb.", "Soft plaque in the left bulb.") < 0.75
    assert f1("Left flow is normal.", "Right flow is normal.") < 0.3


def test_words_of_no_table_are_observations():
    assert entities("Zorbic quandle.") == {("zorbic", "present"), ("quandle", "present")}
    assert entities("No quandle.") == {("quandle", "absent")}


def test_what_is_planned_or_of_another_time_has_no_entities():
    assert entities("History of lung cancer.") == set()


@pytest.mark.parametrize("piece", ["left ", "normal ", "effusion, ", "and ", "lung-", "x ", "'", "1.", "\n"])
def test_long_repetitions_take_no_time(piece):
    began = time.process_time()
    entities(piece * (5_000 // len(piece)))
    assert time.process_time() - began < 5


def test_the_score_follows_published_radgraph_scores(shared):
    path = shared / "data" / "radgraph_pairs" / "pairs.jsonl"
    if not path.exists():
        pytest.skip(f"needs report pairs with RadGraph scores, not found at {path}")
    pairs = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    scores = EntityF1Rules()([pair["hyp"] for pair in pairs], [pair["ref"] for pair in pairs])
    assert statistics.correlation(scores, [pair["rg_er"] for pair in pairs]) >= 0.88
    assert statistics.correlation(scores, [pair["rg_bar_er"] for pair in pairs]) >= 0.88
