import pytest
import torch

from capo.loss import capo_loss
from capo.metrics import LossMetrics


def terms_of(ratios, advantages, mask, clip, num_reports=4):
    logps = torch.tensor(ratios, dtype=torch.float64).log()
    return capo_loss(
        logps,
        torch.zeros_like(logps),
        torch.tensor(advantages, dtype=torch.float64),
        torch.tensor(mask),
        clip=clip,
        num_reports=num_reports,
        kl=torch.full_like(logps, 0.25),
    )


def test_by_hand():
    # Critical report: ratios 2 and 1 (A = 1, one of two tokens clipped high). Normal: ratio 0.5 (A = -1, clipped low)
    # and a pad. Normal: ratio 1, advantage 0. The fourth has no token.
    terms = terms_of(
        [[2.0, 1.0], [0.5, 9.0], [1.0, 9.0], [9.0, 9.0]],
        [1.0, -1.0, 0.0, 1.0],
        [[True, True], [True, False], [True, False], [False, False]],
        torch.tensor([0.05, 0.2, 0.2, 0.2]),
    )
    metrics = LossMetrics()
    entropy = torch.tensor([[1.0, 3.0], [2.0, 99.0], [2.0, 99.0], [99.0, 99.0]])
    metrics.add(terms, critical=torch.tensor([True, False, False, True]), entropy=entropy)
    found = metrics.read(num_updates=2)
    # -(1.05 + 1)/2 + 0.8, over four reports and two updates
    assert found.loss == pytest.approx((-(1.05 + 1) / 2 + 0.8) / 8)
    assert (found.tokens, found.reports, found.learning_reports) == (4, 3, 2)
    assert (found.ratio_mean, found.ratio_max, found.ratio_min) == pytest.approx((4.5 / 4, 2.0, 0.5))
    assert found.ratio_gap_max == pytest.approx(1.0)
    assert (found.kl, found.entropy) == pytest.approx((0.25, 2.0))
    assert (found.clip_high_critical, found.clip_low_critical) == (0.5, 0.0)
    assert (found.clip_high_normal, found.clip_low_normal) == (0.0, 0.5)
    # (2 + 1 + 0.5 + 1)^2 / (4 + 1 + 0.25 + 1)
    assert found.effective_samples == pytest.approx(4.5**2 / 6.25)


def test_micro_batches_add_up_to_the_whole():
    ratios, advantages = [[2.0, 1.0], [0.5, 1.1], [1.0, 1.3]], [1.0, -1.0, 0.5]
    mask = [[True, True], [True, False], [True, True]]
    critical = torch.tensor([True, False, False])
    whole, parts = LossMetrics(), LossMetrics()
    whole.add(terms_of(ratios, advantages, mask, 0.2), critical=critical)
    for rows in (slice(0, 1), slice(1, 3)):
        parts.add(terms_of(ratios[rows], advantages[rows], mask[rows], 0.2), critical=critical[rows])
    # The mask alone says what is averaged, so a mean of two micro-batch means would differ here.
    for name, value in vars(whole.read()).items():
        assert vars(parts.read())[name] == pytest.approx(value), name


def test_an_idle_rank_s_micro_batch_without_reports_changes_nothing():
    # The smallest ratio was 0 as soon as one rank had a pass less to do than the others.
    metrics = LossMetrics()
    metrics.add(terms_of([[2.0, 0.5]], [1.0], [[True, True]], 0.2))
    before = metrics.read()
    none, mask = torch.zeros(0, 0), torch.zeros(0, 0, dtype=torch.bool)
    empty = capo_loss(none, none, torch.zeros(0), mask, clip=0.2, num_reports=1, kl=none)
    metrics.add(empty)
    assert metrics.read() == before and before.ratio_min == 0.5
    alone = LossMetrics()
    alone.add(empty)
    assert alone.read().ratio_gap_max == 0.0


def test_without_tokens_nothing_divides_by_zero():
    metrics = LossMetrics()
    metrics.add(terms_of([[3.0]], [1.0], [[False]], 0.2))
    found = metrics.read()
    assert (found.loss, found.ratio_mean, found.ratio_max, found.kl, found.effective_samples) == (0, 1, 1, 0, 0)


def test_kl_and_gap_by_kind_by_hand():
    # Critical: ratios 2 and 0.25, KL 0.1 and 0.3. Normal: ratio 1.5, KL 0.6, and a pad far off that must not count.
    logps = torch.tensor([[2.0, 0.25], [1.5, 9.0]]).log()
    terms = capo_loss(
        logps,
        torch.zeros(2, 2),
        torch.ones(2),
        torch.tensor([[True, True], [True, False]]),
        clip=0.2,
        num_reports=2,
        kl=torch.tensor([[0.1, 0.3], [0.6, 7.0]]),
    )
    metrics = LossMetrics()
    metrics.add(terms, critical=torch.tensor([True, False]))
    found = metrics.read()
    assert (found.kl_critical, found.kl_normal) == pytest.approx((0.2, 0.6))
    assert (found.ratio_gap_max_critical, found.ratio_gap_max_normal) == pytest.approx((1.0, 0.5))
    assert found.kl == pytest.approx(1.0 / 3) and found.ratio_gap_max == pytest.approx(1.0)
    only_normal = LossMetrics()
    only_normal.add(terms)
    found = only_normal.read()
    assert (found.kl_critical, found.ratio_gap_max_critical, found.ratio_gap_max_normal) == (0.0, 0.0, 1.0)


def test_a_report_learns_if_any_of_its_tokens_does():
    # one advantage per token: only the first; none; only outside the mask; two that add up to 0
    terms = terms_of(
        [[1.0, 1.0]] * 4,
        [[1.0, 0.0], [0.0, 0.0], [0.0, 2.0], [1.0, -1.0]],
        [[True, True], [True, True], [True, False], [True, True]],
        0.2,
    )
    metrics = LossMetrics()
    metrics.add(terms)
    assert (metrics.read().learning_reports, metrics.read().reports) == (2, 4)
