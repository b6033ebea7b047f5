"""The engine on a policy so small that every report can be written again, token by token, without cache or slots."""

import dataclasses

import pytest
import torch
from toy_policy import TextPrompt, ToyPolicy

from capo.packing import pack, report_logps
from capo.rollout import Engine, Request, rollout
from capo.sampling import SamplingConfig, uniforms
from capo.stopping import StopRequested, StopSignal

EOS, SUPPRESSED = 4, torch.arange(11) == 3
SAMPLING = SamplingConfig(temperature=0.5, max_new_tokens=5)


def requests(count=9, group=3):
    """Prompts of 2 to 8 tokens, some of which continue at a later position."""
    prompts = [TextPrompt.of(f"study {i}", 2 + 5 * i % 7, ahead=i % 3, vocabulary=11) for i in range(count)]
    return [Request(prompt, tuple(100 * i + j for j in range(group))) for i, prompt in enumerate(prompts)]


def write(policy, wanted, sampling=SAMPLING, slots=64, **options):
    written = rollout(policy, wanted, sampling=sampling, eos_id=EOS, suppressed=SUPPRESSED, slots=slots, **options)
    return {(report.study_id, report.sample): report for report in written}


@torch.no_grad()
def write_alone(policy, prompt, seed, sampling):
    """Tokens by inversion of the cumulative distribution, and the log-probability of each."""
    ids, logps = [], []
    for number in uniforms(seed, sampling.max_new_tokens):
        so_far = torch.tensor([*ids, 0])
        options = {"temperature": sampling.temperature, "suppressed": SUPPRESSED}
        last = policy.log_probabilities(prompt, so_far, **options)[-1]
        ids.append(int(torch.searchsorted(last.double().exp().cumsum(0), number, right=True)))
        logps.append(last[ids[-1]])
        if ids[-1] == EOS:
            break
    return torch.tensor(ids), torch.stack(logps)


@pytest.mark.parametrize("slots", [3, 7, 64])
def test_every_token_is_drawn_as_one_report_at_a_time_would(slots, monkeypatch):
    monkeypatch.setattr("capo.rollout.REACH", 4)  # the cache grows on the way
    policy, wanted = ToyPolicy(), requests()
    reports = write(policy, wanted, slots=slots)
    assert len(reports) == 27
    for request in wanted:
        for sample, seed in enumerate(request.seeds):
            report = reports[request.prompt.study_id, sample]
            ids, logps = write_alone(policy, request.prompt, seed, SAMPLING)
            assert report.response_ids.tolist() == ids.tolist()
            torch.testing.assert_close(report.behaviour_logps, logps, atol=1e-5, rtol=0)
            assert report.truncated == (EOS not in ids)
    lengths = {len(report.response_ids) for report in reports.values()}
    assert len(lengths) > 3 and max(lengths) == 5  # reports end at different times, some by the limit


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_scoring_gives_the_log_probabilities_of_sampling_at_any_temperature(temperature):
    policy, wanted = ToyPolicy(), requests(count=3)
    reports = write(policy, wanted, dataclasses.replace(SAMPLING, temperature=temperature))
    groups = [[reports[r.prompt.study_id, i] for i in range(3)] for r in wanted]
    layout = pack([r.prompt for r in wanted], [[report.response_ids for report in group] for group in groups])
    logps, entropy = report_logps(policy, layout, temperature=temperature, suppressed=SUPPRESSED)
    sampled = torch.cat([report.behaviour_logps for group in groups for report in group])
    torch.testing.assert_close(logps[layout.mask], sampled, atol=1e-5, rtol=0)
    every = policy.log_probabilities(
        wanted[0].prompt, groups[0][0].response_ids, temperature=temperature, suppressed=SUPPRESSED
    )
    expected = -(every.exp() * every.masked_fill(SUPPRESSED, 0.0)).sum(1)
    torch.testing.assert_close(entropy[0, : len(expected)], expected, atol=1e-5, rtol=0)


def test_a_prefill_is_padded_to_its_longest_prompt(monkeypatch):
    policy, prefilled = ToyPolicy(), []
    features = policy.features
    monkeypatch.setattr(policy, "features", lambda prompts: prefilled.append(len(prompts)) or features(prompts))
    prompts = [TextPrompt.of(f"study {i}", length, vocabulary=11) for i, length in enumerate((8, 2, 2, 2))]
    sampling = dataclasses.replace(SAMPLING, prefill_tokens=16)
    write(policy, [Request(prompt, (i,)) for i, prompt in enumerate(prompts)], sampling)
    assert prefilled == [2, 2]  # 2 x 8 fill the budget, and then 2 x 2


def test_a_new_study_waits_until_an_eighth_of_the_slots_is_free(monkeypatch):
    policy, prefilled = ToyPolicy(), []
    policy.head.data[EOS] = 0.0  # rarer, so that often a single report ends
    features = policy.features
    monkeypatch.setattr(policy, "features", lambda prompts: prefilled.append(len(prompts)) or features(prompts))
    sampling = dataclasses.replace(SAMPLING, temperature=1.0, max_new_tokens=20)
    reports = write(policy, requests(count=60, group=1), sampling, slots=16)
    assert len(reports) == 60 and prefilled[0] == 16
    assert all(count >= 2 for count in prefilled[:-1])  # two of sixteen; the last may be what is left


def test_a_stop_between_two_tokens_says_how_many_reports_are_unfinished():
    stop = StopSignal()
    options = {"sampling": SAMPLING, "eos_id": EOS, "suppressed": SUPPRESSED, "slots": 6}
    written = Engine(ToyPolicy(), **options).rollout(requests(count=2), stop=stop)
    next(written)
    stop.requested = True
    with pytest.raises(StopRequested, match=r"stopped on request with [1-5] reports unfinished"):
        list(written)
