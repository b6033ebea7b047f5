"""Trackers: what they are sent arrives, and what breaks in them stays there."""

import importlib.util
import sys
from types import SimpleNamespace

import pytest
from made_run import CONFIG, healthy_rows

from radflow.dashboard.trackers import TensorBoardTracker, Trackers, TrackingConfig, keep_numbers

ROW = {"step": 3, "loss": 1.5, "reward": None, "nan": float("nan"), "note": "text", "count": 2}


class Recorder:
    def __init__(self, fail_at=None):
        self.rows, self.fail_at, self.closed = [], fail_at, False

    def log(self, stage, step, row):
        if step == self.fail_at:
            raise ConnectionError("no route")
        self.rows.append((stage, step, row))

    def close(self):
        self.closed = True
        if self.fail_at == "close":
            raise OSError("disk full")


def test_a_tracker_that_fails_is_named_once_and_the_others_go_on():
    said, good, bad = [], Recorder(), Recorder(fail_at=1)
    trackers = Trackers({"bad": lambda: bad, "good": lambda: good}, said.append)
    for step in range(4):
        trackers.log("rl", step, ROW)
    trackers.close()
    assert [step for _, step, _ in good.rows] == [0, 1, 2, 3] and good.closed
    assert [step for _, step, _ in bad.rows] == [0] and not bad.closed
    assert said == ["warning: tracker bad failed (ConnectionError: no route); training goes on without it"]


@pytest.mark.parametrize("moment", ["build", "close"])
def test_neither_building_nor_closing_one_can_end_a_run(moment):
    def build():
        if moment == "build":
            raise PermissionError("read only")
        return Recorder(fail_at="close")

    said = []
    trackers = Trackers({"x": build}, said.append)
    trackers.log("sft", 0, ROW)
    trackers.log("sft", 1, ROW)
    trackers.close()
    assert len(said) == 1 and "tracker x failed" in said[0]


def test_only_finite_numbers_are_sent():
    assert keep_numbers(ROW) == {"loss": 1.5, "count": 2}


def test_wandb_gets_numbers_and_nothing_of_the_machine(tmp_path, monkeypatch):
    given, sent = {}, []
    run = SimpleNamespace(define_metric=lambda *_, **__: None, log=sent.append, finish=lambda: None)
    fake = SimpleNamespace(init=lambda **options: given.update(options) or run, Settings=lambda **values: values)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    config = {"seed": 7, "data": {"manifest": "/data/Meyer_Anna.jsonl", "headers": ["Befund"], "workers": 2}}
    trackers = Trackers.of(tmp_path, TrackingConfig(wandb="online"), config, print)
    trackers.log("rl", 3, ROW)
    assert sent == [{"rl/step": 3, "rl/loss": 1.5, "rl/count": 2}]
    assert given["config"] == {"seed": 7, "data": {"workers": 2}}
    private = ("x_disable_meta", "x_disable_machine_info", "x_disable_stats", "disable_code", "disable_git")
    assert all(given["settings"][key] for key in private)
    assert not given["settings"]["host"] and not given["settings"]["x_save_requirements"]


def test_none_is_opened_where_none_is_asked_for(tmp_path):
    trackers = Trackers.of(tmp_path, TrackingConfig(), CONFIG, print)
    trackers.log("rl", 0, ROW)
    assert not trackers.makers and not list(tmp_path.iterdir())


def test_a_tracker_whose_package_is_absent_is_refused_before_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"tracking.wandb needs the package wandb.*\.\[train,wandb\]"):
        Trackers.of(tmp_path, TrackingConfig(wandb="offline"), CONFIG, print)


def test_what_tensorboard_was_sent_is_read_back(tmp_path):
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    rows = healthy_rows(6)
    first = Trackers.of(tmp_path, TrackingConfig(tensorboard=True), CONFIG, print)
    for row in rows[:5]:
        first.log("rl", row["step"], row)
    first.log("sft", 0, {"step": 0, "loss": 2.5})
    # killed after step 4 and started again from the checkpoint at step 3: those steps are done again, otherwise
    again = TensorBoardTracker(tmp_path / "tensorboard")
    for row in rows[3:]:
        again.log("rl", row["step"], row | {"reward": -1.0})
    again.close()
    # the second file says where it begins, which is what makes TensorBoard hide the steps that were done again
    latest = max((tmp_path / "tensorboard/rl").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    assert 3 in [event.step for event in EventFileLoader(str(latest)).Load() if event.session_log.status]
    read = EventAccumulator(str(tmp_path / "tensorboard/rl")).Reload()
    assert set(read.Tags()["scalars"]) == set(rows[0]) - {"step"}
    rewards = {event.step: event.value for event in read.Scalars("reward")}
    assert rewards == pytest.approx({**{i: rows[i]["reward"] for i in range(3)}, 3: -1.0, 4: -1.0, 5: -1.0}, rel=1e-6)
    assert EventAccumulator(str(tmp_path / "tensorboard/sft")).Reload().Scalars("loss")[0].value == 2.5
