"""Writing files atomically, so that an interrupted run leaves the old file or none; and reading the tables of words."""

import os
import tempfile
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

WORDS = Path(__file__).parent / "words"


def read_words(name: str) -> dict[str, Any]:
    """words/NAME.toml."""
    return tomllib.loads((WORDS / f"{name}.toml").read_text(encoding="utf-8"))


@contextmanager
def replacing(path: Path, mode: str, *, encoding: str | None = None) -> Iterator[IO[Any]]:
    """A file that is written under a temporary name and renamed to `path` once it is complete."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, mode, encoding=encoding) as file:
            yield file
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def write_whole(path: Path, lines: Iterable[str]) -> None:
    """Write text in UTF-8, readable by all."""
    with replacing(path, "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), 0o644)
        file.writelines(lines)
