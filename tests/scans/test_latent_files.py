"""Latent files take the bits that the model counts, and decode to the bytes that the code in memory decodes to."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from neurotome.data.imaging.geometry import Geometry
from neurotome.data.imaging.volume import Volume
from neurotome.data.phantom.cohort import SyntheticCohort
from neurotome.data.preparation.preparation import Preparation
from neurotome.data.stores.latents import Latents
from neurotome.errors import InputError
from neurotome.experiments.config import load_config
from neurotome.experiments.experiment import check_experiment
from neurotome.models.subjects import TrainingSubjects
from neurotome.scans.latent_scan import LatentScan
from neurotome.scans.tokenizer import ScanTokenizer
from neurotome.tokenizers.base import Tokenizer
from tests.tokenizers.test_battery import SMALL
from tests.toy import brain

SHAPE = (24, 24, 24)
FILE = "sub-1_desc-latent_T1w.safetensors"


def scans_of(network: Tokenizer, shape: tuple[int, int, int] = SHAPE) -> ScanTokenizer:
    """A tokenizer that is ready, with a style for every contrast."""
    torch.manual_seed(1)
    for module in network.modules():
        if hasattr(module, "mark_started"):
            module.mark_started()
    example = network.eval().example()
    style = network.encode(example["image"], example["modality"]).style
    styles = {} if style is None else {(name, "all"): torch.randn_like(style[0]) for name in network.modalities}
    return ScanTokenizer(network, Preparation(3.0, shape), {}, styles, {}, TrainingSubjects(), "d" * 64)


@pytest.fixture(params=SMALL)
def model(request: pytest.FixtureRequest) -> ScanTokenizer:
    torch.manual_seed(0)
    network = SMALL[request.param](3)
    if request.param in ("vq-vae-residual", "mask"):
        for _ in range(3):
            network.encode(torch.randn(2, 1, *SHAPE).clamp(-1, 1), torch.tensor([0, 1]))
    return scans_of(network)


def payload(file: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in safetensors.torch.load_file(file).items() if name != "mask"}


def test_a_file_takes_the_bits_that_the_model_counts(model: ScanTokenizer, tmp_path: Path) -> None:
    code = model.encode(brain(4), "T1w")
    code.save(tmp_path / FILE)
    tensors = payload(tmp_path / FILE)
    counted = float(model.network.bits_used(code.encoded))
    assert sum(8 * tensor.nbytes for tensor in tensors.values()) <= counted + 7 * len(tensors)  # whole bytes
    assert ("latent" in tensors) == (not code.encoded.codes)


def test_a_file_decodes_to_the_bytes_of_the_code_in_memory(model: ScanTokenizer, tmp_path: Path) -> None:
    codes = [model.encode(brain(seed), name) for seed, name in ((4, "T1w"), (5, "T2w"))]
    for float_latent in (False, True):
        back = []
        for number, code in enumerate(codes):
            code.save(tmp_path / f"{number}.safetensors", float_latent=float_latent)
            back.append(LatentScan.load(tmp_path / f"{number}.safetensors"))
            assert ("latent" in payload(tmp_path / f"{number}.safetensors")) == (float_latent or not code.encoded.codes)
            assert np.array_equal(back[-1].mask, code.mask)
        for to in (None, "T2w") if model.styles else (None,):
            want = [one.image for one in model.decode_batch(codes, to)]
            together = [one.image for one in model.decode_batch(back, to)]
            alone = [model.decode_batch([one], to)[0].image for one in back]
            assert np.array_equal(want, together)
            assert np.array_equal(want, alone)
        again = tmp_path / "again.safetensors"
        back[0].save(again, float_latent=float_latent)
        assert again.read_bytes() == (tmp_path / "0.safetensors").read_bytes()


def write_format1(code: LatentScan, file: Path) -> None:
    """As the first releases wrote it: codes in 32 bits, the latent and the style in single precision, a plain mask."""
    tensors = {
        name: t.to(torch.int32) if not t.is_floating_point() else t.contiguous() for name, t in code.encoded.named()
    }
    tensors["mask"] = torch.from_numpy(np.packbits(code.mask))
    head = {
        "format_version": 1, "tokenizer": code.tokenizer, "modality": code.modality, "shape": list(code.encoded.shape),
        "preparation": code.preparation.to_json(), "record": code.record.to_json(),
    }  # fmt: skip
    file.write_bytes(safetensors.torch.save(tensors, {"neurotome": json.dumps(head)}))


def test_a_file_of_format_1_is_read(model: ScanTokenizer, tmp_path: Path) -> None:
    code = model.encode(brain(4), "T1w")
    write_format1(code, tmp_path / FILE)
    back = LatentScan.load(tmp_path / FILE)
    assert np.array_equal(back.mask, code.mask)
    assert np.array_equal(model.decode(back).array, model.decode(code).array)
    assert np.array_equal(Latents.open(tmp_path / FILE).mask(Latents.open(tmp_path / FILE).entries[0]), code.mask)


@pytest.fixture(scope="module")
def demo_scan() -> Volume:
    """A synthetic brain of the demo's cohort."""
    array = SyntheticCohort(1, spacing_mm=3.0).subject(0).images["T1w"].astype(np.float32)
    return Volume(array, Geometry(array.shape, np.diag([3.0, 3.0, 3.0, 1.0])))


