from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ai_edge_litert import schema_py_generated as schema

from evenfleet_agent import flatbuffer, operators
from evenfleet_agent.flatbuffer import OperatorCode
from evenfleet_shared.errors import ModelRefusedError
from fakes import tiny_models

ROOT = Path(__file__).parents[2]


def code(name, version=1):
    return OperatorCode(operators.NAMES.index(name), version, None)


def lacking(codes, *, package="tflite-runtime", version="2.14.0", min_runtime_version=None):
    return operators.lacking(codes, min_runtime_version, package=package, version=version)


def test_names_are_those_of_the_schema():
    numbers = {number: name for name, number in vars(schema.BuiltinOperator).items() if isinstance(number, int)}
    assert dict(enumerate(operators.NAMES)) == numbers


@pytest.mark.parametrize(
    ("package", "module"),
    [
        ("ai-edge-litert", "ai_edge_litert.interpreter"),
        pytest.param("tflite-runtime", "tflite_runtime.interpreter", marks=pytest.mark.tflite),
    ],
)
def test_table_is_what_the_runtime_itself_answers(package, module):
    python = Path(sys.executable)
    if package == "tflite-runtime":
        python = Path(os.environ.get("EVENFLEET_TFLITE_PYTHON", ROOT / ".venv-tflite/bin/python"))
        if not python.exists():
            pytest.skip(f"no tflite-runtime environment at {python}; make one with 'make setup'")
    asked = subprocess.run(
        [str(python), str(ROOT / "bench/operator_versions.py"), module], capture_output=True, text=True, check=True
    )
    told = {operators.NAMES[int(number)]: highest for number, highest in json.loads(asked.stdout).items()}
    (table,) = [table for table in operators.MEASURED if table.package == package]
    assert told == table.highest


def test_operator_of_a_later_version_is_lacking_and_the_bound_is_told():
    assert lacking([code("RELU"), code("FULLY_CONNECTED", 12)]) == (
        "operator FULLY_CONNECTED of version 12, which it has up to version 10"
    )


def test_operator_that_the_runtime_does_not_have_at_all_is_lacking():
    assert lacking([code("STABLEHLO_ADD")]) == "operator STABLEHLO_ADD of version 1, which it does not have in any"


def test_operator_newer_than_the_list_of_names_is_lacking_by_its_number():
    assert lacking([OperatorCode(400, 1, None)], package="ai-edge-litert", version="2.3.0") == (
        "operator number 400 of version 1, which it does not have in any"
    )


def test_what_a_later_version_lacks_an_earlier_one_lacks_too():
    assert lacking([code("FULLY_CONNECTED", 12)], version="2.5.0") == (
        "operator FULLY_CONNECTED of version 12, which it has up to version 10 (measured with 2.14.0)"
    )


def test_of_a_version_later_than_any_that_was_measured_nothing_is_known():
    assert lacking([code("FULLY_CONNECTED", 12)], version="2.15.0") is None
    assert lacking([code("FULLY_CONNECTED", 99)], package="ai-edge-litert", version="3.0.0") is None
    assert lacking([code("FULLY_CONNECTED", 99)], package="another", version="1.0.0") is None
    assert lacking([code("FULLY_CONNECTED", 99)], version="unknown") is None


def test_custom_operators_are_left_to_the_interpreter_and_its_delegates():
    assert lacking([OperatorCode(operators.CUSTOM, 7, "edgetpu-custom-op")]) is None


def test_what_the_converter_counts_on_is_believed_only_where_nothing_was_measured():
    assert lacking([code("RELU")], min_runtime_version="2.16.0", version="2.14.0") is None
    assert lacking([code("RELU")], min_runtime_version="2.16.0", version="2.15.0") == (
        "what its converter counts on, a runtime of TensorFlow 2.16.0 or later"
    )
    assert lacking([code("RELU")], min_runtime_version="1.14.0", version="2.15.0") is None
    assert lacking([code("RELU")], min_runtime_version="UNKNOWN", version="2.15.0") is None


def test_litert_is_not_numbered_as_tensorflow_is():
    assert lacking([code("RELU")], min_runtime_version="2.16.0", package="ai-edge-litert", version="1.4.0") is None


def test_file_is_refused_by_its_name_for_the_runtime_that_lacks_its_operator(tmp_path):
    model = tiny_models.classifier(tmp_path / "m.tflite", version=12)
    with pytest.raises(ModelRefusedError, match=r"^tflite 2\.14\.0 cannot run m\.tflite: it lacks operator FULLY_CONN"):
        operators.check_file(model, runtime="tflite", version="2.14.0")
    operators.check_file(model, runtime="litert", version="2.3.0")
    operators.check_file(model, runtime="litert-compiled", version="2.3.0")


def test_damaged_file_is_refused_and_what_is_no_tflite_runtime_is_not_asked(tmp_path):
    (tmp_path / "m.tflite").write_bytes(b"garbage" * 9)
    with pytest.raises(ModelRefusedError, match="is not a TFLite model"):
        operators.check_file(tmp_path / "m.tflite", runtime="litert", version="2.3.0")
    operators.check_file(tmp_path / "m.tflite", runtime="tensorflow", version="2.21.0")


def test_versions_in_use_are_told_by_name_the_highest_of_each(tmp_path):
    outline = flatbuffer.read(tiny_models.classifier(tmp_path / "m.tflite", version=3))
    assert operators.versions(outline.operators) == {"FULLY_CONNECTED": 3, "SOFTMAX": 1}
    assert operators.versions([code("RELU", 2), code("RELU", 1)]) == {"RELU": 2}


def test_asking_loads_no_numpy_and_no_interpreter():
    heavy = subprocess.run(
        [
            sys.executable,
            "-c",
            """
import sys, evenfleet_agent.operators
print([name for name in ('numpy', 'ai_edge_litert', 'flatbuffers', 'tflite_runtime') if name in sys.modules])
""",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert heavy.stdout.strip() == "[]"
