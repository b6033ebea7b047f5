import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_batches import ALL, double_clip, every_loss, ones, random_batch

from capo.clipping import critical_clip
from capo.kl import k3
from capo.loss import capo_loss, clipped_surrogate, dapo_loss, dr_grpo_loss, grpo_loss, gspo_loss

seeds = st.integers(0, 10_000)


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
    terms = capo_loss(logps, torch.zeros(1, 2), torch.tensor([-2.0]), ones(1, 2), clip=0.2, num_reports=1)
    torch.testing.assert_close(terms.loss, torch.tensor((3.0 + 1.6) / 2))
    assert terms.clipped_low.tolist() == [[False, True]] and not terms.clipped_high.any()


def test_dual_clip_by_hand():
    # A = -1, r = 5: plain loss 5; with c = 3 it is 3, and the token stops teaching. A = +1 is left alone.
    logps = torch.tensor([[5.0], [5.0]]).log().requires_grad_()
    advantages = torch.tensor([-1.0, 1.0])
    terms = capo_loss(logps, torch.zeros(2, 1), advantages, ones(2, 1), clip=0.2, num_reports=1, dual_clip=3.0)
    torch.testing.assert_close(terms.loss, torch.tensor(3.0 - 1.2))
    terms.loss.backward()
    assert logps.grad.tolist() == [[0.0], [0.0]]
    with pytest.raises(ValueError, match="dual_clip above 1"):
        capo_loss(logps, torch.zeros(2, 1), advantages, ones(2, 1), clip=0.2, num_reports=1, dual_clip=1.0)


def test_sequence_ratio_by_hand():
    # log-ratios log 2 and log 8 over two tokens: s = sqrt(16) = 4, clipped at 1.5 for A = 1; the pad takes no part
    logps = torch.tensor([[2.0, 8.0, 5.0]]).log()
    mask = torch.tensor([[True, True, False]])
    terms = gspo_loss(logps, torch.zeros(1, 3), torch.ones(1), mask, num_reports=1, clip_low=0.5, clip_high=0.5)
    torch.testing.assert_close(terms.ratio, torch.tensor([[4.0, 4.0, 1.0]]))
    torch.testing.assert_close(terms.loss, torch.tensor(-1.5))


def test_denominators_by_hand():
    # r = 1, A = 1, reports of 1 and 3 tokens: GRPO (1 + 1)/2, DAPO 4/4, Dr. GRPO with 8 tokens at most 4/16
    mask = torch.tensor([[True, False, False], [True, True, True]])
    batch = (torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2), mask)
    assert float(grpo_loss(*batch, num_reports=2).loss) == -1
    assert float(dapo_loss(*batch, num_tokens=4).loss) == -1
    assert float(dr_grpo_loss(*batch, num_reports=2, max_tokens=8).loss) == -0.25


def test_kl_stands_outside_the_minimum_by_hand():
    # on-policy, A = 1: objective 1. q - l = log 2: k3 = 2 - log 2 - 1. Loss = -(1 - 0.5 k3)
    logps = torch.zeros(1, 1)
    kl = k3(logps, torch.tensor([[2.0]]).log(), ones(1, 1))
    terms = capo_loss(logps, logps, torch.ones(1), ones(1, 1), clip=0.2, num_reports=1, kl=kl, beta=0.5)
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


@given(st.floats(0.01, 0.9), st.sampled_from([-1.0, 1.0]), st.floats(0.02, 1.0))
@settings(max_examples=60, deadline=None)
def test_a_token_beyond_its_range_on_the_improving_side_gets_no_gradient(eps, advantage, share):
    # `share` of the range is inside, 1 + share outside; the critical case's range is the same, four times narrower
    for critical, width in ((False, eps), (True, eps / 4)):
        for distance, stopped in ((share * width * 0.999, False), ((1 + share) * width, True)):
            ratio = 1 + math.copysign(distance, advantage)
            if ratio <= 0:
                continue
            logps = torch.tensor([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)
            behaviour = torch.zeros(1, 1, dtype=torch.float64)
            clip = double_clip(torch.tensor([critical]), eps_normal=eps)
            terms = capo_loss(logps, behaviour, torch.tensor([advantage]), ones(1, 1), clip=clip, num_reports=1)
            terms.loss.backward()
            assert (logps.grad == 0).all() == stopped
            assert (terms.clipped_low | terms.clipped_high).item() == stopped
            # On the worsening side the gradient never stops, however far the ratio went.
            if stopped:
                other = capo_loss(logps, behaviour, torch.tensor([-advantage]), ones(1, 1), clip=clip, num_reports=1)
                (gradient,) = torch.autograd.grad(other.loss, logps)
                assert float(gradient) != 0 and not (other.clipped_low | other.clipped_high).item()


def test_a_ratio_exactly_at_its_bound_is_not_counted_as_clipped():
    # r = 1.5 and 0.5 are exact: the clip changes nothing there
    logps = torch.tensor([[1.5], [0.5]]).log()
    behaviour = torch.zeros(2, 1)
    ratio = logps.exp()
    eps = float(ratio[0, 0]) - 1
    terms = capo_loss(logps, behaviour, torch.tensor([1.0, -1.0]), ones(2, 1), clip=eps, num_reports=2)
    assert not terms.clipped_low.any() and not terms.clipped_high.any()


@given(seeds, st.floats(0.0, 2.0), st.floats(0.0, 2.0))
@settings(max_examples=40, deadline=None)
def test_the_clipped_surrogate_never_exceeds_the_unclipped(seed, low, high):
    logps, behaviour, advantages, _, _ = random_batch(seed, spread=1.0)
    ratio = (logps - behaviour).exp()
    column = advantages[:, None]
    assert (clipped_surrogate(ratio, column, torch.tensor(low), torch.tensor(high)) <= ratio * column).all()


@pytest.mark.parametrize("name", ALL)
@given(seeds)
@settings(max_examples=20, deadline=None)
def test_gradient_does_not_depend_on_how_the_step_is_split(name, seed):
    logps, behaviour, advantages, mask, reference = random_batch(seed)
    loss = every_loss(mask)[name]
    clip = {} if name == "grpo" else {"clip": double_clip()}

    def gradient(parts):
        logps.grad = None
        for rows in parts:
            options = {key: value[rows] for key, value in clip.items()}
            kl = k3(logps[rows], reference[rows], mask[rows])
            loss(logps[rows], behaviour[rows], advantages[rows], mask[rows], kl=kl, beta=0.1, **options).loss.backward()
        return logps.grad

    whole = gradient([[0, 1, 2, 3]])
    torch.testing.assert_close(gradient([[0], [1, 2], [3]]), whole)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ALL)
