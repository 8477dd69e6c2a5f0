from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evenfleet_collector.optimize import data, datasets, sources
from evenfleet_collector.optimize.datasets import Wanted
from evenfleet_shared.errors import DataError

GOOD: dict[str, Any] = {
    "x_train": np.zeros((8, 3)),
    "y_train": np.arange(8) % 2,
    "x_test": np.ones((4, 3)),
    "y_test": np.arange(4) % 2,
}


def read_npz(path: Path) -> data.LabelledData:
    return datasets.read(sources.FileSource(path), Wanted(seed=0))


def test_npz_with_all_four_arrays_is_read_as_float32_and_int64(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", **GOOD)
    labelled = read_npz(tmp_path / "d.npz")
    assert (labelled.x_train.dtype, labelled.y_train.dtype) == (np.float32, np.int64)
    assert labelled.sample_shape == (3,)


def test_data_in_one_piece_is_split_the_same_by_the_same_seed() -> None:
    x = np.arange(200, dtype=np.float32).reshape(100, 2)
    whole = {"x": x, "y": np.arange(100) % 5}
    first, again, other = (data.from_arrays(whole, "here", seed) for seed in (1, 1, 2))
    assert first.digest == again.digest != other.digest
    assert np.bincount(first.y_test).tolist() == [4] * 5


@pytest.mark.parametrize(
    "labels",
    [np.array([[1, 0], [0, 1], [1, 0], [0, 1]]), np.array([[0], [1], [0], [1]]), np.array([0.0, 1.0, 0.0, 1.0])],
)
def test_one_hot_column_and_whole_float_labels_mean_the_same(labels: np.ndarray) -> None:
    assert data.from_arrays({**GOOD, "y_test": labels}, "here", 0).y_test.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_test": np.ones((4, 2))}, r"x_train have shape \(3,\), of x_test \(2,\)"),
        ({"x_test": np.ones((5, 3))}, "5 samples and y_test has 4 labels"),
        ({"x_test": np.ones(4)}, r"x_test has shape \(4,\), expected \(samples, …\)"),
        ({"x_test": np.ones((0, 3))}, "at least one sample"),
        ({"x_test": np.array([["a"] * 3] * 4)}, "expected numbers"),
        ({"x_test": np.array([[1, 2, np.nan]] + [[0, 0, 0]] * 3)}, "not finite .* the first is sample 0"),
        ({"x_test": np.array([[0, 0, 0], [1e300, 0, 0], [0, 0, 0], [0, 0, 0]])}, "not finite .* the first is sample 1"),
        ({"x_train": [[1, 2], [3]]}, "not an array of numbers"),
        ({"y_train": np.zeros(8)}, "only class 0"),
        ({"y_test": np.array([0, 1, np.nan, 1])}, "1 labels that are NaN or infinite, the first is sample 2"),
        ({"y_test": np.array([0, 1, -1, 1])}, "holds -1; classes are whole numbers from 0"),
        ({"y_test": np.array([0, 1, 0.5, 1])}, "holds 0.5"),
        ({"y_test": np.array(["a", "b", "a", "b"])}, "expected numbers"),
        ({"y_test": np.full((4, 2), 0.5)}, "not one-hot"),
        ({"y_test": np.zeros((4, 2, 2))}, "one class per sample"),
    ],
)
def test_unacceptable_arrays_are_refused_with_what_was_found(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        data.from_arrays({**GOOD, **change}, "here", 0)


def test_absent_labels_are_named() -> None:
    with pytest.raises(DataError, match="y_test missing; found x_test, x_train, y_train"):
        data.from_arrays({name: GOOD[name] for name in GOOD if name != "y_test"}, "here", 0)


def test_too_few_samples_to_split_are_refused() -> None:
    with pytest.raises(DataError, match="too few to split"):
        data.from_arrays({"x": np.zeros((3, 2)), "y": [0, 0, 1]}, "here", 0)


def test_pickled_objects_are_refused_and_never_loaded(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "exploded",)

    np.savez(tmp_path / "d.npz", **{**GOOD, "x_train": np.array([Bomb()], dtype=object)})
    with pytest.raises(DataError, match="pickled Python objects"):
        read_npz(tmp_path / "d.npz")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 cut short"])
def test_file_that_is_no_npz_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "d.npz").write_bytes(content)
    with pytest.raises(DataError, match="not a readable"):
        read_npz(tmp_path / "d.npz")


def test_truncated_npz_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", **GOOD)
    whole = (tmp_path / "d.npz").read_bytes()
    (tmp_path / "d.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="not a readable"):
        read_npz(tmp_path / "d.npz")


def test_header_that_promises_more_than_is_there_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000, 3), }".ljust(117) + b"\n"
    member = io.BytesIO(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + b"\0" * 24)
    np.savez(tmp_path / "d.npz", **{name: GOOD[name] for name in GOOD if name != "x_train"})
    with zipfile.ZipFile(tmp_path / "d.npz", "a") as archive:
        archive.writestr("x_train.npy", member.getvalue())
    with pytest.raises(DataError, match="promises 24000000000000 bytes, 24 are there"):
        read_npz(tmp_path / "d.npz")


def test_npz_bomb_is_refused_by_its_size(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "d.npz", **{**GOOD, "x_train": np.zeros((8, 100_000))})
    with pytest.raises(DataError, match="at most 1000000 are read"):
        datasets.read(sources.FileSource(tmp_path / "d.npz"), Wanted(seed=0, max_bytes=1_000_000))
