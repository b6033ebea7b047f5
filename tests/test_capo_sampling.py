import pytest
import torch

from capo.sampling import SamplingConfig, choose, sample_seed, uniforms

NOTHING_SUPPRESSED = torch.zeros(4, dtype=torch.bool)
LOGITS = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()


def pick(uniform, config, suppressed=NOTHING_SUPPRESSED):
    logits = LOGITS.masked_fill(suppressed, -torch.inf)
    tokens, logps = choose(logits, torch.tensor([uniform], dtype=torch.float64), config)
    return int(tokens), float(logps.exp())


@pytest.mark.parametrize(("uniform", "token"), [(0.0, 0), (0.39, 0), (0.41, 1), (0.75, 2), (0.95, 3)])
def test_inversion_by_hand(uniform, token):
    # cumulative 0.4, 0.7, 0.9, 1.0
    assert pick(uniform, SamplingConfig())[0] == token


def test_suppressed_tokens_are_never_chosen_and_the_rest_is_renormalised():
    suppressed = torch.tensor([True, False, False, True])
    for uniform in (0.0, 0.59, 0.61, 1 - 1e-16):
        token, probability = pick(uniform, SamplingConfig(), suppressed)
        # 0.3 and 0.2 of 0.5
        assert token == (1 if uniform < 0.6 else 2)
        assert probability == pytest.approx(0.6 if token == 1 else 0.4, rel=1e-5)


@pytest.mark.parametrize(
    ("temperature", "uniform", "token", "probability"),
    [
        # squares 0.16, 0.09, 0.04, 0.01 of 0.30: cumulative 0.533, 0.833, 0.967
        (0.5, 0.52, 0, 16 / 30),
        (0.5, 0.54, 1, 9 / 30),
        (0.5, 0.96, 2, 4 / 30),
        # roots 0.632, 0.548, 0.447, 0.316 of 1.943: cumulative 0.325, 0.607, 0.837
        (2.0, 0.32, 0, 0.3254),
        (2.0, 0.33, 1, 0.2818),
        (2.0, 0.84, 3, 0.1627),
    ],
)
def test_temperature_by_hand(temperature, uniform, token, probability):
    found = pick(uniform, SamplingConfig(temperature=temperature))
    assert found == (token, pytest.approx(probability, abs=1e-4))


def test_top_p_reads_the_probabilities_at_the_temperature():
    # 0.533 and 0.3 reach 0.8 at temperature 0.5; at 1 it would take three tokens
    assert pick(0.99, SamplingConfig(temperature=0.5, top_p=0.8)) == (1, pytest.approx(9 / 25, rel=1e-5))


def test_top_k_and_top_p_keep_the_same_two_tokens():
    for config in (SamplingConfig(top_k=2), SamplingConfig(top_p=0.6)):
        token, probability = pick(0.99, config)
        assert token == 1 and probability == pytest.approx(0.3 / 0.7, rel=1e-5)


def test_top_p_reads_the_probabilities_that_top_k_left():
    # Of 0.4, 0.3, 0.2 (top-k 3) the first two make 0.777: enough for 0.75, though 0.7 of the whole is not.
    for uniform in (0.1, 0.99):
        token, _ = pick(uniform, SamplingConfig(top_k=3, top_p=0.75))
        assert token in (0, 1)


def test_a_large_vocabulary_is_inverted_as_by_one_cumulative_sum():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(400, 2500, generator=generator)  # two blocks and a part of one
    logits[:, 1000:1100] = -torch.inf  # nothing to find on both sides of a border between blocks
    uniform = uniforms(3, 400)
    tokens, logps = choose(logits, uniform, SamplingConfig())
    exact = logits.double().softmax(-1).cumsum(-1)
    expected = torch.searchsorted(exact, uniform[:, None], right=True)[:, 0]
    assert torch.equal(tokens, expected)
    torch.testing.assert_close(logps, logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-53])
def test_only_possible_tokens_are_chosen_at_either_end(uniform):
    logits = torch.full((1, 3000), -torch.inf)
    logits[0, [1023, 2048]] = torch.tensor([0.0, 1.0])  # the last of one block, the first of another
    tokens, logps = choose(logits, torch.tensor([uniform], dtype=torch.float64), SamplingConfig())
    assert int(tokens) in (1023, 2048) and logps.isfinite().all()


def test_temperature_zero_is_greedy():
    assert pick(0.99, SamplingConfig(temperature=0.0)) == (0, pytest.approx(0.4, rel=1e-5))
    # 0.3 of the 0.6 that are not suppressed
    suppressed = torch.tensor([True, False, False, False])
    assert pick(0.99, SamplingConfig(temperature=0.0), suppressed) == (1, pytest.approx(0.5, rel=1e-5))


def test_frequencies_follow_the_distribution():
    count = 20_000
    tokens, _ = choose(LOGITS.expand(count, 4), uniforms(1, count), SamplingConfig())
    share = torch.bincount(tokens, minlength=4) / count
    # four standard errors of a share of 0.4 over 20,000 draws: 0.014
    torch.testing.assert_close(share, LOGITS[0].exp(), atol=0.014, rtol=0)


def test_seeds_differ_in_every_part():
    parts = [
        (0, "rl", 1, "a", 0),
        (1, "rl", 1, "a", 0),
        (0, "x", 1, "a", 0),
        (0, "rl", 2, "a", 0),
        (0, "rl", 1, "b", 0),
    ]
    assert len({sample_seed(*part) for part in [*parts, (0, "rl", 1, "a", 1)]}) == 6


def test_random_streams_stay_as_they_are():
    # A changed stream changes every run: blake2b of "0/rl/3/a/1", 8 bytes, without the lowest bit
    assert sample_seed(0, "rl", 3, "a", 1) == 7249830660207443289
    assert uniforms(7, 3).tolist() == [0.279380429906404, 0.27369371365176565, 0.8620929614176255]
    assert torch.equal(uniforms(7, 5)[:3], uniforms(7, 3))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("temperature", [-0.1]),
        ("top_p", [0.0, 1.1]),
        ("top_k", [-1]),
        ("max_new_tokens", [0]),
        ("prefill_tokens", [0]),
    ],
)
def test_impossible_values_are_refused(name, values):
    for value in values:
        with pytest.raises(ValueError, match=name):
            SamplingConfig(**{name: value})
