import gzip
import math
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest

from neurotome.data.imaging import voxel_layout
from neurotome.data.imaging.geometry import Geometry
from neurotome.data.imaging.headers import read_header
from neurotome.data.imaging.reader import read_volume
from neurotome.data.imaging.volume import Volume
from neurotome.errors import InputError, OutputError, UsageError
from neurotome.files.verified import VerifiedStream
from tests.data.scans import affine_of, brain_array, header_bytes, rotation_of, write_gzip, write_nifti

OBLIQUE = affine_of((1.1, 2.2, 3.3), rotation_of((20, -10, 5)), (-30.0, 12.5, 7.25))
NAMES = ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"]
SMALL = np.random.default_rng(0).integers(0, 100, (5, 6, 7)).astype("i2")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("name", NAMES)
def test_reads_what_nibabel_wrote(tmp_path, name, order, kind, suffix):
    array = SMALL.astype(order + name)
    header = kind.header_class(endianness=order)
    header.set_data_dtype(array.dtype)
    nibabel.save(kind(array, OBLIQUE, header), tmp_path / f"x{suffix}")
    volume = read_volume(tmp_path / f"x{suffix}")
    np.testing.assert_array_equal(volume.array, SMALL)
    assert volume.array.dtype == np.dtype(name)
    np.testing.assert_allclose(volume.geometry.affine, OBLIQUE, atol=1e-5)
    np.testing.assert_allclose(volume.geometry.spacing_mm, (1.1, 2.2, 3.3), rtol=1e-6)
    assert volume.provenance.dtype == np.dtype(name).name


@pytest.mark.parametrize(
    ("slope", "inter", "expected"),
    [
        (0.5, -3.0, SMALL * 0.5 - 3.0),
        (-2.0, 0.0, SMALL * -2.0),
        (1e-40, 0.0, SMALL * 1e-40),
        (0.0, 9.0, SMALL),
        (math.nan, 0.0, SMALL),
    ],
)
def test_scaling(tmp_path, slope, inter, expected):
    path = tmp_path / "x.nii"
    path.write_bytes(header_bytes(SMALL, scl_slope=slope, scl_inter=inter))
    volume = read_volume(path)
    np.testing.assert_allclose(volume.array, expected, rtol=1e-5)
    used = not (slope == 0 or math.isnan(slope))
    assert any(("scaled by" if used else "unscaled") in note for note in volume.provenance.notes)


