"""Weights & Biases, offline: a run is written where no network is, and goes on in the same place."""

import json
import struct
import time

import pytest
from made_run import CONFIG, healthy_rows

from radflow.dashboard.trackers import Trackers, TrackingConfig

wandb = pytest.importorskip("wandb", reason="needs the extra wandb")


def records(path):
    """Records of one .wandb file: a LevelDB log (blocks of 32 KiB; each chunk with crc, length, type) after 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    content, place, whole = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:  # no chunk begins so near the end of a block
            place += 32768 - place % 32768
        length, kind = struct.unpack_from("<HB", content, place + 4)
        whole += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last piece of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


def logged(folder):
    """Every history row under a folder, from wandb's own files, and the ids of the runs."""
    rows, ids = [], set()
    for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime_ns):
        until = time.monotonic() + 20
        while not any(record.HasField("exit") for record in records(path)):  # its own process writes after finish()
            assert time.monotonic() < until, f"{path} was never finished"
            time.sleep(0.05)
        for record in records(path):
            if record.HasField("run"):
                ids.add(record.run.run_id)
            if record.HasField("history"):
                items = record.history.item
                rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    return rows, ids


def test_what_was_sent_is_in_the_offline_files(tmp_path):
    rows, said = healthy_rows(3), []
    for part in (rows[:2], rows[2:]):  # started twice, as after a kill
        trackers = Trackers.of(tmp_path, TrackingConfig(wandb="offline"), CONFIG, said.append)
        for row in part:
            trackers.log("rl", row["step"], row | {"reward_missing": None})
        trackers.close()
    assert not said
    found, ids = logged(tmp_path)
    assert len(ids) == 1
    assert [row["rl/step"] for row in found] == [0, 1, 2]
    assert [row["rl/reward"] for row in found] == pytest.approx([row["reward"] for row in rows])
    assert not any("missing" in key and "rewards" not in key for row in found for key in row)
