"""Following a run by its files: torn lines, resumed stages, and how it ended."""

import json
import random
import threading
import time

import pytest
from made_run import CONFIG, healthy_row, healthy_rows, make_run, write_lines

from capo.stopping import StopRequested
from radflow.dashboard.build import build_dashboard
from radflow.dashboard.live import Live, Tail, Watcher, format_brief, format_step, watch
from radflow.dashboard.run_files import read_end, write_status
from radflow.dashboard.studies import StudySource
from radflow.dashboard.trackers import TrackingConfig
from radflow.pipeline.command_line import TRAIN_COMMANDS, run_command


def append(path, text):
    with path.open("a") as file:
        file.write(text)


def test_a_line_is_read_once_and_only_when_it_is_whole(tmp_path):
    tail = Tail(tmp_path / "metrics.jsonl")
    assert tail.read() == (False, [])
    append(tail.path, '{"step": 0}\n{"ste')
    assert tail.read() == (False, [{"step": 0}])
    assert tail.read() == (False, [])
    append(tail.path, 'p": 1, "name": "ü"}\n')
    assert tail.read() == (False, [{"step": 1, "name": "ü"}])


def test_a_file_that_a_resumed_stage_began_anew_is_read_from_its_start(tmp_path):
    tail = Tail(tmp_path / "metrics.jsonl")
    write_lines(tail.path, [{"step": i, "try": 1} for i in range(5)])
    tail.read()
    write_lines(tail.path, [{"step": i, "try": 1} for i in range(3)])
    assert tail.read() == (True, [{"step": i, "try": 1} for i in range(3)])
    # as long as before and yet another file: its content tells
    write_lines(tail.path, [{"step": i, "try": 2} for i in range(3)])
    anew, rows = tail.read()
    assert anew and rows[0] == {"step": 0, "try": 2}


def test_a_finished_run_is_told_in_order_and_ends(tmp_path, capsys):
    run_command("train.py", ["watch", str(make_run(tmp_path / "run"))], TRAIN_COMMANDS, None)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["sft 26/30 | loss 0.115 | grad 1.00", "sft 27/30 | loss 0.111 | grad 1.00"]
    assert lines[5] == "== sft done in 61.5 s" and lines[-1] == "== run complete in stage evaluate"
    assert sum(line.startswith("rl ") for line in lines) == 5


def test_a_run_that_goes_on_is_followed_to_its_end(tmp_path):
    folder = make_run(tmp_path / "run")
    write_status(folder, "running", stage="rl")
    said, looked = [], threading.Event()

    def say(line):
        said.append(line)
        looked.set()

    thread = threading.Thread(target=watch, args=(folder,), kwargs={"every_s": 0.01, "say": say})
    thread.start()
    assert looked.wait(20)
    idle = dict.fromkeys(("clip_low_critical", "clip_high_critical"), 0.0)
    for row in [healthy_row(step, random.Random(step)) | idle for step in range(30, 55)]:
        append(folder / "rl/metrics.jsonl", json.dumps(row) + "\n")
    write_status(folder, "stopped", stage="rl", detail="as asked")
    thread.join(20)
    assert not thread.is_alive()
    assert said[-1] == "== run stopped in stage rl: as asked" and any(line.startswith("rl 55/30") for line in said)
    # the warning needs 20 idle steps, of which 30 is the first
    (warning,) = (line for line in said if line.startswith("warning"))
    assert warning.startswith("warning, rl step 50: clip range idle")


def test_once_says_how_far_the_run_is_and_returns(tmp_path, capsys):
    folder = make_run(tmp_path / "run")
    write_status(folder, "running", stage="rl")
    run_command("train.py", ["watch", str(folder), "--once"], TRAIN_COMMANDS, None)
    assert "== rl (since" in capsys.readouterr().out


def test_a_stage_that_goes_on_from_a_checkpoint_is_announced(tmp_path):
    folder = make_run(tmp_path / "run")
    watcher = Watcher(folder)
    watcher.look()
    write_lines(folder / "rl/metrics.jsonl", healthy_rows(20))
    assert watcher.look() == ["== rl goes on from a checkpoint, at step 21"]


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="expected the folder of a run"):
        run_command("train.py", ["watch", str(tmp_path)], TRAIN_COMMANDS, None)


