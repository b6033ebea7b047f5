"""Loss and gradient against TRL, verl and Liger on the same random tensors in float64 (`make test-peers`)."""

import dataclasses
import math
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from liger_kernel.chunked_loss.grpo_loss import LigerFusedLinearGRPOFunction
from trl import GRPOConfig, GRPOTrainer
from verl.trainer.config.algorithm import RolloutCorrectionConfig
from verl.trainer.ppo.core_algos import agg_loss, compute_policy_loss_vanilla, get_policy_loss_fn, kl_penalty
from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_weights
from verl.workers.config import ActorConfig

from capo.config import RlConfig
from capo.kl import corrected_k3, k1, k2, k3
from capo.loss import capo_loss, dapo_loss, dr_grpo_loss, grpo_loss, gspo_loss, sampler_weights

REPORTS, TOKENS = 6, 9
CRITICAL = torch.tensor([True, False, True, False, False, True])
PER_CASE = torch.where(CRITICAL, torch.tensor(0.05, dtype=torch.float64), 0.2)
PER_CASE_HIGH = torch.where(CRITICAL, torch.tensor(0.07, dtype=torch.float64), 0.28)
EXACT = {"rtol": 1e-10, "atol": 1e-14}  # 1e-14: gradients that are 0 in one and a rounding of 0 in the other


class Batch:
    """Reports of 1 to 9 tokens with ratios far on both sides of every range used here."""

    def __init__(self, seed, spread=0.5):
        generator = torch.Generator().manual_seed(seed)
        draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
        self.behaviour = -draw(REPORTS, TOKENS).abs() - 0.1
        self.logps = (self.behaviour + spread * draw(REPORTS, TOKENS)).requires_grad_()
        self.reference = self.behaviour + 0.3 * draw(REPORTS, TOKENS)
        self.advantages = draw(REPORTS)
        self.weights = None  # of TRL, verl or Liger, where a test sets it
        lengths = torch.randint(1, TOKENS + 1, (REPORTS,), generator=generator)
        self.mask = torch.arange(TOKENS) < lengths[:, None]
        self.args = (self.logps, self.behaviour, self.advantages, self.mask)
        self.tokens = int(self.mask.sum())


def column(eps):
    return eps.reshape(-1, 1) if isinstance(eps, torch.Tensor) else eps


def trl_loss(batch, loss_type, low, high, *, level="token", beta=0.0, delta=None, corrected=False, max_tokens=TOKENS):
    accelerator = SimpleNamespace(num_processes=1, gather=lambda x: x, reduce=lambda x, reduction=None: x)
    stub = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *a, **k: (batch.logps, torch.zeros_like(batch.behaviour), None),
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level=level,
        beta=beta,
        loss_type=loss_type,
        epsilon_low=column(low),
        epsilon_high=column(high),
        use_vllm=batch.weights is not None,
        vllm_importance_sampling_correction=True,
        max_completion_length=max_tokens,
        current_gradient_accumulation_steps=1,
        model=SimpleNamespace(training=True),
        args=SimpleNamespace(delta=delta, use_bias_correction_kl=corrected, steps_per_generation=1),
        accelerator=accelerator,
        _entropy_bonus_enabled=False,
        aux_loss_enabled=False,
        _metrics={"train": defaultdict(list), "eval": defaultdict(list)},
    )
    ids = torch.zeros(REPORTS, TOKENS, dtype=torch.int64)
    inputs = {
        "prompt_ids": ids[:, :1],
        "prompt_mask": torch.ones_like(ids[:, :1]),
        "completion_ids": ids,
        "completion_mask": batch.mask.long(),
        "advantages": batch.advantages,
        "old_per_token_logps": batch.behaviour,
        "ref_per_token_logps": batch.reference,
        "num_items_in_batch": batch.mask.sum(),
        "importance_sampling_ratio": batch.weights,
    }
    return GRPOTrainer._compute_loss(stub, None, inputs)


def liger_loss(batch, loss_type, low, high, *, level="token", beta=0.0, delta=None, corrected=False, max_tokens=TOKENS):
    loss, _ = LigerFusedLinearGRPOFunction.ppo_loss_fn(
        batch.logps,
        batch.mask.double(),
        batch.advantages,
        batch.mask.double(),
        ref_per_token_logps=batch.reference,
        old_per_token_logps=batch.behaviour,
        epsilon_low=column(low),
        epsilon_high=column(high),
        beta=beta,
        loss_type=loss_type,
        max_completion_length=max_tokens,
        importance_sampling_level=level,
        delta=delta,
        use_bias_correction_kl=corrected,
        vllm_is_ratio=batch.weights,
    )
    return loss


