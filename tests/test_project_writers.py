"""Whatever writes a file writes it whole or not at all: each call that the system can refuse is let fail once."""

import errno
import os
import stat

import pytest
from safetensors import SafetensorError

from capo import journal
from radflow.data import files
from radflow.models.loading import write_folder


def write_model(path, text):
    with write_folder(path) as folder:
        (folder / "weights").write_text(text)


WRITERS = {
    "capo": journal.write_whole,
    "data": lambda path, text: files.write_whole(path, [text]),
    "models": write_model,
}


def content(path):
    return (path / "weights" if path.is_dir() else path).read_text()


@pytest.mark.parametrize("name", ["fsync", "replace"])
@pytest.mark.parametrize("writer", WRITERS)
def test_a_refused_write_names_the_file_and_leaves_the_old_or_the_new_one(tmp_path, monkeypatch, writer, name):
    write, path, real, reached = WRITERS[writer], tmp_path / "product", getattr(os, name), []
    write(path, "old")

    def counted(*args):
        reached.append(args)
        if len(reached) == fail_at:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args)

    monkeypatch.setattr(os, name, counted)
    for fail_at in range(1, 9):
        reached.clear()
        try:
            write(path, f"new {fail_at}")
        except OSError as error:
            assert error.errno == errno.ENOSPC and str(tmp_path) in str(error)
        assert [each.name for each in tmp_path.iterdir()] == ["product"]
        assert content(path) in ("old", *(f"new {number}" for number in range(1, fail_at + 1)))
        if len(reached) < fail_at:
            assert content(path) == f"new {fail_at}"
            break
    assert fail_at == {"fsync": {"models": 4}.get(writer, 3), "replace": {"models": 3}.get(writer, 2)}[name]


@pytest.mark.parametrize("writer", WRITERS)
def test_nothing_gets_its_name_before_it_is_on_disk_and_the_name_is_flushed_last(tmp_path, monkeypatch, writer):
    done, fsync, replace = [], os.fsync, os.replace

    def synced(descriptor):
        folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        done.append("folder" if folder else "file")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", lambda *paths: (done.append("rename"), replace(*paths)))
    WRITERS[writer](tmp_path / "product", "new")
    assert done == ["file", *(["folder"] if writer == "models" else []), "rename", "folder"]


@pytest.mark.parametrize("writer", WRITERS)
def test_permissions_are_those_of_the_umask(tmp_path, writer):
    before = os.umask(0o027)
    try:
        WRITERS[writer](tmp_path / "product", "new")
    finally:
        os.umask(before)
    expected = 0o750 if writer == "models" else 0o640
    assert stat.S_IMODE((tmp_path / "product").stat().st_mode) == expected


def test_the_systems_error_in_a_text_of_safetensors_is_one_of_the_system_again(tmp_path):
    path = tmp_path / "model"
    write_model(path, "old")
    with pytest.raises(OSError) as caught, write_folder(path):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(path)
    assert content(path) == "old" and [each.name for each in tmp_path.iterdir()] == ["model"]
