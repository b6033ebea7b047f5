from contextlib import nullcontext

import pytest
import torch
import torch._dynamo.testing
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


def dense(hidden, weight, targets, temperature, suppressed, bias=0.0):
    logits = (hidden @ weight.t() + bias) / temperature
    logps = logits.masked_fill(suppressed, -torch.inf).log_softmax(-1)
    kept = logps[:, ~suppressed]
    return logps.gather(1, targets[:, None])[:, 0], -(kept.exp() * kept).sum(-1)


def head_bias(dtype=torch.float64):
    return torch.linspace(-2, 3, 11, dtype=dtype).requires_grad_()


@pytest.mark.parametrize("rows", [2, 2048])
@pytest.mark.parametrize("chunk", [1, 3, 100, None])
def test_equals_the_dense_path_in_value_and_gradient(chunk, rows, monkeypatch):
    monkeypatch.setattr(capo.logprobs, "MAX_ROWS", rows)
    hidden, weight, targets, suppressed = inputs()
    bias, out = head_bias(), torch.arange(1.0, 8.0, dtype=torch.float64)
    for given, learned in (({}, (hidden, weight)), ({"bias": bias}, (hidden, weight, bias))):
        expected, expected_entropy = dense(hidden, weight, targets, 0.7, suppressed, **given)
        expected_grads = torch.autograd.grad(expected @ out, learned)
        options = {"temperature": 0.7, "suppressed": suppressed, "chunk": chunk, **given}
        logps, entropy = linear_logps(hidden, weight, targets, **options)
        torch.testing.assert_close(logps, expected)
        torch.testing.assert_close(entropy, expected_entropy)
        torch.testing.assert_close(torch.autograd.grad(logps @ out, learned), expected_grads)


def test_a_gpu_multiplies_tens_of_thousands_of_columns_at_a_time_a_cpu_what_fits_its_cache():
    # 2,048 rows: logits and their exponentials are 16 KiB per column, and 64 weights upcast from bf16 are 256 bytes, so
    # that 8 MiB hold 504; 100 rows: 800 and 256 bytes, 7943. Of these whole cache lines: multiples of 64.
    weight = torch.zeros(151_936, 64, dtype=torch.bfloat16)
    assert tile_width(2048, weight, torch.float32) == 448
    assert tile_width(100, weight, torch.float32) == 7936
    assert tile_width(2**20, weight, torch.float32) == 64  # never less
    with FakeTensorMode():  # a CUDA tensor without CUDA
        weight = torch.empty(151_936, 64, dtype=torch.bfloat16, device="cuda")
        assert tile_width(2048, weight, torch.float32) == 512 * 2**20 // (16 * 2**10) == 32_768


def test_a_bias_decides_alone_where_the_head_is_zero():
    # softmax of log 1, log 2, log 5 is 1/8, 1/4, 5/8, whatever the hidden state; d logp / d bias = onehot - p
    bias = torch.tensor([1.0, 2.0, 5.0]).log().requires_grad_()
    logps, _ = linear_logps(torch.randn(1, 4), torch.zeros(3, 4), torch.tensor([1]), bias=bias, chunk=2)
    logps.sum().backward()
    torch.testing.assert_close(logps.exp(), torch.tensor([0.25]))
    torch.testing.assert_close(bias.grad, torch.tensor([-0.125, 0.75, -0.625]))


def test_gradcheck():
    hidden, weight, targets, suppressed = inputs()
    options = {"temperature": 0.7, "suppressed": suppressed, "chunk": 4}
    assert torch.autograd.gradcheck(
        lambda h, w, b: linear_logps(h, w, targets, bias=b, **options)[0], (hidden, weight, head_bias())
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


@pytest.mark.parametrize("trained", [(0,), (1,), (2,), (0, 2), (1, 2), ()])
def test_only_what_is_trained_gets_a_gradient(trained):
    hidden, weight, targets, _ = inputs()
    tensors = (hidden, weight, head_bias())
    expected = torch.autograd.grad(linear_logps(hidden, weight, targets, bias=tensors[2])[0].sum(), tensors)
    tensors = [x.detach().requires_grad_(i in trained) for i, x in enumerate(tensors)]
    logps, entropy = linear_logps(tensors[0], tensors[1], targets, bias=tensors[2])
    assert logps.requires_grad == bool(trained) and not entropy.requires_grad
    if trained:
        logps.sum().backward()
    for i, tensor in enumerate(tensors):
        assert tensor.grad is None if i not in trained else torch.equal(tensor.grad, expected[i])


def test_a_frozen_head_saves_one_number_per_hidden_value_and_a_trained_one_its_inputs():
    hidden, weight, targets, _ = inputs()
    for head, numbers in ((weight.detach(), 7 * 5), (weight, 2 * 7 * 5 + 11 * 5 + 2 * 7)):
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, saved=saved: saved.append(x.numel()), lambda x: x):
            linear_logps(hidden, head, targets)
        assert sum(saved) == numbers


def gradients(call, tensors):
    """Values, and gradients of the tensors that need one; out differs per row, so that no mix-up cancels."""
    logps, entropy = call(*tensors)
    learned = [x for x in tensors if x.requires_grad]
    return logps, entropy, *torch.autograd.grad(logps @ torch.linspace(1, 2, len(logps), dtype=logps.dtype), learned)


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])  # inductor would need a C++ compiler
def test_compiles_to_one_graph_with_the_same_values_and_gradients(backend, trained):
    torch._dynamo.reset()
    hidden, weight, targets, suppressed = inputs()
    tensors = (hidden, weight.detach().requires_grad_(trained), head_bias().detach().requires_grad_(trained))

    def call(hidden, weight, bias):
        options = {"bias": bias, "temperature": 0.7, "suppressed": suppressed}
        logps, entropy = linear_logps(hidden.tanh(), weight, targets, **options)
        return 2 * logps, entropy

    compiled = torch.compile(call, fullgraph=True, backend=backend)
    torch.testing.assert_close(gradients(compiled, tensors), gradients(call, tensors))


