"""Section 4.4 of the paper on finite MDPs and on all reports of a small vocabulary, each solved exactly, and what
clipping an objective does not do."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from capo.kl import k3
from capo.loss import capo_loss
from capo.metrics import LossMetrics


def moved(policy, directions, eps):
    """A policy [..., A] whose ratios to `policy` fill [1 - eps, 1 + eps] on one side in every state."""
    centred = directions - (policy * directions).sum(-1, keepdim=True)
    return policy * (1 + eps * centred / centred.abs().amax(-1, keepdim=True))


class Mdp:
    """Random transitions [S, A, S], rewards [S, A] in [-R_max, R_max], start distribution [S] and discount."""

    def __init__(self, seed, states=4, actions=5, discount=0.8):
        generator = torch.Generator().manual_seed(seed)
        draw = lambda *shape: torch.rand(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
        self.transitions = draw(states, actions, states).pow(4)  # some far likelier than others
        self.transitions /= self.transitions.sum(-1, keepdim=True)
        self.rewards = 2 * draw(states, actions) - 1
        self.largest_reward = float(self.rewards.abs().max())
        self.start = draw(states)
        self.start /= self.start.sum()
        self.old_policy = (4 * draw(states, actions)).softmax(-1)
        self.directions = 2 * draw(states, actions) - 1
        self.discount = discount

    def value(self, policy):
        """J = start (1 - discount P_policy)^-1 r_policy."""
        moves = torch.einsum("sa,sat->st", policy, self.transitions)
        rewards = (policy * self.rewards).sum(-1)
        values = torch.linalg.solve(torch.eye(len(moves), dtype=torch.float64) - self.discount * moves, rewards)
        return float(self.start @ values)


@given(st.integers(0, 100_000), st.floats(0.001, 0.99))
@settings(max_examples=100, deadline=None)
def test_lemma_and_proposition_hold_where_ratios_are_inside_the_range(seed, eps):
    mdp = Mdp(seed)
    policy = moved(mdp.old_policy, mdp.directions, eps)
    ratios = policy / mdp.old_policy
    torch.testing.assert_close(policy.sum(-1), torch.ones(4, dtype=torch.float64))
    assert float((ratios - 1).abs().max()) <= eps + 1e-12
    distance = float((policy - mdp.old_policy).abs().sum(-1).max())
    assert distance <= eps + 1e-12
    change = abs(mdp.value(policy) - mdp.value(mdp.old_policy))
    assert change <= 2 * mdp.largest_reward / (1 - mdp.discount) ** 2 * eps
    # By the performance difference lemma half of the printed bound is enough.
    assert change <= mdp.largest_reward / (1 - mdp.discount) ** 2 * distance + 1e-12


def test_the_bound_of_the_lemma_is_reached():
    # Two actions of probability 1/2 whose ratios are 1 + eps and 1 - eps: the L1 distance is eps
    old, eps = torch.tensor([0.5, 0.5]), 0.05
    new = old * torch.tensor([1 + eps, 1 - eps])
    torch.testing.assert_close((new - old).abs().sum(), torch.tensor(eps))


def l1_of_independent_tokens(tokens, eps):
    """L1 distance of reports whose tokens have two equally likely outcomes of ratio 1 + eps and 1 - eps."""
    ratios = [(1 + eps) ** k * (1 - eps) ** (tokens - k) for k in range(tokens + 1)]
    return sum(math.comb(tokens, k) / 2**tokens * abs(ratio - 1) for k, ratio in enumerate(ratios))


def test_the_bound_of_the_lemma_does_not_hold_for_whole_reports():
    # docs/paper.md: every ratio is within 5 %, and the distance between report distributions is ten times that
    found = [l1_of_independent_tokens(tokens, 0.05) for tokens in (1, 100, 200)]
    assert found == pytest.approx([0.05, 0.395, 0.554], abs=5e-4)


class Reports:
    """The distributions [V^T] of all reports of at most T tokens under two policies; token 0 ends a report."""

    def __init__(self, seed, tokens, eps, vocabulary=3):
        generator = torch.Generator().manual_seed(seed)
        self.old = self.new = torch.ones(1, dtype=torch.float64)
        self.distance = 0.0  # the largest L1 distance of the policies in a state, which is a prefix
        end = torch.eye(vocabulary, dtype=torch.float64)[0]
        ended = torch.zeros(1, dtype=torch.bool)
        for _ in range(tokens):
            draws = torch.rand(2, len(ended), vocabulary, generator=generator, dtype=torch.float64)
            old = torch.where(ended[:, None], end, (4 * draws[0]).softmax(-1))
            new = torch.where(ended[:, None], end, moved(old, draws[1], eps))
            self.distance = max(self.distance, float((new - old).abs().sum(-1).max()))
            self.old, self.new = (self.old[:, None] * old).flatten(), (self.new[:, None] * new).flatten()
            ended = (ended[:, None] | end.bool()).flatten()


def bound_for_reports(distance, tokens):
    """Draw both reports token by token, equal as often as their distributions allow: while the prefixes are equal, the
    next tokens differ with probability distance / 2 at most, so that the reports are equal with (1 - distance / 2)^T.
    """
    return 2 - 2 * (1 - distance / 2) ** tokens


@given(st.integers(0, 100_000), st.integers(1, 6), st.floats(0.001, 0.99), st.floats(0.1, 5))
@settings(max_examples=100, deadline=None)
def test_what_does_hold_for_whole_reports(seed, tokens, eps, largest_reward):
    reports = Reports(seed, tokens, eps)
    l1 = float((reports.new - reports.old).abs().sum())
    torch.testing.assert_close(float(reports.new.sum()), 1.0)
    assert reports.distance <= eps + 1e-12
    assert l1 <= bound_for_reports(reports.distance, tokens) + 1e-12
    assert bound_for_reports(eps, tokens) <= min(2.0, tokens * eps) + 1e-12
    # the return of a reward in [0, R] moves by R L1 / 2 at most, and by as much if just the likelier reports have R
    rewards = largest_reward * torch.rand(len(reports.old), generator=torch.Generator().manual_seed(seed)).double()
    change = float((reports.new - reports.old) @ rewards)
    assert abs(change) <= largest_reward * l1 / 2 + 1e-12
    rewards = largest_reward * (reports.new > reports.old).double()
    change = float((reports.new - reports.old) @ rewards)
    assert change == pytest.approx(largest_reward * l1 / 2)


def test_the_bound_for_reports_is_reached():
    # A rare token of probability p ends the report, and its ratio is 1 + eps: reports of T tokens without it have
    # probability (1 - p)^T, then (1 - p - p eps)^T. The likelier all others become, so that L1 is twice the difference.
    p, eps, tokens = 1e-5, 0.05, 100
    l1 = 2 * ((1 - p) ** tokens - (1 - p * (1 + eps)) ** tokens)
    assert 0.99 < l1 / bound_for_reports(2 * p * eps, tokens) <= 1


def optimised(eps, steps=4000):
    """Gradient descent on the clipped objective alone: three equally likely reports of one token, A = +2, -1, -1."""
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    behaviour = torch.full((3, 1), 1 / 3, dtype=torch.float64).log()
    advantages = torch.tensor([2.0, -1.0, -1.0], dtype=torch.float64)
    mask = torch.ones(3, 1, dtype=torch.bool)
    optimiser = torch.optim.SGD([logits], lr=0.01)
    for _ in range(steps):
        logps = logits.log_softmax(-1)[:, None]
        terms = capo_loss(
            logps, behaviour, advantages, mask, clip=eps, num_reports=3, kl=k3(logps, behaviour, mask), beta=0.0
        )
        optimiser.zero_grad()
        terms.loss.backward()
        optimiser.step()
    metrics = LossMetrics()
    metrics.add(terms)
    return terms.ratio[:, 0], metrics.read()


def test_the_clipped_objective_alone_does_not_hold_the_ratio_in_its_range():
    # The first report's own gradient stops at 1 + eps, but the other two push on until they reach 1 - eps, and their
    # probability goes to the first: 3 - 2 (1 - eps) = 1 + 2 eps, twice as far as the range. No large steps needed.
    for eps in (0.2, 0.05):
        ratio, metrics = optimised(eps)
        torch.testing.assert_close(ratio.max(), torch.tensor(1 + 2 * eps, dtype=torch.float64), rtol=1e-2, atol=0)
        assert metrics.ratio_gap_max == float((ratio - 1).abs().max()) > 1.9 * eps
