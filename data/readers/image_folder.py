"""Which files of a folder are the images of which study."""

import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath

_BREAK = re.compile(r"[ _.\-]")


class ImageFolder:
    """The files of a folder and below, by their path in it."""

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise ValueError(f"expected a folder of images at {root}, not there; correct the path")
        self.root, self.paths = Path(os.path.abspath(root)), dict.fromkeys(_walk(root))
        self._named: dict[str, list[str]] = {}
        for path in self.paths:
            name = PurePosixPath(path)
            for known in {name.name, name.stem}:
                self._named.setdefault(known, []).append(path)

    def find(self, name: str) -> str | None:
        """The file that a table means: by its path, else by its name alone, with or without ending; None without one.

        Raises ValueError if several files have the name.
        """
        name, mark, frame = name.replace("\\", "/").partition("#frame=")
        path = os.path.normpath(os.path.relpath(name, self.root) if os.path.isabs(name) else name)
        found = [path] if path in self.paths else self._named.get(PurePosixPath(name).name, [])
        if len(found) > 1:
            raise ValueError(f"expected one file {name} in {self.root}, got {' and '.join(found[:3])}; give its path")
        return f"{found[0]}{mark}{frame}" if found else None

    def by_study(self, ids: Collection[str]) -> dict[str, list[str]]:
        """Files in the order of their names, of each id that their name begins with or a folder above them has.

        A file belongs to one study: to s1_2 and not to s1, if there are both.
        """
        found: dict[str, list[str]] = {}
        for path in self.paths:
            owner = next((name for name in _owners(path) if name in ids), None)
            if owner is not None:
                found.setdefault(owner, []).append(path)
        return found


def _owners(path: str) -> Iterator[str]:
    """Ids that a file may belong to, the longest part of its name first, then its folders."""
    *folders, name = path.split("/")
    ends = [len(name), *(match.start() for match in _BREAK.finditer(name))]
    yield from (name[:end] for end in sorted(ends, reverse=True))
    yield from reversed(folders)


def _walk(root: Path) -> Iterator[str]:
    """Paths of all files that are not hidden, relative to the root, in order of their names."""
    for parent, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        start = os.path.relpath(parent, root)
        yield from (os.path.normpath(os.path.join(start, name)) for name in sorted(names) if not name.startswith("."))
