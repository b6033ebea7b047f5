"""Steps of the trainer on groups with edited copies, with masked reports, and with what a run can choose."""

import dataclasses

import pytest
import torch
from test_capo_trainer_steps import ADVANTAGES, ONCE, SAMPLING, TWICE, assert_gradients, cases_of, step_of, terms_of
from test_capo_trainer_steps import trainer_of as make_trainer
from toy_policy import ToyPolicy, record_gradients

from capo.config import OptimizerConfig
from capo.fsdp import build_mesh, shard
from capo.kl import corrected_k3, k1, k2, k3
from capo.loss import OBJECTIVES
from capo.packing import pack, report_logps
from capo.ranks import Ranks
from capo.trainer import Trainer
from capo.types import Rollout

COPY = [4, 7, 1, 2]  # tokens of the copies; the sampled reports of these studies are others


def with_copies(cases, advantages, *, ids=COPY, placeholder=0.0):
    """The cases with one copy more per given advantage, made of the first report of its case."""
    changed = list(cases)
    for number, advantage in advantages.items():
        case, tokens = cases[number], torch.tensor(ids)
        logps = torch.full((len(tokens),), placeholder)
        copy = Rollout(case.prompt.study_id, 0, tokens, logps, truncated=False, edited="missed: effusion")
        values = torch.cat([case.advantages, torch.tensor([advantage])])
        changed[number] = dataclasses.replace(case, rollouts=(*case.rollouts, copy), advantages=values)
    return changed


def reference_of(policy):
    other = ToyPolicy()
    with torch.no_grad():
        other.head[::2] -= 0.3
    return other


def updates_of(policy, cases, config, *, reference=None, learning_rate=0.0, **options):
    """Gradient of each update of a step; `options` are the optimiser's."""
    trainer = make_trainer(policy, reference, **options)
    updates = record_gradients(trainer, learning_rate=learning_rate)
    trainer.capo_step(cases, config, **SAMPLING, max_tokens=8)
    return updates


# what the reports that the policy wrote are taught


@pytest.mark.parametrize("objective", ["capo", "dapo", "gspo", "dr_grpo"])
def test_without_copies_the_gradient_is_bit_for_bit_that_of_the_loss_of_the_reports(objective):
    """The loss as a library user calls it, without a word about copies."""
    policy, reference = ToyPolicy(), reference_of(ToyPolicy())
    cases = cases_of(policy, advantages=ADVANTAGES)
    config = dataclasses.replace(ONCE, objective=objective, beta=0.3)
    (found,) = updates_of(policy, cases, config, reference=reference)
    rows = sorted(cases, key=lambda case: -(case.prompt.num_tokens + sum(len(r.response_ids) for r in case.rollouts)))
    layout = pack([case.prompt for case in rows], [[r.response_ids for r in case.rollouts] for case in rows])
    logps, _ = report_logps(policy, layout, **SAMPLING)
    kl = k3(logps, report_logps(reference, layout, **SAMPLING)[0].detach(), layout.mask)
    batch = (logps, logps.detach(), torch.cat([case.advantages for case in rows]), layout.mask)
    counts = {"num_reports": 8, "num_tokens": 23, "max_tokens": 8}
    loss = OBJECTIVES[objective](*batch, clip=0.9, kl=kl, beta=0.3, **counts).loss
    for name, gradient in zip(found, torch.autograd.grad(loss, list(policy.parameters())), strict=True):
        assert torch.equal(found[name], gradient)


@pytest.fixture
def at_tokens(monkeypatch):
    """Gradients of the loss with respect to the log-probabilities, [R, T] for each micro-batch."""
    found = []

    def record(*arguments, **options):
        logps, entropy = report_logps(*arguments, **options)
        if logps.requires_grad:
            logps.register_hook(found.append)
        return logps, entropy

    monkeypatch.setattr("capo.trainer.report_logps", record)
    return found


@pytest.mark.parametrize("objective", ["capo", "dapo", "gspo", "dr_grpo"])
@pytest.mark.parametrize("advantage", [0.0, 3.0])
def test_the_reports_of_a_group_with_copies_get_to_the_bit_what_they_get_without(objective, advantage, at_tokens):
    policy, reference = ToyPolicy(), reference_of(ToyPolicy())
    cases = cases_of(policy, advantages=ADVANTAGES)
    config = dataclasses.replace(ONCE, objective=objective)
    (plain,) = updates_of(policy, cases, config)
    for beta in (0.0, 0.3):
        copied = with_copies(cases, {2: advantage, 3: advantage}, placeholder=-50.0)
        (found,) = updates_of(policy, copied, dataclasses.replace(config, beta=beta), reference=reference)
        # Longest cases first: the third with three reports and a copy, then the fourth with two and a copy.
        rows, copies = at_tokens[-1][[0, 1, 2, 4, 5, 7, 8, 9]], at_tokens[-1][[3, 6]]
        assert copies.any() == (advantage != 0)
        if beta == 0:
            assert torch.equal(rows, at_tokens[0])
    if advantage == 0:
        # the same through the policy, but for the last digits: the layout is longer
        (found,) = updates_of(policy, copied, config)
        for name, gradient in plain.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("objective", ["capo", "dapo", "dr_grpo"])