HOSTILE = [
    ({"dim": (3, 5, 0, 7, 1, 1, 1, 1)}, r"dim\[2\] is 0"),
    ({"dim": (3, 5, -6, 7, 1, 1, 1, 1)}, r"dim\[2\] is -6"),
    ({"dim": (3, 32767, 32767, 32767, 1, 1, 1, 1)}, "at most"),
    ({"dim": (3, 700, 700, 700, 1, 1, 1, 1)}, "can hold"),
    ({"dim": (0, 5, 6, 7, 1, 1, 1, 1)}, r"dim\[0\] is 0"),
    ({"dim": (9, 5, 6, 7, 1, 1, 1, 1)}, r"dim\[0\] is 9"),
    ({"dim": (2, 5, 42, 1, 1, 1, 1, 1)}, "2-D image.*single slice"),
    ({"dim": (3, 5, 6, 6, 1, 1, 1, 1)}, "more data"),
    ({"dim": (4, 5, 6, 1, 7, 1, 1, 1)}, "series of 7 volumes.*--volume K"),
    ({"datatype": 128, "bitpix": 24}, "RGB24"),
    ({"datatype": 32, "bitpix": 64}, "complex64"),
    ({"datatype": 1536, "bitpix": 128}, "float128"),
    ({"datatype": 999}, "unknown datatype 999"),
    ({"bitpix": 32}, "bitpix is 32"),
    ({"vox_offset": -1.0}, "vox_offset"),
    ({"vox_offset": math.nan}, "vox_offset"),
    ({"vox_offset": 352.5}, "vox_offset"),
    ({"vox_offset": 5e8}, "extensions"),
    ({"vox_offset": 368.0}, "ends 16 bytes before"),
    ({"scl_slope": math.inf}, "scl_slope is infinite"),
    ({"scl_slope": 2.0, "scl_inter": math.nan}, "scl_inter is nan"),
    ({"qform_code": 0, "sform_code": 0}, "orientation is unknown"),
    ({"srow_x": (0, 0, 0, 0)}, "sform is unusable"),
    ({"srow_x": (math.nan, 0, 0, 0)}, "sform is unusable: the affine holds NaN"),
    ({"srow_x": (3.0, 3.0, 0, 0), "srow_y": (0, 0, 0, 0)}, "sform is unusable: the affine is singular"),
    ({"srow_x": (3.0, 0, 0, 5.0)}, "differ by 1.67 voxels.*--use-qform"),
    ({"sform_code": 0, "pixdim": (1, math.nan, 3, 3, 0, 0, 0, 0)}, "pixdim"),
    ({"sform_code": 0, "pixdim": (1, 0, 3, 3, 0, 0, 0, 0)}, "pixdim"),
    ({"pixdim": (1, 3, 3, math.nan, 0, 0, 0, 0)}, r"pixdim\[1:4\]"),
    ({"sform_code": 0, "pixdim": (7, 3, 3, 3, 0, 0, 0, 0)}, r"pixdim\[0\] is 7"),
    ({"qform_code": 0, "srow_x": (3.0, 0, 0, 1e30)}, "from the origin"),
    ({"srow_x": (3.0 * 1.3, 0, 0, 0)}, "same code 1 but differ by 1.04 voxels at a corner of the field of view"),
    ({"sform_code": 0, "quatern_b": 0.9, "quatern_c": 0.9}, "longer than 1"),
    ({"sform_code": 0, "quatern_b": math.inf}, "NaN or infinity"),
    ({"sform_code": -1}, "negative qform or sform code"),
    ({"xyzt_units": 5}, "xyzt_units"),
    ({"magic": b"ni1\0"}, "hdr/.img pair"),
    ({"magic": b"\0\0\0\0"}, "hdr/.img pair"),
    ({"magic": b"n+9\0"}, "magic"),
    ({"sizeof_hdr": 347}, "not a NIfTI file"),
]


@pytest.mark.parametrize(("fields", "says"), HOSTILE, ids=[" ".join(f) for f, _ in HOSTILE])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_refuses_hostile_headers(tmp_path, fields, says, suffix):
    path = tmp_path / f"x{suffix}"
    data = header_bytes(SMALL, **fields)
    write_gzip(path, data) if suffix.endswith("gz") else path.write_bytes(data)
    with pytest.raises(InputError, match=says) as error:
        read_volume(path)
    assert str(error.value).startswith(str(path))
    assert "Remedy" in str(error.value)


def test_two_transforms(tmp_path):
    path = tmp_path / "x.nii"
    moved = (3.0, 0.0, 0.0, 5.0)
    path.write_bytes(header_bytes(SMALL, srow_x=moved, sform_code=4))
    volume = read_volume(path)
    assert volume.geometry.affine[0, 3] == 5.0
    assert any("differ by 1.67 voxels" in note for note in volume.provenance.notes)
    by_qform = read_volume(path, use_qform=True)
    assert by_qform.geometry.affine[0, 3] == 0.0
    # a result must lie where it was computed, also for programs that prefer the sform
    by_qform.save(tmp_path / "y.nii")
    assert nibabel.load(tmp_path / "y.nii").affine[0, 3] == 0.0
    assert read_volume(tmp_path / "y.nii").geometry.affine[0, 3] == 0.0
    assert any("not carried on" in note for note in by_qform.provenance.notes)
    path.write_bytes(header_bytes(SMALL))
    both = read_volume(path, use_qform=True)
    assert both.geometry.header == read_volume(path).geometry.header
    path.write_bytes(header_bytes(SMALL, srow_x=(3.0, 0.0, 0.0, 1.0)))  # a third of a voxel
    assert read_volume(path).geometry.affine[0, 3] == 1.0
    # a file of one transform is read by that one, whatever is asked of files with two
    path.write_bytes(header_bytes(SMALL, qform_code=0, srow_x=moved))
    assert read_volume(path, use_qform=True).geometry == read_volume(path).geometry
    assert read_header(path, use_qform=True).geometry.affine[0, 3] == 5.0
    path.write_bytes(header_bytes(SMALL, sform_code=0, srow_x=moved))
    assert read_volume(path, use_qform=True).geometry == read_volume(path).geometry
    path.write_bytes(header_bytes(SMALL, qform_code=0, sform_code=0))
    with pytest.raises(InputError, match="orientation is unknown"):
        read_volume(path, use_qform=True)


