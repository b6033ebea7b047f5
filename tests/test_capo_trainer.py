"""The trainer on a real (tiny) Qwen2.5-VL: what a step does, and what it must not depend on."""

import copy
import dataclasses
from contextlib import nullcontext

import pytest
import torch
from toy_policy import record_gradients

from capo.checkpoint import Checkpoints
from capo.config import OptimizerConfig, RlConfig
from capo.packing import pack, report_logps
from capo.ranks import Ranks
from capo.rollout import Request, rollout
from capo.sampling import SamplingConfig, sample_seed
from capo.sft import sft_step
from capo.trainer import DivergedError, Trainer
from capo.types import Case
from radflow.pipeline.generation import build_prompt, suppressed_mask

FAST = OptimizerConfig(lr=1e-3, token_budget=100_000)
RL = RlConfig(inner_epochs=2, beta=0.05, optimizer=FAST)


@pytest.fixture
def cases(policy, processor, studies):
    wanted = [
        Request(build_prompt(processor, study), tuple(sample_seed(0, "t", 0, study.id, i) for i in range(4)))
        for study in studies[:4]
    ]
    groups: dict[str, list] = {}
    for report in rollout(
        policy,
        wanted,
        sampling=SamplingConfig(max_new_tokens=16),
        eos_id=processor.eos_id,
        suppressed=suppressed_mask(policy, processor),
    ):
        groups.setdefault(report.study_id, []).append(report)
    advantages = torch.tensor([-1.0, 0.5, 1.2, -0.7])
    return [
        Case(w.prompt, tuple(groups[w.prompt.study_id]), advantages, critical=number % 2 == 0, clip=0.2)
        for number, w in enumerate(wanted)
    ]


def make_trainer(policy, config=FAST, frozen_vision=False):
    frozen = copy.deepcopy(policy).requires_grad_(False)
    options = {"reference": lambda: nullcontext(frozen), "frozen_vision": frozen_vision}
    return Trainer(policy, config, num_steps=20, **options)


def capo_step(trainer, cases, processor, config=RL):
    narrow = config.eps_normal / config.tightening
    cases = [dataclasses.replace(case, clip=narrow if case.critical else config.eps_normal) for case in cases]
    return trainer.capo_step(cases, config, temperature=1.0, suppressed=suppressed_mask(trainer.policy, processor))


def test_kl_is_exactly_zero_before_the_first_update_and_both_clips_act_later(policy, processor, cases):
    trainer = make_trainer(policy)
    first = capo_step(trainer, cases, processor)
    assert first["kl_before"] == 0.0
    # the sampler's path and the training path differ by float32 round-off only
    assert 0 < first["sampler_gap_mean"] < 1e-5 and first["sampler_gap_max"] < 1e-4
    assert first["clip_low_critical"] + first["clip_high_critical"] > 0
    assert capo_step(trainer, cases, processor)["kl_before"] > 0


def test_with_one_update_a_batch_the_clip_range_has_no_effect(policy, processor, cases):
    results = []
    for tightening in (1.0, 4.0):
        mine = copy.deepcopy(policy)
        config = dataclasses.replace(RL, inner_epochs=1, tightening=tightening)
        row = capo_step(make_trainer(mine), cases, processor, config)
        assert row["ratio_gap_max"] < 1e-5
        results.append(mine.output_weight().detach().clone())
    assert torch.equal(*results)


def test_every_mini_batch_is_measured_against_the_policy_that_sampled(policy, processor, cases):
    config = dataclasses.replace(RL, inner_epochs=1, mini_batches=2)
    row = capo_step(make_trainer(policy), cases, processor, config)
    # The second mini-batch meets a policy that has moved, and its behaviour is that of before: the reference here.
    assert row["kl_before"] == 0.0 and row["ratio_gap_max"] > 1e-3


