"""DATA as ``.npy`` files, and as batches that a function gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from evenfleet_collector.optimize import LabelledData, datasets
from evenfleet_collector.optimize.datasets import Wanted
from evenfleet_shared.errors import ConfigError, DataError

X = np.arange(80, dtype=np.float32).reshape(40, 2)
Y = np.arange(40) % 2


def read(text: str | Path, max_bytes: int = 1 << 30) -> LabelledData:
    return datasets.read(datasets.parse(text), Wanted(seed=0, max_bytes=max_bytes))


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Write a function `data` with this body, and return its name."""
    monkeypatch.chdir(tmp_path)
    written: list[str] = []

    def write(body: str) -> str:
        name = f"ef_{tmp_path.name}_{len(written)}".replace("-", "_")
        written.append(name)
        (tmp_path / f"{name}.py").write_text(f"import numpy as np\n\ndef data():\n    {body}\n")
        return f"{name}:data"

    return write


def test_pair_of_files_is_split_like_an_npz(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", Y)
    np.savez(tmp_path / "d.npz", x=X, y=Y)
    assert read(f"{tmp_path}/x.npy,{tmp_path}/y.npy").digest == read(tmp_path / "d.npz").digest


def test_directory_of_arrays_is_read_by_their_names(tmp_path: Path) -> None:
    for name, array in {"x_train": X, "y_train": Y, "x_test": X[:6], "y_test": Y[:6]}.items():
        np.save(tmp_path / f"{name}.npy", array)
    labelled = read(tmp_path)
    assert len(labelled.x_test) == 6
    assert labelled.x_train.tolist() == X.tolist()


def test_float32_file_is_mapped_and_not_copied(tmp_path: Path) -> None:
    for name, array in {"x_train": X, "y_train": Y, "x_test": X, "y_test": Y}.items():
        np.save(tmp_path / f"{name}.npy", array)
    base = read(tmp_path).x_train
    while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap)


def test_directory_without_one_of_the_arrays_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x_train.npy", X)
    with pytest.raises(DataError, match="y_train, x_test, y_test missing; found x_train"):
        read(tmp_path)