# verl's names of the aggregations; its denominators are those of the micro-batch unless it is told the step's.
VERL_MODES = {"grpo": "seq-mean-token-mean", "dapo": "token-mean", "dr_grpo": "seq-mean-token-sum-norm"}


def verl_loss(batch, loss_type, low, high, *, level="token", beta=0.0, delta=None, max_tokens=TOKENS):
    config = ActorConfig(
        strategy="fsdp",
        clip_ratio=0.2,
        clip_ratio_low=0.2,
        clip_ratio_high=0.2,
        clip_ratio_c=delta or 1e9,
        ppo_micro_batch_size_per_gpu=1,
        rollout_n=1,
    )
    object.__setattr__(config, "clip_ratio_low", column(low))
    object.__setattr__(config, "clip_ratio_high", column(high))
    config.global_batch_info["loss_scale_factor"] = max_tokens
    mask, mode = batch.mask.double(), VERL_MODES[loss_type]
    policy_loss = compute_policy_loss_vanilla if level == "token" else get_policy_loss_fn("gspo")
    # verl divides by a report's tokens + 1e-8. Numerators larger by the same factor leave the rest to compare exactly.
    lengths = mask.sum(-1, keepdim=True)
    undo = (lengths + 1e-8) / lengths.clamp(min=1) if loss_type == "grpo" else torch.ones_like(lengths)
    advantages = batch.advantages if batch.advantages.ndim == 2 else batch.advantages[:, None].expand(REPORTS, TOKENS)
    loss, _ = policy_loss(
        old_log_prob=batch.behaviour,
        log_prob=batch.logps,
        advantages=advantages * undo,
        response_mask=mask,
        loss_agg_mode=mode,
        config=config,
        rollout_is_weights=batch.weights,
    )
    if beta:
        divergence = kl_penalty(batch.logps, batch.reference, "low_var_kl")
        loss = loss + beta * agg_loss(divergence * undo, mask, mode, loss_scale_factor=max_tokens)
    return loss


def agree(batch, ours, theirs):
    mine = torch.autograd.grad(ours.loss, batch.logps)[0]
    other = torch.autograd.grad(theirs, batch.logps)[0]
    torch.testing.assert_close(theirs.reshape(()), ours.loss, **EXACT)
    torch.testing.assert_close(torch.where(batch.mask, other, 0.0), mine, **EXACT)


PEERS = {"trl": trl_loss, "liger": liger_loss, "verl": verl_loss}
every_peer = pytest.mark.parametrize("peer", list(PEERS))
every_seed = pytest.mark.parametrize("seed", range(5))
every_range = pytest.mark.parametrize(
    ("low", "high"), [(0.2, 0.2), (0.2, 0.28), (PER_CASE, PER_CASE), (PER_CASE, PER_CASE_HIGH)]
)


@every_peer
@every_seed
@every_range
def test_capo(peer, seed, low, high):
    batch = Batch(seed)
    ours = capo_loss(*batch.args, clip=low, clip_high=high, num_reports=REPORTS)
    assert ours.clipped_low.any() and ours.clipped_high.any()
    agree(batch, ours, PEERS[peer](batch, "grpo", low, high))


@every_peer
@every_seed
def test_grpo_with_k3(peer, seed):
    batch = Batch(seed)
    ours = grpo_loss(*batch.args, num_reports=REPORTS, kl=k3(batch.logps, batch.reference, batch.mask), beta=0.04)
    agree(batch, ours, PEERS[peer](batch, "grpo", 0.2, 0.2, beta=0.04))


@every_peer
@every_seed
@every_range
def test_dapo(peer, seed, low, high):
    batch = Batch(seed)
    ours = dapo_loss(*batch.args, num_tokens=batch.tokens, clip_low=low, clip_high=high)
    agree(batch, ours, PEERS[peer](batch, "dapo", low, high))


@every_peer
@every_seed
@every_range
def test_gspo(peer, seed, low, high):
    batch = Batch(seed)
    ours = gspo_loss(*batch.args, num_reports=REPORTS, clip_low=low, clip_high=high)
    theirs = PEERS[peer](batch, "grpo", low, high, level="sequence")
    agree(batch, ours, theirs)


@every_peer
@every_seed
@pytest.mark.parametrize("eps", [0.2, PER_CASE])
def test_dr_grpo(peer, seed, eps):
    batch = Batch(seed)
    ours = dr_grpo_loss(*batch.args, num_reports=REPORTS, max_tokens=32, clip=eps)
    agree(batch, ours, PEERS[peer](batch, "dr_grpo", eps, eps, max_tokens=32))


