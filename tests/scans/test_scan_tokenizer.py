import json
import os
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import neurotome
from neurotome.data.imaging.geometry import Geometry
from neurotome.data.imaging.nifti_writer import SYNTHETIC_MARK
from neurotome.data.imaging.reader import read_volume
from neurotome.data.imaging.volume import Volume
from neurotome.data.preparation.preparation import Preparation
from neurotome.errors import InputError, UsageError
from neurotome.models.subjects import TrainingSubjects
from neurotome.scans.latent_scan import LatentScan
from neurotome.scans.tokenizer import ScanTokenizer
from tests.data.scans import brain_array
from tests.toy import ToyTokenizer, brain, head, oblique

pytestmark = pytest.mark.usefixtures("toys")

SHAPE = (20, 24, 20)
STYLES = {("T1w", "all"): torch.tensor([0.0, 0.0]), ("T2w", "all"): torch.tensor([0.0, 1.0])}


def tokenizer(**changes: object) -> ScanTokenizer:
    arguments: dict = {
        "network": ToyTokenizer(),
        "preparation": Preparation(3.0, SHAPE),
        "stats": {"intensity": {"T2w": {"low": 10.0, "high": 250.0}}},
        "styles": STYLES,
        "covariances": {},
        "training_subjects": TrainingSubjects("salt"),
        "digest": "0" * 64,
    }
    return ScanTokenizer(**{**arguments, **changes})


def test_the_result_lies_on_the_sources_grid(tmp_path: Path) -> None:
    geometry = oblique()
    brain(1, geometry=geometry).save(tmp_path / "sub-1_T1w.nii.gz")
    source = read_volume(tmp_path / "sub-1_T1w.nii.gz")
    model = tokenizer()
    result = model.decode(model.encode(source))
    result.save(tmp_path / "out.nii.gz")
    before, after = nib.load(tmp_path / "sub-1_T1w.nii.gz"), nib.load(tmp_path / "out.nii.gz")
    assert result.geometry == source.geometry
    assert after.shape == before.shape
    for field in (
        "dim",
        "pixdim",
        "qform_code",
        "sform_code",
        "quatern_b",
        "qoffset_x",
        "srow_x",
        "srow_z",
        "xyzt_units",
    ):
        assert np.array_equal(after.header[field], before.header[field]), field
    # the toy keeps averages of 2 x 2 x 2 voxels: a blurred texture at the right place
    inside = source.array > 0
    assert np.corrcoef(result.array[inside], source.array[inside])[0, 1] > 0.75
    assert np.mean((result.array != 0) == inside) > 0.97


def test_a_reconstruction_by_hand() -> None:
    volume = brain(2, shape=SHAPE, geometry=Geometry(SHAPE, np.diag([3.0, 3.0, 3.0, 1.0])))
    model = tokenizer()
    code = model.encode(volume, "T1w")
    prepared = model.preparation.apply({"T1w": volume})
    blocks = prepared.image[0].reshape(10, 2, 12, 2, 10, 2).mean(axis=(1, 3, 5))
    assert np.allclose(code.encoded.latent[0, 0], blocks, atol=5e-4)  # in half precision, as it is stored
    blocks = code.encoded.latent[0, 0].numpy()
    record, up = prepared.records["T1w"], np.kron(blocks, np.ones((2, 2, 2)))
    on_grid = np.where(prepared.mask, record.low + (up + 1) / 2 * (record.high - record.low), record.background)
    shift = np.round(record.grid_to_source[:3, 3]).astype(int)
    expected = np.zeros(SHAPE)
    place = [(max(s, 0), min(s + n, n)) for s, n in zip(shift, SHAPE, strict=True)]
    target = tuple(slice(a, b) for a, b in place)
    source = tuple(slice(a - s, b - s) for (a, b), s in zip(place, shift, strict=True))
    expected[target] = on_grid[source]
    assert np.allclose(model.decode(code).array, expected, atol=1e-3)


