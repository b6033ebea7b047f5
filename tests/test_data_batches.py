"""Batches of similar length, and their shares: nothing lost, nothing twice, resumed anywhere."""

from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capo.ranks import split_by_cost
from radflow.data.batches import shuffled_batches

counts, sizes = st.integers(1, 40), st.integers(1, 12)


def lengths_of(count):
    return np.random.default_rng(count).integers(5, 300, count).tolist()


@given(counts, sizes, st.integers(0, 60), st.integers(1, 4))
def test_grouped_batches_resumed_at_a_step_are_those_of_an_unbroken_run(count, size, step, window):
    options = {"seed": 3, "lengths": lengths_of(count), "window": window}
    whole = islice(shuffled_batches(count, size, **options), step, step + 3)
    assert list(whole) == list(islice(shuffled_batches(count, size, start_step=step, **options), 3))


@given(counts, sizes, st.integers(1, 4))
def test_grouping_visits_every_study_once_an_epoch(count, size, window):
    batches = shuffled_batches(count, size, seed=0, lengths=lengths_of(count), window=window)
    drawn = [index for batch in islice(batches, 3 * count) for index in batch]
    for epoch in range(3):
        assert sorted(drawn[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_grouped_batches_are_padded_little_and_still_shuffled():
    count, size = 1000, 8
    lengths = np.array(lengths_of(count))

    def padded(**options):
        batches = list(islice(shuffled_batches(count, size, seed=1, **options), count // size))
        return batches, sum(size * lengths[batch].max() - lengths[batch].sum() for batch in batches) / lengths.sum()

    grouped, little = padded(lengths=lengths, window=50)
    _, much = padded()
    assert little < 0.1 * much and little < 0.03
    means = [lengths[batch].mean() for batch in grouped]
    assert abs(np.corrcoef(means, range(len(means)))[0, 1]) < 0.2  # not from short to long
    second = list(islice(shuffled_batches(count, size, seed=1, lengths=lengths, start_step=count // size), 20))
    assert grouped[:20] != second


def test_batches_stay_alike_when_epochs_do_not_end_with_a_batch():
    # 1,003 is no multiple of 8: the second epoch starts three places into a batch, and its groups must follow
    count, size = 1003, 8
    lengths = np.array(lengths_of(count))
    batches = islice(shuffled_batches(count, size, seed=1, lengths=lengths, start_step=127), 120)
    waste = [size * lengths[batch].max() - lengths[batch].sum() for batch in batches]
    assert sum(waste) < 0.03 * 120 * size * lengths.mean()


@given(counts, sizes, st.integers(1, 7), st.integers(0, 9))
def test_ranks_share_a_batch_without_loss_or_repetition(count, size, ranks, step):
    (batch,) = islice(shuffled_batches(count, size, seed=5, start_step=step), 1)
    lengths = lengths_of(count)
    shares = [
        [batch[i] for i in own] for own in split_by_cost([lengths[i] for i in batch], ranks)
    ]  # as train.fine_tune does
    assert sorted(index for share in shares for index in share) == sorted(batch)


def test_contradictions_are_refused():
    with pytest.raises(ValueError, match="weights or lengths, got both"):
        next(shuffled_batches(2, 1, seed=0, weights=[1.0, 1.0], lengths=[1, 2]))
    with pytest.raises(ValueError, match="expected 2 lengths"):
        next(shuffled_batches(2, 1, seed=0, lengths=[1]))
