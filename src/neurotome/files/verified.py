"""Bytes of a file, verified while they are read.

Only regular files are opened; a gzip stream is read to its end, so that its checksum and size are verified; never more
bytes are decoded than the caller asked for.
"""

import contextlib
import errno
import hashlib
import os
import re
import stat
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from neurotome.errors import InputError

zlib_engine: ModuleType = zlib
decode_errors: list[type[Exception]] = [zlib.error]
try:
    from isal import isal_zlib

    zlib_engine = isal_zlib
    decode_errors.append(isal_zlib.error)  # type: ignore[arg-type]  # its stub says instance where it is a class
except ImportError:  # an accelerator only: zlib reads and writes the same streams
    pass

CHUNK = 1 << 20
# Compressed bytes fed to the decoder at once: what follows a member is copied, and a member can be 20 bytes long.
_FEED = 1 << 16
# A deflate stream cannot expand by more than this factor (zlib's technical notes).
MAX_DEFLATE_RATIO = 1032
# What any file may decode to, however well it compresses: 256^3 voxels of 64 bits. An empty lesion mask reaches the
# ratio of a bomb; among real images only such masks and label maps pass 50 (a FreeSurfer parcellation: 185).
FREE_BYTES = 256**3 * 8
MAX_IMAGE_RATIO = 250
_GZIP_MAGIC = b"\x1f\x8b"
_GZIP_WBITS = 31
# git-annex writes the key of an unlocked file, or, where there are no symbolic links, the target of the link
_PLACEHOLDERS = (
    (re.compile(rb"version https://git-lfs"), "Git LFS", "`git lfs pull`"),
    (re.compile(rb"/annex/objects/|(?:\.\./)*\.git/annex/objects/"), "git-annex", "`datalad get` or `git annex get`"),
)
_PLACEHOLDER_BYTES = 256
_COPY_AGAIN = "copy the file again from its source"


