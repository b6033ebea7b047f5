"""The shared-prefix layout against one report at a time, on a real Qwen2.5-VL forward."""

import pytest
import torch

from capo.packing import PADDING, PROMPT, micro_batches, pack, report_logps
from reports_by_policy import banned_mask, prompt_of


@pytest.fixture
def batch(processor, studies):
    prompts = [prompt_of(processor, study) for study in studies[:3]]
    texts = [studies[0].report, "Findings: Clear.", studies[1].report, studies[2].report, "Impression: Normal."]
    ids = [processor.encode_report(text) for text in texts]
    return prompts, [[ids[0], ids[1], ids[2]], [ids[3]], [ids[1], ids[4]]]


def test_layout_by_hand():
    class Toy:
        study_id, next_position = "a", 7
        input_ids = torch.tensor([5, 6])
        positions = torch.tensor([[0, 3], [0, 4], [0, 6]])

    layout = pack([Toy()], [[torch.tensor([1, 2]), torch.tensor([3])]])
    assert layout.segments.tolist() == [[PROMPT, PROMPT, 0, 0, 1]]
    # both reports start at position 7, and both first tokens are predicted by the prompt's last token
    assert layout.positions[1, 0].tolist() == [0, 4, 7, 8, 7]
    assert layout.predictors.tolist() == [1, 2, 1] and layout.targets.tolist() == [1, 2, 3]
    assert layout.mask.tolist() == [[True, True], [True, False]]
    assert layout.attention()[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 0, 0, 1],
    ]  # fmt: skip
    torch.testing.assert_close(layout.pad(torch.tensor([1.0, 2.0, 3.0])), torch.tensor([[1.0, 2.0], [3.0, 0.0]]))


def test_packed_log_probabilities_equal_one_report_at_a_time(policy, processor, batch):
    prompts, responses = batch
    banned = banned_mask(policy, processor)
    packed, entropy = report_logps(policy, pack(prompts, responses), temperature=0.8, banned=banned)
    row = 0
    for prompt, group in zip(prompts, responses, strict=True):
        for response in group:
            alone, alone_entropy = report_logps(policy, pack([prompt], [[response]]), temperature=0.8, banned=banned)
            # float32 round-off of a few layers; the issue of the packed path sets 2e-5 as its bound
            torch.testing.assert_close(packed[row, : len(response)], alone[0], atol=2e-5, rtol=0)
            torch.testing.assert_close(entropy[row, : len(response)], alone_entropy[0], atol=2e-5, rtol=0)
            row += 1
    assert row == len(packed)


def test_packed_gradient_equals_the_sum_of_single_ones(policy, batch):
    prompts, responses = batch
    weight = policy.embed_tokens(torch.arange(4))  # touches the embedding, so that its gradient exists in both
    report_logps(policy, pack(prompts, responses))[0].sum().backward()
    packed = {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}
    policy.zero_grad()
    for prompt, group in zip(prompts, responses, strict=True):
        for response in group:
            report_logps(policy, pack([prompt], [[response]]))[0].sum().backward()
    assert packed and weight.shape[0] == 4
    for name, parameter in policy.named_parameters():
        if name in packed:
            scale = parameter.grad.abs().max()
            assert (parameter.grad - packed[name]).abs().max() <= 1e-4 * scale, name


def test_a_longer_neighbour_changes_nothing(policy, batch):
    prompts, responses = batch
    alone, _ = report_logps(policy, pack(prompts[1:2], responses[1:2]))
    beside, _ = report_logps(policy, pack(prompts[:2], responses[:2]))
    torch.testing.assert_close(beside[3:4, : alone.shape[1]], alone, atol=2e-5, rtol=0)


def test_shared_features_equal_recomputed_ones(policy, batch):
    prompts, responses = batch
    layout = pack(prompts, responses)
    given, _ = report_logps(policy, layout, features=policy.features(prompts))
    assert torch.equal(given, report_logps(policy, layout)[0])


def test_micro_batches_hold_every_row_once_within_the_budget():
    lengths = [10, 90, 40, 40, 200, 5]
    batches = micro_batches(lengths, 100)
    assert sorted(row for rows in batches for row in rows) == list(range(6))
    for rows in batches:
        assert len(rows) == 1 or len(rows) * max(lengths[row] for row in rows) <= 100
    assert [4] in batches  # over the budget by itself: never cut


def test_padding_segments_are_never_attended_to(batch):
    prompts, responses = batch
    layout = pack(prompts, responses)
    attention = layout.attention()[:, 0]
    padding = layout.segments == PADDING
    others = attention & ~torch.eye(attention.shape[1], dtype=torch.bool)
    assert padding.any() and not (others & padding[:, None, :]).any() and attention.any(-1).all()


def test_empty_report_is_refused_by_study(batch):
    prompts, _ = batch
    with pytest.raises(ValueError, match=prompts[0].study_id):
        pack(prompts[:1], [[torch.zeros(0, dtype=torch.int64)]])
