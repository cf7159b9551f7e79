"""A scan is a path, a volume or an image of nibabel; whatever else is given is named."""

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from neurotome.data.imaging.reader import read_volume
from neurotome.errors import InputError, UsageError
from neurotome.scans.given import as_volume
from tests.scans.test_scan_tokenizer import tokenizer
from tests.toy import brain

NAME = "sub-1_T1w.nii.gz"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    brain(1).save(tmp_path / NAME)
    return tmp_path / NAME


def test_the_three_ways_give_the_same_result(file: Path) -> None:
    model = tokenizer()
    ways = (str(file), file, read_volume(file), nib.load(file))
    for verb in (
        model.reconstruct,
        lambda scan: model.translate(scan, "T2w"),
        lambda scan: model.decode(model.encode(scan), "T2w"),
    ):
        results = [verb(way) for way in ways]
        assert all(np.array_equal(results[0].array, other.array) for other in results)
        assert all(np.allclose(results[0].geometry.affine, other.geometry.affine, atol=1e-5) for other in results)


def test_masks_and_references_are_given_alike(file: Path, tmp_path: Path) -> None:
    model = tokenizer()
    scan = read_volume(file)
    mask = scan.with_array((scan.array > 0).astype(np.uint8))
    mask.save(tmp_path / "mask.nii.gz")
    brain(2).save(tmp_path / "sub-2_T2w.nii.gz")
    reference = tmp_path / "sub-2_T2w.nii.gz"
    masks, references = ([path, read_volume(path), nib.load(path)] for path in (tmp_path / "mask.nii.gz", reference))
    results = [
        model.translate(file, "T2w", style_from=style, mask=brain_mask)
        for brain_mask, style in zip(masks, references, strict=True)
    ]
    assert all(np.array_equal(results[0].array, other.array) for other in results)
    with pytest.raises(UsageError, match="the reference is T1w by its name"):
        model.translate(file, "T2w", style_from=nib.load(file))


def test_an_image_in_memory_is_taken_as_it_is(file: Path) -> None:
    loaded = nib.load(file)
    for dtype in (np.int16, np.float64, np.uint8):
        image = nib.Nifti1Image(np.asarray(loaded.dataobj)[..., None].astype(dtype), loaded.affine)
        volume = as_volume(image)
        assert volume.array.shape == loaded.shape
        assert np.array_equal(volume.geometry.affine, loaded.affine)
        assert volume.provenance.path is None
        with pytest.raises(UsageError, match="names no contrast"):
            tokenizer().encode(image)
    flipped = nib.MGHImage(np.asarray(loaded.dataobj), np.diag([-1.0, 1, 1, 1]) @ loaded.affine)
    assert np.array_equal(as_volume(flipped).geometry.affine, flipped.affine)


def coded(file: Path, image: type = nib.Nifti1Image, *, sform: int, qform: int, units: int = 2) -> Path:
    """Save the scan again with other codes and another unit of length."""
    loaded = nib.load(file)
    again = image(np.asarray(loaded.dataobj), loaded.affine)
    again.header["sform_code"], again.header["qform_code"], again.header["xyzt_units"] = sform, qform, units
    if qform:
        again.header.set_qform(loaded.affine, qform)
    out = file.with_name("sub-2_T1w.nii")
    out.write_bytes(again.to_bytes())
    return out


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize(
    "codes",
    [{"sform": 0, "qform": 0}, {"sform": 0, "qform": 1}, {"sform": 1, "qform": 0}, {"sform": 1, "qform": 1},
     {"sform": 1, "qform": 0, "units": 1}, {"sform": 0, "qform": 1, "units": 3}, {"sform": 1, "qform": 0, "units": 5}],
)  # fmt: skip
def test_an_image_of_a_file_is_held_to_the_rules_for_the_file(file: Path, kind: type, codes: dict[str, int]) -> None:
    path = coded(file, kind, **codes)

    def outcome(given: object) -> tuple[object, ...]:
        try:
            volume = as_volume(given)
        except InputError as error:
            return error.reason, error.file
        return volume.geometry.affine.tolist(), volume.geometry.header, volume.array.tolist(), volume.provenance.path

    loaded = nib.load(path)
    before = bytes(loaded.header.binaryblock)
    assert outcome(loaded) == outcome(path)
    assert outcome(kind(loaded.dataobj, loaded.affine, loaded.header))[0] == outcome(path)[0]
    assert bytes(loaded.header.binaryblock) == before


