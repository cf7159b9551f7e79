import gzip
import os
import zlib

import numpy as np
import pytest

from neurotome.errors import InputError
from neurotome.files import verified
from neurotome.files.verified import VerifiedStream, gzip_bytes

DATA = np.random.default_rng(0).integers(0, 50, 200_000, dtype=np.uint8).tobytes()


SIZE = len(DATA)


def read_all(path, size=SIZE):
    with VerifiedStream(path, compressed=True) as source:
        data = source.read(size)
        source.expect_end()
    return data


@pytest.fixture(params=["isal", "zlib"])
def engine(request, monkeypatch):
    if request.param == "zlib":
        monkeypatch.setattr(verified, "zlib_engine", zlib)
    elif verified.zlib_engine is zlib:
        pytest.skip("isal is not installed")


def test_reads_gzip_of_one_and_of_several_members(tmp_path, engine):
    one, two = tmp_path / "one.gz", tmp_path / "two.gz"
    one.write_bytes(gzip.compress(DATA))
    two.write_bytes(gzip.compress(DATA[:777]) + gzip.compress(b"") + gzip.compress(DATA[777:]))
    assert read_all(one) == DATA
    assert read_all(two) == DATA


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda b: b[: len(b) // 2], "cut off"),
        (lambda b: b[:-1], "cut off"),
        (lambda b: b[:-8] + bytes([b[-8] ^ 1]) + b[-7:], "damaged"),
        (lambda b: b[:-1] + bytes([b[-1] ^ 1]), "damaged"),
        (lambda b: b + b"garbage", "not gzip follow"),
        (lambda b: b + b"\0", "not gzip follow"),
        (lambda b: b + gzip.compress(b"x"), "more data"),
        (lambda b: gzip.compress(DATA[:-1]), "ends 1 bytes before"),
        (lambda b: b"plain text", "not a gzip stream"),
        (lambda b: b"", "the file is empty"),
    ],
)
def test_names_the_damage(tmp_path, engine, damage, says):
    path = tmp_path / "x.gz"
    path.write_bytes(damage(gzip.compress(DATA)))
    with pytest.raises(InputError, match=says) as error:
        read_all(path)
    assert str(path) in str(error.value)


def test_never_decodes_more_than_asked(tmp_path, engine, monkeypatch):
    bomb = tmp_path / "bomb.gz"
    bomb.write_bytes(gzip.compress(bytes(30 << 20), compresslevel=1))
    decoded = []
    decode = VerifiedStream._decode
    monkeypatch.setattr(VerifiedStream, "_decode", lambda s, want: decoded.append(len(d := decode(s, want))) or d)
    with pytest.raises(InputError, match="more data"):
        read_all(bomb, size=1000)
    assert sum(decoded) <= 1001


def test_opens_regular_files_only(tmp_path):
    pipe, folder, zero = tmp_path / "pipe.gz", tmp_path / "folder.gz", tmp_path / "zero.gz"
    os.mkfifo(pipe)
    folder.mkdir()
    zero.symlink_to("/dev/zero")
    for path in (pipe, folder, zero):
        with pytest.raises(InputError, match="not a regular file"):
            VerifiedStream(path, compressed=True)
    for missing in (tmp_path / "missing.gz", "bad\0name.gz"):
        with pytest.raises(InputError):
            VerifiedStream(missing, compressed=True)


def test_bounds_before_allocation(tmp_path):
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(b"x" * 1000))
    with VerifiedStream(path, compressed=True) as source:
        source.check_promise(1000)
        with pytest.raises(InputError, match="more than a file of 29 bytes can hold"):
            source.check_promise(1 << 30)


def test_expansion_is_bounded_where_it_costs_memory(tmp_path):
    """Below 256^3 doubles any ratio is taken: an empty mask is no bomb."""
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(b"") + bytes(200_000))
    with VerifiedStream(path, compressed=True) as source:
        source.check_promise(verified.FREE_BYTES)
        with pytest.raises(InputError, match=r"250-fold, like a decompression bomb.*gunzip"):
            source.check_promise(verified.FREE_BYTES + 1)
    (tmp_path / "x.nii").write_bytes(b"x" * 1000)
    with VerifiedStream(tmp_path / "x.nii", compressed=False) as source:
        source.check_promise(1000)
        with pytest.raises(InputError, match="can hold"):
            source.check_promise(1001)


def test_many_small_members_take_no_longer_than_their_bytes(tmp_path, engine, monkeypatch):
    """What follows a member is copied: fed in large pieces, a megabyte of empty members cost gigabytes of copies."""
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(b"") * 20_000 + gzip.compress(DATA))
    fed = []
    make = verified.zlib_engine.decompressobj

    class Counting:
        def __init__(self, **kwargs):
            self.decoder = make(**kwargs)

        def decompress(self, data, want):
            fed.append(len(data))
            return self.decoder.decompress(data, want)

        def __getattr__(self, name):
            return getattr(self.decoder, name)

    monkeypatch.setattr(verified, "zlib_engine", type("Engine", (), {"decompressobj": Counting}))
    assert read_all(path) == DATA
    assert sum(fed) < 20_000 * (1 << 16)


def test_skipped_bytes_are_verified(tmp_path, engine):
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(DATA))
    with VerifiedStream(path, compressed=True) as source:
        source.skip(SIZE - 5)
        assert source.read(5) == DATA[-5:]
        source.expect_end()
    with VerifiedStream(path, compressed=True) as source, pytest.raises(InputError, match="ends 1 bytes before"):
        source.skip(SIZE + 1)


def test_placeholders_of_data_managers_are_named(tmp_path):
    (tmp_path / "lfs.nii.gz").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    (tmp_path / "annex.nii.gz").symlink_to(tmp_path / ".git/annex/objects/none")
    (tmp_path / "pointer.nii.gz").write_bytes(b"/annex/objects/MD5E-s123--00ff.nii.gz\n")
    (tmp_path / "text.nii.gz").write_bytes(b"../../.git/annex/objects/aa/bb/MD5E-s1--0f.nii.gz/MD5E-s1--0f.nii.gz")
    for name, says in (
        ("lfs", "git lfs pull"),
        ("annex", "datalad get"),
        ("pointer", "annex get"),
        ("text", "annex get"),
    ):
        for compressed in (False, True):
            with pytest.raises(InputError, match=says):
                VerifiedStream(tmp_path / f"{name}.nii.gz", compressed=compressed)


@pytest.mark.parametrize("content", [DATA, b""])
def test_a_stream_that_was_compressed_twice(tmp_path, content):
    (tmp_path / "x.mgz").write_bytes(gzip.compress(gzip.compress(content)))
    with pytest.raises(InputError, match=r"compressed twice.*gunzip"):
        VerifiedStream(tmp_path / "x.mgz", compressed=True)


def test_equal_parts_give_equal_bytes_without_time_or_name(tmp_path):
    first, second = (b"".join(gzip_bytes([DATA[:100], DATA[100:]])) for _ in range(2))
    assert first == second
    assert gzip.decompress(first) == DATA
    assert first[3] == 0  # no name, comment or extra field
    assert first[4:8] == bytes(4)  # no time
