"""Pooled contributions on disk: one memory-mapped array a region, and a journal of the rows that are whole."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

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

    def read(self, region: Region, rows: Sequence[int] | NDArray[np.intp]) -> NDArray[np.float32]:
        """Contributions of those rows: (rows, neurons), float32."""
        block = self._arrays[region][np.asarray(rows, dtype=np.intp)].astype(np.float32)
        block *= np.float32(1.0 / SCALE)
        return block
