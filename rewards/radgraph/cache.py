"""Graphs of reports, kept in a SQLite file that several processes may share."""

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path

from radflow.rewards.radgraph.text import Graph

WAIT_SECONDS = 60.0  # for another process that is writing
_ASKED_AT_ONCE = 500  # SQLite bounds the variables of a statement


class GraphCache:
    """Text -> graph, for one model; in memory without a path.

    The key is a hash of model and text, so that the file serves several models and a changed model finds nothing. The
    file holds no report text, but the words of its entities: treat it like the reports. ValueError if the file is not
    such a cache.
    """

    def __init__(self, path: Path | None, *, model: str) -> None:
        self.path, self.model = path, model
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._connection = sqlite3.connect(path or ":memory:", timeout=WAIT_SECONDS, check_same_thread=False)
            with self._connection:
                columns = "(key BLOB PRIMARY KEY, graph TEXT NOT NULL)"
                self._connection.execute(f"CREATE TABLE IF NOT EXISTS graphs {columns} WITHOUT ROWID")
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{path}: expected a cache of graphs (SQLite), got: {error}; delete it") from error

    def read(self, texts: Iterable[str]) -> dict[str, Graph]:
        """The graphs that are there."""
        waiting = {self._key(text): text for text in texts}
        keys, found = list(waiting), dict[str, Graph]()
        for start in range(0, len(keys), _ASKED_AT_ONCE):
            part = keys[start : start + _ASKED_AT_ONCE]
            marks = ",".join("?" * len(part))
            rows = self._connection.execute(f"SELECT key, graph FROM graphs WHERE key IN ({marks})", part)
            found |= {waiting[key]: json.loads(graph) for key, graph in rows}
        return found

    def write(self, graphs: Mapping[str, Graph]) -> None:
        """Keep graphs; one that another process kept meanwhile stays."""
        rows = [(self._key(text), json.dumps(graph, separators=(",", ":"))) for text, graph in graphs.items()]
        with self._connection:
            self._connection.executemany("INSERT OR IGNORE INTO graphs VALUES (?, ?)", rows)

    def _key(self, text: str) -> bytes:
        return hashlib.sha256(f"{self.model}\n{text}".encode("utf-8", "surrogatepass")).digest()
