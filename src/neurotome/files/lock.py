"""One process at a time in a folder; the lock goes with the process, however it ends."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from neurotome.errors import NeurotomeError
from neurotome.files.atomic import output_error

# what a file system without locks answers
_WITHOUT_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


@contextlib.contextmanager
def alone(file: Path, held: NeurotomeError, *, again: bool = False) -> Iterator[None]:
    """Hold a lock file within the context; where the file system has no locks, nothing is held.

    Args:
        file: The lock file, in a folder that is there; it stays.
        held: Raised at once if somebody holds it.
        again: Whether the thread that holds it may enter again.

    Raises:
        OutputError: The lock file cannot be made.
    """
    lock = FileLock(file, timeout=0, is_singleton=again)
    try:
        lock.acquire()
    except Timeout as error:
        raise held from error
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise output_error(file, error) from error
    except NotImplementedError:  # so says filelock before version 3.20 where there are no locks
        pass
    try:
        yield
    finally:
        lock.release()
