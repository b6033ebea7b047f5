import pytest
import torch

from capo.checkpoint import load_checkpoint, save_checkpoint
from capo.journal import Journal, read_lines, write_lines


def test_newest_checkpoints_are_kept_and_a_truncated_one_is_passed_over(tmp_path):
    for step in (10, 20, 30):
        save_checkpoint(tmp_path, step, {"value": torch.tensor([float(step)])}, keep=2)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["step_00000020.pt", "step_00000030.pt"]
    newest = tmp_path / "step_00000030.pt"
    newest.write_bytes(newest.read_bytes()[:200])
    with pytest.warns(UserWarning, match="step_00000030"):
        assert load_checkpoint(tmp_path)["step"] == 20


def test_no_checkpoint_is_none(tmp_path):
    assert load_checkpoint(tmp_path / "absent") is None


def test_resumed_journal_does_no_step_twice_and_survives_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    journal = Journal(path)
    for step in range(5):
        journal.append({"step": step, "run": 1})
    with path.open("a") as file:
        file.write('{"step": 5, "ru')  # the process was killed here
    journal = Journal(path, resume_at=3)
    journal.append({"step": 3, "run": 2})
    assert [(row["step"], row["run"]) for row in read_lines(path)] == [(0, 1), (1, 1), (2, 1), (3, 2)]


def test_damaged_line_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_lines(path, [{"a": 1}])
    path.write_text('{"a": 1}\nnonsense\n')
    with pytest.raises(ValueError, match=r"rows.jsonl:2"):
        read_lines(path)
