"""Two sides of one job, interleaved A-B-B-A in one process; the ratio counts, not the seconds.

    ratio of a round = (B + B) / (A + A)        A is ours, B the peer (or the limit)

Reported: the median ratio over the rounds with a bootstrap 95 % interval, the peak memory of each side, and the largest
difference of their outputs, which must stay within the case's tolerance. Import this module before torch: it sets the
number of threads and keeps idle ones from spinning.

    python -m benchmarks.ssim [--threads 2] [--device cpu] [--tiny] [--out benchmarks/results]
"""

import argparse
import ctypes
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


def _threads(argv: Sequence[str]) -> str:
    for i, word in enumerate(argv):
        if word.startswith("--threads="):
            return word.split("=", 1)[1]
        if word == "--threads" and i + 1 < len(argv):
            return argv[i + 1]
    return os.environ.get("OMP_NUM_THREADS", str(min(2, os.cpu_count() or 1)))


if "torch" not in sys.modules:
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = _threads(sys.argv)

import numpy as np
import torch

ROUNDS, LONG_ROUNDS, LONG_SECONDS = 15, 5, 1.0
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Case:
    """One comparison.

    Args:
        name: Shown in the table.
        ours: One call of our side; returns what is compared.
        peer: One call of the peer, on the same input.
        peer_name: Who the peer is.
        goal: Least ratio of times, or None.
        tolerance: Largest admissible difference of the outputs, relative to the largest value of the peer's.
        memory_goal: Largest ratio of peak memory, ours over peer's, or None.
        compared: What of a side's output must agree; neither timed nor counted as its memory.
        alone: Returns the peak memory of a side, "ours" or "peer", in a process of its own; None measures in this one.
    """

    name: str
    ours: Callable[[], Any]
    peer: Callable[[], Any]
    peer_name: str
    goal: float | None = None
    tolerance: float = 1e-5
    memory_goal: float | None = None
    compared: Callable[[Any], Any] = lambda output: output
    alone: Callable[[str], float | None] | None = None


@dataclass(frozen=True)
class Result:
    """What a comparison gave; times in seconds per call, memory in MB above the level before the call."""

    name: str
    peer_name: str
    rounds: int
    ours_s: float
    peer_s: float
    ratio: float
    ci95: tuple[float, float]
    ours_mb: float | None
    peer_mb: float | None
    difference: float
    tolerance: float
    goal: float | None
    reached: bool | None


