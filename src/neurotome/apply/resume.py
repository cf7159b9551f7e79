"""The same command again: what stands is verified and kept, what is missing or damaged is made.

    kept      source, mask, model, options and the result's own bytes have the SHA-256 that its sidecar says
    missing   there is no result
    again     ours, but its bytes, its source or its mask have changed since
    foreign   not ours, or of another source, model or other options: refused, unless --overwrite

A folder of results carries ``.neurotome.json`` with the model and options that filled it, and
``.neurotome.lock``, which a process that writes there holds.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from neurotome.apply.names import RESULT_KEY, Job, sidecar_of
from neurotome.data.datasets.text_files import read_json
from neurotome.errors import InputError, OutputError, UsageError, printable
from neurotome.files.atomic import output_error, sweep, write_atomically
from neurotome.files.lock import alone
from neurotome.files.verified import file_sha256

RECORD, LOCK = ".neurotome.json", ".neurotome.lock"
REQUEST_KEYS = ("ModelSHA256", "Parameters")

_WORDS = {"ModelSHA256": "model", "Parameters": "choice of options"}

Standing = Literal["missing", "kept", "again", "foreign"]


def standing(job: Job, request: Mapping[str, Any]) -> tuple[Standing, str]:
    """Return how a result stands, and why.

    Args:
        job: What is to be made.
        request: ``ModelSHA256`` and ``Parameters``, as the sidecar would have them.
    """
    beside = sidecar_of(job.target)
    if not job.target.exists() and not beside.exists():
        return "missing", ""
    try:
        sidecar = read_json(beside) if beside.exists() else {}
    except InputError:
        sidecar = {}
    there = "is there already" if job.target.exists() else f"has the sidecar of another file, {beside.name}"
    if "ModelSHA256" not in sidecar or (RESULT_KEY not in sidecar):
        return "foreign", f"{there}, and has no sidecar of ours"
    if changed := [key for key in REQUEST_KEYS if sidecar.get(key) != request[key]]:
        return "foreign", f"{there}, made with another {' and '.join(_WORDS[key] for key in changed)}"
    if sidecar.get("Sources") != [job.origin]:
        return "foreign", f"{there}, made from another scan"
    if not job.target.exists():
        return "missing", ""
    return _compared(job, sidecar)


def _compared(job: Job, sidecar: Mapping[str, Any]) -> tuple[Standing, str]:
    try:
        if file_sha256(job.target) != sidecar[RESULT_KEY]:
            return "again", "its bytes have changed"
        if file_sha256(job.source) != sidecar.get("SourceSHA256"):
            return "again", "its source has changed"
        mask = None if job.mask is None else file_sha256(job.mask)
    except InputError as error:
        return "again", f"it cannot be verified ({error.reason})"
    return ("kept", "") if mask == sidecar.get("MaskSHA256") else ("again", "the brain mask has changed")


def check_request(target: Path, request: Mapping[str, Any], *, overwrite: bool) -> None:
    """Check that a folder is empty, or was filled by this very command.

    Raises:
        UsageError: It holds something else.
    """
    if overwrite or not target.is_dir() or all(found.name == LOCK for found in target.iterdir()):
        return
    if not (target / RECORD).is_file():
        raise UsageError(f"{printable(target)}: is not empty; give --overwrite or another folder")
    try:
        record = read_json(target / RECORD)
    except InputError:
        record = {}
    if changed := [key for key in REQUEST_KEYS if record.get(key) != request[key]]:
        what = " and ".join(_WORDS[key] for key in changed)
        raise UsageError(
            f"{printable(target)}: holds results of another {what}{_shown(record, request, changed)}; give another "
            "folder, or --overwrite to make them all again"
        )


def _shown(record: Mapping[str, Any], request: Mapping[str, Any], changed: list[str]) -> str:
    def text(value: Any) -> str:
        return str(value)[:12] if not isinstance(value, Mapping) else printable(json.dumps(value))

    return f" ({'; '.join(f'{text(record.get(key))} there, {text(request[key])} asked for' for key in changed)})"


@contextlib.contextmanager
def writing(target: Path, request: Mapping[str, Any]) -> Iterator[None]:
    """Hold a folder of results for this process: sweep what a killed one left, and say what fills it.

    Raises:
        OutputError: The folder cannot be made, or another process writes into it.
    """
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(target, error) from error
    held = OutputError(
        f"{printable(target)}: another process writes here. Remedy: wait for it, or choose another folder."
    )
    with alone(target / LOCK, held):
        sweep(target)
        text = json.dumps({"Software": "neurotome", **{key: request[key] for key in REQUEST_KEYS}}, indent=2)
        write_atomically(target / RECORD, [text.encode() + b"\n"])
        yield
