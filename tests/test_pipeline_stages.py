"""What the stages of a run share: when a run that is asked to stop does so, and what a stage leaves in memory."""

import gc
import json
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from capo.checkpoint import Checkpoints
from capo.config import OptimizerConfig
from capo.fsdp import ParallelConfig, shard_policy
from capo.journal import Journal
from capo.ranks import Ranks
from capo.stopping import StopRequested, StopSignal
from capo.trainer import Trainer
from radflow import train
from radflow.dashboard.archive import Archive
from radflow.models import qwen_vl
from radflow.models.start import ModelConfig
from radflow.pipeline.generation import PromptStore
from radflow.pipeline.run_config import Config
from radflow.pipeline.stage_loop import StageLoop

LIVE = SimpleNamespace(begin=lambda name: None, write_dashboard=lambda: None)


def run_of(folder):
    config = Config(run_dir=folder, model=ModelConfig(training="full"), stages="sft")
    corpus = SimpleNamespace(fingerprint="studies")
    kept = {"prompts": PromptStore(None), "live": None}
    return SimpleNamespace(config=config, corpus=corpus, folder=folder, ranks=Ranks(), stop=StopSignal(), **kept)


def test_an_update_that_has_begun_when_the_signal_comes_is_finished_and_saved(tmp_path):
    run, layer = run_of(tmp_path), nn.Linear(2, 1)
    trainer = Trainer(layer, OptimizerConfig(lr=0.1), num_steps=9)
    stage = StageLoop(run, "sft", trainer, every=100)

    def step(number):
        for half in range(2):  # two updates in a step, the signal between them
            layer(torch.ones(1, 2)).sum().backward()
            trainer.step()
            run.stop.requested = run.stop.requested or (number == 2 and half == 0)
        return {"loss": 0.0}

    with pytest.raises(StopRequested, match="as asked"):
        stage.run(9, step, title="SFT", shown="loss")
    assert trainer.num_updates == 6
    (saved,) = (tmp_path / "sft" / "checkpoints").glob("step_*")
    facts = json.loads((saved / "checkpoint.json").read_text())
    rows = (tmp_path / "sft" / "metrics.jsonl").read_text().splitlines()
    assert facts["step"] == len(rows) == 3 and facts["num_updates"] == 6
    resumed = Trainer(nn.Linear(2, 1), OptimizerConfig(lr=0.1), num_steps=9)
    assert StageLoop(run_of(tmp_path), "sft", resumed, every=100).first == 3
    assert torch.equal(resumed.policy.weight, layer.weight)


def write_steps(folder, last, *, first=0, stopped_in=None):
    """Steps of a stage, saved every 2; the weight after n steps is n, whatever it goes on from."""
    layer = nn.Linear(1, 1, bias=False)
    stage = StageLoop(run_of(folder), "rl", Trainer(layer, OptimizerConfig(), num_steps=9), every=2)
    assert stage.first == first and (not first or layer.weight.item() == first)
    archive = stage.archive("rollouts")

    def step(number):
        archive.append(number, [{"report": f"of step {number}"}])
        if number == stopped_in:
            raise StopRequested("stopped after the rollouts")
        layer.weight.data.fill_(number + 1)
        return {"reward": number / 7}

    stage.run(last, step, title="CAPO", shown="reward")


def flip(path):
    path.write_bytes(path.read_bytes().replace(b"0.1428", b"0.1429"))  # another reward of step 1, still JSON


