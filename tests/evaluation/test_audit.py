import numpy as np
import pytest
import torch

from neurotome.evaluation import audit as audit_module
from neurotome.evaluation.audit import ScanCode, audit, scan_codes
from neurotome.evaluation.factors import factors
from neurotome.evaluation.results import codebook_tree, finite, image_metrics
from neurotome.metrics.codebook import brain_cells
from neurotome.tokenizers.base import Encoded


def scans(n=8, leak=0.0, start=0, seed=0):
    """Return two contrasts of ``n`` subjects whose vectors differ by ``leak`` times the contrast."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(start, start + n):
        shared = torch.from_numpy(rng.normal(size=(300, 3))).float()
        for k, modality in enumerate(("T1w", "T2w")):
            vectors = shared + torch.tensor([leak * k, 0.0, 0.0])
            codes = (vectors[:, 0] > 0).long() + 2 * (vectors[:, 1] > 0).long()
            style = torch.tensor([float(k), float(i % 2), float(i)])
            found.append(ScanCode(f"{i}", "", modality, "AB"[i % 2], vectors, vectors.mean(0), style, codes, 0.9))
    return found


def test_nothing_leaks_from_shared_codes():
    result = audit(scans(), scans(4, start=8, seed=1), ("T1w", "T2w"))
    assert result["code_gap"]["mean"] == 0
    assert result["agreement"]["agreement"]["mean"] == 1
    assert result["agreement"]["chance"] == pytest.approx(0.25, abs=0.02)
    assert result["agreement"]["self_agreement"] == pytest.approx(0.9)
    assert result["probes"]["token_vector"] == pytest.approx(0.5, abs=0.03)
    assert result["probes"]["token_onehot"] == pytest.approx(0.5, abs=0.03)
    assert result["probes"]["style"] == 1
    assert result["probes"]["samples"]["token_vector"] == {"train": 16 * 300, "test": 8 * 300}
    assert result["probes"]["samples"]["pooled_mean"] == {"train": 16, "test": 8}


def test_a_leak_is_seen_by_every_measure():
    result = audit(scans(leak=3.0), scans(4, leak=3.0, start=8, seed=1), ("T1w", "T2w"))
    # 9 over twice the variance of both together: 3 of the noise and 9 / 4 of the shift
    assert result["code_gap"]["mean"] == pytest.approx(9 / (2 * (3 + 9 / 4)), rel=0.05)
    assert result["agreement"]["agreement"]["mean"] < 0.6
    assert result["probes"]["token_vector"] > 0.9
    assert result["probes"]["token_onehot"] > 0.7
    assert result["probes"]["pooled_mean"] == result["probes"]["pooled_histogram"] == 1


def test_tokens_are_subsampled_by_the_seed(monkeypatch):
    monkeypatch.setattr(audit_module, "PROBE_TOKENS", 500)
    train, test = scans(leak=0.5), scans(4, leak=0.5, start=8, seed=1)
    first, again, other = (audit(train, test, ("T1w", "T2w"), seed=s)["probes"] for s in (0, 0, 1))
    assert first == again != other
    assert first["samples"]["token_vector"] == {"train": 500, "test": 500}


def test_three_contrasts_have_three_pairs_and_a_mean():
    third = [
        ScanCode(s.subject, "", "FLAIR", s.site, s.vectors + 1, s.mean, s.style, s.codes, None)
        for s in scans() if s.modality == "T1w"
    ]  # fmt: skip
    result = audit([*scans(), *third], [*scans(), *third], ("T1w", "T2w", "FLAIR"))
    assert set(result["pairs"]) == {"T1w|T2w", "T1w|FLAIR", "T2w|FLAIR"}
    gaps = [pair["code_gap"]["mean"] for pair in result["pairs"].values()]
    assert result["code_gap"]["mean"] == pytest.approx(np.mean(gaps))
    assert result["probes"]["chance"] == pytest.approx(1 / 3)


def test_vectors_are_sampled_at_the_same_cells():
    """Of a map that holds its own place, both contrasts give the same places, all inside the brain."""
    mask = torch.rand(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0)) > 0.4
    place = torch.arange(8**3, dtype=torch.float32).view(1, 1, 8, 8, 8).repeat(2, 1, 1, 1, 1)
    encoded = Encoded(place, {"anatomy": place[:, 0].long()}, None, {}, (16, 16, 16))
    noisy = Encoded(place, {"anatomy": (place[:, 0] + (place[:, 0] < 256)).long()}, None, {}, (16, 16, 16))
    rng = np.random.default_rng(3)
    first, second = scan_codes(encoded, encoded.latent, ("T1w", "T2w"), mask, "s", "", "", rng, noisy)
    inside = brain_cells(mask, (8, 8, 8))[0].flatten().nonzero().view(-1)
    torch.testing.assert_close(first.vectors, second.vectors)
    assert set(first.vectors.flatten().long().tolist()) <= set(inside.tolist())
    assert first.codes.tolist() == inside.tolist()
    assert first.mean.item() == pytest.approx(inside.double().mean().item(), rel=1e-5)
    assert first.steady == pytest.approx((inside >= 256).double().mean().item())
    with pytest.raises(ValueError, match="no latent cell of s"):
        scan_codes(encoded, encoded.latent, ("T1w", "T2w"), torch.zeros_like(mask), "s", "", "", rng)


def test_maps_of_other_grids_than_the_latent():
    """Codes may be coarser than the vectors (VQ-VAE-2), a latent may be one cell (a vector autoencoder)."""
    mask = torch.zeros(1, 1, 16, 16, 16, dtype=torch.bool)
    mask[..., 4:12, 4:12, 4:12] = True
    latent = torch.rand(2, 3, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    coarse = torch.arange(64).view(1, 4, 4, 4).repeat(2, 1, 1, 1)

    rng = np.random.default_rng(0)

    def kept(latent, **codes):
        return scan_codes(Encoded(latent, codes, None, {}, (16,) * 3), latent, "ab", mask, "s", "", "", rng)

    first, _ = kept(latent, level1=coarse, level0=coarse)
    assert first.vectors.shape == (4**3, 3)
    assert first.codes.tolist() == coarse[0, 1:3, 1:3, 1:3].flatten().tolist()
    eighths = torch.zeros(2, 2, 2, 2, dtype=torch.long)  # every cell is an eighth brain
    assert kept(latent, coarse=eighths)[0].codes is None
    vector = torch.rand(2, 5, 1, 1, 1)
    for scan, row in zip(kept(vector), vector, strict=True):
        assert scan.vectors.tolist() == [scan.mean.tolist()] == [row.flatten().tolist()]


def test_one_vector_per_scan_is_probed_for_the_contrast():
    """Gap and probes of a latent with a single cell; the spread of a gap is then over the scans."""

    def vectors(start, stop, leak):
        rng = np.random.default_rng(start)
        found = []
        for i in range(start, stop):
            shared = torch.from_numpy(rng.normal(size=4)).float()
            for k, name in enumerate(("T1w", "T2w")):
                vector = shared + torch.tensor([leak * k, 0, 0, 0])
                found.append(ScanCode(f"{i}", "", name, "", vector[None], vector, None, None))
        return found

    leaky, blind = (audit(vectors(0, 30, k), vectors(30, 50, k), ("T1w", "T2w")) for k in (6.0, 0.0))
    assert leaky["probes"]["token_vector"] == leaky["probes"]["pooled_mean"] > 0.95
    assert leaky["probes"]["samples"]["token_vector"] == {"train": 60, "test": 40}
    assert leaky["code_gap"]["mean"] == pytest.approx(36 / (2 * (4 + 9)), rel=0.2)
    assert blind["probes"]["token_vector"] == pytest.approx(0.5, abs=0.1)
    assert blind["code_gap"]["mean"] == 0
    assert "agreement" not in blind
    assert set(blind["probes"]) == {"token_vector", "pooled_mean", "chance", "samples"}


def test_factors_are_read_where_they_are():
    truth = {f"{i}": {"number": float(i), "one": 1.0} for i in range(60)}
    truth["3"]["number"] = float("nan")  # as unknown as a missing entry
    del truth["45"]["number"]
    result = factors(scans(40), scans(20, start=40, seed=1), ("T1w", "T2w"), truth)
    assert result["site"]["T1w"]["style"] == 1
    assert result["site"]["T1w"]["anatomy"] < 0.9
    assert result["number"]["T2w"]["n"] == 19
    assert result["number"]["T2w"]["style_r2"] == pytest.approx(1, abs=0.01)
    assert result["number"]["T2w"]["anatomy_r2"] < 0.5
    assert "one" not in result  # it does not vary
    assert factors(scans(), [], ("T1w",), {}) == {}


def test_image_metrics_of_small_boxes_and_equal_images():
    mask = torch.ones(1, 1, 5, 6, 1, dtype=torch.bool)
    image = torch.rand(1, 1, 5, 6, 1, generator=torch.Generator().manual_seed(0))
    values = image_metrics(image, image, mask)
    assert values["psnr_db"] == 120
    assert values["ssim"] == values["high_frequency_ratio"] == 1


def test_codebook_in_front_is_the_anatomy():
    box, brain = torch.tensor([90, 5, 5, 0]), torch.tensor([0, 5, 5, 0])
    codebooks = {"anatomy": {"box": box, "brain": brain}, "other": {"box": brain, "brain": brain}}
    tree = codebook_tree(codebooks, {"anatomy": 4, "other": 4})
    assert (tree["utilisation"], tree["num_codes"]) == (0.75, 4)
    assert (tree["perplexity"], tree["entropy_bits"]) == (pytest.approx(2), pytest.approx(1))
    assert tree["codebooks"]["anatomy"]["brain"]["utilisation"] == 0.5
    assert codebook_tree({}, {}) == {}


def test_json_knows_no_nan():
    tree = {"a": [float("nan"), 1.0, (2, float("inf"))], 3: {"b": None, "c": "x", "d": True}}
    assert finite(tree) == {"a": [None, 1.0, [2, None]], "3": {"b": None, "c": "x", "d": True}}
