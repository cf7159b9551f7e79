r"""Which of a NIfTI header's two transforms says where the voxels lie.

    sform:  w = S (i, j, k, 1)^T                           a matrix
    qform:  w = R(b, c, d) diag(dx, dy, q dz) (i, j, k)^T + offset    a rotation, spacings and a handedness

A code of 0 means: not used. The matrix wins over the quaternion. Two transforms of the same code must agree to half a
voxel at every corner of the field of view; two of different codes may differ, which is noted. Neither is ever guessed.
``use_qform`` decides for the quaternion where both are there; a file of one transform is read by that one. A transform
that cannot be used, or that was decided against, is not written back.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from neurotome.data.imaging.geometry import Affine, HeaderFields, check_affine
from neurotome.errors import InputError

TOLERANCE_VOXELS = 0.5
# closer transforms are one: single precision moves the far corner of a head by a few ten-thousandths of a voxel
_EQUAL_VOXELS = 0.001
# xyzt_units: 0 unknown (taken as mm by every reader), 1 metre, 2 mm, 3 micrometre
_MM_PER_UNIT = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}


@dataclass(frozen=True, eq=False)
class Xform:
    """The affine that was chosen, and what follows from the choice.

    Args:
        affine: Voxel index to RAS+ mm, ``(4, 4)``.
        notes: What is worth saying about the choice.
        fields: What a written image carries; None for a file that has no such header.
    """

    affine: Affine
    notes: tuple[str, ...]
    fields: HeaderFields | None = None


# numbers beyond all bounds become infinite and are then named, not warned about
@np.errstate(over="ignore", invalid="ignore")
def choose_xform(fields: HeaderFields, *, use_qform: bool = False) -> Xform:
    """Return the affine by the rules above.

    Raises:
        InputError: Both codes are 0, a spacing is NaN, the chosen transform is not finite or singular, or two of one
            code disagree.
    """
    if not np.isfinite(fields.pixdim[1:4]).all():
        raise InputError(f"pixdim[1:4] is {tuple(fields.pixdim[1:4])}; spacings are finite", remedy="repair pixdim")
    if fields.sform_code < 0 or fields.qform_code < 0:
        raise InputError(
            f"negative qform or sform code ({fields.qform_code}, {fields.sform_code})", remedy="repair the header"
        )
    if not fields.sform_code and not fields.qform_code:
        raise InputError(
            "the orientation is unknown: qform and sform code are both 0",
            remedy="copy the geometry from the scan it was made from, or set the sform if you know it",
        )
    scale = _MM_PER_UNIT.get(fields.units & 0x07)
    if scale is None:
        raise InputError(f"xyzt_units is {fields.units}: no known unit of length", remedy="repair the header")
    notes = () if scale == 1.0 else (f"lengths in the header are multiplied by {scale:g} to give mm",)
    if fields.qform_code and (use_qform or not fields.sform_code):
        qform = _checked(_to_mm(_qform(fields), scale), "qform", notes)
        return _without_sform(qform, scale, fields)
    sform = _checked(_to_mm(_sform(fields), scale), "sform", (*notes, *_notes_on_sform(_sform(fields), fields)))
    sform = replace(sform, fields=fields)
    if not fields.qform_code:
        return sform
    return _reconcile(sform, scale, fields)


def _without_sform(qform: Xform, scale: float, fields: HeaderFields) -> Xform:
    """Return the qform; an sform that says something else must not win in the next program that reads the result."""
    if not fields.sform_code:
        return replace(qform, fields=fields)
    sform = _to_mm(_sform(fields), scale)
    if np.isfinite(sform).all() and _gap_voxels(qform.affine, sform, fields.dim[1:4]) <= _EQUAL_VOXELS:
        return replace(qform, fields=fields)
    note = "the qform is used as asked; the sform differs and is not carried on"
    return Xform(qform.affine, (*qform.notes, note), replace(fields, sform_code=0, srow=(0.0,) * 12))


def _reconcile(sform: Xform, scale: float, fields: HeaderFields) -> Xform:
    try:
        qform = _checked(_to_mm(_qform(fields), scale), "qform", ()).affine
    except InputError as error:
        if fields.qform_code == fields.sform_code:
            raise
        note = f"the qform is not carried on ({error.reason}); the sform is used"
        usable = replace(fields, qform_code=0, quatern=(0.0,) * 3, qoffset=(0.0,) * 3)
        return Xform(sform.affine, (*sform.notes, note), usable)
    gap = _gap_voxels(sform.affine, qform, fields.dim[1:4])
    if gap <= TOLERANCE_VOXELS:
        return sform
    if fields.qform_code == fields.sform_code:
        raise InputError(
            f"sform and qform have the same code {fields.sform_code} but differ by {gap:.2f} voxels at a corner of the "
            "field of view",
            remedy="find out which is right; --use-qform takes the qform, clearing the qform code the sform",
        )
    codes = f"sform (code {fields.sform_code}) and qform (code {fields.qform_code})"
    note = f"{codes} differ by {gap:.2f} voxels; the sform is used"
    return replace(sform, notes=(*sform.notes, note))


def _sform(fields: HeaderFields) -> Affine:
    return np.vstack([np.reshape(fields.srow, (3, 4)), [0.0, 0.0, 0.0, 1.0]])


def _qform(fields: HeaderFields) -> Affine:
    spacing = np.asarray(fields.pixdim[1:4])
    if not (np.isfinite(spacing).all() and (spacing > 0).all()):
        raise InputError(
            f"pixdim {tuple(fields.pixdim[1:4])}: the qform needs positive spacings", remedy="repair pixdim"
        )
    if not np.isfinite([*fields.quatern, *fields.qoffset]).all():
        raise InputError("the qform holds NaN or infinity", remedy="clear the qform code if the sform is right")
    b, c, d = fields.quatern
    rest = 1.0 - (b * b + c * c + d * d)
    if rest < -1e-5:  # single precision leaves it a little below 0
        raise InputError("the qform's quaternion is longer than 1", remedy="clear the qform code if the sform is right")
    if fields.pixdim[0] not in (-1.0, 0.0, 1.0):
        raise InputError(f"pixdim[0] is {fields.pixdim[0]:g}; the handedness is -1 or 1", remedy="repair pixdim[0]")
    handed = np.array([1.0, 1.0, -1.0 if fields.pixdim[0] == -1.0 else 1.0])
    affine = np.eye(4)
    affine[:3, :3] = _rotation(math.sqrt(max(rest, 0.0)), b, c, d) * (spacing * handed)
    affine[:3, 3] = fields.qoffset
    return affine


def _rotation(a: float, b: float, c: float, d: float) -> Float[np.ndarray, "3 3"]:
    """Return the rotation of a quaternion, made unit length first."""
    a, b, c, d = np.array([a, b, c, d]) / math.sqrt(a * a + b * b + c * c + d * d)
    return np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )


def _notes_on_sform(sform: Affine, fields: HeaderFields) -> tuple[str, ...]:
    notes = []
    norms = np.linalg.norm(sform[:3, :3], axis=0)
    if norms.min() > 0:
        cosines = (sform[:3, :3] / norms).T @ (sform[:3, :3] / norms) - np.eye(3)
        if np.abs(cosines).max() > 0.01:
            notes.append(f"the voxel axes are not perpendicular (shear {np.abs(cosines).max():.1%})")
    if not np.allclose(norms, fields.pixdim[1:4], rtol=0.01):
        spacing = " x ".join(f"{d:.4g}" for d in norms)
        given = " x ".join(f"{d:.4g}" for d in fields.pixdim[1:4])
        notes.append(f"pixdim says {given}, the sform {spacing}; the sform is used")
    return tuple(notes)


def _to_mm(affine: Affine, scale: float) -> Affine:
    return np.diag([scale, scale, scale, 1.0]) @ affine


def _checked(affine: Affine, name: str, notes: tuple[str, ...]) -> Xform:
    try:
        check_affine(affine)
    except InputError as error:
        other = "sform" if name == "qform" else "qform"
        raise InputError(
            f"the {name} is unusable: {error.reason}",
            remedy=f"repair the {name}, or use the {other} if its code is set",
        ) from error
    return Xform(affine, notes)


def _gap_voxels(a: Affine, b: Affine, shape: tuple[int, ...]) -> float:
    """Return how far the two transforms are apart at the corners of the field of view, in voxels of the first."""
    ends = [(-0.5, n - 0.5) for n in shape]
    corners: Float[np.ndarray, "8 4"] = np.stack(np.meshgrid(*ends, [1.0], indexing="ij"), axis=-1).reshape(8, 4)
    shift = corners @ (np.linalg.inv(a) @ b).T - corners
    return float(np.linalg.norm(shift[:, :3], axis=1).max())