def test_quaternion_agrees_with_nibabel(tmp_path):
    rng = np.random.default_rng(1)
    for index in range(20):
        affine = affine_of(rng.uniform(0.5, 4, 3), rotation_of(rng.uniform(-180, 180, 3)), rng.normal(size=3) * 50)
        affine[:3, index % 3] *= (-1) ** index
        image = nibabel.Nifti1Image(SMALL, affine)
        image.header.set_sform(None, code=0)
        image.header.set_qform(affine, code=2)
        nibabel.save(image, tmp_path / "x.nii")
        np.testing.assert_allclose(read_volume(tmp_path / "x.nii").geometry.affine, affine, atol=2e-4)


def test_units_become_millimetres(tmp_path):
    path = tmp_path / "x.nii"
    fields = {f"srow_{a}": row for a, row in zip("xyz", affine_of((0.003,) * 3)[:3], strict=True)}
    path.write_bytes(header_bytes(SMALL, xyzt_units=1, qform_code=0, **fields))
    np.testing.assert_allclose(read_volume(path).geometry.spacing_mm, (3, 3, 3), rtol=1e-6)


def test_one_volume_of_a_series(tmp_path):
    series = np.stack([SMALL, SMALL + 1], axis=-1)
    path = write_nifti(tmp_path / "x.nii.gz", series)
    with pytest.raises(InputError, match="series of 2 volumes"):
        read_volume(path)
    volume = read_volume(path, volume=1)
    np.testing.assert_array_equal(volume.array, SMALL + 1)
    volume.save(tmp_path / "y.nii.gz")
    np.testing.assert_array_equal(read_volume(tmp_path / "y.nii.gz").array, SMALL + 1)
    with pytest.raises(InputError, match="no volume 2"):
        read_volume(path, volume=2)
    single = read_volume(write_nifti(tmp_path / "one.nii", series[..., :1]))
    assert single.array.shape == SMALL.shape
    assert "4-D file with one volume" in single.provenance.notes[0]
    # a choice among volumes does not concern a file of one
    assert read_volume(tmp_path / "one.nii", volume=1).provenance.notes == single.provenance.notes


def test_nonfinite_voxels_follow_the_policy(tmp_path):
    array = SMALL.astype("f4")
    array[0, 0, 0], array[1, 1, 1] = np.nan, -np.inf
    path = write_nifti(tmp_path / "x.nii", array)
    with pytest.raises(InputError, match="2 of 210 voxels are NaN or infinite"):
        read_volume(path)
    assert np.isnan(read_volume(path, nonfinite="keep").array[0, 0, 0])
    zeroed = read_volume(path, nonfinite="zero")
    assert zeroed.array[0, 0, 0] == 0
    zeroed.save(tmp_path / "y.nii")
    assert read_volume(tmp_path / "y.nii").array[1, 1, 1] == 0


