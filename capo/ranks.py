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

    @classmethod
    def join(cls, *, timeout_s: float) -> "Ranks":
        """Meet the other processes that torchrun's environment names; without it, be alone."""
        size, group = int(os.environ.get("WORLD_SIZE", "1")), None
        if size > 1 and not dist.is_initialized():
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            if torch.cuda.is_available():
                torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
            store, rank, _ = next(dist.rendezvous("env://", timeout=timedelta(seconds=timeout_s)))
            store = dist.PrefixStore(_name_of_this_start(store, rank, size), store)
            dist.init_process_group(
                backend, store=store, rank=rank, world_size=size, timeout=timedelta(seconds=timeout_s)
            )
        if size > 1:
            # DTensor's caches keep the default group alive for good; this one ends when `leave` says so.
            group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
        return cls(int(os.environ.get("RANK", "0")), size, timeout_s=timeout_s, group=group)

    def leave(self) -> None:
        """End the connections, as the last thing a program does; not after an error, when others may still exchange.

        gloo's threads may let go of the tensors of the last exchange a moment after it returned. If Python has begun
        to end by then, the process aborts ("terminate called without an active exception"), and torchrun reports a
        run that is complete as failed. So the threads end first.
        """
        if self.size > 1:
            self._group = None
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
        """Add up the gradients of parameters that every rank holds whole, in one buffer; a missing one counts as 0."""
        if self.size == 1:
            return
        trained = [p for p in parameters if p.requires_grad]
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten().float() for p in trained])
        dist.all_reduce(flat)
        for parameter, total in zip(trained, flat.split([p.numel() for p in trained]), strict=True):
            parameter.grad = total.view_as(parameter).to(parameter.dtype)

    def share(self, costs: Sequence[float]) -> list[int]:
        """Indices of the items that this rank takes, ascending."""
        return balanced(costs, self.size)[self.rank]

    def _silence(self, error: Exception) -> str:
        return (
            f"rank {self.rank} of {self.size}, stage {self.stage}: not every rank answered; the time limit is "
            f"{self.timeout_s:.0f} s ({str(error).splitlines()[0]}); look at the log of the rank named, or raise "
            "--parallel.timeout-s"
        )


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
