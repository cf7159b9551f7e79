import numpy as np
import pytest

from neurotome.data.phantom import template as pt


def ml(share, template):
    return float(share.sum()) * pt.TEMPLATE_SPACING_MM**3 / 1000


@pytest.fixture(scope="module")
def template():
    return pt.load_template()


def test_the_classes_are_a_partition_of_the_brain(template):
    total = template.classes.sum(axis=0)
    brain = template.depth > 0
    assert template.classes.min() >= 0
    # block averages of the brain's border hold a little less than the whole
    assert np.abs(total[brain] - 1).mean() < 0.01
    assert total[~brain].max() < 0.5


def test_volumes_are_those_of_the_average_brain(template):
    volumes = dict(zip(pt.CLASSES, (ml(c, template) for c in template.classes), strict=True))
    assert 1700 < sum(volumes.values()) < 2000  # the MNI brain is larger than people
    assert 25 < volumes["ventricle"] < 60
    assert 30 < volumes["deep_grey"] < 80


def test_both_lateral_ventricles_are_found(template):
    x = template.affine[0, 3] + template.affine[0, 0] * np.arange(template.depth.shape[0])
    ventricle = template.classes[pt.VENTRICLE]
    left, right = ml(ventricle[x < -4], template), ml(ventricle[x > 4], template)
    assert min(left, right) > 8
    assert 0.5 < left / right < 2


def test_the_cache_is_written_once_and_a_damaged_one_is_built_again(tmp_path, monkeypatch, template):
    monkeypatch.setenv("NEUROTOME_CACHE", str(tmp_path / "cache"))
    built = []
    monkeypatch.setattr(pt, "build_template", lambda: built.append(1) or template)
    load = pt.load_template.__wrapped__
    load()
    again = load()
    assert built == [1]
    files = list((tmp_path / "cache").iterdir())
    assert [f.name for f in files] == [f"phantom-template-{pt.TEMPLATE_VERSION}.npz"]
    for name in ("classes", "affine", "fold_depth", "regional"):
        np.testing.assert_array_equal(getattr(again, name), getattr(template, name))
    files[0].write_bytes(files[0].read_bytes()[:1000])
    load()
    assert built == [1, 1]


def test_a_cache_that_cannot_be_written_only_costs_time(tmp_path, monkeypatch, template):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("NEUROTOME_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(pt, "build_template", lambda: template)
    assert pt.load_template.__wrapped__() is template


def test_the_cache_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("NEUROTOME_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert pt.cache_folder() == tmp_path / "neurotome"
