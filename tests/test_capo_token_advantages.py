"""Advantages per token, [B, T], in every loss: credit by section."""

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_batches import ALL, double_clip, every_loss, ones, random_batch

from capo.kl import k3
from capo.loss import capo_loss

every_name = pytest.mark.parametrize("name", ALL)
each_seed = given(st.integers(0, 10_000))
SHORT = settings(max_examples=15, deadline=None)


def value_and_gradient(name, logps, behaviour, advantages, mask, **options):
    terms = every_loss(mask)[name](logps, behaviour, advantages, mask, **options)
    return terms, torch.autograd.grad(terms.loss, logps)[0]


def per_token(seed, like):
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)


def test_each_token_is_clipped_by_its_own_advantage_by_hand():
    # r = 1.5, 0.5, 1.5, 0.5 and A = 1, -2, -1, 1 in one report, eps 0.2:
    # min(1.5, 1.2) = 1.2, min(-1, -1.6) = -1.6, min(-1.5, -1.2) = -1.5, min(0.5, 0.8) = 0.5
    logps = torch.tensor([[1.5, 0.5, 1.5, 0.5]]).log()
    batch = (logps, torch.zeros(1, 4), torch.tensor([[1.0, -2.0, -1.0, 1.0]]), ones(1, 4))
    terms = capo_loss(*batch, clip=0.2, num_reports=1)
    torch.testing.assert_close(terms.loss, torch.tensor(-(1.2 - 1.6 - 1.5 + 0.5) / 4))
    assert terms.clipped_high.tolist() == [[True, False, False, False]]
    assert terms.clipped_low.tolist() == [[False, True, False, False]]
    # dual clip at c = 1.25: the third is held at -1.25; -1.6 is above 1.25 x -2, and positive advantages are left alone
    held = capo_loss(*batch, clip=0.2, num_reports=1, dual_clip=1.25)
    torch.testing.assert_close(held.loss, torch.tensor(-(1.2 - 1.6 - 1.25 + 0.5) / 4))


@every_name
@each_seed
@SHORT
def test_a_constant_row_equals_one_advantage_per_report(name, seed):
    logps, behaviour, advantages, mask, reference = random_batch(seed, spread=1.0)
    options = {
        "kl": k3(logps.detach(), reference, mask),
        "beta": 0.1,
        "dual_clip": 1.5,
        "weights": per_token(seed, logps).exp(),
    }
    batches = [(logps, behaviour, a, mask) for a in (advantages, advantages[:, None], advantages[:, None].expand(4, 6))]
    (plain, expected), *others = [value_and_gradient(name, *batch, **options) for batch in batches]
    for terms, gradient in others:
        assert torch.equal(gradient, expected)
        assert all(torch.equal(vars(terms)[key], value) for key, value in vars(plain).items())


@every_name
@each_seed
@SHORT
def test_sections_add_up_and_none_teaches_the_others_tokens(name, seed):
    # the Findings' tokens come first; clipping acts on each token alone, so disjoint sections add up in every loss
    logps, behaviour, _, mask, _ = random_batch(seed, spread=1.0)
    advantages = per_token(seed, logps)
    findings = torch.arange(6) < torch.tensor([[1], [3], [4], [6]])
    (whole, gradient), (first, of_findings), (second, of_impression) = [
        value_and_gradient(name, logps, behaviour, a, mask)
        for a in (advantages, advantages * findings, advantages * ~findings)
    ]
    torch.testing.assert_close(first.loss + second.loss, whole.loss)
    torch.testing.assert_close(of_findings + of_impression, gradient)
    if name != "gspo":  # one ratio for the whole report: its tokens share their gradient
        assert not of_findings[~findings].any() and not of_impression[findings].any()


@every_name
@each_seed
@SHORT
def test_the_parts_of_an_advantage_add_up_where_no_clip_acts(name, seed):
    logps, behaviour, per_report, mask, _ = random_batch(seed)
    extra = per_token(seed, logps) * (torch.arange(6) >= 3)  # what only the Impression's tokens are paid
    options = {} if name == "grpo" else {"clip": math.inf}
    if name == "grpo":
        behaviour = logps.detach()
    (_, a), (_, b), (_, both) = [
        value_and_gradient(name, logps, behaviour, advantages, mask, **options)
        for advantages in (per_report, extra, per_report[:, None] + extra)
    ]
    torch.testing.assert_close(a + b, both)