def test_less_the_term_of_the_copy_the_gradient_is_the_on_policy_one(objective):
    policy = ToyPolicy()
    cases = cases_of(policy, advantages=ADVANTAGES)
    config = dataclasses.replace(ONCE, objective=objective)
    updates = [updates_of(policy, batch, config)[0] for batch in (cases, with_copies(cases, {1: 1.7}))]
    prompt, tokens = cases[1].prompt, torch.tensor(COPY)
    logps = policy.log_probabilities(prompt, tokens, **SAMPLING).gather(1, tokens[:, None])[:, 0]
    # 8 sampled reports of 23 tokens; the copy counts in neither number. Its ratio is 1.
    term = {"capo": logps.mean() / 8, "dapo": logps.sum() / 23, "dr_grpo": logps.sum() / (8 * 8)}[objective]
    parameters = dict(policy.named_parameters())
    wanted = torch.autograd.grad(-1.7 * term, list(parameters.values()))
    for name, gradient in zip(parameters, wanted, strict=True):
        torch.testing.assert_close(updates[1][name] - updates[0][name], gradient, rtol=1e-3, atol=1e-5)


# log-probabilities of copies


@pytest.mark.parametrize("level", ["token", "report"])
def test_a_copys_placeholder_enters_no_ratio_no_weight_and_no_metric(level):
    """Nobody sampled it: its ratio is 1 in the first pass and its weight is 1 throughout."""
    policy, reference = ToyPolicy(), reference_of(ToyPolicy())
    cases = cases_of(policy, advantages=ADVANTAGES)
    config = dataclasses.replace(TWICE, beta=0.1, sampler_correction=level, mini_batches=2)
    rows, updates = [], []
    for placeholder in (0.0, -9.0):
        batch = with_copies(cases, {0: 1.0, 3: -0.5}, placeholder=placeholder)
        found, row = step_of(policy, batch, config, reference=reference)
        rows.append(row)
        updates.append(found)
    assert rows[0] == rows[1]
    assert rows[0]["sampler_gap_max"] < 1e-5 and rows[0]["sampler_weight_mean"] == pytest.approx(1.0, abs=1e-5)
    # learning rate 0: every ratio stays 1, the copies' too, and so the loss is minus the mean advantage and beta KL
    assert rows[0]["ratio_gap_max"] < 1e-6
    for first, second in zip(*updates, strict=True):
        assert all(torch.equal(gradient, second[name]) for name, gradient in first.items())


def test_metrics_are_of_the_reports_that_the_policy_wrote():
    policy, reference = ToyPolicy(), reference_of(ToyPolicy())
    cases = cases_of(policy, advantages=ADVANTAGES, critical=(True, False, True, False))
    config = dataclasses.replace(ONCE, beta=0.2)
    _, plain = step_of(policy, cases, config, reference=reference)
    _, row = step_of(policy, with_copies(cases, {0: 2.0, 1: 3.0}), config, reference=reference)
    assert (row["tokens"], row["reports"], row["learning_reports"]) == (23, 8, 8)
    changed = {name for name in plain if row[name] != pytest.approx(plain[name], rel=1e-5, abs=1e-7)}
    assert changed == {"loss"}  # that of what is trained on
    # the copies of ratio 1 add minus their advantages over the eight sampled reports
    assert row["loss"] - plain["loss"] == pytest.approx(-5.0 / 8, rel=1e-4)


def test_the_kl_is_of_the_reports_that_the_policy_wrote():
    policy, reference = ToyPolicy(), reference_of(ToyPolicy())
    cases = with_copies(cases_of(policy, advantages=[[0.0] * 2, [0.0], [0.0] * 3, [0.0] * 2]), {0: 0.0, 2: 0.0})
    (found,), _ = step_of(policy, cases, dataclasses.replace(ONCE, beta=0.5), reference=reference)
    sampled = [dataclasses.replace(c, rollouts=tuple(r for r in c.rollouts if r.edited is None)) for c in cases]
    sampled = [dataclasses.replace(c, advantages=c.advantages[: len(c.rollouts)]) for c in sampled]
    pairs = zip(terms_of(policy, sampled), terms_of(reference, sampled), strict=True)
    kls = [(other.detach() - logps).exp() - (other.detach() - logps) - 1 for (logps, *_), (other, *_) in pairs]
    assert_gradients(found, 0.5 * sum(kl.mean() for kl in kls) / 8, policy)


