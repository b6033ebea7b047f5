"""Files that are damaged or cannot be written: one line with the file and what to do, whoever reads or writes."""

import errno
import json
import os
import subprocess
import sys

import pytest
from fuzz_files import fuzz

from capo.journal import read_lines, read_stamped
from radflow.dashboard.live import Tail
from radflow.dashboard.run_files import read_object, read_rows
from radflow.pipeline.command_line import exit_with
from radflow.pipeline.run_config import note_checkpoint


@pytest.mark.filterwarnings("ignore")
def test_damaged_files_of_every_kind_are_read_or_refused_in_one_line_with_their_name(tmp_path, capsys):
    table = fuzz(80, 0, tmp_path)
    assert sum(counts["failed"] for counts in table.values()) == 0, capsys.readouterr().err
    assert sum(counts["refused"] for counts in table.values()) > 40 and len(table) > 20


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "runs/a/x.json: No space left on device; make room, then rerun the same command to resume"),
        (errno.EROFS, "runs/a/x.json: Read-only file system; make it writable for this user, or choose another path"),
        (errno.EXDEV, "runs/a/x.json: Invalid cross-device link; rerun the same command to resume"),
    ],
)
def test_an_error_of_the_system_is_one_line_with_file_meaning_and_advice(number, said):
    with pytest.raises(SystemExit, match=f"^error: {said}"):
        exit_with(OSError(number, "in any language", "x.json.tmp", None, "runs/a/x.json"))


def test_a_librarys_error_without_a_number_is_one_line():
    with pytest.raises(SystemExit, match=r"^error: can't load it if you try$"):
        exit_with(OSError("can't load it\n  if you try"))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_standard_output_ends_with_one_line_and_nothing_at_exit():
    command = [sys.executable, "-m", "radflow", "--help"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    wanted = "error: standard output: No space left on device; make room, then rerun the same command to resume\n"
    assert (done.returncode, done.stderr) == (1, wanted)


@pytest.mark.parametrize("line", ["[]", "3", "nul", '{"a"', "\udcff", "[" * 100_000])
def test_a_line_that_is_no_object_is_named(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"step": 0}}\n{line}\n', encoding="utf-8", errors="surrogateescape")
    with pytest.raises(ValueError, match=r"rows\.jsonl:2: expected a JSON object, got .*restore it"):
        read_lines(path)


@pytest.mark.parametrize("content", ["{", "[" * 100_000, "\xff"])
@pytest.mark.parametrize(
    "read",
    [read_object, read_stamped, lambda path: note_checkpoint(path.parent, "a model"), lambda path: Tail(path).read()],
)
def test_a_file_that_is_no_json_is_named_whoever_reads_it(tmp_path, read, content):
    path = tmp_path / "environment.json"
    path.write_bytes(content.encode("latin-1") + b"\n")
    with pytest.raises(ValueError, match=r"environment\.json: expected .*JSON.*, got .*; the file is damaged: restore"):
        read(path)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("selection.json", {"studies": 4}, "expected the key selected, got studies"),
        ("selection.json", {"selected": ["a", 3]}, "selected 2: expected str, got 3"),
        ("selection.json", [], r"expected an object, got \[\]"),
        ("table.json", {"studies": True, "rows": [], "notes": []}, "studies: expected int, got True"),
        ("criticality.jsonl", {"id": "a", "critical": "false"}, "1.critical: expected bool, got 'false'"),
        ("metrics.jsonl", {"step": 1, "loss": {}}, r"1.loss: expected int or float or bool or null, got \{\}"),
    ],
)
def test_json_of_another_form_is_named_by_file_and_key(tmp_path, name, content, said):
    path = tmp_path / name
    path.write_text(json.dumps(content) + "\n")
    with pytest.raises(ValueError, match=rf"{name}: {said}.*; the file is damaged: restore it$"):
        read_rows(path) if name.endswith("l") else read_object(path)
