import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from capo.clipping import critical_clip
from capo.kl import k3
from capo.loss import capo_loss, grpo_loss


def random_batch(seed, reports=4, tokens=6, spread=0.3):
    generator = torch.Generator().manual_seed(seed)
    behaviour = -torch.rand(reports, tokens, generator=generator, dtype=torch.float64) * 3
    logps = behaviour + spread * torch.randn(reports, tokens, generator=generator, dtype=torch.float64)
    lengths = torch.randint(1, tokens + 1, (reports,), generator=generator)
    mask = torch.arange(tokens) < lengths[:, None]
    advantages = torch.randn(reports, generator=generator, dtype=torch.float64)
    reference = behaviour + 0.2 * torch.randn(reports, tokens, generator=generator, dtype=torch.float64)
    return logps.requires_grad_(), behaviour, advantages, mask, reference


def test_two_tokens_and_a_pad_by_hand():
    # ratios 1.5 and 0.5, A = +1, eps 0.2: min(1.5, 1.2) = 1.2 and min(0.5, 0.8) = 0.5; the pad adds nothing
    logps = torch.tensor([[1.5, 0.5, 9.0]]).log()
    mask = torch.tensor([[True, True, False]])
    terms = capo_loss(logps, torch.zeros(1, 3), torch.tensor([1.0]), mask, clip=0.2, num_reports=1)
    torch.testing.assert_close(terms.loss, torch.tensor(-(1.2 + 0.5) / 2))
    assert terms.clipped_high.tolist() == [[True, False, False]]


def test_negative_advantage_by_hand():
    # A = -2: min(1.5 x -2, 1.2 x -2) = -3 (no clip upwards), min(0.5 x -2, 0.8 x -2) = -1.6 (clipped low)
    logps = torch.tensor([[1.5, 0.5]]).log()
    terms = capo_loss(
        logps, torch.zeros(1, 2), torch.tensor([-2.0]), torch.ones(1, 2, dtype=torch.bool), clip=0.2, num_reports=1
    )
    torch.testing.assert_close(terms.loss, torch.tensor((3.0 + 1.6) / 2))
    assert terms.clipped_low.tolist() == [[False, True]] and not terms.clipped_high.any()


def test_kl_stands_outside_the_minimum_by_hand():
    # on-policy, A = 1: objective 1. q - l = log 2: k3 = 2 - log 2 - 1. Loss = -(1 - 0.5 k3)
    logps = torch.zeros(1, 1)
    reference = torch.tensor([[2.0]]).log()
    mask = torch.ones(1, 1, dtype=torch.bool)
    terms = capo_loss(logps, logps, torch.ones(1), mask, clip=0.2, num_reports=1, reference_logps=reference, beta=0.5)
    divergence = 1 - torch.tensor(2.0).log()
    torch.testing.assert_close(terms.loss, -(1 - 0.5 * divergence))
    torch.testing.assert_close(terms.kl, divergence.reshape(1, 1))


def test_a_long_report_weighs_as_much_as_a_short_one():
    # A = 1 and r = 1 everywhere: each report contributes exactly 1/2, though one has 1 token and the other 3
    mask = torch.tensor([[True, False, False], [True, True, True]])
    logps = torch.zeros(2, 3, requires_grad=True)
    terms = capo_loss(logps, torch.zeros(2, 3), torch.ones(2), mask, clip=0.2, num_reports=2)
    terms.loss.backward()
    torch.testing.assert_close(logps.grad.sum(1), torch.tensor([-0.5, -0.5]))


