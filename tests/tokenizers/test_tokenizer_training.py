"""One trainer for all: the objective by hand, both players, the guard, phases, health, and a resume bit by bit."""

import json
import logging
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn

from neurotome.errors import Interrupted, UsageError
from neurotome.losses.adversarial import Adversarial
from neurotome.losses.perceptual import Perceptual
from neurotome.losses.reconstruction import ReconstructionLoss
from neurotome.losses.segmentation import SegmentationLoss
from neurotome.losses.spikes import SpikeGuard
from neurotome.metrics.fidelity import psnr
from neurotome.tokenizers import NeuroQuant, TokenizerTraining
from neurotome.tokenizers.health import CodebookHealth
from neurotome.training import Diverged, OptimizerConfig, fit
from neurotome.training import checkpoint as checkpoint_module
from neurotome.training.augment import Augmentation
from neurotome.training.checkpoint import CheckpointFolder
from neurotome.types import Batch, Images, Source
from tests.tokenizers.tokenizer_run import method as two_players
from tests.tokenizers.tokenizer_run import small_network
from tests.toy import PlainVAE
from tests.training.toy_run import ToyData, toy_config

L1 = ReconstructionLoss(ssim_weight=0.0)
JUDGE = Adversarial(0.25, channels=4, num_layers=1, norm_groups=2)
STEPS = 20


