"""The judge's budget: what all processes that share a cache file have spent together, and may spend."""

import math
import sqlite3
from dataclasses import dataclass


@dataclass(frozen=True)
class Spent:
    """By all users of a cache file, ever."""

    calls: int  # requests
    money: float  # in the currency of the prices; requests under way count with the most they can cost


class Spending:
    """Requests are paid before they are sent, with the most they can cost, and settled when the bill is known.

    So the budget holds however many processes ask at once; one that is killed meanwhile leaves its request paid.

    Args:
        connection: of `rewards.answer_cache.open_cache`.
        max_calls: None for no limit.
        max_money: None for no limit.
    """

    def __init__(self, connection: sqlite3.Connection, *, max_calls: int | None, max_money: float | None) -> None:
        self._connection = connection
        self._limits = (math.inf if max_calls is None else max_calls, math.inf if max_money is None else max_money)

    def pay(self, most: float) -> bool:
        """Take one call and `most` money from the budget; False, and nothing taken, where it does not hold them."""
        changed = self._connection.execute(
            "UPDATE spending SET calls = calls + 1, money = money + ?1 WHERE calls + 1 <= ?2 AND money + ?1 <= ?3",
            (most, *self._limits),
        )
        return changed.rowcount == 1

    def settle(self, most: float, cost: float) -> None:
        """Put back what a call did not cost of the `most` that was paid."""
        self._connection.execute("UPDATE spending SET money = money + ?", (cost - most,))

    def total(self) -> Spent:
        return Spent(*self._connection.execute("SELECT calls, money FROM spending").fetchone())