@pytest.mark.parametrize("mini_batches", [1, 2])
def test_a_step_with_copies_does_not_depend_on_how_it_is_split(mini_batches):
    cases = with_copies(cases_of(ToyPolicy(), advantages=ADVANTAGES), {0: 1.0, 3: -0.5})
    config = dataclasses.replace(TWICE, mini_batches=mini_batches, beta=0.1)
    options = ({"token_budget": budget, "learning_rate": 1e-3} for budget in (8192, 1))
    updates = [updates_of(ToyPolicy(), cases, config, **each) for each in options]
    assert len(updates[0]) == 2 * mini_batches
    for whole, split in zip(*updates, strict=True):
        for name, gradient in whole.items():
            torch.testing.assert_close(split[name], gradient, rtol=1e-4, atol=1e-6)


class HalfRanks(Ranks):
    """One of two ranks, on its own: the other has as many micro-batches."""

    def __init__(self, rank):
        super().__init__(rank, 2)

    def all_gather(self, mine):
        return [mine, mine]


def test_the_gradients_of_two_ranks_add_up_to_that_of_one_wherever_the_copies_are():
    cases = with_copies(cases_of(ToyPolicy(), advantages=ADVANTAGES), {0: 1.0, 1: 2.0, 3: -0.5})
    cases[2] = dataclasses.replace(cases[2], rollouts=(), advantages=torch.zeros(0))  # all masked
    config = dataclasses.replace(ONCE, beta=0.1)
    (whole,) = updates_of(ToyPolicy(), cases, config)
    halves = []
    for rank in (0, 1):
        trainer = make_trainer(ToyPolicy())
        trainer.ranks = HalfRanks(rank)
        found = record_gradients(trainer)
        trainer.capo_step(cases, config, **SAMPLING)
        halves += found
    for name, gradient in whole.items():
        torch.testing.assert_close(halves[0][name] + halves[1][name], gradient, rtol=1e-4, atol=1e-6)


