"""What is taken out of an .npz, and what is refused."""

from __future__ import annotations

import io
import os
import zipfile

import numpy as np
import pytest

from evenfleet_agent.samples import write_data
from evenfleet_shared.errors import DataError


@pytest.mark.parametrize("names", [("x_test", "y_test"), ("x", "y"), ("inputs", "labels")])
def test_samples_and_labels_are_found_by_their_usual_names(tmp_path, names):
    np.savez(tmp_path / "d.npz", **{names[0]: np.zeros((2, 4)), names[1]: np.array([[0], [1]])})
    inputs, labels, _ = write_data(tmp_path / "d.npz", tmp_path)
    assert np.load(inputs).shape == (2, 4)
    assert labels is not None
    assert np.load(labels).tolist() == [0, 1]


def test_one_hot_labels_become_class_numbers(tmp_path):
    np.savez(tmp_path / "d.npz", x=np.zeros((2, 4)), y=np.array([[0.0, 0, 1], [1, 0, 0]]))
    _, labels, _ = write_data(tmp_path / "d.npz", tmp_path)
    assert labels is not None
    assert np.load(labels).tolist() == [2, 0]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"z": np.zeros(3)}, "no array called"),
        ({"x": np.array([{}], dtype=object)}, "pickled objects are not read"),
        ({"x": np.zeros((2, 4)), "y": np.array([0.5, 1.0])}, "whole numbers"),
        ({"x": np.zeros((2, 4)), "y": np.array([np.nan, 1.0])}, "whole numbers"),
        ({"x": np.zeros((2, 4)), "y": np.array([[1, 1], [1, 0]])}, "one-hot"),
        ({"x": np.zeros((2, 4)), "y": np.array(["a", "b"])}, "whole numbers"),
        ({"x": np.zeros((2, 4)), "y": np.array([0, 1, 2])}, "2 samples and 3 labels"),
        ({"x": np.zeros((2, 4)), "y": np.array([0, -1])}, "found -1 to 0"),
        ({"x": np.zeros((2, 4)), "y": np.array([0, 2**62])}, f"found 0 to {2**62}"),
        ({"x": np.zeros((2, 4)), "y": np.int64(3)}, "one per sample"),
        ({"x": np.array(["a", "b"])}, "real numbers, one entry per sample, found <U1"),
        ({"x": np.zeros((2, 4), dtype=complex)}, "real numbers, one entry per sample, found complex128"),
        ({"x": np.zeros((0, 4))}, r"found float64 of shape \[0, 4\]"),
        ({"x": np.float32(1)}, r"found float32 of shape \[\]"),
        ({"x": np.array([[1.0, np.nan]])}, "NaN"),
        ({"x": np.array([[1.0, -np.inf]])}, "infinite"),
        ({"x": np.array([[1.0, 1e300]])}, "float32 has no room for"),
    ],
)
def test_data_that_cannot_be_used_are_refused_by_the_name_of_their_file(tmp_path, arrays, message):
    (tmp_path / "copies").mkdir()
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(DataError, match=message) as refused:
        write_data(tmp_path / "d.npz", tmp_path / "copies")
    assert str(refused.value).startswith(str(tmp_path / "d.npz"))
    assert "copies" not in str(refused.value)


def test_single_array_is_refused(tmp_path):
    np.save(tmp_path / "d.npy", np.zeros((2, 4)))
    with pytest.raises(DataError, match=r"d\.npy is a single array"):
        write_data(tmp_path / "d.npy", tmp_path)


def test_array_that_claims_more_than_there_is_memory_for_is_refused(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**14,)})
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("x.npy", header.getvalue() + bytes(1000))
    with pytest.raises(DataError, match=r"d\.npz says that it holds more"):
        write_data(tmp_path / "d.npz", tmp_path)


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null", "pipe"])
def test_what_is_no_file_is_refused_at_once_and_not_read(tmp_path, path):
    """Reading /dev/zero never ends, and neither does waiting for a writer of a pipe."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="is not a file"):
        write_data(tmp_path / path, tmp_path)


@pytest.mark.parametrize("content", [None, b"", b"garbage", b"PK\3\4garbage"])
def test_file_that_is_no_npz_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "d.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"d\.npz"):
        write_data(tmp_path / "d.npz", tmp_path)
