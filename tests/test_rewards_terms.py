"""Terms of the hierarchical reward one at a time: what the guard scales, what is left out and what is missing."""

import pytest

from radflow.data.sections import parse_sections
from radflow.rewards.config import RewardConfig
from radflow.rewards.registry import build_reward

REFERENCE = (
    "Findings: The heart is enlarged. There is a small left pleural effusion. No pneumothorax. "
    "Impression: Cardiomegaly and small left pleural effusion."
)
WRONG = "Findings: The heart is normal in size. Impression: Cardiomegaly."  # contradicts itself, and the reference


def score(candidate, reference=REFERENCE, **options):
    return build_reward(RewardConfig(**options), parse_sections)([candidate], [reference])[0]


def earned(parts):
    paid = 0 if parts["contradictions_rules"] else parts["entity_f1_rules"]
    consistent = max(parts["consistency_rules"], 0) * paid
    return parts["syntax"] + parts["entity_f1_rules"] + parts["label_f1_rules"] + consistent


def test_the_guard_scales_what_is_earned_and_no_penalty():
    found = score(REFERENCE + " Normal." * 60)
    parts = found.parts
    assert 0 < parts["guard"] < 1 and parts["truth_rules"] == 1
    assert found.total == pytest.approx(parts["guard"] * earned(parts))


def test_truth_scales_what_is_earned_and_no_penalty():
    parts = (found := score(WRONG)).parts
    assert 0 < parts["truth_rules"] < 1 and parts["consistency_rules"] == -1.0
    assert found.total == pytest.approx(parts["guard"] * parts["truth_rules"] * earned(parts) - 1.0)


def test_what_is_printed_counts_whole():
    parts = (found := score(WRONG, printed=True)).parts
    assert parts["guard"] == 1.0
    assert found.total == pytest.approx(parts["syntax"] + parts["entity_f1_rules"] + parts["label_f1_rules"] - 1.0)


def test_being_consistent_pays_in_proportion_to_the_agreement_of_the_findings():
    partly = "Findings: The heart is enlarged. Lungs are clear. Impression: Cardiomegaly."
    parts = score(partly).parts
    assert parts["consistency_rules"] == 1.0 and 0 < parts["entity_f1_rules"] < 1
    with_it, without = score(partly).total, score(partly, consistent=0.0).total
    assert with_it - without == pytest.approx(parts["truth_rules"] * parts["entity_f1_rules"])


def test_a_report_that_contradicts_its_reference_earns_nothing_for_consistency():
    swapped = REFERENCE.replace("left", "right")
    parts = score(swapped).parts
    assert parts["consistency_rules"] == 1.0 and parts["contradictions_rules"] == 1.0 and parts["truth_rules"] == 0.1
    assert score(swapped).total == pytest.approx(score(swapped, consistent=0.0).total)


@pytest.mark.parametrize("preset", ["bleu", "plugin"])
def test_truth_is_a_rule_of_the_hierarchical_reward_only(preset):
    assert "truth_rules" not in score(WRONG, preset=preset, plugin=f"{__name__}:length").parts


def length(candidates, references):
    """A plug-in, negative for short reports."""
    return [len(candidate.split()) - 10.0 for candidate in candidates]


@pytest.mark.parametrize(("candidate", "value"), [("Findings: Clear.", -8.0), (REFERENCE, 11.0)])
def test_a_negative_plugin_is_a_penalty(candidate, value):
    options = {"preset": "plugin", "plugin": f"{__name__}:length", "plugin_weight": 0.5}
    found = score(candidate, **options)
    assert found.parts["length"] == value and found.total == pytest.approx(0.5 * value)


@pytest.mark.parametrize("weight", ["syntax", "domain", "consistent", "gamma"])
def test_a_perfect_report_earns_each_weight_whole(weight):
    assert score(REFERENCE).total == pytest.approx(4.0)
    assert score(REFERENCE, **{weight: 3.0}).total == pytest.approx(6.0)
