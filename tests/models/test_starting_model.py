"""What a model inherits from the one that its training started from."""

from pathlib import Path

import pytest

from neurotome.cli.main import main
from neurotome.data.stores.store import Store
from neurotome.evaluation.held_out import seen_at_all
from neurotome.scans.export import UNKNOWN
from neurotome.scans.tokenizer import ScanTokenizer
from tests import toy

pytestmark = pytest.mark.usefixtures("toys")


def test_subjects_that_are_not_known_stay_so_along_the_chain(tmp_path: Path, toy_store: Path) -> None:
    """A model of converted weights lists no subject: whether it has seen one, nobody can tell of its offspring."""
    config = tmp_path / "toy.yaml"
    config.write_text(toy.CONFIG)
    toy.exported_with([], toy_store, tmp_path / "source")
    assert not toy.read(tmp_path / "source").training_subjects.complete
    for source, out in (("source", "run"), ("run", "next")):
        words = [str(config), str(toy_store), "--out", str(tmp_path / out), "--init-from", str(tmp_path / source)]
        assert main(["train", *words, "--device", "cpu", "--quiet"]) == 0
        model = toy.read(tmp_path / out)
        assert len(model.training_subjects.subjects) == 4
        assert not model.training_subjects.complete
        assert UNKNOWN in model.card
        assert "All it was trained on" not in model.card
    assert "trained on 4 subjects and others that are not known" in model.card
    entries = Store.open(toy_store).split("test")
    scans = ScanTokenizer.from_pretrained(tmp_path / "next")
    assert seen_at_all(scans, entries) is None
    scans.save_pretrained(tmp_path / "copy")
    assert not toy.read(tmp_path / "copy").training_subjects.complete
    toy.exported_with(["someone"], toy_store, tmp_path / "other")
    assert seen_at_all(ScanTokenizer.from_pretrained(tmp_path / "other"), entries) is False
