"""The run folder: manifest, stage states, atomic files, append-only journals, resume. See docs/run-folder.md."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable, Generator, Iterable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, cast

from hneurons.errors import RunError, RunLockedError, RunMismatchError, StorageError, UsageError

RUN_FORMAT = "hneurons.run/1"
Json = dict[str, Any]


@contextlib.contextmanager
def storage_errors(path: Path) -> Generator[None]:
    """Turn the operating system's storage errors into one-line `StorageError`s that name `path`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(
                f"No space left on the disk that holds {path}.",
                "Free some space and run the same command again: it continues where it stopped.",
            ) from error
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise StorageError(f"Can't write to {path}: {error.strerror}.", "Choose another --out.") from error
        if error.errno in (errno.EEXIST, errno.ENOTDIR, errno.ENAMETOOLONG):
            raise StorageError(f"{path} can't be a folder: {error.strerror}.", "Choose another --out.") from error
        if error.errno == errno.EIO:
            raise StorageError(f"Input/output error at {path}.", "Check the disk, then run again.") from error
        raise


def dumps(value: Any, *, indent: int | None = None) -> str:
    """Strict JSON text: no NaN, no infinity, keys in the order given."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)


def hash_json(value: Any) -> str:
    """`sha256:` and the digest of the canonical JSON of `value`."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def hash_file(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """SHA-256 hex digest of a file; `progress` gets the bytes read so far."""
    digest = hashlib.sha256()
    done = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
            done += len(block)
            if progress:
                progress(done)
    return digest.hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a whole file so that a reader sees the old one or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, dumps(value, indent=1) + "\n")


def read_json(path: Path) -> Json:
    """Read a JSON object; `RunError` if it is missing or damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(f"{path} is missing.", "Run `hneurons identify` into this folder first.") from error
    except (ValueError, UnicodeDecodeError) as error:
        raise RunError(f"{path} is damaged ({error}).", "Delete that file and run the same command again.") from error
    if not isinstance(value, dict):
        raise RunError(f"{path} holds no JSON object.", "Delete that file and run the same command again.")
    return cast("Json", value)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