def test_an_affine_that_is_given_is_known(file: Path) -> None:
    loaded = nib.load(coded(file, sform=0, qform=0))
    affine = np.diag([2.0, 2, 2, 1])
    for image in (
        nib.Nifti1Image(loaded.dataobj, affine, loaded.header),
        nib.Spm2AnalyzeImage(np.asarray(loaded.dataobj), affine),
        nib.MGHImage(np.asarray(loaded.dataobj), affine),
    ):
        assert np.array_equal(as_volume(image).geometry.affine, affine)
    moved = nib.load(file)
    moved.affine[:3, 3] += 1.0
    assert np.allclose(as_volume(moved).geometry.affine, moved.affine)


def test_images_that_do_not_say_where_they_lie_are_refused(file: Path, tmp_path: Path) -> None:
    array = np.asarray(nib.load(file).dataobj)
    nib.AnalyzeImage(array, np.eye(4)).to_filename(tmp_path / "a_T1w.hdr")
    data = bytearray(nib.MGHImage(array, np.eye(4)).to_bytes())
    data[28:30] = b"\0\0"  # the flag of a good orientation
    (tmp_path / "b_T1w.mgz").write_bytes(gzip.compress(data))
    for image, said in (
        (nib.Nifti1Image(array, None), "it has no affine"),
        (nib.MGHImage(array, None), "it has no affine"),
        (nib.load(tmp_path / "a_T1w.hdr"), "orientation is unknown"),
        (nib.load(tmp_path / "b_T1w.mgz"), "orientation is unknown"),
        (nib.Nifti1Image(array, np.diag([1e-5, 1, 1, 1])), "mm are no image"),
    ):
        with pytest.raises(InputError, match=said) as error:
            as_volume(image)
        assert error.value.remedy


@pytest.mark.parametrize("wrong", [None, 3, b"scan.nii", np.zeros((4, 4, 4)), ["a.nii", "b.nii"], {"T1w": "a.nii"}])
def test_other_things_are_named(wrong: object) -> None:
    model = tokenizer()
    for verb in (model.encode, model.reconstruct, lambda scan: model.translate(scan, "T2w")):
        with pytest.raises(TypeError, match=f"volume is a {type(wrong).__name__}; give a path, a neurotome"):
            verb(wrong)
    if wrong is not None:
        with pytest.raises(TypeError, match=f"mask is a {type(wrong).__name__}"):
            model.encode(brain(1), "T1w", mask=wrong)
        with pytest.raises(TypeError, match=f"style_from is a {type(wrong).__name__}"):
            model.translate(brain(1), "T2w", modality="T1w", style_from=wrong)
    with pytest.raises(TypeError, match=f"latent is a {type(wrong).__name__}"):
        model.decode(wrong)


def test_images_that_are_no_volume_are_named(file: Path, tmp_path: Path) -> None:
    affine = np.diag([3.0, 3, 3, 1])
    colours = np.zeros((4, 4, 4), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nan = np.full((4, 4, 4), np.nan, dtype=np.float32)
    for array, said in (
        (np.zeros((4, 4, 4, 2), np.float32), "4 x 4 x 4 x 2 voxels"),
        (colours, "its voxels are"),
        (nan, "NaN"),
    ):
        image = nib.Nifti1Image(array, affine)
        image.to_filename(tmp_path / "odd.nii")
        for one in (image, nib.load(tmp_path / "odd.nii")):
            with pytest.raises(InputError, match=said):
                tokenizer().encode(one, "T1w")
    with pytest.raises(InputError, match="cannot be opened") as error:
        tokenizer().encode(tmp_path / "nothing_T1w.nii.gz")
    assert error.value.file == tmp_path / "nothing_T1w.nii.gz"


def test_a_code_is_decoded_from_its_file(file: Path, tmp_path: Path) -> None:
    model = tokenizer()
    code = model.encode(file)
    code.save(tmp_path / "code.safetensors")
    for place in (tmp_path / "code.safetensors", str(tmp_path / "code.safetensors")):
        assert np.array_equal(model.decode(place, "T2w").array, model.decode(code, "T2w").array)


def test_scans_and_codes_are_printed_in_one_line(file: Path) -> None:
    scan = read_volume(file)
    assert repr(scan) == "Volume(16 x 20 x 12 voxels of 3 x 3 x 3 mm, float32, sub-1_T1w.nii.gz)"
    code = tokenizer().encode(scan)
    assert repr(code).startswith(
        "LatentScan(T1w, latent (3, 10, 12, 10), codes.anatomy (10, 12, 10), style (2,), model 0000"
    )
    assert repr(code.encoded).startswith("Encoded(latent (1, 3, 10, 12, 10), codes.anatomy (1, 10, 12, 10)")
    assert repr(tokenizer().reconstruct(scan)).startswith("SyntheticVolume(16 x 20 x 12 voxels")
    assert all("\n" not in repr(one) for one in (scan, code, code.encoded))
