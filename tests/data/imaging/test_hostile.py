"""Files that mean harm or were harmed: an error with a remedy, never a hang, a traceback or a flood."""

import gzip
import os
import resource
import socket
import tracemalloc
import unicodedata
import zlib
from functools import cache

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neurotome.data.imaging.reader import read_volume
from neurotome.errors import InputError
from neurotome.files.verified import VerifiedStream
from tests.data.scans import affine_of, header_bytes, rotation_of, write_gzip, write_nifti

SMALL = np.random.default_rng(0).integers(0, 100, (5, 6, 7)).astype("i2")
MB = 1 << 20


def as_file(kind, changes=()):
    """The bytes of a small image of one of the kinds that are read, some of them replaced."""
    data = bytearray(intact(kind))
    for place, value in changes:
        data[place % len(data)] = value
    return bytes(data)


@cache
def intact(kind):
    affine = affine_of((1.1, 2.2, 3.3), rotation_of((20, -10, 5)), (-30.0, 12.5, 7.25))
    if kind == "nifti1":
        return header_bytes(SMALL, affine)
    if kind == "nifti2":
        image = nibabel.Nifti2Image(SMALL, affine)
        image.set_sform(affine, 1)
        image.set_qform(affine, 1)
        return image.to_bytes()
    return nibabel.MGHImage(SMALL, affine).to_bytes()


@pytest.fixture
def decoded(monkeypatch):
    """The number of bytes that every decoding gave."""
    sizes = []
    decode = VerifiedStream._decode
    monkeypatch.setattr(VerifiedStream, "_decode", lambda s, want: sizes.append(len(d := decode(s, want))) or d)
    return sizes


def bomb(path, header, megabytes):
    """A header and zeros behind it, compressed a thousandfold: members of 16 MB, so that making it takes no time."""
    zeros = gzip.compress(bytes(16 * MB), mtime=0)
    path.write_bytes(gzip.compress(header, mtime=0) + zeros * (megabytes // 16))
    return path


@pytest.mark.parametrize(
    ("name", "header", "says"),
    [
        ("lying", header_bytes(SMALL)[:352], "more data than the header promises"),
        ("honest", header_bytes(SMALL, dim=(3, 800, 800, 800, 1, 1, 1, 1))[:352], "like a decompression bomb"),
        ("series", header_bytes(SMALL, dim=(4, 256, 256, 256, 9, 1, 1, 1))[:352], "like a decompression bomb"),
        ("extension", header_bytes(SMALL, vox_offset=2.0**29)[:348] + b"\1\0\0\0", "at most 16777216 are read"),
    ],
)
def test_bombs_are_stopped_before_64_mb(tmp_path, decoded, name, header, says):
    path = bomb(tmp_path / f"{name}.nii.gz", header, 1024)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=says):
            read_volume(path, volume=0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sum(decoded) < 1 * MB
    assert peak < 64 * MB


def test_bombs_behind_freesurfer_images_are_stopped(tmp_path, decoded):
    path = bomb(tmp_path / "x.mgz", as_file("mgh"), 256)
    with pytest.raises(InputError, match="bytes follow the image"):
        read_volume(path)
    assert sum(decoded) < 2 * MB


def test_an_empty_mask_is_no_bomb(tmp_path):
    """Zeros compress a thousandfold; 8 bytes a voxel, as some programs write masks, on a common grid."""
    empty = np.zeros((182, 218, 182), dtype="f8")
    path = write_nifti(tmp_path / "x.nii.gz", empty)
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())))
    assert empty.nbytes > 800 * path.stat().st_size
    assert not read_volume(path).array.any()


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".mgz"])
def test_every_cut_is_noticed(tmp_path, suffix):
    data = as_file("mgh" if suffix == ".mgz" else "nifti1")
    if suffix == ".mgz":
        data = data[: 284 + SMALL.nbytes]  # the footer may be missing
    whole = data if suffix == ".nii" else gzip.compress(data, mtime=0)
    path = tmp_path / f"x{suffix}"
    path.write_bytes(whole)
    read_volume(path)
    for length in range(0, len(whole), 1 if len(whole) < 400 else 7):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError) as error:
            read_volume(path)
        assert str(path) in str(error.value)
        assert "Remedy" in str(error.value)


def test_what_is_no_file_is_refused_at_once(tmp_path):
    def make_socket(path):
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(str(path))

    makers = {
        "pipe": os.mkfifo,
        "socket": make_socket,
        "folder": lambda p: p.mkdir(),
        "zero": lambda p: p.symlink_to("/dev/zero"),
        "random": lambda p: p.symlink_to("/dev/urandom"),
        "terminal": lambda p: p.symlink_to("/dev/tty"),
        "loop": lambda p: p.symlink_to(p),
        "nothing": lambda p: p.symlink_to("nowhere"),
        "empty": lambda p: p.touch(),
    }
    for name, make in makers.items():
        for suffix in (".nii", ".nii.gz", ".mgz"):
            path = tmp_path / f"{name}{suffix}"
            make(path)
            with pytest.raises(InputError) as error:
                read_volume(path)
            assert str(path) in str(error.value)
            assert "Remedy" in str(error.value)


def twin_names():
    composed = unicodedata.normalize("NFC", "Gehörübung")
    return composed, unicodedata.normalize("NFD", composed)


NAMES = [
    "a b 'c' \"d\"",
    ";rm -rf $(touch canary) `touch canary`",
    "-rf",
    "line\nbreak",
    "tab\tand\x1b[31mcolour",
    *twin_names(),
    "x" * 248,
    "\udcff broken bytes",
]


