"""KL(policy || reference): estimates from log-probabilities of sampled tokens.

Every estimator gives [B, T], 0 outside the mask, in the notation l policy, q reference, log-probabilities of the same
temperature-scaled distribution with the same tokens suppressed. Pass the result to a loss as `kl`.

Source of k1 to k3: Schulman, "Approximating KL divergence", 2020.
"""

from collections.abc import Callable, Mapping

from torch import Tensor

from capo.loss import log_ratio, token_ratio


def k1(logps: Tensor, reference_logps: Tensor, mask: Tensor) -> Tensor:
    """l - q: unbiased, of either sign. As a loss term its gradient is 0 in expectation: use it in the reward."""
    return log_ratio(logps, reference_logps, mask)


def k2(logps: Tensor, reference_logps: Tensor, mask: Tensor) -> Tensor:
    """(l - q)^2 / 2: biased, but its gradient is unbiased for the KL's when the tokens are the policy's own."""
    return log_ratio(logps, reference_logps, mask).square() / 2


def k3(logps: Tensor, reference_logps: Tensor, mask: Tensor) -> Tensor:
    """exp(q - l) - (q - l) - 1: unbiased, never negative, 0 where the two agree.

    No clamp, and not multiplied by the importance ratio: the form of the paper and of GRPO (arXiv:2402.03300, eq. 4).
    """
    difference = -log_ratio(logps, reference_logps, mask)
    return difference.exp() - difference - 1


def corrected_k3(logps: Tensor, behaviour_logps: Tensor, reference_logps: Tensor, mask: Tensor) -> Tensor:
    """k3 times the importance ratio r of the token: unbiased off-policy too, and in its gradient.

    The ratio is not detached: d(r k3)/dl = r (k3 + 1 - exp(q - l)) = r (l - q), whose mean is the KL's gradient.

    Source: DeepSeek-V3.2, arXiv:2512.02556, section 3.1.
    """
    return token_ratio(logps, behaviour_logps, mask) * k3(logps, reference_logps, mask)


# By name, with the same arguments: logps, behaviour_logps, reference_logps and mask, [B, T] each -> [B, T].
KL_ESTIMATES: Mapping[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "k1": lambda logps, behaviour_logps, reference_logps, mask: k1(logps, reference_logps, mask),
    "k2": lambda logps, behaviour_logps, reference_logps, mask: k2(logps, reference_logps, mask),
    "k3": lambda logps, behaviour_logps, reference_logps, mask: k3(logps, reference_logps, mask),
    "corrected_k3": corrected_k3,
}
