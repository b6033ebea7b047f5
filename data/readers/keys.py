"""Keys and columns, whatever their owners call them."""

import difflib
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from radflow.data.files import read_words
from radflow.data.readers.tables import is_missing

_SPELLINGS: Mapping[str, list[str]] = read_words("keys")["spellings"]
KEYS = tuple(_SPELLINGS)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


_MEANS = {_plain(name): key for key, names in _SPELLINGS.items() for name in (key, *names)}


@lru_cache(maxsize=4096)  # most lines of a manifest have the same keys
def find_keys(names: tuple[str, ...]) -> Mapping[str, tuple[str, ...]]:
    """Known key -> the given names that mean it, its own name first; "" -> those that mean none."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(_MEANS.get(_plain(name), ""), []).append(name)
    return {key: tuple(sorted(meant, key=lambda name: name != key)) for key, meant in found.items()}


def known_values(row: Mapping[str, Any]) -> dict[str, Any]:
    """Known key -> its value, without missing ones. Raises ValueError if two spellings of a key differ.

    The key's own name takes precedence: next to it, "study_id" may be something else than "id".
    """
    values = {}
    for key, names in find_keys(tuple(row)).items():
        present = [name for name in names if not is_missing(row[name])]
        if not key or not present:
            continue
        values[key] = row[present[0]]
        if present[0] != key and any(row[name] != row[present[0]] for name in present[1:]):
            told = " and ".join(f"{name!r} is {row[name]!r}" for name in present)
            raise ValueError(f"key {key!r}: {told}; keep one of them")
    return values


def unknown_keys(names: Iterable[str]) -> dict[str, str]:
    """Names that mean no known key -> the known key that is spelled nearly so, or ""."""
    unknown = find_keys(tuple(names)).get("", ())
    return {name: "".join(difflib.get_close_matches(name.lower(), KEYS, n=1, cutoff=0.7)) for name in unknown}
