"""One arithmetic for every sharding: bfloat16 computes, float32 is trained, adapters stay float32 when gathered."""

import pytest
import torch
from safetensors.torch import load_file
from test_capo_ranks import launch

from radflow.models.qwen_vl import load
from radflow.models.start import ModelConfig, compute_dtype, gathered_dtype, weights_dtype
from radflow.models.tiny import TinyConfig, build_tiny

CPU, GPU = torch.device("cpu"), torch.device("cuda")
RUNS = ("1-replicate", "2-replicate", "2-full")


@pytest.fixture(scope="module")
def results(tmp_path_factory, studies):
    out = tmp_path_factory.mktemp("bf16")
    config = TinyConfig(hidden_size=64, layers=2, vision_hidden=64)
    build_tiny(out / "start", [study.report for study in studies], config, seed=0)
    for size in (1, 2):
        (process,) = launch(size, out / "start", out, program="rank_bf16.py")
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors[-3000:]
    saved = {name: dict(load(out / f"{name}.model", dtype=None).named_parameters()) for name in RUNS}
    return {name: load_file(out / name) for name in RUNS}, saved


def weights(found):
    return {name: tensor for name, tensor in found.items() if name.startswith("weights/")}


def test_adapters_on_a_bfloat16_base_give_the_same_log_probabilities_sharded(results):
    # gathered in bfloat16 the adapters were rounded, and the log-probabilities off by 0.012 here
    runs, _ = results
    assert torch.equal(runs["2-full"]["lora"], runs["1-replicate"]["lora"])
    assert torch.equal(runs["2-full"]["merged"], runs["1-replicate"]["merged"])


def test_the_kl_before_the_first_update_is_exactly_0_and_the_sampler_reads_the_same_copy(results):
    for found in results[0].values():
        assert found["kl_before/0"] == 0 and found["kl_before/1"] > 0.01
        assert found["sampler_gap_max/0"] < 0.02  # the float32 masters would be further off than its rounding
        assert torch.equal(found["sampled"], results[0]["1-replicate"]["sampled"])


def test_replicated_and_sharded_full_training_in_bfloat16_are_one(results):
    runs, _ = results
    alone, replicate, full = (runs[name] for name in RUNS)
    assert alone["modules"] == replicate["modules"] == full["modules"] > 0
    for name, weight in weights(full).items():
        # two updates of at most 1e-3; only the order of adding up two float32 gradients differs
        assert (weight - replicate[name]).abs().max() <= 1e-6, name
    # With other neighbours in a micro-batch a product in bfloat16 rounds otherwise: 2^-8 in single elements
    for step in range(2):
        assert float(replicate[f"grad_norm/{step}"]) == pytest.approx(float(alone[f"grad_norm/{step}"]), rel=2**-8)


def test_what_is_saved_are_the_float32_masters(results):
    runs, saved = results
    for run in RUNS:
        named = weights(runs[run])
        assert all(tensor.dtype == torch.float32 for tensor in saved[run].values())
        assert not all(torch.equal(t, t.bfloat16().float()) for t in named.values())
        for name, tensor in saved[run].items():
            assert torch.equal(tensor, named[f"weights/{name}"]), name


def test_the_types_of_a_model_by_hand():
    lora, full = ModelConfig(path="m"), ModelConfig(training="full")
    table = [
        # config, device -> computes in, held as, cast to when gathered
        (lora, CPU, torch.float32, torch.float32, None),
        (lora, GPU, torch.bfloat16, torch.bfloat16, None),
        (full, CPU, torch.float32, torch.float32, None),
        (full, GPU, torch.bfloat16, torch.float32, torch.bfloat16),
        (ModelConfig(training="full", dtype="float32"), GPU, torch.float32, torch.float32, None),
        (ModelConfig(training="full", dtype="bfloat16"), CPU, torch.bfloat16, torch.float32, torch.bfloat16),
    ]
    for config, device, computes, held, gathered in table:
        found = compute_dtype(config, device), weights_dtype(config, device), gathered_dtype(config, device)
        assert found == (computes, held, gathered)
