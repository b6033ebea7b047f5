"""Folders that are written whole."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(directory: Path) -> Iterator[Path]:
    """A folder to fill under a temporary name; it takes its own name, in place of an older one, once it is complete."""
    temporary = directory.with_name(directory.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    yield temporary
    if directory.is_dir():
        shutil.rmtree(directory)
    os.replace(temporary, directory)