def test_a_translation_takes_the_mean_style_and_range_of_the_target() -> None:
    volume, model = brain(3), tokenizer()
    code = model.encode(volume, "T1w")
    plain, other = model.decode(code), model.decode(code, "T2w")
    image = ((plain.array - code.record.low) / (code.record.high - code.record.low)) * 2 - 1
    # the toy's decoder adds a tenth of the style's second entry: 1 for T2w
    expected = 10 + (np.clip(image + 0.1, -1, 1) + 1) / 2 * 240
    inside = other.array != 0
    assert inside.sum() > 500
    unclipped = inside & (image > -0.99) & (image < 0.89)
    assert np.allclose(other.array[unclipped], expected[unclipped], rtol=0.02, atol=1.0)
    assert other.array.min() == 0
    assert np.array_equal(model.translate(volume, "T2w", modality="T1w").array, other.array)
    assert np.array_equal(model.translate(volume, "t2", modality="t1").array, other.array)


def test_style_and_range_come_from_a_reference() -> None:
    volume, model, reference = brain(4), tokenizer(styles={}), brain(5, gain=7.0)
    given = model.encode(reference, "T2w")
    result = model.translate(volume, "T2w", reference, "T1w")
    expected = model.decode(model.encode(volume, "T1w"), "T2w", given.encoded.style, given.record)
    assert np.array_equal(result.array, expected.array)
    assert result.array.max() <= given.record.high + 1e-3
    assert result.array.max() > 3 * model.encode(volume, "T1w").record.high
    with pytest.raises(UsageError, match="stores no style for T2w"):
        model.translate(volume, "T2w", modality="T1w")


def test_a_reference_named_after_another_contrast_is_refused(tmp_path: Path) -> None:
    model = tokenizer(styles={})
    for name in ("sub-1_T1w.nii.gz", "sub-1_T2w.nii.gz", "reference.nii.gz"):
        brain(5, gain=7.0).save(tmp_path / name)
    with pytest.raises(UsageError, match="the reference is T1w by its name; give a scan of T2w"):
        model.translate(brain(4), "T2w", read_volume(tmp_path / "sub-1_T1w.nii.gz"), "T1w")
    for name in ("sub-1_T2w.nii.gz", "reference.nii.gz"):
        assert model.translate(brain(4), "T2w", read_volume(tmp_path / name), "T1w").array.any()


