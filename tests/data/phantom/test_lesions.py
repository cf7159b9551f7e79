import numpy as np
import pytest
from scipy import ndimage

from neurotome.data.phantom.lesions import CLEARANCE_MM, LIMITS_MM, OEDEMA_MM, Lesion, draw_lesions, lesion_parts


def affine(spacing):
    out = np.diag([spacing] * 3 + [1.0])
    out[:3, 3] = -40.0
    return out


def lesion(diameter, **changes):
    values = {"kind": "ring" if diameter > 10 else "solid", "oedema_mm": 6.0, "rim_mm": 2.5, "seed": 7}
    return Lesion((1.3, -2.1, 0.4), diameter, **(values | changes))


def parts_of(one, spacing, white=1.0):
    size = (round(80 / spacing) + 1,) * 3
    return lesion_parts((one,), np.full(size, white), np.ones(size), affine(spacing))


@pytest.mark.parametrize("spacing", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("diameter", [6.0, 12.0, 25.0])
def test_the_core_has_the_diameter_of_the_truth(diameter, spacing):
    core = [parts_of(lesion(diameter, seed=s), spacing)[[0, 2]].sum() * spacing**3 for s in range(6)]
    measured = (6 * np.mean(core) / np.pi) ** (1 / 3)
    assert measured == pytest.approx(diameter, rel=0.06)


def test_its_centre_of_mass_is_where_the_truth_says():
    core = parts_of(lesion(20.0), 1.0)[[0, 2]].sum(axis=0)
    centre = np.array(ndimage.center_of_mass(core)) - 40
    assert np.linalg.norm(centre - np.array([1.3, -2.1, 0.4])) < 2.0


def test_a_ring_has_necrosis_inside_and_a_rim_of_its_thickness():
    necrosis, _, rim = parts_of(lesion(24.0, rim_mm=3.0), 1.0)
    inner = (6 * necrosis.sum() / np.pi) ** (1 / 3)
    assert inner == pytest.approx(24 - 2 * 3, rel=0.1)
    assert necrosis[41, 38, 40] == pytest.approx(1)
    assert rim[41, 38, 40] == pytest.approx(0)


def test_a_solid_lesion_has_no_necrosis():
    necrosis, _, rim = parts_of(lesion(8.0), 1.0)
    assert necrosis.max() == 0
    assert rim.max() == 1


def test_oedema_is_irregular_lies_in_white_matter_and_ends_in_time():
    one = lesion(12.0, oedema_mm=10.0)
    _, oedema, _ = parts_of(one, 1.0)
    offset = np.indices(oedema.shape) - 40.0 - np.array(one.centre_mm)[:, None, None, None]
    distance = np.linalg.norm(offset, axis=0)
    # the core's rough surface reaches 6 / (1 - 2 * 0.12) mm; the oedema's soft edge is 3 mm wide
    assert distance[oedema > 0].max() < 6 + 10 + 2
    shell = oedema[np.abs(distance - 12) < 0.7]
    assert shell.min() < 0.2
    assert shell.max() > 0.8
    assert parts_of(one, 1.0, white=0.15)[1].max() == 0


def test_shares_are_shares():
    places = (((0.0, 0.0, 0.0), 20.0), ((9.0, 0.0, 0.0), 15.0))
    several = tuple(Lesion(centre, diameter, "ring", 8.0, 2.5, 3) for centre, diameter in places)
    total = lesion_parts(several, np.ones((81,) * 3), np.ones((81,) * 3), affine(1.0)).sum(axis=0)
    assert total.min() >= 0
    assert total.max() <= 1 + 1e-5


def brain(n=28, spacing=3.0):
    centre = np.indices((n, n, n)) - (n - 1) / 2
    radius = np.linalg.norm(centre, axis=0) * spacing
    nuclei = (radius < 12).astype(float)
    outside = (radius > 38).astype(float)
    to_mm = np.diag([spacing] * 3 + [1.0])
    to_mm[:3, 3] = -spacing * (n - 1) / 2
    return 1 - nuclei - outside, nuclei, outside, to_mm


def test_no_core_touches_a_nucleus_and_all_are_drawn_from_the_same_law():
    white, nuclei, outside, to_mm = brain()
    rng = np.random.default_rng(0)
    found = [one for _ in range(150) for one in draw_lesions(rng, white, nuclei, outside, to_mm)]
    reach = np.array([np.linalg.norm(one.centre_mm) for one in found])
    radius = np.array([one.diameter_mm / 2 for one in found])
    # the nucleus ends at 12 mm, up to half a voxel's diagonal
    assert (reach - radius - 12).min() > CLEARANCE_MM - 1.5
    assert all(LIMITS_MM[0] <= one.diameter_mm <= LIMITS_MM[1] for one in found)
    assert all(one.oedema_mm <= OEDEMA_MM for one in found)
    assert {one.kind for one in found} == {"ring", "solid"}
    assert all((one.kind == "ring") == (one.diameter_mm > 10) for one in found)


def test_lesions_of_one_brain_keep_apart():
    white, nuclei, outside, to_mm = brain()
    rng = np.random.default_rng(1)
    for _ in range(80):
        drawn = draw_lesions(rng, white, nuclei, outside, to_mm)
        for i, a in enumerate(drawn):
            for b in drawn[:i]:
                gap = np.linalg.norm(np.subtract(a.centre_mm, b.centre_mm))
                assert gap > (a.diameter_mm + b.diameter_mm) / 2


def test_a_brain_without_room_gets_none():
    white, nuclei, outside, to_mm = brain()
    assert draw_lesions(np.random.default_rng(0), 0 * white, nuclei, outside, to_mm) == ()
