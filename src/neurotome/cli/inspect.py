"""``neurotome inspect``: lists what was found at a path and what would be done with it; writes nothing."""

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurotome.cli import add_common, add_reading, answer, existing, natural, say, some
from neurotome.errors import printable

if TYPE_CHECKING:
    from neurotome.data.datasets.manifest import Manifest, SessionScans


def add_parser(subparsers: Any) -> None:
    """Add the verb ``inspect``."""
    parser = subparsers.add_parser(
        "inspect",
        help="list what was found and what would be done",
        description="Lists what was found: a BIDS dataset, a table of scans, a folder, one image, or a prepared store.",
    )
    parser.add_argument(
        "path", metavar="PATH", help="BIDS or nnU-Net dataset, .tsv or .csv table, folder, image or store"
    )
    parser.add_argument(
        "--headers", type=natural, default=64, metavar="N",
        help="sessions whose headers are read, spread over the dataset (default: 64)",
    )  # fmt: skip
    add_reading(parser)
    add_common(parser, seed=True)


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    path = existing(args.path, "file or folder")
    if (path / "index.json").is_file():
        result = _store(path)
    elif path.is_file() and not path.name.lower().endswith((".tsv", ".csv")):
        result = _image(path, args.volume, args.use_qform)
    else:
        from neurotome.data.datasets.manifest import scan

        result = _manifest(scan(path, args.root), args)
    for line in some([f"warning: {printable(warning)}" for warning in result["warnings"]], "warning"):
        say(args, line)
    answer(args, result, _text(result))
    return 0


def _manifest(manifest: "Manifest", args: argparse.Namespace) -> dict[str, Any]:
    from neurotome.data.datasets.dataset_headers import look

    scans = Counter(m for s in manifest.sessions for m in s.scans)
    chosen = [f"{_name(s.subject, s.session)}: {note}" for s in manifest.sessions for note in s.notes]
    headers = look(manifest, args.headers, volume=args.volume, use_qform=args.use_qform)
    views = manifest.modalities
    return {
        "kind": manifest.kind,
        "root": str(manifest.root),
        "subjects": len(manifest.subjects),
        "sessions": len(manifest.sessions),
        "scans": {m: scans[m] for m in views},
        "not_chosen": len(manifest.rows) - sum(scans.values()),
        "complete_sessions": sum(len(s.scans) == len(views) for s in manifest.sessions),
        "sites": list(manifest.sites),
        "masks": sum(s.mask is not None for s in manifest.sessions),
        "labels": sum(s.labels is not None for s in manifest.sessions),
        "would_split": _splits(manifest, args.seed),
        "headers": headers.to_json(),
        "would_run": headers.command(manifest, args.path, args.root),
        "warnings": [str(error) for s in manifest.sessions for error in s.damage.values()],
        "notes": [*headers.notes(manifest), *manifest.notes, *_unassigned(manifest), *chosen],
        "found": [_session(manifest, s) for s in manifest.sessions],
    }


def _splits(manifest: "Manifest", seed: int) -> dict[str, int]:
    """Return how many subjects each split would get: as the dataset says, else by the seed."""
    from neurotome.data.datasets.splits import SPLITS, split_subjects

    count = Counter((manifest.splits or split_subjects(manifest.subjects, seed)).values())
    return {name: count[name] for name in SPLITS}


def _unassigned(manifest: "Manifest") -> list[str]:
    """Return what ``prepare`` will refuse: splits that the dataset assigns to some subjects alone."""
    missing = len(manifest.subjects) - len(manifest.splits)
    why = f"the dataset assigns splits, but none to {missing} subjects: prepare asks for --splits or --split-sizes"
    return [why] if manifest.splits and missing else []


def _session(manifest: "Manifest", s: "SessionScans") -> dict[str, Any]:
    return {
        "subject": s.subject,
        "session": s.session,
        "site": s.site,
        "scans": {m: manifest.relative(p) for m, p in s.scans.items()},
        "mask": manifest.relative(s.mask) if s.mask else None,
        "labels": manifest.relative(s.labels) if s.labels else None,
    }


def _image(path: Path, volume_index: int | None, use_qform: bool) -> dict[str, Any]:
    from neurotome.data.imaging.reader import read_volume
    from neurotome.files.endings import stem
    from neurotome.modality import candidates

    volume = read_volume(path, volume=volume_index, use_qform=use_qform, nonfinite="keep")
    geometry = volume.geometry
    return {
        "kind": "image",
        "root": str(path),
        "modality": list(candidates(stem(path))),
        "shape": list(geometry.shape),
        "spacing_mm": [round(d, 4) for d in geometry.spacing_mm],
        "type": volume.provenance.dtype,
        "range": [float(volume.array.min()), float(volume.array.max())],
        "sha256": volume.provenance.sha256,
        "warnings": [],
        "notes": list(volume.provenance.notes),
    }


def _store(path: Path) -> dict[str, Any]:
    from neurotome.data.datasets.splits import SPLITS
    from neurotome.data.stores.store import Store

    store = Store.open(path)
    return {
        "kind": "store",
        "root": str(path),
        "sessions": len(store.sessions),
        "modalities": list(store.modalities),
        "sites": list(store.sites),
        "preparation": store.preparation.to_json(),
        "subjects": {name: len(store.subjects(name)) for name in SPLITS},
        "fingerprint": store.fingerprint,
        "warnings": [],
        "notes": [],
    }


def _text(result: dict[str, Any]) -> str:
    apart = ("notes", "warnings", "found", "would_run")
    lines = [f"{key:<18} {_cell(value)}" for key, value in result.items() if key not in apart]
    found = result.get("found", [])
    lines += ["", *(f"  {line}" for line in some([_row(one) for one in found], "session"))] if found else []
    notes = [f"note: {printable(note)}" for note in result["notes"]]
    lines += ["", *some(notes, "note")] if notes else []
    lines += ["", "to prepare it:", "", f"  {result['would_run']}"] if "would_run" in result else []
    return "\n".join(lines)


def _row(one: dict[str, Any]) -> str:
    extras = [word for word in ("mask", "labels") if one[word]]
    site = f"  site {printable(one['site'])}" if one["site"] else ""
    return f"{_name(one['subject'], one['session']):<24} {' '.join([*one['scans'], *extras])}{site}"


def _name(subject: str, session: str) -> str:
    return printable(f"sub-{subject}" + (f" ses-{session}" if session else ""))


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_cell(one)}" for key, one in value.items())
    if isinstance(value, list):
        return " ".join(_cell(one) for one in value) or "-"
    return printable(str(value))
