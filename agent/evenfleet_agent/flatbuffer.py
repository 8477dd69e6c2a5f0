"""Read what a .tflite file says of itself, and tell whether it is whole enough to be handed to an interpreter.

Pure, and without an interpreter, its schema or numpy, so that whoever downloads a file can look into it. Some
interpreters (tflite-runtime 2.14) map the file and believe every offset in it: a download that broke off crashes them.
This looks at the outer tables only, which is where a cut or foreign file shows; a file made to harm is the
subprocess's business. What the operators mean, `operators` knows.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from evenfleet_shared.errors import ModelRefusedError

_IDENTIFIER: Final = b"TFL3"
# Positions of fields in the tables of TFLite's schema.
_MODEL_CODES, _MODEL_SUBGRAPHS, _MODEL_BUFFERS, _MODEL_METADATA = 1, 2, 4, 6
_SUBGRAPH_TENSORS, _SUBGRAPH_OPERATORS = 0, 3
_SUBGRAPH_NUMBERS = (1, 2)  # its inputs and outputs
_CODE_OLD, _CODE_CUSTOM, _CODE_VERSION, _CODE_NEW = 0, 1, 2, 3
_METADATA_NAME, _METADATA_BUFFER = 0, 1
_TENSOR_SHAPE, _TENSOR_TYPE, _TENSOR_BUFFER, _TENSOR_NAME, _TENSOR_QUANTISATION, _TENSOR_SIGNATURE = 0, 1, 2, 3, 4, 7
_QUANTISATION_SCALE, _QUANTISATION_ZERO_POINT = 2, 3
_SUBGRAPH_OUTPUTS = 2
_OPERATOR_CODE = 0
_OPERATOR_NUMBERS = (1, 2)  # its inputs and outputs
_BUFFER_DATA = 0
_MIN_RUNTIME: Final = b"min_runtime_version"


@dataclass(frozen=True, slots=True)
class OperatorCode:
    """A kind of operator that the file uses: its number in TFLite's schema, its version, and a custom one's name."""

    builtin: int
    version: int
    custom: str | None


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """What a file says of a tensor: its open sizes are -1; `scale` is None where it holds plain numbers."""

    shape_signature: tuple[int, ...]
    scale: float | None
    zero_point: int | None


@dataclass(frozen=True, slots=True)
class Outline:
    """What a file needs of an interpreter.

    `min_runtime_version` is what the converter thought, in TensorFlow's numbering; None where it did not say.
    `tensors` are those of the first graph.
    """

    operators: tuple[OperatorCode, ...]
    min_runtime_version: str | None
    tensors: tuple[StoredTensor, ...]


@dataclass(frozen=True, slots=True)
class Node:
    """An operator of the first graph, with the numbers of its tensors; -1 is an input that was left away."""

    code: OperatorCode
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class NodeTensor:
    """A tensor of the first graph: its name, its type's number in TFLite's schema, and whether its values are in the file."""

    name: str
    type: int
    stored: bool


@dataclass(frozen=True, slots=True)
class Graph:
    """The first graph: its operators in the file's order, its tensors, and the numbers of those that go in and come out."""

    nodes: tuple[Node, ...]
    tensors: tuple[NodeTensor, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def read(path: Path) -> Outline:
    """Check a file and return its outline.

    Raises:
        ModelRefusedError: It cannot be read, is something else, or cut off.
    """
    try:
        with path.open("rb") as file:
            if not path.stat().st_size:
                check(b"", path.name)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as content:
                check(content, path.name)
                return outline(content, path.name)
    except OSError as error:
        raise ModelRefusedError(f"{path} cannot be read: {error.strerror}") from None


def outline(content: bytes | memoryview, name: str) -> Outline:
    """Return the outline of a file that passed `check`.

    Raises:
        ModelRefusedError: A table that `check` does not look at is damaged.
    """
    try:
        model = _u32(content, 0)
        return Outline(
            operators=tuple(_code(content, at) for at in _tables(content, _field(content, model, _MODEL_CODES))),
            min_runtime_version=_min_runtime_version(content, model),
            tensors=_first_graph_tensors(content, model),
        )
    except struct.error:
        raise ModelRefusedError(f"{name} is damaged: its tables point beyond its {len(content)} bytes") from None


def graph(content: bytes | memoryview, name: str) -> Graph:
    """Return the first graph of a file that passed `check`.

    Raises:
        ModelRefusedError: A table that `check` does not look at is damaged, or one names what is not there.
    """
    try:
        model = _u32(content, 0)
        codes = [_code(content, at) for at in _tables(content, _field(content, model, _MODEL_CODES))]
        buffers = _tables(content, _field(content, model, _MODEL_BUFFERS))
        (at, *_) = _tables(content, _field(content, model, _MODEL_SUBGRAPHS))
        tensors = tuple(
            _node_tensor(content, tensor, buffers)
            for tensor in _tables(content, _field(content, at, _SUBGRAPH_TENSORS))
        )
        nodes = tuple(
            _node(content, node, codes) for node in _tables(content, _field(content, at, _SUBGRAPH_OPERATORS))
        )
        ends = [_numbers(content, _field(content, at, field), "i", 4) for field in _SUBGRAPH_NUMBERS]
        _check_named(
            {*ends[0], *ends[1], *(number for node in nodes for number in node.inputs + node.outputs)}, tensors
        )
    except (struct.error, IndexError, ValueError):
        raise ModelRefusedError(
            f"{name} is damaged: its first graph names what is not in its {len(content)} bytes"
        ) from None
    return Graph(nodes, tensors, ends[0], ends[1])


def with_outputs(content: bytes, tensors: Sequence[int]) -> bytes:
    """Return a file that passed `check` whose first graph gives out these tensors, and no others.

    The new list is put behind the file's end, and the old one no longer pointed to: nothing else moves.

    Raises:
        ModelRefusedError: The graph gives out nothing as it is.
    """
    (at, *_) = _tables(content, _field(content, _u32(content, 0), _MODEL_SUBGRAPHS))
    vtable, vtable_bytes = _vtable(content, at)
    entry = 4 + 2 * _SUBGRAPH_OUTPUTS
    offset: int = struct.unpack_from("<H", content, vtable + entry)[0] if entry + 2 <= vtable_bytes else 0
    if not offset:
        raise ModelRefusedError("the model has no outputs")
    made = bytearray(content)
    made += bytes(-len(made) % 4)
    struct.pack_into("<I", made, at + offset, len(made) - (at + offset))
    made += struct.pack(f"<I{len(tensors)}i", len(tensors), *tensors)
    return bytes(made)


def check(content: bytes | memoryview, name: str) -> None:
    """Check a file's identifier and that its graphs and weights lie within it.

    Args:
        content: The whole file, which may be a mapping.
        name: What to call it in the error.

    Raises:
        ModelRefusedError: It is empty, something else, or cut off.
    """
    size = len(content)
    if size < 8 or bytes(content[4:8]) != _IDENTIFIER:
        raise ModelRefusedError(f"{name} ({size} bytes) is not a TFLite model: it does not say {_IDENTIFIER.decode()}")
    try:
        _walk(content)
    except struct.error:
        raise ModelRefusedError(
            f"{name} is damaged: its tables point beyond its {size} bytes; it was probably cut off, fetch it again"
        ) from None


def _walk(content: bytes | memoryview) -> None:
    model = _u32(content, 0)
    for code in _tables(content, _field(content, model, _MODEL_CODES)):
        _vtable(content, code)
    for subgraph in _tables(content, _field(content, model, _MODEL_SUBGRAPHS)):
        for field in _SUBGRAPH_NUMBERS:
            _bytes_of(content, _field(content, subgraph, field), 4)
        for tensor in _tables(content, _field(content, subgraph, _SUBGRAPH_TENSORS)):
            _bytes_of(content, _field(content, tensor, _TENSOR_SHAPE), 4)
        for operator in _tables(content, _field(content, subgraph, _SUBGRAPH_OPERATORS)):
            for field in _OPERATOR_NUMBERS:
                _bytes_of(content, _field(content, operator, field), 4)
    for buffer in _tables(content, _field(content, model, _MODEL_BUFFERS)):
        _bytes_of(content, _field(content, buffer, _BUFFER_DATA), 1)


def _u32(content: bytes | memoryview, at: int) -> int:
    if at < 0:
        raise struct.error
    value: int = struct.unpack_from("<I", content, at)[0]
    return value


def _field(content: bytes | memoryview, table: int, index: int) -> int | None:
    """Return where a table's field of offset type points, None where it is absent."""
    vtable, vtable_bytes = _vtable(content, table)
    entry = 4 + 2 * index
    if entry + 2 > vtable_bytes:
        return None
    offset: int = struct.unpack_from("<H", content, vtable + entry)[0]
    return table + offset + _u32(content, table + offset) if offset else None


def _vtable(content: bytes | memoryview, table: int) -> tuple[int, int]:
    """Return where the list of a table's fields is and how long, having seen that both lie within the file."""
    vtable = table - struct.unpack_from("<i", content, table)[0]
    if vtable < 0:
        raise struct.error
    vtable_bytes, table_bytes = struct.unpack_from("<HH", content, vtable)
    if vtable + vtable_bytes > len(content) or table + table_bytes > len(content):
        raise struct.error
    return vtable, vtable_bytes


def _tables(content: bytes | memoryview, vector: int | None) -> list[int]:
    count = _bytes_of(content, vector, 4) // 4
    if vector is None or not count:
        return []
    return [at + _u32(content, at) for at in range(vector + 4, vector + 4 + 4 * count, 4)]


def _bytes_of(content: bytes | memoryview, vector: int | None, element_bytes: int) -> int:
    if vector is None:
        return 0
    size = _u32(content, vector) * element_bytes
    if vector + 4 + size > len(content):
        raise struct.error
    return size


def _code(content: bytes | memoryview, at: int) -> OperatorCode:
    # Converters before TensorFlow 2.4 wrote the first of the two; later ones write the larger number into the second.
    old, new = _scalar(content, at, _CODE_OLD, "<b", 0), _scalar(content, at, _CODE_NEW, "<i", 0)
    custom = _text(content, _field(content, at, _CODE_CUSTOM))
    return OperatorCode(
        builtin=int(max(old, new)),
        version=int(_scalar(content, at, _CODE_VERSION, "<i", 1)),
        custom=None if custom is None else custom.decode(errors="replace")[:200],
    )


def _min_runtime_version(content: bytes | memoryview, model: int) -> str | None:
    buffers = _tables(content, _field(content, model, _MODEL_BUFFERS))
    for entry in _tables(content, _field(content, model, _MODEL_METADATA)):
        if _text(content, _field(content, entry, _METADATA_NAME)) == _MIN_RUNTIME:
            number = int(_scalar(content, entry, _METADATA_BUFFER, "<I", 0))
            if number < len(buffers):
                # Padded with zeros, and "UNKNOWN" where the converter did not know.
                told = _text(content, _field(content, buffers[number], _BUFFER_DATA)) or b""
                return told.split(b"\0")[0].decode(errors="replace").strip()[:50] or None
    return None


def _first_graph_tensors(content: bytes | memoryview, model: int) -> tuple[StoredTensor, ...]:
    graphs = _tables(content, _field(content, model, _MODEL_SUBGRAPHS))
    if not graphs:
        return ()
    return tuple(_tensor(content, at) for at in _tables(content, _field(content, graphs[0], _SUBGRAPH_TENSORS)))


def _tensor(content: bytes | memoryview, at: int) -> StoredTensor:
    signature = _field(content, at, _TENSOR_SIGNATURE)
    shape = _field(content, at, _TENSOR_SHAPE) if signature is None else signature
    quantisation = _field(content, at, _TENSOR_QUANTISATION)
    scales: tuple[float, ...] = ()
    zero_points: tuple[int, ...] = ()
    if quantisation is not None:
        scales = _numbers(content, _field(content, quantisation, _QUANTISATION_SCALE), "f", 4)
        zero_points = _numbers(content, _field(content, quantisation, _QUANTISATION_ZERO_POINT), "q", 8)
    one_scale = scales[0] if len(scales) == 1 and scales[0] else None
    return StoredTensor(
        shape_signature=_numbers(content, shape, "i", 4),
        scale=one_scale,
        zero_point=None if one_scale is None else (zero_points or (0,))[0],
    )


def _check_named(numbers: Iterable[int], tensors: Sequence[NodeTensor]) -> None:
    if any(not -1 <= number < len(tensors) for number in numbers):
        raise IndexError


def _node(content: bytes | memoryview, at: int, codes: Sequence[OperatorCode]) -> Node:
    inputs, outputs = (_numbers(content, _field(content, at, field), "i", 4) for field in _OPERATOR_NUMBERS)
    return Node(codes[_scalar(content, at, _OPERATOR_CODE, "<I", 0)], inputs, outputs)


def _node_tensor(content: bytes | memoryview, at: int, buffers: Sequence[int]) -> NodeTensor:
    data = _field(content, buffers[_scalar(content, at, _TENSOR_BUFFER, "<I", 0)], _BUFFER_DATA)
    name = _text(content, _field(content, at, _TENSOR_NAME)) or b""
    return NodeTensor(
        name=name.decode(errors="replace"),
        type=_scalar(content, at, _TENSOR_TYPE, "<b", 0),
        stored=_bytes_of(content, data, 1) > 0,
    )


def _numbers(content: bytes | memoryview, vector: int | None, kind: str, element_bytes: int) -> tuple[Any, ...]:
    count = _bytes_of(content, vector, element_bytes) // element_bytes
    return () if vector is None else struct.unpack_from(f"<{count}{kind}", content, vector + 4)


def _text(content: bytes | memoryview, vector: int | None) -> bytes | None:
    size = _bytes_of(content, vector, 1)
    return None if vector is None else bytes(content[vector + 4 : vector + 4 + size])


def _scalar(content: bytes | memoryview, table: int, index: int, form: str, default: int) -> int:
    """Return a table's field of number type; the schema's default where it is absent."""
    vtable, vtable_bytes = _vtable(content, table)
    entry = 4 + 2 * index
    if entry + 2 > vtable_bytes:
        return default
    offset: int = struct.unpack_from("<H", content, vtable + entry)[0]
    found: int = struct.unpack_from(form, content, table + offset)[0] if offset else default
    return found
