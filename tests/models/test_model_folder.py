"""Model folders: what is written is what is read, and what lies or is damaged is refused by name."""

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from neurotome.data.preparation.preparation import Preparation
from neurotome.errors import InputError, UsageError
from neurotome.files import atomic
from neurotome.models.folder import ModelFolder, check_usable, read_folder, write_model_folder
from neurotome.models.registry import public_classes
from neurotome.models.sealed import FILES, NEEDED, SELF_TEST, opened, sealed
from neurotome.models.self_test import SelfTest, compared, made
from neurotome.models.subjects import TrainingSubjects, salted_hash
from neurotome.nn import recorded
from neurotome.nn.quantize import EMAQuantizer, FiniteScalarQuantizer
from neurotome.scans.tokenizer import ScanTokenizer
from neurotome.tasks.base import Segmenter
from neurotome.tokenizers import VQVAE, NeuroQuant
from neurotome.tokenizers.base import Tokenizer
from neurotome.tokenizers.shared_anatomy.parts import Appearance, Trunk
from neurotome.types import Images
from tests import toy
from tests.toy import ToyTokenizer, names

pytestmark = pytest.mark.usefixtures("toys")

PREPARATION = Preparation(3.0, (16, 16, 16))
MASKS = Images("masks", {"source": "label", "groups": ["every label above 0"]})


def write(folder: Path, network: Tokenizer | None = None, **changes: object) -> str:
    arguments = {
        "preparation": PREPARATION,
        "stats": {"mean": [0.0]},
        "styles": {"T1w/all/mean": torch.tensor([0.5, 0.0])},
        "subjects": ["01", "02"],
        "card": "a card",
        **changes,
    }
    return write_model_folder(folder, network or ToyTokenizer(width=2, gains=(0.5, 1.5)), **arguments)  # type: ignore[arg-type]


def neuroquant() -> NeuroQuant:
    trunk = Trunk(channels=(8, 8), num_res_blocks=1, attention_levels=(False, True), num_heads=1, norm_groups=4)
    appearance = Appearance(channels=5, stages=(8,), foreground_above=-0.9, film_hidden=7)
    return NeuroQuant(
        trunk=trunk, appearance=appearance, quantizer=EMAQuantizer(8, 3), private=EMAQuantizer(4, 2, start_after=7)
    )


def vqvae(quantizer: object) -> VQVAE:
    return VQVAE(channels=(8,), num_res_blocks=1, quantizer=quantizer)


SMALL_VQVAE = {
    "modalities": ["T1w", "T2w"],
    "quantizer": {"class": "EMAQuantizer", "arguments": {"num_codes": 8, "dim": 3}},
}


def config_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def replace_file(folder: Path, name: str, data: bytes) -> None:
    """Put other bytes in place and make the hashes agree: what a forger would do."""
    (folder / name).write_bytes(data)
    toy.reseal(folder, sha256={**config_of(folder)["sha256"], name: hashlib.sha256(data).hexdigest()})


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    network = ToyTokenizer(width=2, gains=(0.5, 1.5))
    with torch.no_grad():
        network.weight.copy_(torch.tensor([0.25, -3.0]))
    digest = write(tmp_path / "m", network)
    back = toy.read(tmp_path / "m")
    assert back.digest == digest
    assert torch.equal(back.network.weight, network.weight)
    assert back.network.arguments == {**network.arguments, "gains": (0.5, 1.5), "modalities": ("T1w", "T2w")}
    assert (back.preparation, back.stats, back.card) == (PREPARATION, {"mean": [0.0]}, "a card")
    assert torch.equal(back.styles["T1w/all/mean"], torch.tensor([0.5, 0.0]))
    assert not back.network.training
    assert not any(p.requires_grad for p in back.network.parameters())
    assert names(tmp_path) == ["m"]


