import pytest
from hypothesis import given
from hypothesis import strategies as st

from radflow.data.sections import parse_sections
from radflow.rewards.hierarchy import LabelF1
from radflow.rewards.rules.chexpert_rules import ChexpertRules

label_sets = st.sets(st.sampled_from("abcdef"))


def test_by_hand():
    # candidate {Effusion}, reference {Effusion, Cardiomegaly}: precision 1, recall 1/2, F1 = 2/3
    score = LabelF1(ChexpertRules(parse_sections))(["Left effusion."], ["Left effusion. Cardiomegaly."])
    assert score == [pytest.approx(2 / 3)]


def test_two_empty_sets_agree_and_one_does_not():
    assert LabelF1.agreement(set(), set()) == 1 and LabelF1.agreement(set(), {"a"}) == 0


@given(label_sets, label_sets)
def test_symmetric_bounded_and_one_only_for_equal_sets(a, b):
    value = LabelF1.agreement(a, b)
    assert value == LabelF1.agreement(b, a) and 0 <= value <= 1 and (value == 1) == (a == b)
