"""Rows of the steps of a stage in compressed files, a bounded number of them however long a run is."""

import json
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capo.journal import name_errors, sync_file, sync_folder

# What every member of an archive begins with: gzip, no time, and one extra field of 16 bytes (RFC 1952).
_BEGIN = b"\x1f\x8b\x08\x04" + bytes(4) + b"\x00\xff" + b"\x14\x00" + b"RF" + b"\x10\x00"
_SPAN = struct.Struct("<QI")  # in that field: the step, and bytes of the whole member; then a CRC-32 of both
_HEADER_BYTES = len(_BEGIN) + _SPAN.size + 4


@dataclass(frozen=True)
class Member:
    """Where an archive holds the rows of one step."""

    path: Path
    start: int  # bytes
    size: int  # bytes

    def read(self) -> list[dict[str, Any]]:
        """The rows of the step; ValueError names a damaged file."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            data = file.read(self.size)
        try:
            text = zlib.decompress(data[_HEADER_BYTES:-8], wbits=-zlib.MAX_WBITS)
        except zlib.error:
            text = b""
        if struct.pack("<II", zlib.crc32(text), len(text)) != data[-8:]:
            raise _damaged(self.path, self.start)
        return [json.loads(line) for line in text.splitlines()]


class Archive:
    """Rows of each step of a stage, compressed, `part_steps` steps per file, which zcat reads.

    A step is one gzip member, appended; its size is in its header, so that a reader goes from one to the next without
    decompressing them.

    Args:
        keep: number of latest steps to keep; a file is removed when all its steps are older. 0 keeps all.
    """

    def __init__(self, folder: Path, *, keep: int = 0, part_steps: int = 1000) -> None:
        self.folder, self.keep, self.part_steps = folder, keep, part_steps

    def append(self, step: int, rows: Iterable[Mapping[str, object]]) -> None:
        """Write the rows of a step that is later than all before it."""
        path = self.folder / f"steps_{step // self.part_steps * self.part_steps:08d}.jsonl.gz"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            self.sync()
            for old, first in self._parts().items():
                if self.keep and first + self.part_steps <= step + 1 - self.keep:
                    old.unlink()
        lines = (json.dumps({"step": step, **row}, ensure_ascii=False) + "\n" for row in rows)
        with name_errors(path), path.open("ab") as file:
            file.write(_compress(step, "".join(lines).encode("utf-8", "surrogatepass")))

    def drop_from(self, step: int) -> None:
        """Remove the rows of this step and all later ones, and what a kill left of the last one.

        ValueError names a damaged file among those that stay.
        """
        for path, first in reversed(self._parts().items()):
            if first >= step:
                path.unlink()
                continue
            kept = [Member(path, start, size) for number, start, size in _members(path) if number < step]
            for member in kept:
                member.read()
            os.truncate(path, max((member.start + member.size for member in kept), default=0))

    def sync(self) -> None:
        """Return when all rows are on the disk."""
        for path in list(self._parts())[-1:]:
            sync_file(path)
            sync_folder(self.folder)

    def mark(self, step: int) -> dict[str, int]:
        """File -> bytes of the steps before `step` in it, by which a checkpoint knows whether some are lost."""
        begun = ((path, first) for path, first in self._parts().items() if first < step)
        return {path.name: self._size_before(step, path, first) for path, first in begun}

    def find_change(self, mark: Mapping[str, int], step: int) -> Path | None:
        """A file of the mark that has not all its steps before `step`; one may be gone as a whole. ValueError names a
        damaged one."""
        now = self.mark(step)
        return next((self.folder / name for name, size in mark.items() if now.get(name, size) != size), None)

    def _size_before(self, step: int, path: Path, first: int) -> int:
        if first + self.part_steps <= step:
            return path.stat().st_size
        return max((start + size for number, start, size in _members(path) if number < step), default=0)

    def members(self) -> dict[int, Member]:
        """Step -> where its rows are, in order; ValueError names a damaged file."""
        found = ((path, member) for path in self._parts() for member in _members(path))
        return {step: Member(path, start, size) for path, (step, start, size) in found}

    def _parts(self) -> dict[Path, int]:
        """Its files and their first steps, in order."""
        return {path: int(path.name[6:14]) for path in sorted(self.folder.glob("steps_*.jsonl.gz"))}


def _compress(step: int, text: bytes) -> bytes:
    """A gzip member; the same bytes whenever it is written."""
    body, end = zlib.compress(text, wbits=-zlib.MAX_WBITS), struct.pack("<II", zlib.crc32(text), len(text))
    span = _SPAN.pack(step, _HEADER_BYTES + len(body) + len(end))
    return b"".join([_BEGIN, span, struct.pack("<I", zlib.crc32(span)), body, end])


def _members(path: Path) -> Iterator[tuple[int, int, int]]:
    """Step, start and size in bytes of every member that is complete."""
    with path.open("rb", buffering=0) as file:
        length, start = path.stat().st_size, 0
        while start + _HEADER_BYTES <= length:
            file.seek(start)
            header = file.read(_HEADER_BYTES)
            span, check = header[len(_BEGIN) : -4], header[-4:]
            if not any(header):  # a power cut leaves zeros
                return
            if not header.startswith(_BEGIN) or struct.pack("<I", zlib.crc32(span)) != check:
                raise _damaged(path, start)
            step, size = _SPAN.unpack(span)
            if start + size > length:
                return
            yield step, start, size
            start += size


def _damaged(path: Path, start: int) -> ValueError:
    return ValueError(
        f"{path}: damaged at byte {start}: expected the rows of a step; restore the file, or remove it: nothing is "
        "trained on it"
    )
