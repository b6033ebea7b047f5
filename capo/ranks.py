"""The processes of a run: rank and world size, and the collectives that training needs."""

import json
import os
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from capo.stopping import StopRequested, StopSignal

BUCKET = 64 << 20  # bytes of gradients in one all_reduce

# gloo's errors have no type of their own, but the path of its source; the other one is of torch's barrier.
OF_GLOO = re.compile(r"gloo/|monitoredBarrier")

T = TypeVar("T")


class LostRankError(ConnectionError):
    """Another rank has died or did not answer in time."""


class Ranks:
    """One process of the `size` that torchrun started; with size 1 no method communicates.

    Objects travel as JSON through gloo on any device; gradients and sharded weights use the default process group.
    """

    def __init__(self, rank: int = 0, size: int = 1, *, timeout_s: float = 600.0) -> None:
        self.rank, self.size, self.timeout_s = rank, size, timeout_s
        self.stage = "start"  # for the message of a timeout
        self._group: dist.ProcessGroup | None = None
        self._connected = size > 1

    @classmethod
    def from_environment(cls, *, timeout_s: float) -> "Ranks":
        """Initialise the process group from torchrun's environment variables; one process without them."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        ranks = cls(int(os.environ.get("RANK", "0")), size, timeout_s=timeout_s)
        if size > 1:
            with ranks.exchanges():
                if not dist.is_initialized():
                    _connect(size, timedelta(seconds=timeout_s))
                # DTensor's caches keep the default group alive for good; this one ends with `shutdown`.
                ranks._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
        return ranks

    def ensure_process_group(self) -> None:
        """Initialise a default group for a single process too: fully_shard needs one."""
        if not dist.is_initialized():
            backend, timeout = choose_backend(torch.cuda.device_count(), 1), timedelta(seconds=self.timeout_s)
            store = dist.HashStore()  # type: ignore[attr-defined]  # torch does not export it by name
            dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=timeout)
            self._connected = True

    def shutdown(self) -> None:
        """Destroy the process groups at the end of a program; not after an error, when other ranks may communicate.

        gloo's threads may free the tensors of the last collective after it returned. During interpreter shutdown that
        aborts the process ("terminate called without an active exception"), and torchrun reports a complete run as
        failed.
        """
        if self._connected:
            self._group, self._connected = None, False
            dist.destroy_process_group()

    @property
    def is_main(self) -> bool:
        """Rank 0, which writes the files of the run."""
        return self.rank == 0

    @contextmanager
    def exchanges(self) -> Iterator[None]:
        """An exchange between ranks that fails inside, of this object or of torch, becomes a LostRankError with stage
        and rank."""
        try:
            yield
        except RuntimeError as error:
            if not (isinstance(error, dist.DistError) or OF_GLOO.search(str(error))):
                raise
            raise LostRankError(
                f"rank {self.rank} of {self.size}, stage {self.stage}: not every rank answered; the time limit is "
                f"{self.timeout_s:.0f} s ({str(error).splitlines()[0]}); see the log of the named rank, or raise "
                "timeout_s"
            ) from error

    def barrier(self) -> None:
        """Wait for every rank; LostRankError names the rank that did not arrive in time, and the stage."""
        if self.size > 1:
            with self.exchanges():
                dist.monitored_barrier(self._group, timeout=timedelta(seconds=self.timeout_s), wait_all_ranks=True)

    def all_gather(self, value: T) -> list[T]:
        """`value` of every rank, in rank order; any JSON value."""
        if self.size == 1:
            return [value]
        self.barrier()
        mine = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        with self.exchanges():
            dist.all_gather(lengths, torch.tensor([len(mine)]), group=self._group)
        longest = max(int(length) for length in lengths)
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: len(mine)] = mine
        theirs = [torch.zeros_like(padded) for _ in range(self.size)]
        with self.exchanges():
            dist.all_gather(theirs, padded, group=self._group)
        return [json.loads(t[: int(n)].numpy().tobytes()) for t, n in zip(theirs, lengths, strict=True)]

    def all_gather_or_stop(self, value: T | None) -> list[T]:
        """`value` of every rank, in rank order; None on a rank that was stopped raises StopRequested on every rank."""
        found = [theirs for theirs in self.all_gather(value) if theirs is not None]
        if len(found) < self.size:
            raise StopRequested(f"stopped in stage {self.stage}, as asked")
        return found

    def do_or_stop(self, work: Callable[[], T], stop: StopSignal) -> T:
        """What `work` returns here; it may take minutes, or never return, and loses nothing by a stop at any
        instruction. StopRequested on every rank if one was stopped meanwhile."""
        result: list[T] = []
        with suppress(StopRequested), stop.at_once():
            result.append(work())
        self.all_gather_or_stop(True if result else None)
        return result[0]

    def all_reduce_sum(self, number: float) -> float:
        return sum(self.all_gather(number))

    def all_reduce_max(self, number: float) -> float:
        return max(self.all_gather(number))

    def all_reduce_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum the gradients of replicated parameters over the ranks, in float32; every rank has the same gradients.

        Small gradients share a buffer of BUCKET bytes; a larger one is reduced alone and without a copy.
        """
        if self.size == 1:
            return
        for bucket in _fill_buckets([p.grad for p in parameters if p.grad is not None]):
            flattened = [gradient.flatten().float() for gradient in bucket]  # no copy of a float32 gradient
            flat = flattened[0] if len(flattened) == 1 else torch.cat(flattened)
            with self.exchanges():
                dist.all_reduce(flat)
            for gradient, total in zip(bucket, torch.split(flat, [g.numel() for g in bucket]), strict=True):
                gradient.copy_(total.view_as(gradient))

    def assign(self, costs: Sequence[float]) -> list[int]:
        """Indices of the items of this rank, ascending; loads are balanced by cost."""
        return split_by_cost(costs, self.size)[self.rank]


