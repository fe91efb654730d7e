"""Pooled contributions on disk: one memory-mapped array a region, and a journal of the rows that are whole."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hneurons.errors import RunError
from hneurons.neurons.blocks import BlockFeatures
from hneurons.runfolder import Journal, read_json, storage_errors, write_json
from hneurons.types import REGIONS, Region

SCALE = 256.0
"""float16 keeps 11 bits from 6e-5 up; times 256, contributions from 2.4e-7 to 255 keep them."""
LARGEST = float(np.finfo(np.float16).max)


def settle(folder: Path, layout: dict[str, Any], paths: Sequence[Path], create: Callable[[Path], None]) -> None:
    """Make a feature folder: its files by `create`, then layout.json; or check that it was made for this layout.

    Raises:
        RunError: the folder holds features of another shape.
    """
    if (folder / "layout.json").exists():
        if read_json(folder / "layout.json") != layout:
            raise RunError(f"{folder} holds features of another shape.", "Delete that folder and run again.")
        return
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for path in paths:
            create(path)
    write_json(folder / "layout.json", layout)


class FeatureStore:
    """Features of a run: rows are examples, columns are neurons, layer by layer.

    A row counts as written only when `index.jsonl` names it, after its data has reached the disk; so a crash costs
    the rows of one batch and never leaves a row half true.
    """

    def __init__(self, folder: Path, rows: int, neurons: int, regions: Sequence[Region] = REGIONS) -> None:
        self.folder = folder
        self.rows = rows
        self.neurons = neurons
        self.regions = tuple(regions)
        self._journal = Journal(folder / "index.jsonl")
        self._arrays: dict[Region, NDArray[np.float16]] = {}
        layout: dict[str, Any] = {
            "format": "hneurons.features/1",
            "rows": rows,
            "neurons": neurons,
            "dtype": "float16",
            "scale": SCALE,
            "regions": [str(region) for region in self.regions],
        }
        settle(folder, layout, [folder / f"{region}.npy" for region in self.regions], self._create)
        for region in self.regions:
            path = folder / f"{region}.npy"
            try:
                # Mapping a file that was cut would silently fill it up with zeros.
                array = np.load(path, mmap_mode="r")
                if path.stat().st_size != array.offset + array.nbytes:
                    raise ValueError("its size is wrong")
                array = np.load(path, mmap_mode="r+")
            except (OSError, ValueError, EOFError) as error:
                raise RunError(
                    f"{path} is missing or damaged ({error}).",
                    f"Delete the folder {folder} and run the same command again.",
                ) from error
            if array.shape != (rows, neurons) or array.dtype != np.float16:
                raise RunError(f"{folder} doesn't fit its layout.json.", f"Delete {folder} and run again.")
            self._arrays[region] = array

    def _create(self, path: Path) -> None:
        """Make the file with all its blocks, so that a full disk is found now and not by a signal in mid-write."""
        array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(self.rows, self.neurons))
        offset = int(array.offset)
        del array
        size = offset + self.rows * self.neurons * 2
        with path.open("rb+") as file:
            os.posix_fallocate(file.fileno(), 0, size)

    def written(self) -> set[int]:
        """Rows that are safely on disk."""
        return {int(row) for line in self._journal.read() for row in line["rows"]}

    def write(self, rows: Sequence[int], features: NDArray[np.float32] | BlockFeatures) -> None:
        """Store features (rows, regions, neurons) and name the rows in the index."""
        if isinstance(features, BlockFeatures):
            features = features.dense()
        assert features.shape == (len(rows), len(self.regions), self.neurons)
        scaled = np.clip(features * SCALE, 0.0, LARGEST).astype(np.float16)
        with storage_errors(self.folder):
            for column, region in enumerate(self.regions):
                self._arrays[region][list(rows)] = scaled[:, column]
                self._arrays[region].flush()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
        self._journal.append([{"rows": list(rows)}])

    def raw(
        self, region: Region, rows: Sequence[int] | NDArray[np.intp], columns: ArrayLike | None = None
    ) -> NDArray[np.float16]:
        """Those rows as they are stored, `SCALE` times the contributions: (rows, neurons), or (rows, columns)."""
        out = np.empty((len(rows), self._width(columns)), dtype=np.float16)
        for _ in self._rows(region, rows, columns, out):
            pass
        return out

    def widen(self, raw: NDArray[np.float16]) -> NDArray[np.float32]:
        """Contributions of what `raw` gave."""
        return widen(raw)

    def read(
        self, region: Region, rows: Sequence[int] | NDArray[np.intp], columns: ArrayLike | None = None
    ) -> NDArray[np.float32]:
        """Contributions of those rows, float32: (rows, neurons), or (rows, columns) of some columns only."""
        width = self._width(columns)
        out = np.empty((len(rows), width), dtype=np.float32)
        # One row at a time through the same few pages: they stay in the processor's cache.
        buffer = np.empty(width, dtype=np.float16)
        for place, row in enumerate(self._rows(region, rows, columns, repeat(buffer, len(rows)))):
            widen(row, out[place])
        return out

    def _width(self, columns: ArrayLike | None) -> int:
        return self.neurons if columns is None else len(np.asarray(columns))

    def _rows(
        self,
        region: Region,
        rows: Sequence[int] | NDArray[np.intp],
        columns: ArrayLike | None,
        into: Iterable[NDArray[np.float16]],
    ) -> Iterator[NDArray[np.float16]]:
        """Each array of `into`, one a row, once it holds what is stored.

        They are read, not mapped: pages of a mapped file of many gigabytes would count as this process's memory.
        """
        array, wanted = self._arrays[region], np.asarray(rows, dtype=np.intp)
        picks = None if columns is None else np.asarray(columns, dtype=np.intp)
        if picks is not None and len(picks) > 1 and (np.diff(picks) == 1).all():
            runs, picks = [(int(picks[0]), int(picks[-1]) + 1, picks)], None
        else:
            runs = [(0, self.neurons, np.zeros(0, np.intp))] if picks is None else _runs(picks)
        buffer = np.empty(0 if picks is None else max((end - first for first, end, _ in runs), default=0), np.float16)
        with (self.folder / f"{region}.npy").open("rb", buffering=0) as file:
            for row, target in zip(wanted.tolist(), into, strict=True):
                for first, end, members in runs:
                    part = target if picks is None else buffer[: end - first]
                    offset = int(array.offset) + 2 * (row * self.neurons + first)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
                    if os.preadv(file.fileno(), [part.view(np.uint8).data], offset) != part.nbytes:
                        raise RunError(f"{file.name} is cut.", f"Delete {self.folder} and run again.")
                    if picks is not None:
                        target[members] = part[picks[members] - first]
                yield target


def widen(raw: NDArray[np.float16], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """Contributions of stored values, exactly; in `out` if given."""
    out = np.empty(raw.shape, np.float32) if out is None else out
    torch = sys.modules.get("torch")
    if torch is not None:  # where it is loaded anyway: it widens float16 ten times faster
        torch.from_numpy(out).copy_(torch.from_numpy(raw)).mul_(1.0 / SCALE)
    else:
        np.multiply(raw, np.float32(1.0 / SCALE), out=out, dtype=np.float32)
    return out


NEAR = 16384
"""Columns that lie no further apart are read at once: 32 kB more cost less than another call."""


def _runs(columns: NDArray[np.intp]) -> list[tuple[int, int, NDArray[np.intp]]]:
    """First column, end, and positions in `columns` of each run of them."""
    if not len(columns):
        return []
    order = np.argsort(columns, kind="stable")
    breaks = np.flatnonzero(np.diff(columns[order]) > NEAR) + 1
    return [(int(columns[part[0]]), int(columns[part[-1]]) + 1, part) for part in np.split(order, breaks)]