def test_only_the_shared_part_of_a_code_is_decoded_in_another_contrast(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tokenizer()
    monkeypatch.setattr(ToyTokenizer, "shared", lambda self, encoded: replace(encoded, latent=encoded.latent * 0))
    code = model.encode(brain(), "T1w")
    values = model.decode(code, "T2w").array
    assert len(np.unique(np.round(values[values != 0], 2))) == 1
    assert len(np.unique(model.decode(code, "T1w").array)) > 100


def test_contrasts_that_are_unknown_not_given_or_ambiguous(tmp_path: Path) -> None:
    model = tokenizer()
    with pytest.raises(UsageError, match="knows T1w, T2w, not FLAIR"):
        model.encode(brain(), "FLAIR")
    with pytest.raises(UsageError, match="did you mean T1w"):
        model.encode(brain(), "T1q")
    for name in ("scan.nii.gz", "patient_T1_T2.nii.gz"):
        brain().save(tmp_path / name)
        with pytest.raises(UsageError, match=r"names no contrast|T1w or T2w"):
            model.encode(read_volume(tmp_path / name))
    brain().save(tmp_path / "IXI_T2.nii.gz")
    assert model.encode(read_volume(tmp_path / "IXI_T2.nii.gz")).modality == "T2w"
    with pytest.raises(UsageError, match="names no contrast"):
        model.encode(brain())


def test_a_whole_head_needs_a_mask_or_permission() -> None:
    model, volume = tokenizer(preparation=Preparation(3.0, (32, 32, 32))), head()
    with pytest.raises(InputError, match="whole head"):
        model.encode(volume, "T1w")
    mask = Volume((brain().array > 0).astype(np.uint8), volume.geometry)
    masked = model.encode(volume, "T1w", mask)
    assert masked.mask.sum() == mask.array.sum()
    assert model.encode(volume, "T1w", allow_head=True).mask.sum() > masked.mask.sum()


def wide_brain(shape: tuple[int, int, int] = (40, 26, 22)) -> Volume:
    """A brain of 26 x 16 x 14 voxels of 3 mm, wider than a grid of 24."""
    array = brain_array(shape)
    return Volume(array, Geometry(shape, np.diag([3.0, 3.0, 3.0, 1.0])))


@pytest.mark.parametrize("crop", ["brain", "centre"])
def test_a_brain_wider_than_the_models_grid_is_computed_on_a_larger_one(tmp_path: Path, crop: str) -> None:
    source = wide_brain()
    narrow = tokenizer(preparation=Preparation(3.0, (24, 24, 20), crop=crop))
    code = narrow.encode(source, "T1w")
    assert code.encoded.shape == code.mask.shape == code.record.shape == (28, 24, 20)
    # the same as a model of a grid that holds it
    enough = tokenizer(preparation=Preparation(3.0, (28, 24, 20), crop=crop))
    expected = enough.reconstruct(source, "T1w")
    assert expected.geometry.same_grid(source.geometry)
    np.testing.assert_array_equal(narrow.decode(code).array, expected.array)
    assert np.count_nonzero(expected.array) >= 0.97 * np.count_nonzero(source.array)
    code.save(tmp_path / "code.safetensors")
    np.testing.assert_array_equal(narrow.decode(LatentScan.load(tmp_path / "code.safetensors")).array, expected.array)
    # beside one that fits, in either order
    small = narrow.prepare(brain(1), "T1w")
    wide = narrow.prepare(source, "T1w")
    for order in ((small, wide), (wide, small)):
        results = dict(zip(map(id, order), narrow.decode_batch(narrow.encode_batch(order)), strict=True))
        np.testing.assert_array_equal(results[id(wide)].volume().array, expected.array)


def test_a_network_that_takes_no_larger_grid_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    slices = tokenizer(preparation=Preparation(3.0, (40, 26, 1)))
    with pytest.raises(InputError, match=r"28 x 18 x 14 .* model's grid, .* trained on slices") as error:
        slices.encode(wide_brain(), "T1w")
    assert "skull" not in str(error.value)
    assert "larger grid or on larger voxels" in error.value.remedy
    narrow = tokenizer(preparation=Preparation(3.0, (24, 24, 20)))
    monkeypatch.setattr(ToyTokenizer, "latent_shape", only((24, 24, 20)))
    with pytest.raises(InputError, match=r"takes none that holds it \(of one shape\)"):
        narrow.encode(wide_brain(), "T1w")


def only(shape: tuple[int, int, int]):
    def latent_shape(self, given):
        if tuple(given) != shape:
            raise ValueError("of one shape")
        return tuple(s // f for s, f in zip(given, self.factor, strict=True))

    return latent_shape


def test_a_z_scored_brain_is_refused_by_a_model_of_raw_scans_but_for_a_mask() -> None:
    source = wide_brain((30, 30, 26))
    inside = source.array > 0
    scored = (source.array - source.array[inside].mean()) / source.array[inside].std()
    scan = Volume(np.where(inside, scored, 0).astype(np.float32), source.geometry)
    with pytest.raises(InputError, match="seems to be z-scored"):
        tokenizer().reconstruct(scan, "T1w")
    mask = Volume(inside.astype(np.uint8), source.geometry)
    result = tokenizer().reconstruct(scan, "T1w", mask).array
    assert np.count_nonzero(result[inside]) > 0.97 * np.count_nonzero(inside)


def test_a_latent_file_holds_all_that_decoding_needs(tmp_path: Path) -> None:
    model = tokenizer()
    code = model.encode(brain(6), "T1w")
    code.save(tmp_path / "a.safetensors")
    back = LatentScan.load(tmp_path / "a.safetensors")
    assert np.array_equal(model.decode(back).array, model.decode(code).array)
    assert np.array_equal(model.decode(back, "T2w").array, model.decode(code, "T2w").array)
    assert torch.equal(back.encoded.codes["anatomy"], code.encoded.codes["anatomy"])
    assert (back.modality, back.preparation, back.tokenizer) == ("T1w", code.preparation, code.tokenizer)
    assert back.record.to_json() == code.record.to_json()
    code.save(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_latent_of_another_model_is_refused() -> None:
    code = tokenizer().encode(brain(), "T1w")
    with pytest.raises(InputError, match="made by model 000000000000, this one is 111111111111"):
        tokenizer(digest="1" * 64).decode(code)
    forged = replace(code, encoded=replace(code.encoded, latent=torch.zeros(1, 3, 2, 2, 2)))
    with pytest.raises(InputError, match="admissible is"):
        tokenizer().decode(forged)


def edited(path: Path, **changes: object) -> None:
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    head = {**json.loads(header["__metadata__"]["neurotome"]), **changes}
    header["__metadata__"]["neurotome"] = json.dumps({k: v for k, v in head.items() if v != "drop"})
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"format_version": 3}, "newer"),
        ({"format_version": "drop"}, "holds no latent"),
        ({"record": "drop"}, "not a latent"),
        ({"record": {"geometry": None}}, "not a latent"),
        ({"shape": [20, 24]}, "not a latent"),
        ({"shape": [float("inf"), 24, 16]}, "not a latent"),
        ({"format_version": float("inf")}, "no latent"),
        (
            {"record": {"shape": [1, 1, 1], "geometry": {"shape": [0, 1, 1], "affine": [[1]], "header": None}}},
            r"a\.safetensors: not a latent",
        ),
        ({"shape": [20, 24, 22]}, "mask"),
        ({"preparation": {}}, "preparation"),
        ({"preparation": 3}, "not a latent"),
    ],
)
def test_latent_files_that_do_not_fit_themselves(tmp_path: Path, changes: dict, text: str) -> None:
    tokenizer().encode(brain(), "T1w").save(tmp_path / "a.safetensors")
    edited(tmp_path / "a.safetensors", **changes)
    with pytest.raises((InputError, UsageError), match=text):
        LatentScan.load(tmp_path / "a.safetensors")


