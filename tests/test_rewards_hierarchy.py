"""The reward: its parts and weights, presets, plug-in, what is skipped and what is missing."""

import math
import types

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from capo.advantages import sum_parts
from capo.explore import ExploreConfig
from radflow.data.sections import parse_sections
from radflow.rewards.config import RewardConfig
from radflow.rewards.faults import RewardError
from radflow.rewards.hierarchy import GATE, part_weights
from radflow.rewards.registry import METRICS, build_reward
from radflow.rewards.types import Score

REFERENCE = (
    "Findings: The heart is enlarged. There is a small left pleural effusion. No pneumothorax. "
    "Impression: Cardiomegaly and small left pleural effusion."
)


def reward(**weights):
    return build_reward(RewardConfig(**weights), parse_sections)


def total(candidate, reference=REFERENCE, **weights):
    return reward(**weights)([candidate], [reference])[0].total


def test_total_is_the_weighted_sum_of_its_parts():
    candidate = "Findings: The heart is enlarged. No pneumothorax. Impression: Cardiomegaly."
    (score,) = reward(syntax=0.5, domain=2, consistent=3, gamma=4)([candidate], [REFERENCE])
    parts = score.parts
    assert parts["syntax"] == (parts["bleu2"] + parts["rouge_l"]) / 2
    # agrees with itself, names one of two labels (F1 = 2/3), and misses one finding
    assert parts["consistency_rules"] == 1 and parts["label_f1_rules"] == pytest.approx(2 / 3)
    assert parts["truth_rules"] == 1 / 2 and parts["guard"] == 1
    domain = parts["entity_f1_rules"]
    expected = 0.5 * parts["syntax"] + 2 * domain + 3 * domain * 1 + 4 * 2 / 3
    assert score.total == pytest.approx(expected / 2)


def test_printed_is_the_plain_sum_of_the_paper():
    candidate = "Findings: The heart is enlarged. No pneumothorax. Impression: Cardiomegaly."
    (score,) = reward(printed=True)([candidate], [REFERENCE])
    assert "truth_rules" not in score.parts and score.parts["guard"] == 1
    expected = score.parts["syntax"] + score.parts["entity_f1_rules"] + 1 + 2 / 3
    assert score.total == pytest.approx(expected)


def test_consistency_is_left_out_if_the_reference_itself_is_refused():
    reference = "Findings: Large left effusion. Impression: Normal chest."
    candidates = [reference, "Findings: Large left effusion. Impression: Large left effusion."]
    scores = reward()(candidates, [reference] * 2, groups=[0, 0])
    assert [s.left_out for s in scores] == [("consistency_rules",)] * 2 and not scores[0].missing
    assert scores[0].total == pytest.approx(3.0)
    assert reward(printed=True)([reference], [reference])[0].total == pytest.approx(2.0)  # 3 - 1
    # nothing else is paid: then it counts
    (alone,) = reward(syntax=0, domain=0, gamma=0)([reference], [reference])
    assert alone.total == -1.0


def test_a_copy_of_a_consistent_reference_gets_four():
    assert total(REFERENCE) == pytest.approx(4.0)


def test_missing_headers_skip_the_impression_and_compare_the_whole_report():
    text = "The heart is enlarged. There is a small left pleural effusion. No pneumothorax."
    (score,) = reward()([text], [REFERENCE])
    assert score.parts["label_f1_rules"] is None and score.parts["consistency_rules"] == -1
    assert score.parts["entity_f1_rules"] == 1
    assert score.total == pytest.approx(score.parts["syntax"] + 1 - 1) and score.parts["truth_rules"] == 1


def test_reference_without_impression_skips_that_part_for_everybody():
    (score,) = reward()([REFERENCE], ["Findings: The heart is enlarged. Impression: "])
    assert score.parts["label_f1_rules"] is None and score.parts["consistency_rules"] == 1


def test_scores_do_not_depend_on_the_batch():
    candidates = [REFERENCE, "", "Findings: Clear. Impression: Normal."]
    together = reward()(candidates, [REFERENCE] * 3)
    assert together == [reward()([c], [REFERENCE])[0] for c in candidates]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"syntax": 0, "domain": 0, "consistent": 0, "gamma": 0}, "not all zero"),
        ({"preset": "plugin"}, "expected reward.plugin"),
        ({"plugin": "a:b", "plugin_weight": 0}, "plugin_weight above 0"),
        ({"workers": -1}, "workers"),
    ],
)
def test_contradictory_configs_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        RewardConfig(**options)


