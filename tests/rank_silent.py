"""Two ranks, of which the second hangs, in an exchange or in a backward pass: for test_capo_ranks.py."""

import sys
import time

import torch

from capo.config import OptimizerConfig
from capo.ranks import Ranks
from capo.trainer import Trainer

ranks = Ranks.from_environment(timeout_s=3)
ranks.stage = "rl"
trainer = Trainer(torch.nn.Linear(1, 1), OptimizerConfig(), num_steps=1, ranks=ranks)
ranks.all_gather("both are here")
if ranks.rank == 1:
    time.sleep(30)
if sys.argv[1] == "exchange":
    ranks.all_gather("only one is")
else:
    trainer.step()
