import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from capo.kl import KL_ESTIMATES, corrected_k3, k1, k2, k3

WHOLE = torch.ones(1, 3, dtype=torch.bool)
P, Q, SAMPLER = (torch.tensor([x], dtype=torch.float64) for x in ([0.5, 0.3, 0.2], [0.2, 0.2, 0.6], [0.1, 0.6, 0.3]))
KL = (P * (P / Q).log()).sum()


def test_by_hand():
    # l - q = log 2: k1 = log 2, k2 = log(2)^2 / 2, k3 = 1/2 + log 2 - 1
    ours, reference = torch.tensor([[0.5]]).log(), torch.tensor([[0.25]]).log()
    mask = torch.ones(1, 1, dtype=torch.bool)
    log2 = math.log(2)
    for estimate, expected in ((k1, log2), (k2, log2**2 / 2), (k3, log2 - 0.5)):
        torch.testing.assert_close(estimate(ours, reference, mask), torch.tensor([[expected]]))
    # sampled with probability 1/8, the policy gives 1/2: r = 4
    behaviour = torch.tensor([[0.125]]).log()
    torch.testing.assert_close(corrected_k3(ours, behaviour, reference, mask), torch.tensor([[4 * (log2 - 0.5)]]))


def test_k1_and_k3_are_unbiased_under_the_policy_and_corrected_k3_under_any_sampler():
    # exact expectations over three tokens
    for estimate in (k1, k3):
        torch.testing.assert_close((P * estimate(P.log(), Q.log(), WHOLE)).sum(), KL)
    torch.testing.assert_close((SAMPLER * corrected_k3(P.log(), SAMPLER.log(), Q.log(), WHOLE)).sum(), KL)
    assert abs(float((SAMPLER * k3(P.log(), Q.log(), WHOLE)).sum() - KL)) > 0.01


def test_gradients_in_expectation():
    # k2 has the KL's gradient under the policy's tokens, corrected k3 under any sampler's, and k1 has none.
    logits = P.log().clone().requires_grad_()

    def gradient(value):
        return torch.autograd.grad(value, logits)[0]

    logps = logits.log_softmax(-1)
    true = gradient((logps.exp() * (logps - Q.log())).sum())
    expected = {"k1": torch.zeros_like(P), "k2": true, "corrected": true}
    found = {
        "k1": gradient((P * k1(logits.log_softmax(-1), Q.log(), WHOLE)).sum()),
        "k2": gradient((P * k2(logits.log_softmax(-1), Q.log(), WHOLE)).sum()),
        "corrected": gradient((SAMPLER * corrected_k3(logits.log_softmax(-1), SAMPLER.log(), Q.log(), WHOLE)).sum()),
    }
    torch.testing.assert_close(found, expected)


@given(st.floats(-30, 30), st.floats(-30, 30))
def test_k3_is_never_negative_and_nothing_is_clamped(logp, reference):
    value = k3(
        *(torch.tensor([[x]], dtype=torch.float64) for x in (logp, reference)), torch.ones(1, 1, dtype=torch.bool)
    )
    # Where the two nearly agree, 1 is taken from a number that is 1 up to its last place.
    assert value >= -(2.0**-52)
    gap = reference - logp
    torch.testing.assert_close(float(value), math.expm1(gap) - gap, rtol=1e-9, atol=1e-12)


def test_every_estimate_by_name_by_hand():
    # policy 1/2, reference 1/4, sampled with probability 1/8: only the corrected one uses the ratio of 4
    logps, behaviour, reference = (torch.tensor([[x]]).log() for x in (0.5, 0.125, 0.25))
    mask, log2 = torch.ones(1, 1, dtype=torch.bool), math.log(2)
    expected = {"k1": log2, "k2": log2**2 / 2, "k3": log2 - 0.5, "corrected_k3": 4 * (log2 - 0.5)}
    found = {name: float(estimate(logps, behaviour, reference, mask)) for name, estimate in KL_ESTIMATES.items()}
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("name", list(KL_ESTIMATES))
def test_padding_is_zero_in_value_and_gradient(name):
    logps = torch.tensor([[-1.0, math.nan]], requires_grad=True)
    mask = torch.tensor([[True, False]])
    values = KL_ESTIMATES[name](logps, torch.tensor([[-2.0, math.nan]]), torch.tensor([[-1.5, math.inf]]), mask)
    values.sum().backward()
    assert values[0, 1] == 0 and logps.grad[0, 1] == 0 and logps.grad.isfinite().all()
