"""Two ranks that shard a layer, tell one another something and leave: for test_capo_ranks.py."""

import sys
from pathlib import Path

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard

from capo.ranks import Ranks


def threads_of_gloo() -> int:
    """Threads of this process that carry out exchanges; each group has two."""
    return sum((task / "comm").read_text() == "pt_gloo_runloop\n" for task in Path("/proc/self/task").iterdir())


torch.set_num_threads(1)
ranks = Ranks.from_environment(timeout_s=60)
layer = fully_shard(nn.Linear(4, 4))
layer(torch.ones(1, 4)).sum().backward()
del layer
ranks.all_gather("both are here")
before = threads_of_gloo()
ranks.shutdown()
(Path(sys.argv[1]) / f"rank_{ranks.rank}").write_text(f"{before} {threads_of_gloo()}")
