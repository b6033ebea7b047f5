"""Several processes do what one does: the same reports, gradients and weights, however the model lies on them."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from capo.fsdp import ParallelConfig
from capo.ranks import LostRankError, Ranks, split_by_cost
from radflow.models.tiny import TinyConfig, build_tiny

ROOT = Path(__file__).parent.parent
WHOLE, CUT = 100_000, 300  # token budgets: one micro-batch, several
ALONE = [f"replicate,lora,{WHOLE},capo", f"replicate,full,{WHOLE},capo", f"replicate,lora,{WHOLE},dapo"]
SETTINGS = {
    1: [*ALONE, f"replicate,lora,{CUT},capo"],
    2: [
        f"replicate,lora,{CUT},capo",
        f"replicate,lora,{CUT},dapo",
        f"full,lora,{WHOLE},capo",
        f"full,lora,{CUT},capo",
        f"full,full,{CUT},capo",
    ],
    4: [
        f"replicate,full,{WHOLE},capo",
        f"hybrid,lora,{CUT},capo",
        f"hybrid,full,{WHOLE},capo",
        f"full,lora,{CUT},capo",
    ],
}


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def launch(size, *arguments, program="rank_work.py"):
    """Two nodes where there are four ranks, so that hybrid sharding has something to tell apart."""
    nodes, port = (2, free_port()) if size == 4 else (1, free_port())
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nnodes",
        str(nodes),
        "--nproc-per-node",
        str(size // nodes),
        "--master-addr",
        "127.0.0.1",
        "--master-port",
        str(port),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [*command, "--node-rank", str(node), str(ROOT / "tests" / program), *map(str, arguments)],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for node in range(nodes)
    ]


@pytest.fixture(scope="module")
def results(tmp_path_factory, studies):
    """(ranks, setting) -> gradients of the first update, weights after five steps, facts."""
    out = tmp_path_factory.mktemp("ranks")
    model = out / "model"
    build_tiny(
        model, [study.report for study in studies], TinyConfig(hidden_size=64, layers=2, vision_hidden=64), seed=0
    )
    found = {}
    for size, settings in SETTINGS.items():
        for process in launch(size, model, out, *settings):
            _, errors = process.communicate(timeout=240)
            assert process.returncode == 0, errors[-3000:]
        for setting in settings:
            name = f"{out}/{size}-{setting}"
            facts = json.loads(Path(f"{name}.json").read_text())
            found[size, setting] = load_file(f"{name}.gradients"), load_file(f"{name}.weights"), facts
            if ",lora," in setting:
                facts["adapter"] = load_file(f"{name}.adapter/adapter_model.safetensors")
    return found


CASES = [(size, setting) for size, settings in SETTINGS.items() for setting in settings if (size, setting)[0] > 1]


@pytest.mark.parametrize("case", [*CASES, (1, f"replicate,lora,{CUT},capo")], ids=str)
def test_gradients_weights_reports_and_metrics_are_those_of_one_process(results, case):
    _, training, _, objective = case[1].split(",")
    gradients, weights, facts = results[case]
    expected_gradients, expected_weights, expected = results[1, f"replicate,{training},{WHOLE},{objective}"]
    assert facts["sampled"] == expected["sampled"]
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        scale = expected_gradients[name].norm()
        assert (gradient - expected_gradients[name]).norm() <= 1e-5 * scale + 1e-9, name
    for name, weight in weights.items():
        # nine updates of at most 1e-3 each; a gradient that is off by its rounding moves a weight by 1e-5 of that
        assert (weight - expected_weights[name]).abs().max() <= 1e-6, name
    for row, wanted in zip(facts["rows"], expected["rows"], strict=True):
        assert row == pytest.approx(wanted, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("case", [case for case in CASES if ",lora," in case[1]], ids=str)
def test_adapters_of_all_shardings_are_saved_whole(results, case):
    _, weights, facts = results[case]
    assert len(facts["adapter"]) == len(weights) == 2 * 7 * 2
    for name, tensor in facts["adapter"].items():
        ours = name.replace("base_model.model.", "model.").removesuffix(".weight").replace("lora_A", "lora_a")
        ours = ours.replace("lora_B", "lora_b")
        assert torch.equal(tensor, weights[ours]), name


def test_each_rank_holds_its_share_of_a_sharded_model(results):
    whole = results[1, ALONE[0]][2]["local"][0]
    assert results[1, ALONE[0]][2]["modules"] == 0
    for size, setting, parts in (
        (2, f"full,lora,{WHOLE},capo", 2),
        (4, f"full,lora,{CUT},capo", 4),
        (4, f"hybrid,lora,{CUT},capo", 2),
    ):
        local = results[size, setting][2]["local"]
        # rows are dealt out whole: a matrix of few rows leaves some rank one row more
        assert max(local) <= 1.05 * whole / parts + 1000 and sum(local) >= whole
    assert max(results[2, f"replicate,lora,{CUT},capo"][2]["local"]) == whole


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=40), st.integers(1, 8))
def test_every_item_goes_to_one_rank_and_loads_are_close(costs, parts):
    split = split_by_cost(costs, parts)
    assert sorted(i for items in split for i in items) == list(range(len(costs)))
    loads = [sum(costs[i] for i in items) for items in split]
    # Graham's bound, against the trivial lower bound of the best split
    best = max(max(costs), -(-sum(costs) // parts))
    assert max(loads) <= 2 * best
    assert len(costs) < parts or all(split)


def test_balanced_by_hand():
    assert split_by_cost([5, 1, 4, 3], 2) == [[0, 1], [2, 3]]


def test_alone_everything_is_its_own_answer():
    ranks = Ranks()
    assert ranks.is_main and ranks.all_gather({"a": 1}) == [{"a": 1}] and ranks.all_reduce_sum(2.5) == 2.5
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.tensor([1.0, 2.0])
    ranks.all_reduce_gradients([parameter])
    assert parameter.grad.tolist() == [1.0, 2.0] and ranks.assign([3, 1, 2]) == [0, 1, 2]


@pytest.mark.parametrize("where", ["exchange", "update"])
def test_a_rank_that_does_not_answer_is_named_with_the_stage(where):
    (process,) = launch(2, where, program="rank_silent.py")
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert (
        "rank 0 of 2, stage rl: not every rank answered; the time limit is 3 s" in errors and "Ranks 1 failed" in errors
    )


GLOO = "[/__w/pytorch/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:457] Connection closed by peer [::1]:80"


@pytest.mark.parametrize("error", [RuntimeError(GLOO), torch.distributed.DistBackendError("NCCL: remote error")])
def test_a_rank_that_dies_during_an_exchange_of_ours_or_of_torch_is_said_with_the_stage(error):
    ranks = Ranks(1, 2)
    ranks.stage = "rl"
    said = r"rank 1 of 2, stage rl: .*(Connection closed by peer|NCCL)"
    with pytest.raises(LostRankError, match=said), ranks.exchanges():
        raise error
    with pytest.raises(RuntimeError, match="shapes differ"), ranks.exchanges():  # no exchange
        raise RuntimeError("shapes differ")


def test_a_rank_that_leaves_ends_the_threads_of_its_messages(tmp_path):
    """A run that was complete was reported as failed: a thread of gloo let go of a tensor while Python was ending.

    The two threads that stay are of the default group, which DTensor's caches hold; nothing is under way there by then.
    """
    (process,) = launch(2, tmp_path, program="rank_leaving.py")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert [path.read_text() for path in sorted(tmp_path.iterdir())] == ["4 2", "4 2"]


def test_contradictions_are_refused():
    with pytest.raises(ValueError, match="expected sharding hybrid or full with offload"):
        ParallelConfig(offload=True)
    with pytest.raises(ValueError, match="expected timeout_s above 0"):
        ParallelConfig(timeout_s=0)
