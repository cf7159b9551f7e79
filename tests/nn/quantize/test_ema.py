"""The quantizer: nearest code by brute force, averages by hand, revival that stays where it was put."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neurotome.nn.quantize.ema import EMAQuantizer
from neurotome.nn.quantize.search import kmeans, nearest_codes, straight_through


def started(num_codes=8, dim=3, **kwargs) -> EMAQuantizer:
    """A quantizer whose codebook is set, with counts of one."""
    torch.manual_seed(0)
    quantizer = EMAQuantizer(num_codes, dim, **kwargs)
    quantizer.start(torch.randn(num_codes, dim), torch.ones(num_codes))
    return quantizer


@given(n=st.integers(1, 70), k=st.integers(2, 20), d=st.integers(1, 5), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_nearest_code_by_brute_force(n, k, d, seed):
    g = torch.Generator().manual_seed(seed)
    vectors, codebook = torch.randn(n, d, generator=g), torch.randn(k, d, generator=g)
    expected = (vectors[:, None] - codebook[None]).square().sum(2).argmin(1)
    assert torch.equal(nearest_codes(vectors, codebook, distances=16 * k), expected)
    offset = torch.randn(k, generator=g)
    shifted = ((vectors[:, None] - codebook[None]).square().sum(2) + offset).argmin(1)
    assert torch.equal(nearest_codes(vectors, codebook, offset, distances=16 * k), shifted)
    assert torch.equal(nearest_codes(vectors, codebook, offset.expand(n, k), distances=16 * k), shifted)


def test_moving_averages_by_hand():
    quantizer = started(num_codes=2, dim=1, decay=0.5, revive_below=0)
    quantizer.start(torch.tensor([[0.0], [10.0]]), torch.tensor([4.0, 4.0]))
    quantizer(torch.tensor([1.0, 2.0, 12.0]).view(1, 1, 3, 1, 1))
    assert quantizer.counts.tolist() == [3.0, 2.5]  # (4 + 2) / 2, (4 + 1) / 2
    assert quantizer.codebook.flatten().tolist() == pytest.approx([(0 + 3) / 2 / 3.0, (40 + 12) / 2 / 2.5])


def test_straight_through_gradient_and_commitment():
    quantizer = started().eval()
    z = torch.randn(2, 3, 2, 2, 2, requires_grad=True)
    out = quantizer(z)
    weight = torch.randn_like(z)
    (grad,) = torch.autograd.grad((out.vectors * weight).sum(), z, retain_graph=True)
    assert torch.equal(grad, weight)
    (grad,) = torch.autograd.grad(out.terms["commitment"], z)
    assert torch.allclose(grad, 2 * (z - quantizer.lookup(out.codes)) / z.numel())
    assert torch.allclose(out.vectors, quantizer.lookup(out.codes), atol=1e-6)


def test_evaluation_is_inert():
    quantizer = started().eval()
    before = {k: v.clone() for k, v in quantizer.state_dict().items()}
    first, second = quantizer(torch.ones(1, 3, 2, 2, 2)), quantizer(torch.ones(1, 3, 2, 2, 2))
    assert torch.equal(first.codes[0], second.codes[0])
    assert all(torch.equal(v, before[k]) for k, v in quantizer.state_dict().items())


def test_revived_code_stays_where_it_was_put():
    """The published revival set the sum to the vector but the count to 0.1: the code landed ten times too far."""
    quantizer = started(num_codes=4, dim=2, decay=0.9)
    quantizer.start(torch.tensor([[0.0, 0], [1, 0], [0, 1], [9e3, 9e3]]), torch.tensor([50.0, 50, 50, 1e-3]))
    data = torch.randn(1, 2, 6, 6, 6)
    quantizer(data)
    revived = quantizer.codebook[3].clone()
    assert (data.flatten(2)[0].t() - revived).norm(dim=1).min() < 1e-5
    quantizer.train()
    elsewhere = quantizer.codebook[1].clone().view(1, 2, 1, 1, 1)  # no hit for the revived code
    assert quantizer(elsewhere).codes[0].item() == 1
    assert torch.allclose(quantizer.codebook[3], revived, rtol=1e-4)


def test_revival_does_not_blow_codes_up():
    torch.manual_seed(0)
    quantizer = EMAQuantizer(256, 8)
    for _ in range(60):
        quantizer(torch.randn(1, 8, 8, 8, 8))
    assert quantizer.codebook.norm(dim=1).median() < 5
    used = torch.cat([quantizer(torch.randn(1, 8, 8, 8, 8)).codes[0].flatten() for _ in range(10)])
    assert len(used.unique()) > 0.95 * 256


def test_a_code_that_nobody_visits_stays_where_it_was():
    """Sum and count fade together; divided by a smallest count, the code sank to the origin after 1500 steps."""
    quantizer = started(num_codes=2, dim=2, decay=0.9, revive_below=0)
    quantizer.start(torch.tensor([[0.0, 0.0], [3.0, 4.0]]), torch.ones(2))
    for _ in range(1200):
        quantizer(0.1 * torch.randn(1, 2, 2, 2, 2))
    assert torch.allclose(quantizer.codebook[1], torch.tensor([3.0, 4.0]), rtol=1e-3)
    quantizer(torch.tensor([3.0, 6.0]).view(1, 2, 1, 1, 1))  # and takes the next visitor as the others do
    assert torch.allclose(quantizer.codebook[1], torch.tensor([3.0, 6.0]), rtol=1e-3)


def test_a_codebook_waits_then_starts_from_the_data():
    quantizer = EMAQuantizer(16, 2, start_after=5, reservoir=64)
    for step in range(7):
        z = torch.randn(1, 2, 4, 4, 4) + 20
        out = quantizer(z)
        if not quantizer.started:
            assert torch.equal(out.vectors, z), step
    assert quantizer.started
    assert (quantizer.codebook.mean(0) - 20).abs().max() < 1


def test_statistics_are_single_precision_under_autocast():
    quantizer = started(num_codes=4, dim=2, decay=0.0, revive_below=0)
    with torch.autocast("cpu", torch.bfloat16):
        out = quantizer(torch.randn(1, 2, 10, 10, 10, dtype=torch.bfloat16))
    assert out.vectors.dtype == torch.float32
    # bfloat16 cannot count past 256
    assert quantizer.counts.sum() == 1000


def test_kmeans_finds_separate_clusters_and_refuses_too_few():
    torch.manual_seed(0)
    centres = torch.tensor([[0.0, 0], [10, 0], [0, 10]])
    data = (centres[:, None] + 0.1 * torch.randn(3, 50, 2)).flatten(0, 1)
    found, counts = kmeans(data, 3, rounds=20)
    assert torch.cdist(centres, found).min(1).values.max() < 0.2 or counts.max() > 50
    with pytest.raises(ValueError, match="fewer codes"):
        kmeans(data[:2], 3)


@pytest.mark.parametrize("bad", [{"num_codes": 1}, {"decay": 1.0}, {"reservoir": 2}, {"start_after": -1}])
def test_bad_arguments_are_named(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        EMAQuantizer(**({"num_codes": 8, "dim": 2} | bad))


def test_straight_through_has_the_gradient_of_the_textbook():
    g = torch.Generator().manual_seed(0)
    z, q, weight = (torch.randn(7, 3, generator=g, dtype=torch.float64) for _ in range(3))
    ours, textbook = z.clone().requires_grad_(), z.clone().requires_grad_()
    vectors, commitment = straight_through(ours, q)
    assert torch.equal(vectors, q)
    ((vectors * weight).sum() + 0.25 * commitment).backward()
    expected = (textbook - q).square().mean()
    (((textbook + (q - textbook).detach()) * weight).sum() + 0.25 * expected).backward()
    assert torch.allclose(commitment, expected)
    assert torch.allclose(ours.grad, textbook.grad)


def test_cells_that_are_not_coded_get_nothing_and_an_offset_is_its_image_s_own():
    quantizer = started(num_codes=6, dim=2).eval()
    z = torch.randn(3, 2, 3, 2, 2)
    where = torch.rand(3, 3, 2, 2) < 0.5
    where[1] = False
    offset = torch.randn(3, 6)
    found = quantizer(z, offset, where)
    for i in range(3):
        distance = (z[i].movedim(0, -1)[..., None, :] - quantizer.codebook).square().sum(-1) + offset[i]
        expected = torch.where(where[i], distance.argmin(-1), 0)
        assert torch.equal(found.codes[0][i], expected)
        vectors = quantizer.codebook[expected] * where[i][..., None]
        assert torch.allclose(found.vectors[i], vectors.movedim(-1, 0))


def test_a_quantizer_draws_when_its_network_asks_and_not_before():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    quantizer = EMAQuantizer(16, 3)
    assert torch.equal(torch.get_rng_state(), before)
    assert not quantizer.codebook.any()
    quantizer.draw()
    torch.manual_seed(0)
    assert torch.equal(quantizer.codebook, torch.randn(16, 3))
    assert torch.equal(quantizer.sums, quantizer.codebook)
