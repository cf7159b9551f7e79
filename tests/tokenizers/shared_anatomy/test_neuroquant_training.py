"""The objective by hand, missing views, slices, the alignment and what it may touch."""

from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from neurotome.losses.reconstruction import ReconstructionLoss
from neurotome.nn.quantize.search import nearest_codes
from neurotome.tokenizers.shared_anatomy.alignment import Alignment, balance, calibrate, code_logits, distance
from neurotome.tokenizers.shared_anatomy.neuroquant_training import NeuroQuantTraining, Ramp, Views
from neurotome.types import Batch
from tests.tokenizers.test_battery import aligned, image, neuroquant

L1 = ReconstructionLoss(l1_weight=1.0, ssim_weight=0.0)


def batch(present=((True, True), (True, True)), views: int = 2, axis: int | None = None) -> Batch:
    """Two sessions; the second is the first mirrored and darker."""
    x = image(3)
    if axis is not None:
        x = x.narrow(2 + axis, 8, 1)
    x = torch.cat([x, x[:1]])[:views]
    pair = torch.stack([x, (0.8 * (x + 1) - 1).flip(2)])
    here = torch.tensor(present)[:, :views]
    return Batch(
        image=pair * here[:, :, None, None, None, None],
        modality=torch.arange(views).expand(2, views).clone(),
        present=here,
        subject=("a", "b"),
        session=("1", "1"),
        site=torch.zeros(2, dtype=torch.long),
        mask=pair[:, 0] > -0.9,
    )


def method(make=neuroquant, start: bool = True, **kwargs) -> NeuroQuantTraining:
    torch.manual_seed(0)
    network = make()
    torch.nn.init.normal_(network.film.mlp[-1].weight, std=0.3)
    if start:
        for codebook in filter(None, (network.quantizer, network.private)):
            codebook.start(torch.randn(codebook.num_codes, codebook.dim) * 0.3, torch.full((codebook.num_codes,), 50.0))
            codebook.revive_below = 0.0
    made = NeuroQuantTraining(network, reconstruction=L1, **kwargs)
    made.max_steps = 10_000
    return made


def test_published_objective_by_hand():
    m = method(cross=Ramp(0.5), adversary=Ramp(0.001, start=0))
    m.step = 5000
    b = batch()
    state = {k: v.clone() for k, v in m.tokenizer.state_dict().items()}
    terms = m.loss(b)
    m.tokenizer.load_state_dict(state)
    x, ids = b.flat()
    e = m.tokenizer.encode(x, ids)
    own = F.l1_loss(m.tokenizer.decode(e, ids), x)
    swap = torch.tensor([1, 0, 3, 2])
    from dataclasses import replace

    cross = F.l1_loss(m.tokenizer.decode(replace(e, latent=e.latent[swap]), ids), x)
    logits = m.tokenizer.adversary(e.aux["anatomy"], 1.0)
    expected = own + 0.5 * cross + 0.25 * e.terms["commitment"] + 0.001 * F.cross_entropy(logits, ids)
    assert terms["loss"].item() == pytest.approx(expected.item(), rel=1e-4)
    assert terms["cross"].item() == pytest.approx(cross.item(), rel=1e-4)


def test_ramps_by_hand():
    w = Ramp(0.5, start=2000, length=2000)
    assert [w(0), w(1999), w(3999), w(9999)] == [0, 0, 0.5, 0.5]
    assert w(2999) == pytest.approx(0.25)
    with pytest.raises(ValueError, match="weight is -1"):
        Ramp(-1)


def test_terms_start_when_they_should():
    m = method()
    assert not {"cross", "adversary"} & set(m.loss(batch()))
    m.step = 3000
    assert "cross" in m.loss(batch())
    m.step = 6000
    assert {"cross", "adversary", "adversary_accuracy"} <= set(m.loss(batch()))


def test_a_missing_view_enters_nothing():
    m = method(cross=Ramp(0.5))
    m.tokenizer.eval()
    partial = batch(present=((True, True), (True, False)))
    loss = m.loss(partial)["loss"]
    poisoned = partial.image.clone()
    poisoned[1, 1] = 7.0
    from dataclasses import replace

    assert m.loss(replace(partial, image=poisoned))["loss"].item() == loss.item()
    lone = method(cross=Ramp(0.5)).loss(batch(present=((True, False), (False, True))))
    assert "cross" not in lone