@pytest.mark.parametrize("name", ["neuroquant-aligned-demo", "anatome-demo"])
def test_a_file_of_the_demos_size_is_as_small_as_the_model_claims(name: str, demo_scan: Volume, tmp_path: Path) -> None:
    """Mask, geometry and preparation come on top; they are an eighth of a bit per voxel at most."""
    shape = (56, 72, 56)
    network = check_experiment(load_config(name, [])).method.build().product()
    model = scans_of(network, shape)
    code = model.encode(demo_scan, "T1w")
    code.save(tmp_path / FILE)
    voxels = np.prod(shape)
    claimed = float(model.network.bits_used(code.encoded)) / voxels
    found = 8 * (tmp_path / FILE).stat().st_size / voxels
    assert found <= claimed + 1 / 8
    code.save(tmp_path / FILE, float_latent=True)
    assert 8 * (tmp_path / FILE).stat().st_size / voxels > 20


def damaged(code: LatentScan, file: Path, change) -> None:
    """Write a file of codes alone with other tensors or another head."""
    code.save(file)
    data = file.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    head = json.loads(header["__metadata__"]["neurotome"])
    tensors = dict(safetensors.torch.load(data))
    change(tensors, head)
    file.write_bytes(safetensors.torch.save(tensors, {"neurotome": json.dumps(head)}))


DAMAGE = {
    "no codes": (lambda t, h: t.pop("codes.anatomy"), "described are"),
    "no layout": (lambda t, h: h.pop("codes"), "codes"),
    "bits": (lambda t, h: h["codes"]["anatomy"].update(bits=9), "codes anatomy"),
    "mask": (lambda t, h: t.update(mask=t["mask"][:-9]), "not a latent of a scan"),
    "mask beyond": (lambda t, h: t.update(mask=torch.zeros(3, dtype=torch.uint8)), "not a latent of a scan"),
    "another map": (lambda t, h: (t.update({"codes.x": t.pop("codes.anatomy")}), h["codes"].update(x=h["codes"].pop("anatomy"))), "admissible are anatomy"),  # noqa: E501
    "another shape": (lambda t, h: h["codes"]["anatomy"].update(shape=[12, 12 * 12, 1]), "admissible are"),
    "beyond the codebook": (lambda t, h: h["codes"]["anatomy"].update(bits=8, shape=[12, 12, 6]), "admissible are"),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGE)
def test_damaged_codes_are_named(what: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = scans_of(SMALL["neuroquant-demo"](3))
    change, said = DAMAGE[what]
    damaged(model.encode(brain(4), "T1w"), tmp_path / FILE, change)
    with pytest.raises(InputError, match=said):
        model.decode(LatentScan.load(tmp_path / FILE))


def test_a_file_of_codes_alone_says_so_where_a_latent_is_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = scans_of(SMALL["neuroquant-demo"](3))
    code = model.encode(brain(4), "T1w")
    code.save(tmp_path / FILE)
    latents = Latents.open(tmp_path / FILE)
    with pytest.raises(InputError, match=r"holds codes alone\. Remedy: encode the scan with --float-latent"):
        latents.load(latents.entries[0], "T1w")
    assert np.array_equal(latents.mask(latents.entries[0]), code.mask)
    code.save(tmp_path / FILE, float_latent=True)
    latents = Latents.open(tmp_path / FILE)
    view = latents.load(latents.entries[0], "T1w")
    assert np.array_equal(view.latent, code.encoded.latent[0])
    assert np.array_equal(view.arrays["codes.anatomy"], code.encoded.codes["anatomy"][0])


def test_a_code_is_printed_in_one_line(model: ScanTokenizer, tmp_path: Path) -> None:
    code = model.encode(brain(4), "T1w")
    code.save(tmp_path / FILE)
    for one in (code, LatentScan.load(tmp_path / FILE)):
        assert str(one) == repr(one)
        assert str(one).startswith("LatentScan(T1w, ")
        assert "dddddddddddd)" in str(one)
        assert "\n" not in str(one)
        assert len(str(one)) < 200


def test_a_scan_on_a_larger_grid_is_named_and_opens_by_itself(tmp_path: Path) -> None:
    model = scans_of(next(iter(SMALL.values()))(3), SHAPE)
    small, factor = model.prepare(brain(4), "T1w"), model.network.factor[0]
    large = replace(small, image=np.pad(small.image, factor), mask=np.pad(small.mask, factor))
    codes = model.encode_batch([large, small, small])
    wide = tuple(n + 2 * factor for n in SHAPE)
    assert [code.preparation.shape for code in codes] == [wide, SHAPE, SHAPE]
    for name, code in zip(("a", "b", "c"), codes, strict=True):
        code.save(tmp_path / f"sub-{name}_T1w.safetensors", float_latent=True)
    with pytest.raises(InputError, match=f"lies on a grid of {' x '.join(map(str, wide))} voxels") as error:
        Latents.open(tmp_path)
    assert error.value.file == tmp_path / "sub-a_T1w.safetensors"
    assert "out of this folder" in error.value.remedy
    (tmp_path / "rest").mkdir()
    for name in ("b", "c"):
        (tmp_path / f"sub-{name}_T1w.safetensors").rename(tmp_path / "rest" / f"sub-{name}_T1w.safetensors")
    assert Latents.open(tmp_path / "rest").origin.preparation == model.preparation
    found = Latents.open(error.value.file)
    assert found.origin.shape == found.origin.preparation.shape == wide
    assert found.mask(found.entries[0]).shape == wide