def test_equal_models_give_equal_bytes_and_the_digest_is_that_of_the_whole(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a"), write(tmp_path / "b")
    assert first == second
    assert set(names(tmp_path / "a")) == {*FILES, "config.json"}
    for name in (*FILES, "config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert config_of(tmp_path / "a")["digest"] == first
    assert write(tmp_path / "c", card="another") != first
    assert write(tmp_path / "f", subjects=["01", "03"]) != first
    assert write(tmp_path / "d", preparation=Preparation(2.0, (16, 16, 16))) != first
    assert write(tmp_path / "e", ToyTokenizer(width=2, gains=(0.6, 1.5))) != first


@pytest.mark.parametrize("name", sorted({*FILES, "config.json"}))
def test_any_flipped_bit_is_noticed(tmp_path: Path, name: str) -> None:
    write(tmp_path / "m", scans=["c1", "c2"])
    file = tmp_path / "m" / name
    data = file.read_bytes()
    rng = np.random.default_rng(0)
    places = {0, len(data) - 1, *rng.integers(0, len(data), 12 if name != "config.json" else 400).tolist()}
    for place in places:
        changed = bytearray(data)
        changed[place] ^= 1 << int(rng.integers(8))
        file.write_bytes(changed)
        with pytest.raises(InputError) as error:
            toy.read(tmp_path / "m")
        assert error.value.exit_code == 3
        assert error.value.file == file
        assert error.value.remedy
        assert name == "config.json" or "not what config.json promises" in error.value.reason


def test_every_bit_of_a_number_and_of_its_key_is_sealed(tmp_path: Path) -> None:
    """A lower format has no seal: neither a changed number nor a changed key may turn the reader to one."""
    write(tmp_path / "m")
    file = tmp_path / "m" / "config.json"
    data = file.read_bytes()
    for start, stop in ((0, data.index(b"3,") + 2), (data.rindex(b'"digest"') - 3, len(data))):
        for place in range(start, stop):
            for bit in range(8):
                changed = bytearray(data)
                changed[place] ^= 1 << bit
                file.write_bytes(changed)
                with pytest.raises(InputError):
                    toy.read(tmp_path / "m")


@pytest.mark.parametrize(
    "change",
    [
        lambda c: {**c, "training_subjects": {**c["training_subjects"], "salt": "0" * 32}},
        lambda c: {**c, "images": {"space": "latents", "tokenizer": "x"}},
        lambda c: {**c, "capabilities": {}},
        lambda c: {**c, "frozen": {"segmenter": "0"}},
        lambda c: json.loads(json.dumps(c).replace('["T1w", "T2w"]', '["T2w", "T1w"]')),
        lambda c: {k: v for k, v in c.items() if k != "digest"},
        lambda c: {**c, "format_version": 2},
        lambda c: dict(sorted(c.items())),
    ],
)  # fmt: skip
def test_no_value_of_the_config_can_be_changed(tmp_path: Path, change) -> None:
    write(tmp_path / "m")
    file = tmp_path / "m" / "config.json"
    file.write_text(json.dumps(change(config_of(tmp_path / "m")), indent=1))
    with pytest.raises(InputError, match="not what its own digest promises"):
        toy.read(tmp_path / "m")


def test_a_folder_of_format_2_is_read_and_keeps_its_digest(tmp_path: Path) -> None:
    write(tmp_path / "m")
    config = config_of(tmp_path / "m")
    del config["digest"], config["training_subjects"]["scans"]
    (tmp_path / "m" / "config.json").write_text(json.dumps({**config, "format_version": 2}, indent=1))
    hashes = config["sha256"]
    parts = [config["network"], hashes["model.safetensors"], hashes["preprocess.json"], config["images"]]
    back = toy.read(tmp_path / "m")
    assert back.digest == hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    assert back.training_subjects.include("01", ["c1"])
    assert not back.training_subjects.include("03", ["c1"])


def test_a_run_folder_stands_for_its_model(tmp_path: Path) -> None:
    digest = write(tmp_path / "run" / "model")
    (tmp_path / "run" / "config.yaml").write_text("")
    assert toy.read(tmp_path / "run").digest == digest


def test_reading_draws_no_random_number(tmp_path: Path) -> None:
    write(tmp_path / "m", neuroquant())
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    network = toy.read(tmp_path / "m").network
    assert torch.equal(torch.rand(3), expected)
    assert not any(key.startswith("adversary") for key in load_file(tmp_path / "m" / "model.safetensors"))
    assert isinstance(network, NeuroQuant)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"format_version": 4}, "newer"),
        ({"format_version": None}, "no format_version"),
        ({"format_version": "1"}, "no format_version"),
        ({"network": {"class": "os.system"}}, "not a public tokenizer"),
        ({"network": {"class": "Tokenizer"}}, "not a public tokenizer"),
        ({"network": {"class": "Encoded"}}, "not a public tokenizer"),
        ({"network": {"class": "EMAQuantizer"}}, "not a public tokenizer"),
        ({"network": {"class": "neurotome.tokenizers.NeuroQuant"}}, "not a public tokenizer"),
        ({"network": {"class": ["ToyTokenizer"]}}, "class"),
        ({"network": {}}, "class"),
        ({"network": "ToyTokenizer"}, "network"),
        ({"network": {"class": "ToyTokenizer"}}, "do not fit"),
        ({"network": {"class": "VQVAE", "arguments": {}}}, "do not fit"),
        ({"network": {"class": "ToyTokenizer", "arguments": {"width": 3}}}, "weights do not fit"),
        ({"network": {"class": "ToyTokenizer", "arguments": {"width": 10**13}}}, "do not fit"),
        ({"network": {"class": "ToyTokenizer", "arguments": {"width": 0}}}, "give a whole number > 0"),
        ({"network": {"class": "ToyTokenizer", "arguments": {"breadth": 2}}}, "breadth"),
        ({"network": {"class": "VQVAE", "arguments": {"quantizer": 1}}}, "do not fit"),
        ({"network": {"class": "VQVAE", "arguments": {**SMALL_VQVAE, "channels": []}}}, "do not fit VQVAE"),
        ({"capabilities": 5}, "the key capabilities"),
        ({"images": "scans"}, "the key images"),
        ({"images": {"space": "meshes"}}, "the key images"),
        ({"images": {"space": "latents"}}, "the key tokenizer"),
        ({"frozen": ["perceptual"]}, "the key frozen"),
        ({"training_subjects": {"salt": "x"}}, "training_subjects"),
        ({"training_subjects": {"salt": "x", "sha256": [["01"]]}}, "training_subjects"),
        ({"training_subjects": {"salt": "x", "sha256": ["01"], "complete": 1}}, "training_subjects"),
        ({"sha256": {}}, "sha256"),
        ({"sha256": dict.fromkeys([*FILES, "plugin.py"], "0" * 64)}, "sha256"),
        ({"sha256": dict.fromkeys([*FILES, "../model.safetensors"], "0" * 64)}, "sha256"),
    ],
)
def test_a_config_that_lies_is_refused(tmp_path: Path, changes: dict, text: str) -> None:
    write(tmp_path / "m")
    toy.reseal(tmp_path / "m", **changes)
    with pytest.raises(InputError, match=text) as error:
        read_folder(tmp_path / "m", Tokenizer)
    assert error.value.file == tmp_path / "m" / "config.json"