def test_half_of_a_pair_that_is_not_there_is_named(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    with pytest.raises(ConfigError, match=r"y.npy does not exist"):
        read(f"{tmp_path}/x.npy,{tmp_path}/y.npy")


def test_pickled_objects_in_a_file_are_refused_and_never_loaded(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "exploded",)

    np.save(tmp_path / "x.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
    np.save(tmp_path / "y.npy", Y)
    with pytest.raises(DataError, match="pickled Python objects, which are never loaded"):
        read(f"{tmp_path}/x.npy,{tmp_path}/y.npy")
    assert not (tmp_path / "exploded").exists()


def test_truncated_file_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", Y)
    whole = (tmp_path / "x.npy").read_bytes()
    (tmp_path / "x.npy").write_bytes(whole[:-10])
    with pytest.raises(DataError, match="promises 320 bytes, 310 are there"):
        read(f"{tmp_path}/x.npy,{tmp_path}/y.npy")
    (tmp_path / "x.npy").write_bytes(b"nonsense")
    with pytest.raises(DataError, match=r"is not a readable .npy"):
        read(f"{tmp_path}/x.npy,{tmp_path}/y.npy")


def test_files_beyond_the_bound_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", Y)
    with pytest.raises(DataError, match="at most 100 are read"):
        read(f"{tmp_path}/x.npy,{tmp_path}/y.npy", max_bytes=100)


GENERATOR = "return ((np.full((4, 3), n), np.arange(4) % 2) for n in range(5))"


def test_batches_of_a_generator_are_gathered_and_split(given: Callable[[str], str]) -> None:
    labelled = read(given(GENERATOR))
    assert len(labelled.x_train) + len(labelled.x_test) == 20
    assert sorted(np.unique(np.concatenate([labelled.x_train, labelled.x_test])).tolist()) == [0, 1, 2, 3, 4]


def test_two_streams_of_batches_are_training_and_test(given: Callable[[str], str]) -> None:
    body = "make = lambda n: iter([(np.full((4, 3), n), np.arange(4) % 2)] * n)\n    return make(3), make(2)"
    labelled = read(given(body))
    assert (len(labelled.x_train), len(labelled.x_test)) == (12, 8)
    assert labelled.x_test.max() == 2.0


def test_generator_may_import_its_neighbours_as_it_runs(tmp_path: Path, given: Callable[[str], str]) -> None:
    (tmp_path / "ef_late_neighbour.py").write_text("import numpy as np\nVALUE = np.zeros((10, 2)), np.arange(10) % 2\n")
    name = given("import ef_late_neighbour\n    yield ef_late_neighbour.VALUE\n    yield ef_late_neighbour.VALUE")
    assert read(name).sample_shape == (2,)


@pytest.mark.parametrize("kind", ["float32", "uint8"])
def test_generator_that_hands_out_one_buffer_again_and_again_gives_what_was_in_it(
    given: Callable[[str], str], kind: str
) -> None:
    body = (
        f"x = np.zeros((4, 2), np.{kind})\n    for n in range(5):\n        x[:] = n\n        yield x, np.arange(4) % 2"
    )
    labelled = read(given(body))
    assert labelled.x_train.max() > labelled.x_train.min()


def test_something_with_a_length_and_items_gives_batches(given: Callable[[str], str]) -> None:
    """Such is a Keras PyDataset: its iterator never ends."""
    body = (
        "class Batches:\n"
        "        def __len__(self):\n"
        "            return 5\n"
        "        def __getitem__(self, index):\n"
        "            return np.full((4, 3), index), np.arange(4) % 2\n"
        "    return Batches()"
    )
    labelled = read(given(body))
    assert len(labelled.x_train) + len(labelled.x_test) == 20


@pytest.mark.tensorflow
def test_tf_data_gives_batches(given: Callable[[str], str]) -> None:
    body = (
        "import tensorflow as tf\n"
        "    return tf.data.Dataset.from_tensor_slices((np.zeros((20, 3), np.uint8), np.arange(20) % 2)).batch(6)"
    )
    labelled = read(given(body))
    assert len(labelled.x_train) + len(labelled.x_test) == 20


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return iter([])", "gave no batch"),
        (
            "return iter([(np.zeros((4, 2)), np.zeros(3))])",
            r"batch 0 has samples of shape \(4, 2\) and labels of shape",
        ),
        ("return iter([(np.zeros(2), np.array(1))])", r"several at once \(tf.data: .batch\(32\)\)"),
        ("return iter([(np.zeros((4, 2)),) * 3])", "batch 0 is 3 parts, expected a pair"),
        ("return iter([np.zeros((4, 2))])", "batch 0 is ndarray, expected a pair"),
        ("return iter([([[1, 2], [3]], [0, 1])])", "batch 0 is not an array of numbers"),
        ("return iter([(np.zeros((4, n)), np.zeros(4)) for n in (2, 3)])", r"batch 1 has samples of shape \(3,\)"),
        ("yield np.zeros((4, 2)), np.zeros(4)\n    raise OSError('disk on fire')", "failed: OSError: disk on fire"),
        ("return iter([(np.full((4, 2), np.nan), np.arange(4) % 2)])", "not finite"),
        ("return iter([(np.zeros((4, 2)), np.zeros(4))])", "only class 0"),
    ],
)
def test_unacceptable_batches_are_refused_with_which(given: Callable[[str], str], body: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read(given(body))
    assert "\n" not in str(caught.value)


def test_batches_without_end_are_cut_off(given: Callable[[str], str]) -> None:
    with pytest.raises(DataError, match=r"more than 10000 bytes in .* Does it end"):
        read(given("while True:\n        yield np.zeros((4, 2)), np.arange(4) % 2"), max_bytes=10_000)
