import lightning
import pytest
import torch

from neurotome.data.stores.loaders import StepSampler, TrainingModule
from neurotome.data.stores.volumes import StoreReader, Volumes

PLAN = Volumes(batch_sessions=2, crop=8, whole_fraction=0.2)


class Recorder(lightning.LightningModule):
    """Remembers the subjects and the sum of every batch."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen, self.validated = [], []

    def training_step(self, batch, index):
        self.seen.append((batch.subject, float(batch.image.sum())))
        return self.weight * 1.0

    def validation_step(self, batch, index):
        self.validated.append((batch.subject, tuple(batch.image.shape)))

    def configure_optimizers(self):
        return torch.optim.SGD([self.weight], 0.1)


def run(store, position=0, **trainer_arguments):
    data = TrainingModule(StoreReader(store, PLAN), max_steps=10, seed=5)
    data.position = position
    method = Recorder()
    trainer = lightning.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, max_epochs=1, log_every_n_steps=1, **trainer_arguments,
    )  # fmt: skip
    trainer.fit(method, datamodule=data)
    return method, data


# Lightning's own notices: on loaders without processes, and on a name that torch has deprecated
@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
def test_a_resumed_run_sees_the_batches_that_were_left(prepared):
    whole, data = run(prepared, val_check_interval=5)
    assert len(whole.seen) == 10
    assert data.state_dict() == {"position": 10}
    assert [shape for _, shape in whole.validated] == [(1, 2, 1, 20, 24, 16)] * 4
    rest, data = run(prepared, position=4, limit_val_batches=0)
    assert rest.seen == whole.seen[4:]
    assert data.state_dict() == {"position": 10}
    stopped, data = run(prepared, max_steps=4, limit_val_batches=0)
    assert stopped.seen == whole.seen[:4]
    assert data.state_dict() == {"position": 4}


def test_position_survives_a_checkpoint(prepared):
    data = TrainingModule(StoreReader(prepared, PLAN), max_steps=10)
    data.load_state_dict({"position": 7})
    assert data.position == 7
    loader = data.train_dataloader()
    assert len(loader) == 3
    assert len(list(loader)) == 3


def test_the_fingerprint_follows_what_a_step_sees(prepared):
    base = TrainingModule(StoreReader(prepared, PLAN), max_steps=10)
    assert base.fingerprint == TrainingModule(StoreReader(prepared, PLAN), max_steps=20, num_workers=3).fingerprint
    others = [
        TrainingModule(StoreReader(prepared, PLAN), max_steps=10, seed=1),
        TrainingModule(StoreReader(prepared, Volumes(crop=8)), max_steps=10),
        TrainingModule(StoreReader(prepared, PLAN), max_steps=10, modalities=("T2w", "T1w")),
    ]
    assert len({base.fingerprint, *(o.fingerprint for o in others)}) == 4


def test_sampler_yields_what_is_left():
    assert list(StepSampler(3, 6)) == [3, 4, 5]
    assert len(StepSampler(6, 6)) == 0
    with pytest.raises(ValueError, match="position is 7"):
        StepSampler(7, 6)


def test_loader_processes_give_the_same_batches(prepared):
    here = TrainingModule(StoreReader(prepared, PLAN), max_steps=4)
    there = TrainingModule(StoreReader(prepared, PLAN), max_steps=4, num_workers=1)
    for a, b in zip(here.train_dataloader(), there.train_dataloader(), strict=True):
        assert a.subject == b.subject
        assert torch.equal(a.image, b.image)
