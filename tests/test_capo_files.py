import pytest

from capo.journal import Journal, read_lines, write_lines


def test_resumed_journal_does_no_step_twice_and_survives_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    journal = Journal(path)
    for step in range(5):
        journal.append({"step": step, "run": 1})
    with path.open("a") as file:
        file.write('{"step": 5, "ru')  # the process was killed here
    mark = journal.mark(3)
    journal.drop_from(3)
    journal.append({"step": 3, "run": 2})
    assert journal.find_change(mark, 3) is None and journal.find_change(mark, 4) == path
    assert [(row["step"], row["run"]) for row in read_lines(path)] == [(0, 1), (1, 1), (2, 1), (3, 2)]


def test_damaged_line_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_lines(path, [{"a": 1}])
    path.write_text('{"a": 1}\nnonsense\n')
    with pytest.raises(ValueError, match=r"rows.jsonl:2"):
        read_lines(path)


def test_an_absent_file_is_as_an_empty_one(tmp_path):
    (tmp_path / "empty").touch()
    assert Journal(tmp_path / "empty").mark(3) == Journal(tmp_path / "absent").mark(0)