def test_a_part_of_weight_zero_is_not_computed():
    (score,) = reward(consistent=0, gamma=0)([REFERENCE], [REFERENCE])
    assert set(score.parts) == {"bleu2", "rouge_l", "syntax", "entity_f1_rules", *GATE, "guard"}
    assert score.total == pytest.approx(2.0)


def test_reference_without_findings_skips_the_domain_part_for_everybody():
    scores = reward()([REFERENCE, "Normal."], ["Findings: Impression: Cardiomegaly."] * 2)
    assert [s.parts["entity_f1_rules"] for s in scores] == [None, None]
    assert not scores[0].missing and not scores[0].left_out


def test_line_breaks_are_no_words_of_the_reward_but_stay_in_its_metrics():
    broken = REFERENCE.replace(". ", ".\n")
    mine = reward()
    assert mine([broken], [REFERENCE])[0].parts["bleu2"] == 1.0
    assert mine.metrics([broken], [REFERENCE]).values["bleu2"][0] < 0.9  # as published


# presets


def fake(name, value):
    """A metric that gives every report one value, and remembers what it was asked."""

    class Fake:
        def __init__(self):
            self.name, self.asked = name, []

        def __call__(self, first, second):
            self.asked.append((list(first), list(second)))
            return [value for _ in first]

    return Fake()


@pytest.fixture
def backends(monkeypatch):
    """Stand-ins for the models that are not at hand."""
    radgraph, judge = fake("radgraph_f1", 0.5), fake("consistency_llm", 1.0)
    monkeypatch.setattr("radflow.rewards.registry.RadGraphF1.load", lambda _: radgraph)
    monkeypatch.setattr("radflow.rewards.judge.llm.ConsistencyLlm.from_config", lambda _: judge)
    monkeypatch.setattr("radflow.rewards.registry.BertScore.load", lambda _: fake("bertscore", 0.25))
    return types.SimpleNamespace(config=RewardConfig, radgraph=radgraph, judge=judge)


def test_presets_of_one_metric_read_the_whole_report(backends):
    text = "The heart is enlarged. There is a small left pleural effusion."
    for preset, name, value in (("bertscore", "bertscore", 0.25), ("radgraph", "radgraph_f1_report", 0.5)):
        mine = build_reward(backends.config(preset=preset), parse_sections)
        (score,) = mine([text], [REFERENCE])
        assert score.total == value and dict(score.parts) == {name: value, "guard": 1.0}
    assert backends.radgraph.asked == [([text], [REFERENCE])]
    (score,) = reward(preset="bleu")([text], [REFERENCE])
    assert score.total == score.parts["bleu2"] and set(score.parts) == {"bleu2", "guard"}


def test_bertscore_of_an_empty_report_does_not_decide_the_spread_of_its_group(monkeypatch):
    monkeypatch.setattr("radflow.rewards.registry.BertScore.load", lambda _: fake("bertscore", -5.55))
    (score,) = reward(preset="bertscore")([""], [REFERENCE])
    assert score.total == -1.0 and score.parts["bertscore"] == -5.55


def test_parts_can_be_exchanged(backends):
    config = backends.config(domain_metric="radgraph_f1", consistency="llm", expert="carotid_rules")
    assert list(part_weights(config)) == ["syntax", "radgraph_f1", "consistency_llm", "label_f1_rules"]
    (score,) = build_reward(config, parse_sections)([REFERENCE], [REFERENCE])
    assert score.total == pytest.approx(1 + 0.5 + 0.5 + 1)  # consistent, times the agreement of the Findings
    findings = parse_sections(REFERENCE).findings
    assert backends.radgraph.asked == [([findings], [findings])]
    assert list(part_weights(RewardConfig(expert="chexbert")))[-1] == "label_f1_chexbert"


def test_metrics_beside_the_reward_are_measured_and_not_paid(backends):
    config = backends.config(preset="bleu")
    mine = build_reward(config, parse_sections, also=["radgraph_f1", "label_f1_rules", "bleu2"])
    values = mine.metrics([REFERENCE], [REFERENCE]).values
    assert list(values) == ["bleu2", "radgraph_f1", "label_f1_rules"]
    assert mine([REFERENCE], [REFERENCE])[0].total == 1.0
    with pytest.raises(ValueError, match="expected metrics among"):
        build_reward(RewardConfig(), parse_sections, also=["bleu9"])


def test_reward_and_table_ask_a_model_once_for_the_same_reports(backends):
    mine = build_reward(backends.config(consistency="llm"), parse_sections)
    mine([REFERENCE], [REFERENCE])
    mine.metrics([REFERENCE], [REFERENCE])
    findings = parse_sections(REFERENCE)
    # once for the reference itself and once for the report
    assert backends.judge.asked == [([findings.findings], [findings.impression])]


