"""The campaign of faults notices what it looks for, and a sample of it is survived; `make faults` is the whole."""

import subprocess
import sys

import pytest
from fault_processes import Ended, NotSurvived
from fault_runs import check_same
from small_run import ROOT

OURS = 'Traceback (most recent call last):\n  File "train.py", line 1, in main\nOSError: full\n'
AGENTS = (
    'Traceback (most recent call last):\n  File "torch/distributed/elastic/agent/server/api.py", line 1\n'
    "torch.distributed.elastic.multiprocessing.api.SignalException: got signal: 2\n"
)
LOKYS = (
    'Traceback (most recent call last):\n  File "loky/backend/popen_loky_posix.py", line 174, in <module>\n'
    "    prep_data = pickle.load(from_parent)\n                ^^^^^^^^^^^^^^^^^^^^^^^^\nEOFError: Ran out of input\n"
)


def test_tracebacks_of_torchruns_agent_and_of_lokys_start_count_apart():
    ended = Ended((1,), f"[rank0]: a line\n{AGENTS}{AGENTS}{LOKYS}error: stopped\n")
    assert ended.check_quiet().other_tracebacks == 3
    with pytest.raises(NotSurvived, match="OSError: full") as failure:
        Ended((1,), AGENTS + OURS.replace("\n", "\n[rank1]: ") + "error: runs/a/x.json\n").check_refused("x.json")
    assert failure.value.tally.tracebacks == 1
    with pytest.raises(NotSurvived, match="ModuleNotFoundError"):  # what a worker was to do could not be loaded
        Ended((1,), LOKYS.replace("EOFError: Ran out of input", "ModuleNotFoundError: a")).check_quiet()


def test_an_error_must_name_its_file():
    assert Ended((1,), "warning: x\nerror: runs/a/x.json: no JSON; remove it\n").check_refused("x.json")
    for codes, output in [((1,), "error: runs/a/y.json"), ((0,), "error: x.json"), ((1,), "x.json"), ((-9,), "")]:
        with pytest.raises(NotSurvived):
            Ended(codes, output).check_refused("x.json")


@pytest.mark.parametrize("what", ["nothing", "seconds", "metric", "row", "byte", "temporary", "missing"])
def test_what_differs_from_the_quiet_run_is_found(what, tmp_path):
    for name in ("quiet", "run"):
        (tmp_path / name / "rl/checkpoints").mkdir(parents=True)
        (tmp_path / name / "rl/metrics.jsonl").write_text('{"step": 0, "loss": 1.5, "seconds_update": 1}\n')
        (tmp_path / name / "rl/weights").write_bytes(b"\0\1")
    metrics, weights = tmp_path / "run/rl/metrics.jsonl", tmp_path / "run/rl/weights"
    changes = {
        "nothing": lambda: (tmp_path / "run/status.json").write_text("{}"),
        "seconds": lambda: metrics.write_text(metrics.read_text().replace('update": 1', 'update": 2')),
        "metric": lambda: metrics.write_text(metrics.read_text().replace("1.5", "1.25")),
        "row": lambda: metrics.write_text(""),
        "byte": lambda: weights.write_bytes(b"\0\3"),
        "temporary": lambda: (tmp_path / "run/rl/checkpoints/step_1.tmp").write_text("half"),
        "missing": weights.unlink,
    }
    changes[what]()
    if what in ("nothing", "seconds"):
        check_same(tmp_path / "run", tmp_path / "quiet")
    else:
        with pytest.raises(NotSurvived, match="1 files"):
            check_same(tmp_path / "run", tmp_path / "quiet")


def test_a_sample_of_the_campaign_is_survived():
    done = subprocess.run(
        [sys.executable, "tests/faults.py", "--short"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