@given(seeds)
@settings(max_examples=10, deadline=None)
def test_padding_changes_nothing_and_what_stands_there_stays_inside(name, poison, seed):
    logps, behaviour, advantages, mask, reference = random_batch(seed)
    pad = torch.full((4, 2), poison, dtype=torch.float64)
    wide_mask = torch.cat([mask, torch.zeros(4, 2, dtype=torch.bool)], 1)
    loss = every_loss(mask)[name]
    plain = loss(logps, behaviour, advantages, mask, kl=k3(logps, reference, mask), beta=0.1)
    (expected,) = torch.autograd.grad(plain.loss, logps)
    wide = torch.cat([logps.detach(), pad], 1).requires_grad_()
    kl = k3(wide, torch.cat([reference, pad], 1), wide_mask)
    padded = loss(wide, torch.cat([behaviour, pad], 1), advantages, wide_mask, kl=kl, beta=0.1)
    (gradient,) = torch.autograd.grad(padded.loss, wide)
    torch.testing.assert_close(padded.loss, plain.loss)
    torch.testing.assert_close(gradient[:, :6], expected)
    assert (gradient[:, 6:] == 0).all()
    assert (padded.ratio[:, 6:] == 1).all() and (padded.kl[:, 6:] == 0).all()


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_equal_ranges_give_grpo(seed):
    logps, behaviour, advantages, mask, _ = random_batch(seed)
    capo = capo_loss(logps, behaviour, advantages, mask, clip=double_clip(tightening=1.0), num_reports=4)
    grpo = grpo_loss(logps, behaviour, advantages, mask, num_reports=4)
    assert torch.equal(capo.loss, grpo.loss)


@pytest.mark.parametrize("name", ALL)
@given(seeds)
@settings(max_examples=10, deadline=None)
def test_on_policy_the_range_has_no_effect(name, seed):
    logps, _, advantages, mask, _ = random_batch(seed)
    loss = every_loss(mask)[name]
    wide, narrow = (
        torch.autograd.grad(loss(logps, logps.detach(), advantages, mask, clip=c).loss, logps)[0] for c in (0.2, 0.001)
    )
    assert torch.equal(wide, narrow)


@pytest.mark.parametrize("name", ["capo", "dapo", "dr_grpo"])
@given(seeds)
@settings(max_examples=10, deadline=None)
def test_an_infinite_range_gives_the_policy_gradient(name, seed):
    # gradient of sum w A r = w A r d logp: the importance-weighted REINFORCE gradient
    logps, behaviour, advantages, mask, _ = random_batch(seed)
    terms = every_loss(mask)[name](logps, behaviour, advantages, mask, clip=math.inf)
    (gradient,) = torch.autograd.grad(terms.loss, logps)
    weight = {"capo": mask.sum(1, keepdim=True) * 4, "dapo": mask.sum(), "dr_grpo": 4 * 6}[name]
    expected = torch.where(mask, -advantages[:, None] * (logps - behaviour).exp() / weight, 0.0)
    torch.testing.assert_close(gradient, expected.detach())


def test_gspo_gradient_is_the_mean_score_of_the_report():
    # d s_i = s_i (1/|o_i|) sum_t d logp_t, unclipped: each token of a report gets A s / (N |o_i|)
    logps, behaviour, advantages, mask, _ = random_batch(11)
    terms = gspo_loss(logps, behaviour, advantages, mask, num_reports=4, clip_low=math.inf, clip_high=math.inf)
    (gradient,) = torch.autograd.grad(terms.loss, logps)
    weight = torch.where(mask, -advantages[:, None] * terms.ratio / (4 * mask.sum(1, keepdim=True)), 0.0)
    torch.testing.assert_close(gradient, weight)


