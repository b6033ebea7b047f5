"""Single steps of the trainer on a policy so small that every number can be computed in another way."""

import copy
import dataclasses
from contextlib import nullcontext

import pytest
import torch
from toy_policy import TextPrompt, ToyPolicy, make_rollout, record_gradients

from capo.config import OptimizerConfig, RlConfig
from capo.trainer import Trainer
from capo.types import Case

ONCE = RlConfig(inner_epochs=1, beta=0.0)
WIDE, NARROW = 0.9, 9e-7  # clip ranges: one clips nothing here, the other everything
SUPPRESSED = torch.arange(11) == 3
SAMPLING = {"temperature": 0.5, "suppressed": SUPPRESSED}
# Tokens of the reports of four studies, of unequal numbers and lengths.
REPORTS = [[[5, 2], [1, 7, 4, 2]], [[9, 0, 2]], [[6, 6, 8, 1, 2], [4, 2], [2]], [[10, 5, 1, 0], [8, 2]]]


def cases_of(policy, *, advantages, critical=(False,) * 4):
    """Reports "sampled" from the policy; prompts of 3, 4, ... tokens."""
    cases = []
    for number, (reports, values, flag) in enumerate(zip(REPORTS, advantages, critical, strict=False)):
        prompt = TextPrompt.of(f"study {number}", 3 + number, ahead=2, vocabulary=11)
        rollouts = tuple(make_rollout(policy, prompt, i, ids, **SAMPLING) for i, ids in enumerate(reports))
        cases.append(Case(prompt, rollouts, torch.tensor(values), flag, clip=NARROW if flag else WIDE))
    return cases


def trainer_of(policy, reference=None, **options):
    frozen = copy.deepcopy(policy if reference is None else reference).requires_grad_(False)
    return Trainer(policy, OptimizerConfig(**options), num_steps=9, reference=lambda: nullcontext(frozen))


def step_of(policy, cases, config=ONCE, *, reference=None, learning_rate=0.0):
    """Gradient of each update, and the metrics."""
    trainer = trainer_of(policy, reference)
    updates = record_gradients(trainer, learning_rate=learning_rate)
    return updates, trainer.capo_step(cases, config, **SAMPLING)


def terms_of(policy, cases):
    """Log-probabilities and entropies of each report, computed one report at a time from all logits."""
    for case in cases:
        for rollout, advantage in zip(case.rollouts, case.advantages, strict=True):
            every = policy.log_probabilities(case.prompt, rollout.response_ids, **SAMPLING)
            probabilities = every.exp()
            entropy = -(probabilities * every.masked_fill(SUPPRESSED, 0.0)).sum(1)
            yield every.gather(1, rollout.response_ids[:, None])[:, 0], entropy, advantage


def assert_gradients(found, loss, policy):
    wanted = torch.autograd.grad(loss, list(policy.parameters()))
    for (name, _), gradient in zip(policy.named_parameters(), wanted, strict=True):
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5)


ADVANTAGES = ([1.0, -0.5], [2.0], [0.3, -1.0, 0.6], [-0.8, 1.5])


def test_gradient_is_of_the_distribution_that_was_sampled_from():
    policy = ToyPolicy()
    cases = cases_of(policy, advantages=ADVANTAGES)
    (found,), row = step_of(policy, cases)
    terms = list(terms_of(policy, cases))
    # on-policy and without KL: each report is the mean of its tokens, and all eight count the same
    assert_gradients(found, -sum(advantage * logps.mean() for logps, _, advantage in terms) / 8, policy)
    entropies = torch.cat([entropy for _, entropy, _ in terms])
    assert row["entropy"] == pytest.approx(entropies.mean().item(), rel=1e-5)
    assert row["sampler_gap_max"] < 1e-5 and row["kl_before"] == 0.0
    assert row["tokens"] == 23 and row["reports"] == row["learning_reports"] == 8


def test_kl_is_that_of_the_policy_to_its_reference():
    policy, reference = ToyPolicy(), ToyPolicy()
    with torch.no_grad():
        reference.head += 0.1
        reference.head[::2] -= 0.3
    cases = cases_of(policy, advantages=[[0.0] * len(reports) for reports in REPORTS])
    config = dataclasses.replace(ONCE, beta=0.5)
    (found,), row = step_of(policy, cases, config, reference=reference)
    pairs = zip(terms_of(policy, cases), terms_of(reference, cases), strict=True)
    kls = [(other.detach() - logps).exp() - (other.detach() - logps) - 1 for (logps, *_), (other, *_) in pairs]
    assert_gradients(found, 0.5 * sum(kl.mean() for kl in kls) / 8, policy)
    assert row["kl_before"] == pytest.approx(torch.cat(kls).mean().item(), rel=1e-3)


