"""`capo.Policy` says all that the library needs of a model; the text-only example has exactly its members."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from capo import Case, Engine, OptimizerConfig, Policy, Request, RlConfig, SamplingConfig, Trainer, pack, report_logps
from capo.sft import sft_step
from radflow.pipeline.generation import build_prompt, suppressed_mask

ROOT = Path(__file__).parents[1]
MEMBERS = {*Policy.__annotations__, *(name for name in vars(Policy) if not name.startswith("_"))}


class Narrow:
    """A policy with the members of the protocol and nothing else; not an `nn.Module`."""

    def __init__(self, policy):
        self._policy = policy

    def __call__(self, compute):
        return compute()

    def __getattr__(self, name):
        if name not in MEMBERS:
            raise AttributeError(f"{name} is no member of Policy")
        return getattr(self._policy, name)


def train(policy, reference, processor, studies):
    """Rollouts, an SFT and a CAPO step -> metrics of both."""
    prompts, suppressed = [build_prompt(processor, study) for study in studies], suppressed_mask(reference, processor)
    sampling, optimizer = SamplingConfig(max_new_tokens=8), OptimizerConfig(lr=1e-3)
    engine = Engine(policy, sampling=sampling, eos_id=processor.eos_id, suppressed=suppressed)
    reports = sorted(engine.rollout(Request(p, (1, 2)) for p in prompts), key=lambda r: (r.study_id, r.sample))
    groups = [tuple(r for r in reports if r.study_id == prompt.study_id) for prompt in prompts]
    advantages = torch.tensor([0.7, -0.7])
    cases = [Case(prompt, group, advantages, True, 0.05) for prompt, group in zip(prompts, groups, strict=True)]
    trainer = Trainer(policy, optimizer, num_steps=3, reference=lambda: nullcontext(reference))
    first = sft_step(trainer, prompts, [group[0].response_ids for group in groups], suppressed=suppressed)
    config = RlConfig(studies_per_step=len(studies), group_size=2, optimizer=optimizer)
    assert set(trainer.state()[0]) == set(Trainer(policy, optimizer, num_steps=3).state()[0])
    return first, trainer.capo_step(cases, config, temperature=1.0, suppressed=suppressed)


def test_a_class_with_exactly_the_members_of_the_protocol_trains_as_the_model_does(policy, processor, studies):
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    expected = train(policy, policy, processor, studies[:2])
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            assert not torch.equal(parameter, before[name])
            parameter.copy_(before[name])
    assert train(Narrow(policy), policy, processor, studies[:2]) == expected


@pytest.fixture(scope="module")
def text():
    """The names of the example."""
    path = ROOT / "docs" / "examples" / "text_policy.py"
    names = {"__name__": "text_policy"}
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), names)
    return names


def test_the_text_adapter_has_exactly_the_members_of_the_protocol(text):
    adapter = text["build_policy"]()
    assert {name for name in dir(adapter) if not name.startswith("_")} == {*MEMBERS, "model"}


def test_log_probabilities_of_the_text_adapter_are_those_of_its_model(text):
    adapter, prompts = text["build_policy"](), [text["build_prompt"](i) for i in range(2)]
    reports = [[torch.tensor([5, 7, 0]), torch.tensor([9])], [torch.tensor([3, 3, 3, 3])]]
    logps, _ = report_logps(adapter, pack(prompts, reports))
    rows = iter(logps)
    for prompt, group in zip(prompts, reports, strict=True):
        for report in group:
            ids = torch.cat([prompt.input_ids, report])
            own = adapter.model(ids[None]).logits[0].log_softmax(-1)[len(prompt.input_ids) - 1 : -1]
            expected = own.gather(1, report[:, None])[:, 0]
            torch.testing.assert_close(next(rows)[: len(report)], expected, atol=1e-5, rtol=0)


def test_the_text_model_learns_and_sampler_and_trainer_agree(text, capsys):
    rows = text["main"](steps=16)
    assert max(row["sampler_gap_max"] for row in rows) < 1e-5
    assert sum(row["reward"] for row in rows[-4:]) > 2 * sum(row["reward"] for row in rows[:4])
