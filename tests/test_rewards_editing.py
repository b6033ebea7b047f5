"""Copies of the reports of a group: how many are made, of which reports, and what they leave as it was."""

import pytest

from radflow.data.sections import parse_sections, render_report
from radflow.rewards import editing
from radflow.rewards.config import RewardConfig
from radflow.rewards.editing import Editing, GroupScorer
from radflow.rewards.registry import build_reward
from radflow.rewards.rules.edits import Edit
from radflow.rewards.types import Score, Scored

REFERENCE = "Findings: Small left pleural effusion. No pneumothorax. Impression: Left pleural effusion."
GROUP = ["report of 2", "report of 5", "report of 1", "report of 4"]


class ToyReward:
    """The reward of a report is the number at its end, and missing without one."""

    class metrics:
        parse = staticmethod(parse_sections)

    errors = object()

    def __init__(self):
        self.asked = []

    def scored(self, candidates, references, *, groups=None):
        self.asked.append((list(candidates), list(references), groups))
        words = [text.split()[-1] for text in candidates]
        scores = tuple(Score(float(word) if word.isdigit() else None, {}) for word in words)
        return Scored(scores, {"toy": 1.0})

    def __call__(self, candidates, references):
        return list(self.scored(candidates, references).scores)


class ToyEditor:
    """Adds 10 to the number of a report, or does what a test says."""

    asked, edits = [], {}

    def __init__(self, parse, render, errors):
        assert render is render_report
        type(self).parse, type(self).errors = parse, errors

    def __call__(self, candidate, reference, others, *, missed_by_all):
        self.asked.append((candidate, list(others), missed_by_all))
        start, _, number = candidate.rpartition(" ")
        text = self.edits.get(candidate, f"{start} 1{number}")
        return None if text is None else Edit(text, f"missed {number}: added")


@pytest.fixture
def editor(monkeypatch):
    mine = type("ToyEditor", (ToyEditor,), {"asked": [], "edits": {}})
    monkeypatch.setattr(editing, "ReportEditor", mine)
    return mine


def score(candidates=GROUP, *, share=0.5, missed_by_all=False, reward=None):
    scorer = GroupScorer(reward or ToyReward(), Editing(share, missed_by_all, render_report))
    return scorer(candidates, ["reference"] * len(candidates))


@pytest.mark.parametrize(
    ("share", "size", "most"),
    [(0.01, 4, 1), (0.25, 4, 1), (0.26, 4, 2), (0.5, 4, 2), (0.5, 3, 2), (1.0, 4, 4), (1.0, 1, 1)],
)
def test_at_most_a_share_of_the_group_is_copied_rounded_up(editor, share, size, most):
    assert len(score(GROUP[:size], share=share).copies) == most


def test_the_best_reports_are_copied_first_and_say_whose_copies_they_are(editor):
    found = score()
    assert [(copy.report, copy.about, copy.of) for copy in found.copies] == [
        ("report of 15", "missed 5: added", 1),
        ("report of 14", "missed 4: added", 3),
    ]
    assert [copy.score.total for copy in found.copies] == [15.0, 14.0]
    # each with the other reports of the group, in their order
    assert editor.asked == [
        ("report of 5", ["report of 2", "report of 1", "report of 4"], False),
        ("report of 4", ["report of 2", "report of 5", "report of 1"], False),
    ]


def test_a_report_without_a_reward_is_copied_last(editor):
    found = score(["of none", *GROUP], share=1.0)
    assert [copy.of for copy in found.copies] == [2, 4, 1, 3, 0]
    assert found.copies[-1].score.total is None


@pytest.mark.parametrize("missed_by_all", [True, False])
def test_the_editor_is_told_whether_all_must_have_missed_the_finding(editor, missed_by_all):
    score(missed_by_all=missed_by_all)
    assert {flag for *_, flag in editor.asked} == {missed_by_all}


def test_no_text_is_in_a_group_twice_by_editing_and_the_next_best_takes_its_turn(editor):
    # 5 becomes what 2 wrote, 4 a new text, 2 the same text as 4, 1 has nothing to edit
    editor.edits = {"report of 5": "report of 2", "report of 4": "new 7", "report of 2": "new 7", "report of 1": None}
    found = score(share=1.0)
    assert [(copy.report, copy.of) for copy in found.copies] == [("new 7", 3)]
    assert [candidate for candidate, *_ in editor.asked] == ["report of 5", "report of 4", "report of 2", "report of 1"]


def test_two_equal_reports_have_one_copy(editor):
    assert [copy.of for copy in score(["report of 3"] * 4, share=1.0).copies] == [0]


def test_editing_leaves_the_scores_of_a_group_as_they_are(editor):
    reward = ToyReward()
    plain = GroupScorer(reward, None)(GROUP, ["reference"] * 4)
    found = score(reward=reward)
    assert found.scores == plain.scores and plain.copies == () and plain.seconds == {"toy": 1.0}
    assert found.seconds.keys() == {"toy", "edits"} and found.seconds["toy"] == 1.0
    # the group together, and the copies each for itself: they take no part from it
    assert reward.asked[1] == (GROUP, ["reference"] * 4, [0] * 4)
    assert reward.asked[2] == (["report of 15", "report of 14"], ["reference"] * 2, None)


def test_without_copies_the_rest_is_the_same(editor):
    editor.edits = dict.fromkeys(GROUP)
    assert score().copies == () and [s.total for s in score().scores] == [2.0, 5.0, 1.0, 4.0]


def test_the_score_of_a_copy_is_the_rewards_own(editor):
    """With the real reward: the copy made of a report that misses the finding is the reference, and gets its score."""
    missing = "Findings: No pneumothorax. Impression: Normal chest."
    editor.edits = {missing: REFERENCE}
    reward = build_reward(RewardConfig(), parse_sections)
    found = GroupScorer(reward, Editing(0.5, False, render_report))([missing], [REFERENCE])
    # both remember: the sections of texts, and the pairs that truth has compared
    assert editor.parse is reward.parse and editor.errors is reward.errors
    (copy,) = found.copies
    assert copy.score == reward([REFERENCE], [REFERENCE])[0] and copy.score.total == pytest.approx(4.0)
    assert found.scores[0] == reward([missing], [REFERENCE])[0]
