"""Answers of the judge in a SQLite file: asked once, whatever the number of runs and processes.

A process claims a question before it asks; others wait for its answer. A claim lapses unless its owner renews it, so
that the questions of a process that was killed are free again. The file holds hashes of the questions, and the answers
with their reasons, which may quote a report.
"""

import fcntl
import sqlite3
import time
import uuid
from pathlib import Path

from rewards.judge_prompts import Answer

_VERSION = 1
_TABLES = f"""
PRAGMA journal_mode = WAL;
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY, prompt TEXT NOT NULL, model TEXT NOT NULL,
    yes INTEGER NOT NULL CHECK (yes IN (0, 1)), reason TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS claims (key TEXT PRIMARY KEY, owner TEXT NOT NULL, expires REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS spending (
    only INTEGER PRIMARY KEY CHECK (only = 1), calls INTEGER NOT NULL, money REAL NOT NULL
);
INSERT OR IGNORE INTO spending VALUES (1, 0, 0.0);
PRAGMA user_version = {_VERSION};
COMMIT;
"""


def open_cache(path: Path) -> sqlite3.Connection:
    """Connect to the file, which is made if it is not there; used by the thread that opened it.

    Raises:
        ValueError: the file is something else, or of another version.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Two processes that switch a new file to WAL at once would lock one another out without waiting.
    with path.with_name(path.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        connection = sqlite3.connect(path, timeout=60, isolation_level=None)
        try:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if tables and version != _VERSION:
                raise sqlite3.DatabaseError(f"its version is {version}, not {_VERSION}")
            connection.executescript(_TABLES)
            connection.execute("PRAGMA synchronous = NORMAL")  # in WAL mode safe on kill
        except sqlite3.DatabaseError as error:
            connection.close()
            raise ValueError(f"{path}: expected a cache of the judge: {error}; choose another judge.cache") from error
    return connection


class AnswerCache:
    """The answers and claims of an open cache, for one owner.

    Args:
        claim_s: seconds that a claim holds unless it is renewed.
    """

    def __init__(self, connection: sqlite3.Connection, *, claim_s: float) -> None:
        self._connection, self._claim_s = connection, claim_s
        self._owner = uuid.uuid4().hex

    def find(self, key: str) -> Answer | None:
        row = self._connection.execute("SELECT yes, reason FROM answers WHERE key = ?", (key,)).fetchone()
        return None if row is None else Answer(bool(row[0]), row[1])

    def claim(self, key: str) -> bool:
        """True: the question is this owner's to ask. False: it is answered by now, or another owner is asking it."""
        now = time.time()
        # One statement, so that no other process comes between looking and claiming.
        changed = self._connection.execute(
            "INSERT INTO claims SELECT :key, :owner, :expires "
            "WHERE NOT EXISTS (SELECT 1 FROM answers WHERE key = :key) "
            "ON CONFLICT (key) DO UPDATE SET owner = :owner, expires = :expires WHERE claims.expires < :now",
            {"key": key, "owner": self._owner, "expires": now + self._claim_s, "now": now},
        )
        return changed.rowcount == 1

    def renew(self) -> None:
        """All claims of this owner hold for `claim_s` from now."""
        self._connection.execute(
            "UPDATE claims SET expires = ? WHERE owner = ?", (time.time() + self._claim_s, self._owner)
        )

    def release(self, key: str) -> None:
        """Without an answer, the question is free for others; after one, the claim has served."""
        self._connection.execute("DELETE FROM claims WHERE key = ? AND owner = ?", (key, self._owner))

    def store(self, key: str, answer: Answer, *, prompt: str, model: str) -> None:
        """Keep an answer, unless the question has one: if a lapsed claim is answered twice, the first answer stays."""
        self._connection.execute(
            "INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?)", (key, prompt, model, int(answer.yes), answer.reason)
        )
