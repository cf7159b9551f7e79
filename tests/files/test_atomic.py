import errno
import os
import stat
from pathlib import Path

import pytest

from neurotome.errors import OutputError
from neurotome.files.atomic import HIDDEN, new_folder, remove_folder, sweep, write_atomically, write_folder
from neurotome.files.verified import file_sha256


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_atomic_write_leaves_nothing_behind(tmp_path, monkeypatch):
    path = tmp_path / "out.bin"
    sha256 = write_atomically(path, [b"old"])
    assert sha256 == file_sha256(path)

    def broken():
        yield b"new"
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_atomically(path, broken())

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match=r"out.bin.*No space left.*free some disk space"):
            write_atomically(path, [b"new"])
    with pytest.raises(OutputError, match="create the output folder first"):
        write_atomically(tmp_path / "none" / "out.bin", [b"new"])
    assert [p.name for p in tmp_path.iterdir()] == ["out.bin"]
    assert path.read_bytes() == b"old"


def test_a_name_of_255_bytes_can_be_written(tmp_path):
    path = tmp_path / ("x" * 248 + ".nii.gz")
    write_atomically(path, [b"data"])
    assert path.read_bytes() == b"data"


def test_a_folder_appears_whole_and_replaces_the_one_before(tmp_path):
    folder = tmp_path / "new" / "folder"
    write_folder(folder, {"a": b"1", "b": b"2"})
    with new_folder(folder) as place:
        (place / "deep").mkdir()
        (place / "deep" / "c").write_bytes(b"3")
        assert contents(folder) == {"a": b"1", "b": b"2"}
    assert contents(folder) == {"deep/c": b"3"}
    assert [p.name for p in folder.parent.iterdir()] == ["folder"]


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_that_fails_leaves_what_was_there(tmp_path, monkeypatch, there):
    folder = tmp_path / "folder"
    before = {"folder/a": b"1"} if there else {}
    if there:
        write_folder(folder, {"a": b"1"})

    def stopped():
        with new_folder(folder) as place:
            (place / "b").write_bytes(b"2")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert contents(tmp_path) == before
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match=r"folder: cannot be written \(No space left.*free some disk space"):
            write_folder(folder, {"b": b"2"})
    assert contents(tmp_path) == before
    real = Path.rename

    def rename(path, target):  # the last of the renames alone
        return full() if target == folder and (path / "b").exists() else real(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        with pytest.raises(OutputError, match="No space left"):
            write_folder(folder, {"b": b"2"})
    assert contents(tmp_path) == before
    assert [p.name for p in tmp_path.iterdir()] == ["folder"] * there


def test_files_and_folder_are_flushed_before_the_folder_has_its_name(tmp_path, monkeypatch):
    flushed, real = [], os.fsync

    def fsync(handle):
        kind = "folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file"
        flushed.append((kind, (tmp_path / "folder").exists()))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    write_folder(tmp_path / "folder", {"a": b"1", "b": b"2"})
    assert flushed == [("file", False), ("file", False), ("folder", False), ("folder", True)]


def test_what_was_to_be_read_and_is_missing_is_no_fault_of_the_output(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone"), new_folder(tmp_path / "folder"):
        (tmp_path / "gone").read_bytes()
    assert list(tmp_path.iterdir()) == []


def test_leftovers_are_swept_and_nothing_else(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / f"{HIDDEN}0.tmp").touch()
    (tmp_path / f"{HIDDEN}1.tmp" / "deep").mkdir(parents=True)
    (tmp_path / "a" / "kept").touch()
    (tmp_path / f"{HIDDEN}2.tmp").symlink_to(tmp_path / "a")
    sweep(tmp_path)
    assert contents(tmp_path) == {"a/kept": b""}
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    sweep(tmp_path / "none")


def test_a_removed_folder_loses_its_name_first(tmp_path, monkeypatch):
    write_folder(tmp_path / "folder", {"a": b"1"})
    monkeypatch.setattr("neurotome.files.atomic.shutil.rmtree", lambda *_, **__: None)  # killed while it deletes
    remove_folder(tmp_path / "folder")
    assert all(p.name.startswith(HIDDEN) for p in tmp_path.iterdir())
