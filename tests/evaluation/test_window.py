"""A network with a bounded output cannot decode to images without bounds, and no metric of ours is defined on them."""

import numpy as np
import pytest
import torch

from neurotome.data.imaging.geometry import Geometry
from neurotome.data.imaging.volume import Volume
from neurotome.data.preparation.preparation import Preparation
from neurotome.data.stores.store import Store
from neurotome.errors import InputError
from neurotome.evaluation.evaluate import evaluate
from neurotome.scans.tokenizer import ScanTokenizer
from tests.evaluation.toy_evaluation import (
    MODALITIES,
    SHAPE,
    BlockTokenizer,
    ToyScans,
    brain,
    session_images,
    toy_store,
)

FREE = Preparation(3.0, SHAPE, intensity="zscore")
CLIPPED = Preparation(3.0, SHAPE, intensity="zscore", clip=4)


class FreeTokenizer(BlockTokenizer):
    """Keeps every voxel: what it decodes is what it was given, without bounds."""

    window = None

    def encode(self, image, modality):
        self.kept = image
        return super().encode(image, modality)

    def decode(self, encoded, modality):
        return self.kept


def scans(network, preparation):
    styles = {(m, "all"): torch.zeros(1) for m in MODALITIES}
    return ScanTokenizer(network, preparation, {}, styles, {}, ("", frozenset()), "digest")


def test_a_bounded_network_refuses_images_without_bounds():
    network = BlockTokenizer()
    network.check_window(CLIPPED.window)
    with pytest.raises(
        ValueError, match=r"BlockTokenizer decodes to values in \[-1.0, 1.0\].*--intensity zscore --clip 5"
    ):
        network.check_window(FREE.window)
    with pytest.raises(ValueError, match="cannot learn images in"):
        network.check_window((-2.0, 1.0))
    with pytest.raises(ValueError, match="without bounds"):
        scans(network, FREE)
    FreeTokenizer().check_window(FREE.window)


def test_the_metrics_refuse_images_without_bounds(tmp_path):
    store = toy_store(tmp_path / "store")
    free = Store(store.path, FREE, store.modalities, store.sessions)
    model = ToyScans(BlockTokenizer())
    model.preparation = FREE
    with pytest.raises(InputError, match=r"defined on \[-1, 1\].*--clip"):
        evaluate(model, free)


@pytest.mark.parametrize("preparation", [FREE, CLIPPED])
def test_z_scores_come_back_in_the_source_s_intensities(preparation):
    values = np.where(brain(), 300 + 100 * session_images(0)[0][0], 0).astype(np.float32)
    volume = Volume(values, Geometry(SHAPE, np.diag([3.0, 3.0, 3.0, 1.0])))
    tokenizer = scans(FreeTokenizer(), preparation)
    code = tokenizer.encode(volume, "T1w")
    restored = tokenizer.decode(code)
    clipped = np.clip(values, code.record.low, code.record.high) if preparation.window else values
    np.testing.assert_allclose(restored.array, np.where(brain(), clipped, 0), rtol=1e-3)
