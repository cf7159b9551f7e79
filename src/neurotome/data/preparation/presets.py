"""The preparations of two published systems, by name; a flag given beside a preset overrides it.

adni-2mm    2 mm, field of view cut or padded to 91 x 109 x 91, brain above 50, z-score, 0 outside the brain
neuroquant  1 mm, brain box padded to 144 x 192 x 144, percentiles 0.5 and 99.5 of voxels above 0 become -1 and 1
"""

from typing import Any

from neurotome.errors import UsageError

# differs from the source of adni-2mm: it takes mean and deviation over all voxels above 0 and masks each contrast by
# itself; here both come from the one brain of the session, because its contrasts are compared voxel by voxel
# differs from the source of neuroquant: its code centres the crop on the field of view, its text on the brain box
PRESETS: dict[str, dict[str, Any]] = {
    "adni-2mm": {
        "spacing_mm": 2.0,
        "shape": (91, 109, 91),
        "mask_threshold": 50.0,
        "crop": "centre",
        "intensity": "zscore",
    },
    "neuroquant": {"spacing_mm": 1.0, "shape": (144, 192, 144), "percentiles": (0.5, 99.5), "measured": "positive"},
}


def preset(name: str) -> dict[str, Any]:
    """Return the arguments of :class:`neurotome.data.preparation.preparation.Preparation`.

    Raises:
        UsageError: There is no such preset.
    """
    if name not in PRESETS:
        raise UsageError(f"there is no preset {name!r}; admissible are {', '.join(PRESETS)}")
    return dict(PRESETS[name])