@pytest.mark.parametrize("views", [1, 2, 3])
@pytest.mark.parametrize("swap", [None, 0.5])
def test_any_number_of_contrasts(views, swap):
    names = ("T1w", "T2w", "FLAIR")[:views]
    m = method(partial(neuroquant, modalities=names), swap_prob=swap, cross=Ramp(0.5))
    b = batch(present=((True,) * 3, (True,) * 3), views=views)
    m.loss(b)["loss"].backward()
    assert all(g.grad is not None for g in m.tokenizer.encoder.parameters())


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_count_reconstruction_alone(axis):
    m = method(cross=Ramp(0.5), adversary=Ramp(0.001), slice_weight=0.5)
    terms = m.loss(batch(axis=axis))
    assert not {"cross", "adversary"} & set(terms)
    expected = 0.5 * (terms["l1"] + 0.25 * terms["commitment"])
    assert terms["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_views_find_their_partners():
    b = batch(present=((True, True), (False, True)))
    views, (_, ids) = Views.of(b), b.flat()
    assert views.session.tolist() == [0, 0, 1]
    assert views.partner().tolist() == [1, 0, 2]
    assert views.canonical(ids, 0).tolist() == [0, 0, 2]
    three = Views(torch.tensor([0, 0, 0, 1, 1]), 2)
    assert three.partner().tolist() == [1, 2, 0, 4, 3]


def test_alignment_pulls_the_follower_and_never_the_leader():
    lead, follow = torch.randn(50, 3, requires_grad=True), torch.randn(50, 3, requires_grad=True)
    distance(follow, lead).backward()
    assert lead.grad is None
    expected = ((follow - lead) ** 2).sum(1).mean() / lead.var(0, correction=0).sum()
    assert distance(follow, lead).item() == pytest.approx(expected.item(), rel=1e-5)


def test_alignment_terms_and_logits():
    m = method(aligned, swap_prob=0.5, alignment=Alignment(ramp_fraction=0.0, calibration_rate=0.5))
    terms = m.loss(batch())
    assert {"align_distance", "align_index", "align_agreement"} <= set(terms)
    terms["loss"].backward()
    assert m.tokenizer.offset[0].abs().sum() == 0  # the canonical contrast has no offset
    assert m.tokenizer.offset[1].abs().sum() > 0
    z, codebook, offset = torch.randn(5, 4), torch.randn(7, 4), torch.randn(5, 7)
    by_hand = -((z[:, None] - codebook[None]).square().sum(2) + offset) / 2
    assert torch.allclose(code_logits(z, codebook, offset, torch.tensor(2.0)), by_hand, atol=1e-5)


def test_alignment_is_in_single_precision_under_autocast(monkeypatch):
    from neurotome.tokenizers.shared_anatomy import aligned_training

    seen = []

    def spy(*args):
        seen.append(code_logits(*args))
        return seen[-1]

    monkeypatch.setattr(aligned_training, "code_logits", spy)
    m = method(aligned, swap_prob=0.5, alignment=Alignment(ramp_fraction=0.0))
    with torch.autocast("cpu", torch.bfloat16):
        m.loss(batch())
    assert seen[0].dtype == torch.float32


def test_calibration_makes_a_dear_code_of_one_used_too_often():
    offset, seen = torch.zeros(3), torch.zeros(2, 3)
    follower, leader = torch.tensor([0] * 90 + [1] * 10), torch.tensor([0] * 50 + [1] * 50)
    for _ in range(200):
        calibrate(offset, seen, follower, leader, 0.1, torch.tensor(1.0))
    assert offset[0] > 0 > offset[1]
    assert offset.abs().max() <= 3


def test_balance_equalises_the_histograms_of_a_shrunken_follower():
    """A follower that regresses to the mean over-uses central codes; offsets undo it without touching the vectors."""
    torch.manual_seed(0)
    leader = torch.randn(20_000, 2)
    follower = 0.7 * leader + 0.3 * torch.randn(20_000, 2)
    codebook, offset = leader[:16].clone(), torch.zeros(16)
    codes = nearest_codes(leader, codebook)
    taken = nearest_codes(follower, codebook)
    before = (torch.bincount(codes, minlength=16) - torch.bincount(taken, minlength=16)).abs().sum() / 40_000
    left = balance(offset, codebook, follower, leader)
    assert left < 0.2 * before
    assert (nearest_codes(follower, codebook, offset) == codes).float().mean() > 0.95 * (taken == codes).float().mean()


def test_finish_sets_offsets_and_leaves_parameters_alone():
    m = method(aligned, swap_prob=0.5, alignment=Alignment())
    before = {k: v.clone() for k, v in m.named_parameters()}
    m.finish([batch(), batch()])
    assert m.tokenizer.offset[0].abs().sum() == 0
    assert m.tokenizer.offset[1].abs().sum() > 0
    assert all(torch.equal(v, before[k]) for k, v in m.named_parameters())


def test_private_codes_stay_home():
    """What is decoded from a foreign code never sees the other contrast's private codes."""
    m = method(aligned, swap_prob=1.0, private_drop=0.0)
    seen = []
    m.tokenizer.decoder.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    m.loss(batch())
    assert not seen[0][:, 4:].any()
    own = method(aligned, swap_prob=0.0, private_drop=0.0)
    own.tokenizer.decoder.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    own.loss(batch())
    assert seen[1][:, 4:].any()


@pytest.mark.parametrize("dims", [2, 3])
def test_one_step_changes_what_it_should(dims):
    m = method(partial(aligned, dims), swap_prob=0.5, alignment=Alignment(ramp_fraction=0.0))
    b = batch() if dims == 3 else batch(axis=2)
    before = {k: v.clone() for k, v in m.tokenizer.state_dict().items()}
    optimizer = torch.optim.SGD(m.parameters(), lr=0.1)
    m.loss(b)["loss"].backward()
    optimizer.step()
    moved = {k for k, v in m.tokenizer.state_dict().items() if not torch.equal(v, before[k])}
    assert {"encoder.conv_in.weight", "decoder.conv_out.weight", "quantizer.codebook", "quantizer.counts"} <= moved
    assert not {k for k in moved if k.startswith("adversary")}


def test_validation_reports_each_contrast():
    m = method()
    m.tokenizer.eval()
    with torch.no_grad():
        found = m.validate(batch())
        use = m.finish_validation()
    assert set(found) == {f"{kind}/{name}" for kind in ("psnr", "psnr_swapped") for name in ("T1w", "T2w")}
    assert 0 < use["codebook/utilisation/anatomy"] <= 1


def test_books_and_the_worst_batch_are_watched():
    m = method()
    m.max_steps = 1
    terms = m.loss(batch())
    assert {"codebook/utilisation/anatomy", "codebook/alarm/anatomy"} <= terms.keys()
    images, entries = m.panels()
    assert entries[0]["subject"] in batch().subject
    assert torch.isfinite(next(iter(images.values()))).all()


def test_a_canonical_contrast_that_is_not_there_is_named_with_its_key():
    with pytest.raises(ValueError, match=r"alignment\.canonical is PDw.*--method\.alignment\.canonical T1w"):
        method(alignment=Alignment(canonical="PDw"))


def test_the_index_loss_aims_at_the_leaders_codes_and_leaves_the_leader_alone():
    m = method(aligned, swap_prob=0.5, alignment=Alignment(ramp_fraction=0.0, calibration_rate=0.0))
    given = batch()
    image, modality = given.flat()
    views = Views.of(given)
    encoded = m.tokenizer.encode(image, modality)
    z = encoded.aux["anatomy"].detach().clone().requires_grad_()  # views: T1w, T2w, T1w, T2w
    terms: dict[str, torch.Tensor] = {}
    loss = m.aligned(given, replace(encoded, aux={"anatomy": z}), modality, views, terms)
    loss.backward()
    assert z.grad[[0, 2]].abs().sum() == 0  # the canonical contrast leads
    assert z.grad[[1, 3]].abs().sum() > 0
    cells = m._foreground(given, encoded)[0::2] & m._foreground(given, encoded)[1::2]
    rows = z.detach().movedim(1, -1)
    codes = encoded.codes["anatomy"]
    lead, follow = rows[0::2][cells], rows[1::2][cells]
    codebook = m.tokenizer.quantizer.codebook
    tau = (lead - codebook[codes[0::2][cells]]).square().sum(1).mean()
    by_hand = {
        side: F.cross_entropy(-torch.cdist(follow, codebook).square() / tau, codes[side::2][cells]).item()
        for side in (0, 1)
    }
    assert terms["align_index"].item() == pytest.approx(by_hand[0], rel=1e-3)
    assert abs(by_hand[0] - by_hand[1]) > 0.1