def test_absurd_numbers_of_layers_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded, "MAX_MODULES", 200)  # 20 000 take seconds to build
    write(tmp_path / "m")
    arguments = {**SMALL_VQVAE, "num_res_blocks": 60000}
    toy.reseal(tmp_path / "m", network={"class": "VQVAE", "arguments": arguments})
    with pytest.raises(InputError, match="more than 200 layers"):
        read_folder(tmp_path / "m", Tokenizer)


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("value", [None, True, 3, 0.5, "text", [], ["text"], [["text"]], {}, {"a": 1}, {"a": "b"}])
@pytest.mark.parametrize("key", ["provenance", "unready", "frozen", "capabilities", "origin"])
def test_a_key_of_another_kind_is_named_in_every_format(key: str, value: object, version: int) -> None:
    """What older formats do not cover by a hash is checked all the same."""
    part = {"class": "ToyTokenizer", "arguments": {}}
    names = sorted(NEEDED if version == 1 else {*NEEDED, SELF_TEST})
    config = {
        "format_version": version, "training_subjects": {"salt": "s", "sha256": []},
        "sha256": dict.fromkeys(names, "0" * 64), "frozen": {}, "capabilities": {},
        **(part if version == 1 else {"network": part, "images": Images().to_json()}), key: value,
    }  # fmt: skip
    data = sealed(config)[0] if version == 3 else json.dumps(config).encode()
    kinds = {"unready": str, "origin": list}
    strange = [("frozen", {"a": 1}), ("origin", [["text"]])]
    right = isinstance(value, kinds.get(key, dict)) and (key, value) not in strange
    if right:
        assert opened(data, Path("config.json")).content[key] == value
        return
    with pytest.raises(InputError, match=f"the key {key} is missing or of another kind") as error:
        opened(data, Path("config.json"))
    assert error.value.exit_code == 3


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"[" * 100_000, b"\xff\xfe"])
def test_a_config_that_is_no_json_object_is_refused(tmp_path: Path, content: bytes) -> None:
    write(tmp_path / "m")
    (tmp_path / "m" / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=r"config\.json"):
        toy.read(tmp_path / "m")