def test_extensions_are_bounded_and_dropped(tmp_path):
    image = nibabel.Nifti1Image(SMALL, affine_of())
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension(6, b"Jane Doe 1970"))
    nibabel.save(image, tmp_path / "x.nii")
    volume = read_volume(tmp_path / "x.nii")
    assert any("extensions" in note for note in volume.provenance.notes)
    volume.save(tmp_path / "y.nii")
    assert b"Jane" not in (tmp_path / "y.nii").read_bytes()
    lying = bytearray((tmp_path / "x.nii").read_bytes())
    lying[352:356] = (1 << 30).to_bytes(4, "little")
    (tmp_path / "z.nii").write_bytes(lying)
    with pytest.raises(InputError, match="extension claims"):
        read_volume(tmp_path / "z.nii")


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("sizes", [(2048,), (65536,), (131328,), (1 << 20,), (16, 131328, 65552)])
def test_extensions_have_the_byte_order_of_their_header(tmp_path, order, sizes):
    """131328 is 0x20100: read in the other order it is 66048, and 65536 is 256."""
    image = nibabel.Nifti1Image(SMALL, affine_of(), nibabel.Nifti1Header(endianness=order))
    image.set_data_dtype("i2")
    image.header.set_sform(image.affine, code=1)
    image.header.extensions += [nibabel.nifti1.Nifti1Extension(44, b"{" + b" " * (n - 10) + b"}") for n in sizes]
    nibabel.save(image, tmp_path / "x.nii")
    volume = read_volume(tmp_path / "x.nii")
    np.testing.assert_array_equal(volume.array, np.asarray(nibabel.load(tmp_path / "x.nii").dataobj))
    assert any(f"{sum(sizes)} bytes of header extensions" in note for note in volume.provenance.notes)
    swapped = bytearray((tmp_path / "x.nii").read_bytes())
    swapped[352:356] = swapped[352:356][::-1]
    (tmp_path / "y.nii").write_bytes(swapped)
    if sizes != (131328,):  # whose bytes name a smaller block: what follows is then no extension
        with pytest.raises(InputError, match="extension claims"):
            read_volume(tmp_path / "y.nii")


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("x.nrrd", "SimpleITK"),
        ("x.hdr", "pair of header and image"),
        ("x.img", "pair of header and image"),
        ("x.nii.bz2", "decompress it"),
        ("x.mnc", "mnc2nii"),
        ("x.dcm", "dcm2niix"),
        ("x.gz", "dcm2niix"),
        ("x", "dcm2niix"),
    ],
)
def test_other_kinds_are_refused_by_name(tmp_path, name, remedy):
    (tmp_path / name).write_bytes(b"data")
    with pytest.raises(InputError, match=rf"admissible are \.nii\.gz, \.nii, \.mgz, \.mgh.*{remedy}"):
        read_volume(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (gzip.compress(header_bytes(SMALL), mtime=0), "but a gzip stream.*end its name with .nii.gz"),
        (bytes(128) + b"DICM" + bytes(500), "but a DICOM file.*dcm2niix"),
        (b"NRRD0004" + bytes(500), "but an NRRD file"),
        (b"\x89HDF" + bytes(500), "but an HDF5 or MINC file"),
        (b"version https://git-lfs.github.com/spec/v1", "a placeholder of Git LFS"),
        (b"short", "5 bytes are fewer than a header has"),
        (b"", "0 bytes are fewer"),
        (bytes(1000), "neither 348 nor 540"),
    ],
)
def test_other_content_is_named(tmp_path, content, says):
    (tmp_path / "x.nii").write_bytes(content)
    with pytest.raises(InputError, match=says):
        read_volume(tmp_path / "x.nii")
    (tmp_path / "y.nii.gz").write_bytes(header_bytes(SMALL))
    with pytest.raises(InputError, match=r"take \.gz off its name"):
        read_volume(tmp_path / "y.nii.gz")


