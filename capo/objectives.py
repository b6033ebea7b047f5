"""The objectives that a run can optimise, by name, each with the paper's clip range a case (eq. 9).

Every one is called alike: with a clip range eps_i for each report, with both counts of the optimiser step, of which it
takes the one it divides by, with the KL to the reference, and with the weights that correct for the sampler, if any.
What they compute is in `capo.loss`.

DAPO and GSPO clip further upwards than downwards. Their published pairs of ranges are kept as a factor of eps_i, so
that a critical case is clipped tighter on both sides by the same factor.
"""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from capo.loss import LossTerms, capo_loss, dapo_loss, gspo_loss

DAPO_UPPER = 0.28 / 0.2  # arXiv:2503.14476, section 4.1: 0.2 below, 0.28 above
GSPO_UPPER = 4e-4 / 3e-4  # arXiv:2507.18071, section 5.1: 3e-4 below, 4e-4 above


class Objective(Protocol):
    """A loss of a micro-batch whose gradients add up to those of the optimiser step, however it is split."""

    def __call__(
        self,
        logps: Tensor,
        behaviour_logps: Tensor,
        advantages: Tensor,
        mask: Tensor,
        *,
        clip: Tensor,
        num_reports: int,
        num_tokens: int,
        kl: Tensor,
        beta: float,
        weights: Tensor | None = None,
    ) -> LossTerms:
        """Loss and per-token terms.

        Args:
            logps, behaviour_logps, advantages, mask, kl, beta, weights: as in `capo.loss.policy_loss`.
            clip: [B] eps_i, from `capo.clipping.critical_clip`.
            num_reports: reports of the optimiser step, over all micro-batches and ranks.
            num_tokens: their tokens.
        """


def capo(
    logps: Tensor, behaviour_logps: Tensor, advantages: Tensor, mask: Tensor,
    *, clip: Tensor, num_reports: int, num_tokens: int, kl: Tensor, beta: float, weights: Tensor | None = None,
) -> LossTerms:  # fmt: skip
    """Token ratios in [1 - eps_i, 1 + eps_i], mean over reports of their token means; GRPO where all eps_i are equal.

    Source: the paper, eq. 8.
    """
    return capo_loss(
        logps, behaviour_logps, advantages, mask,
        clip=clip, num_reports=num_reports, kl=kl, beta=beta, weights=weights,
    )  # fmt: skip


def dapo(
    logps: Tensor, behaviour_logps: Tensor, advantages: Tensor, mask: Tensor,
    *, clip: Tensor, num_reports: int, num_tokens: int, kl: Tensor, beta: float, weights: Tensor | None = None,
) -> LossTerms:  # fmt: skip
    """Token ratios in [1 - eps_i, 1 + 1.4 eps_i], mean over the step's tokens.

    DAPO's clip-higher and token mean. Its dynamic sampling and overlong penalty choose and score reports, and are no
    part of the loss; it has no KL (beta 0).

    Source: DAPO, arXiv:2503.14476, eq. 8.
    """
    return dapo_loss(
        logps, behaviour_logps, advantages, mask,
        clip_low=clip, clip_high=DAPO_UPPER * clip, num_tokens=num_tokens, kl=kl, beta=beta, weights=weights,
    )  # fmt: skip


def gspo(
    logps: Tensor, behaviour_logps: Tensor, advantages: Tensor, mask: Tensor,
    *, clip: Tensor, num_reports: int, num_tokens: int, kl: Tensor, beta: float, weights: Tensor | None = None,
) -> LossTerms:  # fmt: skip
    """One ratio a report, in [1 - eps_i, 1 + 4/3 eps_i], mean over reports.

    Source: GSPO, arXiv:2507.18071, eq. 5 and 7.
    """
    return gspo_loss(
        logps, behaviour_logps, advantages, mask,
        clip_low=clip, clip_high=GSPO_UPPER * clip, num_reports=num_reports, kl=kl, beta=beta, weights=weights,
    )  # fmt: skip


OBJECTIVES: Mapping[str, Objective] = {"capo": capo, "dapo": dapo, "gspo": gspo}
