"""Files of a run: written atomically and durably; JSON lines that survive a kill; digests that are checked on load.

The digests of a folder are its digests.json, those of a file `part.jsonl` are next to it in `part.digests.json`.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

DIGESTS = "digests.json"
READ_AT_ONCE = 4  # files; SHA-256 of a large buffer lets other threads run

Files = Mapping[str, tuple[int, str]]  # relative path -> bytes and SHA-256


def write_whole(path: Path, text: str) -> None:
    """Write a text file under a temporary name, flush it to disk and rename it; an OSError names the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with name_errors(path):
            with temporary.open("wb") as file:
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def name_errors(path: Path) -> Iterator[None]:
    """Add the name of a file to an OSError without one: `write` and `fsync` know a descriptor only."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to disk, as a rename alone is not durable. Windows opens no folder."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            with name_errors(folder):
                os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_json(path: Path, value: object) -> None:
    write_whole(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def read_json(path: Path) -> Any:
    """The JSON value of a file; ValueError names one that is damaged."""
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON, got {error}; the file is damaged: restore it") from error


def write_lines(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """One JSON object per line, written atomically."""
    write_whole(path, _join(rows))


def _join(rows: Iterable[Mapping[str, object]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON-lines file; drops a last line without a newline, which a kill leaves.

    ValueError names file and line of any other line that is not a JSON object.
    """
    return list(iter_lines(path))


def iter_lines(path: Path) -> Iterator[dict[str, Any]]:
    """`read_lines` row by row, for a file that is too long to hold."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            yield parse_line(line, f"{path}:{number}")


def parse_line(line: bytes, where: str) -> dict[str, Any]:
    """The object of a line; ValueError, beginning with `where`, if it is none."""
    try:
        row = json.loads(line)
        if not isinstance(row, dict):
            raise ValueError("no object")
    except (ValueError, RecursionError) as error:
        got = f"{line.rstrip()[:60]!r}; the file is damaged: restore it"
        raise ValueError(f"{where}: expected a JSON object, got {got}") from error
    return row


def seal(product: Path, built_on: Mapping[str, str]) -> None:
    """Write the digests of a file, or of all files of a folder, and the digests of what it was built on, by name."""
    base, paths = product.parent, [product]
    if product.is_dir():
        base, paths = product, sorted(p for p in product.rglob("*") if p.is_file() and not p.name.endswith(DIGESTS))
    with ThreadPoolExecutor(READ_AT_ONCE) as threads:
        digests = threads.map(sha256_of, paths)
        files = {p.relative_to(base).as_posix(): (p.stat().st_size, d) for p, d in zip(paths, digests, strict=True)}
    _write_digests(product, files, built_on)


def write_sealed(path: Path, rows: Iterable[Mapping[str, object]], built_on: Mapping[str, str] | None = None) -> None:
    """`write_lines`, after the digests of what is written: a file without them was written by an older version."""
    text = _join(rows)
    content = text.encode()
    files = {path.name: (len(content), hashlib.sha256(content).hexdigest())}
    _write_digests(path, files, built_on or {})
    write_whole(path, text)


def _write_digests(product: Path, files: Files, built_on: Mapping[str, str]) -> None:
    write_stamped(digests_path(product), {"built_on": dict(built_on), "files": files})


def write_stamped(path: Path, value: Mapping[str, object]) -> None:
    """`write_json` with a SHA-256 of the rest, which `read_stamped` checks."""
    plain = json.loads(json.dumps(value))
    write_json(path, {**plain, "sha256": hash_json(plain)})


def read_stamped(path: Path) -> dict[str, Any]:
    """ValueError if the content is not that which was written; that of an older version has no hash."""
    value: dict[str, Any] = read_json(path)
    if value.pop("sha256", None) not in (None, hash_json(value)):
        raise ValueError("its SHA-256 is not the one recorded")
    return value


def hash_json(value: object) -> str:
    """SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def digests_path(product: Path) -> Path:
    return product / DIGESTS if product.is_dir() else product.with_suffix(f".{DIGESTS}")


@dataclass(frozen=True)
class Digests:
    """What was recorded of a product."""

    base: Path
    files: Files
    built_on: Mapping[str, str]

    @classmethod
    def read(cls, product: Path) -> "Digests | None":
        """None if there are none; ValueError if they cannot be read."""
        path = digests_path(product)
        if not path.exists():
            return None
        try:
            recorded = read_stamped(path)
            files = {str(name): (int(size), str(digest)) for name, (size, digest) in recorded["files"].items()}
            return cls(product if product.is_dir() else product.parent, files, dict(recorded["built_on"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            advice = "restore it, or remove it to have digests made of the files as they are"
            raise ValueError(f"{path}: expected the digests of {product}, got a damaged file; {advice}") from error

    @property
    def identity(self) -> str:
        """The same for the same files."""
        return hash_json(self.files)


def find_damage(base: Path, files: Files) -> tuple[str, str] | None:
    """The first of `files` that is not as recorded, and what is wrong with it."""
    with ThreadPoolExecutor(READ_AT_ONCE) as threads:
        found = threads.map(lambda item: _compare(base / item[0], *item[1]), files.items())
        return next(((name, wrong) for name, wrong in zip(files, found, strict=True) if wrong), None)


def _compare(path: Path, size: int, digest: str) -> str:
    try:
        if (found := path.stat().st_size) != size:
            return f"has {found} bytes, expected {size}"
        return "" if sha256_of(path) == digest else "is damaged: its SHA-256 is not the one recorded"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Journal:
    """Metrics of a stage, one line per step."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def drop_from(self, step: int) -> None:
        """Keep the first `step` lines, and nothing of one that a kill left unfinished."""
        write_lines(self.path, islice(iter_lines(self.path), step))

    def append(self, row: Mapping[str, object]) -> None:
        with name_errors(self.path), self.path.open("ab") as file:
            file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")

    def sync(self) -> None:
        """Return when all rows are on the disk."""
        sync_file(self.path)

    def mark(self, step: int) -> str:
        """SHA-256 of the first `step` lines, by which a checkpoint knows them; of an absent file that of no line."""
        digest = hashlib.sha256()
        if self.path.exists():
            with self.path.open("rb") as file:
                for line in islice(file, step):
                    digest.update(line)
        return digest.hexdigest()

    def find_change(self, mark: str, step: int) -> Path | None:
        """The file, unless its first `step` lines are those of the mark."""
        return None if self.mark(step) == mark else self.path


def sync_file(path: Path) -> None:
    """Return when what was written to a file is on the disk."""
    with name_errors(path), path.open("rb+") as file:
        os.fsync(file.fileno())