@pytest.mark.parametrize("dtype", ["i2", "f4"])
def test_every_flipped_bit_is_noticed_or_harmless(tmp_path, dtype):
    rng = np.random.default_rng(7)
    array = (rng.random((12, 13, 11)) * 1000).astype(dtype)
    path = write_nifti(tmp_path / "x.nii.gz", array)
    good = path.read_bytes()
    refused = 0
    for _ in range(200):
        bad = bytearray(good)
        bad[rng.integers(len(bad))] ^= 1 << rng.integers(8)
        path.write_bytes(bad)
        try:
            np.testing.assert_array_equal(read_volume(path).array, array)
        except InputError:
            refused += 1
    assert refused > 150


def test_the_flipped_bits_need_the_checksum(tmp_path, monkeypatch):
    """Without reading to the end of the stream flipped bits become wrong voxels: the test above can fail."""
    rng = np.random.default_rng(7)
    array = (rng.random((12, 13, 11)) * 1000).astype("i2")
    path = write_nifti(tmp_path / "x.nii.gz", array)
    good = path.read_bytes()
    monkeypatch.setattr(VerifiedStream, "expect_end", lambda self: None)
    wrong = 0
    for _ in range(100):
        bad = bytearray(good)
        bad[rng.integers(400, len(bad))] ^= 1 << rng.integers(8)
        path.write_bytes(bad)
        try:
            wrong += not np.array_equal(read_volume(path).array, array)
        except InputError:
            continue
    assert wrong > 3


def test_a_header_cannot_promise_what_a_bomb_delivers(tmp_path, monkeypatch):
    bomb = write_gzip(tmp_path / "bomb.nii.gz", header_bytes(SMALL) + bytes(20 << 20))
    with pytest.raises(InputError, match="more data"):
        read_volume(bomb)
    huge = bytearray(header_bytes(SMALL, dim=(3, 700, 700, 700, 1, 1, 1, 1)))
    write_gzip(tmp_path / "huge.nii.gz", bytes(huge))
    monkeypatch.setattr(voxel_layout.np, "empty", lambda *a, **k: pytest.fail("allocated before the bound was checked"))
    with pytest.raises(InputError, match="can hold"):
        read_volume(tmp_path / "huge.nii.gz")


def fields_of(path):
    header = nibabel.load(path).header
    names = [
        "dim",
        "pixdim",
        "qform_code",
        "sform_code",
        "quatern_b",
        "quatern_c",
        "quatern_d",
        "qoffset_x",
        "qoffset_y",
    ]
    names += ["qoffset_z", "srow_x", "srow_y", "srow_z", "xyzt_units"]
    return {name: np.asarray(header[name]).tobytes() for name in names}


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("order", "<>")
def test_unmodified_volumes_are_written_back_as_they_were(tmp_path, kind, order):
    header = kind.header_class(endianness=order)
    header.set_data_dtype("i2")
    header["descrip"], header["aux_file"], header["intent_name"] = b"Jane Doe 1970-01-01", b"jane.txt", b"jane"
    header["scl_slope"], header["scl_inter"] = 0.25, 3.0
    image = kind(SMALL[..., None], OBLIQUE, header)
    image.header.set_xyzt_units("mm", "sec")
    image.header.set_qform(OBLIQUE, code=3)
    image.header["pixdim"][4] = 2.5
    image.header.set_slope_inter(0.25, 3.0)
    source, copy = tmp_path / "x.nii.gz", tmp_path / "y.nii.gz"
    nibabel.save(image, source)
    before = source.read_bytes()
    volume = read_volume(source)
    volume.save(copy)
    assert fields_of(copy) == fields_of(source)
    again = nibabel.load(copy)
    np.testing.assert_array_equal(again.dataobj.get_unscaled(), nibabel.load(source).dataobj.get_unscaled())
    assert again.get_data_dtype() == np.dtype(order + "i2")
    assert (again.dataobj.slope, again.dataobj.inter) == (0.25, 3.0)
    assert b"ane" not in gzip.decompress(copy.read_bytes())[:352]
    assert source.read_bytes() == before
    volume.save(tmp_path / "z.nii.gz")
    assert (tmp_path / "z.nii.gz").read_bytes() == copy.read_bytes()


