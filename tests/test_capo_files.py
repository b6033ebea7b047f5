import pytest

from capo.journal import Journal, count_steps, read_lines, write_lines


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


@pytest.mark.parametrize(
    ("second", "steps"),
    [
        (b'{"step": 1, "kl": 0.5}\n', 3),
        (b"", 1),
        (b'{"stop": 1, "kl": 0.5}\n', 1),
        (b'{"step": 1, "kl": 0.5\n', 1),
        (b'{"step": 1, "k\xff": 0}\n', 1),
        (b"7\n", 1),
    ],
    ids=["whole", "absent", "another key", "not JSON", "not UTF-8", "a number"],
)
def test_metrics_count_up_to_the_first_step_that_is_absent_or_damaged(tmp_path, second, steps):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 0}\n' + second + b'{"step": 2}\n')
    assert count_steps(path) == steps
    Journal(path, resume_at=1)  # from the newest checkpoint before the gap
    assert read_lines(path) == [{"step": 0}]


def test_an_absent_or_emptied_file_has_no_step(tmp_path):
    (tmp_path / "metrics.jsonl").touch()
    assert count_steps(tmp_path / "metrics.jsonl") == count_steps(tmp_path / "other") == 0
