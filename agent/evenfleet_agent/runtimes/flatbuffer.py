"""Tell whether a .tflite file is whole enough to be handed to an interpreter.

Pure. Some interpreters (tflite-runtime 2.14) map the file and believe every offset in it: a download that broke off
crashes them. This looks at the outer tables only, which is where a cut or foreign file shows; a file made to
harm is the subprocess's business.
"""

from __future__ import annotations

import struct
from typing import Final

from evenfleet_shared.errors import ModelRefusedError

_IDENTIFIER: Final = b"TFL3"
# Positions of fields in the tables of TFLite's schema.
_MODEL_CODES, _MODEL_SUBGRAPHS, _MODEL_BUFFERS = 1, 2, 4
_SUBGRAPH_TENSORS, _SUBGRAPH_OPERATORS = 0, 3
_SUBGRAPH_NUMBERS = (1, 2)  # its inputs and outputs
_TENSOR_SHAPE = 0
_OPERATOR_NUMBERS = (1, 2)  # its inputs and outputs
_BUFFER_DATA = 0


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
