import pytest
import torch

from capo.sampling import SamplingConfig, choose, sample_seed, uniforms

NONE_BANNED = torch.zeros(4, dtype=torch.bool)
LOGITS = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()


def pick(uniform, config, banned=NONE_BANNED):
    tokens, logps = choose(LOGITS, torch.tensor([uniform], dtype=torch.float64), config, banned)
    return int(tokens), float(logps.exp())


@pytest.mark.parametrize(("uniform", "token"), [(0.0, 0), (0.39, 0), (0.41, 1), (0.75, 2), (0.95, 3)])
def test_inversion_by_hand(uniform, token):
    # cumulative 0.4, 0.7, 0.9, 1.0
    assert pick(uniform, SamplingConfig())[0] == token


def test_banned_tokens_are_never_chosen_and_the_rest_is_renormalised():
    banned = torch.tensor([True, False, False, True])
    for uniform in (0.0, 0.59, 0.61, 1 - 1e-16):
        token, probability = pick(uniform, SamplingConfig(), banned)
        # 0.3 and 0.2 of 0.5
        assert token == (1 if uniform < 0.6 else 2)
        assert probability == pytest.approx(0.6 if token == 1 else 0.4, rel=1e-5)


def test_top_k_and_top_p_keep_the_same_two_tokens():
    for config in (SamplingConfig(top_k=2), SamplingConfig(top_p=0.6)):
        token, probability = pick(0.99, config)
        assert token == 1 and probability == pytest.approx(0.3 / 0.7, rel=1e-5)


def test_temperature_zero_is_greedy():
    assert pick(0.99, SamplingConfig(temperature=0.0)) == (0, pytest.approx(0.4, rel=1e-5))


def test_frequencies_follow_the_distribution():
    count = 20_000
    tokens, _ = choose(LOGITS.expand(count, 4), uniforms(1, count), SamplingConfig(), NONE_BANNED)
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


def test_impossible_values_are_refused():
    with pytest.raises(ValueError, match="top_p"):
        SamplingConfig(top_p=0.0)