def test_computed_volumes_are_float32_on_the_same_grid(tmp_path):
    source = write_nifti(tmp_path / "x.nii", SMALL, OBLIQUE, code=2)
    volume = read_volume(source)
    computed = volume.with_array(volume.array * 0.5)
    computed.save(tmp_path / "y.nii.gz", synthetic=True)
    again = nibabel.load(tmp_path / "y.nii.gz")
    assert again.get_data_dtype() == np.float32
    assert (again.dataobj.slope, again.dataobj.inter) == (1.0, 0.0)
    assert bytes(again.header["descrip"]).rstrip(b"\0") == b"synthetic: neurotome"
    assert fields_of(tmp_path / "y.nii.gz") == fields_of(source)
    np.testing.assert_array_equal(np.asarray(again.dataobj), SMALL * 0.5)


def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path):
    source = write_nifti(tmp_path / "x.nii", SMALL)
    volume = read_volume(source)
    with pytest.raises(UsageError, match="the file the image was read from"):
        volume.save(source)
    with pytest.raises(UsageError, match=r"\.nii"):
        volume.save(tmp_path / "x.png")
    with pytest.raises(OutputError, match="NaN"):
        volume.with_array(np.full(SMALL.shape, np.nan)).save(tmp_path / "y.nii")
    with pytest.raises(OutputError, match="none"):
        volume.save(tmp_path / "none" / "y.nii")
    assert [p.name for p in tmp_path.iterdir()] == ["x.nii"]


def test_read_voxels_cannot_be_changed_behind_the_stored_ones(tmp_path):
    volume = read_volume(write_nifti(tmp_path / "x.nii", SMALL))
    (tmp_path / "y.nii").write_bytes(header_bytes(SMALL, scl_slope=0.5, scl_inter=1.0))
    scaled = read_volume(tmp_path / "y.nii")
    for one in (volume, scaled):
        with pytest.raises(ValueError, match="read-only"):
            one.array[0, 0, 0] = 1
    with pytest.raises(ValueError, match=r"read-only|WRITEABLE"):
        volume.geometry.affine[0, 0] = 1


