"""Answers of the judge in a SQLite file: asked once, whatever the number of runs and processes, and within one budget.

A process claims a question before it asks; others wait for its answer. A claim lapses unless its owner renews it, so
that the questions of a process that was killed are free again. The file holds hashes of the questions, and the answers,
whose reasons may quote a report.
"""

import math
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from radflow.rewards.sqlite_errors import SQLITE_ERRORS, find_code

_VERSION = 2
_WRITABLE = "make it and its folder writable, or choose another judge.cache"
_ADVICE = {
    sqlite3.SQLITE_CORRUPT: "it is damaged: restore it, save its answers (sqlite3 {path} .recover), or choose another "
    "judge.cache, for which they are asked again",
    sqlite3.SQLITE_FULL: "make room and rerun the same command; the answers so far are kept",
    sqlite3.SQLITE_IOERR: "check the disk and rerun the same command; the answers so far are kept",
    sqlite3.SQLITE_BUSY: "end the other process that holds it, and rerun the same command",
    sqlite3.SQLITE_READONLY: _WRITABLE,
    sqlite3.SQLITE_CANTOPEN: _WRITABLE,
}
_OLD_ANSWERS = """
    INSERT INTO replies SELECT key, prompt, model,
    json_object('reason', reason, 'answer', CASE yes WHEN 1 THEN 'yes' ELSE 'no' END) FROM answers"""
_TABLES = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL; -- in WAL mode safe on kill
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS replies (
    key TEXT PRIMARY KEY, prompt TEXT NOT NULL, model TEXT NOT NULL, content TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS claims (key TEXT PRIMARY KEY, owner TEXT NOT NULL, expires REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS spending (
    only INTEGER PRIMARY KEY CHECK (only = 1), calls INTEGER NOT NULL, money REAL NOT NULL
);
INSERT OR IGNORE INTO spending VALUES (1, 0, 0.0);
"""


class AnswerCache:
    """Replies, claims and spending for one owner, in any of its threads.

    Requests are paid before they are sent, with the most they can cost, and settled when their cost is known. So the
    budget holds however many processes ask at once; one that is killed meanwhile leaves its request paid.

    Args:
        path: of the file, made if it does not exist; ValueError if it is something else, or of a newer version.
        claim_s: seconds that a claim holds; it is renewed while the owner lives.
        max_calls: requests that all users of the file may make together, ever; None for no limit.
        max_money: what they may spend together, in the currency of the prices; None for no limit.
    """

    def __init__(
        self, path: Path, *, claim_s: float, max_calls: int | None = None, max_money: float | None = None
    ) -> None:
        self._path, self._connection, self._claim_s, self._owner = path, _connect(path), claim_s, uuid.uuid4().hex
        self._limits = (math.inf if max_calls is None else max_calls, math.inf if max_money is None else max_money)
        self._closed = threading.Event()
        self._renewing = threading.Thread(target=self._renew, name="claims", daemon=True)
        self._renewing.start()

    def close(self) -> None:
        self._closed.set()
        self._renewing.join()
        self._connection.close()

    def find(self, keys: Iterable[str]) -> dict[str, str]:
        """The replies that are known, by key."""
        return dict(row for k in keys for row in self._execute("SELECT key, content FROM replies WHERE key = ?", (k,)))

    def claim(self, key: str) -> bool:
        """True: this owner is to ask the question. False: it has an answer by now, or another owner is asking it."""
        now = time.time()
        # One statement, so that no other process comes between looking and claiming. Its rows are counted as it returns
        # them: the connection's count may be that of another thread.
        claimed = self._execute(
            "INSERT INTO claims SELECT :key, :owner, :expires "
            "WHERE NOT EXISTS (SELECT 1 FROM replies WHERE key = :key) "
            "ON CONFLICT (key) DO UPDATE SET owner = :owner, expires = :expires WHERE claims.expires < :now "
            "RETURNING key",
            {"key": key, "owner": self._owner, "expires": now + self._claim_s, "now": now},
        )
        return bool(claimed)

    def release(self, key: str) -> None:
        """Give up a claim: without an answer, others may ask the question."""
        self._execute("DELETE FROM claims WHERE key = ? AND owner = ?", (key, self._owner))

    def store(self, key: str, content: str, *, prompt: str, model: str) -> None:
        """Keep a reply, unless the question has one: if a lapsed claim is answered twice, the first answer stays."""
        self._execute("INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?)", (key, prompt, model, content))

    def pay(self, max_cost: float) -> bool:
        """Take one call and `max_cost` money from the budget; False, and nothing taken, if it does not hold them."""
        paid = self._execute(
            "UPDATE spending SET calls = calls + 1, money = money + ?1 WHERE calls + 1 <= ?2 AND money + ?1 <= ?3 "
            "RETURNING calls",
            (max_cost, *self._limits),
        )
        return bool(paid)

    def settle(self, max_cost: float, cost: float) -> None:
        """Put back what a call did not cost of the `max_cost` that was paid."""
        self._execute("UPDATE spending SET money = money + ?", (cost - max_cost,))

    def _renew(self) -> None:
        while not self._closed.wait(self._claim_s / 4):
            with suppress(ValueError):  # the next question fails likewise, and says so
                self.extend_claims()

    def extend_claims(self) -> None:
        """All claims of this owner hold for `claim_s` from now."""
        expires = time.time() + self._claim_s
        self._execute("UPDATE claims SET expires = ? WHERE owner = ?", (expires, self._owner))

    def _execute(self, statement: str, parameters: Mapping[str, object] | tuple[object, ...]) -> list[tuple[Any, ...]]:
        """The rows that a statement gives; ValueError says what to do about a file that fails."""
        try:
            return self._connection.execute(statement, parameters).fetchall()
        except SQLITE_ERRORS as error:
            raise _refusal(self._path, error) from error


def _refusal(path: Path, error: Exception) -> ValueError:
    """Answers were paid for, so a file of them is never begun anew in silence."""
    advice = _ADVICE.get(find_code(error), "choose another judge.cache")
    return ValueError(f"{path}: expected a cache of the judge: {error}; {advice.format(path=path)}")


def _connect(path: Path) -> sqlite3.Connection:
    import filelock

    path.parent.mkdir(parents=True, exist_ok=True)
    # Processes that open a new file at once would see it half made, and switching it to WAL locks the others out.
    with filelock.FileLock(f"{path}.lock"):
        try:
            connection = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
            with ExitStack() as failed:
                failed.callback(connection.close)
                _open(connection)
                failed.pop_all()
        except SQLITE_ERRORS as error:
            raise _refusal(path, error) from error
    return connection


def _open(connection: sqlite3.Connection) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if tables and version not in (1, _VERSION):
        raise sqlite3.DatabaseError(f"its version is {version}, not {_VERSION}")
    connection.executescript(_TABLES)
    if version == 1:
        connection.execute(_OLD_ANSWERS)
        connection.execute("DROP TABLE answers")
    connection.execute(f"PRAGMA user_version = {_VERSION}")
    connection.execute("COMMIT")
