"""Signals that ask a program to stop; processes that get them import nothing but capo.stopping."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from capo.ranks import Ranks
from capo.stopping import AGAIN_S, STOP_SIGNALS, StopRequested, StopSignal

LISTEN = "stop = StopSignal(); stop.listen(); print('ready', flush=True)\n"
# A call into a library that never returns: no handler of Python's runs any more.
HANG = "import ctypes; lock = ctypes.CDLL(None).pthread_mutex_lock; mutex = bytes(64); lock(mutex); lock(mutex)\n"


def program(script, **changes):
    """A process that has run `script` up to its line `ready`."""
    words = [sys.executable, "-c", f"import sys, time; from capo.stopping import *\n{script}"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **changes)
    assert process.stdout.readline() == "ready\n"
    return process


def test_ctrl_c_without_a_run_is_one_line_and_the_status_that_shells_expect():
    process = program("expect_ctrl_c(); print('ready', flush=True); time.sleep(60)")
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20)[1] == "stopped by Ctrl-C\n" and process.returncode == -signal.SIGINT


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_ctrl_c_ends_a_program_that_hangs_in_a_library(second):
    process = program(f"expect_ctrl_c()\n{LISTEN}{HANG}")
    for _ in range(2):
        process.send_signal(signal.SIGINT)  # twice at once, as `timeout` sends it, is one Ctrl-C
        time.sleep(0.05)
    time.sleep(AGAIN_S + 0.5)
    assert process.poll() is None
    process.send_signal(second)
    assert process.communicate(timeout=20)[1] == "stopping; Ctrl-C again ends the program at once\n"
    assert process.returncode == 130


def test_a_closed_terminal_does_not_break_the_output_of_what_is_saved(tmp_path):
    ours, theirs = os.openpty()
    save = "while not stop.requested: time.sleep(0.01)\nprint('step 5', flush=True); open(sys.argv[1], 'w')"
    words = [sys.executable, "-c", f"import sys, time; from capo.stopping import *\n{LISTEN}{save}", tmp_path / "saved"]
    process = subprocess.Popen(words, stdout=theirs, stderr=theirs)
    os.close(theirs)
    with open(ours, "rb") as terminal:  # the whole line: its end is written after the rest of it
        assert terminal.readline() == b"ready\r\n"
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=20) == 0 and (tmp_path / "saved").exists()


@pytest.fixture
def listening():
    stop = StopSignal()
    stop.listen()
    return stop


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_is_recorded_and_ends_only_what_loses_nothing(listening, number):
    threading.Timer(0.1, os.kill, (os.getpid(), number)).start()
    with pytest.raises(StopRequested), listening.at_once():
        time.sleep(30)
    os.kill(os.getpid(), number)  # elsewhere nothing is raised
    assert listening.requested
    with pytest.raises(StopRequested), listening.at_once():
        raise AssertionError("nothing more is begun")


def test_long_work_before_the_first_stage_ends_by_a_signal_too(listening):
    assert Ranks().do_or_stop(lambda: None, listening) is None
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
    with pytest.raises(StopRequested, match="stage start"):
        Ranks().do_or_stop(lambda: time.sleep(30), listening)


def test_a_program_in_the_background_is_not_reached_by_what_its_shell_hides():
    hidden = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"  # as nohup does
    process = program(f"{hidden}{LISTEN}time.sleep(0.5); print(stop.requested)")
    process.send_signal(signal.SIGHUP)
    assert process.communicate(timeout=20)[0] == "False\n"