class Evil:
    def __reduce__(self) -> tuple:
        return os.mkdir, (str(Path(os.environ["CANARY"])),)


def test_a_pickle_under_another_name_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARY", str(tmp_path / "canary"))
    write(tmp_path / "m")
    for name in ("model.safetensors", "styles.safetensors", "self_test.safetensors"):
        copy = tmp_path / name
        shutil.copytree(tmp_path / "m", copy)
        replace_file(copy, name, pickle.dumps(Evil()))
        with pytest.raises(InputError, match="not a safetensors file"):
            toy.read(copy)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_refused_by_writer_and_reader(tmp_path: Path, value: float) -> None:
    network = ToyTokenizer(width=2)
    with torch.no_grad():
        network.weight[1] = value
    with pytest.raises(InputError, match="weight"):
        write(tmp_path / "bad", network)
    assert not (tmp_path / "bad").exists()
    write(tmp_path / "m", ToyTokenizer(width=2))
    save_file(network.state_dict(), tmp_path / "forged")
    replace_file(tmp_path / "m", "model.safetensors", (tmp_path / "forged").read_bytes())
    with pytest.raises(InputError, match="NaN or infinity"):
        toy.read(tmp_path / "m")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.int32, torch.bool])
def test_weights_of_another_type_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    write(tmp_path / "m")
    forged = {name: value.to(dtype) for name, value in ToyTokenizer(width=2).state_dict().items()}
    save_file(forged, tmp_path / "forged")
    replace_file(tmp_path / "m", "model.safetensors", (tmp_path / "forged").read_bytes())
    named = rf"weights do not fit .*: tensor gain is {str(dtype).removeprefix('torch.')} \(\), it takes float32 \(\)"
    with pytest.raises(InputError, match=named):
        toy.read(tmp_path / "m")


