"""Section 4.4 of the paper on finite MDPs that are solved exactly, and what clipping an objective does not do."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from capo.kl import k3
from capo.loss import capo_loss
from capo.metrics import LossMetrics


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

    def moved(self, eps):
        """A policy whose ratios to the old one fill [1 - eps, 1 + eps] in every state."""
        centred = self.directions - (self.old_policy * self.directions).sum(-1, keepdim=True)
        return self.old_policy * (1 + eps * centred / centred.abs().amax(-1, keepdim=True))


@given(st.integers(0, 100_000), st.floats(0.001, 0.99))
@settings(max_examples=100, deadline=None)
def test_lemma_and_proposition_hold_where_ratios_are_inside_the_range(seed, eps):
    mdp = Mdp(seed)
    policy = mdp.moved(eps)
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
