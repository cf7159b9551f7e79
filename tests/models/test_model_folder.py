import hashlib
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from neurotome.errors import InputError, UsageError
from neurotome.models import folder as model_folder
from neurotome.models.folder import (
    FILES,
    public_classes,
    read_bounded,
    read_model_folder,
    subject_hash,
    write_model_folder,
)
from neurotome.tokenizers import NeuroQuant
from neurotome.tokenizers.base import Tokenizer
from tests.toy import ToyTokenizer, names

pytestmark = pytest.mark.usefixtures("toys")


def write(folder: Path, network: Tokenizer | None = None, **changes: object) -> str:
    arguments = {
        "preparation": {"spacing_mm": 3.0},
        "stats": {"mean": [0.0]},
        "styles": {"T1w/all/mean": torch.tensor([0.5, 0.0])},
        "subjects": ["01", "02"],
        "card": "a card",
        **changes,
    }
    return write_model_folder(folder, network or ToyTokenizer(width=2, gains=(0.5, 1.5)), **arguments)  # type: ignore[arg-type]


def config_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def rewrite(folder: Path, **changes: object) -> None:
    (folder / "config.json").write_text(json.dumps({**config_of(folder), **changes}))


def replace_file(folder: Path, name: str, data: bytes) -> None:
    """Put other bytes in place and make the hashes agree: what a forger would do."""
    (folder / name).write_bytes(data)
    rewrite(folder, sha256={**config_of(folder)["sha256"], name: hashlib.sha256(data).hexdigest()})


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    network = ToyTokenizer(width=2, gains=(0.5, 1.5))
    with torch.no_grad():
        network.weight.copy_(torch.tensor([0.25, -3.0]))
    digest = write(tmp_path / "m", network)
    back = read_model_folder(tmp_path / "m")
    assert back.digest == digest
    assert torch.equal(back.network.weight, network.weight)
    assert back.network.arguments == {**network.arguments, "gains": (0.5, 1.5), "modalities": ("T1w", "T2w")}
    assert (back.preparation, back.stats, back.card) == ({"spacing_mm": 3.0}, {"mean": [0.0]}, "a card")
    assert torch.equal(back.styles["T1w/all/mean"], torch.tensor([0.5, 0.0]))
    assert not back.network.training
    assert not any(p.requires_grad for p in back.network.parameters())
    assert names(tmp_path) == ["m"]


def test_equal_models_give_equal_bytes_and_the_digest_is_that_of_weights_and_preparation(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a"), write(tmp_path / "b")
    assert first == second
    for name in (*FILES, "config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert write(tmp_path / "c", card="another") == first
    assert write(tmp_path / "d", preparation={"spacing_mm": 2.0}) != first
    assert write(tmp_path / "e", ToyTokenizer(width=2, gains=(0.6, 1.5))) != first


@pytest.mark.parametrize("name", FILES)
def test_any_flipped_bit_is_noticed(tmp_path: Path, name: str) -> None:
    write(tmp_path / "m")
    file = tmp_path / "m" / name
    data = file.read_bytes()
    rng = np.random.default_rng(0)
    for place in {0, len(data) - 1, *rng.integers(0, len(data), 12).tolist()}:
        changed = bytearray(data)
        changed[place] ^= 1 << int(rng.integers(8))
        file.write_bytes(changed)
        with pytest.raises(InputError, match=r"not what config\.json promises") as error:
            read_model_folder(tmp_path / "m")
        assert error.value.file == file
        assert error.value.remedy


def test_reading_draws_no_random_number(tmp_path: Path) -> None:
    small = {"channels": (8, 8), "attention_levels": (False, False), "num_codes": 8, "num_heads": 1, "norm_groups": 4}
    write(tmp_path / "m", NeuroQuant(**small))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    network = read_model_folder(tmp_path / "m").network
    assert torch.equal(torch.rand(3), expected)
    assert not any(key.startswith("adversary") for key in load_file(tmp_path / "m" / "model.safetensors"))
    assert isinstance(network, NeuroQuant)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"format_version": 2}, "newer"),
        ({"format_version": None}, "no format_version"),
        ({"format_version": "1"}, "no format_version"),
        ({"class": "os.system"}, "not a public tokenizer"),
        ({"class": "Tokenizer"}, "not a public tokenizer"),
        ({"class": "Encoded"}, "not a public tokenizer"),
        ({"class": "neurotome.tokenizers.NeuroQuant"}, "not a public tokenizer"),
        ({"class": ["ToyTokenizer"]}, "class"),
        ({"class": "NeuroQuant"}, "do not fit"),
        ({"arguments": {"width": 3}}, "weights do not fit"),
        ({"arguments": {"width": 10**13}}, "do not fit"),
        ({"arguments": {"width": 0}}, "give a whole number > 0"),
        ({"arguments": {"breadth": 2}}, "breadth"),
        ({"modalities": ["T1w"]}, "modalities"),
        ({"training_subjects": {"salt": "x"}}, "training_subjects"),
        ({"sha256": {}}, "sha256"),
    ],
)
def test_a_config_that_lies_is_refused(tmp_path: Path, changes: dict, text: str) -> None:
    write(tmp_path / "m")
    rewrite(tmp_path / "m", **changes)
    with pytest.raises(InputError, match=text) as error:
        read_model_folder(tmp_path / "m")
    assert error.value.file == tmp_path / "m" / "config.json"


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"[" * 100_000, b"\xff\xfe"])
def test_a_config_that_is_no_json_object_is_refused(tmp_path: Path, content: bytes) -> None:
    write(tmp_path / "m")
    (tmp_path / "m" / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=r"config\.json"):
        read_model_folder(tmp_path / "m")


