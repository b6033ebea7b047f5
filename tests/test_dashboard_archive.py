"""Rows of steps in compressed files: read back, begun anew, kept within bounds, and what damage to them becomes."""

import errno
import gzip
import json
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radflow.dashboard.archive import Archive


def rows_of(step: int) -> list[dict[str, object]]:
    return [{"id": f"s{step}", "report": "Kein Erguss.\r\u2028" * (step % 4)}, {"id": "other"}]


def write(folder: Path, steps, **options) -> Archive:
    archive = Archive(folder, **options)
    for step in steps:
        archive.append(step, rows_of(step))
    return archive


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_part_holds_its_steps_and_any_gzip_reads_it(tmp_path):
    archive = write(tmp_path, [0, 2, 3, 7], part_steps=3)
    files = content(tmp_path)
    assert sorted(files) == [f"steps_{first:08d}.jsonl.gz" for first in (0, 3, 6)]
    lines = gzip.decompress(files["steps_00000000.jsonl.gz"]).decode().split("\n")
    assert [json.loads(line) for line in lines[:-1]] == [{"step": s, **row} for s in (0, 2) for row in rows_of(s)]
    assert {step: member.read() for step, member in archive.members().items()} == {
        step: [{"step": step, **row} for row in rows_of(step)] for step in (0, 2, 3, 7)
    }


@settings(max_examples=25, deadline=None)
@given(killed=st.integers(1, 11), resumed=st.integers(0, 11), cut=st.integers(0, 200), keep=st.integers(0, 6))
def test_killed_and_resumed_files_are_those_of_a_quiet_run(killed, resumed, cut, keep):
    """Killed while the last step was written, and resumed at any checkpoint before it, with a file of every 3 steps."""
    with tempfile.TemporaryDirectory() as name:
        quiet, other = Path(name) / "quiet", Path(name) / "killed"
        options = {"keep": keep, "part_steps": 3}
        write(quiet, range(12), **options)
        write(other, range(killed), **options)
        last = max(other.iterdir())
        before = 0 if (killed - 1) % 3 == 0 else max(m.start for m in Archive(other).members().values())
        last.write_bytes(last.read_bytes()[: max(before, last.stat().st_size - cut)])
        first = min(resumed, killed - 1)
        archive = Archive(other, **options)
        archive.drop_from(first)
        assert all(step < first for step in archive.members())
        write(other, range(first, 12), **options)
        assert content(other) == content(quiet)


def test_steps_that_are_kept_are_the_latest_in_whole_files(tmp_path):
    archive = write(tmp_path, range(10), keep=4, part_steps=3)
    # at step 9 those of 6 to 9 must be there; the file of 3 to 5 is the first that may go
    assert list(archive.members()) == [6, 7, 8, 9]


@pytest.mark.parametrize("where", ["header", "size", "text"])
def test_a_flipped_byte_is_named_and_not_taken_for_the_end(tmp_path, where):
    archive = write(tmp_path, range(5))
    member = archive.members()[2]
    path, at = member.path, member.start + {"header": 1, "size": 26, "text": 40}[where]
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"{path.name}: damaged at byte {member.start}: .*restore"):
        archive.members()[2].read()
    with pytest.raises(ValueError, match=rf"{path.name}: damaged at byte {member.start}"):
        archive.drop_from(4)  # a resume says so too


def test_zeros_that_a_power_cut_leaves_are_dropped(tmp_path):
    archive = write(tmp_path, range(3))
    path = archive.members()[0].path
    path.write_bytes(path.read_bytes() + bytes(4096))
    archive.drop_from(3)
    assert list(archive.members()) == [0, 1, 2] and path.read_bytes()[-1] == 0  # of the length, below 2^24
    assert gzip.decompress(path.read_bytes()).count(b"\n") == 6


def test_a_step_that_is_being_written_is_not_read(tmp_path):
    archive = write(tmp_path, range(3))
    last = archive.members()[2]
    for size in (1, 33, last.size - 1):
        last.path.write_bytes(last.path.read_bytes()[: last.start + size])
        assert list(archive.members()) == [0, 1]
        archive.drop_from(2)
        archive.append(2, rows_of(2))


@pytest.mark.parametrize("fail_at", [1, 2])
def test_a_disk_that_refuses_a_flush_is_named(tmp_path, monkeypatch, fail_at):
    archive, calls = write(tmp_path, range(2)), []

    def refuse(_):
        calls.append(1)
        if len(calls) == fail_at:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match=f"Input/output error: '{tmp_path}") as error:
        archive.sync()
    assert error.value.errno == errno.EIO and len(calls) == fail_at