def test_latent_files_that_are_cut_or_poisoned(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    code = tokenizer().encode(brain(), "T1w")
    code.save(path)
    data = path.read_bytes()
    for keep in (0, 7, 8, 100, len(data) - 1):
        path.write_bytes(data[:keep])
        with pytest.raises(InputError):
            LatentScan.load(path)
    replace(code, encoded=replace(code.encoded, latent=code.encoded.latent * float("nan"))).save(path)
    with pytest.raises(InputError, match="NaN"):
        LatentScan.load(path)


def test_every_saved_result_says_that_it_is_synthetic(tmp_path: Path) -> None:
    model = tokenizer()
    model.reconstruct(brain(), "T1w").save(tmp_path / "a.nii.gz")
    model.translate(brain(), "T2w", modality="T1w").save(tmp_path / "b.nii.gz", synthetic=False)
    for name in ("a.nii.gz", "b.nii.gz"):
        assert SYNTHETIC_MARK in bytes(nib.load(tmp_path / name).header["descrip"]).decode()


def test_a_model_folder_gives_the_same_tokenizer(tmp_path: Path, toy_model: Path) -> None:
    model = neurotome.Tokenizer.from_pretrained(toy_model)
    assert model.trained_on("00") or model.trained_on("01") or model.trained_on("02")
    assert not model.trained_on("99")
    assert set(model.styles) == {(m, s) for m in ("T1w", "T2w") for s in ("all", "site0", "site1")}
    model.save_pretrained(tmp_path / "copy")
    copy = neurotome.Tokenizer.from_pretrained(tmp_path / "copy")
    assert copy.digest == model.digest
    assert copy.training_subjects == model.training_subjects
    code = model.encode(brain(), "T1w")
    assert np.array_equal(copy.decode(code, "T2w").array, model.decode(code, "T2w").array)
    assert {f.name: f.read_bytes() for f in toy_model.iterdir()} == {
        f.name: f.read_bytes() for f in (tmp_path / "copy").iterdir()
    }


def test_a_scans_bytes_do_not_depend_on_its_company() -> None:
    model = tokenizer()
    scans = [
        model.prepare(brain(seed, gain), name) for seed, gain, name in ((1, 1, "T1w"), (2, 3, "T2w"), (3, 9, "T1w"))
    ]
    alone = [model.encode_batch([scan])[0] for scan in scans]
    for group in ((0, 1), (1, 0), (0, 1, 2), (2, 2, 1, 0)):
        for place, code in zip(group, model.encode_batch([scans[i] for i in group]), strict=True):
            assert torch.equal(code.encoded.latent, alone[place].encoded.latent)
            assert torch.equal(code.encoded.style, alone[place].encoded.style)
            assert torch.equal(code.encoded.codes["anatomy"], alone[place].encoded.codes["anatomy"])
        for target in (None, "T2w"):
            decoded = model.decode_batch([alone[i] for i in group], target)
            for place, scan in zip(group, decoded, strict=True):
                assert np.array_equal(scan.volume().array, model.decode(alone[place], target).array)
    assert model.encode_batch([]) == []
    assert model.decode_batch([]) == []


def test_the_network_sees_batches_of_one_size(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    encode = ToyTokenizer.encode
    monkeypatch.setattr(
        ToyTokenizer, "encode", lambda self, image, ids: sizes.append(len(image)) or encode(self, image, ids)
    )
    model = tokenizer()
    model.encode_batch([model.prepare(brain(seed), "T1w") for seed in range(3)])
    assert sizes == [2, 2]
    assert tokenizer(preparation=Preparation(1.0, (144, 192, 144))).codec.batch == 1


def test_codes_of_different_kinds_are_decoded_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    # what is decoded in its own contrast keeps its private codes, what is translated does not
    monkeypatch.setattr(ToyTokenizer, "shared", lambda self, encoded: replace(encoded, codes={}))
    model = tokenizer()
    own, other = model.encode(brain(1), "T2w"), model.encode(brain(2), "T1w")
    decoded = model.decode_batch([own, other, own], "T2w")
    for scan, code in zip(decoded, (own, other, own), strict=True):
        assert np.array_equal(scan.volume().array, model.decode(code, "T2w").array)


def test_a_style_comes_from_a_site() -> None:
    styles = STYLES | {("T2w", "b"): torch.tensor([0.0, -2.0])}
    volume, model = brain(3), tokenizer(styles=styles)
    code = model.encode(volume, "T1w")
    expected = model.decode(code, "T2w", styles["T2w", "b"])
    assert np.array_equal(model.translate(volume, "T2w", modality="T1w", site="b").array, expected.array)
    assert not np.array_equal(expected.array, model.decode(code, "T2w").array)
    with pytest.raises(UsageError, match="stores no style for T2w at site 'c'"):
        model.translate(volume, "T2w", modality="T1w", site="c")
    with pytest.raises(UsageError, match="give one of them"):
        model.translate(volume, "T2w", brain(4), "T1w", site="b")


def test_bfloat16_changes_little() -> None:
    volume = brain()
    full, half = (
        tokenizer().reconstruct(volume, "T1w").array,
        tokenizer(precision="bf16").reconstruct(volume, "T1w").array,
    )
    assert np.abs(full - half).max() < 0.02 * full.max()


def test_the_input_is_untouched() -> None:
    volume = brain()
    before = volume.array.copy()
    tokenizer().translate(volume, "T2w", modality="T1w")
    assert np.array_equal(volume.array, before)


def test_the_packages_names_are_found_late() -> None:
    assert neurotome.Tokenizer is ScanTokenizer
    assert neurotome.read_volume is read_volume
    assert neurotome.Volume is Volume
    assert isinstance(neurotome.__version__, str)
    assert set(neurotome.__all__) <= set(dir(neurotome))
    with pytest.raises(AttributeError, match=r"it has .*Tokenizer"):
        _ = neurotome.Tokeniser


REAL = os.environ.get("NEUROTOME_TEST_DATA")


@pytest.mark.skipif(REAL is None, reason="NEUROTOME_TEST_DATA is not set")
@pytest.mark.parametrize(
    "name", ["brats/sub-DU7294/sub-DU7294_T1w.nii.gz", "openms/sub-07/sub-07_space-MNI_T1w.nii.gz"]
)
def test_a_real_brain_comes_back_on_its_own_grid(tmp_path: Path, name: str) -> None:
    file = Path(str(REAL)) / "paired" / name
    source = read_volume(file)
    result = tokenizer(preparation=Preparation(3.0, (64, 72, 64))).reconstruct(source)
    result.save(tmp_path / "out.nii.gz")
    before, after = nib.load(file), nib.load(tmp_path / "out.nii.gz")
    assert np.array_equal(after.affine, before.affine)
    assert after.shape == before.shape
    inside = source.array > 0
    assert np.corrcoef(result.array[inside], source.array[inside])[0, 1] > 0.5
    assert np.mean(result.array[~inside] == 0) > 0.97


@pytest.mark.skipif(REAL is None, reason="NEUROTOME_TEST_DATA is not set")
@pytest.mark.parametrize(
    "name", ["single/ixi/IXI012-HH-1211_T1w.nii.gz", "paired/openms_raw/sub-L01/ses-1/sub-L01_ses-1_T1w.nii.gz"]
)
def test_a_real_head_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="whole head"):
        tokenizer(preparation=Preparation(3.0, (96, 96, 96))).encode(read_volume(Path(str(REAL)) / name))


@pytest.mark.parametrize(
    "call",
    [
        lambda model: model.encode(brain(), modality=0),
        lambda model: model.translate(brain(), to=1, modality="T1w"),
        lambda model: model.decode(model.encode(brain(), "T1w"), modality=1),
    ],
)
def test_a_contrast_is_a_name_not_a_number(call) -> None:
    with pytest.raises(UsageError, match=r"modality is [01]; give the name of a contrast: T1w, T2w"):
        call(tokenizer())


def test_a_code_with_a_changed_byte_is_not_what_its_sidecar_says(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    sha256 = tokenizer().encode(brain(), "T1w").save(path)
    (tmp_path / "a.json").write_text(json.dumps({"ResultSHA256": sha256}))
    LatentScan.load(path)
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(InputError, match=r"a.safetensors: .*sidecar beside it.*encode the scan again"):
        LatentScan.load(path)
    (tmp_path / "a.json").unlink()
    LatentScan.load(path)


def test_planes_of_signs_take_one_bit_each_on_disk(tmp_path: Path) -> None:
    code = tokenizer().encode(brain(), "T1w")
    planes = torch.where(torch.rand((1, 64, 10, 12, 10), generator=torch.Generator().manual_seed(0)) < 0.5, -1.0, 1.0)
    replace(code, encoded=replace(code.encoded, latent=planes)).save(tmp_path / "a.safetensors")
    assert load_file(tmp_path / "a.safetensors")["latent"].nbytes * 8 == planes.numel()
    assert torch.equal(LatentScan.load(tmp_path / "a.safetensors").encoded.latent, planes)
    code.save(tmp_path / "b.safetensors")
    assert load_file(tmp_path / "b.safetensors")["latent"].dtype == torch.float16