class Journal:
    """An append-only JSONL file whose cut last line, left by a crash, is repaired on open."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[Json]:
        """All whole lines, oldest first. `RunError` for damage elsewhere than in the last line."""
        if not self.path.exists():
            return []
        self._repair()
        rows: list[Json] = []
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    row = json.loads(line.decode("utf-8"), parse_constant=_refuse_constant)
                    if not isinstance(row, dict):
                        raise ValueError("not an object")
                except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are children
                    raise RunError(
                        f"{self.path} is damaged in line {number} ({error}).",
                        "Delete the file (its stage is then done again) or restore it from a copy.",
                    ) from error
                rows.append(cast("Json", row))
        return rows

    def append(self, rows: Iterable[Json]) -> None:
        """Append rows, flushed and synced to the disk before returning."""
        text = "".join(dumps(row) + "\n" for row in rows)
        if not text:
            return
        with storage_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists():
                self._repair()
            start = self.path.stat().st_size if self.path.exists() else 0
            try:
                with self.path.open("a", encoding="utf-8", newline="\n") as file:
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError:
                # A full disk may have taken half a line: take it back, so that the journal stays whole.
                with contextlib.suppress(OSError):
                    os.truncate(self.path, start)
                raise

    def _repair(self) -> None:
        with self.path.open("rb+") as file:
            size = file.seek(0, os.SEEK_END)
            end = size
            while end > 0:
                step = min(end, 1 << 16)
                file.seek(end - step)
                block = file.read(step)
                newline = block.rfind(b"\n")
                if newline >= 0:
                    end = end - step + newline + 1
                    break
                end -= step
            if end < size:
                file.truncate(end)


def local(path: str | Path) -> Path:
    """The path of a run folder.

    Raises:
        UsageError: it is an address (`s3://...`), which as a path would be a folder `s3:` here.
    """
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/", str(path))  # a `Path` has one slash left of the two
    if found:
        raise UsageError(
            f"A run can't be written to {found[1]}:// addresses ({path}).",
            "Give a path on this machine, or one where the store is mounted, and copy the run afterwards.",
        )
    return Path(path)


class RunFolder:
    """A run folder opened by one process.

    Use as a context manager: an advisory lock keeps a second process out. The manifest is `self.manifest`;
    change it only through the methods, which write it atomically. `UsageError` for an address in place of a path.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = local(path)
        self._lock: Any = None
        self.manifest: Json = {}

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def __enter__(self) -> RunFolder:
        with storage_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / ".lock").open("a")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise RunLockedError(
                f"Another process is working in {self.path}.", "Wait for it to end, or choose another --out."
            ) from error
        for leftover in self.path.glob(".*.tmp"):  # of a process that was killed while writing; we hold the lock
            leftover.unlink(missing_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    # -- manifest ---------------------------------------------------------------------------------

    def start(
        self,
        *,
        model: Json,
        settings: Json,
        data: Json,
        notes: list[str],
        defaults: Json | None = None,
        kept: Json | None = None,
    ) -> bool:
        """Write the manifest of a new run, or check that the folder holds the same run; True if resumed.

        `defaults` of settings stand in for those that a run of an older version doesn't have. What is
        `kept` beside these says how to get at the same again (the model's place, an engine, a judge); it may change.

        Raises:
            RunMismatchError: the folder holds a run with other settings, model or data; nothing is changed.
        """
        identity = {"model": model, "settings": settings, "data": data}
        if (self / "run.json").exists():
            self.load()
            self._check_same(identity, defaults or {})
            changed = kept or {}
            if {key: self.manifest.get(key) for key in changed} != changed:
                self.manifest |= changed
                self.save()
            return True
        # An LLM judge is tried before the run begins.
        stray = [entry.name for entry in self.path.iterdir() if entry.name not in (".lock", "judge-cache")]
        if stray:
            raise RunMismatchError(
                f"{self.path} is not empty and holds no run.json (found {sorted(stray)[0]}).",
                "Choose an empty or new folder with --out.",
            )
        self.manifest = {
            "format": RUN_FORMAT,
            "package": package_versions(),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            **identity,
            **(kept or {}),
            "settings_hash": hash_json(identity),
            "stages": {},
            "counts": {},
            "notes": notes,
        }
        self.save()
        return False

    def _check_same(self, identity: Json, defaults: Json) -> None:
        differences: list[str] = []
        for part, new in identity.items():
            old = cast("Json", self.manifest.get(part, {}))
            if part == "settings":
                old = {**defaults, **old}
            differences += [
                f"{key}: {old.get(key)!r} there, {new.get(key)!r} now"
                for key in sorted(set(old) | set(new))
                if old.get(key) != new.get(key)
            ]
        if differences:
            shown = "; ".join(differences[:4]) + ("; ..." if len(differences) > 4 else "")
            raise RunMismatchError(
                f"{self.path} holds a run with other settings ({shown}).",
                "Choose another --out, or use the settings of that run to continue it.",
            )

    def load(self) -> Json:
        """Read the manifest of an existing run."""
        if not (self / "run.json").exists():
            raise RunError(f"{self.path} holds no run.", "Make one with `hneurons identify` or `hneurons demo`.")
        self.manifest = read_json(self / "run.json")
        if self.manifest.get("format") != RUN_FORMAT:
            raise RunError(
                f"{self.path}/run.json has format {self.manifest.get('format')!r}, not {RUN_FORMAT}.",
                "Use the version of this package that wrote it.",
            )
        return self.manifest

    def save(self) -> None:
        """Write the manifest atomically."""
        write_json(self / "run.json", self.manifest)

    # -- stages -----------------------------------------------------------------------------------

    def done(self, stage: str) -> bool:
        """Whether a stage has been completed."""
        return self.manifest["stages"].get(stage, {}).get("state") == "done"

    @contextlib.contextmanager
    def stage(self, name: str) -> Generator[None]:
        """Mark a stage as running, and as done when the block ends without an error. Seconds add up over resumes."""
        entry = self.manifest["stages"].setdefault(name, {})
        entry["state"] = "running"
        self.save()
        began = time.monotonic()
        try:
            yield
            entry["state"] = "done"
        finally:
            entry["seconds"] = round(entry.get("seconds", 0.0) + time.monotonic() - began, 1)
            self.save()

    def count(self, **counts: Any) -> None:
        """Merge `counts` into the manifest's."""
        self.manifest["counts"].update(counts)
        self.save()

    def note(self, *sentences: str) -> None:
        """Add those of these sentences to the manifest's notes that aren't there."""
        new = [sentence for sentence in sentences if sentence not in self.manifest["notes"]]
        if new:
            self.manifest["notes"] += new
            self.save()

    def journal(self, name: str) -> Journal:
        """The journal of that file name."""
        return Journal(self / name)


def package_versions() -> Json:
    """Versions that a result depends on; `git` is the commit when run from a checkout."""
    versions: Json = {"git": _git_state(), "python": platform.python_version()}
    for name in ("hneurons", "torch", "transformers", "numpy", "scikit-learn"):
        try:
            versions["version" if name == "hneurons" else name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions["version" if name == "hneurons" else name] = None
    return versions


def _git_state() -> str | None:
    here = Path(__file__).parent
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        head = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
        return head.stdout.strip() or None
    return None