def batch(shape=(8, 8, 8), present=((True, True), (True, True)), seed: int = 0) -> Batch:
    here = torch.tensor(present)
    image = torch.rand(2, 2, 1, *shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return Batch(
        image=image * here[:, :, None, None, None, None],
        modality=torch.arange(2).expand(2, 2).clone(),
        present=here,
        subject=("a", "b"),
        session=("1", "1"),
        site=torch.zeros(2, dtype=torch.long),
        mask=image[:, 0] > -0.5,
    )


def vae(**kwargs) -> TokenizerTraining:
    torch.manual_seed(0)
    made = TokenizerTraining(PlainVAE(), reconstruction=None if "segmentation" in kwargs else L1, **kwargs)
    made.max_steps = 100
    return made


def number(value: torch.Tensor) -> float:
    return float(value.detach())


def test_the_objective_by_hand():
    m = vae(term_weights={"kl": 0.01})
    m.eval()  # the mean instead of a draw
    x, ids = batch().flat()
    encoded = m.tokenizer.encode(x, ids)
    expected = F.l1_loss(m.tokenizer.decode(encoded, ids), x) + 0.01 * encoded.terms["kl"]
    terms = m.loss(batch())
    assert number(terms["loss"]) == pytest.approx(number(expected), rel=1e-6)
    assert set(terms) == {"loss", "l1", "kl"}


def test_a_codebook_s_term_has_its_weight_too():
    torch.manual_seed(0)
    network = small_network(start_after=0)
    network.quantizer.start(torch.randn(8, 4), torch.full((8,), 50.0))
    m = TokenizerTraining(network, reconstruction=L1)
    terms = m.loss(batch())
    assert number(terms["commitment"]) > 0
    assert number(terms["loss"]) == pytest.approx(number(terms["l1"] + 0.25 * terms["commitment"]), rel=1e-5)


def test_a_weight_of_no_term_is_named_with_the_nearest():
    source = Source(Images(), ("T1w", "T2w"), 1, (16, 16, 16), window=(-1.0, 1.0))
    for wrong in ({"kl": 0.1, "k1": 0.1}, {"commitmet": 0.25}):
        near = "commitment" if "commitmet" in wrong else "kl"
        with pytest.raises(ValueError, match=rf"term_weights has .*; did you mean {near}\?; terms are kl,"):
            vae(term_weights=wrong).check(source)
    vae(term_weights={"kl": 0.1, "entropy": 0.0}).check(source)  # a term of other tokenizers


def test_a_term_without_a_weight_is_an_error_and_a_weight_of_zero_leaves_it_out():
    with pytest.raises(ValueError, match="PlainVAE has the terms kl, term_weights has only commitment"):
        vae(term_weights={"commitment": 0.25}).loss(batch())
    terms = vae(term_weights={"kl": 0.0}).loss(batch())
    assert number(terms["loss"]) == pytest.approx(number(terms["l1"]))


def test_a_missing_view_enters_nothing():
    m, partial = vae(), batch(present=((True, True), (True, False)))
    m.eval()
    poisoned = partial.image.clone()
    poisoned[1, 1] = 7.0
    assert number(m.loss(replace(partial, image=poisoned))["loss"]) == number(m.loss(partial)["loss"])
    found = m.validate(batch(present=((False, True), (False, True))))
    assert set(found) == {"psnr/T2w"}


@pytest.mark.parametrize("shape", [(8, 8, 8), (8, 8, 1), (1, 8, 8)])
def test_volumes_and_slices_step_with_everything_on(shape):
    m = TokenizerTraining(
        small_network(), OptimizerConfig(name="muon"), adversarial=replace(JUDGE, adaptive=True),
        perceptual=Perceptual(), edge=("encoder.conv_in",), augmentation=Augmentation(0.5, 0.5),
        spike_guard=SpikeGuard(),
    )  # fmt: skip
    m.max_steps = 2
    optimizer = m.configure_optimizers()
    before = {name: p.detach().clone() for name, p in m.named_parameters()}
    m.loss(batch(shape))["loss"].backward()
    optimizer.step()
    moved = {name for name, p in m.named_parameters() if not torch.equal(p, before[name])}
    assert {"tokenizer.encoder.conv_in.weight", "tokenizer.decoder.conv_out.weight"} <= moved
    assert {f"discriminator.{name}" for name in ("stem.weight", "convs.0.weight", "head.weight")} <= moved


def test_validation_metrics_are_per_contrast_inside_the_brain():
    m = vae().eval()
    b = batch()
    x, ids = b.flat()
    values = psnr(m.tokenizer.decode(m.tokenizer.encode(x, ids), ids), x, mask=b.mask[[0, 0, 1, 1]])
    found = m.validate(b)
    assert number(found["psnr/T1w"]) == pytest.approx(number(values[[0, 2]].mean()))
    assert number(found["psnr/T2w"]) == pytest.approx(number(values[[1, 3]].mean()))


def test_both_players_get_their_own_gradients_and_rates():
    m = vae(adversarial=JUDGE, term_weights={"kl": 0.0})
    m.eval()
    b = batch()
    x, ids = b.flat()
    m.loss(b)["loss"].backward()
    joint = {name: p.grad.clone() for name, p in m.named_parameters()}
    m.zero_grad()
    y = m.tokenizer.decode(m.tokenizer.encode(x, ids), ids)
    (F.l1_loss(y, x) + 0.25 * JUDGE.generator_loss(m.discriminator(y))).backward()
    own = {name: p.grad.clone() for name, p in m.tokenizer.named_parameters(prefix="tokenizer")}
    m.zero_grad()
    JUDGE.discriminator_loss(m.discriminator(x), m.discriminator(y.detach())).backward()
    own |= {name: p.grad.clone() for name, p in m.discriminator.named_parameters(prefix="discriminator")}
    assert own.keys() == joint.keys()
    assert all(torch.allclose(joint[name], own[name], rtol=1e-4, atol=1e-7) for name in own)
    groups = m.configure_optimizers().param_groups
    assert {g.get("part", ""): g["initial_lr"] for g in groups} == {"": 3e-4, "discriminator": 5e-4}


def test_players_start_in_stages():
    m = vae(adversarial=replace(JUDGE, start=5, lead=2))
    seen = {}
    for m.step in (2, 3, 5):
        m.zero_grad()
        terms = m.loss(batch())
        terms["loss"].backward()
        judge = next(m.discriminator.parameters()).grad
        seen[m.step] = ("adversarial" in terms, "discriminator" in terms, judge is not None)
    assert seen == {2: (False, False, False), 3: (False, True, True), 5: (True, True, True)}


def test_the_logged_generator_loss_leaves_the_judge_out():
    terms = vae(adversarial=JUDGE).loss(batch())
    assert number(terms["loss"]) == pytest.approx(number(terms["generator"] + terms["discriminator"]), rel=1e-5)
    assert 0 <= number(terms["discriminator_accuracy"]) <= 1


def test_masks_are_trained_on_their_own_losses_and_measured_by_overlap():
    m = vae(segmentation=SegmentationLoss(), term_weights={"kl": 0.0})
    optimizer = torch.optim.Adam(m.parameters(), lr=0.05)
    b = batch()
    blocks = F.interpolate(F.avg_pool3d(b.image.flatten(0, 1), 2), scale_factor=2).sign()  # masks that 2 voxels can say
    b = replace(b, image=blocks.view_as(b.image))
    first = m.eval().validate(b)
    m.train()
    for _ in range(60):
        terms = m.loss(b)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
    assert set(terms) == {"loss", "bce", "dice", "boundary", "kl"}
    last = m.eval().validate(b)
    assert set(last) == {"dice/T1w", "dice/T2w"}
    assert all(number(last[name]) > max(0.9, number(first[name])) for name in last)
    with pytest.raises(ValueError, match="a mask has no use for them"):
        TokenizerTraining(PlainVAE(), reconstruction=L1, segmentation=SegmentationLoss())


class Phased(PlainVAE):
    """Has two phases."""

    def phase_parameters(self, phase: str) -> tuple[str, ...]:
        return {
            "full": ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"),
            "refine": ("decoder.weight",),
        }[phase]


def test_a_phase_trains_its_parameters_and_no_other():
    m = TokenizerTraining(Phased(), reconstruction=L1, phase="refine", adversarial=JUDGE)
    before = {name: p.detach().clone() for name, p in m.named_parameters()}
    optimizer = m.configure_optimizers()
    m.loss(batch())["loss"].backward()
    optimizer.step()
    moved = {name for name, p in m.tokenizer.named_parameters() if not torch.equal(p, before[f"tokenizer.{name}"])}
    assert moved == {"decoder.weight"}
    with pytest.raises(ValueError, match="PlainVAE is not trained in phases"):
        TokenizerTraining(PlainVAE(), phase="refine")


def test_a_collapsed_codebook_raises_an_alarm_and_a_live_one_does_not(caplog: pytest.LogCaptureFixture):
    torch.manual_seed(0)
    network = small_network(num_codes=16)
    m = TokenizerTraining(network, reconstruction=L1, window_steps=2)
    m.max_steps = 10
    assert not any("codebook" in k for s in (0, 1) for k in _terms_at(m, s))  # the book has not been started
    book = network.quantizer
    book.start(torch.cat([torch.zeros(1, 4), torch.full((15, 4), 1e3)]), torch.full((16,), 50.0))
    book.revive_below, book.decay = 0.0, 0.999999
    caplog.set_level(logging.WARNING, "neurotome")
    assert "codebook/utilisation/anatomy" not in _terms_at(m, 2)
    terms = _terms_at(m, 3)
    assert number(terms["codebook/utilisation/anatomy"]) == pytest.approx(1 / 16)
    assert number(terms["codebook/perplexity/anatomy"]) == pytest.approx(1)
    assert number(terms["codebook/alarm/anatomy"]) == 1
    assert "step 4: the codebook anatomy uses 6 % of its 16 codes" in caplog.text
    caplog.clear()
    m.health.add({"anatomy": torch.arange(16)}, {"anatomy": 16})
    assert m.health.report(6)["codebook/alarm/anatomy"] == 0
    assert not caplog.records


def test_what_is_left_of_a_run_belongs_to_its_last_window_and_a_short_run_is_one():
    torch.manual_seed(0)
    m = TokenizerTraining(started_book(), reconstruction=L1, window_steps=3)
    m.max_steps = 8
    reported = [s for s in range(8) if "codebook/alarm/anatomy" in _terms_at(m, s)]
    assert reported == [2, 7]
    m.max_steps = 2
    assert [s for s in range(2) if "codebook/alarm/anatomy" in _terms_at(m, s)] == [1]
    with pytest.raises(ValueError, match="alarm_below is 2"):
        TokenizerTraining(PlainVAE(), alarm_below=2)


def test_counts_of_a_checkpoint_go_on_where_the_codes_are():
    health = CodebookHealth()
    health.load_state_dict({"anatomy": torch.ones(8, dtype=torch.long)})
    health.add({"anatomy": torch.zeros(5, dtype=torch.long, device="meta")}, {"anatomy": 8})
    assert health.counts["anatomy"].device.type == "meta"


def test_a_window_with_too_few_cells_for_its_book_is_no_alarm(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.WARNING, "neurotome")
    health = CodebookHealth()
    health.add({"anatomy": torch.arange(64)}, {"anatomy": 512})
    assert health.report(1)["codebook/alarm/anatomy"] == 0
    health.add({"anatomy": torch.arange(64).repeat(32)}, {"anatomy": 512})
    assert health.report(2)["codebook/alarm/anatomy"] == 1
    assert len(caplog.records) == 1


def test_the_threshold_of_the_alarm_is_an_argument():
    alarms = []
    for share in (1.0, 0.0):
        m = TokenizerTraining(started_book(), reconstruction=L1, alarm_below=share)
        m.max_steps = 1
        alarms.append(number(_terms_at(m, 0)["codebook/alarm/anatomy"]))
    assert alarms == [1, 0]


def started_book() -> NeuroQuant:
    """A network whose book has one code that the data takes."""
    torch.manual_seed(0)
    network = small_network(num_codes=16)
    network.quantizer.start(torch.cat([torch.zeros(1, 4), torch.full((15, 4), 1e3)]), torch.full((16,), 50.0))
    return network


def _terms_at(m: TokenizerTraining, step: int) -> dict[str, torch.Tensor]:
    m.step = step
    return m.loss(batch())


def test_the_worst_batch_of_a_window_is_kept():
    m = vae(window_steps=10)
    assert m.panels() is None
    for m.step, seed, gain in ((0, 1, 1.0), (1, 2, 3.0), (2, 3, 1.0)):
        b = batch(seed=seed)
        m.loss(replace(b, image=b.image * gain))
    images, entries = m.panels()
    assert {entry["note"].split(",")[0] for entry in entries} == {"step 2"}
    worst = entries[0]
    at = (worst["subject"] == "b", worst["from"] == "T2w")
    expected = (batch(seed=2).image[int(at[0]), int(at[1]), 0] * 3).clamp(-1, 1)
    assert torch.allclose(images[worst["source"]].float(), expected, atol=1e-3)
    m.step = 10
    m.loss(batch(seed=4))
    assert m.panels()[1][0]["note"].startswith("step 11")


# What follows runs whole trainings.


@pytest.fixture
def _run_parts():
    state = checkpoint_module.random_state()
    yield
    checkpoint_module.set_random_state(state)


class Data(ToyData):
    """Batches of the toy run; every voxel of some steps is multiplied."""

    def __init__(self, max_steps: int, loud: tuple[int, ...] = ()) -> None:
        super().__init__(max_steps)
        self.loud = loud

    def __getitem__(self, step: int) -> Batch:
        made = super().__getitem__(step)
        return replace(made, image=made.image * 6) if step in self.loud else made


def train(run: Path, m: TokenizerTraining, data: Data, **changes):
    return fit(m, data, run, toy_config(data.max_steps, **changes))


class Recorded(TokenizerTraining):
    """Keeps its weights after every step."""

    def on_step(self) -> None:
        self.__dict__.setdefault("trail", []).append([p.detach().clone() for p in self.parameters()])


@pytest.mark.usefixtures("_run_parts")
def test_a_spike_changes_no_weight_of_either_player(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    torch.manual_seed(0)
    m = Recorded(
        PlainVAE(), OptimizerConfig(lr=1e-3, weight_decay=0.1), L1, adversarial=JUDGE,
        spike_guard=SpikeGuard(warmup=4, window=8, budget=2),
    )  # fmt: skip
    caplog.set_level(logging.WARNING, "neurotome")
    train(tmp_path, m, Data(12, loud=(7,)))
    same = [
        all(torch.equal(a, b) for a, b in zip(*pair, strict=True)) for pair in zip(m.trail, m.trail[1:], strict=False)
    ]
    assert [i + 1 for i, still in enumerate(same) if still] == [7]
    assert m.history.skipped == 1
    assert m.facts()["Updates skipped because of spikes"] == 1
    assert "step 8: loss" in caplog.text
    assert "0070, 0071" in caplog.text
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert sum(r.get("train/skipped", 0) for r in rows) == pytest.approx(1 / 3)
    assert all("lr_discriminator" in r for r in rows if "train/loss" in r)


@pytest.mark.usefixtures("_run_parts")
def test_what_starts_later_in_a_run_makes_no_spike():
    """Losses are compared with those of the same objective: history begins anew where a term starts or images grow."""
    parts = {
        "perceptual": Perceptual(weight=50.0, slices=0.5, start=8),
        "adversarial": replace(JUDGE, weight=50.0, start=8),
        "augmentation": Augmentation(halvings=1, full_from=0.4),
    }
    for name, part in parts.items():
        m = vae(spike_guard=SpikeGuard(warmup=4, window=8, budget=2), **{name: part})
        m.max_steps = 20
        for step in range(8):
            m.step = step
            m.loss(batch())
        assert int(m.history.counts[0]) == 8, name
        m.step = 8
        m.loss(batch())
        assert int(m.history.counts[0]) == 1, name


def test_too_many_spikes_stop_the_run_with_the_subjects_named(tmp_path: Path):
    m = vae(spike_guard=SpikeGuard(warmup=4, window=40, budget=1))
    with pytest.raises(
        Diverged, match=r"2 updates were skipped .* by step 9 of 12, the budget is 1.*0070 \(1\).*neurotome check"
    ):
        train(tmp_path, m, Data(12, loud=(7, 8)))


@pytest.mark.usefixtures("_run_parts")
def test_a_stopped_training_resumes_bit_by_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(whole, two_players(), Data(STEPS))
    stopped = two_players()

    def loss(batch: Batch) -> dict[str, torch.Tensor]:
        if stopped.step == 9:
            os.kill(os.getpid(), signal.SIGTERM)
        return TokenizerTraining.loss(stopped, batch)

    monkeypatch.setattr(stopped, "loss", loss)
    with pytest.raises(Interrupted):
        train(cut, stopped, Data(STEPS))
    assert train(cut, two_players(), Data(STEPS)).resumed_from == 10
    ends = [_end(run) for run in (cut, whole)]
    assert ends[0].keys() == ends[1].keys()
    assert not [name for name in ends[0] if not torch.equal(ends[0][name], ends[1][name])]
    for part in (
        "discriminator.stem",
        "history.values",
        "watched_training/worst",
        "averages",
        "quantizer.codebook",
        "momentum",
    ):
        assert any(part in name for name in ends[0]), part
    logs = [[_row(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (cut, whole)]
    assert logs[0] == logs[1]
    assert any(row.get("train/skipped", 0) > 0 for row in logs[0])
    assert any("train/codebook/utilisation/anatomy" in row for row in logs[0])
    panels = [safetensors.torch.load_file(run / "worst_batch.safetensors") for run in (cut, whole)]
    assert all(torch.equal(panels[0][name], panels[1][name]) for name in panels[0] | panels[1])


def _end(run: Path) -> dict[str, torch.Tensor]:
    return checkpoint_module.load_file(CheckpointFolder(run / "checkpoints").all()[-1] / "tensors.safetensors")


def _row(line: str) -> dict[str, float]:
    return {k: v for k, v in json.loads(line).items() if k not in ("seconds", "steps_per_s")}


@pytest.mark.usefixtures("_run_parts")
def test_other_perceptual_features_are_refused_at_a_resume(tmp_path: Path):
    def made() -> TokenizerTraining:
        return TokenizerTraining(PlainVAE(), reconstruction=L1, perceptual=Perceptual())

    class Stops(TokenizerTraining):
        def loss(self, batch: Batch) -> dict[str, torch.Tensor]:
            if self.step == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().loss(batch)

    with pytest.raises(Interrupted):
        train(tmp_path, Stops(PlainVAE(), reconstruction=L1, perceptual=Perceptual()), Data(6))
    other = made()
    other.perceptual.sha256 = "0" * 64
    with pytest.raises(UsageError, match="perceptual features"):
        train(tmp_path, other, Data(6))
    assert train(tmp_path, made(), Data(6)).resumed_from == 4
    assert not any("perceptual" in name for name in _end(tmp_path))


def test_values_out_of_range_are_refused():
    with pytest.raises(ValueError, match="window_steps is 0"):
        TokenizerTraining(PlainVAE(), window_steps=0)
    with pytest.raises(ValueError, match=r"term_weights is .*give numbers >= 0"):
        TokenizerTraining(PlainVAE(), term_weights={"kl": -1.0})


def test_an_unfit_phase_is_named():
    class Wrong(PlainVAE):
        def phase_parameters(self, phase: str) -> tuple[str, ...]:
            return ("nothing.weight",)

    with pytest.raises(ValueError, match=r"phase 'x' names .*nothing\.weight"):
        TokenizerTraining(Wrong(), phase="x")
    assert isinstance(TokenizerTraining(PlainVAE()).tokenizer, nn.Module)


def test_each_player_s_gradient_is_clipped_by_itself():
    m = vae(optimizer=OptimizerConfig(clip=0.5), adversarial=JUDGE)
    optimizer = m.configure_optimizers()
    for p in m.tokenizer.parameters():
        p.grad = torch.full_like(p, 100.0)
    for p in m.discriminator.parameters():
        p.grad = torch.full_like(p, 1e-6)
    m.configure_gradient_clipping(optimizer)
    assert all(torch.equal(p.grad, torch.full_like(p, 1e-6)) for p in m.discriminator.parameters())
    norm = torch.stack([p.grad.norm() for p in m.tokenizer.parameters()]).norm()
    assert norm.item() == pytest.approx(0.5, rel=1e-4)
    assert m.gradient_norm.item() > 100
    m.skip_update = True
    m.configure_gradient_clipping(optimizer)
    assert all(p.grad is None for p in m.parameters())


def test_the_memory_layout_never_costs_precision():
    """torch's group normalisation loses digits when channels lie beside each other; there they must not."""
    weight = TokenizerTraining(PlainVAE()).tokenizer.encoder.weight
    assert weight.is_contiguous(memory_format=torch.channels_last_3d)
    grouped = TokenizerTraining(small_network(norm_groups=2), adversarial=JUDGE)
    kernels = [p for p in grouped.parameters() if p.ndim == 5]
    assert all(p.is_contiguous() for p in kernels)
    assert any(not p.is_contiguous(memory_format=torch.channels_last_3d) for p in kernels)
