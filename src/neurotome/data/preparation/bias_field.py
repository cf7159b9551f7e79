r"""Slow changes of brightness across a scan (the coil's), estimated and divided out: N4 (Tustison et al., 2010).

    v(x) = anatomy(x) field(x)          corrected = v / field

The field is fitted inside the brain on a coarse grid, where it is smooth enough to be seen whole, and evaluated on
every voxel. It is not kept: a restored scan is free of it, and its record says so.
"""

import numpy as np
from jaxtyping import Bool, Float

from neurotome.data.imaging.volume import Volume
from neurotome.data.preparation.extras import SIMPLEITK, one_thread, simpleitk
from neurotome.data.preparation.intensity import MAX_NEGATIVE
from neurotome.errors import InputError

# the field changes over centimetres; fitting on finer voxels costs time and changes nothing
_FIT_MM = 4.0
_ITERATIONS = (50, 50, 50, 50)


def version() -> str:
    """Return the method as a record names it.

    Raises:
        UsageError: SimpleITK is not installed.
    """
    return f"N4, {SIMPLEITK} {simpleitk('N4 bias correction').Version.VersionString()}"


def corrected(name: str, volume: Volume, brain: Bool[np.ndarray, "x y z"]) -> Float[np.ndarray, "p q r"]:
    """Return the voxels without their bias field, float32.

    Args:
        name: Of the contrast, for messages.
        volume: The scan.
        brain: On its grid.

    Raises:
        UsageError: SimpleITK is not installed.
        InputError: Much of the brain is negative, so that it has no logarithm, or the fit failed.
    """
    sitk = simpleitk("N4 bias correction")
    if (negative := float(np.mean(volume.array[brain] < 0))) > MAX_NEGATIVE:
        raise InputError(
            f"{name}: {negative:.0%} of the brain lie below 0, and the bias field is fitted to logarithms",
            file=volume.provenance.path,
            remedy="prepare without --bias-field n4, or give scans that were not z-scored",
        )
    # a logarithm is taken: what is not positive is left out of the fit
    values = np.ascontiguousarray(volume.array.T, dtype=np.float32)
    mask = np.ascontiguousarray((brain & (volume.array > 0)).T).astype(np.uint8)
    image, inside = sitk.GetImageFromArray(values), sitk.GetImageFromArray(mask)
    for one in (image, inside):
        one.SetSpacing([float(s) for s in volume.geometry.spacing_mm])
    factors = [
        max(1, min(int(_FIT_MM / s), n // 8))
        for s, n in zip(volume.geometry.spacing_mm, volume.geometry.shape, strict=True)
    ]
    try:
        with one_thread(sitk):
            fit = sitk.N4BiasFieldCorrectionImageFilter()
            fit.SetMaximumNumberOfIterations(list(_ITERATIONS))
            fit.Execute(sitk.Shrink(image, factors), sitk.Shrink(inside, factors))
            log_field = sitk.GetArrayFromImage(fit.GetLogBiasFieldAsImage(image)).T
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else "no reason given"
        raise InputError(
            f"{name}: the bias field could not be fitted ({reason})",
            file=volume.provenance.path,
            remedy="prepare without --bias-field n4",
        ) from error
    return np.asarray(volume.array / np.exp(log_field), dtype=np.float32)
