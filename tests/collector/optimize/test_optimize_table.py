"""DATA as a CSV."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evenfleet_collector.optimize import LabelledData, datasets
from evenfleet_collector.optimize.datasets import DataOptions, Wanted
from evenfleet_shared.errors import ConfigError, DataError


def read(folder: Path, text: str, **wanted: Any) -> LabelledData:
    (folder / "d.csv").write_text(text, encoding="utf-8")
    return datasets.read(datasets.parse(folder / "d.csv"), Wanted(seed=0, **wanted))


def rows(*lines: str, times: int = 10) -> str:
    return "\n".join(lines * times) + "\n"


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("a,label,b", "1,{},2"),
        ("a,b,target", "1,2,{}"),
        ("Class,a,b", "{},1,2"),
        ("a,b,anything", "1,2,{}"),
        ("a;b;label", "1;2;{}"),
        ("a\tb\tlabel", "1\t2\t{}"),
        ("\ufefflabel,a,b", "{},1,2"),
    ],
)
def test_label_column_is_found_by_name_or_is_the_last(tmp_path: Path, header: str, row: str) -> None:
    labelled = read(tmp_path, header + "\n" + rows(row.format(0), row.format(1)))
    assert labelled.x_train[0].tolist() == [1.0, 2.0]
    assert sorted(set(labelled.y_train.tolist())) == [0, 1]
    assert labelled.class_names == ()


def test_label_column_that_was_named_goes_before_the_usual_names(tmp_path: Path) -> None:
    options = DataOptions(label_column="kind")
    labelled = read(tmp_path, "kind,label\n" + rows("0,7", "1,8"), options=options)
    assert labelled.x_train[labelled.y_train == 1].max() == 8.0


def test_label_column_that_is_not_there_is_answered_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none of the columns called 'kin'.*it has a, b"):
        read(tmp_path, "a,b\n" + rows("0,0", "1,1"), options=DataOptions(label_column="kin"))


def test_text_labels_become_numbers_in_sorted_order(tmp_path: Path) -> None:
    labelled = read(tmp_path, "a,label\n" + rows("3,pear", "1,apple", "2,fig"))
    assert labelled.class_names == ("apple", "fig", "pear")
    assert labelled.y_train[labelled.x_train[:, 0] == 3.0].tolist() == [2] * 8


def test_row_is_laid_out_in_the_shape_that_the_model_takes(tmp_path: Path) -> None:
    labelled = read(tmp_path, "a,b,c,d,label\n" + rows("1,2,3,4,0", "5,6,7,8,1"), sample_shape=(2, 2, 1))
    assert labelled.x_train[labelled.y_train == 0][0, :, :, 0].tolist() == [[1.0, 2.0], [3.0, 4.0]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("a,label\n", "a header and no rows"),
        ("1,2\n" + rows("1,0", "2,1"), "has no header"),
        ("label\n" + rows("0", "1"), "the column label alone"),
        ("a,label\n1,0\n,1\n", "line 3: the column a is empty"),
        ("a,label\n1,0\nnan,1\n", "line 3: the column a holds nan, expected a finite"),
        ("a,label\n1,0\n1e60,1\n", "line 3: the column a holds 1e60, expected a finite"),
        ("a,label\n1,0\nred,1\n", "line 3: the column a holds 'red', expected a number"),
        ("a,label\n1,0\n1,\n", "line 3: no label in the column label"),
        ("a,label\n1,0\n1,NaN\n", "line 3: no label"),
        ("a,label\n1,0\n1,2,3\n", "line 3: 3 columns, the header has 2"),
        ("a,label,label\n" + rows("1,0,0"), "2 columns called label; name one with --label-column"),
        ("a,label\n" + rows("1,cat"), "only the class cat"),
        ("a,label\n" + rows("1,3"), "only class 3"),
        ("a,label\n" + rows("1,0", "1,0.5"), "holds 0.5; classes are whole numbers"),
        ('a,label\n1,"0\n', "not a readable CSV"),
        ("a,label\n1,0\n" + "1" * 200_000 + ",1\n", "not a readable CSV"),
    ],
)
def test_unacceptable_table_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_other_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_bytes("größe,label\n1,0\n".encode("latin-1"))
    with pytest.raises(DataError, match="is not UTF-8"):
        datasets.read(datasets.parse(tmp_path / "d.csv"), Wanted(seed=0))


def test_more_numbers_than_fit_are_not_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="more than 100 bytes of numbers by line 27"):
        read(tmp_path, "a,label\n" + rows("1,0", "1,1", times=100), max_bytes=100)


def test_label_column_for_something_else_than_a_table_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.zeros((20, 3)), y=np.arange(20) % 2)
    with pytest.raises(ConfigError, match=r"--label-column names a column of a CSV, and DATA d.npz is an .npz file"):
        datasets.read(datasets.parse(tmp_path / "d.npz"), Wanted(seed=0, options=DataOptions(label_column="y")))
