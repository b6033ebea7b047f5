"""The objectives by name: each case's range on both sides, and the counts they divide by."""

import pytest
import torch

from capo.clipping import critical_clip
from capo.config import RlConfig
from capo.loss import OBJECTIVES


def one_token_each(name, ratios, advantages, eps_normal):
    """Terms of four reports of one token: critical, critical, normal, normal."""
    clip = critical_clip(torch.tensor([True, True, False, False]), eps_normal=eps_normal, tightening=4.0)
    logps = torch.tensor(ratios)[:, None].log()
    return OBJECTIVES[name](
        logps,
        torch.zeros(4, 1),
        torch.tensor(advantages),
        torch.ones(4, 1, dtype=torch.bool),
        clip=clip,
        num_reports=4,
        num_tokens=4,
        max_tokens=1,
        kl=torch.zeros(4, 1),
        beta=0.0,
    )


@pytest.mark.parametrize(
    ("name", "eps_normal", "critical_high", "critical_low", "normal_high", "normal_low"),
    [
        ("capo", 0.2, 1.05, 0.95, 1.2, 0.8),
        ("dapo", 0.2, 1.07, 0.95, 1.28, 0.8),  # 0.28 / 4 above
        ("gspo", 3e-4, 1 + 1e-4, 1 - 0.75e-4, 1 + 4e-4, 1 - 3e-4),
        ("dr_grpo", 0.2, 1.05, 0.95, 1.2, 0.8),
    ],
)
def test_both_sides_of_a_critical_case_are_four_times_tighter_by_hand(
    name, eps_normal, critical_high, critical_low, normal_high, normal_low
):
    # far beyond the range upwards with A = 1, downwards with A = -1: the objective is the bound itself
    terms = one_token_each(name, [1.5, 0.5, 1.5, 0.5], [1.0, -1.0, 1.0, -1.0], eps_normal)
    expected = -(critical_high - critical_low + normal_high - normal_low) / 4
    torch.testing.assert_close(terms.loss, torch.tensor(expected), rtol=0, atol=2e-7)
    assert terms.clipped_high[:, 0].tolist() == [True, False, True, False]
    assert terms.clipped_low[:, 0].tolist() == [False, True, False, True]
    # a hair inside and a hair outside each bound
    for share, clipped in ((0.95, False), (1.05, True)):
        ratios = [1 + share * (bound - 1) for bound in (critical_high, critical_low, normal_high, normal_low)]
        terms = one_token_each(name, ratios, [1.0, -1.0, 1.0, -1.0], eps_normal)
        assert (terms.clipped_high | terms.clipped_low)[:, 0].tolist() == [clipped] * 4


def test_counts_by_hand():
    # r = 1, A = 1, reports of 1 and 3 tokens in a step of 8 reports and 10 tokens, sampled up to 5 tokens
    mask = torch.tensor([[True, False, False], [True, True, True]])
    batch = (torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2), mask)
    counts = {"num_reports": 8, "num_tokens": 10, "max_tokens": 5}
    options = {"clip": torch.full((2,), 0.2), "kl": torch.zeros(2, 3), "beta": 0.0, **counts}
    losses = {name: float(objective(*batch, **options).loss) for name, objective in OBJECTIVES.items()}
    assert losses == pytest.approx({"capo": -2 / 8, "dapo": -4 / 10, "gspo": -2 / 8, "dr_grpo": -4 / 40})


def test_every_objective_takes_the_kl_and_the_dual_clip():
    zeros, ones = torch.zeros(1, 2), torch.ones(1, 2)
    options = {"clip": torch.tensor([0.2]), "num_reports": 1, "num_tokens": 2, "max_tokens": 2}
    for name, objective in OBJECTIVES.items():
        terms = objective(zeros, zeros, torch.zeros(1), ones.bool(), kl=3 * ones, beta=0.5, **options)
        assert float(terms.loss) == 1.5, name  # A = 0, so 0.5 times 3 is all there is
        # r = e^2 and A = -1 are held at c = 3
        held = objective(2 * ones, zeros, -torch.ones(1), ones.bool(), dual_clip=3.0, **options)
        assert float(held.loss) == 3.0, name


def test_an_unknown_objective_is_refused():
    with pytest.raises(ValueError, match="expected objective as one of capo, dapo, gspo, dr_grpo, got 'ppo'"):
        RlConfig(objective="ppo")
