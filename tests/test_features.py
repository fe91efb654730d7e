import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from hneurons.errors import RunError, StorageError
from hneurons.neurons.features import FeatureStore
from hneurons.runfolder import Journal
from hneurons.types import REGIONS, Region

WIDE = len(REGIONS)


def block(rows: int, neurons: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((rows, WIDE, neurons)).astype(np.float32)


def filled(folder: Path) -> FeatureStore:
    """Six rows of five neurons, the first four written."""
    store = FeatureStore(folder, 6, 5)
    store.write([0, 1], block(2, seed=1))
    store.write([3, 2], block(2, seed=2))
    return store


@settings(max_examples=60)
@given(
    arrays.arrays(np.float32, (3, WIDE, 4), elements=st.floats(2**-22, 255, width=32) | st.just(0.0)),
    st.permutations([0, 1, 2]),
)
def test_round_trip_keeps_eleven_bits(tmp_path_factory: pytest.TempPathFactory, features, rows):
    store = FeatureStore(tmp_path_factory.mktemp("store") / "features", 3, 4)
    store.write(rows, features)
    for column, region in enumerate(REGIONS):
        read = store.read(region, rows)
        assert read.dtype == np.float32
        np.testing.assert_allclose(read, features[:, column], rtol=2**-11, atol=0)


def test_what_is_too_large_or_too_small_stays_finite(tmp_path: Path):
    store = FeatureStore(tmp_path / "features", 1, 3)
    store.write([0], np.broadcast_to(np.array([1e9, 1e-12, 0.0], np.float32), (1, WIDE, 3)))
    read = store.read(Region.ANSWER, [0])[0]
    assert 250 < read[0] < 256
    assert 0 <= read[1] < 1e-9
    assert read[2] == 0


def test_the_files_can_be_read_without_this_package(tmp_path: Path):
    filled(tmp_path / "features")
    layout = json.loads((tmp_path / "features/layout.json").read_text())
    for column, region in enumerate(["answer", "other", "response", "prompt"]):
        array = np.load(tmp_path / f"features/{region}.npy")
        assert (array.shape, array.dtype) == ((6, 5), np.float16)
        expected = block(2, seed=1)[:, list(REGIONS).index(Region(region))]
        np.testing.assert_allclose(array[:2] / layout["scale"], expected, rtol=1e-3)
        assert layout["regions"][column] == list(REGIONS)[column]
    lines = (tmp_path / "features/index.jsonl").read_text().splitlines()
    assert sorted(row for line in lines for row in json.loads(line)["rows"]) == [0, 1, 2, 3]


def test_reopened_rows_are_there_and_the_rest_is_not(tmp_path: Path):
    filled(tmp_path / "features")
    store = FeatureStore(tmp_path / "features", 6, 5)
    assert store.written() == {0, 1, 2, 3}
    np.testing.assert_allclose(store.read(Region.OTHER, [2, 3])[::-1], block(2, seed=2)[:, 1], rtol=1e-3)
    store.write([4, 5], block(2, seed=3))
    assert FeatureStore(tmp_path / "features", 6, 5).written() == set(range(6))


def test_killed_between_data_and_index_the_row_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = filled(tmp_path / "features")
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            store.write([4, 5], block(2, seed=9))
    store = FeatureStore(tmp_path / "features", 6, 5)
    assert store.written() == {0, 1, 2, 3}
    store.write([4, 5], block(2, seed=3))
    np.testing.assert_allclose(store.read(Region.ANSWER, [4, 5]), block(2, seed=3)[:, 0], rtol=1e-3)
    np.testing.assert_allclose(store.read(Region.ANSWER, [0, 1]), block(2, seed=1)[:, 0], rtol=1e-3)


def test_data_reach_the_disk_before_the_index_names_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = FeatureStore(tmp_path / "features", 2, 5)
    found: list[np.ndarray] = []
    real = Journal.append

    def append(journal: Journal, rows) -> None:
        found.append(np.load(tmp_path / "features/answer.npy"))
        real(journal, rows)

    monkeypatch.setattr(Journal, "append", append)
    store.write([1], block(1))
    np.testing.assert_allclose(found[0][1] / 256, block(1)[0, 0], rtol=1e-3)


def test_a_cut_line_of_the_index_does_not_count(tmp_path: Path):
    filled(tmp_path / "features")
    with (tmp_path / "features/index.jsonl").open("a") as file:
        file.write('{"rows": [4, ')
    assert FeatureStore(tmp_path / "features", 6, 5).written() == {0, 1, 2, 3}


@pytest.mark.parametrize(("rows", "neurons"), [(7, 5), (6, 4)])
def test_another_shape_is_refused_and_changes_nothing(tmp_path: Path, rows: int, neurons: int):
    filled(tmp_path / "features")
    before = {path.name: path.read_bytes() for path in (tmp_path / "features").iterdir()}
    with pytest.raises(RunError, match="another shape"):
        FeatureStore(tmp_path / "features", rows, neurons)
    assert {path.name: path.read_bytes() for path in (tmp_path / "features").iterdir()} == before


def other_regions(folder: Path) -> None:
    FeatureStore(folder, 6, 5, [Region.ANSWER])


def test_other_regions_are_refused(tmp_path: Path):
    filled(tmp_path / "features")
    with pytest.raises(RunError):
        other_regions(tmp_path / "features")


@pytest.mark.parametrize("damage", ["missing", "cut", "empty", "text", "other shape", "other type"])
def test_a_damaged_array_is_a_run_error_of_one_line(tmp_path: Path, damage: str):
    filled(tmp_path / "features")
    path = tmp_path / "features/other.npy"
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-7])
    elif damage in ("empty", "text"):
        path.write_bytes(b"" if damage == "empty" else b"hello world " * 20)
    else:
        np.save(path, np.zeros((5, 5) if damage == "other shape" else (6, 5), np.float16 if "shape" in damage else int))
    with pytest.raises(RunError) as caught:
        FeatureStore(tmp_path / "features", 6, 5)
    assert "\n" not in str(caught.value)
    assert "features" in str(caught.value)


def test_a_full_disk_is_found_when_the_files_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(StorageError, match="No space left"):
            FeatureStore(tmp_path / "features", 6, 5)
    assert filled(tmp_path / "features").written() == {0, 1, 2, 3}  # once there is room, it goes on


def test_the_files_have_all_their_blocks(tmp_path: Path):
    FeatureStore(tmp_path / "features", 100, 1000)
    status = (tmp_path / "features/answer.npy").stat()
    assert status.st_size >= 200_000
    assert status.st_blocks * 512 >= 200_000


def test_features_of_the_wrong_shape_never_get_in(tmp_path: Path):
    store = filled(tmp_path / "features")
    with pytest.raises(AssertionError):
        store.write([4], block(2))
    assert store.written() == {0, 1, 2, 3}
