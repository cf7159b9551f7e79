"""Translate scans into another contrast: the work that the verb does for every scan."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neurotome.apply.names import Job
from neurotome.apply.reconstruct import decoded_result, scans
from neurotome.apply.work import Loaded, Reading, Result, Work
from neurotome.scans.tokenizer import ScanTokenizer


class Translation(Work):
    """A scan's anatomy in another contrast, on the scan's own grid.

    Args:
        tokenizer: The model.
        to: Target contrast.
        reading: How scans are read.
        style_from: A scan of that contrast whose style and intensity range are taken; None for the training mean.
        style_site: Training site whose mean style is taken; None for the mean over all sites.

    Raises:
        UsageError: The model does not know the contrast or the site, or both a reference and a site are given.
        InputError: The reference is refused.
    """

    verb = "translate"

    def __init__(
        self,
        tokenizer: ScanTokenizer,
        to: str,
        reading: Reading | None = None,
        style_from: Path | None = None,
        style_site: str | None = None,
    ) -> None:
        super().__init__(tokenizer, reading)
        self.to = tokenizer.known(to)
        reference = None if style_from is None else self.reading.read(style_from)
        self.style, self.intensity = tokenizer.appearance(self.to, reference, style_site, self.reading.allow_head)
        self.reference = None if reference is None else reference.provenance.sha256
        self.site = style_site
        if style_from is not None:
            self.style_name = f"of {style_from.name}"
        else:
            self.style_name = f"mean over training subjects{f' of site {style_site}' if style_site is not None else ''}"

    def options(self) -> dict[str, Any]:
        """See :class:`Work`."""
        return {"To": self.to, "StyleFromSHA256": self.reference, "StyleSite": self.site}

    def load(self, job: Job) -> Loaded:
        """See :class:`Work`."""
        scan, facts = self.load_scan(job)
        return Loaded(job, scan, facts | {"Modality": self.to})

    def compute(self, loaded: Sequence[Loaded]) -> list[Result]:
        """See :class:`Work`."""
        codes = self.tokenizer.encode_batch(scans(loaded))
        decoded = self.tokenizer.decode_batch(codes, self.to, self.style, self.intensity)
        target = "mean range of the training subjects" if self.reference is None else f"range {self.style_name}"
        return [
            decoded_result(
                one,
                image,
                Description="a scan's anatomy synthesised in a contrast that was not measured",
                Style=self.style_name,
                IntensityUnits=f"arbitrary; scaled to the {target}",
            )
            for one, image in zip(loaded, decoded, strict=True)
        ]
