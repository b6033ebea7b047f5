"""The processes of a run: which one this is, and the few things they tell one another."""

import json
import os
import time
import uuid
from collections.abc import Iterable, Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn

BUCKET = 64 << 20  # bytes of gradients that are added up in one exchange


class Ranks:
    """One process among the `size` that torchrun started; alone, everything below costs nothing.

    What they tell one another travels as JSON through gloo, whatever the device: numbers and token ids.
    """

    def __init__(
        self, rank: int = 0, size: int = 1, *, timeout_s: float = 600.0, group: dist.ProcessGroup | None = None
    ) -> None:
        self.rank, self.size, self.timeout_s = rank, size, timeout_s
        self.stage = "start"  # named when another rank does not answer
        self._group = group  # of the messages; gradients and sharded weights travel in the default group
        self._connected = size > 1

    @classmethod
    def join(cls, *, timeout_s: float) -> "Ranks":
        """Meet the other processes that torchrun's environment names; without it, be alone."""
        size, group = int(os.environ.get("WORLD_SIZE", "1")), None
        if size > 1 and not dist.is_initialized():
            cards, local = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", str(size)))
            if cards:
                torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % cards)
            store, rank, _ = next(dist.rendezvous("env://", timeout=timedelta(seconds=timeout_s)))
            store = dist.PrefixStore(_name_of_this_start(store, rank, size), store)
            store.set(f"backend/{rank}", backend_of(cards, local))
            asked = {store.get(f"backend/{other}").decode() for other in range(size)}
            dist.init_process_group(
                asked.pop() if len(asked) == 1 else "gloo",
                store=store, rank=rank, world_size=size, timeout=timedelta(seconds=timeout_s),
            )  # fmt: skip
        if size > 1:
            # DTensor's caches keep the default group alive for good; this one ends when `leave` says so.
            group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
        return cls(int(os.environ.get("RANK", "0")), size, timeout_s=timeout_s, group=group)

    def connect(self) -> None:
        """A default group for a process that is alone as well, because fully_shard asks for one."""
        if not dist.is_initialized():
            backend, timeout = backend_of(torch.cuda.device_count(), 1), timedelta(seconds=self.timeout_s)
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
            self._connected = True

    def leave(self) -> None:
        """End the connections, as the last thing a program does; not after an error, when others may still exchange.

        gloo's threads may let go of the tensors of the last exchange a moment after it returned. If Python has begun
        to end by then, the process aborts ("terminate called without an active exception"), and torchrun reports a
        run that is complete as failed. So the threads end first.
        """
        if self._connected:
            self._group, self._connected = None, False
            dist.destroy_process_group()

    @property
    def first(self) -> bool:
        """This one writes what is written once."""
        return self.rank == 0

    def meet(self) -> None:
        """Wait until every rank is here.

        Raises:
            RuntimeError: some rank did not come within the time limit; says which, and in which stage.
        """
        if self.size > 1:
            try:
                dist.monitored_barrier(self._group, timeout=timedelta(seconds=self.timeout_s), wait_all_ranks=True)
            except RuntimeError as error:
                raise RuntimeError(self._silence(error)) from error

    def gather(self, value: object) -> list[object]:
        """`value` of every rank, in the order of ranks; anything JSON can hold."""
        if self.size == 1:
            return [value]
        self.meet()
        mine = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor([len(mine)]), group=self._group)
        longest = max(int(length) for length in lengths)
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: len(mine)] = mine
        theirs = [torch.zeros_like(padded) for _ in range(self.size)]
        dist.all_gather(theirs, padded, group=self._group)
        return [json.loads(t[: int(n)].numpy().tobytes()) for t, n in zip(theirs, lengths, strict=True)]

    def total(self, number: float) -> float:
        """Sum over the ranks."""
        return sum(self.gather(number))

    def largest(self, number: float) -> float:
        return max(self.gather(number))

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add up the gradients of parameters that every rank holds whole, in float32; a missing one counts as 0.

        Small ones travel together in buffers of BUCKET bytes, a larger one alone and without a copy.
        """
        if self.size == 1:
            return
        trained = [p for p in parameters if p.requires_grad]
        for parameter in trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for bucket in _buckets([p.grad for p in trained]):
            parts = [gradient.flatten().float() for gradient in bucket]  # the gradient itself where it is float32
            flat = parts[0] if len(parts) == 1 else torch.cat(parts)
            dist.all_reduce(flat)
            for gradient, total in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                gradient.copy_(total.view_as(gradient))

    def share(self, costs: Sequence[float]) -> list[int]:
        """Indices of the items that this rank takes, ascending."""
        return balanced(costs, self.size)[self.rank]

    def _silence(self, error: Exception) -> str:
        return (
            f"rank {self.rank} of {self.size}, stage {self.stage}: not every rank answered; the time limit is "
            f"{self.timeout_s:.0f} s ({str(error).splitlines()[0]}); look at the log of the rank named, or raise "
            "--parallel.timeout-s"
        )


def backend_of(cards: int, local_ranks: int) -> str:
    """The backend of a node: NCCL refuses a second rank on a card; gloo takes CUDA tensors too, through the host.

    Args:
        cards: GPUs that torch sees.
        local_ranks: processes on the node.
    """
    return "cpu:gloo,cuda:nccl" if cards >= local_ranks else "gloo"


def _buckets(gradients: Sequence[torch.Tensor]) -> list[list[torch.Tensor]]:
    """Neighbours together while they fit into BUCKET bytes of float32."""
    buckets: list[list[torch.Tensor]] = []
    room = 0
    for gradient in gradients:
        room -= 4 * gradient.numel()
        if room < 0 or not buckets:
            buckets.append([])
            room = BUCKET - 4 * gradient.numel()
        buckets[-1].append(gradient)
    return buckets


def _name_of_this_start(store: dist.Store, rank: int, size: int) -> str:
    """A name that all ranks of this start agree on and no earlier start had.

    torchrun keeps its store over a restart, and with it the addresses of processes that are dead: gloo would wait for
    them. Restart counts do not help, because the agents of several nodes may count differently. So each rank asks under
    a name of its own until the first rank has answered that very question.
    """
    mine = uuid.uuid4().hex
    if rank:
        store.set(f"ask/{rank}", mine)
        name = store.get(f"answer/{mine}").decode()
        store.set(f"heard/{name}/{rank}", "yes")
        return name
    while not all(store.check([f"heard/{mine}/{other}"]) for other in range(1, size)):
        for other in range(1, size):
            if store.check([f"ask/{other}"]):
                store.set(f"answer/{store.get(f'ask/{other}').decode()}", mine)
        time.sleep(0.05)
    return mine


def balanced(costs: Sequence[float], parts: int) -> list[list[int]]:
    """Split items into `parts` lists of about equal total cost: the dearest item first, each to the cheapest list.

    Deterministic, so that every rank comes to the same split. At worst 4/3 of the best split.

    Source: Graham, Bounds on multiprocessing timing anomalies, SIAM J. Appl. Math. 17 (1969).
    """
    chosen: list[list[int]] = [[] for _ in range(parts)]
    load = [0.0] * parts
    for item in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        # Fewest items first among equals, so that no rank is left without one while there are enough.
        cheapest = min(range(parts), key=lambda part: (load[part], len(chosen[part]), part))
        chosen[cheapest].append(item)
        load[cheapest] += costs[item]
    return [sorted(items) for items in chosen]
