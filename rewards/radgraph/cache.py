"""Graphs of reports, kept in a SQLite file that several processes may share."""

import hashlib
import json
import os
import sqlite3
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from radflow.rewards.radgraph.text import Graph
from radflow.rewards.sqlite_errors import SQLITE_ERRORS, find_code

WAIT_SECONDS = 60.0  # for another process that is writing
MOST_BYTES = 64 * 2**20  # in memory
_ASKED_AT_ONCE = 500  # SQLite bounds the variables of a statement
_CANNOT_WRITE = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_IOERR)
_CHECK = 16  # characters of the hash before each graph: SQLite itself does not notice a flipped bit


class GraphCache:
    """Text -> graph, for one model; in memory without a path, and then emptied when it holds MOST_BYTES.

    The key is a hash of model and text, so that the file serves several models and a changed model finds nothing. The
    file holds no report text, but the words of its entities: treat it like the reports.

    Graphs cost time alone: a damaged file is set aside and begun anew, and one that cannot be written is only read,
    both with a warning. ValueError if the file is not such a cache or cannot be opened.
    """

    def __init__(self, path: Path | None, *, model: str) -> None:
        self.path, self.model, self._writable = path, model, True
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        self._open()

    def read(self, texts: Iterable[str]) -> dict[str, Graph]:
        """The graphs that are there."""
        waiting = {self._key(text): text for text in texts}
        keys, found = list(waiting), dict[str, Graph]()
        with self._tolerating():
            for start in range(0, len(keys), _ASKED_AT_ONCE):
                part = keys[start : start + _ASKED_AT_ONCE]
                marks = ",".join("?" * len(part))
                rows = self._connection.execute(f"SELECT key, graph FROM graphs WHERE key IN ({marks})", part)
                kept = ((key, text) for key, text in rows if isinstance(text, str) and text == _check(text[_CHECK:]))
                found |= {waiting[key]: json.loads(text[_CHECK:]) for key, text in kept}
        return found

    def write(self, graphs: Mapping[str, Graph]) -> None:
        """Keep graphs."""
        rows = [(self._key(text), _check(json.dumps(graph, separators=(",", ":")))) for text, graph in graphs.items()]
        if self._writable:
            with self._tolerating(), self._connection:
                if self.path is None and self._num_bytes() > MOST_BYTES:
                    self._connection.execute("DELETE FROM graphs")
                self._connection.executemany("INSERT OR REPLACE INTO graphs VALUES (?, ?)", rows)

    def _open(self) -> None:
        try:
            self._connection = sqlite3.connect(self.path or ":memory:", timeout=WAIT_SECONDS, check_same_thread=False)
            with self._connection:
                columns = "(key BLOB PRIMARY KEY, graph TEXT NOT NULL)"
                self._connection.execute(f"CREATE TABLE IF NOT EXISTS graphs {columns} WITHOUT ROWID")
        except SQLITE_ERRORS as error:
            if find_code(error) != sqlite3.SQLITE_CORRUPT:
                raise self._refusal(error) from error
            self._begin_anew(error)

    @contextmanager
    def _tolerating(self) -> Iterator[None]:
        try:
            yield
        except SQLITE_ERRORS as error:
            if find_code(error) == sqlite3.SQLITE_CORRUPT:
                self._begin_anew(error)
            elif find_code(error) in _CANNOT_WRITE:
                self._writable = False
                warnings.warn(f"{self.path}: {error}; the graphs of this run are not kept", stacklevel=4)
            else:
                raise self._refusal(error) from error

    def _begin_anew(self, error: Exception) -> None:
        self._connection.close()
        for ending in ("", "-journal"):
            with suppress(FileNotFoundError):  # no journal, or another process was faster
                os.replace(f"{self.path}{ending}", f"{self.path}.damaged{ending}")
        warnings.warn(f"{self.path}: {error}; renamed to {self.path}.damaged and begun anew", stacklevel=5)
        self._open()

    def _refusal(self, error: Exception) -> ValueError:
        advice = "make it writable, delete it or choose another path"
        return ValueError(f"{self.path}: expected a cache of graphs (SQLite), got: {error}; {advice}")

    def _num_bytes(self) -> int:
        size, pages, free = (
            int(self._connection.execute(f"PRAGMA {name}").fetchone()[0])
            for name in ("page_size", "page_count", "freelist_count")
        )
        return size * (pages - free)

    def _key(self, text: str) -> bytes:
        return hashlib.sha256(f"{self.model}\n{text}".encode("utf-8", "surrogatepass")).digest()


def _check(graph: str) -> str:
    """The text of a graph after its hash."""
    return hashlib.blake2b(graph.encode(), digest_size=_CHECK // 2).hexdigest() + graph
