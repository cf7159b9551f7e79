import json
import os

import numpy as np
import pytest
import safetensors.torch
import torch

from neurotome.errors import InputError
from neurotome.files.tensors import map_tensors, metadata_of, read_bounded, read_header, read_tensors

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "half": torch.ones(3).half(), "yes": torch.tensor([True, False])}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors.torch.save(TENSORS, {"key": "value"}))
    return path


def test_all_ways_of_reading_agree(file):
    data = read_bounded(file, 10_000)
    header, raw, start = read_header(file)
    assert raw == data[8:start]
    assert header["__metadata__"] == metadata_of(file) == metadata_of(file, data) == {"key": "value"}
    mapped, loaded = map_tensors(file), read_tensors(data, file)
    assert mapped.keys() == loaded.keys() == TENSORS.keys()
    for name, value in TENSORS.items():
        assert torch.equal(loaded[name], value)
        np.testing.assert_array_equal(mapped[name], value.numpy())
        assert mapped[name].dtype == value.numpy().dtype


def test_a_file_without_metadata_has_none(file):
    file.write_bytes(safetensors.torch.save(TENSORS))
    assert metadata_of(file) == {}


def test_only_regular_files_up_to_a_limit_are_read(tmp_path, file):
    with pytest.raises(InputError, match="admissible are 10"):
        read_bounded(file, 10)
    os.mkfifo(tmp_path / "pipe")
    for path, says in ((tmp_path / "pipe", "not a regular file"), (tmp_path, "not a regular file"),
                       (tmp_path / "none", "cannot be read")):  # fmt: skip
        with pytest.raises(InputError, match=says):
            read_bounded(path, 10)


@pytest.mark.parametrize(
    ("header", "says"),
    [(b"[]", "not a JSON object"), (b"{", "not JSON"), (b"[" * 100_000, "not JSON"), (None, "claims")],
)  # fmt: skip
def test_a_header_that_is_none_is_refused(file, header, says):
    data = (1 << 40).to_bytes(8, "little") + bytes(50) if header is None else len(header).to_bytes(8, "little") + header
    file.write_bytes(data)
    for read in (read_header, metadata_of, map_tensors):
        with pytest.raises(InputError, match=says):
            read(file)
    with pytest.raises(InputError):
        metadata_of(file, data)
    with pytest.raises(InputError, match="not a safetensors file"):
        read_tensors(data, file)


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"a\nb": torch.zeros(1)}, "tensor name"),
        ({"a": torch.tensor([1.0, torch.nan])}, "NaN or infinity"),
        ({"a": torch.tensor([torch.inf]).half()}, "NaN or infinity"),
        ({"a": torch.ones(2).to(torch.float8_e4m3fn)}, "float8_e4m3fn, admissible"),
        ({"a": torch.ones(2, dtype=torch.complex64)}, "complex64, admissible"),
    ],
)
def test_odd_names_and_values_are_refused(file, tensors, says):
    with pytest.raises(InputError, match=says) as refused:
        read_tensors(safetensors.torch.save(tensors), file, "train it again")
    assert refused.value.remedy == "train it again"
    assert (
        read_tensors(safetensors.torch.save({"a": torch.zeros(0), "b": torch.arange(2)}), file)["b"].dtype
        == torch.int64
    )


def test_the_header_is_checked_against_the_file(file):
    header = json.dumps({"a": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(2))
    with pytest.raises(InputError, match="tensor a"):
        map_tensors(file)


@pytest.mark.parametrize(
    ("shape", "offsets"),
    [
        ("[Infinity]", "[0, 4]"),
        ("[1e400]", "[0, 4]"),
        ("[1]", "[0, Infinity]"),
        ("[100000000000000000000, 0]", "[0, 0]"),
    ],
)
def test_sizes_that_no_file_has_are_refused(file, shape, offsets):
    header = f'{{"a": {{"dtype": "F32", "shape": {shape}, "data_offsets": {offsets}}}}}'.encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(InputError, match=r"not JSON|tensor a") as refused:
        map_tensors(file)
    assert refused.value.file == file


def test_too_many_tensors_are_refused(file, monkeypatch):
    monkeypatch.setattr("neurotome.files.tensors.MAX_TENSORS", 2)
    with pytest.raises(InputError, match="3 tensors are not admissible"):
        read_tensors(file.read_bytes(), file)


def test_metadata_that_is_no_object_is_none(file):
    header = b'{"__metadata__": 3}'
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    assert metadata_of(file) == {}
