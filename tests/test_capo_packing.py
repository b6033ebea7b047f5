"""The shared-prefix layout against one report at a time, on a real Qwen2.5-VL forward."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._dynamo.backends.debugging import aot_eager
from torch.nn.attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode
from toy_policy import TextPrompt

from capo import packing
from capo.packing import SharedPrefixMask, bucket_by_length, micro_batches, pack, report_logps, whole_blocks
from radflow.models import layers
from radflow.pipeline.generation import build_prompt, suppressed_mask


@pytest.fixture
def batch(processor, studies):
    prompts = [build_prompt(processor, study) for study in studies[:3]]
    texts = [studies[0].report, "Findings: Clear.", studies[1].report, studies[2].report, "Impression: Normal."]
    ids = [processor.encode_report(text) for text in texts]
    return prompts, [[ids[0], ids[1], ids[2]], [ids[3]], [ids[1], ids[4]]]


def test_layout_by_hand():
    class Toy:
        study_id, next_position = "a", 7
        input_ids = torch.tensor([5, 6])
        positions = torch.tensor([[0, 3], [0, 4], [0, 6]])

    layout = pack([Toy()], [[torch.tensor([1, 2]), torch.tensor([3])]])
    assert layout.sizes == ((2, 2, 1),) and layout.num_tokens == 5
    # both reports start at position 7, and both first tokens are predicted by the prompt's last token
    assert layout.positions[1].tolist() == [0, 4, 7, 8, 7]
    assert layout.predictors.tolist() == [1, 2, 1] and layout.targets.tolist() == [1, 2, 3]
    assert layout.mask.tolist() == [[True, True], [True, False]]
    assert layout.attention[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]
    torch.testing.assert_close(layout.pad(torch.tensor([1.0, 2.0, 3.0])), torch.tensor([[1.0, 2.0], [3.0, 0.0]]))


def test_two_studies_by_hand():
    layout = pack([TextPrompt.of("a", 1), TextPrompt.of("b", 2)], [[torch.tensor([5])] * 2, []])
    assert layout.sizes == ((1, 1, 1), (2,)) and layout.predictors.tolist() == [0, 0]
    assert layout.attention[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 0, 1, 0, 0],
        [0, 0, 0, 1, 0],
        [0, 0, 0, 1, 1],
    ]


def test_packed_log_probabilities_equal_one_report_at_a_time(policy, processor, batch):
    prompts, responses = batch
    suppressed = suppressed_mask(policy, processor)
    packed, entropy = report_logps(policy, pack(prompts, responses), temperature=0.8, suppressed=suppressed)
    row = 0
    for prompt, group in zip(prompts, responses, strict=True):
        for response in group:
            alone, alone_entropy = report_logps(
                policy, pack([prompt], [[response]]), temperature=0.8, suppressed=suppressed
            )
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
    together, _ = report_logps(policy, pack(prompts[:2], responses[:2]))
    torch.testing.assert_close(together[3:4, : alone.shape[1]], alone, atol=2e-5, rtol=0)


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
        assert len(rows) == 1 or sum(lengths[row] for row in rows) <= 100
    assert [4] in batches  # over the budget by itself: never cut


def test_micro_batches_by_hand():
    # 60 + 40 + 30 fill the budget exactly
    assert micro_batches([30, 60, 20, 40], 130) == [[1, 3, 0], [2]]
    assert micro_batches([7, 7, 7], 14) == [[0, 1], [2]]


def test_the_decoder_computes_no_padding(policy, batch, monkeypatch):
    prompts, responses = batch
    seen, decoder = [], policy.decoder
    monkeypatch.setattr(policy, "decoder", lambda *inputs, **more: seen.append(inputs[0]) or decoder(*inputs, **more))
    report_logps(policy, pack(prompts, responses))
    tokens = sum(len(prompt.input_ids) + sum(map(len, group)) for prompt, group in zip(prompts, responses, strict=True))
    assert [embeds.shape[:2] for embeds in seen] == [(1, tokens)]


def test_empty_report_is_refused_by_study(batch):
    prompts, _ = batch
    with pytest.raises(ValueError, match=prompts[0].study_id):
        pack(prompts[:1], [[torch.zeros(0, dtype=torch.int64)]])


def layouts(count):
    """Numbers of studies, reports and lengths change from one to the next."""
    generator = torch.Generator().manual_seed(0)

    def lengths(number, low, high):
        return torch.randint(low, high, (number,), generator=generator).tolist()

    for number in range(count):
        rows = 1 + number % 3
        groups = [
            [torch.arange(n) for n in lengths(1 + (number + row) % 3, 1, 40 + 12 * number)] for row in range(rows)
        ]
        yield pack([TextPrompt.of("a", length) for length in lengths(rows, 2, 60)], groups)


def values_and_gradients(attended, states):
    weights = torch.linspace(-1, 1, attended.numel()).view_as(attended)
    return [attended, *torch.autograd.grad((attended * weights).sum(), states)]


@pytest.mark.parametrize("key_heads", [2, 4])
@pytest.mark.parametrize("least", [1, packing.LEAST_SCORES])
def test_attention_with_the_mask_equals_that_with_the_dense_one_in_values_and_gradients(key_heads, least, monkeypatch):
    monkeypatch.setattr(packing, "LEAST_SCORES", least)  # 1: as many buckets as there are lengths
    for number, layout in enumerate(layouts(20)):
        torch.manual_seed(number)
        sizes = [(1, layout.num_tokens, heads, 8) for heads in (4, key_heads, key_heads)]
        states = [torch.randn(size, dtype=torch.float64, requires_grad=True) for size in sizes]
        found, expected = (
            values_and_gradients(
                scaled_dot_product_attention(
                    *(each.transpose(1, 2) for each in states), attn_mask=mask, scale=0.3, enable_gqa=True
                ).transpose(1, 2),
                states,
            )
            for mask in (layout.attention, layout.attention.dense)
        )
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)  # two orders of summation in float64


class Scores(TorchDispatchMode):
    """How many scores each call of an attention kernel computes per head."""

    def __init__(self):
        super().__init__()
        self.counts = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if "attention" in operator.overloadpacket.__name__:
            query, key = args[:2]
            self.counts.append(query.shape[0] * query.shape[2] * key.shape[2])
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("reports", "counts"),
    # of 170 x 170: twice a prompt of 50 with its first report of 10, then 3 reports which see their prompt
    [([1, 4], [2 * 60 * 60, 3 * 10 * 60]), ([1, 1], [2 * 60 * 60]), ([0, 1], [2 * 60 * 60])],
)
def test_attention_with_the_mask_computes_no_scores_between_reports_or_studies(reports, counts):
    layout = pack([TextPrompt.of("a", 50)] * 2, [[torch.arange(10)] * count for count in reports])
    states = [torch.randn(1, 2, layout.num_tokens, 4)] * 3
    with Scores() as scores:
        scaled_dot_product_attention(*states, layout.attention)
    assert scores.counts == counts


def test_attention_with_the_mask_pads_sequences_of_similar_length_together():
    # In the demo one of 92 tokens made all others, of 37 on average, as long.
    reports = [torch.arange(length) for length in (10, 40, 200, 40)]
    layout = pack([TextPrompt.of("a", length) for length in (50, 300, 50)], [reports] * 3)
    states = [torch.randn(1, 2, layout.num_tokens, 4)] * 3
    with Scores() as scores:
        scaled_dot_product_attention(*states, layout.attention)
    first = [310 * 310, 2 * 60 * 60]
    assert scores.counts == [*first, 200 * 500, 2 * 200 * 250, 2 * 40 * 340, 4 * 40 * 90]


def test_buckets_of_similar_length_by_hand():
    squares = [(10, 10), (30, 30), (9, 9), (28, 28)]
    # 4 x 900 cells in one bucket, 2 x 900 + 2 x 100 in two: 1600 saved; of the longer two a split saves 116 more
    assert bucket_by_length(squares, 1601) == [[1, 3, 0, 2]]
    assert bucket_by_length(squares, 1600) == [[1, 3], [0, 2]]
    assert bucket_by_length(squares, 116) == [[1], [3], [0, 2]]
    # as wide as the widest of a bucket, wherever it is: 2 x 4 x 50 = 400 or 4 x 5 + 3 x 50 = 170
    assert bucket_by_length([(3, 50), (4, 5)], 230) == [[1], [0]]
    assert bucket_by_length([(3, 50), (4, 5)], 231) == [[1, 0]]
    assert bucket_by_length([], 1) == []


@given(st.lists(st.tuples(st.integers(1, 99), st.integers(1, 99)), max_size=40), st.integers(1, 9999))
def test_buckets_hold_each_once_and_each_further_one_saves_what_is_asked(sizes, least):
    buckets = bucket_by_length(sizes, least)
    assert sorted(index for bucket in buckets for index in bucket) == list(range(len(sizes)))

    def cells(bucket):
        return len(bucket) * max(sizes[i][0] for i in bucket) * max(sizes[i][1] for i in bucket)

    if buckets:
        assert sum(map(cells, buckets)) <= cells(range(len(sizes))) - least * (len(buckets) - 1)


def test_what_the_mask_computes_with_is_on_its_device():
    mask = SharedPrefixMask(((2, 1, 3), (2,)), torch.device("meta"))
    parts = mask.parts
    tensors = [parts.queries, parts.keys, parts.visible[1], parts.order, mask.segments, mask.dense]
    assert parts.visible[0] is None and {each.device.type for each in tensors} == {"meta"}


def test_to_every_other_function_the_mask_is_dense():
    mask = pack([TextPrompt.of("a", 2)], [[torch.tensor([1, 2]), torch.tensor([3])]]).attention
    dense = torch.tensor([[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 0, 0, 1]]).bool()
    assert mask.shape == (1, 1, 5, 5) and mask.dtype == torch.bool and mask.ndim == 4
    assert torch.equal(mask[0, 0], dense) and torch.equal((~mask)[0, 0], ~dense)
    assert torch.equal(torch.zeros(5, 5).masked_fill(mask, 1.0)[0, 0], dense.float())
    query, longer = torch.randn(1, 2, 5, 4), torch.randn(1, 2, 6, 4)
    with pytest.raises(RuntimeError):  # as PyTorch refuses a dense mask of another size
        scaled_dot_product_attention(query, longer, longer, attn_mask=mask)


def test_compiled_blocks_equal_the_dense_mask_over_20_layouts_in_at_most_8_graphs(monkeypatch):
    # A graph for each new shape reaches Dynamo's limit of 8; from there on attention runs as its slow definition. The
    # first layout has as many blocks as there are key heads: sizes that are equal by chance count as one size.
    compiled = []

    def counting(graph, inputs):
        compiled.append(graph)
        return aot_eager(graph, inputs)

    torch._dynamo.reset()
    flex = torch.compile(flex_attention.flex_attention, dynamic=True, backend=counting, fullgraph=True)
    monkeypatch.setattr(layers, "_flex", lambda device: flex)
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *states: None)  # it has gradients on a CPU, slowly
    monkeypatch.setattr(torch._dynamo.config, "fail_on_recompile_limit_hit", True)
    lengths = set()
    assert next(layouts(1)).block_mask.kv_indices.shape[-1] == 2
    for number, layout in enumerate(layouts(20)):
        length = layout.num_tokens
        lengths.add(length)
        for size in (8, 48, 128) if number in (0, 1, 2) else (48,):  # the kernels have none below 16
            torch.manual_seed(number)
            states = [torch.randn(1, length, heads, size, requires_grad=True) for heads in (4, 2, 2)]
            dense = scaled_dot_product_attention(
                *(each.transpose(1, 2) for each in states), layout.attention.dense, scale=0.3, enable_gqa=True
            )
            expected = values_and_gradients(dense.transpose(1, 2), states)
            row = [whole_blocks(each, dim=1).transpose(1, 2) for each in states]
            attended = layers.attend(None, *row, layout.block_mask, scaling=0.3)[0][:, :length]
            found = values_and_gradients(attended, states)
            torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)  # two orders of summation in float32
            with torch.no_grad():
                row = [each.detach() for each in row]
                again = layers.attend(None, *row, layout.block_mask, scaling=0.3)[0][:, :length]
            torch.testing.assert_close(again, attended, atol=2e-6, rtol=0)
    assert len(lengths) > 15 and len(compiled) <= 8


def test_a_block_mask_is_built_once_per_layout(monkeypatch):
    built = []
    make = packing.create_block_mask
    monkeypatch.setattr(packing, "create_block_mask", lambda *a, **options: built.append(a) or make(*a, **options))
    packing._mask_maker.cache_clear()
    layout = next(layouts(1))
    assert layout.block_mask is layout.block_mask and len(built) == 1
    packing._mask_maker.cache_clear()


def test_whole_blocks_are_two_at_least():
    assert whole_blocks(torch.ones(6), dim=0, fill=7).tolist() == [1] * 6 + [7] * 250
    assert whole_blocks(torch.ones(5, 260, 1), dim=1).shape == (5, 384, 1)
    assert whole_blocks(torch.ones(1, 256), dim=1).shape == (1, 256)