def compare(case: Case, *, rounds: int | None = None, device: str = "cpu", seed: int = 0) -> Result:
    """Warm up, check that the outputs agree, measure memory, then time the rounds.

    Raises:
        ValueError: The outputs differ by more than the tolerance.
    """
    difference = relative_difference(case.compared(case.ours()), case.compared(case.peer()))
    if not difference <= case.tolerance:
        raise ValueError(f"{case.name}: outputs differ by {difference:.2e}, admissible is {case.tolerance:.0e}")
    if case.alone is None:
        memory = [peak_mb(side, device) for side in (case.ours, case.peer)]
    else:
        memory = [case.alone(side) for side in ("ours", "peer")]
    warm = _seconds(case.ours, device) + _seconds(case.peer, device)
    rounds = rounds or (ROUNDS if 2 * warm < LONG_SECONDS else LONG_ROUNDS)
    times = np.array([_round(case, device) for _ in range(rounds)])  # (rounds, 2)
    ratios = times[:, 1] / times[:, 0]
    draws = np.median(np.random.default_rng(seed).choice(ratios, (2000, rounds)), axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    ours_s, peer_s = np.median(times, axis=0) / 2
    ratio = float(np.median(ratios))
    goals = [] if case.goal is None else [ratio >= case.goal]
    if case.memory_goal is not None and None not in memory:
        goals.append(memory[0] <= case.memory_goal * memory[1])
    return Result(
        case.name, case.peer_name, rounds, float(ours_s), float(peer_s), ratio, (float(low), float(high)),
        *memory, difference, case.tolerance, case.goal, all(goals) if goals else None,
    )  # fmt: skip


def _round(case: Case, device: str) -> tuple[float, float]:
    order = (case.ours, case.peer, case.peer, case.ours)
    a, b, c, d = (_seconds(side, device) for side in order)
    return a + d, b + c


def _seconds(side: Callable[[], Any], device: str) -> float:
    _wait(device)
    start = time.perf_counter()
    side()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def relative_difference(ours: Any, peer: Any) -> float:
    """Return the largest difference of two nested outputs over the largest value of the peer's, tensor by tensor."""
    pairs = list(zip(_tensors(ours), _tensors(peer), strict=True))
    if not pairs:
        raise ValueError("the sides return no tensor, so their outputs cannot be compared")
    worst = 0.0
    for a, b in pairs:
        if a.shape != b.shape:
            raise ValueError(f"outputs have shapes {tuple(a.shape)} and {tuple(b.shape)}")
        a, b = a.detach().double(), b.detach().double()
        scale = float(b.abs().max()) or 1.0
        worst = max(worst, float((a - b).abs().max()) / scale)
    return worst


def _tensors(output: Any) -> Iterable[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, Mapping):
        for key in sorted(output):
            yield from _tensors(output[key])
    elif isinstance(output, Sequence):
        for part in output:
            yield from _tensors(part)


def peak_mb(side: Callable[[], Any], device: str = "cpu") -> float | None:
    """Return the peak memory of one call above the level before it, in MB; None where the system does not tell.

    On the CPU it is the resident high-water mark of Linux, reset before the call, with free pages given back first.
    """
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        side()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _status_kb("VmRSS")
        side()
        return (_status_kb("VmHWM") - before) / 2**10
    except (OSError, AttributeError):
        return None


def _status_kb(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1])
    raise OSError(f"/proc/self/status has no {key}")


def environment(device: str) -> dict[str, Any]:
    """Return what the numbers depend on."""
    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        processor = names[0] if names else processor
    return {
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else processor,
        "threads": torch.get_num_threads(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def table(results: Sequence[Result]) -> str:
    """Return the results as text."""
    head = ("case", "peer", "ours ms", "peer ms", "ratio [95 %]", "goal", "ours MB", "peer MB", "difference")
    rows = [
        (
            r.name,
            r.peer_name,
            f"{1e3 * r.ours_s:.2f}",
            f"{1e3 * r.peer_s:.2f}",
            f"{r.ratio:.2f} [{r.ci95[0]:.2f}, {r.ci95[1]:.2f}]",
            "-" if r.goal is None else f">= {r.goal:g} {'yes' if r.reached else 'NO'}",
            "-" if r.ours_mb is None else f"{r.ours_mb:.0f}",
            "-" if r.peer_mb is None else f"{r.peer_mb:.0f}",
            f"{r.difference:.1e}",
        )
        for r in results
    ]
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)
    )


def main(name: str, cases: Callable[[bool, str], Iterable[Case]], argv: Sequence[str] | None = None) -> int:
    """Run the cases of one script, print the table, write JSON; return 0, or 1 when a goal was missed.

    Args:
        name: Of the result file.
        cases: Makes the cases from (tiny, device).
        argv: Command line; None takes the process's.
    """
    parser = argparse.ArgumentParser(prog=f"benchmarks.{name}")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--tiny", action="store_true", help="smallest sizes, two rounds, goals not judged")
    parser.add_argument("--rounds", type=int, help="rounds per case; else 15, or 5 where a round takes a second")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the JSON")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    rounds = 2 if args.tiny else args.rounds
    chosen = (case for case in cases(args.tiny, args.device) if args.only in case.name)
    results = [compare(case, rounds=rounds, device=args.device) for case in chosen]
    print(table(results))
    args.out.mkdir(parents=True, exist_ok=True)
    rows = [asdict(r) for r in results]
    content = {"job": name, "tiny": args.tiny, "environment": environment(args.device), "results": rows}
    (args.out / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    return 0 if args.tiny else int(any(r.reached is False for r in results))
