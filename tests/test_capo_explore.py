import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from capo.explore import ExploreConfig, composite_score, select_hard

TWO = {"bleu2": 1.0, "label_f1_rules": 3.0}


def test_minmax_by_hand():
    # bleu2 -> 0, 0.5, 1; labels -> 1, 0, 0; weights 1/4 and 3/4
    metrics = {"bleu2": [0.1, 0.2, 0.3], "label_f1_rules": [0.8, 0.4, 0.4]}
    scores = composite_score(metrics, ExploreConfig(weights=TWO))
    torch.testing.assert_close(scores, torch.tensor([0.75, 0.125, 0.25], dtype=torch.float64))
    assert select_hard(scores, ExploreConfig(weights=TWO, fraction=0.34)) == [1, 2]


def test_ties_share_their_rank():
    scores = composite_score({"bleu2": [3.0, 1.0, 3.0]}, ExploreConfig(weights={"bleu2": 1.0}, normalise="rank"))
    # ranks 1.5, 0, 1.5 of at most 2
    torch.testing.assert_close(scores, torch.tensor([0.75, 0.0, 0.75], dtype=torch.float64))


@pytest.mark.parametrize("normalise", ["minmax", "zscore", "rank"])
@given(st.lists(st.integers(0, 50), min_size=2, max_size=20), st.integers(1, 5), st.integers(-3, 3))
def test_units_of_a_metric_do_not_matter(normalise, values, scale, shift):
    config = ExploreConfig(weights={"bleu2": 1.0}, normalise=normalise)
    plain = composite_score({"bleu2": [float(v) for v in values]}, config)
    other = composite_score({"bleu2": [float(scale * v + shift) for v in values]}, config)
    torch.testing.assert_close(plain, other)


def test_threshold_replaces_the_share_and_says_when_nothing_is_below():
    scores = torch.tensor([0.5, 0.1, 0.3])
    assert select_hard(scores, ExploreConfig(threshold=0.4)) == [1, 2]
    with pytest.raises(ValueError, match=r"lowest is 0\.1"):
        select_hard(scores, ExploreConfig(threshold=0.05))


def test_missing_metric_and_nan_are_named():
    with pytest.raises(ValueError, match="label_f1_rules"):
        composite_score({"bleu2": [1.0]}, ExploreConfig(weights=TWO))
    with pytest.raises(ValueError, match="study number 1"):
        composite_score({"bleu2": [1.0, float("nan")]}, ExploreConfig(weights={"bleu2": 1.0}))