def test_a_model_that_is_not_there_fails_when_the_reward_is_built():
    with pytest.raises(ValueError, match=r"expected chexbert\.path"):
        reward(expert="chexbert")


def test_every_metric_of_which_more_is_better_can_be_explored():
    assert {*ExploreConfig().weights} <= {name for name, metric in METRICS.items() if metric.better == "higher"}
    names = [name for name, metric in METRICS.items() if metric.better == "higher" and metric.model is None]
    mine = build_reward(RewardConfig(preset="bleu"), parse_sections, explore=names)
    assert set(mine.metrics([REFERENCE], [REFERENCE]).values) == set(names)
    with pytest.raises(ValueError, match="more is better, got radcliq_v1"):
        build_reward(RewardConfig(), parse_sections, explore=["bleu2", "radcliq_v1"])


# plug-in


def words(candidates, references):
    """A plug-in: number of words, and None for the empty report."""
    return [float(len(c.split())) if c else None for c in candidates]


def bleu2(candidates, references):
    return [0.0] * len(candidates)


def broken(candidates, references):
    return [float("nan")] * len(candidates)


def short(candidates, references):
    return []


def plugin(name, **options):
    return reward(plugin=f"{__name__}:{name}", **options)


def test_a_plugin_is_added_under_its_own_name():
    text = REFERENCE.replace(". ", ".\n")
    (score,) = plugin("words", plugin_weight=0.5)([text], [REFERENCE])
    assert score.parts["words"] == 21 and score.total == pytest.approx(4 + 0.5 * 21)
    (score,) = plugin("words", preset="plugin", printed=True)([text], [REFERENCE])
    assert score.total == 21 and set(score.parts) == {"words", "guard"}


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("no_such_module:f", "put its folder on PYTHONPATH"),
        (f"{__name__}:absent", "expected a function absent"),
        ("words", "module:function"),
        (f"{__name__}:bleu2", "bleu2 is taken"),
    ],
)
def test_a_plugin_that_cannot_be_used_is_refused_when_the_reward_is_built(path, said):
    with pytest.raises(ValueError, match=said):
        reward(plugin=path)


@pytest.mark.parametrize(
    ("name", "said"), [("broken", "finite number or None"), ("short", "expected one value per report, 1, got 0")]
)
def test_what_a_plugin_returns_is_checked(name, said):
    with pytest.raises(RewardError, match=f":{name} failed for 1 of 1 reports.*{said}"):
        plugin(name)([REFERENCE], [REFERENCE])


# missing and skipped


class SilentOn:
    """A judge that has no answer for Impressions with a certain word."""

    name = "consistency_llm"

    def __init__(self, word):
        self.word = word

    def __call__(self, findings, impressions):
        return [None if self.word in i else 1.0 for i in impressions]


@pytest.fixture
def judged(backends, monkeypatch):
    def build(word, **options):
        monkeypatch.setattr("radflow.rewards.judge.llm.ConsistencyLlm.from_config", lambda _: SilentOn(word))
        return build_reward(backends.config(consistency="llm", **options), parse_sections)

    return build


MILD = "Findings: The heart is enlarged. No pneumothorax. Impression: Mild cardiomegaly."


def test_a_missing_answer_leaves_the_part_out_for_the_whole_group(judged):
    candidates = [REFERENCE, MILD, "No headers at all."]
    whole, mild, bare = judged("Mild")(candidates, [REFERENCE] * 3, groups=[7, 7, 7])
    name = "consistency_llm"
    assert whole.parts[name] == 1 and mild.parts[name] is None and bare.parts[name] == -1
    assert [s.missing for s in (whole, mild, bare)] == [(), (name,), ()]
    assert {s.left_out for s in (whole, mild, bare)} == {(name,)}
    # no +1 for the one that was answered, no -1 for the one without headers
    assert whole.total == pytest.approx(3.0)
    factor = bare.parts["guard"] * bare.parts["truth_rules"]
    assert bare.total == pytest.approx(factor * (bare.parts["syntax"] + bare.parts["entity_f1_rules"]))


def test_other_groups_and_reports_on_their_own_keep_the_part(judged):
    first, second = judged("Mild")([REFERENCE, MILD], [REFERENCE] * 2, groups=[0, 1])
    assert first.total == pytest.approx(4.0) and first.left_out == () and second.left_out == ("consistency_llm",)
    assert judged("Mild")([REFERENCE, MILD], [REFERENCE] * 2) == [first, second]


