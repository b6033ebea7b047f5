"""Worker processes outlive the signals by which their program is asked to stop."""

import re
import signal
from pathlib import Path

import loky

from radflow.rewards.processes import signals_held


def blocked():
    mask = int(re.search(r"SigBlk:\s*(\w+)", Path("/proc/self/status").read_text())[1], 16)
    return {number for number in signal.Signals if mask >> (number - 1) & 1}


def test_workers_never_get_what_a_terminal_or_torchrun_sends_to_all():
    before = blocked()
    with loky.ProcessPoolExecutor(1) as executor:
        with signals_held():
            first = executor.submit(blocked)
        assert first.result() >= {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1}
    assert blocked() == before
