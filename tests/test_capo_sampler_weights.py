"""Truncated importance weights between sampler and trainer, and the losses that take them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from capo.config import RlConfig
from capo.kl import k3
from capo.loss import (
    OBJECTIVES,
    capo_loss,
    dapo_loss,
    dr_grpo_loss,
    grpo_loss,
    gspo_loss,
    policy_loss,
    sampler_weights,
    token_ratio,
)
from capo.metrics import ScoringMetrics

NAN = math.nan
LEVELS = ("token", "report")
# Reports of 3, 2 and 0 tokens. exp(behaviour - sampled): 2, 4, 1/2; 1/4, 2. NaN on both sides of the padding.
MASK = torch.tensor([[True, True, True], [True, True, False], [False, False, False]])
BEHAVIOUR = torch.tensor([[2.0, 4.0, 0.5], [0.25, 2.0, NAN], [1.0, NAN, 5.0]], dtype=torch.float64).log()
SAMPLED = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 1.0], [NAN, 0.0, NAN]], dtype=torch.float64)
LOSSES = {
    "capo": lambda *a, **k: capo_loss(*a, clip=0.2, num_reports=4, **k),
    "grpo": lambda *a, **k: grpo_loss(*a, num_reports=4, **k),
    "dapo": lambda *a, **k: dapo_loss(*a, num_tokens=12, **k),
    "gspo": lambda *a, **k: gspo_loss(*a, num_reports=4, clip_low=0.02, clip_high=0.02, **k),
    "dr_grpo": lambda *a, **k: dr_grpo_loss(*a, num_reports=4, max_tokens=6, **k),
    "own aggregate": lambda *a, **k: policy_loss(
        *a, ratio=token_ratio, clip_low=0.2, clip_high=0.2, aggregate=lambda x, mask: (x * mask).sum(), **k
    ),
    **{
        f"objective {name}": lambda *a, f=f, **k: f(
            *a, clip=torch.full((4,), 0.1), num_reports=4, num_tokens=12, max_tokens=6, **k
        )
        for name, f in OBJECTIVES.items()
    },
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=list(LOSSES))


def random_batch(seed, spread=0.3):
    """logps, behaviour, advantages, mask; KL to a reference; the sampler's log-probabilities."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    behaviour = -draw(4, 6).abs()
    logps = (behaviour + spread * draw(4, 6)).requires_grad_()
    mask = torch.arange(6) < torch.randint(1, 7, (4,), generator=generator)[:, None]
    return (logps, behaviour, draw(4), mask), k3(logps, behaviour + 0.2 * draw(4, 6), mask), behaviour + draw(4, 6)


def test_a_tokens_weight_is_its_probability_ratio_up_to_the_cap_by_hand():
    weights = sampler_weights(BEHAVIOUR, SAMPLED, MASK, level="token", cap=3.0)
    expected = [[2.0, 3.0, 0.5], [0.25, 2.0, 1.0], [1.0, 1.0, 1.0]]
    torch.testing.assert_close(weights, torch.tensor(expected, dtype=torch.float64))


