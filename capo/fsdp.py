"""A policy over many devices: FSDP2 on each block, whole again for the time of a rollout."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from capo.ranks import Ranks

Sharding = Literal["replicate", "hybrid", "full"]


@dataclass(frozen=True)
class ParallelConfig:
    """How a model lies on the devices of a run."""

    sharding: Sharding = "replicate"
    """replicate: the whole model on each device; hybrid: split over those of a node; full: split over all."""
    offload: bool = False
    """With hybrid or full: keep shards and optimizer state in host memory; slow, for models that fit no other way."""
    timeout_s: float = 1800.0
    """A rank that does not answer within this time ends the run."""

    def __post_init__(self) -> None:
        if self.timeout_s <= 0:
            raise ValueError(f"expected timeout_s above 0, got {self.timeout_s}")
        if self.offload and self.sharding == "replicate":
            raise ValueError("expected sharding hybrid or full with offload, got replicate")

    def splits(self, ranks: Ranks) -> bool:
        """Whether parameters are cut into shards at all."""
        return self.sharding != "replicate" and ranks.size > 1


def mesh_of(
    sharding: Sharding, *, world_size: int, local_size: int, device: torch.device, timeout_s: float
) -> DeviceMesh:
    """Mesh [replicate, shard]: a parameter is split along the second dimension and repeated along the first.

    Args:
        sharding: replicate: (world, 1); hybrid: (nodes, ranks of a node); full: (1, world).
        local_size: ranks of one node.
        timeout_s: of the groups along both dimensions, which would not inherit it.

    Raises:
        ValueError: hybrid over a world that is not made of whole nodes.
    """
    if sharding == "hybrid" and world_size % local_size:
        raise ValueError(f"expected nodes of {local_size} ranks each for hybrid sharding, got {world_size} ranks")
    shard = {"replicate": 1, "hybrid": local_size, "full": world_size}[sharding]
    grid = torch.arange(world_size).view(-1, shard)
    timeout = timedelta(seconds=timeout_s)
    groups = [dist.new_subgroups_by_enumeration(r.tolist(), timeout=timeout)[0] for r in (grid.T, grid)]
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
    """Split the parameters in place: each block gathered when it runs, the rest of the policy (embeddings, norms, head)
    with the root.

    Gradients are summed over ranks, never averaged: the loss already divides by counts of the whole step. They are
    summed in float32.

    Args:
        blocks: decoder layers and vision blocks. Each is moved and split before the next is touched, so that neither
            the device nor, with weights mapped from their files, the host ever holds the whole model.
        device: where the policy computes, and where the shards are unless they are offloaded.
        frozen_dtype: of parameters that are not trained; those that are trained become float32. None changes nothing.
        gathered_dtype: parameters are cast to it when gathered; None keeps their own.
        offload: shards, gradients and optimizer state are in host memory.
    """
    policy.device = device
    options = {
        "mesh": mesh,
        "mp_policy": MixedPrecisionPolicy(gathered_dtype, torch.float32, cast_forward_inputs=False),
        "offload_policy": CPUOffloadPolicy() if offload else OffloadPolicy(),
    }
    for block in blocks:
        _place(block, device, frozen_dtype)
        fully_shard(block, **options)
    _place(policy, device, frozen_dtype)
    fully_shard(policy, **options)
    for module in sharded_modules(policy):
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
    # A rank whose studies gave a parameter no gradient must take part in its reduction all the same. Older versions of
    # torch lack the method; there, every pass must reach every trained parameter, as those of RadFlow do.
    if hasattr(policy, "set_reduce_scatter_unused_params"):
        policy.set_reduce_scatter_unused_params(True)
    # The first module that is called becomes the root of what lies below it; that must be the policy, not a block.
    with torch.no_grad():
        policy(lambda: None)
    policy.reshard()


def _place(module: nn.Module, device: torch.device, frozen_dtype: torch.dtype | None) -> None:
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
    """Lay a policy over the devices as `config` says.

    Replicated, its tensors stay as they are, and the trainer adds up gradients. Only a policy that computes in another
    type than that of its weights goes through fully_shard over a mesh (world, 1) then: the gathered copies compute, the
    float32 weights are trained, with the same arithmetic as any other sharding.

    Args:
        frozen_dtype, gathered_dtype: as in `shard`.
    """
    if gathered_dtype is None and not config.splits(ranks):
        return
    ranks.connect()
    ranks.meet()  # loading takes each rank another time, and the first gathering may run through NCCL
    local = int(os.environ.get("LOCAL_WORLD_SIZE", str(ranks.size)))
    shape = {"world_size": ranks.size, "local_size": local, "device": device, "timeout_s": ranks.timeout_s}
    shard(
        policy, policy.blocks(), mesh_of(config.sharding if ranks.size > 1 else "replicate", **shape),
        device=device, frozen_dtype=frozen_dtype, gathered_dtype=gathered_dtype, offload=config.offload,
    )  # fmt: skip


def sharded_modules(policy: nn.Module) -> list[FSDPModule]:
    return [module for module in policy.modules() if isinstance(module, FSDPModule)]


@contextmanager
def gathered(policy: nn.Module) -> Iterator[None]:
    """Every parameter whole for the time of a `with`: inside, no forward pass communicates, so that ranks may decode
    different numbers of tokens. A policy that is not sharded stays as it is."""
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