def test_skipped_by_the_parser_rule_is_not_missing(judged):
    skipped, _ = judged("nobody")(["No headers at all.", MILD], [REFERENCE] * 2, groups=[0, 0])
    assert skipped.parts["label_f1_rules"] is None
    assert skipped.missing == skipped.left_out == ()


def test_where_the_missing_part_is_the_whole_reward_only_its_report_leaves():
    empty, full = plugin("words", preset="plugin", printed=True)(["", "a b"], [REFERENCE] * 2, groups=[0, 0])
    assert empty.total is None and empty.missing == ("words",) and full.total == 2


# terms: each part weighted, and what it adds to the total

PARTLY = "Findings: The heart is enlarged. No pneumothorax. Impression: Cardiomegaly."
TERMS = ["syntax", "entity_f1_rules", "consistency_rules", "label_f1_rules"]


def test_terms_are_weighted_and_add_up_to_the_total_once_truth_scales_them():
    (score,) = reward(syntax=0.5, domain=2, consistent=3, gamma=4)([PARTLY], [REFERENCE])
    parts = score.parts
    assert list(score.terms) == TERMS and score.truth == 1 / 2
    assert sum(map(score.scaled, TERMS)) == pytest.approx(score.total)
    assert score.terms["syntax"] == pytest.approx(0.5 * parts["syntax"])
    assert score.terms["consistency_rules"] == pytest.approx(3 * parts["entity_f1_rules"])
    assert score.terms["label_f1_rules"] == pytest.approx(4 * 2 / 3)
    (printed,) = reward(printed=True)([PARTLY], [REFERENCE])
    assert [*printed.terms.values()] == pytest.approx([printed.parts[name] for name in TERMS]) and printed.truth == 1


def test_truth_scales_what_is_earned_and_not_what_is_lost():
    score = Score(None, {}, terms={"earned": 2.0, "lost": -1.0}, truth=0.25)
    assert (score.scaled("earned"), score.scaled("lost")) == (0.5, -1.0) and math.isnan(score.scaled("unknown"))


def test_a_part_that_a_rule_skips_adds_nothing_and_a_missing_one_has_no_term(judged):
    candidates = [REFERENCE, MILD, "No headers at all."]
    whole, mild, bare = judged("Mild")(candidates, [REFERENCE] * 3, groups=[7, 7, 7])
    assert bare.terms["label_f1_rules"] == 0 and bare.terms["consistency_llm"] == -1
    assert "consistency_llm" not in mild.terms and len(mild.terms) == 3
    # left out of the total, for a sibling lacks it, and known all the same
    assert whole.terms["consistency_llm"] == pytest.approx(1.0) and whole.total == pytest.approx(3.0)


def test_a_part_that_the_reference_refuses_has_no_term():
    inconsistent = "Findings: Large left effusion. Impression: Normal chest."
    (score,) = reward()([REFERENCE], [inconsistent])
    assert "consistency_rules" not in score.terms and score.left_out == ("consistency_rules",)
    (alone,) = reward(syntax=0, domain=0, gamma=0)([inconsistent], [inconsistent])
    assert alone.terms == {"consistency_rules": -1.0}


INCONSISTENT = "Findings: Large left effusion. Impression: Normal chest."


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1)), min_size=1, max_size=8), st.integers(0, 3))
@settings(max_examples=25, deadline=None)
def test_the_sum_of_the_parts_that_a_group_shares_is_the_total(rows, kind):
    """The same rule written twice: for reports with their reference, and for the columns of a step."""
    texts = [REFERENCE, "", "No headers at all.", PARTLY]
    options = [{}, {"preset": "plugin", "printed": True}, {"syntax": 0, "domain": 0, "gamma": 0}, {"gamma": 0}][kind]
    references = [(REFERENCE, INCONSISTENT)[group] for _, group in rows]
    groups = [group for _, group in rows]
    mine = plugin("words", **options)
    scores = mine([texts[i] for i, _ in rows], references, groups=groups)
    names = list(dict.fromkeys(name for score in scores for name in score.terms))
    terms = [[score.scaled(name) for name in names] for score in scores]
    totals = sum_parts(torch.tensor(terms, dtype=torch.float64).reshape(len(rows), len(names)), torch.tensor(groups))
    assert [None if total != total else pytest.approx(total) for total in totals.tolist()] == [s.total for s in scores]


def test_seconds_are_told_for_every_metric():
    scored = reward().scored([REFERENCE] * 4, [REFERENCE] * 4, groups=[0] * 4)
    metrics = {"bleu2", "rouge_l", "entity_f1_rules", "consistency_rules", "label_f1_rules", *GATE}
    assert set(scored.seconds) == metrics and min(scored.seconds.values()) > 0


def test_nothing_to_score():
    assert reward()([], []) == []
