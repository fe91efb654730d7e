"""What the benchmarks share: options, two things timed in turn, and the one JSON object that each script prints.

Single times mean little on a machine that does other work, too: a pair of times taken one right after the other shares
its disturbances, and the median over such pairs drops the rare large ones.

PyTorch is imported by those alone that need it: where memory is counted, it would count.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

Result = TypeVar("Result")


def options(description: str | None, *texts: str, **numbers: float) -> Any:
    """The script's options: `--quick` for a test of the script, a text for each of `texts`, a number for `numbers`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="so small that the numbers mean nothing")
    for name in texts:
        parser.add_argument(name, nargs="?", const="", default=None)
    for name, default in numbers.items():
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=type(default), default=default, help=f"[{default}]")
    return parser.parse_args()


def way(*names: str) -> str:
    """Which of its measurements a script is asked for: its first argument, which is taken away; or the first."""
    name = sys.argv.pop(1) if len(sys.argv) > 1 and not sys.argv[1].startswith("-") else names[0]
    if name not in names:
        sys.exit(f"{name} is none of {', '.join(names)}")
    return name


def all_cpus() -> int:
    """Let PyTorch use every CPU, or as many as OMP_NUM_THREADS says, on both sides; returns how many."""
    import torch

    count = int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
    torch.set_num_threads(count)
    return count


def timed(work: Callable[[], Result]) -> tuple[float, Result]:
    """Wall time of one call, in seconds, and what it returned."""
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def seconds(work: Callable[[], Any]) -> float:
    """Wall time of one call."""
    return timed(work)[0]


def in_turn(ours: Callable[[], Any], other: Callable[[], Any], rounds: int, *, warm: bool = True) -> dict[str, Any]:
    """Both timed `rounds` times, taking turns at going first.

    Returns the median of other / ours (larger: ours is faster), its range over the rounds, and both median times.
    """
    if warm:
        ours()
        other()
    times: list[tuple[float, float]] = []
    for number in range(rounds):
        if number % 2:
            second, first = seconds(other), seconds(ours)
            times.append((first, second))
        else:
            times.append((seconds(ours), seconds(other)))
    ratios = [b / a for a, b in times]
    return {
        "speedup": round(statistics.median(ratios), 4),
        "range": [round(min(ratios), 4), round(max(ratios), 4)],
        "rounds": rounds,
        "seconds": {
            "ours": round(statistics.median(a for a, _ in times), 3),
            "other": round(statistics.median(b for _, b in times), 3),
        },
    }


def scaled(measured: dict[str, Any], factor: float) -> dict[str, Any]:
    """What `in_turn` returned, with ratios times a factor: where the two sides do different amounts of work."""
    low, high = measured["range"]
    return {
        **measured,
        "speedup": round(measured["speedup"] * factor, 4),
        "range": [round(low * factor, 4), round(high * factor, 4)],
    }


def show(
    name: str, ratio: float, target: float, direction: str, n: int, settings: dict[str, Any], **details: Any
) -> None:
    """Print the result on one line.

    Args:
        name: what was measured, against what.
        ratio: the number that has a target.
        target: the number that it has to reach, or must not exceed.
        direction: "min" where the ratio must reach the target, "max" where it must stay under.
        n: how many examples, questions or fits it rests on.
        settings: what it was measured with; the machine is added.
        details: what else is worth keeping; `range` is that of the ratio over the rounds.
    """
    assert direction in ("min", "max")
    machine: dict[str, Any] = {"cpus": len(os.sched_getaffinity(0)), "architecture": platform.machine()}
    torch = sys.modules.get("torch")
    if torch is not None:
        machine |= {"torch": torch.__version__, "torch_threads": torch.get_num_threads()}
    result = {
        "name": name,
        "ratio": round(ratio, 4),
        "target": target,
        "direction": direction,
        "n": n,
        "settings": {**settings, "machine": machine},
        **details,
    }
    print(json.dumps(result))