def test_two_tensors_of_one_name_are_named(tmp_path: Path) -> None:
    write(tmp_path / "m")
    for name in ("model.safetensors", "self_test.safetensors", "styles.safetensors"):
        copy = tmp_path / name
        shutil.copytree(tmp_path / "m", copy)
        data = (copy / name).read_bytes()
        size = int.from_bytes(data[:8], "little")
        key, _, rest = data[9 : 8 + size].partition(b":")
        header = b"{" + key + b":" + rest.split(b"},", 1)[0].rstrip(b" }") + b"}," + data[9 : 8 + size]
        replace_file(copy, name, len(header).to_bytes(8, "little") + header + data[8 + size :])
        with pytest.raises(InputError, match=f"the key '{json.loads(key)}' occurs twice") as error:
            toy.read(copy)
        assert error.value.file == copy / name


def test_a_preparation_of_absurd_size_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "m")
    value = json.loads((tmp_path / "m" / "preprocess.json").read_text())
    replace_file(tmp_path / "m", "preprocess.json", json.dumps({**value, "shape": [float("inf")] * 3}).encode())
    with pytest.raises(InputError, match=r"preprocess\.json"):
        toy.read(tmp_path / "m")


def test_a_self_test_is_needed_and_holds_values(tmp_path: Path) -> None:
    write(tmp_path / "m")
    config = config_of(tmp_path / "m")
    del config["sha256"]["self_test.safetensors"]
    toy.reseal(tmp_path / "m", sha256=config["sha256"])
    with pytest.raises(InputError, match="sha256"):
        toy.read(tmp_path / "m")
    network = ToyTokenizer(width=2)
    stored = {name: value[:0] for name, value in made(network).items()}
    with pytest.raises(InputError, match="without values"):
        compared(network, stored, Path("f"))
    with pytest.raises(InputError, match="does not fit the network"):
        compared(network, {}, Path("f"))


def test_odd_tensor_names_and_missing_files_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "m")
    save_file({"a b\x1b[2J": torch.zeros(1)}, tmp_path / "forged")
    replace_file(tmp_path / "m", "styles.safetensors", (tmp_path / "forged").read_bytes())
    with pytest.raises(InputError, match="tensor name") as error:
        toy.read(tmp_path / "m")
    assert "\x1b" not in str(error.value)
    (tmp_path / "m" / "README.md").unlink()
    with pytest.raises(InputError, match="cannot be read"):
        toy.read(tmp_path / "m")
    with pytest.raises(UsageError, match="no such model folder"):
        toy.read(tmp_path / "nothing")


def test_a_folder_that_is_there_is_replaced_only_on_request(tmp_path: Path) -> None:
    write(tmp_path / "m", card="first")
    with pytest.raises(UsageError, match="--overwrite"):
        write(tmp_path / "m", card="second")
    write(tmp_path / "m", card="second", overwrite=True)
    assert toy.read(tmp_path / "m").card == "second"
    assert names(tmp_path) == ["m"]


def as_run(folder: Path) -> None:
    write(folder / "model")
    (folder / "config.yaml").write_text("seed: 1")
    (folder / "checkpoints").mkdir()


def with_notes(folder: Path) -> None:
    write(folder)
    (folder / "notes.txt").write_text("mine")


def with_a_folder_of_the_name(folder: Path) -> None:
    write(folder)
    (folder / "README.md").unlink()
    (folder / "README.md").mkdir()
    (folder / "README.md" / "notes.txt").write_text("mine")


def of_another_library(folder: Path) -> None:
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["Other"]}')
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "README.md").write_text("theirs")


def of_the_names_alone(folder: Path) -> None:
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")


FOREIGN = {
    as_run: "holds checkpoints", with_notes: r"holds notes\.txt", with_a_folder_of_the_name: r"holds README\.md",
    of_another_library: r"no config\.json of neurotome", of_the_names_alone: r"no config\.json of neurotome",
    lambda folder: folder.write_text("a table"): "is a file",
}  # fmt: skip


@pytest.mark.parametrize("make", FOREIGN)
def test_only_a_model_folder_is_replaced(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "m")
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    with pytest.raises(UsageError, match=FOREIGN[make]) as error:
        write(tmp_path / "m", overwrite=True)
    assert error.value.exit_code == 2
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before