@every_name
@pytest.mark.parametrize("poison", [math.nan, math.inf])
@each_seed
@SHORT
def test_advantages_outside_the_mask_have_no_effect(name, poison, seed):
    logps, behaviour, _, mask, _ = random_batch(seed)
    mask[2] = False  # a report without tokens: its advantage counts for nothing either
    advantages = per_token(seed, logps)
    plain, expected = value_and_gradient(name, logps, behaviour, advantages, mask)
    found, gradient = value_and_gradient(name, logps, behaviour, torch.where(mask, advantages, poison), mask)
    assert torch.equal(found.loss, plain.loss) and torch.equal(gradient, expected)
    assert torch.equal(found.advantages, torch.where(mask, advantages, 0.0))
    one_each = torch.tensor([1.0, -1.0, poison, 0.5], dtype=torch.float64)
    assert value_and_gradient(name, logps, behaviour, one_each, mask)[1].isfinite().all()


def loss_by_loops(name, batch, *, clip, kl, beta, dual_clip, weights):
    """The same in plain Python, token by token."""
    logps, behaviour, advantages, mask = (x.tolist() for x in batch)
    reports = []
    for i, row in enumerate(mask):
        indices = [t for t, inside in enumerate(row) if inside]
        ratios = {t: math.exp(logps[i][t] - behaviour[i][t]) for t in indices}
        if name == "gspo":
            ratios = dict.fromkeys(indices, statistics.geometric_mean(ratios.values()))
        terms = []
        for t in indices:
            advantage, bounded = advantages[i][t], min(max(ratios[t], 1 - clip[i]), 1 + clip[i])
            value = min(ratios[t] * advantage, bounded * advantage)
            value = max(value, dual_clip * advantage) if advantage < 0 else value
            terms.append(float(weights[i, t]) * value - beta * float(kl[i, t]))
        reports.append(terms)
    total = sum(map(sum, reports))
    of_reports = sum(map(statistics.fmean, reports)) / len(mask)
    return -{"dapo": total / sum(map(len, reports)), "dr_grpo": total / (len(mask) * len(mask[0]))}.get(
        name, of_reports
    )


@every_name
@each_seed
@SHORT
def test_every_loss_equals_loops_over_tokens(name, seed):
    logps, behaviour, _, mask, reference = random_batch(seed, spread=1.0)
    advantages, clip = per_token(seed, logps), double_clip(tightening=1.0 if name == "grpo" else 4.0)
    options = {"kl": k3(logps.detach(), reference, mask), "beta": 0.1, "dual_clip": 1.5}
    options["weights"] = per_token(seed + 1, logps).exp()
    batch = (logps, behaviour, advantages, mask)
    found = every_loss(mask)[name](*batch, **options, **({} if name == "grpo" else {"clip": clip}))
    assert float(found.loss.detach()) == pytest.approx(loss_by_loops(name, batch, clip=clip.tolist(), **options))


@every_name
def test_gradcheck(name):
    logps, behaviour, _, mask, _ = random_batch(4)
    advantages, loss = per_token(4, logps), every_loss(mask)[name]
    assert torch.autograd.gradcheck(lambda x: loss(x, behaviour, advantages, mask, dual_clip=1.2).loss, logps)


@every_name
@pytest.mark.parametrize("shape", [(), (5,), (2, 1), (3, 4), (1, 5), (3, 5, 1)])
def test_advantages_of_any_other_shape_are_refused(name, shape):
    logps, mask = torch.zeros(3, 5), ones(3, 5)
    with pytest.raises(
        ValueError, match=r"expected advantages as \[B\], \[B, 1\] or \[B, T\] with B = 3 and T = 5, got"
    ):
        every_loss(mask)[name](logps, logps, torch.ones(shape), mask)