def test_a_reports_weight_is_the_product_over_its_tokens_up_to_the_cap_by_hand():
    # 2 x 4 x 1/2 = 4, capped at 3; 1/4 x 2 = 1/2. Capping each token before the product would give 3 as well, so once
    # more with room: 4.
    weights = sampler_weights(BEHAVIOUR, SAMPLED, MASK, level="report", cap=3.0)
    expected = torch.tensor([[3.0, 3.0, 3.0], [0.5, 0.5, 1.0], [1.0, 1.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(weights, expected)
    expected[0] = 4.0
    torch.testing.assert_close(sampler_weights(BEHAVIOUR, SAMPLED, MASK, level="report", cap=4.5), expected)


@given(st.integers(0, 10_000), st.sampled_from(LEVELS), st.floats(1.01, 10), st.sampled_from([0.01, 1.0, 30.0]))
@settings(max_examples=60, deadline=None)
def test_weights_lie_between_zero_and_the_cap_and_are_one_where_both_agree(seed, level, cap, spread):
    generator = torch.Generator().manual_seed(seed)
    behaviour, noise = torch.randn(2, 4, 6, generator=generator, dtype=torch.float64)
    mask = torch.arange(6) < torch.randint(0, 7, (4,), generator=generator)[:, None]
    equal = torch.rand(4, 6 if level == "token" else 1, generator=generator) < 0.3
    sampled = torch.where(equal, behaviour, behaviour + spread * noise)
    behaviour.requires_grad_()
    weights = sampler_weights(behaviour, sampled, mask, level=level, cap=cap)
    assert not weights.requires_grad
    assert ((weights > 0) & (weights <= cap)).all()
    assert (weights[equal.expand(4, 6)] == 1).all() and (weights[~mask] == 1).all()
    poisoned = [torch.where(mask, x.detach(), NAN) for x in (behaviour, sampled)]
    assert torch.equal(sampler_weights(*poisoned, mask, level=level, cap=cap), weights)
    # where neither the cap nor the hold at +-20 acts, swapping the two gives the inverse
    inverse = sampler_weights(sampled, behaviour, mask, level=level, cap=cap)
    free = (weights < cap) & (inverse < cap) & (weights > 1e-8) & (inverse > 1e-8)
    torch.testing.assert_close((weights * inverse)[free], torch.ones_like(weights[free]))


def test_half_precision_keeps_its_difference():
    # -1 and -1.0078125 are neighbours in bf16; the weight of their difference, 1.0078, is rounded to 1.0078125 there
    one = torch.ones(1, 1, dtype=torch.bool)
    weight = sampler_weights(
        torch.tensor([[-1.0]]).bfloat16(), torch.tensor([[-1.0078125]]).bfloat16(), one, level="token", cap=3.0
    )
    assert weight.dtype == torch.float32 and float(weight) == pytest.approx(math.exp(0.0078125), rel=1e-6)


def test_weights_multiply_the_clipped_surrogate_and_not_the_kl_by_hand():
    # A = 1, ratios 1.5 and 0.5 clipped to 1.2 and 0.5, weights 2 and 0.5, k3 of 0.25 each at beta 0.4
    logps = torch.tensor([[1.5, 0.5]]).log()
    mask = torch.ones(1, 2, dtype=torch.bool)
    terms = capo_loss(
        logps,
        torch.zeros(1, 2),
        torch.ones(1),
        mask,
        clip=0.2,
        num_reports=1,
        kl=torch.full((1, 2), 0.25),
        beta=0.4,
        weights=torch.tensor([[2.0, 0.5]]),
    )
    torch.testing.assert_close(terms.loss, torch.tensor(-((2 * 1.2 - 0.1) + (0.5 * 0.5 - 0.1)) / 2))
    # dual clip: A = -1, r = 5 is held at 3, then weighted: 2 x 3
    bad = capo_loss(
        torch.tensor([[5.0]]).log(),
        torch.zeros(1, 1),
        -torch.ones(1),
        mask[:, :1],
        clip=0.2,
        num_reports=1,
        dual_clip=3.0,
        weights=torch.tensor([[2.0]]),
    )
    torch.testing.assert_close(bad.loss, torch.tensor(6.0))


@every_loss
@pytest.mark.parametrize("level", LEVELS)
@given(st.integers(0, 10_000))
@settings(max_examples=10, deadline=None)
def test_equal_log_probabilities_leave_loss_and_gradient_bit_for_bit(loss, level, seed):
    args, kl, _ = random_batch(seed)
    logps, behaviour, _, mask = args
    weights = sampler_weights(behaviour, behaviour.clone(), mask, level=level, cap=3.0)
    found, plain = loss(*args, kl=kl, beta=0.1, weights=weights).loss, loss(*args, kl=kl, beta=0.1).loss
    assert torch.equal(found, plain)
    gradients = [torch.autograd.grad(x, logps, retain_graph=True)[0] for x in (found, plain)]
    assert torch.equal(*gradients)


@every_loss
@pytest.mark.parametrize("beta", [0.0, 0.1])
@given(st.integers(0, 10_000))
@settings(max_examples=10, deadline=None)
def test_a_weight_per_report_acts_as_a_factor_of_its_advantage(loss, beta, seed):
    # min() and clip are homogeneous in A, so a positive weight may be moved into it; the KL term is left alone
    args, kl, sampled = random_batch(seed)
    logps, behaviour, advantages, mask = args
    weights = sampler_weights(behaviour, sampled, mask, level="report", cap=3.0)
    weighted = loss(*args, kl=kl, beta=beta, weights=weights)
    moved = loss(logps, behaviour, advantages * weights[:, 0], mask, kl=kl, beta=beta)
    torch.testing.assert_close(weighted.loss, moved.loss)
    gradients = [torch.autograd.grad(t.loss, logps, retain_graph=True)[0] for t in (weighted, moved)]
    torch.testing.assert_close(*gradients)


@every_loss
@given(st.integers(0, 10_000))
@settings(max_examples=10, deadline=None)
def test_nan_weights_in_the_padding_stay_there_and_no_gradient_flows_to_weights(loss, seed):
    args, kl, sampled = random_batch(seed)
    logps, behaviour, _, mask = args
    weights = sampler_weights(behaviour, sampled, mask, level="token", cap=3.0)
    poisoned = torch.where(mask, weights, NAN).requires_grad_()
    plain, found = (loss(*args, kl=kl, beta=0.1, weights=w).loss for w in (weights, poisoned))
    assert torch.equal(plain, found)
    (expected,) = torch.autograd.grad(plain, logps, retain_graph=True)
    gradient, none = torch.autograd.grad(found, (logps, poisoned), allow_unused=True)
    assert torch.equal(gradient, expected) and none is None


def test_gap_and_weights_of_a_step_by_hand():
    # |log| of 2, 4, 1/2, 1/4, 2: (1 + 2 + 1 + 2 + 1) log 2 over 5 tokens, at most 2 log 2
    zeros = torch.zeros(3, 3)
    found = {}
    for level in ("off", *LEVELS):
        # in two micro-batches, so that a mean of two means would show
        metrics = ScoringMetrics(level=level, cap=3.0)
        for rows in (slice(0, 1), slice(1, 3)):
            metrics.add(SAMPLED[rows], BEHAVIOUR[rows], zeros[rows], zeros[rows], MASK[rows])
        found[level] = metrics.read()
        assert found[level]["sampler_gap_mean"] == pytest.approx(7 * math.log(2) / 5)
        assert found[level]["sampler_gap_max"] == pytest.approx(2 * math.log(2))
    assert set(found["off"]) == {"kl_before", "entropy", "sampler_gap_mean", "sampler_gap_max"}
    # token: 2, 3 (of 4), 1/2, 1/4, 2. report: 3 (of 4) and 1/2; the empty report has none
    assert found["token"]["sampler_weight_mean"] == pytest.approx((2 + 3 + 0.5 + 0.25 + 2) / 5)
    assert found["token"]["sampler_weight_capped"] == pytest.approx(1 / 5)
    assert found["report"]["sampler_weight_mean"] == pytest.approx((3 + 0.5) / 2)
    assert found["report"]["sampler_weight_capped"] == pytest.approx(1 / 2)


def test_a_token_whose_sampler_gave_no_log_probability_has_no_gap_and_the_weight_1():
    zeros, partly = torch.zeros(3, 3), SAMPLED.clone()
    partly[0, 1] = NAN  # of gap 2 log 2 and weight 3
    metrics = ScoringMetrics(level="token", cap=3.0)
    metrics.add(partly, BEHAVIOUR, zeros, zeros, MASK)
    found = metrics.read()
    assert found["sampler_gap_mean"] == pytest.approx((1 + 1 + 2 + 1) * math.log(2) / 4)
    assert found["sampler_weight_mean"] == pytest.approx((2 + 1 + 0.5 + 0.25 + 2) / 5)
    metrics = ScoringMetrics()
    metrics.add(torch.full((3, 3), NAN), BEHAVIOUR, zeros, zeros, MASK)
    assert metrics.read() == {"kl_before": 0, "entropy": 0, "sampler_gap_mean": None, "sampler_gap_max": None}


def test_a_step_without_reports_has_no_gap_and_divides_by_nothing():
    metrics = ScoringMetrics(level="report", cap=3.0)
    none = torch.zeros(0, 2)
    metrics.add(none, none, none, none, none.bool())
    assert set(metrics.read().values()) == {0.0}


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="expected level as token or report, got 'sequence'"):
        sampler_weights(BEHAVIOUR, SAMPLED, MASK, level="sequence", cap=3.0)
    with pytest.raises(ValueError, match="expected weights of the shape of logps"):
        grpo_loss(BEHAVIOUR, SAMPLED, torch.ones(3), MASK, num_reports=3, weights=torch.ones(3, 1))
    with pytest.raises(ValueError, match="expected sampler_correction as one of off, token, report, got 'sequence'"):
        RlConfig(sampler_correction="sequence")
    for cap in (1.0, 0.5, math.inf, NAN):
        with pytest.raises(ValueError, match=r"expected sampler_cap above 1 and finite, .*agree on"):
            RlConfig(sampler_correction="token", sampler_cap=cap)
        with pytest.raises(ValueError, match="expected sampler_cap above 1"):
            sampler_weights(BEHAVIOUR, SAMPLED, MASK, level="token", cap=cap)
    with pytest.raises(ValueError, match=r"sampler_cap is 2\.0 but sampler_correction is off"):
        RlConfig(sampler_cap=2.0)
    assert (RlConfig().sampler_correction, RlConfig().sampler_cap) == ("off", 3.0)
