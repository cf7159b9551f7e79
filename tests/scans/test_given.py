"""A scan is a path, a volume or an image of nibabel; whatever else is given is named."""

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
