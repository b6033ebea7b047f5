"""Memories of what texts were read as, bounded by bytes: a policy writes new texts without end, of any length.

What serves the mentions of one sentence is an `lru_cache` of a few sentences.
"""

import sys
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import is_dataclass
from functools import cache, wraps
from typing import Any, Generic, ParamSpec, TypeVar, cast

P = ParamSpec("P")
R = TypeVar("R")
MB = 2**20
_COLLECTIONS = (tuple, list, set, frozenset)
_PLAIN = {str, int, float, bool, type(None)}


def remember(function: Callable[P, R], *, most_bytes: int = 2 * MB) -> Callable[P, R]:
    """The function with a memory of its answers, which is emptied before it holds more than `most_bytes`.

    Emptied, and not rid of the oldest: what recurs is soon there again, and a hit costs no more than a look-up. An
    answer that is larger by itself is forgotten at the next one.
    """
    held = 0

    @cache
    @wraps(function)
    def answer(*args: P.args, **kwargs: P.kwargs) -> R:
        nonlocal held
        value = function(*args, **kwargs)
        size = num_bytes((args, value))
        held += size
        if held > most_bytes:
            answer.cache_clear()
            held = size
        return value

    return cast(Callable[P, R], answer)


class Kept(Generic[R]):
    """What was made of the texts used last, up to a number of bytes."""

    def __init__(self, limit: int) -> None:
        self.limit, self.size = limit, 0
        self.values: OrderedDict[str, R] = OrderedDict()

    def __call__(self, texts: Collection[str], make: Callable[[list[str]], Sequence[R]]) -> dict[str, R]:
        """text -> what was made of it; those that are not kept are made, all together."""
        found = {text: self.values[text] for text in texts if text in self.values}
        for text in found:
            self.values.move_to_end(text)
        waiting = [text for text in dict.fromkeys(texts) if text not in found]
        made = dict(zip(waiting, make(waiting), strict=True)) if waiting else {}
        self.values |= made
        self.size += sum(map(num_bytes, made.items()))
        while self.size > self.limit:
            self.size -= num_bytes(self.values.popitem(last=False))
        return found | made


def num_bytes(value: Any) -> int:
    """Memory of a value and all that it holds; what is held twice counts twice."""
    size, waiting = sys.getsizeof(value), [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, _COLLECTIONS):
            held = one
        elif isinstance(one, dict):
            held = [*one, *one.values()]
        elif is_dataclass(one):
            held = list(vars(one).values())
        else:
            size += getattr(one, "nbytes", 0)  # of a tensor
            continue
        size += sum(map(sys.getsizeof, held))
        waiting += [part for part in held if type(part) not in _PLAIN]
    return size
