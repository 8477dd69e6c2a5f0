"""Take a .tflite apart: what its operators are, and files made of it whose operators can be seen, fed or replaced.

Three files are made of one:

    exposed    every operator's output is an output of the graph, so that any runtime, delegates too, has to give it
    cut        besides, every operator takes its inputs from outside, and none from another operator
    resumed    some tensors come from outside, and what came before them alone is left out

Leaves running them to `walk`. Looks at the main graph alone. An operator whose inputs are all constants (the dequantisation
of stored weights) is none here, and its output is a constant.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from evenfleet_collector.optimize import graph
from evenfleet_collector.optimize.layers import Operator, Weights

Array = npt.NDArray[Any]

_STORED: Final[dict[str, Any]] = {
    "FLOAT32": np.float32,
    "FLOAT16": np.float16,
    "INT8": np.int8,
    "UINT8": np.uint8,
    "INT16": np.int16,
}
_QUANTISED: Final = ("INT8", "UINT8", "INT16")
_IDENTIFIER: Final = b"TFL3"


@dataclass(frozen=True, slots=True)
class Tensor:
    """What a tensor that is computed holds: floats, or integers with one scale.

    Attributes:
        type: As TFLite names it.
        scale: What one step is worth; None for floats.
        zero_point: The integer that stands for 0.
    """

    type: str
    scale: float | None = None
    zero_point: int = 0

    @property
    def limits(self) -> tuple[int, int] | None:
        """Return the smallest and the largest integer; None for floats."""
        bounds = None if self.scale is None else np.iinfo(_STORED[self.type])
        return None if bounds is None else (int(bounds.min), int(bounds.max))

    def encode(self, values: Array) -> Array:
        """Return values as the tensor holds them."""
        if self.scale is None or self.limits is None:
            return values.astype(np.float32)
        low, high = self.limits
        steps: Array = np.clip(np.rint(values / self.scale) + self.zero_point, low, high)
        return steps.astype(_STORED[self.type])

    def decode(self, stored: Array) -> Array:
        """Return what stored values stand for, as float64."""
        real = stored.astype(np.float64)
        return real if self.scale is None else (real - self.zero_point) * self.scale


class Graph:
    """One file's main graph.

    Attributes:
        operators: In order, without those of constants.
        input, output: Numbers of the tensors that the file takes and gives, one each.
    """

    def __init__(self, payload: bytes) -> None:
        """Read a file; whatever its reader trips over is raised as it is.

        Raises:
            ValueError: It has more than one input or output.
        """
        from ai_edge_litert import schema_py_generated as schema

        self._model = schema.ModelT.InitFromPackedBuf(payload, 0)
        main = self._model.subgraphs[0]
        if len(main.inputs) != 1 or len(main.outputs) != 1:
            raise ValueError(f"has {len(main.inputs)} inputs and {len(main.outputs)} outputs, expected one of each")
        self.input, self.output = int(main.inputs[0]), int(main.outputs[0])
        self._tensors = main.tensors
        self._constant_of: dict[int, int] = {}  # a tensor, and the stored one that it is made of
        self._raw = [operator for operator in main.operators if not self._is_of_constants(operator)]
        self.operators = tuple(self._operator(position) for position in range(len(self._raw)))
        self.producer = {int(tensor): place for place, raw in enumerate(self._raw) for tensor in raw.outputs}

    def inputs(self, position: int) -> dict[int, int]:
        """Return the computed inputs of an operator that hold numbers: their place, and the tensor."""
        return {
            slot: int(tensor)
            for slot, tensor in enumerate(self._raw[position].inputs)
            if tensor >= 0 and self._is_computed(int(tensor)) and self.tensor(int(tensor)) is not None
        }

    def outputs(self, position: int) -> tuple[int, ...]:
        """Return the outputs of an operator."""
        return tuple(int(tensor) for tensor in self._raw[position].outputs)

    def tensor(self, number: int) -> Tensor | None:
        """Return what a tensor holds; None where that is no number of the model's: a shape, an index, a truth."""
        found = self._tensors[number]
        name = _types()[found.type]
        if name == "FLOAT32":
            return Tensor(name)
        scales = _scales(found)
        if name not in _QUANTISED or len(scales) != 1:
            return None
        zero_points = found.quantization.zeroPoint
        return Tensor(name, float(scales[0]), int(zero_points[0]) if zero_points is not None else 0)

    def shape(self, number: int) -> tuple[int, ...]:
        """Return a tensor's shape."""
        shape = self._tensors[number].shape
        return () if shape is None else tuple(int(side) for side in shape)

    def name(self, number: int) -> str:
        """Return a tensor's name."""
        return _text(self._tensors[number].name)

    def weights(self, position: int) -> Array | None:
        """Return an operator's weights, dequantised, output channels first; None where it has none that can be read."""
        number = self._weights_of(position)
        return None if number is None else self._values(number)

    def root(self, number: int) -> int:
        """Return the tensor that this one was converted from."""
        while (place := self.producer.get(number)) is not None and self.operators[place].kind in (
            "QUANTIZE",
            "DEQUANTIZE",
        ):
            number = int(self._raw[place].inputs[0])
        return number

    def exposed(self) -> bytes:
        """Return the file with every operator's outputs as outputs."""
        return self._written(self._raw, [self.input], [])

    def cut(self) -> tuple[bytes, dict[tuple[int, int], int]]:
        """Return the file with every operator on its own, and the new inputs by operator and place."""
        tensors: list[Any] = []
        made: dict[tuple[int, int], int] = {}
        operators = []
        for position, raw in enumerate(self._raw):
            inputs = np.array(raw.inputs, dtype=np.int32)
            for slot, tensor in self.inputs(position).items():
                made[position, slot] = len(self._tensors) + len(tensors)
                inputs[slot] = made[position, slot]
                tensors.append(self._outside(tensor))
            operators.append(_rewired(raw, inputs))
        return self._written(operators, [self.input, *made.values()], tensors), made

    def resumed(self, given: Sequence[int]) -> tuple[bytes, dict[int, int]]:
        """Return the file with some tensors from outside, and what the new inputs are called."""
        made = {tensor: len(self._tensors) + place for place, tensor in enumerate(given)}
        operators: list[Any] = []
        needed = {self.output}
        for raw in reversed(self._raw):
            if not needed.intersection(map(int, raw.outputs)):
                continue
            inputs = np.array([made.get(int(tensor), int(tensor)) for tensor in raw.inputs], dtype=np.int32)
            needed.update(map(int, inputs))
            operators.insert(0, _rewired(raw, inputs))
        inputs_left = [number for number in (self.input, *made.values()) if number in needed]
        tensors = [self._outside(tensor) for tensor in given]
        written = self._written(operators, inputs_left, tensors, outputs=[self.output])
        return written, {tensor: number for tensor, number in made.items() if number in needed}

    def _written(
        self, operators: Sequence[Any], inputs: list[int], tensors: list[Any], outputs: list[int] | None = None
    ) -> bytes:
        if outputs is None:
            outputs = [int(tensor) for raw in operators for tensor in raw.outputs]
            outputs += [self.output] if self.output not in outputs else []
        model = copy.copy(self._model)
        main = copy.copy(model.subgraphs[0])
        main.operators = [*self._of_constants(), *operators]
        main.tensors = [*self._tensors, *tensors]
        main.inputs, main.outputs = np.array(inputs, np.int32), np.array(outputs, np.int32)
        model.subgraphs = [main, *model.subgraphs[1:]]
        model.signatureDefs = None  # they name inputs and outputs that are others now
        return _packed(model)

    def _of_constants(self) -> list[Any]:
        known = {id(raw) for raw in self._raw}
        return [raw for raw in self._model.subgraphs[0].operators if id(raw) not in known]

    def _outside(self, number: int) -> Any:
        made = copy.copy(self._tensors[number])
        made.buffer = 0  # by convention the empty one
        made.name = f"outside/{number}".encode()
        return made

    def _is_of_constants(self, operator: Any) -> bool:
        inputs = [int(tensor) for tensor in operator.inputs if tensor >= 0]
        if not inputs or any(self._is_computed(tensor) for tensor in inputs):
            return False
        for output in operator.outputs:
            self._constant_of[int(output)] = self._constant_of.get(inputs[0], inputs[0])
        return True

    def _is_computed(self, number: int) -> bool:
        return number not in self._constant_of and not self._is_stored(number) and not self._tensors[number].isVariable

    def _is_stored(self, number: int) -> bool:
        data = self._model.buffers[self._tensors[number].buffer].data
        return data is not None and len(data) > 0

    def _operator(self, position: int) -> Operator:
        raw = self._raw[position]
        output = int(raw.outputs[0]) if len(raw.outputs) else -1
        held = self.tensor(output) if output >= 0 else None
        inputs = [self.tensor(tensor) for tensor in self.inputs(position).values()]
        number = self._weights_of(position)
        return Operator(
            position=position,
            kind=graph.kind(self._model.operatorCodes[raw.opcodeIndex]),
            name=_text(self._tensors[output].name) if output >= 0 else "",
            shape=self.shape(output) if output >= 0 else (),
            type=_types()[self._tensors[output].type] if output >= 0 else "",
            step=held.scale if held is not None else None,
            weights=None if number is None else self._weights(number),
            integer_inputs=bool(inputs) and inputs[0] is not None and inputs[0].scale is not None,
        )

    def _weights_of(self, position: int) -> int | None:
        """Return the stored tensor that is an operator's weights: the largest of numbers; of equals the first."""
        found: list[int] = []
        for tensor in map(int, self._raw[position].inputs):
            number = self._constant_of.get(tensor, tensor)
            if number < 0 or not self._is_stored(number):
                continue
            name = _types()[self._tensors[number].type]
            if name in ("FLOAT32", "FLOAT16") or (
                name not in ("INT32", "INT64", "BOOL") and len(_scales(self._tensors[number]))
            ):
                found.append(number)
        return max(found, key=lambda number: int(np.prod(self.shape(number))), default=None)

    def _weights(self, number: int) -> Weights:
        tensor = self._tensors[number]
        values = self._values(number)
        data = np.asarray(self._model.buffers[tensor.buffer].data) if values is None else values.astype(np.float32)
        name = _types()[tensor.type]
        stored = f"{name} {self.shape(number)} {hashlib.sha256(_scales(tensor).tobytes()).hexdigest()}"
        return Weights(type=name, digest=hashlib.sha256(data.tobytes()).hexdigest(), stored_as=stored)

    def _values(self, number: int) -> Array | None:
        tensor = self._tensors[number]
        name = _types()[tensor.type]
        data = np.asarray(self._model.buffers[tensor.buffer].data, dtype=np.uint8)
        shape = self.shape(number)
        if tensor.sparsity is not None or (tensor.quantization is not None and tensor.quantization.details is not None):
            return None
        if name == "INT4":
            low, high = (data << 4).view(np.int8) >> 4, data.view(np.int8) >> 4
            stored = np.stack([low, high], axis=-1).reshape(-1)[: int(np.prod(shape))]
        elif name in _STORED:
            stored = data.view(_STORED[name])
        else:
            return None
        if stored.size != int(np.prod(shape)):
            return None
        values = stored.reshape(shape).astype(np.float64)
        scales = _scales(tensor)
        axis = tensor.quantization.quantizedDimension if len(scales) > 1 else 0
        if len(scales):
            zero_points = tensor.quantization.zeroPoint
            zeros = np.zeros(len(scales)) if zero_points is None else np.asarray(zero_points, dtype=np.float64)
            along = [-1 if place == axis else 1 for place in range(len(shape))]
            many = len(scales) > 1
            values = (values - (zeros.reshape(along) if many else zeros[0])) * (
                scales.reshape(along) if many else scales[0]
            )
        # Depthwise convolutions have their channels last; everything else that is multiplied with has them first.
        return np.moveaxis(values, axis, 0) if axis else values


def with_signatures(payload: bytes) -> bytes:
    """Return a file that has a list of signatures, if an empty one: ai-edge-quantizer takes no other."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(payload, 0)
    if model.signatureDefs is not None:
        return payload
    model.signatureDefs = []
    return _packed(model)


def _packed(model: Any) -> bytes:
    import flatbuffers

    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), _IDENTIFIER)
    return bytes(builder.Output())


def _rewired(raw: Any, inputs: Array) -> Any:
    made = copy.copy(raw)
    made.inputs = inputs
    return made


def _scales(tensor: Any) -> npt.NDArray[np.float64]:
    found = None if tensor.quantization is None else tensor.quantization.scale
    return np.zeros(0) if found is None else np.asarray(found, dtype=np.float64)


def _text(name: Any) -> str:
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name or "")


@cache
def _types() -> dict[int, str]:
    from ai_edge_litert import schema_py_generated as schema

    return {value: name for name, value in vars(schema.TensorType).items() if isinstance(value, int)}
