r"""A trained tokenizer for scans: volumes in, volumes out, on the grid and with the header they came with.

    encode      volume -> prepare -> network.encode -> code, geometry, intensities
    decode      code -> network.decode -> undo the preparation -> volume
    translate   decode(shared code, style of the target contrast)

The network always sees batches of one size, filled up where scans are missing, so that a scan's result does not depend
on what it was computed with: one by one, in pairs or in a folder of thousands the bytes are the same.

The style of another contrast is, unless a reference is given, its mean over the *training* subjects, and the intensity
range is the mean range of that contrast over the training subjects (a source's own range says nothing about another
contrast); outside the brain the value is 0.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from neurotome import modality as contrasts
from neurotome.data.imaging.volume import Volume
from neurotome.data.preparation.preparation import Preparation
from neurotome.data.preparation.record import Record
from neurotome.errors import InputError, UsageError
from neurotome.losses.segmentation import SegmentationLoss
from neurotome.models.folder import subject_hash, write_model_folder
from neurotome.models.pretrained import NO_SCANS, read_pretrained
from neurotome.models.session_views import described_masks
from neurotome.models.styles import ALL_SITES, named_styles, style_key
from neurotome.nn.nd import channels_last
from neurotome.nn.slabs.computing import SlabChoice, computing
from neurotome.scans.codes import alike, full, joined, moved, single
from neurotome.scans.latent_scan import LatentScan
from neurotome.scans.stages import Painting, PreparedScan
from neurotome.tokenizers.base import Encoded, Tokenizer

# On a CPU two small images take hardly longer than one, four take twice as long as two; large images fill it alone.
SMALL_VOXELS = 2**20


class ScanTokenizer:
    """A network with the preparation, styles and statistics it was trained with.

    Args:
        network: The tokenizer; put into evaluation mode.
        preparation: What it expects.
        stats: Statistics per latent channel, and ``intensity``: mean low and high per contrast.
        styles: Mean style vector by (contrast, site); site "all" pools them.
        covariances: Covariance of the style vector, by the same keys.
        training_subjects: Salt and salted hashes.
        digest: What a latent is stamped with.
        card: README of the model folder.
        precision: "bf16" runs the network in mixed precision.
        slabs: Planes of a volume that the network computes at a time (:func:`neurotome.nn.slabs.computing.computing`).
        masks: How a batch becomes the masks it was trained on; None for a tokenizer of scans.

    Raises:
        ValueError: The preparation makes images that the network cannot paint.
    """

    def __init__(
        self,
        network: Tokenizer,
        preparation: Preparation,
        stats: Mapping[str, Any],
        styles: Mapping[tuple[str, str], Tensor],
        covariances: Mapping[tuple[str, str], Tensor],
        training_subjects: tuple[str, frozenset[str]],
        digest: str,
        card: str = "",
        precision: Literal["fp32", "bf16"] = "fp32",
        slabs: SlabChoice = "auto",
        masks: SegmentationLoss | None = None,
    ) -> None:
        network.check_window(preparation.window)
        self.network = network.eval()
        channels_last(network)  # convolutions on a CPU take a quarter less time
        self.preparation = preparation
        self.stats = dict(stats)
        self.styles = dict(styles)
        self.covariances = dict(covariances)
        self.training_subjects = training_subjects
        self.digest = digest
        self.card = card
        self.precision, self.masks = precision, masks
        self.compute = computing(slabs, preparation.shape)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | os.PathLike[str],
        device: str = "cpu",
        precision: Literal["fp32", "bf16"] = "fp32",
        slabs: SlabChoice = "auto",
        masks: bool = False,
    ) -> Self:
        """Read a model folder; with ``masks`` a tokenizer of masks is admitted, whose network takes no scans.

        Raises:
            UsageError: No such folder.
            InputError: It is damaged, changed, of a newer format, or not of this package; its codebook has not seen
                data; it is a tokenizer of masks.
        """
        content, preparation, made_of = read_pretrained(Path(folder), masks=masks)
        means = {style_key(k): v for k, v in content.styles.items() if k.endswith("/mean")}
        covariances = {style_key(k): v for k, v in content.styles.items() if k.endswith("/covariance")}
        return cls(
            content.network.to(device),
            preparation,
            content.stats,
            means,
            covariances,
            content.training_subjects,
            content.digest,
            content.card,
            precision,
            slabs,
            made_of,
        )

    def save_pretrained(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write a model folder; see :func:`write_model_folder`."""
        self.digest = write_model_folder(
            Path(folder),
            self.network,
            preparation=self.preparation.to_json(),
            stats=self.stats,
            styles=named_styles(self.styles, self.covariances),
            subjects=self.training_subjects,
            card=self.card,
            masks=None if self.masks is None else described_masks(self.network, self.masks),
            overwrite=overwrite,
        )

    @property
    def modalities(self) -> tuple[str, ...]:
        """The contrasts the model knows."""
        return self.network.modalities

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return next((p.device for p in self.network.parameters()), torch.device("cpu"))

    def trained_on(self, subject: str) -> bool:
        """Return whether a subject was among those the model was trained on."""
        salt, hashes = self.training_subjects
        return subject_hash(salt, subject) in hashes

    def encode(
        self, volume: Volume, modality: str | None = None, mask: Volume | None = None, allow_head: bool = False
    ) -> LatentScan:
        """Return the code of a scan.

        Args:
            volume: A brain on a background of one value, or a head with ``mask``.
            modality: Its contrast; None takes it from the file name.
            mask: Brain mask on any grid that overlaps the scan's.
            allow_head: Accept a scan that looks like a whole head.

        Raises:
            UsageError: The contrast is not given, ambiguous, not a name, or not one the model knows; the model takes
                masks.
            InputError: The scan looks like a whole head, or cannot be prepared.
        """
        return self.encode_batch([self.prepare(volume, modality, mask, allow_head)])[0]

    def prepare(
        self, volume: Volume, modality: str | None = None, mask: Volume | None = None, allow_head: bool = False
    ) -> PreparedScan:
        """Return a scan as the network sees it: the part of :meth:`encode` that needs no network; same arguments."""
        self._check_scans()
        name = self.known(self._modality(volume, modality))
        prepared = self.preparation.apply({name: volume}, mask, allow_head=allow_head)
        image = np.ascontiguousarray(prepared.image[0], dtype=np.float32)
        return PreparedScan(image, name, prepared.records[name], np.asarray(prepared.mask, dtype=bool))

    @property
    def batch(self) -> int:
        """Scans that the network sees at once."""
        return 2 if math.prod(self.preparation.shape) <= SMALL_VOXELS else 1

    def encode_batch(self, scans: Sequence[PreparedScan]) -> list[LatentScan]:
        """Return the codes of prepared scans."""
        codes = self.encode_images([scan.image[None] for scan in scans], [scan.modality for scan in scans])
        return [
            LatentScan(code, scan.modality, scan.record, scan.mask, self.preparation, self.digest)
            for scan, code in zip(scans, codes, strict=True)
        ]

    def encode_images(self, images: Sequence[np.ndarray[Any, Any]], modalities: Sequence[str]) -> list[Encoded]:
        """Return the codes of images ``(c, x, y, z)`` as the network takes them, scans or masks."""
        codes: list[Encoded] = []
        for part in full(list(zip(images, modalities, strict=True)), self.batch):
            image = torch.from_numpy(np.stack([one for one, _ in part]))  # (b, c, x, y, z)
            ids = self._ids([name for _, name in part])
            with torch.inference_mode(), self._autocast():
                encoded = self.compute(self.network.encode, image.to(self.device), ids)
            codes += [single(encoded, index) for index in range(len(part))]
        return codes[: len(images)]  # what filled the last batch is left over

    def decode(
        self,
        latent: LatentScan,
        modality: str | None = None,
        style: Tensor | None = None,
        intensity: Record | None = None,
    ) -> Volume:
        """Return the scan of a code on its source's grid, float32.

        Args:
            latent: Made by this very model.
            modality: Contrast to paint; None for the source's own. Another sees only the shared part of the code.
            style: Style vector ``(d,)``; None for the code's own, or the training mean of another contrast.
            intensity: Record of a scan whose intensity range the result takes; None for the source's own range, or the
                training mean of another contrast.

        Raises:
            InputError: The code was made by another model.
            UsageError: The model does not know the contrast, or has no style to paint another with.
        """
        return self.decode_batch([latent], modality, style, intensity)[0].volume()

    def decode_batch(
        self,
        latents: Sequence[LatentScan],
        modality: str | None = None,
        style: Tensor | None = None,
        intensity: Record | None = None,
    ) -> list[Painting]:
        """Return what :meth:`decode` makes of several codes; the arguments hold for all of them."""
        self._check_scans()
        coming = [self._to_paint(latent, modality, style) for latent in latents]
        images: dict[int, Tensor] = {}
        for group in alike([code for code, _ in coming]):
            for part in full(group, self.batch):
                encoded = moved(joined([coming[index][0] for index in part]), self.device)
                ids = self._ids([coming[index][1] for index in part])
                with torch.inference_mode(), self._autocast():
                    painted = self.compute(self.network.decode, encoded, ids)
                values = painted[:, 0].float()
                if self.preparation.window is not None:
                    values = values.clamp(*self.preparation.window)
                images |= dict(zip(part, values.cpu(), strict=True))
        return [
            Painting(images[index].numpy(), self._range(latent, coming[index][1], intensity), latent.mask)
            for index, latent in enumerate(latents)
        ]

    def _to_paint(self, latent: LatentScan, modality: str | None, style: Tensor | None) -> tuple[Encoded, str]:
        """Return what the decoder may see of a code, and the contrast to paint."""
        self.check_latent(latent)
        target = latent.modality if modality is None else self.known(modality)
        encoded = latent.encoded
        if target != latent.modality:
            if encoded.style is None:
                raise UsageError(
                    f"{type(self.network).__name__} has no style, so it cannot paint {latent.modality} as {target}; "
                    "translate with a model that has one (`neurotome configs` lists NeuroQuant's)"
                )
            encoded = self.network.shared(encoded)
            style = self.mean_style(target) if style is None else style
        if style is not None:
            encoded = replace(encoded, style=style.reshape(1, -1).to(encoded.latent.dtype))
        return encoded, target

    def _range(self, latent: LatentScan, target: str, intensity: Record | None) -> Record:
        """Return the source's record with the intensity range of the result."""
        record = latent.record
        if intensity is not None:
            return replace(record, low=intensity.low, high=intensity.high, background=intensity.background)
        if target == latent.modality:
            return record
        low, high = self.intensity(target)
        return replace(record, low=low, high=high, background=0.0)

    def reconstruct(
        self, volume: Volume, modality: str | None = None, mask: Volume | None = None, allow_head: bool = False
    ) -> Volume:
        """Return what is left of a scan after encoding and decoding."""
        return self.decode(self.encode(volume, modality, mask, allow_head))

    def translate(
        self,
        volume: Volume,
        to: str,
        style_from: Volume | None = None,
        modality: str | None = None,
        mask: Volume | None = None,
        allow_head: bool = False,
        site: str | None = None,
    ) -> Volume:
        """Return a scan's anatomy in the contrast ``to``.

        Args:
            volume: The source.
            to: Target contrast.
            style_from: A scan of that contrast whose style and intensity range are taken; None for the training mean.
            modality: Contrast of the source; None takes it from the file name.
            mask: Brain mask of the source.
            allow_head: As in :meth:`encode`, for source and reference.
            site: Training site whose mean style is taken; None for the mean over all sites.

        Raises:
            UsageError: A reference and a site; the network has no style; the model folder holds none for the site.
        """
        target = self.known(to)
        style, intensity = self.look(target, style_from, site, allow_head)
        return self.decode(self.encode(volume, modality, mask, allow_head), target, style, intensity)

    def look(
        self, target: str, style_from: Volume | None = None, site: str | None = None, allow_head: bool = False
    ) -> tuple[Tensor | None, Record | None]:
        """Return the style and the intensities that :meth:`translate` paints with; None for the training mean."""
        if style_from is None:
            return None if site is None else self.mean_style(target, site), None
        if site is not None:
            raise UsageError("a style comes from a reference or from a site; give one of them")
        reference = self.encode(style_from, target, None, allow_head)
        if reference.encoded.style is None:
            raise UsageError(f"{type(self.network).__name__} has no style vector, so a reference cannot lend one")
        return reference.encoded.style, reference.record

    def mean_style(self, modality: str, site: str = ALL_SITES) -> Tensor:
        """Return the mean style vector of a contrast over training subjects.

        Raises:
            UsageError: The model folder holds none.
        """
        if (modality, site) not in self.styles:
            stored = ", ".join(f"{m} at {s}" for m, s in sorted(self.styles)) or "none"
            raise UsageError(
                f"the model stores no style for {modality} at site {site!r} (stored: {stored}); give a reference"
            )
        return self.styles[modality, site]

    def intensity(self, modality: str) -> tuple[float, float]:
        """Return the mean intensity range of a contrast over training subjects; (0, 1) where it is not stored."""
        entry = self.stats.get("intensity", {}).get(modality, {})
        return float(entry.get("low", 0.0)), float(entry.get("high", 1.0))

    def _check_scans(self) -> None:
        if self.masks is not None:
            raise UsageError(f"the model {NO_SCANS[0]}; {NO_SCANS[1]}")

    def known(self, name: str) -> str:
        """Return our name of a contrast.

        Raises:
            UsageError: Not a contrast, or the model was not trained on it.
        """
        if not isinstance(name, str):
            raise UsageError(f"modality is {name!r}; give the name of a contrast: {', '.join(self.modalities)}")
        try:
            canonical = contrasts.canonical(name)
            self.network.modality_id(canonical)
        except ValueError as error:
            raise UsageError(str(error)) from error
        return canonical

    def _modality(self, volume: Volume, given: str | None) -> str:
        if given is not None:
            return given
        name = Path(volume.provenance.path or "").name
        found = contrasts.candidates(name)
        if len(found) != 1:
            what = f"could mean {' or '.join(found)}" if found else "names no contrast"
            raise UsageError(
                f"the file name {name!r} {what}; say which with modality=, one of {', '.join(self.modalities)}"
            )
        return found[0]

    def check_latent(self, latent: LatentScan) -> None:
        """Refuse a code that this model did not make.

        Raises:
            InputError: Another model's, or of a shape this one does not make.
        """
        if latent.tokenizer != self.digest:
            raise InputError(
                f"the latent was made by model {latent.tokenizer[:12]}, this one is {self.digest[:12]}",
                remedy="decode it with the model that made it, or encode the scan again",
            )
        expected = (1, self.network.latent_channels, *self.network.latent_shape(latent.encoded.shape))
        if tuple(latent.encoded.latent.shape) != expected:
            raise InputError(f"the latent has shape {tuple(latent.encoded.latent.shape)}, admissible is {expected}")

    def _ids(self, names: Sequence[str]) -> Tensor:
        return torch.tensor([self.network.modality_id(name) for name in names], device=self.device)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")
