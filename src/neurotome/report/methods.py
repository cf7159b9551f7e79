"""A paragraph on how the numbers were made, to be pasted into a paper; it states only what the run's files say."""

from neurotome.report.run import Run, lookup, number

_MAPS = {
    "monotone_map": "a monotone intensity map fitted on training subjects",
    "monotone_ceiling": "the best monotone map of each scan",
}


def methods_text(run: Run) -> str:
    """Return the paragraph, or "" for a run that was not evaluated."""
    protocol = lookup(run.metrics, "protocol")
    if not isinstance(protocol, dict) or not protocol:
        return ""
    parts = [_training(run, protocol), _evaluation(protocol), _measures(run, protocol)]
    return " ".join(part for part in parts if part)


def _count(value: object, one: str) -> str:
    n = number(value)
    return "" if n is None else f"{n:.0f} {one}{'' if n == 1 else 's'}"


def _training(run: Run, protocol: dict[str, object]) -> str:
    model, version = str(protocol.get("model") or "The model"), str(run.environment.get("neurotome") or "")
    steps = _count(run.status.get("step"), "optimiser step")
    subjects = _count(protocol.get("training_subjects"), "subject")
    contrasts = protocol.get("modalities")
    of = f" ({', '.join(map(str, contrasts))})" if isinstance(contrasts, list) and contrasts else ""
    if protocol.get("trained_on_evaluated", False) is None and not run.status:
        return f"{model} has published weights, converted by neurotome{f' {version}' if version else ''}."
    trained = f" for {steps}" if steps else ""
    on = f" on {subjects}{of}" if subjects else ""
    return f"{model} (neurotome{f' {version}' if version else ''}) was trained{trained}{on}."


def _evaluation(protocol: dict[str, object]) -> str:
    split = {"val": "validation", "train": "training"}.get(str(protocol.get("split")), "test")
    subjects, sessions = _count(protocol.get("subjects"), "subject"), _count(protocol.get("sessions"), "session")
    shape, spacing = protocol.get("shape"), protocol.get("spacing_mm")
    grid = f" on a grid of {' x '.join(map(str, shape))} voxels" if isinstance(shape, list) else ""
    edge = number(spacing)
    grid += f" of {edge:g} mm" if grid and edge is not None else ""
    seen = " These subjects were part of the training." if protocol.get("trained_on_evaluated") is True else ""
    if protocol.get("trained_on_evaluated", False) is None:
        seen = " Whom published weights in it were trained on is not known; these subjects may have been among them."
    over = f"{subjects} ({sessions})" if sessions else subjects
    return f"It was evaluated on {over} of the {split} split{grid}.{seen}" if subjects else ""


def _measures(run: Run, protocol: dict[str, object]) -> str:
    window, data_range = number(protocol.get("ssim_window")), number(protocol.get("data_range"))
    text = f"PSNR{f' (data range {data_range:g})' if data_range is not None else ''}"
    text += f" and SSIM{f' (uniform window of {window:.0f} voxels)' if window is not None else ''}"
    text += " were computed inside the brain mask, averaged over the sessions of a subject and then over subjects; "
    text += "intervals are 95 % bias-corrected and accelerated bootstrap intervals over subjects."
    brain, grid = (number(lookup(run.metrics, "bits", f"own_per_{k}")) for k in ("brain_voxel", "voxel"))
    if brain is not None and grid is not None:
        text += f" A scan took {brain:.2f} bits per brain voxel, {grid:.2f} per voxel of the grid."
    translation = lookup(run.metrics, "translation")
    if isinstance(translation, dict) and translation:
        text += (
            " A translation was decoded from the shared code of the source and the mean style of the target contrast "
            "over training subjects"
        )
        made = [lookup(run.metrics, "translation", task, "baselines") for task in translation]
        maps = [words for key, words in _MAPS.items() if any(isinstance(one, dict) and key in one for one in made)]
        text += f", and compared with {' and with '.join(maps)}." if maps else "."
    return text