@pytest.mark.parametrize("frozen_vision", [True, False])
def test_update_does_not_depend_on_how_the_step_is_split(policy, processor, cases, frozen_vision):
    # SGD-like comparison on the accumulated gradient: Adam would magnify round-off of near-zero gradients
    gradients = []
    apart = [
        dataclasses.replace(case, rollouts=(rollout,), advantages=advantage[None])
        for case in cases
        for rollout, advantage in zip(case.rollouts, case.advantages, strict=True)
    ]
    for budget, split in ((100_000, cases), (300, cases), (100_000, apart)):
        mine = copy.deepcopy(policy)
        if frozen_vision:
            mine.model.model.visual.requires_grad_(False)
        trainer = make_trainer(mine, dataclasses.replace(FAST, token_budget=budget), frozen_vision)
        updates = record_gradients(trainer)
        capo_step(trainer, split, processor, dataclasses.replace(RL, inner_epochs=1))
        gradients += updates
    one, *others = gradients
    for other in others:
        assert one.keys() == other.keys() and one
        for name, gradient in one.items():
            assert (gradient - other[name]).abs().max() <= 1e-4 * gradient.abs().max() + 1e-9, name


def gradients_of(policy, cases, processor, config, budget=100_000):
    """Gradient of each update, and the metrics of the step."""
    trainer = make_trainer(policy, dataclasses.replace(FAST, token_budget=budget))
    updates = record_gradients(trainer, learning_rate=0.3)
    return updates, capo_step(trainer, cases, processor, config)


@pytest.mark.parametrize("objective", ["dapo", "gspo"])
def test_no_objective_depends_on_how_the_step_is_split_even_off_policy(policy, processor, cases, objective):
    # reports of unequal lengths, so that a mean over a micro-batch's own tokens would show
    ragged = [
        dataclasses.replace(c, rollouts=tuple(cut(r, 2 + 4 * n + i) for i, r in enumerate(c.rollouts)))
        for n, c in enumerate(cases)
    ]
    config = dataclasses.replace(RL, objective=objective, eps_normal=3e-4 if objective == "gspo" else 0.02)
    (_, whole), row = gradients_of(copy.deepcopy(policy), ragged, processor, config)
    (_, split), other = gradients_of(copy.deepcopy(policy), ragged, processor, config, budget=300)
    clipped = [metrics["clip_low_critical"] + metrics["clip_high_critical"] for metrics in (row, other)]
    assert clipped[0] == clipped[1] > 0
    for name, gradient in whole.items():
        assert (gradient - split[name]).norm() <= 1e-4 * gradient.norm() + 1e-7, name


def cut(report, length):
    return dataclasses.replace(
        report, response_ids=report.response_ids[:length], behaviour_logps=report.behaviour_logps[:length]
    )


def test_dapo_on_policy_is_the_token_mean_of_advantage_weighted_log_probabilities(policy, processor, cases):
    ragged = [dataclasses.replace(c, rollouts=tuple(cut(r, 2 + n) for r in c.rollouts)) for n, c in enumerate(cases)]
    config = dataclasses.replace(RL, objective="dapo", beta=0.0, inner_epochs=1)
    layout = pack([c.prompt for c in ragged], [[r.response_ids for r in c.rollouts] for c in ragged])
    logps, _ = report_logps(policy, layout, suppressed=suppressed_mask(policy, processor))
    advantages = torch.cat([c.advantages for c in ragged])
    # 4 reports each of 2, 3, 4 and 5 tokens; the log-probabilities of pads are 0
    wanted = torch.autograd.grad(-(logps * advantages[:, None]).sum() / 56, policy.output_weight())[0]
    ((found,), _) = gradients_of(policy, ragged, processor, config)
    name = next(n for n, p in policy.named_parameters() if p is policy.output_weight())
    torch.testing.assert_close(found[name], wanted, rtol=1e-3, atol=1e-6)


