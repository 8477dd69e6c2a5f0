"""What is particular to ONNX Runtime; what it has in common with the others is in the contract suite."""

from __future__ import annotations

import numpy as np
import pytest

from evenfleet_agent.runtimes import onnx as runtime
from evenfleet_agent.runtimes.interface import Options
from evenfleet_shared.errors import ModelRefusedError
from fakes import tiny_onnx

ort = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed: pip install onnxruntime")


def load(path, **options):
    return runtime.OnnxRuntime().load(path, Options(**options), None)


def test_nodes_that_cuda_does_not_run_are_named_as_the_session_assigned_them(tmp_path):
    """A session that was built for CUDA and the CPU says itself what is where; here it is all on the CPU."""
    path = tiny_onnx.dense(tmp_path / "m.onnx", np.eye(3, 4))
    session = runtime._session(ort, path, Options(), ["CPUExecutionProvider"])
    found = runtime._execution(session, "gpu")
    assert (found.requested, found.executed, found.delegated_ratio) == ("gpu", "cpu", 0.0)
    assert found.fallback_reason == "CUDA took 0 of 2 nodes; left to the CPU: MatMul, Softmax"


def test_batch_that_is_free_is_run_many_at_a_time_and_one_that_is_fixed_is_not(tmp_path):
    free = load(tiny_onnx.classifier(tmp_path / "m.onnx"))
    assert (free.inputs[0].shape, free.max_batch) == ((-1, 3, 8, 8), 64)
    fixed = load(tiny_onnx.classifier(tmp_path / "n.onnx", shape=(1, 3, 8, 8)))
    assert (fixed.inputs[0].shape, fixed.max_batch) == ((1, 3, 8, 8), 1)
    free.feed(free.prepare([np.zeros((2, 3, 8, 8), dtype=np.float32)]))
    free.invoke()
    assert free.read()[0].shape == (2, 3)


def test_operators_of_other_domains_run_too(tmp_path):
    model = load(tiny_onnx.foreign(tmp_path / "m.onnx"))
    model.feed(model.prepare([np.array([[1.0, 1.0, 2.0, 0.0]], dtype=np.float32)]))
    model.invoke()
    assert model.read()[0].tolist() == [[0.25, 0.25, 0.5, 0.0]]


def test_inputs_of_the_wrong_shape_are_one_line(tmp_path):
    model = load(tiny_onnx.classifier(tmp_path / "m.onnx"))
    model.feed({"x": np.zeros((1, 3, 8, 9), dtype=np.float32)})
    with pytest.raises(ModelRefusedError, match=r"^m\.onnx failed while running: ") as refused:
        model.invoke()
    assert "\n" not in str(refused.value)
