"""The metrics of a stage in a bounded number of rows, however many steps it took."""

import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

Row = Mapping[str, Any]
MOST_ROWS = 1000


class Merged(dict[str, Any]):
    """The means of consecutive steps, with the lowest and the highest value of each."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.low: dict[str, Any] = {}
        self.high: dict[str, Any] = {}
        for key in dict.fromkeys(key for row in rows for key in row):
            values = [row[key] for row in rows if is_number(row.get(key))]
            self[key] = sum(values) / len(values) if values else None
            ends = [end for row in rows for end in ends_of(row, key) if is_number(end)]
            self.low[key], self.high[key] = min(ends, default=None), max(ends, default=None)
        self["step"] = rows[len(rows) // 2]["step"]


class Course(Sequence[Row]):
    """The steps of a stage in order: the first and the last as they are, between them at most MOST_ROWS rows, each of
    as many steps as the others."""

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self.num_steps, self._width = 0, 1
        self._first: list[Row] = []
        self._done: list[Row] = []
        self._waiting: list[Row] = []  # of the next merged row, and then the last step
        for row in rows:
            self.add(row)

    def add(self, row: Row) -> None:
        row = {sys.intern(key): value for key, value in row.items()}  # keys of other lines are other strings
        self.num_steps += 1
        (self._waiting if self._first else self._first).append(row)
        if len(self._waiting) > self._width:
            *group, last = self._waiting
            self._done += [Merged(group)] if len(group) > 1 else group
            self._waiting = [last]
        if len(self._done) == MOST_ROWS:
            self._done = [Merged(self._done[i : i + 2]) for i in range(0, MOST_ROWS, 2)]
            self._width *= 2

    def rows(self) -> list[Row]:
        group, last = self._waiting[:-1], self._waiting[-1:]
        return [*self._first, *self._done, *([Merged(group)] if len(group) > 1 else group), *last]

    def __len__(self) -> int:
        return len(self.rows())

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows())

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...

    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        return self.rows()[index]


def ends_of(row: Row, key: str) -> tuple[Any, ...]:
    """The lowest and the highest value of a metric in a row; in that of one step its value."""
    if isinstance(row, Merged) and key in row.low:
        return row.low[key], row.high[key]
    return (row.get(key),)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
