import pytest
import torch

from capo.logprobs import linear_logps


def inputs(n=7, d=5, v=11, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, d, generator=generator, dtype=dtype)
    weight = torch.randn(v, d, generator=generator, dtype=dtype)
    banned = torch.zeros(v, dtype=torch.bool)
    banned[[2, 9]] = True
    targets = torch.tensor([0, 1, 3, 4, 5, 6, 10])[:n]
    return hidden.requires_grad_(), weight.requires_grad_(), targets, banned


def dense(hidden, weight, targets, temperature, banned):
    logits = (hidden.float() @ weight.float().t()) / temperature
    logps = logits.masked_fill(banned, -torch.inf).log_softmax(-1)
    kept = logps[:, ~banned]
    return logps.gather(1, targets[:, None])[:, 0], -(kept.exp() * kept).sum(-1)


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_equals_the_dense_path_in_value_and_gradient(chunk):
    hidden, weight, targets, banned = inputs(dtype=torch.float32)
    out = torch.arange(1.0, 8.0)
    expected, expected_entropy = dense(hidden, weight, targets, 0.7, banned)
    expected_grads = torch.autograd.grad(expected @ out, (hidden, weight))
    logps, entropy = linear_logps(hidden, weight, targets, temperature=0.7, banned=banned, chunk=chunk)
    grads = torch.autograd.grad(logps @ out, (hidden, weight))
    torch.testing.assert_close(logps, expected)
    torch.testing.assert_close(entropy, expected_entropy)
    torch.testing.assert_close(grads, expected_grads)


def test_frozen_head_gets_no_gradient():
    hidden, weight, targets, _ = inputs(dtype=torch.float32)
    weight = weight.detach()
    linear_logps(hidden, weight, targets)[0].sum().backward()
    assert hidden.grad is not None and weight.grad is None


def test_banned_target_is_an_error_not_minus_infinity():
    hidden, weight, targets, banned = inputs()
    banned[targets[3]] = True
    with pytest.raises(ValueError, match="banned"):
        linear_logps(hidden, weight, targets, banned=banned)


def test_no_tokens():
    logps, entropy = linear_logps(torch.zeros(0, 4), torch.zeros(3, 4), torch.zeros(0, dtype=torch.int64))
    assert logps.shape == entropy.shape == (0,)
