"""Anatome: background, detail, bits, and how its base is trained."""

import math
from dataclasses import replace

import pytest
import torch

from neurotome.nn.quantize.ema import EMAQuantizer
from neurotome.tokenizers import Anatome, AnatomeTraining
from neurotome.tokenizers.base import Encoded
from neurotome.tokenizers.shared_anatomy.aligned_training import Views
from neurotome.tokenizers.shared_anatomy.alignment import Alignment, distance
from neurotome.tokenizers.shared_anatomy.anatome import AnatomeAppearance, AnatomeTrunk
from neurotome.types import Batch

IDS = torch.tensor([0, 1])


def scans() -> torch.Tensor:
    """Two contrasts of a brain that fills a corner of the box: 5 of 8 voxels along each axis."""
    x = torch.full((2, 1, 8, 8, 8), -1.0)
    x[:, :, :5, :5, :5] = torch.rand(1, 1, 5, 5, 5).mul(1.5).sub(0.9).expand(2, 1, 5, 5, 5)
    x[1] = torch.where(x[1] > -0.95, 0.6 - x[1], x[1])
    return x


def small(**codebooks) -> Anatome:
    torch.manual_seed(0)
    return Anatome(
        trunk=AnatomeTrunk(channels=(8,)),
        appearance=AnatomeAppearance(channels=4, stages=(8,), embedding_channels=4, film_hidden=8),
        quantizer=EMAQuantizer(16, 4, 0.98, 0.05, **codebooks),
        detail_quantizer=EMAQuantizer(32, 3, 0.98, 0.05, **codebooks),
        detail_width=4,
    )


@pytest.fixture
def tokenizer():
    return small().eval()


def test_only_cells_with_tissue_are_coded_and_the_rest_is_decoded_to_background(tokenizer):
    encoded = tokenizer.encode(scans(), IDS)
    tissue = torch.zeros(2, 4, 4, 4, dtype=torch.bool)
    tissue[:, :3, :3, :3] = True
    assert torch.equal(encoded.codes["tissue"].bool(), tissue)
    assert torch.equal((encoded.latent != 0).any(dim=1), tissue)
    assert bool((encoded.latent[:, tokenizer.anatomy_channels :] != 0).all(dim=1).eq(tissue).all())
    for image in (tokenizer.decode(encoded, IDS), tokenizer.decode(tokenizer.shared(encoded), IDS)):
        background = ~tissue[:, None].repeat_interleave(2, 2).repeat_interleave(2, 3).repeat_interleave(2, 4)
        assert bool((image[background] == -1).all())


def test_bits_are_counted_by_hand(tokenizer):
    encoded = tokenizer.encode(scans(), IDS)
    per_cell, style = math.log2(16) + math.log2(32), 16 * 4
    assert tokenizer.bits_used(encoded).tolist() == [64 + 27 * per_cell + style] * 2
    assert tokenizer.bits_used(tokenizer.shared(encoded)).tolist() == [64 + 27 * 4 + style] * 2
    assert tokenizer.bits((8, 8, 8)) == 64 + 64 * per_cell + style
    full = tokenizer.encode(torch.rand(2, 1, 8, 8, 8), IDS)
    assert tokenizer.bits_used(full).tolist() == [tokenizer.bits((8, 8, 8))] * 2


def test_without_detail_the_image_is_the_base(tokenizer):
    encoded = tokenizer.encode(scans(), IDS)
    base, refined = tokenizer.decode_both(encoded, IDS)
    assert not torch.allclose(base, refined)
    assert torch.equal(tokenizer.decode(tokenizer.shared(encoded), IDS), base)
    assert "detail" not in tokenizer.shared(encoded).codes
    assert "detail" in encoded.codes


def test_the_codes_give_the_latent_and_the_latent_the_image(tokenizer):
    encoded = tokenizer.encode(scans(), IDS)
    anatomy = tokenizer.quantizer.lookup([encoded.codes["anatomy"]])
    detail = tokenizer.detail_quantizer.lookup([encoded.codes["detail"]])
    latent = torch.cat([anatomy, detail], dim=1) * encoded.codes["tissue"][:, None]
    assert torch.allclose(latent, encoded.latent, atol=1e-6)
    alone = Encoded(latent, {}, encoded.style, {}, encoded.shape)
    assert torch.allclose(tokenizer.decode(alone, IDS), tokenizer.decode(encoded, IDS), atol=1e-5)


def test_where_the_source_holds_background_a_translation_does_also_in_training(tokenizer):
    x = scans()
    x[0, :, :2, :2, :2] = -1.0  # dark in the first contrast alone
    encoded = tokenizer.train().encode(x, IDS)
    n = tokenizer.anatomy_channels
    mixed = torch.cat([encoded.latent[[0, 0], :n], encoded.latent[:, n:]], dim=1)
    for image in tokenizer.decode_both(replace(encoded, latent=mixed), IDS):
        assert bool((image[:, :, :2, :2, :2] == -1).all())


def test_cells_without_a_code_are_neither_pulled_nor_counted():
    method = training()
    one = batch()
    one.image[:, 0, :, :2, :2, :2] = -1.0  # the canonical contrast is background there, inside the brain mask
    encoded = method.tokenizer.encode(*one.flat())
    foreground = method._foreground(one, encoded)
    assert not foreground[0, 0, 0, 0]
    assert foreground[1, 0, 0, 0]
    encoded.aux["anatomy"].retain_grad()
    method.step = method.max_steps
    method.aligned(one, encoded, one.flat()[1], Views.of(one), {}).backward()
    z = encoded.aux["anatomy"].grad
    assert not z[1, :, 0, 0, 0].any()
    assert z[1].any()


