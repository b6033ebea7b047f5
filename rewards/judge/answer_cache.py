"""Answers of the judge in a SQLite file: asked once, whatever the number of runs and processes, and within one budget.

A process claims a question before it asks; others wait for its answer. A claim lapses unless its owner renews it, so
that the questions of a process that was killed are free again. The file holds hashes of the questions, and the answers
with their reasons, which may quote a report.
"""

import fcntl
import math
import sqlite3
import time
import uuid
from pathlib import Path

from radflow.rewards.judge.prompts import Answer

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


class AnswerCache:
    """Answers, claims and spending for one owner; used by the thread that made it.

    Requests are paid before they are sent, with the most they can cost, and settled when their cost is known. So the
    budget holds however many processes ask at once; one that is killed meanwhile leaves its request paid.

    Args:
        path: of the file, made if it does not exist; ValueError if it is something else, or of another version.
        claim_s: seconds that a claim holds unless it is renewed.
        max_calls: requests that all users of the file may make together, ever; None for no limit.
        max_money: what they may spend together, in the currency of the prices; None for no limit.
    """

    def __init__(
        self, path: Path, *, claim_s: float, max_calls: int | None = None, max_money: float | None = None
    ) -> None:
        self._connection, self._claim_s, self._owner = _connect(path), claim_s, uuid.uuid4().hex
        self._limits = (math.inf if max_calls is None else max_calls, math.inf if max_money is None else max_money)

    def close(self) -> None:
        self._connection.close()

    def find(self, key: str) -> Answer | None:
        row = self._connection.execute("SELECT yes, reason FROM answers WHERE key = ?", (key,)).fetchone()
        return None if row is None else Answer(bool(row[0]), row[1])

    def claim(self, key: str) -> bool:
        """True: this owner is to ask the question. False: it has an answer by now, or another owner is asking it."""
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
        expires = time.time() + self._claim_s
        self._connection.execute("UPDATE claims SET expires = ? WHERE owner = ?", (expires, self._owner))

    def release(self, key: str) -> None:
        """Give up a claim: without an answer, others may ask the question."""
        self._connection.execute("DELETE FROM claims WHERE key = ? AND owner = ?", (key, self._owner))

    def store(self, key: str, answer: Answer, *, prompt: str, model: str) -> None:
        """Keep an answer, unless the question has one: if a lapsed claim is answered twice, the first answer stays."""
        row = (key, prompt, model, int(answer.yes), answer.reason)
        self._connection.execute("INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?)", row)

    def pay(self, max_cost: float) -> bool:
        """Take one call and `max_cost` money from the budget; False, and nothing taken, if it does not hold them."""
        changed = self._connection.execute(
            "UPDATE spending SET calls = calls + 1, money = money + ?1 WHERE calls + 1 <= ?2 AND money + ?1 <= ?3",
            (max_cost, *self._limits),
        )
        return changed.rowcount == 1

    def settle(self, max_cost: float, cost: float) -> None:
        """Put back what a call did not cost of the `max_cost` that was paid."""
        self._connection.execute("UPDATE spending SET money = money + ?", (cost - max_cost,))


def _connect(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Two processes that switch a new file to WAL at once would lock each other out without waiting.
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