def with_sampled(cases, logps, mask):
    """The cases as a sampler would have given them that computed [R, T] of these log-probabilities."""
    rows = iter([row[tokens] for row, tokens in zip(logps.detach(), mask, strict=True)])
    return [
        dataclasses.replace(c, rollouts=tuple(dataclasses.replace(r, behaviour_logps=next(rows)) for r in c.rollouts))
        for c in cases
    ]


@pytest.mark.parametrize("level", ["token", "report"])
def test_sampler_correction_weighs_the_gradient_by_the_trainers_over_the_samplers_probability(
    policy, processor, cases, level
):
    ragged = [dataclasses.replace(c, rollouts=tuple(cut(r, 2 + n) for r in c.rollouts)) for n, c in enumerate(cases)]
    layout = pack([c.prompt for c in ragged], [[r.response_ids for r in c.rollouts] for c in ragged])
    logps, _ = report_logps(policy, layout, suppressed=suppressed_mask(policy, processor))
    lengths = layout.mask.sum(1, keepdim=True)
    noise = torch.randn(logps.shape, generator=torch.Generator().manual_seed(0)) * layout.mask
    off = dataclasses.replace(RL, beta=0.0, inner_epochs=1)
    config = dataclasses.replace(off, sampler_correction=level, sampler_cap=1.5)
    # sampled = trained - noise, so the ratio is exp(noise); GRPO on-policy is the mean over 16 reports of token means
    ratios = noise.exp() if level == "token" else noise.sum(1, keepdim=True).exp().expand_as(noise)
    weights, advantages = ratios.clamp(max=1.5), torch.cat([c.advantages for c in ragged])[:, None]
    weight = policy.output_weight()
    wanted = torch.autograd.grad(-(logps * weights * advantages / lengths).sum() / 16, weight)[0]
    name = next(n for n, p in policy.named_parameters() if p is weight)

    perturbed = with_sampled(ragged, logps - noise, layout.mask)
    (found, *_), row = gradients_of(policy, perturbed, processor, config)
    torch.testing.assert_close(found[name], wanted, rtol=1e-3, atol=1e-6)
    counted = layout.mask if level == "token" else layout.mask[:, :1]
    assert row["sampler_gap_mean"] == pytest.approx(float(noise.abs().sum() / layout.mask.sum()), rel=1e-4)
    assert row["sampler_gap_max"] == pytest.approx(float(noise.abs().max()), rel=1e-4)
    assert row["sampler_weight_mean"] == pytest.approx(float(weights[:, : counted.shape[1]][counted].mean()), rel=1e-4)
    assert row["sampler_weight_capped"] == pytest.approx(
        float((ratios > 1.5)[:, : counted.shape[1]][counted].float().mean())
    )


@pytest.mark.parametrize("level", ["token", "report"])
def test_sampler_correction_changes_no_bit_where_sampler_and_trainer_agree(policy, processor, cases, level):
    few = cases[:2]
    layout = pack([c.prompt for c in few], [[r.response_ids for r in c.rollouts] for c in few])
    logps, _ = report_logps(policy, layout, suppressed=suppressed_mask(policy, processor))
    agreed = with_sampled(few, logps, layout.mask)
    updates = []
    for correction in ("off", level):
        config = dataclasses.replace(RL, sampler_correction=correction)
        gradients, row = gradients_of(copy.deepcopy(policy), agreed, processor, config)
        updates.append(gradients)
    assert (row["sampler_gap_max"], row["sampler_weight_mean"], row["sampler_weight_capped"]) == (0.0, 1.0, 0.0)
    for plain, corrected in zip(*updates, strict=True):
        assert all(torch.equal(gradient, corrected[name]) for name, gradient in plain.items())