@every_peer
@every_seed
def test_dual_clip(peer, seed):
    batch = Batch(seed, spread=2.0)
    assert ((batch.logps - batch.behaviour).exp() > 3.0)[batch.mask].any()
    ours = capo_loss(*batch.args, clip=PER_CASE, num_reports=REPORTS, dual_clip=3.0)
    agree(batch, ours, PEERS[peer](batch, "grpo", PER_CASE, PER_CASE, delta=3.0))


@pytest.mark.parametrize("peer", ["trl", "verl"])  # Liger takes one per report
@every_seed
@pytest.mark.parametrize("name", ["capo", "dapo", "gspo", "dr_grpo"])
def test_advantages_per_token(peer, seed, name):
    batch = Batch(seed, spread=2.0)
    draws = torch.randn(REPORTS, TOKENS, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    batch.advantages = batch.advantages[:, None] + 2 * draws * (torch.arange(TOKENS) >= 4)  # a section paid on its own
    args = (batch.logps, batch.behaviour, batch.advantages, batch.mask)
    loss, options, (loss_type, changed) = {
        "capo": (capo_loss, {"clip": PER_CASE, "num_reports": REPORTS}, ("grpo", {})),
        "dapo": (dapo_loss, {"num_tokens": batch.tokens, "clip_low": PER_CASE, "clip_high": PER_CASE}, ("dapo", {})),
        "gspo": (
            gspo_loss,
            {"num_reports": REPORTS, "clip_low": PER_CASE, "clip_high": PER_CASE},
            ("grpo", {"level": "sequence"}),
        ),
        "dr_grpo": (
            dr_grpo_loss,
            {"num_reports": REPORTS, "max_tokens": 32, "clip": PER_CASE},
            ("dr_grpo", {"max_tokens": 32}),
        ),
    }[name]
    ours, theirs = loss(*args, **options), PEERS[peer](batch, loss_type, PER_CASE, PER_CASE, **changed)
    if (peer, name) != ("verl", "gspo"):
        return agree(batch, ours, theirs)
    # The value agrees; verl's gradient is GSPO-token's (arXiv:2507.18071, section 4.3), by each token's own advantage.
    torch.testing.assert_close(theirs, ours.loss, **EXACT)


def peers_weights(peer, behaviour, sampled, mask, level):
    """Weights as verl's function gives them; for the others as TRL forms them in `_generate_and_score_completions`."""
    difference = behaviour - sampled
    if peer == "verl":
        name = {"token": "token", "report": "sequence"}[level]
        return compute_rollout_correction_weights(difference, mask.double(), name, rollout_is_threshold=1.5)[0]
    difference = difference * mask
    if level == "report":
        difference = difference.sum(dim=-1, keepdim=True)
    return torch.clamp(torch.exp(difference), min=None, max=1.5)


@every_peer
@every_seed
@pytest.mark.parametrize("level", ["token", "report"])
@pytest.mark.parametrize("name", ["capo", "grpo with k3", "dapo", "gspo", "dr_grpo"])
def test_weights_between_sampler_and_trainer(peer, seed, level, name):
    batch = Batch(seed)
    sampled = batch.behaviour + 0.5 * torch.randn(
        REPORTS, TOKENS, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    weights = sampler_weights(batch.behaviour, sampled, batch.mask, level=level, cap=1.5)
    assert (weights == 1.5).any() and (weights < 1).any()
    batch.weights = peers_weights(peer, batch.behaviour, sampled, batch.mask, level)
    theirs = batch.weights.expand(REPORTS, TOKENS)
    torch.testing.assert_close(theirs[batch.mask], weights[batch.mask], **EXACT)
    divergence = k3(batch.logps, batch.reference, batch.mask)
    loss, options = {
        "capo": (capo_loss, {"clip": PER_CASE, "num_reports": REPORTS}),
        "grpo with k3": (grpo_loss, {"num_reports": REPORTS, "kl": divergence, "beta": 0.04}),
        "dapo": (dapo_loss, {"num_tokens": batch.tokens, "clip_high": 0.28}),
        "gspo": (gspo_loss, {"num_reports": REPORTS, "clip_low": 0.2, "clip_high": 0.2}),
        "dr_grpo": (dr_grpo_loss, {"num_reports": REPORTS, "max_tokens": 32}),
    }[name]
    loss_type, low, high, changed = {
        "capo": ("grpo", PER_CASE, PER_CASE, {}),
        "grpo with k3": ("grpo", 0.2, 0.2, {"beta": 0.04}),
        "dapo": ("dapo", 0.2, 0.28, {}),
        "gspo": ("grpo", 0.2, 0.2, {"level": "sequence"}),
        "dr_grpo": ("dr_grpo", 0.2, 0.2, {"max_tokens": 32}),
    }[name]
    ours = loss(*batch.args, **options, weights=weights)
    theirs = PEERS[peer](batch, loss_type, low, high, **changed)
    if (peer, name, level) != ("verl", "gspo", "token"):
        return agree(batch, ours, theirs)
    # docs/peers.md: the value agrees. Here and in TRL each token of a report gets the mean of its tokens' weights,
    # in verl its own weight.
    torch.testing.assert_close(theirs, ours.loss, **EXACT)
    gradients = [torch.autograd.grad(x, batch.logps)[0] for x in (ours.loss, theirs)]
    mean = torch.where(batch.mask, weights, 0.0).sum(1, keepdim=True) / batch.mask.sum(1, keepdim=True)
    torch.testing.assert_close(*[g * w for g, w in zip(gradients, (weights, mean), strict=True)], **EXACT)


@pytest.mark.parametrize("peer", ["trl", "liger"])  # verl has no such form
@every_seed
def test_bias_corrected_kl(peer, seed):
    batch = Batch(seed)
    kl = corrected_k3(batch.logps, batch.behaviour, batch.reference, batch.mask)
    ours = capo_loss(*batch.args, clip=0.2, num_reports=REPORTS, kl=kl, beta=0.04)
    agree(batch, ours, PEERS[peer](batch, "grpo", 0.2, 0.2, beta=0.04, corrected=True))


@every_seed
@pytest.mark.parametrize(("ours", "theirs"), [(k1, "kl"), (k2, "mse"), (k3, "low_var_kl")])
def test_kl_estimators_equal_verls(seed, ours, theirs):
    batch = Batch(seed)
    expected = torch.where(batch.mask, kl_penalty(batch.logps, batch.reference, theirs), 0.0)
    torch.testing.assert_close(ours(batch.logps, batch.reference, batch.mask), expected, **EXACT)


def test_where_peers_differ_on_reports_without_tokens():
    # docs/peers.md states these: TRL and we count an empty report among the reports, verl does not.
    batch = Batch(0)
    batch.mask[2] = False
    ours = grpo_loss(*batch.args, num_reports=REPORTS)
    agree(batch, ours, trl_loss(batch, "grpo", 0.2, 0.2))
    without = grpo_loss(*batch.args, num_reports=REPORTS - 1)
    agree(batch, without, verl_loss(batch, "grpo", 0.2, 0.2))
    batch.mask[:] = False
    assert grpo_loss(*batch.args, num_reports=REPORTS).loss == 0
    assert trl_loss(batch, "grpo", 0.2, 0.2) == 0
    assert verl_loss(batch, "grpo", 0.2, 0.2).isnan()


def test_where_peers_differ_on_nan_in_padding():
    batch = Batch(0)
    with torch.no_grad():
        batch.logps[~batch.mask] = torch.nan
    assert grpo_loss(*batch.args, num_reports=REPORTS).loss.isfinite()
    assert trl_loss(batch, "grpo", 0.2, 0.2).isnan() and liger_loss(batch, "grpo", 0.2, 0.2).isnan()


def test_where_the_defaults_of_the_peers_truncate_sampler_weights():
    # docs/peers.md: 3 here and in TRL, 2 in verl
    fields = {field.name: field.default for field in dataclasses.fields(GRPOConfig)}
    assert RlConfig().sampler_cap == fields["vllm_importance_sampling_clip_max"] == 3
    assert RolloutCorrectionConfig().rollout_is_threshold == 2


def test_where_verl_and_we_treat_extreme_and_missing_log_probabilities_of_the_sampler_alike():
    # docs/peers.md: log-ratios are held at -20, and NaN stays NaN
    behaviour, sampled = torch.tensor([[-30.0, -1.0]]), torch.tensor([[0.0, torch.nan]])
    mask = torch.ones(1, 2, dtype=torch.bool)
    ours = sampler_weights(behaviour, sampled, mask, level="token", cap=1.5)
    assert float(ours[0, 0]) == pytest.approx(math.exp(-20)) and ours[0, 1].isnan()
    torch.testing.assert_close(peers_weights("verl", behaviour, sampled, mask, "token").float(), ours, equal_nan=True)


def test_where_verl_clamps_k3():
    # q - l = 5: k3 = e^5 - 6 = 142.41, verl returns 10
    logps, reference, mask = torch.zeros(1, 1), torch.full((1, 1), 5.0), torch.ones(1, 1, dtype=torch.bool)
    assert float(k3(logps, reference, mask)) == pytest.approx(142.413, abs=1e-3)
    assert float(kl_penalty(logps, reference, "low_var_kl")) == 10.0