class Evil:
    def __reduce__(self) -> tuple:
        return os.mkdir, (str(Path(os.environ["CANARY"])),)


def test_a_pickle_under_another_name_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARY", str(tmp_path / "canary"))
    write(tmp_path / "m")
    for name in ("model.safetensors", "styles.safetensors"):
        copy = tmp_path / name
        shutil.copytree(tmp_path / "m", copy)
        replace_file(copy, name, pickle.dumps(Evil()))
        with pytest.raises(InputError, match="not a safetensors file"):
            read_model_folder(copy)
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
        read_model_folder(tmp_path / "m")


def test_odd_tensor_names_and_missing_files_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "m")
    save_file({"a b\x1b[2J": torch.zeros(1)}, tmp_path / "forged")
    replace_file(tmp_path / "m", "styles.safetensors", (tmp_path / "forged").read_bytes())
    with pytest.raises(InputError, match="tensor name") as error:
        read_model_folder(tmp_path / "m")
    assert "\x1b" not in str(error.value)
    (tmp_path / "m" / "README.md").unlink()
    with pytest.raises(InputError, match="cannot be read"):
        read_model_folder(tmp_path / "m")
    with pytest.raises(UsageError, match="no such model folder"):
        read_model_folder(tmp_path / "nothing")


def test_pipes_folders_and_giants_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="not a regular file"):
        read_bounded(tmp_path / "pipe", 10)
    with pytest.raises(InputError):
        read_bounded(tmp_path, 10)
    (tmp_path / "large").write_bytes(bytes(11))
    with pytest.raises(InputError, match="11 bytes"):
        read_bounded(tmp_path / "large", 10)
    assert read_bounded(tmp_path / "large", 11) == bytes(11)


def test_a_folder_that_is_there_is_replaced_only_on_request(tmp_path: Path) -> None:
    write(tmp_path / "m", card="first")
    with pytest.raises(UsageError, match="--overwrite"):
        write(tmp_path / "m", card="second")
    write(tmp_path / "m", card="second", overwrite=True)
    assert read_model_folder(tmp_path / "m").card == "second"
    assert names(tmp_path) == ["m"]


def test_a_full_disk_leaves_the_old_folder_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "m", card="first")
    calls = []

    def full(handle: int) -> None:
        calls.append(handle)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(model_folder.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path / "m", card="second", overwrite=True)
    monkeypatch.undo()
    assert names(tmp_path) == ["m"]
    assert (tmp_path / "m" / "README.md").read_text() == "first"


def test_subjects_are_listed_as_hashes_with_a_salt_of_the_model(tmp_path: Path) -> None:
    write(tmp_path / "a", subjects=["DOE-JOHN"])
    write(tmp_path / "b", ToyTokenizer(width=2, gains=(3.0,)), subjects=["DOE-JOHN"])
    assert all(b"DOE" not in f.read_bytes() for f in (tmp_path / "a").iterdir())
    (salt, hashes), (other, others) = (read_model_folder(tmp_path / n).training_subjects for n in "ab")
    assert hashes == {subject_hash(salt, "DOE-JOHN")} == {hashlib.sha256(f"{salt}:DOE-JOHN".encode()).hexdigest()}
    assert salt != other
    assert hashes != others


def test_an_argument_that_json_cannot_hold_is_named(tmp_path: Path) -> None:
    for kind in (torch.zeros(1), float("nan"), {"a": 1}):
        network = ToyTokenizer(width=2)
        network.arguments["kind"] = kind
        with pytest.raises(UsageError, match="argument kind"):
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