@pytest.mark.parametrize("bad", [torch.full((1, 3), 0.2), torch.full((3, 3), 0.2), torch.full((2,), 0.2)])
@pytest.mark.parametrize("name", ["capo", "dapo", "gspo", "dr_grpo"])
def test_ranges_of_any_other_shape_are_refused_even_when_b_equals_t(name, bad):
    logps, mask = torch.zeros(3, 3), ones(3, 3)
    with pytest.raises(ValueError, match=r"as a number or \[B\]"):
        every_loss(mask)[name](logps, logps, torch.ones(3), mask, clip=bad)


def test_a_range_is_taken_as_number_vector_or_column():
    logps, behaviour, advantages, mask, _ = random_batch(5, spread=1.0)
    losses = [
        capo_loss(logps, behaviour, advantages, mask, clip=clip, num_reports=4).loss
        for clip in (0.2, torch.full((4,), 0.2, dtype=torch.float64), torch.full((4, 1), 0.2, dtype=torch.float64))
    ]
    assert losses[0] == losses[1] == losses[2]


def test_what_is_missing_or_misshapen_is_named():
    logps, mask = torch.zeros(3, 3), ones(3, 3)
    with pytest.raises(ValueError, match="behaviour_logps"):
        capo_loss(logps, logps[:1], torch.ones(3), mask, clip=0.2, num_reports=3)
    with pytest.raises(ValueError, match="kl is missing"):
        capo_loss(logps, logps, torch.ones(3), mask, clip=0.2, num_reports=3, beta=0.1)
    with pytest.raises(ValueError, match="dtype bool"):
        capo_loss(logps, logps, torch.ones(3), mask.float(), clip=0.2, num_reports=3)


@pytest.mark.parametrize("name", ALL)
def test_gradcheck(name):
    logps, behaviour, advantages, mask, reference = random_batch(3)
    loss = every_loss(mask)[name]

    def value(x):
        return loss(x, behaviour, advantages, mask, kl=k3(x, reference, mask), beta=0.1).loss

    assert torch.autograd.gradcheck(value, logps)


@pytest.mark.parametrize("name", ALL)
def test_reports_without_tokens_and_batches_without_reports_add_nothing(name):
    mask = torch.tensor([[True], [False]])
    logps = torch.zeros(2, 1, requires_grad=True)
    one = every_loss(mask)[name](logps, torch.zeros(2, 1), torch.ones(2), mask)
    one.loss.backward()
    assert logps.grad[1] == 0
    nothing = every_loss(mask)[name](logps, torch.zeros(2, 1), torch.ones(2), torch.zeros(2, 1, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(nothing.loss, logps)
    assert nothing.loss == 0 and (gradient == 0).all()
    none = every_loss(mask)[name](logps[:0], torch.zeros(0, 1), torch.ones(0), mask[:0])
    assert none.loss == 0


def test_an_overflowing_ratio_sends_no_nan_back():
    # exp(200) is infinite even in float32: min() picks the clipped branch, and 0 times inf would be NaN
    logps = torch.tensor([[200.0, -1.0]], requires_grad=True)
    terms = capo_loss(logps, torch.tensor([[-200.0, -1.0]]), torch.ones(1), ones(1, 2), clip=0.2, num_reports=1)
    terms.loss.backward()
    assert logps.grad.isfinite().all() and logps.grad[0, 1] != 0


def test_half_precision_is_computed_in_float32():
    # 1 + 2^-9 is no bf16 number; its log-ratio must survive, and so must a range of 3e-4
    logps = torch.tensor([[-1.0, -2.0]], dtype=torch.bfloat16)
    terms = gspo_loss(logps, torch.tensor([[-1.001, -2.001]]), torch.ones(1), ones(1, 2), num_reports=1)
    assert terms.ratio.dtype == torch.float32 and terms.clipped_high.all()
    torch.testing.assert_close(terms.loss, torch.tensor(-1.0004))


@pytest.mark.parametrize("name", ALL)
def test_only_the_policy_gets_a_gradient(name):
    logps, behaviour, advantages, mask, reference = random_batch(1)
    clip, weights = torch.tensor(0.2).double(), torch.ones_like(behaviour)
    constants = [x.requires_grad_() for x in (behaviour, advantages, reference, clip, weights)]
    options = {} if name == "grpo" else {"clip": clip}
    kl = k3(logps, reference, mask)
    terms = every_loss(mask)[name](logps, behaviour, advantages, mask, kl=kl, beta=0.1, weights=weights, **options)
    terms.loss.backward()
    assert logps.grad.any() and all(x.grad is None for x in constants)
    assert not any(value.requires_grad for key, value in vars(terms).items() if key != "loss")


def test_critical_clip_is_four_times_tighter():
    torch.testing.assert_close(critical_clip(torch.tensor([False, True])), torch.tensor([0.2, 0.05]))
    with pytest.raises(ValueError, match="bool"):
        critical_clip(torch.tensor([0, 1]))