@pytest.mark.parametrize("objective", ["capo", "dapo"])
def test_a_mini_batch_learns_what_a_step_on_its_cases_alone_would(objective):
    # Divided by the reports or tokens of all cases, two mini-batches would be steps of half the size.
    policy = ToyPolicy()
    cases = cases_of(policy, advantages=ADVANTAGES)
    config = dataclasses.replace(ONCE, objective=objective, mini_batches=2)
    halves, _ = step_of(policy, cases, config)
    for found, own in zip(halves, (cases[::2], cases[1::2]), strict=True):
        (wanted,), _ = step_of(policy, own, dataclasses.replace(config, mini_batches=1))
        for name, gradient in wanted.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-7)


def test_loss_and_gradient_norm_are_means_over_the_updates_of_a_step():
    policy = ToyPolicy()
    cases = cases_of(policy, advantages=([1.0, 2.0], [3.0], [4.0, 5.0, 6.0], [7.0, 8.0]))
    _, row = step_of(policy, cases, dataclasses.replace(ONCE, mini_batches=2))
    # Every ratio is 1: minus the mean advantage, of (1, 2, 4, 5, 6) and (3, 7, 8). The recorded norms are 1 and 2.
    assert row["loss"] == pytest.approx(-(3.6 + 6.0) / 2) and row["grad_norm"] == 1.5


TWICE = dataclasses.replace(ONCE, inner_epochs=2)


@pytest.mark.parametrize("critical", [True, False])
def test_only_a_critical_case_is_clipped_to_the_narrow_range(critical):
    policy = ToyPolicy()
    cases = cases_of(policy, advantages=([1.0, -1.0],), critical=(critical,))
    _, row = step_of(policy, cases, TWICE, learning_rate=1e-4)
    clipped = {name: value for name, value in row.items() if name.startswith("clip_") and value > 0}
    assert set(clipped) == ({"clip_low_critical", "clip_high_critical"} if critical else set())
    # Both passes count: of six tokens, those of the second pass can be clipped.
    assert sum(clipped.values()) <= 0.5


def test_each_case_keeps_its_own_range_in_a_batch_of_both_kinds():
    # The critical case has no advantage, the normal one a wide range: whoever confuses them clips something.
    policy = ToyPolicy()
    cases = cases_of(policy, advantages=([1.0, -1.0], [0.0], [0.0] * 3), critical=(False, True, True))
    (_, second), row = step_of(policy, cases, TWICE, learning_rate=1e-4)
    assert sum(value for name, value in row.items() if name.startswith("clip_")) == 0
    assert 0 < row["ratio_gap_max"] < 0.5 and second["head"].any()
    # tokens of kinds: 6 normal, 3 + 8 critical
    by_kind = row["kl_normal"] * 6 + row["kl_critical"] * 11
    assert by_kind == pytest.approx(row["kl"] * 17, rel=1e-4) and row["kl"] > 0


def test_a_clipped_report_does_not_move_the_policy_further():
    policy = ToyPolicy()
    prompt = TextPrompt.of("study", 3)
    report = make_rollout(policy, prompt, 0, [5], **SAMPLING)
    case = Case(prompt, (report,), torch.tensor([1.0]), critical=True, clip=NARROW)
    (first, second), row = step_of(policy, [case], TWICE, learning_rate=1e-4)
    assert row["clip_high_critical"] == 0.5  # its one token, in the second of two passes
    assert first["head"].any() and not any(gradient.any() for gradient in second.values())


def test_weight_decay_shrinks_matrices_and_no_vector():
    policy = ToyPolicy()
    before = {name: parameter.detach().clone() for name, parameter in policy.named_parameters()}
    trainer = trainer_of(policy, lr=0.1, weight_decay=0.5)
    trainer.step()  # no parameter has a gradient: only decay moves it, by 0.1 x 0.5
    for name, parameter in policy.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name] * (1.0 if name == "bias" else 0.95))


def test_gradients_are_scaled_to_the_largest_norm_before_the_update():
    policy = ToyPolicy()
    trainer = trainer_of(policy, max_grad_norm=0.25)
    (3.0 * policy.bias[0]).backward()
    assert trainer.step()["grad_norm"] == pytest.approx(3.0)  # as it was
    # Adam's first moment is a tenth of what it is given
    assert float(trainer.optimizer.state[policy.bias]["exp_avg"][0]) == pytest.approx(0.025, rel=1e-4)


def test_learning_rate_ends_at_its_final_share_and_stays_there():
    trainer = Trainer(ToyPolicy(), OptimizerConfig(lr=1.0, final_lr_share=0.2), num_steps=3)
    rates = []
    for _ in range(4):
        rates.append(trainer.learning_rate())
        trainer.num_updates += 1
    # 0.2 + 0.8 (1 + cos(pi k / 2)) / 2
    assert rates == pytest.approx([1.0, 0.6, 0.2, 0.2])


def test_fewer_studies_than_mini_batches_are_refused():
    policy = ToyPolicy()
    cases = cases_of(policy, advantages=([1.0, -1.0],))
    with pytest.raises(ValueError, match="expected at least 2 studies"):
        step_of(policy, cases, dataclasses.replace(ONCE, mini_batches=2))
