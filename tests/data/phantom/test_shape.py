import numpy as np
import pytest
from scipy import ndimage

from neurotome.data.phantom import shape as ps
from neurotome.data.phantom.template import load_template


def grid(n):
    return np.stack(np.meshgrid(*(np.arange(n, dtype=float),) * 3, indexing="ij"), axis=-1)


def test_the_flow_of_a_constant_velocity_is_a_translation():
    velocity = np.broadcast_to(np.array([1.0, -2.0, 0.5]), (12, 12, 12, 3)).copy()
    moved = ps.exponential(velocity, 2.0)
    np.testing.assert_allclose(moved, velocity, atol=1e-9)


def test_the_flow_of_a_linear_velocity_is_exponential():
    """dx/dt = a x has the solution x exp(a t)."""
    a = 0.4
    centred = grid(31) - 15.0
    moved = ps.exponential(a * centred, 1.0)
    middle = (slice(9, 22),) * 3
    # seven halvings leave an error of order a^2 / 2^8
    np.testing.assert_allclose(moved[middle], np.expm1(a) * centred[middle], atol=0.01)


def test_forward_and_backward_flow_cancel():
    rng = np.random.default_rng(1)
    velocity = np.moveaxis(ps.smooth_noise(rng, (3, 24, 24, 24), 3.0).astype(float), 0, -1)
    there, back = ps.exponential(velocity, 1.0), ps.exponential(-velocity, 1.0)
    index = grid(24).reshape(-1, 3)
    inner = ((index > 6) & (index < 17)).all(axis=1)
    landed = index + there.reshape(-1, 3)
    home = landed + ps.sample(back, landed)
    assert np.abs(home - index)[inner].max() < 0.15


def test_interpolation_equals_scipy_inside_and_the_border_outside():
    rng = np.random.default_rng(0)
    fields = rng.standard_normal((7, 8, 9, 2))
    index = rng.uniform(-2, 11, (500, 3))
    got = ps.sample(fields, index)
    for c in range(2):
        expected = ndimage.map_coordinates(fields[..., c], index.T, order=1, mode="nearest")
        np.testing.assert_allclose(got[:, c], expected, atol=1e-12)


def test_noise_has_unit_variance_and_no_more_than_asked_for():
    rng = np.random.default_rng(0)
    noise = ps.smooth_noise(rng, (40, 40, 40), 1.5)
    assert abs(noise.std() - 1) < 0.1
    assert abs(np.corrcoef(noise[1:].ravel(), noise[:-1].ravel())[0, 1] - np.exp(-1 / (4 * 1.5**2))) < 0.05


@pytest.mark.parametrize("wall", [-9.0, 0.0, 9.0])
def test_the_map_is_invertible_everywhere(wall):
    """The derivative by finite differences at random points, not the class's own Jacobian."""
    template = load_template()
    inside = np.argwhere(template.depth > 0)
    rng = np.random.default_rng(int(wall) + 20)
    for seed in range(3):
        shape = ps.draw_shape(np.random.default_rng(seed), 1.0, wall)
        chosen = inside[rng.integers(len(inside), size=4000)] * 2.0 + template.affine[:3, 3]
        step = 0.05
        columns = [
            (shape.pull_back(chosen + step * e) - shape.pull_back(chosen - step * e)) / (2 * step) for e in np.eye(3)
        ]
        determinants = np.linalg.det(np.stack(columns, axis=-1))
        assert determinants.min() > 0
        assert shape.jacobian().min() > 0
        assert abs(np.median(determinants) - np.median(shape.jacobian())) < 0.2


def test_a_larger_head_has_a_smaller_pull_back():
    small, large = (ps.draw_shape(np.random.default_rng(3), s, 0.0) for s in (0.95, 1.05))
    assert np.linalg.det(large.matrix) / np.linalg.det(small.matrix) == pytest.approx((0.95 / 1.05) ** 3)


def test_the_identity_moves_nothing():
    points = np.random.default_rng(0).uniform(-60, 60, (50, 3))
    np.testing.assert_allclose(ps.identity().pull_back(points), points, atol=1e-12)
    assert ps.identity().jacobian() == pytest.approx(1)