def choose_backend(cards: int, local_ranks: int) -> str:
    """Backend for a node with `cards` GPUs: NCCL refuses a second rank on a GPU; gloo takes CUDA tensors as well."""
    return "cpu:gloo,cuda:nccl" if cards >= local_ranks else "gloo"


def _fill_buckets(gradients: Sequence[Tensor]) -> list[list[Tensor]]:
    """Consecutive gradients share a bucket while they fit into BUCKET bytes of float32."""
    buckets: list[list[Tensor]] = []
    room = 0
    for gradient in gradients:
        room -= 4 * gradient.numel()
        if room < 0 or not buckets:
            buckets.append([])
            room = BUCKET - 4 * gradient.numel()
        buckets[-1].append(gradient)
    return buckets


def _connect(size: int, timeout: timedelta) -> None:
    """Initialise the default process group."""
    cards, local = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", str(size)))
    if cards:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % cards)
    store, rank, _ = next(rendezvous("env://", timeout=timeout))
    store = PrefixStore(_agree_on_start_name(store, rank, size), store)
    store.set(f"backend/{rank}", choose_backend(cards, local))
    wanted = {store.get(f"backend/{other}").decode() for other in range(size)}
    backend = wanted.pop() if len(wanted) == 1 else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)


def _agree_on_start_name(store: Store, rank: int, size: int) -> str:
    """A name that all ranks of this start share and no earlier start had.

    torchrun keeps its store over a restart, and with it the addresses of dead processes, for which gloo would wait.
    Restart counts may differ between the agents of several nodes. So each rank asks under a new random name until rank
    0 has answered it.
    """
    mine = uuid.uuid4().hex
    if rank:
        store.set(f"ask/{rank}", mine)
        name: str = store.get(f"answer/{mine}").decode()
        store.set(f"heard/{name}/{rank}", "yes")
        return name
    while not all(store.check([f"heard/{mine}/{other}"]) for other in range(1, size)):
        for other in range(1, size):
            if store.check([f"ask/{other}"]):
                store.set(f"answer/{store.get(f'ask/{other}').decode()}", mine)
        time.sleep(0.05)
    return mine


def split_by_cost(costs: Sequence[float], parts: int) -> list[list[int]]:
    """Split items into `parts` lists of about equal total cost: largest item first, each to the list that costs least.

    Deterministic, so that every rank computes the same split; at most 4/3 of the optimum. Source: Graham, Bounds on
    multiprocessing timing anomalies, SIAM J. Appl. Math. 17 (1969).
    """
    chosen: list[list[int]] = [[] for _ in range(parts)]
    load = [0.0] * parts
    for item in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        # Ties go to the list of fewest items, so that every rank gets one if there are enough.
        cheapest = min(range(parts), key=lambda part: (load[part], len(chosen[part]), part))
        chosen[cheapest].append(item)
        load[cheapest] += costs[item]
    return [sorted(items) for items in chosen]
