"""Rewards in worker processes: the same numbers as in this process; a worker's death and a reward's error."""

import os
import signal
import subprocess
import sys

import pytest

from data.sections import parse_sections
from rewards.hierarchy import HierarchicalReward, RewardConfig
from rewards.workers import RewardWorkers, scores_of

REFERENCE = "Findings: Small left pleural effusion. Impression: Left pleural effusion."
CANDIDATES = ["Findings: Lungs are clear. Impression: No acute disease.", REFERENCE, "no headers at all", ""]


def kill_this_process(_: str):
    os.kill(os.getpid(), signal.SIGKILL)


def fail(_: str):
    raise ZeroDivisionError("made to fail")


@pytest.mark.parametrize("workers", [0, 2])
def test_scores_are_those_of_the_reward_itself(workers):
    config = RewardConfig(workers=workers)
    expected = HierarchicalReward.from_config(config, parse_sections)(CANDIDATES, [REFERENCE] * 4)
    with RewardWorkers(config, parse_sections) as pool:
        pending = [pool.submit([text], [REFERENCE]) for text in CANDIDATES]
        assert [scores_of(future, study_id="s")[0] for future in pending] == expected


def test_the_death_of_a_worker_names_the_study():
    with RewardWorkers(RewardConfig(workers=1), kill_this_process) as pool:
        future = pool.submit(CANDIDATES, [REFERENCE] * 4)
        with pytest.raises(RuntimeError, match="study s7: a reward worker died"):
            scores_of(future, study_id="s7")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_the_reward_names_the_study(workers):
    with RewardWorkers(RewardConfig(workers=workers), fail) as pool:
        future = pool.submit(CANDIDATES, [REFERENCE] * 4)
        with pytest.raises(RuntimeError, match=r"study s7: .*made to fail"):
            scores_of(future, study_id="s7")


def test_a_worker_does_not_import_the_program_that_started_it(tmp_path):
    # A program such as train.py loads transformers: half a gigabyte and seconds for each worker.
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys\n"
        "print('imported', os.getpid(), flush=True)\n"
        "from data.sections import parse_sections\n"
        "from rewards.hierarchy import RewardConfig\n"
        "from rewards.workers import RewardWorkers, scores_of\n"
        "if __name__ == '__main__':\n"
        "    with RewardWorkers(RewardConfig(workers=1), parse_sections) as pool:\n"
        "        print(scores_of(pool.submit(['a'], ['Findings: A.']), study_id='s')[0].parts['bleu2'])\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.count("imported") == 1
