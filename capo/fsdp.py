"""A policy over several devices: FSDP2 on each block, gathered for the time of a rollout."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from capo.checks import check_range
from capo.ranks import Ranks

Sharding = Literal["replicate", "hybrid", "full"]


@dataclass(frozen=True)
class ParallelConfig:
    """How the model is distributed over the devices of a run."""

    sharding: Sharding = "replicate"
    """replicate: the whole model on each device; hybrid: split over the devices of a node; full: split over all."""
    offload: bool = False
    """With hybrid or full: keep shards and optimizer state in host memory; slow, for models that fit no other way."""
    timeout_s: float = 1800.0
    """The run ends if a rank does not answer within this time."""
    deterministic: bool = False
    """On a GPU, let torch take kernels that add in a fixed order wherever it has them: else the gradient of a trained
    vision tower rounds differently each time. Slower. On a CPU every sum has a fixed order anyway."""

    def __post_init__(self) -> None:
        check_range(self, "timeout_s", above=0)
        if self.offload and self.sharding == "replicate":
            raise ValueError("expected sharding hybrid or full with offload, got replicate")

    def splits(self, ranks: Ranks) -> bool:
        """Whether parameters are sharded at all."""
        return self.sharding != "replicate" and ranks.size > 1


def build_mesh(
    sharding: Sharding, *, world_size: int, local_size: int, device: torch.device, timeout_s: float
) -> DeviceMesh:
    """Mesh [replicate, shard]: a parameter is split along the second dimension and repeated along the first.

    replicate: (world, 1); hybrid: (nodes, local_size), ValueError unless all nodes have `local_size` ranks; full:
    (1, world). The groups do not inherit the timeout.
    """
    if sharding == "hybrid" and world_size % local_size:
        raise ValueError(f"expected nodes of {local_size} ranks each for hybrid sharding, got {world_size} ranks")
    shard = {"replicate": 1, "hybrid": local_size, "full": world_size}[sharding]
    grid = torch.arange(world_size).view(-1, shard)
    timeout = timedelta(seconds=timeout_s)
    new_groups: Callable[..., Any] = dist.new_subgroups_by_enumeration
    groups = [new_groups(ranks.tolist(), timeout=timeout)[0] for ranks in (grid.T, grid)]
    return DeviceMesh.from_group(groups, device.type, mesh=grid, mesh_dim_names=("replicate", "shard"))


def shard(
    policy: nn.Module,
    blocks: Sequence[nn.Module],
    mesh: DeviceMesh,
    *,
    device: torch.device,
    frozen_dtype: torch.dtype | None = None,
    gathered_dtype: torch.dtype | None = None,
    offload: bool = False,
) -> None:
    """Shard the parameters in place: a block is gathered when it runs, everything else with the root.

    Gradients are summed over ranks in float32, not averaged: the loss already divides by the counts of the whole step.

    Args:
        blocks: decoder layers and vision blocks. Each is moved and sharded before the next, so that neither the device
            nor, with weights mapped from their files, the host ever holds the whole model.
        device: where the policy computes, and where the shards are unless they are offloaded.
        frozen_dtype: of parameters that are not trained; trained ones become float32. None changes nothing.
        gathered_dtype: parameters are cast to it when gathered; None keeps their own.
        offload: shards, gradients and optimizer state are in host memory.
    """
    policy.device = device  # type: ignore[assignment]  # nn.Module declares every attribute as Tensor | Module
    options: dict[str, Any] = {
        "mesh": mesh,
        "mp_policy": MixedPrecisionPolicy(gathered_dtype, torch.float32, cast_forward_inputs=False),
        "offload_policy": CPUOffloadPolicy() if offload else OffloadPolicy(),
    }
    for block in blocks:
        _move(block, device, frozen_dtype)
        fully_shard(block, **options)
    _move(policy, device, frozen_dtype)
    root: FSDPModule = fully_shard(policy, **options)
    for module in sharded_modules(policy):
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
    # A rank whose studies gave a parameter no gradient must still take part in its reduction. Older versions of torch
    # lack the method; there, every pass must reach every trained parameter, as those of RadFlow do.
    if reduce_unused := getattr(policy, "set_reduce_scatter_unused_params", None):
        reduce_unused(True)
    # The first module that is called becomes the root of its submodules; that must be the policy, not a block.
    with torch.no_grad():
        policy(lambda: None)
    root.reshard()


def _move(module: nn.Module, device: torch.device, frozen_dtype: torch.dtype | None) -> None:
    for parameter in module.parameters():
        if not isinstance(parameter, DTensor):
            dtype = torch.float32 if parameter.requires_grad else frozen_dtype
            parameter.data = parameter.data.to(device, dtype if frozen_dtype else None)
    for buffer in module.buffers():
        buffer.data = buffer.data.to(device)


def shard_policy(
    policy: nn.Module,
    config: ParallelConfig,
    ranks: Ranks,
    device: torch.device,
    *,
    frozen_dtype: torch.dtype | None = None,
    gathered_dtype: torch.dtype | None = None,
) -> None:
    """Distribute a policy over the devices as `config` says.

    A replicated policy stays as it is, and the trainer reduces the gradients. If it computes in another type than that
    of its weights, it is sharded over a mesh (world, 1): the gathered copies compute, the float32 weights are trained.
    `policy.blocks()` are the modules to shard one at a time; the types are as in `shard`.
    """
    if gathered_dtype is None and not config.splits(ranks):
        return
    ranks.ensure_process_group()
    ranks.barrier()  # ranks load at different speeds, and the first all_gather may run through NCCL
    sharding = config.sharding if ranks.size > 1 else "replicate"
    local = int(os.environ.get("LOCAL_WORLD_SIZE", str(ranks.size)))
    mesh = build_mesh(sharding, world_size=ranks.size, local_size=local, device=device, timeout_s=ranks.timeout_s)
    blocks = policy.blocks()  # type: ignore[operator]  # as above
    dtypes = {"frozen_dtype": frozen_dtype, "gathered_dtype": gathered_dtype}
    shard(policy, blocks, mesh, device=device, offload=config.offload, **dtypes)


def sharded_modules(policy: object) -> list[FSDPModule]:
    """Empty for a policy that is not an `nn.Module`."""
    modules = policy.modules() if isinstance(policy, nn.Module) else ()
    return [module for module in modules if isinstance(module, FSDPModule)]


@contextmanager
def gathered(policy: nn.Module) -> Iterator[None]:
    """Keep every parameter gathered for the time of a `with`: no forward pass communicates inside, so that ranks may
    decode different numbers of tokens. A policy that is not sharded stays as it is."""
    modules = sharded_modules(policy)
    for module in modules:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in modules:
            module.reshard()
            module.set_reshard_after_forward(True, recurse=False)
