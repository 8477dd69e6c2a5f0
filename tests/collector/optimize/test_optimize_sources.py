from __future__ import annotations

from pathlib import Path

import pytest

from evenfleet_collector.optimize import datasets, models
from evenfleet_collector.optimize.datasets import Wanted
from evenfleet_shared.errors import ConfigError, DataError, EvenfleetError, ModelRefusedError


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("text", ["nowhere.keras", "no/such/dir", "a:b:c", "1module:x", "x" * 5000, "nul\0byte", ""])
def test_model_that_is_neither_there_nor_a_function_is_a_usage_error(here: Path, text: str) -> None:
    with pytest.raises(EvenfleetError) as caught:
        models.parse(text)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["m.h5", "m.pt", "m.pb", "m.txt", "m"])
def test_file_of_another_type_is_refused_with_the_types_that_are_read(here: Path, name: str) -> None:
    (here / name).write_bytes(b"x")
    with pytest.raises(
        ConfigError,
        match=r"expected a .keras file, a SavedModel directory, a .tflite file, an .onnx file, or module:function",
    ):
        models.parse(here / name)


def test_directory_without_saved_model_is_refused(here: Path) -> None:
    with pytest.raises(ModelRefusedError, match="no SavedModel"):
        models.parse(here)


def test_data_of_another_type_is_refused(here: Path) -> None:
    (here / "d.xlsx").write_text("1,2\n")
    with pytest.raises(ConfigError, match=r"expected an .npz file, a NumPy pair .* a .csv file .* or module:function"):
        datasets.parse(here / "d.xlsx")


def test_function_in_the_current_directory_is_found_and_may_import_its_neighbours(here: Path) -> None:
    (here / "ef_neighbour.py").write_text("VALUE = [[0, 0], [1, 1]] * 10, [0, 1] * 10\n")
    (here / "ef_found.py").write_text("def data():\n    import ef_neighbour\n    return ef_neighbour.VALUE\n")
    labelled = datasets.read(datasets.parse("ef_found:data"), Wanted(seed=0))
    assert labelled.x_train.shape == (16, 2)


def test_missing_module_is_named(here: Path) -> None:
    with pytest.raises(ConfigError, match="no module named ef_absent"):
        datasets.read(datasets.parse("ef_absent:data"), Wanted(seed=0))


def test_missing_function_is_answered_with_those_that_are_there(here: Path) -> None:
    (here / "ef_other.py").write_text("def dataset():\n    pass\n")
    with pytest.raises(ConfigError, match="no function 'data'; it has dataset"):
        datasets.read(datasets.parse("ef_other:data"), Wanted(seed=0))


def test_module_that_fails_to_import_is_one_line(here: Path) -> None:
    (here / "ef_broken.py").write_text("def data(:\n")
    with pytest.raises(ConfigError, match="importing ef_broken failed: SyntaxError") as caught:
        datasets.read(datasets.parse("ef_broken:data"), Wanted(seed=0))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("body", ["raise OSError('disk on fire')", "raise SystemExit('disk on fire')"])
def test_function_that_raises_is_one_line_with_its_words(here: Path, body: str) -> None:
    name = f"ef_raises_{abs(hash(body))}"
    (here / f"{name}.py").write_text(f"def data():\n    {body}\n")
    with pytest.raises(DataError, match="disk on fire"):
        datasets.read(datasets.parse(f"{name}:data"), Wanted(seed=0))


def test_function_that_returns_something_else_is_refused(here: Path) -> None:
    (here / "ef_wrong.py").write_text("def data():\n    return 7\n")
    with pytest.raises(DataError, match="returned int; expected a dictionary"):
        datasets.read(datasets.parse("ef_wrong:data"), Wanted(seed=0))


def test_python_path_is_left_as_it_was(here: Path) -> None:
    import sys

    (here / "ef_plain.py").write_text("def data():\n    return 7\n")
    before = list(sys.path)
    with pytest.raises(DataError):
        datasets.read(datasets.parse("ef_plain:data"), Wanted(seed=0))
    assert sys.path == before
