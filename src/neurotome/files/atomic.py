"""Files and folders that appear whole or not at all: a temporary one beside the place, fsync, rename."""

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from neurotome.errors import OutputError, UsageError, printable

# what is unfinished is called so; a name of our own, because a suffix to a 255-byte name would be refused
HIDDEN = ".neurotome-"
_REMEDIES = {
    errno.ENOSPC: "free some disk space or choose another output folder",
    errno.EROFS: "choose an output folder that can be written to",
    errno.EACCES: "choose an output folder that can be written to",
    errno.ENOENT: "create the output folder first",
}


def write_atomically(path: str | os.PathLike[str], parts: Iterable[bytes | memoryview]) -> str:
    """Write ``parts`` to a temporary file beside ``path``, flush it to disk, then rename; return its SHA-256.

    Raises:
        OutputError: The folder is missing or read-only, or the disk is full; nothing is left behind.
    """
    path = Path(path)
    temporary = _beside(path)
    digest = hashlib.sha256()
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            with os.fdopen(handle, "wb") as file:
                for part in parts:
                    file.write(part)
                    digest.update(part)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        _sync_folder(path.parent)
    except OSError as error:
        raise output_error(path, error) from error
    return digest.hexdigest()


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Fill the yielded folder; at the end of the context it is flushed to disk and replaces ``folder``.

    A link stands for what it points to.

    Raises:
        OutputError: The place cannot be written to, or the disk is full; nothing is left behind, and a folder that was
            there is as it was.
    """
    folder = folder.resolve() if folder.is_symlink() else folder
    temporary = _beside(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        yield temporary
        for place, _, names in os.walk(temporary):
            for name in names:
                _sync_file(Path(place, name))
            _sync_folder(Path(place))
        _put(temporary, folder)
        _sync_folder(folder.parent)
    except OSError as error:
        if isinstance(error, OutputError | FileNotFoundError):  # a file that is missing was to be read
            raise
        raise output_error(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_folder(
    folder: Path, contents: Mapping[str, bytes], check: Callable[[Path], None] = lambda place: None
) -> None:
    """Write a folder of files; see :func:`new_folder`.

    Args:
        folder: Where it will stand.
        contents: The files by name.
        check: Called with the place where the files lie until they are whole; what it raises keeps them from
            appearing.

    Raises:
        OutputError: The place cannot be written to, or the disk is full; a folder that was there is as it was.
    """
    with new_folder(folder) as place:
        for name, data in contents.items():
            (place / name).write_bytes(data)
        check(place)


def remove_folder(folder: Path) -> None:
    """Delete a folder; renamed first, so that a half-deleted one is never taken for a whole.

    Raises:
        OSError: It is not there, or may not be renamed.
    """
    doomed = _beside(folder)
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Delete what killed processes have left unfinished anywhere below ``folder``."""
    for left in list(folder.rglob(f"{HIDDEN}*")):
        remove(left)


def remove(path: Path) -> None:
    """Delete a file, a link or a folder with all in it, as far as that is possible; nothing where nothing is."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Refuse a folder that cannot be written to, before time is spent.

    Raises:
        OutputError: It, or the nearest folder above that exists, is read-only.
        UsageError: A part of the path is a file.
    """
    existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not existing.is_dir():
        raise UsageError(f"{printable(existing)}: is a file, not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise OutputError(f"{printable(existing)}: cannot be written to. Remedy: choose another output folder.")


def output_error(path: Path, error: OSError) -> OutputError:
    """Return an error that names the output, the system's reason and a remedy."""
    remedy = _REMEDIES.get(error.errno or 0, "choose another output folder")
    return OutputError(f"{printable(path)}: cannot be written ({error.strerror or error}). Remedy: {remedy}.")


def _beside(path: Path) -> Path:
    return path.parent / f"{HIDDEN}{secrets.token_hex(8)}.tmp"


def _put(temporary: Path, folder: Path) -> None:
    """Rename a finished folder to its name; one that is there goes after that, or comes back."""
    if not folder.exists():
        temporary.rename(folder)
        return
    old = _beside(folder)
    folder.rename(old)
    try:
        temporary.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sync_file(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_folder(folder: Path) -> None:
    """Flush the folder's entry, so that the rename survives a power loss; not every file system offers it."""
    with contextlib.suppress(OSError):
        _sync_file(folder)
