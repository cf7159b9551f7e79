r"""A trained tokenizer for scans: volumes in, volumes out, on the grid and with the header they came with.

    encode      volume -> prepare -> network.encode -> code, geometry, intensities
    decode      code -> network.decode -> undo the preparation -> volume
    translate   decode(shared code, style of the target contrast)

The style of another contrast is, unless a reference is given, its mean over the *training* subjects, and the intensity
range is the mean range of that contrast over the training subjects (a source's own range says nothing about another
contrast); outside the brain the value is 0.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
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
from neurotome.data.stores.masks import MaskSource
from neurotome.errors import InputError, UsageError
from neurotome.files.endings import stem
from neurotome.models.folder import NO_SCANS, check_usable, read_folder, write_model_folder
from neurotome.models.styles import ALL_SITES, named_styles, style_key
from neurotome.models.subjects import TrainingSubjects
from neurotome.nn.slabs.computing import SlabChoice
from neurotome.scans.codec import Codec
from neurotome.scans.given import GivenScan, as_volume
from neurotome.scans.larger_grid import prepared_for
from neurotome.scans.latent_scan import LatentScan
from neurotome.scans.stages import DecodedScan, PreparedScan
from neurotome.tokenizers.base import Encoded, Tokenizer
from neurotome.types import Images


class ScanTokenizer:
    """A network with the preparation, styles and statistics it was trained with.

    Args:
        network: The tokenizer; put into evaluation mode.
        preparation: What it expects.
        stats: Statistics per latent channel, and ``intensity``: mean low and high per contrast.
        styles: Mean style vector by (contrast, site); site "all" pools them.
        covariances: Covariance of the style vector, by the same keys.
        training_subjects: Hashes of subjects and scans.
        digest: What a latent is stamped with.
        card: README of the model folder.
        precision: "bf16" runs the network in mixed precision.
        slabs: Planes of a volume that the network computes at a time (:func:`neurotome.nn.slabs.computing.computing`).
        images: What the images are that it was trained on; None for scans.
        frozen: Digests of the networks that its training only read, by name.
        origin: Digests of the models that its training started from.
        provenance: Where its weights come from, if not from a training here.

    Raises:
        ValueError: The preparation makes images that the network cannot decode.
    """

    def __init__(
        self,
        network: Tokenizer,
        preparation: Preparation,
        stats: Mapping[str, Any],
        styles: Mapping[tuple[str, str], Tensor],
        covariances: Mapping[tuple[str, str], Tensor],
        training_subjects: TrainingSubjects,
        digest: str,
        card: str = "",
        precision: Literal["fp32", "bf16"] = "fp32",
        slabs: SlabChoice = "auto",
        images: Images | None = None,
        frozen: Mapping[str, str] | None = None,
        origin: Sequence[str] = (),
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        network.check_window(preparation.window)
        self.codec = Codec(network, preparation.shape, precision, slabs)
        self.network, self.preparation = self.codec.network, preparation
        self.stats = dict(stats)
        self.styles = dict(styles)
        self.covariances = dict(covariances)
        self.training_subjects = training_subjects
        self.digest = digest
        self.card = card
        self.images, self.frozen, self.origin = images or Images(), dict(frozen or {}), tuple(origin)
        self.provenance = dict(provenance or {})

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
        content = read_folder(Path(folder), Tokenizer)  # type: ignore[type-abstract]  # the registry's are concrete
        check_usable(content, Path(folder), "masks" if masks and content.images.masks else "voxels")
        try:
            content.network.check_window(content.preparation.window)
        except ValueError as error:
            raise InputError(str(error), file=Path(folder) / "preprocess.json") from error
        means = {style_key(k): v for k, v in content.styles.items() if k.endswith("/mean")}
        covariances = {style_key(k): v for k, v in content.styles.items() if k.endswith("/covariance")}
        return cls(
            content.network.to(device), content.preparation, content.stats, means, covariances,
            content.training_subjects, content.digest, content.card, precision, slabs, content.images, content.frozen,
            content.origin, content.provenance,
        )  # fmt: skip

    def save_pretrained(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write a model folder; see :func:`write_model_folder`."""
        self.digest = write_model_folder(
            Path(folder),
            self.network,
            preparation=self.preparation,
            stats=self.stats,
            styles=named_styles(self.styles, self.covariances),
            subjects=self.training_subjects,
            card=self.card,
            images=self.images,
            frozen=self.frozen,
            origin=self.origin,
            provenance=self.provenance,
            overwrite=overwrite,
        )

    @property
    def modalities(self) -> tuple[str, ...]:
        """The contrasts the model knows."""
        return self.network.modalities

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return self.codec.device

    @property
    def masks(self) -> MaskSource | None:
        """How a batch becomes the masks it was trained on; None for a tokenizer of scans."""
        found = self.images.masks
        return MaskSource(found["source"], self.network.in_channels) if found else None

    def trained_on(self, subject: str, scans: Iterable[str] = ()) -> bool:
        """Return whether a subject was among those the model was trained on, by its id or the content of its scans."""
        return self.training_subjects.include(subject, scans)

    def encode(
        self,
        volume: GivenScan,
        modality: str | None = None,
        mask: GivenScan | None = None,
        allow_head: bool = False,
    ) -> LatentScan:
        """Return the code of a scan.

        Args:
            volume: A brain on a background of one value, or a head with ``mask``: a path, a :class:`Volume`, or an
                image of nibabel.
            modality: Its contrast; None takes it from the file name.
            mask: Brain mask on any grid that overlaps the scan's, given like the scan.
            allow_head: Accept a scan that looks like a whole head.

        Raises:
            UsageError: The contrast is not given, ambiguous, not a name, or not one the model knows; the model takes
                masks.
            InputError: The scan looks like a whole head, or cannot be read or prepared.
            TypeError: Scan or mask are something else.
        """
        return self.encode_batch([self.prepare(volume, modality, mask, allow_head)])[0]

    def prepare(
        self,
        volume: GivenScan,
        modality: str | None = None,
        mask: GivenScan | None = None,
        allow_head: bool = False,
    ) -> PreparedScan:
        """Return a scan as the network sees it: the part of :meth:`encode` that needs no network; same arguments."""
        self._check_scans()
        scan, brain = as_volume(volume), None if mask is None else as_volume(mask, "mask")
        name = self.known(self._modality(scan, modality))
        prepared = prepared_for(self.network, self.preparation, name, scan, brain, allow_head)
        image = np.ascontiguousarray(prepared.image[0], dtype=np.float32)
        return PreparedScan(image, name, prepared.records[name], np.asarray(prepared.mask, dtype=bool))

    def encode_batch(self, scans: Sequence[PreparedScan]) -> list[LatentScan]:
        """Return the codes of prepared scans."""
        codes = self.codec.encode([scan.image[None] for scan in scans], [scan.modality for scan in scans])
        prepared = [replace(self.preparation, shape=scan.image.shape) for scan in scans]
        return [
            LatentScan(code, scan.modality, scan.record, scan.mask, used, self.digest, self.codec.from_codes)
            for scan, code, used in zip(scans, codes, prepared, strict=True)
        ]

    def decode(
        self,
        latent: LatentScan | str | os.PathLike[str],
        modality: str | None = None,
        style: Tensor | None = None,
        intensity: Record | None = None,
    ) -> Volume:
        """Return the scan of a code on its source's grid, float32.

        Args:
            latent: Made by this very model, or the path of its file.
            modality: Contrast of the result; None for the source's own. Another sees only the shared part of the code.
            style: Style vector ``(d,)``; None for the code's own, or the training mean of another contrast.
            intensity: Record of a scan whose intensity range the result takes; None for the source's own range, or the
                training mean of another contrast.

        Raises:
            InputError: The code was made by another model, or its file is damaged.
            UsageError: The model does not know the contrast, or has no style for another one.
            TypeError: It is no code.
        """
        return self.decode_batch([LatentScan.given(latent)], modality, style, intensity)[0].volume()

    def decode_batch(
        self,
        latents: Sequence[LatentScan],
        modality: str | None = None,
        style: Tensor | None = None,
        intensity: Record | None = None,
    ) -> list[DecodedScan]:
        """Return what :meth:`decode` makes of several codes; the arguments hold for all of them."""
        self._check_scans()
        coming = [self._to_decode(latent, modality, style) for latent in latents]
        images = [image[0] for image in self.codec.decode([c for c, _ in coming], [target for _, target in coming])]
        if self.preparation.window is not None:
            images = [image.clamp(*self.preparation.window) for image in images]
        return [
            DecodedScan(image.numpy(), self._range(latent, target, intensity), latent.mask)
            for image, (_, target), latent in zip(images, coming, latents, strict=True)
        ]

    def _to_decode(self, latent: LatentScan, modality: str | None, style: Tensor | None) -> tuple[Encoded, str]:
        """Return what the decoder may see of a code, and the contrast it decodes to."""
        self.check_latent(latent)
        target = latent.modality if modality is None else self.known(modality)
        encoded = latent.encoded
        if target != latent.modality:
            if encoded.style is None:
                raise UsageError(
                    f"{type(self.network).__name__} has no style, so it cannot decode {latent.modality} as {target}; "
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
        self,
        volume: GivenScan,
        modality: str | None = None,
        mask: GivenScan | None = None,
        allow_head: bool = False,
    ) -> Volume:
        """Return what is left of a scan after encoding and decoding."""
        return self.decode(self.encode(volume, modality, mask, allow_head))

    def translate(
        self,
        volume: GivenScan,
        to: str,
        style_from: GivenScan | None = None,
        modality: str | None = None,
        mask: GivenScan | None = None,
        allow_head: bool = False,
        site: str | None = None,
    ) -> Volume:
        """Return a scan's anatomy in the contrast ``to``.

        Args:
            volume: The source, given as in :meth:`encode`, like reference and mask.
            to: Target contrast.
            style_from: A scan of that contrast whose style and intensity range are taken; None for the training mean.
            modality: Contrast of the source; None takes it from the file name.
            mask: Brain mask of the source.
            allow_head: As in :meth:`encode`, for source and reference.
            site: Training site whose mean style is taken; None for the mean over all sites.

        Raises:
            UsageError: A reference and a site; a reference named after another contrast; the network has no style; the
                model folder holds none for the site.
        """
        target = self.known(to)
        style, intensity = self.appearance(target, style_from, site, allow_head)
        return self.decode(self.encode(volume, modality, mask, allow_head), target, style, intensity)

    def appearance(
        self, target: str, style_from: GivenScan | None = None, site: str | None = None, allow_head: bool = False
    ) -> tuple[Tensor | None, Record | None]:
        """Return the style and the intensity range that :meth:`translate` gives its result; None for training means."""
        if style_from is None:
            return None if site is None else self.mean_style(target, site), None
        if site is not None:
            raise UsageError("a style comes from a reference or from a site; give one of them")
        scan = as_volume(style_from, "style_from")
        file = Path(scan.provenance.path or "")
        named = contrasts.candidates(stem(file))
        if named and target not in named:
            raise UsageError(f"{file}: the reference is {' or '.join(named)} by its name; give a scan of {target}")
        reference = self.encode(scan, target, None, allow_head)
        if reference.encoded.style is None:
            raise UsageError(
                f"{type(self.network).__name__} has no style vector, so none can be taken from a reference"
            )
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
        if self.images.space != "voxels":
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
        found = contrasts.candidates(stem(name))
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
        self.codec.check(latent.encoded)
