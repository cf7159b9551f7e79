"""The perceptual distance on a given network, and the files that hold one."""

import hashlib
import re
import sys
import types
from importlib import resources
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from neurotome.errors import InputError, UsageError
from neurotome.losses import perceptual
from neurotome.losses.perceptual import (
    FeatureExtractor,
    Perceptual,
    PerceptualLoss,
    SliceFeatures,
    read_features,
    write_features,
)


class Twice(FeatureExtractor):
    """Two levels: the slice and one minus it; counts what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Size] = []

    def forward(self, slices: torch.Tensor) -> list[torch.Tensor]:
        self.seen.append(slices.shape)
        return [torch.cat([slices, torch.ones_like(slices)], 1)]


def test_the_distance_by_hand():
    x, y = torch.rand(2, 1, 4, 6, 8), torch.rand(2, 1, 4, 6, 8)
    found = PerceptualLoss(Twice(), "", Perceptual(slices=1.0))(y, x)
    unit = [torch.stack([v, torch.ones_like(v)]) / (v.square() + 1).sqrt() for v in (x, y)]
    assert found.item() == pytest.approx((unit[0] - unit[1]).square().sum(0).mean().item(), rel=1e-4)
    assert PerceptualLoss(Twice(), "")(x, x).item() == 0


def test_channels_are_looked_at_one_by_one():
    x, y = torch.rand(2, 3, 4, 6, 8), torch.rand(2, 3, 4, 6, 8)
    loss = PerceptualLoss(Twice(), "", Perceptual(slices=1.0))
    alone = [loss(y[:, i : i + 1], x[:, i : i + 1]) for i in range(3)]
    assert torch.allclose(loss(y, x), torch.stack(alone).mean())


def test_a_share_of_the_slices_along_each_axis_and_a_slice_whole():
    network = Twice()
    PerceptualLoss(network, "", Perceptual(slices=0.25))(torch.rand(2, 1, 4, 8, 12), torch.rand(2, 1, 4, 8, 12))
    assert network.seen[::2] == [(2, 1, 8, 12, 1), (4, 1, 4, 12, 1), (6, 1, 4, 8, 1)]
    network = Twice()
    PerceptualLoss(network, "", Perceptual(slices=0.25, axes=(2,)))(*torch.rand(2, 2, 1, 4, 8, 12))
    assert network.seen == [(6, 1, 4, 8, 1)] * 2
    for shape, expected in (((1, 8, 12), (8, 12)), ((8, 1, 12), (8, 12)), ((8, 12, 1), (8, 12))):
        network = Twice()
        PerceptualLoss(network, "")(*torch.rand(2, 2, 1, *shape))
        assert network.seen == [(2, 1, *expected, 1)] * 2


def test_the_draw_is_the_generator_s():
    loss, (x, y) = PerceptualLoss(Twice(), ""), torch.rand(2, 1, 1, 16, 16, 16)
    values = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        values.append(loss(y, x).item())
    assert values[0] == values[1] != values[2]


def brain() -> torch.Tensor:
    grid = torch.stack(torch.meshgrid(*[torch.linspace(-1.2, 1.2, 40)] * 3, indexing="ij"))
    shells = torch.cos(9 * grid.square().sum(0).sqrt())
    return torch.where(grid.square().sum(0) < 1, shells, -1.0)[None, None]


def test_the_network_of_the_package_grows_with_damage_and_trains_a_generator():
    loss = Perceptual(slices=1.0).loss()
    x = brain()
    torch.manual_seed(0)
    noise = torch.randn_like(x)
    distances = [loss(x + s * noise, x).item() for s in (0.0, 0.05, 0.2)]
    assert 0 == distances[0] < distances[1] < distances[2]
    shifted = loss(x.roll(3, 2), x).item()
    assert shifted > loss(x.roll(1, 2), x).item() > 0
    y = (x + 0.1 * noise).requires_grad_()
    loss(y, x).backward()
    assert y.grad.abs().max() > 0
    assert not any(p.requires_grad for p in loss.network.parameters())


def test_the_recorded_hash_is_that_of_the_file_in_the_package():
    content = (resources.files("neurotome.losses") / perceptual.OWN_FILE).read_bytes()
    assert hashlib.sha256(content).hexdigest() == perceptual.OWN_SHA256 == Perceptual().loss().sha256
    assert len(content) < 200_000


def test_a_file_round_trip_and_what_is_refused(tmp_path: Path):
    torch.manual_seed(0)
    network, file = SliceFeatures((4, 6)), tmp_path / "f.safetensors"
    digest = write_features(file, network, {"task": "none"})
    loss = Perceptual(features=str(file), sha256=digest).loss()
    assert loss.sha256 == digest
    x = torch.rand(2, 1, 12, 12, 1)
    for a, b in zip(network(x), loss.network(x), strict=True):
        assert torch.allclose(a, b, atol=1e-2)  # stored in half precision
    with pytest.raises(InputError, match="its SHA-256 is"):
        read_features(file, "0" * 64)
    with pytest.raises(UsageError, match="no such file"):
        read_features(tmp_path / "none.safetensors")
    state = safetensors.torch.load_file(file)
    own = {"architecture": "slice-features", "in_channels": "1"}
    cases: list[tuple[dict[str, torch.Tensor], dict[str, str], str]] = [
        (state, {}, "architecture is None"),
        (state, {**own, "channels": "[4, 7]"}, "size mismatch"),
        (state, {**own, "channels": "oops"}, "not a file"),
        ({k: v * float("nan") for k, v in state.items()}, {**own, "channels": "[4, 6]"}, "NaN"),
    ]  # fmt: skip
    for tensors, metadata, words in cases:
        safetensors.torch.save_file(tensors, file, metadata)
        with pytest.raises(InputError, match=words):
            read_features(file)
    file.write_bytes(b"not tensors")
    with pytest.raises(InputError, match="not a file of perceptual features"):
        read_features(file)


def test_torchvision_is_asked_for_by_its_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    layers = nn.Sequential(*(nn.Conv2d(3 if i == 0 else 4, 4, 1) if i % 2 == 0 else nn.ReLU() for i in range(31)))
    file = tmp_path / "vgg.safetensors"
    state = {f"features.{k}": v for k, v in layers.state_dict().items()} | {"classifier.0.weight": torch.zeros(1)}
    safetensors.torch.save_file(state, file, {"architecture": "torchvision-vgg16"})
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with pytest.raises(UsageError, match="torchvision is not installed"):
        read_features(file)
    # a stand-in with as many layers: what is tested is that levels and weights go where they should
    fresh = nn.Sequential(*(nn.Conv2d(3 if i == 0 else 4, 4, 1) if i % 2 == 0 else nn.ReLU() for i in range(31)))
    stand_in = types.SimpleNamespace(vgg16=lambda weights: types.SimpleNamespace(features=fresh))
    monkeypatch.setitem(sys.modules, "torchvision.models", stand_in)
    network, _ = read_features(file)
    x = torch.rand(2, 1, 8, 8, 1) * 2 - 1
    levels = network(x)
    assert [tuple(v.shape) for v in levels] == [(2, 4, 8, 8, 1)] * 4
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    rgb = (((x[..., 0] + 1) / 2).expand(-1, 3, -1, -1) - mean) / deviation
    assert torch.allclose(levels[1][..., 0], layers[:9](rgb), atol=1e-6)


def test_torchvision_is_never_imported_otherwise(monkeypatch: pytest.MonkeyPatch):
    source = Path(perceptual.__file__).parents[1]
    assert not [
        f for f in source.rglob("*.py") if re.search(r"^\s*(import|from) torchvision", f.read_text(), re.MULTILINE)
    ]
    asked: list[str] = []
    spy = types.SimpleNamespace(find_spec=lambda name, path=None, target=None: asked.append(name))
    monkeypatch.setattr(sys, "meta_path", [spy, *sys.meta_path])
    loss = Perceptual().loss()
    loss(*torch.rand(2, 1, 1, 8, 8, 8))
    assert not [name for name in asked if name.startswith("torchvision")]


@pytest.mark.parametrize(
    "wrong", [{"weight": -1}, {"slices": 0}, {"slices": 1.5}, {"start": -1}, {"axes": ()}, {"axes": (3,)}]
)
def test_values_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="give"):
        Perceptual(**wrong)
