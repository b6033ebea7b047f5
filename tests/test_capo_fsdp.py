"""How a policy is laid over devices, and what ranks need for it: without a GPU, in one process."""

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule

from capo import fsdp, ranks
from capo.checkpoint import Checkpoints
from capo.config import OptimizerConfig
from capo.fsdp import ParallelConfig, build_mesh, gathered, shard_policy
from capo.ranks import Ranks, choose_backend
from capo.sft import sft_step
from capo.trainer import Trainer
from radflow.pipeline.generation import build_prompt

CPU, META = torch.device("cpu"), torch.device("meta")


class Two(nn.Module):
    """Two layers, called as a policy is; `device` is set by whoever lays it out."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))

    def forward(self, compute):
        return compute()

    def blocks(self):
        return list(self.layers)

    def loss(self, inputs):
        return self(lambda: self.layers[1](self.layers[0](inputs)).square().sum())


@pytest.fixture
def alone():
    """One process, which leaves whatever group it made."""
    alone = Ranks(timeout_s=60)
    yield alone
    alone.shutdown()
    assert not dist.is_initialized()


def test_a_policy_is_sharded_and_trained_by_versions_of_torch_without_the_newest_method(alone, monkeypatch):
    # torch 2.11 has no set_reduce_scatter_unused_params: every sharded start ended in an AttributeError
    monkeypatch.delattr(FSDPModule, "set_reduce_scatter_unused_params", raising=False)
    plain, laid_out, inputs = Two(), Two(), torch.ones(2, 6)
    alone.ensure_process_group()
    shape = {"world_size": 1, "local_size": 1, "device": CPU, "timeout_s": 60}
    fsdp.shard(laid_out, laid_out.blocks(), build_mesh("full", **shape), device=CPU)
    for policy in (plain, laid_out):
        trainer = Trainer(policy, OptimizerConfig(lr=0.1), num_steps=1)
        policy.loss(inputs).backward()
        trainer.step()
    for mine, other in zip(laid_out.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine.full_tensor(), other)


def test_one_process_trains_float32_weights_of_which_a_bfloat16_copy_computes(alone):
    policy, inputs = Two(), torch.ones(2, 6, dtype=torch.bfloat16)
    before = policy.layers[0].weight.detach().clone()
    shard_policy(policy, ParallelConfig(), alone, CPU, frozen_dtype=torch.float32, gathered_dtype=torch.bfloat16)
    trainer = Trainer(policy, OptimizerConfig(lr=1e-6), num_steps=1)
    policy.loss(inputs).backward()
    trainer.step()
    after = policy.layers[0].weight.full_tensor()
    # Adam's first update moves each weight by lr; next to weights of up to 0.4 bfloat16 would round it away
    assert after.dtype == torch.float32 and not torch.equal(after, before)
    assert torch.equal(after.bfloat16(), before.bfloat16()) or (after - before).abs().max() < 2e-6
    with gathered(policy):
        assert torch.equal(policy.layers[0].weight, after.bfloat16())


def test_float32_on_one_process_stays_as_it_was(alone):
    policy = Two()
    shard_policy(policy, ParallelConfig(), alone, CPU, frozen_dtype=torch.float32)
    assert not fsdp.sharded_modules(policy) and not dist.is_initialized()


def test_an_offloaded_policy_computes_where_it_was_told_although_its_weights_are_on_the_host(policy, monkeypatch):
    # Between passes it said CPU, and layouts and masks were made there for a pass on the GPU.
    monkeypatch.setattr(fsdp, "fully_shard", lambda module, **_: module)
    monkeypatch.setattr(fsdp, "_move", lambda *_: None)
    monkeypatch.setattr(policy, "reshard", lambda: None, raising=False)
    assert policy.device == CPU
    fsdp.shard(policy, policy.blocks(), None, device=META, offload=True)
    assert policy.output_weight().device == CPU and policy.device == META


def test_nccl_is_taken_only_if_each_rank_of_a_node_has_a_card_of_its_own():
    assert choose_backend(8, 8) == choose_backend(8, 4) == "cpu:gloo,cuda:nccl"
    assert choose_backend(1, 2) == choose_backend(0, 1) == choose_backend(4, 8) == "gloo"


def test_two_ranks_share_the_only_card(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(ranks, "_agree_on_start_name", lambda *_: "start")
    store = dist.HashStore()
    monkeypatch.setattr(ranks, "rendezvous", lambda *_, **__: iter([(store, 3, 4)]))
    started = []
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **_: started.append(backend))
    monkeypatch.setattr(dist, "new_group", lambda **_: None)
    for name, value in (("WORLD_SIZE", "4"), ("RANK", "3"), ("LOCAL_RANK", "3"), ("LOCAL_WORLD_SIZE", "4")):
        monkeypatch.setenv(name, value)
    for other in range(3):  # one node has cards enough; what counts is that this one has not
        dist.PrefixStore("start", store).set(f"backend/{other}", "cpu:gloo,cuda:nccl")
    Ranks.from_environment(timeout_s=5)
    assert chosen == [1] and started == ["gloo"]


def test_every_group_has_the_time_limit_of_the_run(tmp_path, monkeypatch):
    limits = []
    monkeypatch.setattr(dist, "new_group", lambda **options: limits.append(options["timeout"]))
    monkeypatch.setattr(dist, "new_subgroups_by_enumeration", lambda rows, timeout: (limits.append(timeout), None))
    monkeypatch.setattr(fsdp.DeviceMesh, "from_group", lambda *_, **__: None)
    Checkpoints(tmp_path, Ranks(0, 2, timeout_s=7), identity={})
    build_mesh("hybrid", world_size=4, local_size=2, device=CPU, timeout_s=7)
    assert limits == [timedelta(seconds=7)] * 3


def test_gradients_are_added_up_in_buffers_of_limited_size_and_a_large_one_without_a_copy(monkeypatch):
    sent = []

    def double(tensor):
        sent.append((tensor.data_ptr(), tensor.numel()))
        tensor.mul_(2)  # as if the other rank had the same

    monkeypatch.setattr(ranks, "BUCKET", 40)  # ten float32
    monkeypatch.setattr(dist, "all_reduce", double)
    parameters = [nn.Parameter(torch.zeros(size)) for size in (4, 5, 2, 30, 1)]
    parameters.append(nn.Parameter(torch.zeros(3, dtype=torch.bfloat16)))
    for number, parameter in enumerate(parameters):
        parameter.grad = torch.full_like(parameter, float(number))
    Ranks(0, 2).all_reduce_gradients(parameters)
    assert [numel for _, numel in sent] == [9, 2, 30, 4] and sent[2][0] == parameters[3].grad.data_ptr()
    assert [float(p.grad.float().mean()) for p in parameters] == [0, 2, 4, 6, 8, 10]
    assert all(p.grad.dtype == p.dtype and p.grad.shape == p.shape for p in parameters)


class Counting(Ranks):
    """Counts its exchanges."""

    exchanges = 0

    def all_gather(self, value):
        self.exchanges += 1
        return super().all_gather(value)


def test_a_step_exchanges_as_often_however_many_micro_batches_it_has(policy, processor, studies):
    found = []
    for budget in (100_000, 1):
        ranks = Counting()
        trainer = Trainer(policy, OptimizerConfig(token_budget=budget), num_steps=9, ranks=ranks)
        reports = [processor.encode_report(study.report) for study in studies[:3]]
        sft_step(trainer, [build_prompt(processor, study) for study in studies[:3]], reports)
        found.append(ranks.exchanges)
    assert found == [2, 2]  # how many micro-batches the others have, and the loss
