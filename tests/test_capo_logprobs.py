import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import capo.logprobs
from capo.logprobs import linear_logps, tile_width


def inputs(n=7, d=5, v=11, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, d, generator=generator, dtype=dtype)
    weight = torch.randn(v, d, generator=generator, dtype=dtype)
    suppressed = torch.zeros(v, dtype=torch.bool)
    suppressed[[0, 1, 2, 9]] = True  # the first three fill a tile of 3: a maximum of suppressed logits only
    targets = torch.tensor([3, 4, 3, 5, 6, 7, 10])[:n]
    return hidden.requires_grad_(), weight.requires_grad_(), targets, suppressed


def dense(hidden, weight, targets, temperature, suppressed):
    logits = (hidden @ weight.t()) / temperature
    logps = logits.masked_fill(suppressed, -torch.inf).log_softmax(-1)
    kept = logps[:, ~suppressed]
    return logps.gather(1, targets[:, None])[:, 0], -(kept.exp() * kept).sum(-1)


@pytest.mark.parametrize("rows", [2, 2048])
@pytest.mark.parametrize("chunk", [1, 3, 100, None])
def test_equals_the_dense_path_in_value_and_gradient(chunk, rows, monkeypatch):
    monkeypatch.setattr(capo.logprobs, "MAX_ROWS", rows)
    hidden, weight, targets, suppressed = inputs()
    out = torch.arange(1.0, 8.0, dtype=torch.float64)
    expected, expected_entropy = dense(hidden, weight, targets, 0.7, suppressed)
    expected_grads = torch.autograd.grad(expected @ out, (hidden, weight))
    logps, entropy = linear_logps(hidden, weight, targets, temperature=0.7, suppressed=suppressed, chunk=chunk)
    grads = torch.autograd.grad(logps @ out, (hidden, weight))
    torch.testing.assert_close(logps, expected)
    torch.testing.assert_close(entropy, expected_entropy)
    torch.testing.assert_close(grads, expected_grads)


def test_a_gpu_multiplies_tens_of_thousands_of_columns_at_a_time_a_cpu_what_fits_its_cache():
    # 2,048 rows: logits and their exponentials are 16 KiB per column, and 64 weights upcast from bf16 are 256 bytes
    weight = torch.zeros(151_936, 64, dtype=torch.bfloat16)
    assert tile_width(2048, weight, torch.float32) == 16 * 2**20 // (16 * 2**10 + 256)
    with FakeTensorMode():  # a CUDA tensor without CUDA
        weight = torch.empty(151_936, 64, dtype=torch.bfloat16, device="cuda")
        assert tile_width(2048, weight, torch.float32) == 512 * 2**20 // (16 * 2**10) == 32_768


def test_gradcheck():
    hidden, weight, targets, suppressed = inputs()
    assert torch.autograd.gradcheck(
        lambda h, w: linear_logps(h, w, targets, temperature=0.7, suppressed=suppressed, chunk=4)[0], (hidden, weight)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_accumulated_in_float32(dtype):
    # Against float64 on the same rounded inputs: what is left is float32's error, not bf16's of 1e-2.
    hidden, weight, targets, suppressed = (x.detach() for x in inputs(d=64))
    hidden, weight = hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()
    expected, _ = dense(hidden.double(), weight.double(), targets, 1.0, suppressed)
    logps, entropy = linear_logps(hidden, weight, targets, suppressed=suppressed, chunk=4)
    assert logps.dtype == entropy.dtype == torch.float32
    torch.testing.assert_close(logps, expected.float(), rtol=1e-5, atol=1e-5)
    grads = torch.autograd.grad(logps.sum(), (hidden, weight))
    expected_grads = torch.autograd.grad(expected.sum(), (hidden, weight))
    # Gradients come back in the inputs' dtype, so to its rounding: 2^-8 for bf16.
    torch.testing.assert_close(grads, expected_grads, rtol=1e-2, atol=1e-2)


def test_autocast_outside_does_not_lower_the_precision_inside():
    hidden, weight, targets, _ = inputs(dtype=torch.float32)
    expected = linear_logps(hidden, weight, targets)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(linear_logps(hidden, weight, targets)[0], expected)


def test_large_logits_neither_overflow_nor_lose_the_target():
    # logits of +-1e4: exp would overflow without the running maximum, which only the last tile raises
    hidden = torch.tensor([[1e4]], requires_grad=True)
    weight = torch.tensor([[-1.0], [0.0], [0.5], [1.0]])
    logps, entropy = linear_logps(hidden, weight, torch.tensor([3]), chunk=1)
    logps.sum().backward()
    assert logps == 0 and entropy == 0 and hidden.grad.isfinite().all()
    assert linear_logps(hidden, weight, torch.tensor([0]), chunk=1)[0] == -2e4


def test_only_what_is_trained_gets_a_gradient():
    hidden, weight, targets, _ = inputs()
    linear_logps(hidden, weight.detach(), targets)[0].sum().backward()
    assert hidden.grad is not None
    linear_logps(hidden.detach(), weight, targets)[0].sum().backward()
    assert weight.grad is not None
    assert not linear_logps(hidden.detach(), weight.detach(), targets)[0].requires_grad


def test_bad_targets_are_errors_not_minus_infinity():
    hidden, weight, targets, suppressed = inputs()
    with pytest.raises(ValueError, match="token 3 is suppressed"):
        linear_logps(hidden, weight, targets, suppressed=suppressed.index_fill(0, targets[:1], True))
    with pytest.raises(ValueError, match=r"in \[0, 11\), got -100"):
        linear_logps(hidden, weight, targets.index_fill(0, torch.tensor([2]), -100))
    with pytest.raises(ValueError, match="int64"):
        linear_logps(hidden, weight, targets[:-1])
    with pytest.raises(ValueError, match="hidden"):
        linear_logps(hidden[:, :-1], weight, targets)


def test_no_tokens():
    hidden = torch.zeros(0, 4, requires_grad=True)
    logps, entropy = linear_logps(hidden, torch.zeros(3, 4), torch.zeros(0, dtype=torch.int64))
    assert logps.shape == entropy.shape == (0,)
    logps.sum().backward()
    assert hidden.grad.shape == (0, 4)