def test_one_step_is_one_line():
    row = healthy_row(3, random.Random(0), reward=2.314, reward_std=0.4, kl_before=0.0123, grad_norm=0.25)
    line = format_step("rl", row | {"length": 34.0, "zero_std_groups": 0, "entropy": 0.3}, 100)
    assert line == (
        "rl 4/100 | reward 2.31 ±0.400 | KL 0.012 | entropy 0.300 | length 34.0 | no spread 0 | grad 0.250 | "
        "clipped critical 0.3% normal 0.0% | 3.6 s"
    )
    assert [format_brief(v) for v in (12345.6, 0.00012, 0, float("nan"))] == ["12346", "1.20e-04", "0", "nan"]
    assert format_brief(None) == "\N{EN DASH}"


@pytest.mark.parametrize(
    ("error", "state"), [(None, "complete"), (StopRequested("as asked"), "stopped"), (ValueError("broken"), "failed")]
)
def test_how_a_run_ended_is_written_down(tmp_path, error, state):
    folder = make_run(tmp_path / "run")
    live = Live(folder, TrackingConfig(), CONFIG)
    try:
        with live.follow(StudySource.of_config(CONFIG)):
            live.begin("rl")
            assert read_end(folder) is None
            if error:
                raise error
    except (StopRequested, ValueError) as caught:
        assert caught is error
    assert (read_end(folder)["state"], read_end(folder)["stage"]) == (state, "rl")
    assert (state if state == "complete" else f"{state}: {error}") in (folder / "dashboard.html").read_text()


def test_a_run_that_only_looked_writes_no_status(tmp_path):
    folder = make_run(tmp_path / "run")
    with Live(folder, TrackingConfig(dashboard=False), CONFIG).follow(StudySource.of_config(CONFIG)):
        pass
    assert not (folder / "status.json").exists() and not (folder / "dashboard.html").exists()


def test_warnings_are_said_once_and_kept_and_a_resumed_stage_takes_them_up(tmp_path, capsys):
    idle = dict.fromkeys(("clip_low_critical", "clip_high_critical"), 0.0)
    rows = [row | (idle if row["step"] < 30 else {}) for row in healthy_rows(40)]

    def follow(kept, new):
        live = Live(tmp_path, TrackingConfig(dashboard=False), CONFIG)
        live.begin("rl")
        live.resume(kept, 40)
        for row in new:
            live.step(row)
        text = (tmp_path / "warnings.jsonl").read_text() if (tmp_path / "warnings.jsonl").exists() else ""
        return [json.loads(line) for line in text.splitlines()]

    whole = follow([], rows)
    assert [(w["kind"], w["step"], w["until"]) for w in whole] == [("clip range idle", 19, 30)]
    assert capsys.readouterr().out.count("clip range idle") == 1
    assert follow(rows[:10], []) == []  # back at a checkpoint before it: the warning is to be found again
    assert follow(rows[:10], rows[10:]) == whole
    assert capsys.readouterr().out.count("clip range idle") == 1
    assert follow(rows[:25], rows[25:]) == whole  # it lasted already: not said again
    assert "clip range idle" not in capsys.readouterr().out


def test_a_run_makes_the_page_that_its_files_make_without_reading_its_steps_again(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "strftime", lambda *_: "now")
    folder = make_run(tmp_path / "run", steps=30)
    rows = [row | dict.fromkeys(("clip_low_critical", "clip_high_critical"), 0.0) for row in healthy_rows(30)]
    write_lines(folder / "rl/metrics.jsonl", rows)
    live = Live(folder, TrackingConfig(), CONFIG)
    live.begin("rl")
    live.resume(rows[:10], 30)
    for row in rows[10:]:
        live.step(row)
    page = build_dashboard(folder).read_text()
    assert "clip range idle" in page
    (folder / "dashboard.html").unlink()
    (folder / "rl/metrics.jsonl").write_text("{")
    live.write_dashboard(now=True)
    assert (folder / "dashboard.html").read_text() == page


def test_a_dashboard_that_cannot_be_written_does_not_end_the_run(tmp_path, capsys):
    folder = make_run(tmp_path / "run")
    (folder / "explore/selection.json").write_text("{broken")
    live = Live(folder, TrackingConfig(), CONFIG)
    live.write_dashboard(now=True)
    assert "warning: dashboard.html could not be written (ValueError: " in capsys.readouterr().out


def test_the_dashboard_takes_a_small_share_of_the_time(tmp_path):
    live = Live(make_run(tmp_path / "run"), TrackingConfig(), CONFIG)
    live.write_dashboard()
    written = (live.folder / "dashboard.html").stat().st_mtime_ns
    live.write_dashboard()  # at once again: 50 times as long as it took has not gone by
    assert (live.folder / "dashboard.html").stat().st_mtime_ns == written
    live.write_dashboard(now=True)
    assert (live.folder / "dashboard.html").stat().st_mtime_ns > written
