from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenfleet_agent import runtimes
from evenfleet_agent.engines import Engine
from evenfleet_agent.runtimes.interface import Options
from evenfleet_agent.runtimes.interpreter import Operator, Package, delegated, execution, explain
from evenfleet_shared.errors import ConfigError, RuntimeMissingError


def operator(name, inputs, outputs):
    return Operator(name, frozenset(inputs), frozenset(outputs))


def test_operators_between_a_delegates_inputs_and_outputs_are_its_own():
    #  0 -A-> 1 -B-> 2 -C-> 3 -D-> 4, and E from 1; the delegate has B and C
    graph = [
        operator("A", {0}, {1}),
        operator("B", {1}, {2}),
        operator("C", {2}, {3}),
        operator("D", {3}, {4}),
        operator("E", {1}, {5}),
        operator("DELEGATE", {1}, {3}),
    ]
    assert delegated(graph) == {1, 2}


def test_two_delegates_do_not_claim_what_lies_between_them():
    graph = [
        operator("A", {0}, {1}),
        operator("B", {1}, {2}),
        operator("C", {2}, {3}),
        operator("DELEGATE", {0}, {1}),
        operator("DELEGATE", {2}, {3}),
    ]
    assert delegated(graph) == {0, 2}


@given(st.integers(1, 30).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(0, n))))
def test_part_of_a_chain_is_counted_exactly(chain):
    n, start, end = chain
    graph = [operator("RELU", {i}, {i + 1}) for i in range(n)]
    part = set(range(start, end))
    if part:
        graph.append(operator("DELEGATE", {start}, {end}))
    assert delegated(graph) == part


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("Didn't find op for builtin opcode 'CONV_2D' version '9'. An older\n", "no operator CONV_2D of version 9"),
        (
            "Encountered unresolved custom op: TFLite_Detection_PostProcess.\nSee",
            "custom operator TFLite_Detection_Post",
        ),
        (
            "Encountered unresolved custom op: edgetpu-custom-op.\nSee",
            "edgetpu-custom-op; the file was compiled for an",
        ),
        ("a\n  b\tc", "a b c"),
        ("", "no reason given"),
    ],
)
def test_interpreters_message_becomes_one_line(message, line):
    assert line in explain(message)
    assert "\n" not in explain(message)


def test_package_that_is_not_installed_names_its_command():
    engine = Engine("none", "none", ("tflite",), "none")
    package = Package(engine=engine, module="no_such_package", install="pip install it", needs_numpy_1=False)
    with pytest.raises(RuntimeMissingError, match="pip install it"):
        package.version()


def test_unknown_runtime_names_the_known_ones():
    with pytest.raises(ConfigError, match="litert, tflite, litert-compiled, tensorflow, onnx"):
        runtimes.by_name("caffe")


def test_importing_the_supervisors_side_loads_no_numpy_and_no_interpreter():
    heavy = subprocess.run(
        [
            sys.executable,
            "-c",
            """
import sys, evenfleet_agent.cli, evenfleet_agent.runner.process, evenfleet_agent.runtimes
import evenfleet_agent.host, evenfleet_agent.window
print([name for name in ('numpy', 'tensorflow', 'ai_edge_litert', 'tflite_runtime', 'onnxruntime') if name in sys.modules])
""",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert heavy.stdout.strip() == "[]"


def test_parts_of_a_delegate_are_told_from_those_of_xnnpack():
    #  0 -A-> 1 -B-> 2 -C-> 3; the delegate has A, XNNPACK B
    graph = [
        operator("A", {0}, {1}),
        operator("B", {1}, {2}),
        operator("C", {2}, {3}),
        operator("DELEGATE", {0}, {1}),
        operator("DELEGATE", {1}, {2}),
    ]
    found = execution(graph, Options(delegate="/opt/libvendor.so"), 1)
    assert (found.requested, found.executed, found.delegated_ratio) == ("libvendor.so", "libvendor.so", 1 / 3)
    assert found.fallback_reason == (
        "libvendor.so took 1 of 3 operators; left to XNNPACK: B; left to the built-in kernels: C"
    )


def test_delegate_whose_graph_cannot_be_seen_is_not_said_to_have_run_it():
    found = execution(None, Options(delegate="edgetpu"), 0)
    assert (found.requested, found.executed, found.delegated_ratio) == ("edgetpu", "cpu", None)
    assert found.fallback_reason is not None