def test_geometry_without_a_header_is_written(tmp_path):
    for affine in (
        OBLIQUE,
        affine_of((2, 2, 2)) @ np.array([[1, 0.2, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]),
    ):
        Volume(brain_array((5, 6, 7)), Geometry((5, 6, 7), affine)).save(tmp_path / "x.nii")
        np.testing.assert_allclose(read_volume(tmp_path / "x.nii").geometry.affine, affine, atol=1e-4)


@pytest.mark.parametrize(("intent", "says"), [(0, ""), (1, ""), (2, "surface"), (3, "a warp"), (9, "intent 9")])
def test_freesurfer_writes_what_an_mgz_holds_into_its_version(tmp_path, intent, says):
    nibabel.save(nibabel.MGHImage(SMALL.astype("u1"), OBLIQUE), tmp_path / "x.mgz")
    data = gzip.decompress((tmp_path / "x.mgz").read_bytes())
    path = write_gzip(tmp_path / "y.mgz", (intent << 8 | 1).to_bytes(4, "big") + data[4:])
    if says:
        with pytest.raises(InputError, match=f"holds .*{says}.*, no image"):
            read_volume(path)
    else:
        np.testing.assert_array_equal(read_volume(path).array, SMALL)
    for version in (0, 2, 1 << 24 | 1):
        path = write_gzip(tmp_path / "z.mgz", version.to_bytes(4, "big") + data[4:])
        with pytest.raises(InputError, match=f"its version is {version}"):
            read_volume(path)


def test_mgz_agrees_with_nibabel(tmp_path):
    for dtype in ("u1", "i2", "i4", "f4"):
        image = nibabel.MGHImage(SMALL.astype(dtype), OBLIQUE)
        nibabel.save(image, tmp_path / "x.mgz")
        volume = read_volume(tmp_path / "x.mgz")
        np.testing.assert_array_equal(volume.array, SMALL)
        np.testing.assert_allclose(volume.geometry.affine, OBLIQUE, atol=1e-4)
        volume.save(tmp_path / "x.nii.gz")
        saved = nibabel.load(tmp_path / "x.nii.gz")
        np.testing.assert_allclose(saved.affine, OBLIQUE, atol=1e-4)
        np.testing.assert_array_equal(np.asarray(saved.dataobj), SMALL)
        assert saved.get_data_dtype().newbyteorder("=") == np.dtype(dtype)
    data = bytearray(gzip.decompress((tmp_path / "x.mgz").read_bytes()))
    write_gzip(tmp_path / "long.mgz", bytes(data) + bytes(2 << 20))
    with pytest.raises(InputError, match="bytes follow the image"):
        read_volume(tmp_path / "long.mgz")


@pytest.mark.parametrize("name", ["a b 'c' \";rm -rf.nii", "-x.nii", "line\nbreak.nii", "über.nii"])
def test_strange_names_are_taken_literally(tmp_path, name):
    write_nifti(tmp_path / "plain.nii", SMALL)
    (tmp_path / "plain.nii").rename(tmp_path / name)
    np.testing.assert_array_equal(read_volume(tmp_path / name).array, SMALL)


REAL = os.environ.get("NEUROTOME_TEST_DATA")
REFUSED = {
    "derived/nan_block.nii.gz": "37520 of 213864 voxels",
    "derived/inf_voxels.nii.gz": "2 of 213864 voxels",
    "derived/no_qform_sform.nii.gz": "orientation is unknown",
    "derived/not_nifti.nii.gz": "not a gzip stream",
    "derived/truncated.nii.gz": "cut off",
    "nibabel_example4d.nii.gz": "series of 2 volumes",
    "nibabel_test.mgz": "series of 2 volumes",
    "niivue_complex.nii.gz": "complex64",
    "niivue_minimal.nii.gz": "orientation is unknown",
    "niivue_shear.nii.gz": "same code 2 but differ by 44",
}


@pytest.mark.skipif(not REAL, reason="NEUROTOME_TEST_DATA is not set")
def test_hostile_files_are_read_like_nibabel_or_refused_with_a_reason():
    folder = Path(REAL) / "hostile"
    files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    assert len(files) > 30
    for path in files:
        name = path.relative_to(folder).as_posix()
        if name in REFUSED:
            with pytest.raises(InputError, match=REFUSED[name]):
                read_volume(path)
            continue
        volume, other = read_volume(path), nibabel.load(path)
        expected = np.asarray(other.dataobj).reshape(volume.array.shape)
        step = slice(None, None, 1 if expected.size < 1e6 else 3)
        np.testing.assert_allclose(volume.array[step, step, step], expected[step, step, step], rtol=1e-6)
        np.testing.assert_allclose(volume.geometry.affine, other.affine, atol=1e-4)


@pytest.mark.parametrize("name", [*NAMES])
@pytest.mark.parametrize(("slope", "inter"), [(-0.37, 12.5), (1e-41, 0.0), (3e30, 0.0), (0.001, 4096.0), (0.001, 1e9)])
def test_scaled_values_are_those_of_double_precision(tmp_path, name, slope, inter):
    """Every type, with negative, denormal, huge and offset scalings; neighbouring raw numbers stay apart."""
    if np.dtype(name).kind == "f":
        raw = np.linspace(-100, 100, SMALL.size)
    else:
        limits = np.iinfo(name)
        raw = np.linspace(limits.min, limits.max, SMALL.size)
        raw[:2] = 7, 8
    raw = raw.reshape(SMALL.shape).clip(-(2.0**62), 2.0**62).astype(name)
    path = tmp_path / "x.nii"
    path.write_bytes(header_bytes(raw, scl_slope=slope, scl_inter=inter))
    expected = raw.astype(np.float64) * float(np.float32(slope)) + float(np.float32(inter))
    got = read_volume(path).array
    np.testing.assert_allclose(got, expected, rtol=3e-7, atol=abs(slope) * 0.1)
    if np.dtype(name).kind != "f":
        step = float(got[0, 0, 0]) - float(got[0, 0, 1])
        first, second = float(expected[0, 0, 0]), float(expected[0, 0, 1])
        assert step == pytest.approx(first - second, rel=0.1)


def test_scaling_beyond_all_numbers_is_an_error(tmp_path):
    image = nibabel.Nifti2Image(SMALL.astype("f8") * 1e10 + 1, affine_of())
    block = bytearray(image.to_bytes())
    np.frombuffer(block, dtype=image.header.template_dtype, count=1)["scl_slope"] = 1e305
    (tmp_path / "x.nii").write_bytes(block)
    for policy in ("refuse", "zero", "keep"):
        with pytest.raises(InputError, match="scale voxels to infinity"):
            read_volume(tmp_path / "x.nii", nonfinite=policy)


def test_an_unusable_qform_is_not_carried_on(tmp_path):
    path = tmp_path / "x.nii"
    path.write_bytes(header_bytes(SMALL, sform_code=4, quatern_b=math.nan, qoffset_x=math.inf))
    volume = read_volume(path)
    assert any("the qform is not carried on" in note for note in volume.provenance.notes)
    volume.save(tmp_path / "y.nii")
    header = nibabel.load(tmp_path / "y.nii").header
    assert (int(header["qform_code"]), int(header["sform_code"])) == (0, 4)
    assert np.isfinite([float(header[k]) for k in ("quatern_b", "qoffset_x")]).all()


def test_of_a_series_only_one_volume_is_held(tmp_path, monkeypatch):
    series = np.stack([SMALL + n for n in range(6)], axis=-1)
    path = write_nifti(tmp_path / "x.nii.gz", series)
    sizes = []
    empty = np.empty
    monkeypatch.setattr(voxel_layout.np, "empty", lambda n, **k: sizes.append(n) or empty(n, **k))
    for index in (0, 3, 5):
        np.testing.assert_array_equal(read_volume(path, volume=index).array, SMALL + index)
    assert sizes == [SMALL.nbytes] * 3
    damaged = bytearray(path.read_bytes())
    damaged[-5] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(InputError, match="damaged"):
        read_volume(path, volume=0)


def test_mgh_of_unsigned_shorts(tmp_path):
    """FreeSurfer's type 10, which nibabel does not write; .mgh is .mgz without gzip."""
    image = nibabel.MGHImage(SMALL, OBLIQUE)
    nibabel.save(image, tmp_path / "x.mgh")
    block = bytearray((tmp_path / "x.mgh").read_bytes())
    block[20:24] = (10).to_bytes(4, "big")
    block[284 : 284 + SMALL.nbytes] = (SMALL.astype(int) + 40_000).astype(">u2").tobytes(order="F")
    (tmp_path / "x.mgh").write_bytes(block)
    volume = read_volume(tmp_path / "x.mgh")
    np.testing.assert_array_equal(volume.array, SMALL.astype(int) + 40_000)
    np.testing.assert_allclose(volume.geometry.affine, OBLIQUE, atol=1e-4)


def test_more_voxels_on_an_axis_than_nifti_1_can_count(tmp_path):
    array = np.zeros((40_000, 2, 1), dtype=np.float32)
    array[39_999, 1] = 5
    Volume(array, Geometry(array.shape, affine_of((0.1, 1, 1)))).save(tmp_path / "x.nii")
    assert isinstance(nibabel.load(tmp_path / "x.nii"), nibabel.Nifti2Image)
    np.testing.assert_array_equal(read_volume(tmp_path / "x.nii").array, array)