def test_names_are_taken_literally_in_and_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain = write_nifti(tmp_path / "plain.nii", SMALL)
    kept = []
    for number, name in enumerate(NAMES):
        source = tmp_path / f"{name}.nii"
        source.write_bytes(plain.read_bytes())
        volume = read_volume(source)
        np.testing.assert_array_equal(volume.array, SMALL)
        changed = volume.with_array(volume.array + np.int16(number))
        changed.save(tmp_path / f"{name}.nii.gz")
        kept.append(tmp_path / f"{name}.nii.gz")
    for number, path in enumerate(kept):  # no twin has replaced another
        np.testing.assert_array_equal(read_volume(path).array, SMALL + number)
    assert len(list(tmp_path.iterdir())) == 1 + 2 * len(NAMES)
    broken = tmp_path / "\x1b[31m.nii"
    broken.write_bytes(b"x")
    with pytest.raises(InputError) as error:
        read_volume(broken)
    assert "\x1b" not in str(error.value)


PLANTED = (b"Jane^Doe", b"1970-01-02", b"/home/jane", b"Mercy Hospital")


def test_no_private_text_is_carried_on(tmp_path):
    """Everywhere a NIfTI file has room for text, and in the gzip header."""
    name, birth, path, _ = PLANTED
    image = nibabel.Nifti1Image(SMALL, affine_of())
    image.set_sform(image.affine, 1)
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b" ".join(PLANTED)))
    image.header["descrip"], image.header["aux_file"] = b" ".join([name, birth]), path
    image.header["intent_name"], image.header["db_name"], image.header["data_type"] = name, birth, b"Jane^Doe"
    nibabel.save(image, tmp_path / "x.nii")
    raw = (tmp_path / "x.nii").read_bytes()
    with gzip.GzipFile(tmp_path / "x.nii.gz", "wb", mtime=1) as file:
        file.write(raw)
    with (tmp_path / "named.nii.gz").open("wb") as plain, gzip.GzipFile("Jane^Doe", "wb", 9, plain, mtime=2) as file:
        file.write(raw)
    assert b"Jane^Doe" in (tmp_path / "named.nii.gz").read_bytes()
    out = tmp_path / "out"
    out.mkdir()
    for source in ("x.nii", "x.nii.gz", "named.nii.gz"):
        volume = read_volume(tmp_path / source)
        volume.save(out / f"{source}.same.nii")
        volume.save(out / f"{source}.same.nii.gz")
        volume.with_array(volume.array * 2.0).save(out / f"{source}.new.nii", synthetic=True)
    for file in out.iterdir():
        content = file.read_bytes()
        content += gzip.decompress(content) if file.name.endswith(".gz") else b""
        assert not any(word in content for word in (*PLANTED, b"Jane", b"Mercy"))


def test_equal_images_are_equal_files(tmp_path):
    """Whatever the name, the time and the compression of the source were."""
    plain = write_nifti(tmp_path / "a.nii", SMALL)
    packed = write_gzip(tmp_path / "b.nii.gz", plain.read_bytes())
    for suffix in (".nii", ".nii.gz"):
        digests = set()
        for source in (plain, packed):
            for number in range(2):
                target = tmp_path / f"out-{source.name}-{number}{suffix}"
                assert read_volume(source).save(target)
                os.utime(target, (number, number))
                digests.add(target.read_bytes())
        assert len(digests) == 1


@pytest.fixture
def no_sync(monkeypatch):
    """Thousands of files need not survive a power loss."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


CHANGES = st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), min_size=1, max_size=5)


def headers(count):
    given_headers = given(st.sampled_from(["nifti1", "nifti2", "mgh"]), CHANGES, st.booleans(), st.booleans())
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return lambda test: settings(max_examples=count, deadline=None, suppress_health_check=checks)(given_headers(test))


@headers(150)
def test_any_header_is_an_error_or_an_image_to_write(tmp_path, no_sync, kind, changes, compressed, use_qform):
    read_or_refuse(tmp_path, kind, changes, compressed, use_qform)


@pytest.mark.slow
@headers(5000)
def test_five_thousand_headers(tmp_path, no_sync, kind, changes, compressed, use_qform):
    read_or_refuse(tmp_path, kind, changes, compressed, use_qform)


def read_or_refuse(tmp_path, kind, changes, compressed, use_qform):
    data = as_file(kind, changes)
    if compressed:
        data = zlib_gzip(data)
    suffix = {True: ".mgz" if kind == "mgh" else ".nii.gz", False: ".mgh" if kind == "mgh" else ".nii"}[compressed]
    path = tmp_path / f"x{suffix}"
    path.write_bytes(data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        volume = read_volume(path, use_qform=use_qform)
    except InputError as error:
        refusal = str(error)
    else:
        refusal = ""
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20 * 1024  # KB
    if refusal:
        assert str(path) in refusal
        assert "Remedy" in refusal
        return
    # behind an .mgh image may lie a footer of any length: a shrunken size is not noticed there
    assert kind == "mgh" or volume.array.size == SMALL.size
    assert np.isfinite(volume.geometry.affine).all()
    target = tmp_path / "y.nii"
    volume.save(target)
    again = read_volume(target)
    np.testing.assert_array_equal(again.array, volume.array)
    # a qform and an sform that differ by less are one
    gap = np.abs(again.geometry.corners_mm() - volume.geometry.corners_mm()).max()
    assert gap < 1e-4 + 0.002 * max(volume.geometry.spacing_mm)
    if kind != "mgh":
        assert again.geometry.header.dim == volume.geometry.header.dim
    again.save(tmp_path / "z.nii")
    assert (tmp_path / "z.nii").read_bytes() == target.read_bytes()


def zlib_gzip(data):
    encoder = zlib.compressobj(1, zlib.DEFLATED, 31)
    return encoder.compress(data) + encoder.flush()
