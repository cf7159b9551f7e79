"""The fingerprint of the scans that a store was made from."""

from typing import Any

from neurotome.data.datasets.fingerprint import ScanRecord, fingerprint
from neurotome.data.stores.entries import map_entry
from neurotome.data.stores.store import Store


def fingerprint_of_store(store: Store) -> dict[str, Any]:
    """Return the fingerprint of the scans a store was made from; only the headers of its entries are read.

    Raises:
        InputError: An entry is missing or damaged.
    """
    low, high = store.preparation.landmark_names
    records = []
    for entry in store.sessions:
        loaded = map_entry(store.path / entry.file, entry, store.modalities, store.preparation.shape)
        for modality, record in loaded.records.items():
            intensities = {low: record.low, high: record.high}
            sha256 = entry.source_sha256.get(modality, entry.digest)
            ids = (entry.subject, entry.session, modality, entry.site)
            records.append(ScanRecord(*ids, record.geometry, intensities, sha256))
    return fingerprint(records)