def test_a_critical_case_stops_four_times_sooner():
    # r = 1.1 lies inside 0.2 and outside 0.05: only the normal case still gets a gradient
    logps = torch.full((2, 1), 1.1).log().requires_grad_()
    clip = critical_clip(torch.tensor([False, True]), eps_normal=0.2)
    torch.testing.assert_close(clip, torch.tensor([0.2, 0.05]))
    mask = torch.ones(2, 1, dtype=torch.bool)
    terms = capo_loss(logps, torch.zeros(2, 1), torch.ones(2), mask, clip=clip, num_reports=2)
    terms.loss.backward()
    assert logps.grad[0] < 0 and logps.grad[1] == 0
    assert terms.clipped_high.tolist() == [[False], [True]]


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_gradient_does_not_depend_on_how_the_step_is_split(seed):
    logps, behaviour, advantages, mask, reference = random_batch(seed)
    clip = critical_clip(torch.tensor([True, False, True, False]))

    def gradient(parts):
        logps.grad = None
        for rows in parts:
            capo_loss(
                logps[rows], behaviour[rows], advantages[rows], mask[rows],
                clip=clip[rows], num_reports=4, reference_logps=reference[rows], beta=0.1,
            ).loss.backward()  # fmt: skip
        return logps.grad

    whole = gradient([[0, 1, 2, 3]])
    torch.testing.assert_close(gradient([[0], [1, 2], [3]]), whole)


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_padding_changes_nothing_and_its_nan_stays_inside(seed):
    logps, behaviour, advantages, mask, reference = random_batch(seed)
    options = {"clip": 0.2, "num_reports": 4, "beta": 0.1}
    plain = capo_loss(logps, behaviour, advantages, mask, reference_logps=reference, **options)
    (expected,) = torch.autograd.grad(plain.loss, logps)
    pad = torch.full((4, 2), float("nan"), dtype=torch.float64)
    wide = torch.cat([logps.detach(), pad], 1).requires_grad_()
    wide_mask = torch.cat([mask, torch.zeros(4, 2, dtype=torch.bool)], 1)
    padded = capo_loss(
        wide, torch.cat([behaviour, pad], 1), advantages, wide_mask,
        reference_logps=torch.cat([reference, pad], 1), **options,
    )  # fmt: skip
    (gradient,) = torch.autograd.grad(padded.loss, wide)
    torch.testing.assert_close(padded.loss, plain.loss)
    torch.testing.assert_close(gradient[:, :6], expected)
    assert (gradient[:, 6:] == 0).all()


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_equal_ranges_give_grpo_and_on_policy_the_range_has_no_effect(seed):
    logps, behaviour, advantages, mask, _ = random_batch(seed)
    clip = critical_clip(torch.tensor([True, False, True, False]), tightening=1.0)
    capo = capo_loss(logps, behaviour, advantages, mask, clip=clip, num_reports=4)
    grpo = grpo_loss(logps, behaviour, advantages, mask, num_reports=4)
    # float32 holds the range 0.2 with an error of 3e-9
    torch.testing.assert_close(capo.loss, grpo.loss, rtol=1e-7, atol=1e-7)
    on_policy = [
        torch.autograd.grad(capo_loss(logps, logps.detach(), advantages, mask, clip=c, num_reports=4).loss, logps)[0]
        for c in (0.2, 0.001)
    ]
    assert torch.equal(*on_policy)


def test_range_given_per_token_is_refused_even_when_b_equals_t():
    logps = torch.zeros(3, 3)
    mask = torch.ones(3, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"clip as a number or \[B\]"):
        capo_loss(logps, logps, torch.ones(3), mask, clip=torch.full((1, 3), 0.2), num_reports=3)
    with pytest.raises(ValueError, match="behaviour_logps"):
        capo_loss(logps, logps[:1], torch.ones(3), mask, clip=0.2, num_reports=3)
    with pytest.raises(ValueError, match="reference_logps is missing"):
        capo_loss(logps, logps, torch.ones(3), mask, clip=0.2, num_reports=3, beta=0.1)


def test_gradcheck():
    logps, behaviour, advantages, mask, reference = random_batch(3)

    def loss(values):
        return capo_loss(
            values, behaviour, advantages, mask, clip=0.2, num_reports=4, reference_logps=reference, beta=0.1
        ).loss

    assert torch.autograd.gradcheck(loss, logps)


def test_k3_is_unbiased_for_the_kl_of_a_small_distribution():
    # exact: sum_x p(x) k3(x) = KL(p || q), for any p and q with equal support
    p, q = torch.tensor([0.5, 0.3, 0.2]).log(), torch.tensor([0.2, 0.2, 0.6]).log()
    values = k3(p[None], q[None], torch.ones(1, 3, dtype=torch.bool))
    torch.testing.assert_close((p.exp() * values[0]).sum(), (p.exp() * (p - q)).sum())


def test_report_without_tokens_adds_nothing():
    mask = torch.tensor([[True], [False]])
    terms = capo_loss(torch.zeros(2, 1), torch.zeros(2, 1), torch.ones(2), mask, clip=0.2, num_reports=2)
    assert terms.loss == -0.5