class VerifiedStream:
    """The decoded bytes of a plain or gzip file, in order.

    Args:
        path: A regular file.
        compressed: Whether the file is a gzip stream (of one or several members).

    Raises:
        InputError: Not a regular file, unreadable, or not gzip although ``compressed``.
    """

    def __init__(self, path: str | os.PathLike[str], *, compressed: bool) -> None:
        self.path = Path(path)
        self.compressed = compressed
        self._file = _open_regular(self.path)
        self.file_bytes = os.fstat(self._file).st_size
        self._digest = hashlib.sha256()
        self._decoder: Any = None
        self._pending = b""
        try:
            self._refuse_placeholder()
            if compressed:
                self._pending = self._next_chunk(_FEED)
                self._check_magic()
        except InputError:
            self.close()
            raise

    def _refuse_placeholder(self) -> None:
        """Refuse what data managers leave in the place of a file that was not fetched."""
        start = self._read(_PLACEHOLDER_BYTES)
        os.lseek(self._file, 0, os.SEEK_SET)
        for mark, manager, command in _PLACEHOLDERS:
            if mark.match(start):
                raise InputError(
                    f"not the file, but a placeholder of {manager}",
                    file=self.path,
                    remedy=f"fetch it with {command}",
                )

    def _check_magic(self) -> None:
        if self._pending[:2] == _GZIP_MAGIC:
            with contextlib.suppress(zlib.error):  # a damaged stream is reported where it is read
                if zlib.decompressobj(wbits=_GZIP_WBITS).decompress(self._pending, 2) == _GZIP_MAGIC:
                    raise InputError(
                        "compressed twice", file=self.path, remedy="decompress it once with gunzip, and keep its name"
                    )
            return
        remedy = _COPY_AGAIN
        if not self._pending:
            raise InputError("the file is empty", file=self.path, remedy=remedy)
        if int.from_bytes(self._pending[:4], "little") in (348, 540):
            remedy = "the content is an uncompressed NIfTI file: take .gz off its name"
        raise InputError("the name says gzip, but the content is not a gzip stream", file=self.path, remedy=remedy)

    def __enter__(self) -> "VerifiedStream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    @property
    def sha256(self) -> str:
        """SHA-256 of the file's own bytes read so far; of the whole file after :meth:`expect_end`."""
        return self._digest.hexdigest()

    def check_promise(self, num_bytes: int) -> None:
        """Check that a file of this size may decode to ``num_bytes``, before anything is allocated or decoded.

        Raises:
            InputError: It cannot hold so much, or expands like a decompression bomb.
        """
        if num_bytes > self.file_bytes * (MAX_DEFLATE_RATIO if self.compressed else 1):
            raise InputError(
                f"the header promises {num_bytes} bytes of voxels, more than a file of {self.file_bytes} bytes can "
                "hold",
                file=self.path,
                remedy=_COPY_AGAIN,
            )
        if num_bytes > max(FREE_BYTES, self.file_bytes * MAX_IMAGE_RATIO):
            raise InputError(
                f"{num_bytes} bytes of voxels in a file of {self.file_bytes}: it expands more than "
                f"{MAX_IMAGE_RATIO}-fold, like a decompression bomb",
                file=self.path,
                remedy="if you trust it, decompress it with gunzip and give the .nii file",
            )

    def read(self, num_bytes: int) -> bytes:
        """Return exactly ``num_bytes`` decoded bytes.

        Raises:
            InputError: The stream ends early or is damaged.
        """
        buffer = bytearray(num_bytes)
        self.read_into(memoryview(buffer))
        return bytes(buffer)

    def read_into(self, buffer: memoryview) -> None:
        """Fill ``buffer`` (of bytes) with the next decoded bytes.

        Raises:
            InputError: The stream ends early or is damaged.
        """
        filled = 0
        while filled < len(buffer):
            block = self._next_block(min(CHUNK * 4, len(buffer) - filled))
            if not block:
                missing = len(buffer) - filled
                raise InputError(
                    f"the file ends {missing} bytes before the data its header promises",
                    file=self.path,
                    remedy=_COPY_AGAIN,
                )
            buffer[filled : filled + len(block)] = block
            filled += len(block)

    def skip(self, num_bytes: int) -> None:
        """Pass over ``num_bytes`` decoded bytes; they are verified like all others.

        Raises:
            InputError: The stream ends early or is damaged.
        """
        while num_bytes > 0:
            num_bytes -= len(self.read(min(CHUNK * 4, num_bytes)))

    def read_rest(self, limit: int) -> bytes:
        """Return what is left, at most ``limit`` bytes.

        Raises:
            InputError: More than ``limit`` bytes follow, or the stream is damaged.
        """
        rest = b""
        while block := self._next_block(limit + 1 - len(rest)):
            rest += block
            if len(rest) > limit:
                raise InputError(f"more than {limit} bytes follow the image data", file=self.path, remedy=_COPY_AGAIN)
        return rest

    def expect_end(self) -> None:
        """Check that nothing follows; for gzip this verifies checksum and size.

        Raises:
            InputError: Bytes follow the data that the header promises, or the checksum is wrong.
        """
        if self._next_block(1):
            raise InputError(
                "more data than the header promises; header or content is damaged",
                file=self.path,
                remedy=f"{_COPY_AGAIN}, or write it anew with the tool that made it",
            )

    def _next_block(self, want: int) -> bytes:
        if not self.compressed:
            return self._next_chunk(want)
        try:
            return self._decode(want)
        except tuple(decode_errors) as error:
            raise InputError(
                f"the compressed stream is damaged ({error})", file=self.path, remedy=_COPY_AGAIN
            ) from error

    def _decode(self, want: int) -> bytes:
        """Return 1 to ``want`` decoded bytes, or none at the verified end of the last member."""
        while True:
            if self._decoder is None:
                if len(self._pending) < len(_GZIP_MAGIC):
                    self._pending += self._next_chunk(_FEED)
                if not self._pending:
                    return b""
                if self._pending[:2] != _GZIP_MAGIC:
                    raise InputError(
                        "bytes that are not gzip follow the compressed stream", file=self.path, remedy=_COPY_AGAIN
                    )
                self._decoder = zlib_engine.decompressobj(wbits=_GZIP_WBITS)
            block: bytes = self._decoder.decompress(self._pending, want)
            if self._decoder.eof:
                self._pending, self._decoder = self._decoder.unused_data, None
            else:
                self._pending = self._decoder.unconsumed_tail
                if not self._pending and not block:
                    self._pending = self._next_chunk(_FEED)
                    if not self._pending:
                        raise InputError(
                            "the compressed stream is cut off before its end", file=self.path, remedy=_COPY_AGAIN
                        )
            if block:
                return block

    def _next_chunk(self, want: int = CHUNK) -> bytes:
        chunk = self._read(want)
        self._digest.update(chunk)
        return chunk

    def _read(self, want: int) -> bytes:
        try:
            return os.read(self._file, want)
        except OSError as error:
            raise InputError(f"the file cannot be read ({error.strerror})", file=self.path) from error


def _open_regular(path: Path) -> int:
    """Open a regular file for reading; pipes, devices and folders are refused without waiting for them."""
    try:
        # O_NONBLOCK: opening a pipe without a writer would wait for ever
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0))
    except OSError as error:
        remedy = "check the path and its permissions"
        if error.errno == errno.ENOENT and path.is_symlink():
            remedy = "it is a link to a file that is not there; in a DataLad dataset fetch it with `datalad get`"
        raise InputError(f"the file cannot be opened ({error.strerror})", file=path, remedy=remedy) from error
    except ValueError as error:
        raise InputError(f"not a path ({error})", file=path, remedy="check the path") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise InputError("not a regular file", file=path, remedy="give a file, not a folder, pipe or device")
    return handle


def gzip_bytes(parts: Iterable[bytes | memoryview]) -> Iterator[bytes]:
    """Compress ``parts`` to one gzip member without time or file name: equal parts give equal bytes."""
    # level 2 of isal is as small as level 6 of zlib on float images and about ten times as fast
    level = 2 if zlib_engine is not zlib else 6
    encoder = zlib_engine.compressobj(level=level, wbits=_GZIP_WBITS)
    for part in parts:
        yield encoder.compress(part)
    yield encoder.flush()


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a regular file.

    Raises:
        InputError: Not a regular file, or unreadable.
    """
    with VerifiedStream(path, compressed=False) as stream:
        while stream._next_chunk():
            pass
        return stream.sha256