def test_an_empty_folder_a_damaged_model_and_one_behind_a_link_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "m")
    digest = write(tmp_path / "m", overwrite=True)
    (tmp_path / "m" / "config.json").write_bytes((tmp_path / "m" / "config.json").read_bytes()[:-9])
    (tmp_path / "m" / "model.safetensors").unlink()
    assert write(tmp_path / "link", overwrite=True) == digest
    assert toy.read(tmp_path / "m").digest == digest
    assert names(tmp_path) == ["link", "m"]
    assert (tmp_path / "link").is_symlink()


def test_saving_a_model_over_the_run_it_was_read_from_keeps_the_run(tmp_path: Path) -> None:
    as_run(tmp_path / "run")
    tokenizer = ScanTokenizer.from_pretrained(tmp_path / "run")
    with pytest.raises(UsageError, match="is no model folder"):
        tokenizer.save_pretrained(tmp_path / "run", overwrite=True)
    assert (tmp_path / "run" / "checkpoints").is_dir()
    tokenizer.save_pretrained(tmp_path / "run" / "model", overwrite=True)


def test_a_full_disk_leaves_the_old_folder_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "m", card="first")
    calls = []

    def full(handle: int) -> None:
        calls.append(handle)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path / "m", card="second", overwrite=True)
    monkeypatch.undo()
    assert names(tmp_path) == ["m"]
    assert (tmp_path / "m" / "README.md").read_text() == "first"


def test_subjects_are_listed_as_hashes_with_a_salt_of_the_model(tmp_path: Path) -> None:
    write(tmp_path / "a", subjects=["DOE-JOHN"])
    write(tmp_path / "b", ToyTokenizer(width=2, gains=(3.0,)), subjects=["DOE-JOHN"])
    assert all(b"DOE" not in f.read_bytes() for f in (tmp_path / "a").iterdir())
    one, other = (toy.read(tmp_path / n).training_subjects for n in "ab")
    assert one.subjects == {hashlib.sha256(f"{one.salt}:DOE-JOHN".encode()).hexdigest()}
    assert one.salt != other.salt
    assert one.subjects != other.subjects


def test_a_renamed_subject_is_known_by_its_scans(tmp_path: Path) -> None:
    write(tmp_path / "m", subjects=["01"], scans=["c1", "c2"])
    content = toy.read(tmp_path / "m").training_subjects
    assert content.scans == {salted_hash(content.salt, c) for c in ("c1", "c2")}
    assert content.include("01")
    assert content.include("renamed", ["other", "c2"])
    assert not content.include("renamed", ["other"])
    assert not content.include("c1")
    assert not TrainingSubjects("", frozenset()).include("", [""])
    further = content.joined(["02"], ["c3"])
    assert all(further.include(*one) for one in (("01",), ("02",), ("x", ["c1"]), ("x", ["c3"])))
    assert not content.include("02", ["c3"])
    write(tmp_path / "copy", subjects=content)
    assert toy.read(tmp_path / "copy").training_subjects == content


def test_an_argument_that_json_cannot_hold_is_named(tmp_path: Path) -> None:
    for kind in (torch.zeros(1), float("nan"), {"a": object()}, [1, {1}]):
        network = ToyTokenizer(width=2)
        network.arguments["kind"] = kind
        with pytest.raises(UsageError, match=r"ToyTokenizer\.kind"):
            write(tmp_path / "m", network)


def test_a_class_of_another_package_is_not_written(tmp_path: Path) -> None:
    class Private(ToyTokenizer):
        pass

    with pytest.raises(UsageError, match="not a public class"):
        write(tmp_path / "m", Private())


def test_the_registry_holds_concrete_public_classes_of_the_kind() -> None:
    found = public_classes(Tokenizer)
    assert {"NeuroQuant", "ToyTokenizer"} <= set(found)
    assert "Tokenizer" not in found
    assert "ToyTraining" not in found
    assert "ToyTraining" in public_classes(object)


