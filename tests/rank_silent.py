"""Two ranks, of which the second hangs: for test_capo_ranks.py."""

import time

from capo.ranks import Ranks

ranks = Ranks.join(timeout_s=3)
ranks.stage = "rl"
ranks.gather("both are here")
if ranks.rank == 1:
    time.sleep(30)
ranks.gather("only one is")
