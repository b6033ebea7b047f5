"""Damaged copies of files."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from radflow.data.studies import load_image


def count_read(contents: Sequence[bytes], path: Path, *, count: int) -> int:
    """How many damaged copies are read as an image; each of the others must be refused in one line with its study."""
    rng, read = np.random.default_rng(0), 0
    for number in range(count):
        path.write_bytes(damage(contents[number % len(contents)], rng))
        try:
            with warnings.catch_warnings(action="ignore"):
                image = load_image(path, study_id="s1")
        except ValueError as error:
            assert str(error).startswith("study s1: image") and "\n" not in str(error)
        else:
            assert image.mode == "RGB"
            read += 1
    return read


def damage(content: bytes, rng: np.random.Generator) -> bytes:
    """One to three changes: a byte or a bit replaced, bytes removed or inserted, the end cut off."""
    for _ in range(rng.integers(1, 4)):
        at, length = int(rng.integers(len(content) + 1)), int(rng.integers(1, 9))
        before, after = content[:at], content[at:]
        flipped = bytes([after[0] ^ 1 << length - 1]) if after else b""
        changed = (rng.bytes(1) + after[1:], flipped + after[1:], after[length:], rng.bytes(length) + after, b"")
        content = before + changed[rng.integers(5)]
    return content