def test_a_sharded_policy_learns_the_same_from_a_group_with_copies():
    cases = with_copies(cases_of(ToyPolicy(), advantages=ADVANTAGES), {0: 1.0, 3: -0.5})
    config = dataclasses.replace(TWICE, beta=0.1, sampler_correction="token")
    plain, laid_out, frozen = ToyPolicy(), ToyPolicy(), reference_of(ToyPolicy())
    ranks = Ranks(timeout_s=60)
    try:
        ranks.ensure_process_group()
        mesh = build_mesh("full", world_size=1, local_size=1, device=laid_out.device, timeout_s=60)
        shard(laid_out, [], mesh, device=laid_out.device)
        rows = []
        for policy in (plain, laid_out):
            # A large eps is that of plain gradient descent: Adam would magnify round-off.
            trainer = make_trainer(policy, frozen, lr=0.1)
            for group in trainer.optimizer.param_groups:
                group["eps"] = 1.0
            rows.append(trainer.capo_step(cases, config, **SAMPLING))
        assert trainer.sharded and rows[0] == pytest.approx(rows[1], rel=1e-4, abs=1e-6)
        for mine, other in zip(laid_out.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(mine.full_tensor(), other)
    finally:
        ranks.shutdown()


# reports that were masked


def masked(case):
    return dataclasses.replace(case, rollouts=(), advantages=case.advantages[:0])


@pytest.mark.parametrize("budget", [8192, 1])
def test_a_case_without_reports_adds_nothing_to_a_step(budget):
    policy = ToyPolicy()
    cases = cases_of(policy, advantages=ADVANTAGES)
    updates = []
    for batch in ([cases[0], masked(cases[1]), cases[2]], [cases[0], cases[2]]):
        trainer = make_trainer(policy, token_budget=budget)
        found = record_gradients(trainer)
        row = trainer.capo_step(batch, ONCE, **SAMPLING)
        updates += found
        assert row["reports"] == 5
    for name, gradient in updates[1].items():
        torch.testing.assert_close(updates[0][name], gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("objective", ["capo", "dapo", "gspo", "dr_grpo"])
def test_a_step_without_any_report_moves_nothing(objective):
    policy = ToyPolicy()
    before = {name: parameter.detach().clone() for name, parameter in policy.named_parameters()}
    trainer = make_trainer(policy, lr=0.1)
    config = dataclasses.replace(TWICE, objective=objective, beta=0.1, sampler_correction="report")
    cases = [masked(case) for case in cases_of(policy, advantages=ADVANTAGES)]
    row = trainer.capo_step(cases, config, **SAMPLING, max_tokens=8)
    assert (row["grad_norm"], row["loss"], row["tokens"], row["updates_skipped"]) == (0.0, 0.0, 0, 0)
    for name, parameter in policy.named_parameters():
        assert torch.equal(parameter, before[name])


# what a run can choose


def test_dr_grpo_needs_the_longest_length_that_sampling_allows():
    policy = ToyPolicy()
    cases = cases_of(policy, advantages=ADVANTAGES)
    config = dataclasses.replace(ONCE, objective="dr_grpo")
    with pytest.raises(ValueError, match="max_tokens"):
        step_of(policy, cases, config)
    (found,) = updates_of(policy, cases, config)
    assert_gradients(found, -sum(a * logps.sum() for logps, _, a in terms_of(policy, cases)) / (8 * 8), policy)


ESTIMATES = {"k1": k1, "k2": k2, "k3": k3}


@pytest.mark.parametrize("name", ["k1", "k2", "k3", "corrected_k3"])
def test_the_kl_that_is_chosen_is_the_one_in_the_gradient(name):
    policy, reference = ToyPolicy(), reference_of(ToyPolicy())
    cases = cases_of(policy, advantages=[[0.0] * len(values) for values in ADVANTAGES])
    config = dataclasses.replace(ONCE, beta=0.5, kl=name)
    (found,), _ = step_of(policy, cases, config, reference=reference)
    total = 0.0
    for (logps, *_), (other, *_) in zip(terms_of(policy, cases), terms_of(reference, cases), strict=True):
        mask = torch.ones(len(logps), dtype=torch.bool)
        if name == "corrected_k3":
            kl = corrected_k3(logps, logps.detach(), other.detach(), mask)
        else:
            kl = ESTIMATES[name](logps, other.detach(), mask)
        total = total + kl.mean()
    assert_gradients(found, 0.5 * total / 8, policy)


def test_the_dual_clip_reaches_the_loss():
    """A bad report whose probability has grown by far: bounded, it moves the policy no more."""
    (case, *_) = cases_of(ToyPolicy(), advantages=ADVANTAGES)
    case = dataclasses.replace(case, rollouts=case.rollouts[:1], advantages=torch.tensor([-1.0]))
    # Uphill in the first of two passes, so that the ratio grows.
    moved, held = (
        updates_of(ToyPolicy(), [case], dataclasses.replace(TWICE, dual_clip=dual_clip), learning_rate=-0.5)[1]
        for dual_clip in (None, 1.0000001)
    )
    assert moved["head"].any() and not any(gradient.any() for gradient in held.values())


@pytest.mark.parametrize("objective", ["capo", "dapo", "gspo"])
def test_constant_rows_of_advantages_equal_one_for_each_report(objective):
    policy = ToyPolicy()
    cases = cases_of(policy, advantages=ADVANTAGES)
    # wider than the longest report: what lies after a report's tokens is nobody's
    rows = [dataclasses.replace(c, advantages=c.advantages[:, None].repeat(1, 9)) for c in cases]
    config = dataclasses.replace(TWICE, objective=objective, mini_batches=2)
    plain, expected = step_of(policy, cases, config, learning_rate=1e-3)
    found, row = step_of(ToyPolicy(), rows, config, learning_rate=1e-3)
    for update, other in zip(plain, found, strict=True):
        assert all(torch.equal(gradient, other[name]) for name, gradient in update.items())
    assert row == expected


def test_each_token_is_paid_its_own_advantage():
    policy = ToyPolicy()
    cases = cases_of(policy, advantages=ADVANTAGES)
    generator = torch.Generator().manual_seed(1)
    rows = [dataclasses.replace(c, advantages=torch.randn(len(c.rollouts), 7, generator=generator)) for c in cases]
    (found,), _ = step_of(policy, rows)
    total = 0.0
    for logps, _, values in terms_of(policy, rows):
        total = total - (values[: len(logps)] * logps).mean() / 8
    assert_gradients(found, total, policy)


def test_a_short_row_of_advantages_is_refused():
    policy = ToyPolicy()
    (case, *_) = cases_of(policy, advantages=ADVANTAGES)
    with pytest.raises((ValueError, RuntimeError)):
        step_of(policy, [dataclasses.replace(case, advantages=torch.ones(2, 3))])


def test_a_trainer_without_a_reference_is_refused():
    trainer = Trainer(ToyPolicy(), OptimizerConfig(), num_steps=1)
    with pytest.raises(ValueError, match="expected a frozen policy"):
        trainer.capo_step(cases_of(ToyPolicy(), advantages=ADVANTAGES), ONCE, **SAMPLING)
