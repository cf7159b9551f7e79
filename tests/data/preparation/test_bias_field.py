import numpy as np
import pytest
from scipy import ndimage

from neurotome.data.imaging.geometry import Geometry
from neurotome.data.imaging.volume import Volume
from neurotome.data.preparation.preparation import Preparation
from neurotome.data.preparation.record import Record
from neurotome.errors import InputError
from tests.data.scans import affine_of

pytest.importorskip("SimpleITK", reason="the optional package SimpleITK is not installed")
SHAPE = (24, 26, 22)


def scans():
    """A brain of two tissues, and the same under a coil that is twice as bright on one side."""
    axes = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij"))
    inside = (axes**2).sum(axis=0) < 0.7
    noise = np.random.default_rng(0).standard_normal(SHAPE)
    tissue = np.where(ndimage.gaussian_filter(noise, 1) > 0, 300.0, 500.0) + 5 * noise
    flat = np.where(inside, tissue, 0).astype(np.float32)
    field = np.exp(0.5 * axes[0] + 0.1 * axes[1] ** 2)
    geometry = Geometry(SHAPE, affine_of((6.0, 6.0, 6.0)))
    return Volume(flat, geometry), Volume((flat * field).astype(np.float32), geometry), inside


def test_the_field_is_found_and_divided_out():
    flat, bright, inside = scans()
    one = Preparation(6.0, SHAPE, intensity="minmax", bias_field="n4").apply({"T1w": bright})
    two = Preparation(6.0, SHAPE, intensity="minmax").apply({"T1w": bright})

    def unevenness(prepared):
        values = prepared.records["T1w"].restore(prepared.image[0], prepared.mask).array[inside] / flat.array[inside]
        return values.std() / values.mean()

    assert unevenness(two) > 0.15
    assert unevenness(one) < 0.05
    record = Record.from_json(one.records["T1w"].to_json())
    assert record.bias_field.startswith("N4, SimpleITK ")
    assert two.records["T1w"].bias_field is None


def test_equal_inputs_give_equal_bytes():
    _, bright, _ = scans()
    preparation = Preparation(6.0, SHAPE, bias_field="n4")
    one, two = (preparation.apply({"T1w": bright}).image for _ in range(2))
    np.testing.assert_array_equal(one, two)


def test_z_scores_have_no_bias_field_to_divide_out():
    flat, _, inside = scans()
    scored = np.where(inside, (flat.array - 400) / 100, 0).astype(np.float32)
    preparation = Preparation(6.0, SHAPE, intensity="zscore", bias_field="n4")
    with pytest.raises(InputError, match=r"T1w: \d\d% of the brain lie below 0") as error:
        preparation.apply({"T1w": Volume(scored, flat.geometry)})
    assert "without --bias-field" in error.value.remedy
