"""Sharding: FSDP2 over NCCL with a checkpoint at world size 1, and two ranks on one card over gloo."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from gpu import work
from gpu.report import Bar, Report, exactly
from gpu.runner import Setting
from safetensors.torch import load_file, save_file
from torch import Tensor

from capo.checkpoint import Checkpoints
from capo.config import OptimizerConfig
from capo.fsdp import ParallelConfig, build_mesh, shard, shard_policy, sharded_modules
from capo.ranks import Ranks
from capo.sft import sft_step
from capo.trainer import Trainer
from radflow.models.qwen_vl import QwenVL, local, whole

GRADIENTS = Bar(at_most=1e-3)
LENGTHS = (9, 40, 21, 15)  # report tokens of the studies: ranks have unequal work
SHARDINGS = ("replicate", "full")


def gradients_of_a_step(policy: QwenVL, made: work.Model, ranks: Ranks) -> tuple[dict[str, Tensor], float, Trainer]:
    """One SFT step on the studies of this rank: gradients of the whole step before clipping, its loss, the trainer."""
    found: dict[str, Tensor] = {}
    trainer = Trainer(policy, OptimizerConfig(lr=1e-3, max_grad_norm=1e9, token_budget=200), num_steps=10, ranks=ranks)

    def keep(*_: object) -> None:
        named = ((name, p) for name, p in policy.named_parameters() if p.requires_grad)
        found.update({name: whole(p.grad).detach().float().cpu() for name, p in named})

    trainer.optimizer.register_step_pre_hook(keep)
    reports = work.random_reports(300, LENGTHS)
    own = ranks.assign([len(report) for report in reports])
    prompts = [made.prompt(number, pixels=112) for number in own]
    row = sft_step(trainer, prompts, [reports[i] for i in own], num_tokens=sum(LENGTHS))
    return found, row["loss"], trainer


def largest_gap(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Of any parameter: norm of the difference to norm of the gradient; infinite if parameters are missing."""
    if found.keys() != expected.keys():
        return float("inf")
    most = max(float(g.norm()) for g in expected.values())
    # A gradient that is 0 up to rounding (the key biases: softmax ignores them) is compared with the largest instead.
    return max(float((found[n] - g).norm() / max(float(g.norm()), 1e-4 * most)) for n, g in expected.items())


def small_model(setting: Setting) -> work.Model:
    """In float32, all language weights trained; two layers of the published widths on a card, with a small vocabulary:
    gradients of the published one would take gloo longer than all the rest."""
    made = work.model(setting, layers=2, pixels=112, vocabulary=8192)
    made.policy.vision.requires_grad_(False)
    return made


def alone(setting: Setting, report: Report) -> None:
    """World size 1: nothing travels far, but every call of FSDP2, NCCL and DCP is made."""
    device = work.start(setting)
    # before the process group: later the trainer of this model would be one of its ranks
    expected, loss, _ = gradients_of_a_step((made := small_model(setting)).policy, made, Ranks())
    backend = "gloo" if setting.small else "nccl"
    report.ran(f"fully_shard over {backend} at world size 1, float32, all language weights trained; one SFT step")
    store = dist.FileStore(str(setting.folder / "store"), 1)
    dist.init_process_group(backend, store=store, rank=0, world_size=1)
    made = small_model(setting)
    mesh = build_mesh("full", world_size=1, local_size=1, device=device, timeout_s=120)
    shard(made.policy, made.policy.blocks(), mesh, device=device)
    found, sharded_loss, trainer = gradients_of_a_step(made.policy, made, Ranks())
    report.figure("sharded modules", len(sharded_modules(made.policy)), Bar(at_least=1))
    report.figure("loss, difference", abs(loss - sharded_loss), Bar(at_most=1e-4))
    report.figure("gradients, largest relative difference", largest_gap(found, expected), GRADIENTS)
    report.figure("checkpoint: values that differ when read back", _read_back(trainer, setting.folder), exactly(0))
    dist.destroy_process_group()


def _read_back(trainer: Trainer, folder: Path) -> int:
    """Save the state, spoil it, load it: how many values are not what they were."""
    tensors, facts = trainer.state()
    before = {name: whole(tensor).clone() for name, tensor in tensors.items()}
    checkpoints = Checkpoints(folder / "checkpoints", Ranks(), identity={})
    checkpoints.save(1, tensors, facts)
    checkpoints.finish()
    for tensor in tensors.values():
        local(tensor).zero_()
    checkpoints.load(tensors)
    return sum(int((whole(tensor) != before[name]).sum()) for name, tensor in tensors.items())


def two(setting: Setting, report: Report) -> None:
    """Two ranks share the card: NCCL refuses that, so gradients and shards travel over gloo."""
    device = work.start(setting)
    report.ran("two processes on one device, one SFT step in float32, studies of unequal length")
    made = small_model(setting)
    expected, loss, _ = gradients_of_a_step(made.policy, made, Ranks())
    del made
    if device.type == "cuda":
        torch.cuda.empty_cache()
    errors = _launch(setting)
    for sharding in SHARDINGS:
        path = setting.folder / f"{sharding}.gradients"
        if not path.exists():
            report.figure(f"{sharding}: {errors}", "no result")
            continue
        found = load_file(path)
        report.figure(f"{sharding}: loss, difference", abs(loss - float(found.pop("loss"))), Bar(at_most=1e-4))
        report.figure(f"{sharding}: gradients, largest relative difference", largest_gap(found, expected), GRADIENTS)
    if errors:
        raise RuntimeError(errors)


def _launch(setting: Setting) -> str:
    """Run both ranks through both shardings; why it went wrong, or ""."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    # not --standalone: it looks up the machine's own name, which has no address without a network
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nnodes",
        "1",
        "--nproc-per-node",
        "2",
        "--master-addr",
        "127.0.0.1",
        "--master-port",
        str(port),
        "-m",
        "gpu.ranks",
        str(setting.folder),
        *["small"] * setting.small,
    ]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    print(ran.stdout, ran.stderr, sep="\n", file=sys.stderr)
    named = re.findall(r"^.*\b\w+Error: .*$", ran.stderr, flags=re.M)
    return "" if ran.returncode == 0 else (named or ["the ranks ended without a result"])[0].strip()


def rank_main(arguments: Sequence[str]) -> None:
    """What each of the two processes does."""
    setting = Setting(small="small" in arguments, folder=Path(arguments[0]))
    work.start(setting)
    ranks = Ranks.from_environment(timeout_s=120)
    for sharding in SHARDINGS:
        made = small_model(setting)
        shard_policy(made.policy, ParallelConfig(sharding=sharding), ranks, work.device_of(setting))
        found, loss, _ = gradients_of_a_step(made.policy, made, ranks)
        if ranks.is_main:
            path = setting.folder / f"{sharding}.gradients"
            save_file({**{n: g.contiguous() for n, g in found.items()}, "loss": torch.tensor(loss)}, f"{path}.tmp")
            os.replace(f"{path}.tmp", path)
    ranks.shutdown()


if __name__ == "__main__":
    rank_main(sys.argv[1:])