PARTS = {
    "neuroquant": neuroquant,
    "ema": lambda: vqvae(EMAQuantizer(16, 3, decay=0.9, reservoir=64)),
    "fsq": lambda: vqvae(FiniteScalarQuantizer((4, 4, 3), 3)),
}


@pytest.mark.parametrize("part", PARTS)
def test_nested_parts_and_groups_come_back(tmp_path: Path, part: str) -> None:
    if part == "fsq":
        pytest.importorskip("vector_quantize_pytorch")
    torch.manual_seed(0)
    network = PARTS[part]().eval()
    write(tmp_path / "m", network)
    back = read_folder(tmp_path / "m", Tokenizer).network
    quantizer = config_of(tmp_path / "m")["network"]["arguments"]["quantizer"]
    assert quantizer["class"] == type(network.quantizer).__name__ == type(back.quantizer).__name__
    assert back.quantizer.arguments == network.quantizer.arguments
    assert {k: v for k, v in back.arguments.items() if k not in ("quantizer", "private")} == {
        k: v for k, v in network.arguments.items() if k not in ("quantizer", "private")
    }
    example = network.example()
    assert torch.allclose(back.respond(example), network.respond(example), atol=1e-5)
    write(tmp_path / "again", back)
    before, after = config_of(tmp_path / "m"), config_of(tmp_path / "again")
    assert after["network"] == before["network"]
    assert after["sha256"]["model.safetensors"] == before["sha256"]["model.safetensors"]
    assert part != "neuroquant" or back.private.arguments == network.private.arguments


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"class": "os.system"}, r"class 'os\.system' is not a public EMAQuantizer"),
        ({"class": "FiniteScalarQuantizer"}, "class 'FiniteScalarQuantizer' is not a public EMAQuantizer"),
        ({"class": None}, "class 'None' is not a public EMAQuantizer"),
        ({"arguments": {"num_codes": 8, "dim": 3, "price": 1}}, "price"),
        ({"arguments": {"num_codes": 1, "dim": 3}}, "num_codes is 1"),
        ({"arguments": {"num_codes": 9, "dim": 3}}, "weights do not fit"),
        ({"arguments": None}, "is no part of a network"),
    ],
)
def test_a_part_that_lies_is_refused(tmp_path: Path, changes: dict, text: str) -> None:
    write(tmp_path / "m", neuroquant())
    network = config_of(tmp_path / "m")["network"]
    network["arguments"]["quantizer"] |= changes
    toy.reseal(tmp_path / "m", network=network)
    with pytest.raises(InputError, match=text):
        toy.read(tmp_path / "m")


def test_the_output_of_the_self_test_is_that_of_the_network_that_is_read(tmp_path: Path) -> None:
    network = neuroquant().train()
    write(tmp_path / "m", network)
    assert network.training
    back = toy.read(tmp_path / "m")
    stored = dict(back.self_test)
    expected = stored.pop("output")
    assert stored.keys() == {"input.image", "input.modality"}
    assert torch.equal(stored["input.modality"], torch.tensor([0, 1]))
    example = {name.removeprefix("input."): value for name, value in stored.items()}
    # not the same bits: kernels depend on where weights lie in memory
    assert torch.allclose(back.network.respond(example), expected, atol=1e-5)
    assert torch.allclose(made(back.network)["output"], expected, atol=1e-5)
    found = compared(back.network, back.self_test, Path("f"))
    assert found.passed
    assert 0 <= found.largest < 1e-3
    with torch.no_grad():
        next(back.network.decoder.parameters()).mul_(2)
    assert not compared(back.network, back.self_test, Path("f")).passed
    assert compared(back.network, {**back.self_test, "output": expected[..., :1]}, Path("f")) == SelfTest(
        0.0, float("inf")
    )