def test_two_plus_two_steps_equal_four_bit_for_bit(policy, processor, cases, tmp_path):
    straight = copy.deepcopy(policy)
    trainer = make_trainer(straight)
    for _ in range(4):
        capo_step(trainer, cases, processor)
    first = make_trainer(copy.deepcopy(policy))
    for _ in range(2):
        capo_step(first, cases, processor)
    saved = Checkpoints(tmp_path, Ranks(), identity={})
    saved.save(2, *first.state())
    saved.finish()
    resumed = make_trainer(copy.deepcopy(policy))
    resumed.restore(Checkpoints(tmp_path, Ranks(), identity={}).load(resumed.state()[0]))
    for _ in range(2):
        capo_step(resumed, cases, processor)
    for (name, a), b in zip(straight.named_parameters(), resumed.policy.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_rewarded_reports_become_likelier(policy, processor, cases):
    # every report of the first half of the samples is good, the other half bad
    pushed = [dataclasses.replace(c, advantages=torch.tensor([1.0, 1.0, -1.0, -1.0])) for c in cases]
    trainer = make_trainer(policy)
    layout = pack([c.prompt for c in pushed], [[r.response_ids for r in c.rollouts] for c in pushed])
    advantages = torch.cat([c.advantages for c in pushed])

    def margin():
        with torch.no_grad():
            return float((report_logps(policy, layout)[0].sum(1) * advantages).mean())

    before = margin()
    for _ in range(3):
        capo_step(trainer, pushed, processor)
    assert margin() > before + 1.0


def test_sft_lowers_the_loss_and_counts_tokens(policy, processor, studies):
    trainer = Trainer(policy, FAST, num_steps=20)
    prompts = [build_prompt(processor, s) for s in studies[:4]]
    reports = [processor.encode_report(s.report) for s in studies[:4]]
    rows = [sft_step(trainer, prompts, reports) for _ in range(8)]
    assert rows[0]["tokens"] == sum(map(len, reports))
    # an untrained model is near uniform over its vocabulary
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.5


def test_gradient_that_is_not_finite_is_dropped_and_counted(policy):
    trainer = Trainer(policy, FAST, num_steps=2)
    before = policy.output_weight().detach().clone()
    (policy.output_weight().sum() * float("nan")).backward()
    assert trainer.step()["updates_skipped"] == 1
    assert torch.equal(policy.output_weight(), before)


def test_learning_rate_warms_up_and_decays_by_hand(policy):
    trainer = Trainer(policy, OptimizerConfig(lr=1.0, warmup_steps=2, final_lr_share=0.0), num_steps=6)
    rates = []
    for _ in range(7):
        rates.append(trainer.learning_rate())
        trainer.num_updates += 1
    # warm-up 1/2, 1; then (1 + cos(pi k / 3)) / 2 for k = 0..3: the sixth step, the last, has the final rate
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.75, 0.25, 0.0, 0.0])


def test_bad_gradients_in_a_row_end_the_run_with_a_diagnosis(policy):
    trainer = Trainer(policy, OptimizerConfig(max_bad_updates=3), num_steps=9)

    def update(factor):
        (policy.output_weight().sum() * factor).backward()
        return trainer.step()

    for factor in (float("nan"), float("nan"), 1.0, float("inf"), float("nan")):
        update(factor)
    with pytest.raises(DivergedError, match="3 updates in a row had a gradient that is not finite"):
        update(float("nan"))
    assert trainer.num_skipped == 5


@pytest.mark.parametrize("level", ["off", "token", "report"])
def test_a_sampler_that_gives_no_log_probabilities_leaves_the_loss_finite_and_uncorrected(
    policy, processor, cases, level
):
    few = cases[:2]
    layout = pack([c.prompt for c in few], [[r.response_ids for r in c.rollouts] for c in few])
    unknown = with_sampled(few, torch.full(layout.mask.shape, float("nan")), layout.mask)
    plain, _ = gradients_of(copy.deepcopy(policy), few, processor, RL)
    found, row = gradients_of(policy, unknown, processor, dataclasses.replace(RL, sampler_correction=level))
    assert row["sampler_gap_mean"] is None and row.get("sampler_weight_mean", 1.0) == 1.0
    assert all(torch.equal(gradient, found[0][name]) for name, gradient in plain[0].items())
