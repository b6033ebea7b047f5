"""The generation engine against the training path; `test_models_families.py` compares it with generate."""

import pytest
import torch

from capo.packing import pack, report_logps
from capo.rollout import Request, rollout
from capo.sampling import SamplingConfig, sample_seed
from evaluate import banned_mask, prompt_of

SAMPLED = SamplingConfig(temperature=1.0, max_new_tokens=24)


def requests(processor, studies, group=3):
    return [
        Request(prompt_of(processor, study), tuple(sample_seed(0, "test", 0, study.id, i) for i in range(group)))
        for study in studies
    ]


def run(policy, processor, wanted, sampling=SAMPLED, slots=64):
    options = {"sampling": sampling, "eos_id": processor.eos_id, "banned": banned_mask(policy, processor)}
    return {(r.study_id, r.sample): r for r in rollout(policy, wanted, slots=slots, **options)}


def test_behaviour_log_probabilities_equal_the_training_path(policy, processor, studies):
    wanted = requests(processor, studies[:4])
    reports = run(policy, processor, wanted)
    banned = banned_mask(policy, processor)
    for request in wanted:
        group = [reports[request.prompt.study_id, i] for i in range(3)]
        layout = pack([request.prompt], [[r.response_ids for r in group]])
        logps, _ = report_logps(policy, layout, banned=banned)
        for index, report in enumerate(group):
            length = len(report.response_ids)
            # decode and training add up in another order: float32 round-off
            torch.testing.assert_close(logps[index, :length], report.behaviour_logps, atol=1e-4, rtol=0)


def test_a_report_does_not_depend_on_slots_or_neighbours(policy, processor, studies):
    wanted = requests(processor, studies[:8])
    together = run(policy, processor, wanted)
    few_slots = run(policy, processor, wanted[::-1], slots=4)
    alone = run(policy, processor, wanted[5:6])
    assert together.keys() == few_slots.keys() and len(together) == 24
    for key, report in few_slots.items():
        assert torch.equal(report.response_ids, together[key].response_ids)
    for key, report in alone.items():
        assert torch.equal(report.response_ids, together[key].response_ids)


def test_banned_tokens_never_appear_and_truncation_is_marked(policy, processor, studies):
    for report in run(policy, processor, requests(processor, studies[:4])).values():
        assert not set(report.response_ids.tolist()) & set(processor.banned_ids)
        ended = int(report.response_ids[-1]) == processor.eos_id
        assert report.truncated != ended and len(report.response_ids) <= 24
        assert processor.eos_id not in report.response_ids[:-1]


def test_prompts_are_taken_only_when_there_is_room(policy, processor, studies):
    taken = []

    def watched():
        for request in requests(processor, studies[:8], group=2):
            taken.append(request.prompt.study_id)
            yield request

    options = {"sampling": SAMPLED, "eos_id": processor.eos_id, "banned": banned_mask(policy, processor)}
    next(iter(rollout(policy, watched(), slots=4, **options)))
    assert len(taken) <= 4  # two studies in the slots, and at most a slot's worth waiting


def test_group_larger_than_the_slots_is_refused(policy, processor, studies):
    with pytest.raises(ValueError, match="expected 1 to 2 reports a study"):
        run(policy, processor, requests(processor, studies[:1], group=3), slots=2)


def test_nothing_requested(policy, processor):
    assert run(policy, processor, []) == {}