def test_one_compiled_graph_serves_batches_of_every_length():
    torch._dynamo.reset()
    hidden, weight, targets, _ = inputs()
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(linear_logps, fullgraph=True, dynamic=True, backend=counter)
    for length in (2, 5, 7):
        found = compiled(hidden[:length], weight, targets[:length])
        torch.testing.assert_close(found, linear_logps(hidden[:length], weight, targets[:length]))
    assert counter.frame_count == 1


def test_a_compiled_call_refuses_bad_targets_too():
    hidden, weight, targets, _ = inputs()
    compiled = torch.compile(linear_logps, fullgraph=True, backend="aot_eager")
    with pytest.raises(ValueError, match=r"in \[0, 11\), got 11"):
        compiled(hidden, weight, targets + 1)


def test_only_a_cpu_call_reads_a_value(monkeypatch):
    # Tensors without values, which raise where one is read: on a GPU that would wait for all work before it.
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    hidden, weight, targets, suppressed = (x.detach().to("meta") for x in inputs())
    with pytest.raises(RuntimeError, match="meta"):
        bool(suppressed.any())
    bias, forward, backward = weight[:, 0], capo.logprobs._forward, capo.logprobs._head_gradient
    logps, _, normalisers, slope = forward._init_fn(hidden, weight, bias, targets, 0.7, suppressed, 4, True)
    assert slope.shape == hidden.shape
    head = (hidden, weight, bias, targets, normalisers, suppressed)
    assert [x.shape for x in backward._init_fn(logps, *head, 0.7, 4, True, True)] == [(11, 5), (11,)]


@pytest.mark.parametrize("argnums", [(0,), (1,), (2,), (0, 1, 2)])
def test_torch_func_gives_the_same_gradients(argnums):
    hidden, weight, targets, suppressed = inputs()
    tensors = (hidden, weight, head_bias())

    def loss(hidden, weight, bias):
        logps, entropy = linear_logps(hidden, weight, targets, bias=bias, temperature=0.7, suppressed=suppressed)
        return (logps * torch.arange(1.0, 8.0)).sum() + entropy.sum()

    expected = torch.autograd.grad(loss(*tensors), [tensors[i] for i in argnums])
    found, value = torch.func.grad_and_value(loss, argnums=argnums)(*(x.detach() for x in tensors))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(value, loss(*tensors).detach())


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_gradients_of_each_token_by_vmap_sum_to_the_gradient_of_all():
    hidden, weight, targets, _ = inputs()

    def logp(hidden, weight, target):
        return linear_logps(hidden[None], weight, target[None])[0][0]

    each = torch.func.vmap(torch.func.grad(logp, argnums=(0, 1)), in_dims=(0, None, 0))
    for_hidden, for_weight = each(hidden.detach(), weight.detach(), targets)
    expected = torch.autograd.grad(linear_logps(hidden, weight, targets)[0].sum(), (hidden, weight))
    torch.testing.assert_close((for_hidden, for_weight.sum(0)), expected)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_the_gradient_of_a_vmap_is_that_of_its_members():
    # Inside, a tensor does not say that it needs a gradient.
    hidden, weight, targets, _ = inputs()
    batches = torch.stack([hidden.detach(), 2 * hidden.detach()])

    def total(batches, weight):
        return torch.func.vmap(lambda each: linear_logps(each, weight, targets)[0])(batches).sum()

    found = torch.func.grad(total, argnums=(0, 1))(batches, weight.detach())
    batches.requires_grad_()
    expected = torch.autograd.grad(
        sum(linear_logps(each, weight, targets)[0].sum() for each in batches), (batches, weight)
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["hidden", "weight", "bias"])
def test_a_second_derivative_is_an_error_and_not_zero(name):
    # The square would give the second derivative 2 alone if that of the log-probability were dropped in silence.
    hidden, weight, targets, _ = inputs()
    tensors = {"hidden": hidden, "weight": weight, "bias": head_bias()}
    of = tensors[name]
    loss = linear_logps(hidden, weight, targets, bias=tensors["bias"])[0].sum() + of.square().sum()
    (first,) = torch.autograd.grad(loss, of, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.autograd.grad(first.sum(), of)


def test_a_second_derivative_by_torch_func_is_an_error():
    hidden, weight, targets, _ = inputs()
    first = torch.func.grad(lambda h: linear_logps(h, weight, targets)[0].sum())
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.func.grad(lambda h: first(h).sum())(hidden.detach())


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
    with pytest.raises(ValueError, match=r"expected bias \[11\], got \[10\]"):
        linear_logps(hidden, weight, targets, bias=torch.zeros(10))


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_that_divides_to_nothing_is_refused(temperature):
    hidden, weight, targets, _ = inputs()
    with pytest.raises(ValueError, match="expected a finite temperature above 0"):
        linear_logps(hidden, weight, targets, temperature=temperature)


def test_no_tokens():
    hidden = torch.zeros(0, 4, requires_grad=True)
    logps, entropy = linear_logps(hidden, torch.zeros(3, 4), torch.zeros(0, dtype=torch.int64))
    assert logps.shape == entropy.shape == (0,)
    logps.sum().backward()
    assert hidden.grad.shape == (0, 4)
