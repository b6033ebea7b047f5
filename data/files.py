"""Writing files atomically, so that an interrupted run leaves the old file or none; and reading the tables of words."""

import os
import tomllib
import uuid
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
    """A file that is written under a temporary name, flushed to disk and renamed to `path` once it is complete.

    An OSError names the file; `write` and `fsync` know a descriptor only.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open(mode, encoding=encoding) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        if os.name == "posix":  # Windows opens no folder
            _sync_folder(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = error.filename or str(path)
        raise


def _sync_folder(folder: Path) -> None:
    """A rename alone is not durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, lines: Iterable[str]) -> None:
    """Write text in UTF-8."""
    with replacing(path, "w", encoding="utf-8") as file:
        file.writelines(lines)
