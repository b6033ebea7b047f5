"""A course of any length keeps its number of steps, its ends and its extremes in a bounded number of rows."""

import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radflow.dashboard.charts import MOST_POINTS, curve
from radflow.dashboard.course import MOST_ROWS, Course, Merged


def test_three_steps_in_one_row_by_hand():
    row = Merged([{"step": 4, "kl": 1.0}, {"step": 5, "kl": None, "held_out": 2.0}, {"step": 6, "kl": 4.0}])
    assert row == {"step": 5, "kl": 2.5, "held_out": 2.0}
    assert (row.low["kl"], row.high["kl"]) == (1.0, 4.0)
    assert Merged([row, {"step": 7, "kl": 0.5}]).low["kl"] == 0.5


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 6 * MOST_ROWS), st.integers(0, 10_000))
def test_a_course_of_any_length(count, where):
    values = [float(step % 7) for step in range(count)]
    if values:
        values[where % count] = 99.0
    course = Course({"step": step, "x": value} for step, value in enumerate(values))
    assert course.num_steps == count and len(course) <= MOST_ROWS + 2
    steps = [row["step"] for row in course]
    assert steps == sorted(set(steps))
    if count > 1:
        assert (steps[0], steps[-1]) == (0, count - 1)
        line = curve(course, "x", "x")
        assert len(line.y) == min(count, MOST_POINTS)
        if count > MOST_POINTS:
            assert max(line.high) == 99.0
    if 1 < count <= MOST_ROWS:
        assert [row["x"] for row in course] == values


def test_the_mean_of_a_merged_course_is_that_of_its_steps():
    course = Course({"step": step, "x": step} for step in range(4 * MOST_ROWS + 2))
    assert statistics.fmean(row["x"] for row in course) == pytest.approx(2 * MOST_ROWS + 0.5)