def test_one_foreground_cell_gives_a_finite_distance():
    assert float(distance(torch.ones(1, 4), torch.zeros(1, 4))) > 0
    assert torch.isfinite(distance(torch.ones(1, 4), torch.zeros(1, 4)))


def test_both_codebooks_follow_the_data_and_are_paid_for():
    tokenizer = small(start_after=1, reservoir=40)
    assert tokenizer.encode(scans(), IDS).terms["commitment"] == 0  # neither has started
    encoded = tokenizer.encode(scans(), IDS)
    assert tokenizer.quantizer.started
    assert tokenizer.detail_quantizer.started
    anatomy = encoded.aux["anatomy"].movedim(1, -1)[encoded.codes["tissue"].bool()]
    quantised = tokenizer.anatomy(encoded).movedim(1, -1)[encoded.codes["tissue"].bool()]
    own = (anatomy - quantised).square().mean()
    assert encoded.terms["commitment"] > own > 0


def batch() -> Batch:
    x = torch.stack([scans(), scans().flip(2)])
    mask = (x[:, 0] > -0.95).any(dim=1, keepdim=True)
    return Batch(
        x, IDS.expand(2, 2), torch.ones(2, 2, dtype=torch.bool), ("a", "b"), ("", ""),
        torch.zeros(2, dtype=torch.long), mask,
    )  # fmt: skip


def training(**changes) -> AnatomeTraining:
    alignment = Alignment(one_way_prob=changes.pop("one_way_prob", 0.0))
    return AnatomeTraining(small(), alignment=alignment, **changes).train()


def test_the_base_is_trained_on_foreign_anatomy_and_the_refined_image_on_the_own_detail(monkeypatch):
    method = training(swap_prob=1.0)
    seen = []
    decode = Anatome.decode_both
    monkeypatch.setattr(Anatome, "decode_both", lambda self, e, m: seen.append(e) or decode(self, e, m))
    torch.manual_seed(1)
    method.loss(batch())
    torch.manual_seed(1)
    encoded = method.tokenizer.encode(*batch().flat())
    n = method.tokenizer.anatomy_channels
    swapped = encoded.take(torch.tensor([1, 0, 3, 2]))
    assert torch.allclose(seen[0].latent[:, :n], swapped.latent[:, :n], atol=1e-5)
    assert torch.allclose(seen[0].latent[:, n:], encoded.latent[:, n:], atol=1e-5)


def test_the_base_loss_reaches_no_weight_of_the_detail():
    method = training(base_weight=1.0)
    terms = method.loss(batch())
    weights = dict(method.tokenizer.named_parameters())
    detail = [name for name in weights if name.startswith(("detail_", "refine_"))]
    gradients = torch.autograd.grad(terms["base"], [weights[n] for n in detail], retain_graph=True, allow_unused=True)
    assert detail
    assert all(g is None or not g.any() for g in gradients)
    reached = torch.autograd.grad(terms["loss"], [weights[n] for n in detail], allow_unused=True)
    unreached = [name for name, g in zip(detail, reached, strict=True) if g is None or not g.any()]
    # the last convolution of a residual block starts at zero, so nothing reaches the one before it yet
    assert [name for name in unreached if "conv1" not in name] == []


def test_the_canonical_contrast_leads_every_view_in_a_one_way_step():
    method = training(one_way_prob=1.0)
    source = method.drawn(torch.tensor([0, 1, 0, 1]), Views.of(batch()), 0.0)
    assert source.tolist() == [0, 0, 2, 2]


def test_values_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"swap_prob is 1\.5"):
        training(swap_prob=1.5)


def test_background_alone_has_no_code_and_is_decoded_to_background(tokenizer):
    x = torch.full((2, 1, 8, 8, 8), -1.0)
    encoded = tokenizer.encode(x, IDS)
    assert not encoded.codes["tissue"].any()
    assert torch.equal(tokenizer.decode(encoded, IDS), x)
    assert tokenizer.bits_used(encoded).tolist() == [64 + 64] * 2


def test_a_slice_goes_through_the_network_of_a_volume(tokenizer):
    x = scans()[..., 2:3]
    encoded = tokenizer.encode(x, IDS)
    assert encoded.codes["tissue"].shape == (2, 4, 4, 1)
    assert tokenizer.decode(encoded, IDS).shape == x.shape


@pytest.mark.parametrize(
    ("group", "arguments", "match"),
    [
        (AnatomeTrunk, {"downsample": (True,)}, "give False for every stage"),
        (AnatomeTrunk, {"channels": (8, 8)}, "channels has 2 levels"),
        (AnatomeAppearance, {"film_sites": "none"}, "film_sites is none"),
        (AnatomeAppearance, {"foreground_above": None}, "foreground_above None"),
        (AnatomeAppearance, {"gain_factor": 2}, "gain_factor 2"),
    ],
)
def test_sizes_that_this_network_does_not_have_are_refused(group, arguments, match):
    with pytest.raises(ValueError, match=match):
        group(**arguments)
