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


def test_the_guard_scales_what_is_earned_and_no_penalty():
    found = score(REFERENCE + " Normal." * 60)
    guard, parts = found.parts["guard"], found.parts
    assert 0 < guard < 1
    earned = parts["syntax"] + parts["entity_f1_rules"] + parts["consistency_rules"] + parts["label_f1_rules"]
    assert found.total == pytest.approx(guard * earned)
    found = score(WRONG, grounding=0.9)
    guard, parts = found.parts["guard"], found.parts
    assert guard < 1 and parts["consistency_rules"] == -1.0
    earned = parts["syntax"] + parts["entity_f1_rules"] + parts["label_f1_rules"]
    assert earned > 0 and found.total == pytest.approx(guard * earned - 1.0)


def test_without_the_guard_everything_counts_whole():
    found = score(WRONG, guard=False)
    parts = found.parts
    assert parts["guard"] == 1.0
    assert found.total == pytest.approx(parts["syntax"] + parts["entity_f1_rules"] + parts["label_f1_rules"] - 1.0)


def test_grounding_scales_by_the_share_of_the_threshold_that_the_findings_reach():
    partly = "Findings: The heart is enlarged. Lungs are clear. Impression: Cardiomegaly."
    entity = score(partly).parts["entity_f1_rules"]
    assert 0 < entity < 0.9
    assert score(partly, grounding=0.9).parts["guard"] == pytest.approx(entity / 0.9)
    assert score(partly, grounding=0.0).parts["guard"] == score(partly, grounding=entity / 2).parts["guard"] == 1.0


def test_grounding_is_a_rule_of_the_hierarchical_reward_only():
    other = "Findings: Lungs are clear, bones intact, and no acute disease is seen. Impression: Normal chest."
    assert score(other, grounding=0.9).parts["guard"] < 1.0
    assert score(other, grounding=0.9, preset="bleu").parts["guard"] == 1.0


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