def cut(path):
    path.write_bytes(path.read_bytes()[: -path.stat().st_size // 3])


def empty(path):
    path.write_bytes(b"")


METRICS, ROLLOUTS = "metrics.jsonl", "rollouts/steps_00000000.jsonl.gz"


@pytest.mark.parametrize("log", [METRICS, ROLLOUTS])
def test_a_checkpoint_after_steps_whose_metrics_or_rollouts_are_lost_is_passed_over(tmp_path, log):
    quiet, run = tmp_path / "quiet", tmp_path / "run"
    write_steps(quiet, 6)
    write_steps(run, 4)
    cut(run / "rl" / log)
    said = f"step_00000004: is of 4 steps, but {run / 'rl' / log} has lost or changed some of them.*passed over"
    with pytest.warns(UserWarning, match=said):
        write_steps(run, 6, first=2)
    for name in (METRICS, ROLLOUTS):
        assert (run / "rl" / name).read_bytes() == (quiet / "rl" / name).read_bytes()


@pytest.mark.parametrize(
    ("log", "damage"), [(METRICS, flip), (METRICS, empty), (METRICS, Path.unlink), (ROLLOUTS, empty)]
)
def test_metrics_or_rollouts_that_fit_no_checkpoint_are_named(tmp_path, log, damage):
    write_steps(tmp_path, 4)
    damage(tmp_path / "rl" / log)
    with pytest.warns(UserWarning), pytest.raises(ValueError, match=rf"no checkpoint .*{log} has lost or changed"):
        write_steps(tmp_path, 6)


def test_rollouts_of_a_step_that_was_stopped_are_not_missed_afterwards(tmp_path):
    with pytest.raises(StopRequested):
        write_steps(tmp_path, 6, stopped_in=3)
    Archive(tmp_path / "rl/rollouts").drop_from(3)  # as a start does that is killed just then
    write_steps(tmp_path, 6, first=3)


def test_rollouts_may_be_removed(tmp_path):
    write_steps(tmp_path, 4)
    (tmp_path / "rl" / ROLLOUTS).unlink()
    write_steps(tmp_path, 6, first=4)
    write_steps(tmp_path, 8, first=6)
    assert list(Archive(tmp_path / "rl/rollouts").members()) == [4, 5, 6, 7]


def test_metrics_and_reports_are_on_the_disk_before_the_checkpoint_that_follows_them(tmp_path, monkeypatch):
    events = []
    monkeypatch.setattr(Journal, "sync", lambda self: events.append("metrics"))
    monkeypatch.setattr(Archive, "sync", lambda self: events.append("reports"))
    monkeypatch.setattr(Checkpoints, "save", lambda self, step, *_: events.append(step))
    stage = StageLoop(run_of(tmp_path), "rl", Trainer(nn.Linear(2, 1), OptimizerConfig(), num_steps=9), every=2)
    stage.archive("rollouts")
    stage.run(5, lambda number: {"reward": 0.0}, title="CAPO", shown="reward")
    assert events == ["reports", "metrics", 2, "reports", "metrics", 4]


def test_a_stage_that_is_stopped_while_it_samples_is_saved_as_it_was_before_that_step(tmp_path):
    run, layer = run_of(tmp_path), nn.Linear(2, 1)
    stage = StageLoop(run, "rl", Trainer(layer, OptimizerConfig(), num_steps=9), every=100)

    def step(number):
        if number == 2:
            raise StopRequested("stopped while sampling")
        return {"reward": 0.0}

    with pytest.raises(StopRequested, match="while sampling"):
        stage.run(9, step, title="CAPO", shown="reward")
    (saved,) = (tmp_path / "rl" / "checkpoints").glob("step_*")
    assert json.loads((saved / "checkpoint.json").read_text())["step"] == 2


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, compute):
        return compute()

    def blocks(self):
        return [self.layer]


def test_the_weights_of_a_stage_are_gone_when_it_ends(tmp_path, monkeypatch):
    held, run = [], run_of(tmp_path)
    run.live = LIVE

    def work(run, start):
        policy = Block()
        types = {"frozen_dtype": torch.float32, "gathered_dtype": torch.bfloat16}
        shard_policy(policy, ParallelConfig(), run.ranks, torch.device("cpu"), **types)
        policy(lambda: policy.layer(torch.ones(1, 4, dtype=torch.bfloat16)).sum()).backward()
        held.extend([weakref.ref(policy), weakref.ref(policy.layer.weight)])

    monkeypatch.setattr(train, "fine_tune", work)
    gc.collect()
    gc.disable()  # Python's collector comes by chance otherwise: after many stages, or never
    try:
        train.run_stages(run, tmp_path)
        assert len(held) == 2 and all(reference() is None for reference in held)
    finally:
        gc.enable()
        run.ranks.shutdown()


def test_a_rank_does_not_skip_a_stage_whose_product_another_has_just_written(tmp_path, monkeypatch):
    # the export of a small model was there before a slow rank looked for it; it ended the run, and the others waited
    class SecondRank(Ranks):
        def all_gather(self, value):
            return [["sft"], value]  # the first rank looked before the product was there

    run, done = run_of(tmp_path), []
    run.ranks = SecondRank(1, 1)
    (tmp_path / "sft" / "model").mkdir(parents=True)
    monkeypatch.setattr(train, "fine_tune", lambda run, start: done.append("sft"))
    train.run_stages(run, tmp_path)
    assert done == ["sft"]


@pytest.mark.parametrize("write", [True, False])
def test_only_the_rank_that_writes_keeps_a_copy_of_the_model(policy, processor, tmp_path, monkeypatch, write):
    # every rank of eight kept the whole 7B model in host memory, 133 GB together
    held, most = [], 0

    def put_together(tensor):
        nonlocal most
        most = max(most, sum(one() is not None for one in held))
        copy = tensor.clone()
        held.append(weakref.ref(copy))
        return copy

    monkeypatch.setattr(qwen_vl, "whole", put_together)
    policy.save(tmp_path / "model", processor, write=write)
    assert most == (len(held) - 1 if write else 0) and len(held) > 10
    assert (tmp_path / "model").exists() == write
