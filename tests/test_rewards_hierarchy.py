import pickle

import pytest

from data.sections import parse_sections
from rewards.hierarchy import HierarchicalReward, RewardConfig

REFERENCE = (
    "Findings: The heart is enlarged. There is a small left pleural effusion. No pneumothorax. "
    "Impression: Cardiomegaly and small left pleural effusion."
)


def reward(**weights):
    return HierarchicalReward.from_config(RewardConfig(**weights), parse_sections)


def total(candidate, reference=REFERENCE, **weights):
    return reward(**weights)([candidate], [reference])[0].total


def test_total_is_the_weighted_sum_of_its_parts():
    candidate = "Findings: The heart is enlarged. No pneumothorax. Impression: Cardiomegaly."
    (score,) = reward(syntax=0.5, domain=2, consistent=3, gamma=4)([candidate], [REFERENCE])
    parts = score.parts
    assert parts["syntax"] == (parts["bleu2"] + parts["rouge_l"]) / 2
    # agrees with itself, and names one of two labels: F1 = 2/3
    assert parts["consistency_rules"] == 1 and parts["label_f1_rules"] == pytest.approx(2 / 3)
    expected = 0.5 * parts["syntax"] + 2 * parts["entity_f1_rules"] + 3 * 1 + 4 * 2 / 3
    assert score.total == pytest.approx(expected)


def test_a_copy_of_a_consistent_reference_gets_four():
    assert total(REFERENCE) == pytest.approx(4.0)


def test_missing_headers_skip_the_impression_and_compare_the_whole_report():
    text = "The heart is enlarged. There is a small left pleural effusion. No pneumothorax."
    (score,) = reward()([text], [REFERENCE])
    assert score.parts["label_f1_rules"] is None and score.parts["consistency_rules"] == -1
    assert score.parts["entity_f1_rules"] == 1
    assert score.total == pytest.approx(score.parts["syntax"] + 1 - 1)


def test_reference_without_impression_skips_that_part_for_everybody():
    (score,) = reward()([REFERENCE], ["Findings: The heart is enlarged. Impression: "])
    assert score.parts["label_f1_rules"] is None and score.parts["consistency_rules"] == 1


@pytest.mark.parametrize(
    "hack",
    [
        "",
        "Findings: Impression:",
        "Findings: . Impression: .",
        "Impression: Cardiomegaly and small left pleural effusion.",
        "effusion " * 60,
        "Findings: " + "effusion cardiomegaly pneumothorax " * 20 + "Impression: effusion.",
        REFERENCE + " Impression: Normal.",
        "Findings:\n\n\nImpression:\n\n\n",
        "Report this chest radiograph: Findings and Impression.",
    ],
)
def test_shortcuts_earn_less_than_an_honest_report_that_misses_a_finding(hack):
    honest = "Findings: The heart is normal in size. There is a left pleural effusion. No pneumothorax. " \
        "Impression: Left pleural effusion."  # fmt: skip
    assert total(hack) < total(honest)


def test_scores_do_not_depend_on_the_batch():
    candidates = [REFERENCE, "", "Findings: Clear. Impression: Normal."]
    together = reward()(candidates, [REFERENCE] * 3)
    assert together == [reward()([c], [REFERENCE])[0] for c in candidates]


def test_the_reward_travels_to_worker_processes():
    mine = reward()
    mine([REFERENCE], [REFERENCE])
    assert pickle.loads(pickle.dumps(mine))([REFERENCE], [REFERENCE])[0].total == pytest.approx(4.0)


def test_weights_that_reward_nothing_are_refused():
    with pytest.raises(ValueError, match="not all zero"):
        RewardConfig(syntax=0, domain=0, consistent=0, gamma=0)
