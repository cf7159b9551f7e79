import numpy as np
import pytest

from neurotome.data.imaging.geometry import Geometry
from neurotome.data.imaging.reader import read_volume
from neurotome.data.imaging.volume import Volume
from neurotome.data.preparation.labels import whole_labels
from neurotome.data.preparation.preparation import Preparation
from neurotome.data.stores.batches import batch_of
from neurotome.data.stores.build import prepare
from neurotome.data.stores.store import Store
from neurotome.errors import InputError
from tests.data.scans import affine_of, brain_array, write_bids, write_nifti

PREPARATION = Preparation(3.0, (20, 24, 16))
SHAPE = (20, 24, 18)


def volume_of(array):
    return Volume(array, Geometry(array.shape, affine_of()))


@pytest.mark.parametrize(
    ("dtype", "largest", "kept"),
    [("u1", 255, "u1"), ("f4", 255, "u1"), ("i2", 256, "i4"), ("f4", 12175, "i4"), ("i8", 2**31 - 1, "i4")],
)
def test_ids_keep_their_numbers_in_the_smallest_type(dtype, largest, kept):
    array = np.array([0, 17, largest], dtype=dtype).reshape(3, 1, 1)
    labels = whole_labels(volume_of(array))
    assert labels.array.dtype == np.dtype(kept)
    assert labels.array.ravel().tolist() == [0, 17, largest]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([0, 0.9999, 2.5], "2 of 3 labels are not whole numbers, the first is 0.9999.*nearest neighbour"),
        ([0, -1, 3], "labels from -1 to 3"),
        ([0, 1, 2**31], "labels from 0 to 2.14748e.09"),
    ],
)
def test_what_is_no_label_map_is_refused_with_counts(values, says):
    with pytest.raises(InputError, match=says):
        whole_labels(volume_of(np.array(values, dtype="f8").reshape(3, 1, 1)))


@pytest.mark.parametrize(("dtype", "ids"), [("f4", [2, 17, 12175]), ("i4", [1, 85, 255])])
def test_freesurfer_ids_reach_the_batch_and_come_back(tmp_path, dtype, ids):
    root = write_bids(tmp_path / "data", ["01", "02", "03"], modalities=("T1w",))
    rng = np.random.default_rng(0)
    # the brains differ from subject to subject, their outline does not
    labels = np.where(brain_array(SHAPE) > 0, rng.choice(ids, SHAPE), 0)
    for subject in ("01", "02", "03"):
        write_nifti(root / f"derivatives/truth/sub-{subject}/anat/sub-{subject}_dseg.nii.gz", labels.astype(dtype))
    prepare(root, tmp_path / "store", preparation=PREPARATION).raise_failures()
    store = Store.open(tmp_path / "store")
    loaded = store.load(store.sessions[0])
    assert loaded.labels.dtype == (np.uint8 if max(ids) < 256 else np.int32)
    batch = batch_of(store, store.sessions[:2])
    assert sorted(np.unique(batch.label.numpy())) == [0, *ids]
    back = loaded.records["T1w"].restore_labels(loaded.labels)
    np.testing.assert_array_equal(back.array, labels)
    back.save(tmp_path / "dseg.nii.gz")
    again = read_volume(tmp_path / "dseg.nii.gz")
    assert again.provenance.dtype == loaded.labels.dtype.name
    np.testing.assert_array_equal(again.array, labels)


def test_an_unmodified_label_map_is_written_as_integers(tmp_path):
    source = write_nifti(tmp_path / "x.nii", np.array([0, 3, 12175], dtype="f4").reshape(3, 1, 1))
    whole_labels(read_volume(source)).save(tmp_path / "y.nii")
    assert read_volume(tmp_path / "y.nii").provenance.dtype == "int32"