def test_what_it_can_do_and_what_its_training_read_come_back(tmp_path: Path) -> None:
    network = ToyTokenizer(width=2)
    digest = write(tmp_path / "m", network, frozen={"perceptual": "f" * 64})
    back = toy.read(tmp_path / "m")
    assert back.frozen == {"perceptual": "f" * 64}
    assert back.capabilities == {
        "family": "tokenizer",
        "translates": True,
        **network.capabilities((16, 16, 16)),
    }
    assert [back.capabilities[key] for key in ("contrasts", "grid", "latent", "bits_per_voxel")] == [
        ["T1w", "T2w"], [16, 16, 16], [2, 8, 8, 8], network.bits((16, 16, 16)) / 16**3
    ]  # fmt: skip
    assert back.images == Images()
    assert write(tmp_path / "without", network, styles={}) != digest  # it stands for the whole folder
    without = toy.read(tmp_path / "without")
    assert (without.frozen, without.capabilities["translates"]) == ({}, False)


def test_what_a_latent_depends_on_includes_what_the_images_are(tmp_path: Path) -> None:
    digests = {write(tmp_path / str(i), images=images) for i, images in enumerate((Images(), MASKS))}
    assert len(digests) == 2
    assert toy.read(tmp_path / "1").images == MASKS


def test_another_kind_of_network_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "m")
    with pytest.raises(InputError, match="'ToyTokenizer' is a tokenizer, no segmenter"):
        read_folder(tmp_path / "m", Segmenter)


LATENTS = Images("latents", tokenizer="0123456789abcdef")


@pytest.mark.parametrize(
    ("images", "space", "text"),
    [
        (Images(), "masks", "it reads scans, not masks"),
        (Images(), "latents", "it reads scans, not latents"),
        (MASKS, "voxels", r"was trained on masks: .*--shards"),
        (LATENTS, "voxels", "it reads latents of model 0123456789ab, not scans"),
    ],
)
def test_a_model_is_given_images_of_its_own_space_alone(images: Images, space: str, text: str) -> None:
    content = ModelFolder(ToyTokenizer(), PREPARATION, ("", frozenset()), "", "", images)
    check_usable(content, Path("m"), images.space)
    with pytest.raises(InputError, match=text) as error:
        check_usable(content, Path("m"), space)
    assert error.value.file == Path("m")


def test_a_model_whose_codebook_has_not_started_is_not_used(tmp_path: Path) -> None:
    network = vqvae(EMAQuantizer(4, 3, start_after=9, reservoir=64))
    write(tmp_path / "m", network)
    assert config_of(tmp_path / "m")["unready"] == network.unready()
    with pytest.raises(InputError, match=r"it is not ready: the codebook has not started.*train for more steps.* 9 of"):
        check_usable(toy.read(tmp_path / "m"), tmp_path / "m")
    network.quantizer.reservoir.mark_started()
    assert network.unready() == ""
    write(tmp_path / "started", network)
    check_usable(toy.read(tmp_path / "started"), tmp_path / "started")


@pytest.mark.parametrize(
    "change",
    [{"stats": {"mean": [0.0], "card": "x" * 65 * 2**20}}, {"styles": {"T1w/" + "a" * 300: torch.zeros(2)}},
     {"styles": {"T1w/all/mean": torch.tensor([float("nan"), 0.0])}}],
)  # fmt: skip
def test_what_reading_refuses_is_not_written(tmp_path: Path, change: dict[str, object]) -> None:
    with pytest.raises(InputError, match="would be refused when it is read"):
        write(tmp_path / "model", **change)
    assert names(tmp_path) == []
    digest = write(tmp_path / "model")
    with pytest.raises(InputError, match="would be refused when it is read"):
        write(tmp_path / "model", **change, overwrite=True)
    assert read_folder(tmp_path / "model", Tokenizer).digest == digest
