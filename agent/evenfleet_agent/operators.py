"""Tell, before an interpreter sees a .tflite file, whether a runtime is known to lack an operator that it uses.

Pure but for reading the file; needs no interpreter, no schema and no numpy, so that a download's short-lived child can
ask. What is not known to be lacking passes: the interpreter has the last word.

What a runtime has was measured with itself, and is measured again wherever the tests run: for every operator of
TFLite's schema and every version from 1 to 20, its `Interpreter` was given a file that names this one operator, and
either knew it or said "Didn't find op for builtin opcode" (``bench/operator_versions.py`` prints it). Versions are only ever
added to a runtime, so what one of its versions lacks, the ones before lack too; of later ones nothing is said.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from evenfleet_agent import engines, flatbuffer
from evenfleet_agent.flatbuffer import OperatorCode
from evenfleet_shared.errors import ModelRefusedError

CUSTOM: Final = 32
# The operator that Google's Edge TPU compiler puts in the place of what the Edge TPU runs.
EDGE_TPU_OPERATOR: Final = "edgetpu-custom-op"
# The only package that is numbered as TensorFlow is, which `min_runtime_version` speaks of.
_NUMBERED_AS_TENSORFLOW: Final = "tflite-runtime"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The highest version of each operator that one version of a package has; an operator that it lacks is left out."""

    package: str
    version: str
    highest: Mapping[str, int]


def name_of(code: OperatorCode) -> str:
    """Return an operator's name as the schema has it; its number where it is newer than this list.

    >>> name_of(OperatorCode(9, 12, None)), name_of(OperatorCode(32, 1, "Foo")), name_of(OperatorCode(999, 1, None))
    ('FULLY_CONNECTED', 'Foo', 'number 999')
    """
    if code.builtin == CUSTOM and code.custom:
        return code.custom
    return NAMES[code.builtin] if 0 <= code.builtin < len(NAMES) else f"number {code.builtin}"


def versions(codes: Sequence[OperatorCode]) -> dict[str, int]:
    """Return the highest version of each operator in use, by its name, in order of the names."""
    found: dict[str, int] = {}
    for code in sorted(codes, key=lambda code: (name_of(code), code.version)):
        found[name_of(code)] = code.version
    return found


def lacking(
    codes: Sequence[OperatorCode], min_runtime_version: str | None, *, package: str, version: str
) -> str | None:
    """Return what a version of a package is known to lack, None where nothing is known.

    Args:
        codes: Of the file.
        min_runtime_version: As the file says; asked only about versions that were not measured.
        package: Its distribution's name.
        version: The one that is installed.

    >>> lacking([OperatorCode(9, 12, None)], None, package="tflite-runtime", version="2.14.0")
    'operator FULLY_CONNECTED of version 12, which it has up to version 10'
    >>> lacking([OperatorCode(9, 12, None)], None, package="ai-edge-litert", version="2.3.0") is None
    True
    """
    installed = _numbers(version)
    if installed is None:
        return None
    tables = [table for table in MEASURED if table.package == package]
    for table in tables:
        measured_version = _numbers(table.version)
        assert measured_version is not None  # of our own table
        if installed > measured_version:
            continue
        for code in codes:
            if code.builtin == CUSTOM:
                continue
            highest = table.highest.get(name_of(code), 0)
            if code.version > highest:
                bound = f"which it has up to version {highest}" if highest else "which it does not have in any"
                at = "" if installed == measured_version else f" (measured with {table.version})"
                return f"operator {name_of(code)} of version {code.version}, {bound}{at}"
    if package != _NUMBERED_AS_TENSORFLOW or installed in [_numbers(table.version) for table in tables]:
        return None
    wanted = _numbers(min_runtime_version or "")
    if wanted is not None and wanted > installed:
        return f"what its converter counts on, a runtime of TensorFlow {min_runtime_version} or later"
    return None


def check_file(path: Path, *, runtime: str, version: str) -> None:
    """Refuse a file that a runtime is known not to be able to load; of what is no .tflite runtime nothing is known.

    Args:
        path: A .tflite file.
        runtime: The runtime's name.
        version: The version that is installed, of whatever Python runs the models.

    Raises:
        ModelRefusedError: It lacks an operator; or the file is damaged.
    """
    package = next((engine.package for engine in engines.ENGINES if engine.name == runtime), None)
    if package is None:
        return
    found = flatbuffer.read(path)
    missing = lacking(found.operators, found.min_runtime_version, package=package, version=version)
    if missing:
        raise ModelRefusedError(refusal(path.name, runtime=runtime, version=version, missing=missing))


def refusal(name: str, *, runtime: str, version: str, missing: str) -> str:
    """Return the line that tells it."""
    return (
        f"{runtime} {version} cannot run {name}: it lacks {missing}; use a newer runtime, or a variant converted for "
        "this one"
    )


def _numbers(version: str) -> tuple[int, ...] | None:
    """Return a version's first three numbers, None where it has none.

    >>> _numbers("2.14"), _numbers("2.3.0rc1"), _numbers("UNKNOWN")
    ((2, 14, 0), (2, 3, 0), None)
    """
    found = re.match(r"(\d{1,6})(?:\.(\d{1,6}))?(?:\.(\d{1,6}))?", version)
    return None if found is None else tuple(int(number or 0) for number in found.groups())


def _table(package: str, version: str, by_version: Mapping[int, str]) -> Measured:
    return Measured(
        package=package,
        version=version,
        highest={name: highest for highest, names in by_version.items() for name in names.split()},
    )


# BuiltinOperator of TFLite's schema, in the order of its numbers.
_SCHEMA: Final = (
    "ADD AVERAGE_POOL_2D CONCATENATION CONV_2D DEPTHWISE_CONV_2D DEPTH_TO_SPACE DEQUANTIZE EMBEDDING_LOOKUP FLOOR "
    "FULLY_CONNECTED HASHTABLE_LOOKUP L2_NORMALIZATION L2_POOL_2D LOCAL_RESPONSE_NORMALIZATION LOGISTIC "
    "LSH_PROJECTION LSTM MAX_POOL_2D MUL RELU RELU_N1_TO_1 RELU6 RESHAPE RESIZE_BILINEAR RNN SOFTMAX SPACE_TO_DEPTH "
    "SVDF TANH CONCAT_EMBEDDINGS SKIP_GRAM CALL CUSTOM EMBEDDING_LOOKUP_SPARSE PAD UNIDIRECTIONAL_SEQUENCE_RNN "
    "GATHER BATCH_TO_SPACE_ND SPACE_TO_BATCH_ND TRANSPOSE MEAN SUB DIV SQUEEZE UNIDIRECTIONAL_SEQUENCE_LSTM "
    "STRIDED_SLICE BIDIRECTIONAL_SEQUENCE_RNN EXP TOPK_V2 SPLIT LOG_SOFTMAX DELEGATE BIDIRECTIONAL_SEQUENCE_LSTM "
    "CAST PRELU MAXIMUM ARG_MAX MINIMUM LESS NEG PADV2 GREATER GREATER_EQUAL LESS_EQUAL SELECT SLICE SIN "
    "TRANSPOSE_CONV SPARSE_TO_DENSE TILE EXPAND_DIMS EQUAL NOT_EQUAL LOG SUM SQRT RSQRT SHAPE POW ARG_MIN FAKE_QUANT "
    "REDUCE_PROD REDUCE_MAX PACK LOGICAL_OR ONE_HOT LOGICAL_AND LOGICAL_NOT UNPACK REDUCE_MIN FLOOR_DIV REDUCE_ANY "
    "SQUARE ZEROS_LIKE FILL FLOOR_MOD RANGE RESIZE_NEAREST_NEIGHBOR LEAKY_RELU SQUARED_DIFFERENCE MIRROR_PAD ABS "
    "SPLIT_V UNIQUE CEIL REVERSE_V2 ADD_N GATHER_ND COS WHERE RANK ELU REVERSE_SEQUENCE MATRIX_DIAG QUANTIZE "
    "MATRIX_SET_DIAG ROUND HARD_SWISH IF WHILE NON_MAX_SUPPRESSION_V4 NON_MAX_SUPPRESSION_V5 SCATTER_ND SELECT_V2 "
    "DENSIFY SEGMENT_SUM BATCH_MATMUL PLACEHOLDER_FOR_GREATER_OP_CODES CUMSUM CALL_ONCE BROADCAST_TO RFFT2D CONV_3D "
    "IMAG REAL COMPLEX_ABS HASHTABLE HASHTABLE_FIND HASHTABLE_IMPORT HASHTABLE_SIZE REDUCE_ALL CONV_3D_TRANSPOSE "
    "VAR_HANDLE READ_VARIABLE ASSIGN_VARIABLE BROADCAST_ARGS RANDOM_STANDARD_NORMAL BUCKETIZE RANDOM_UNIFORM "
    "MULTINOMIAL GELU DYNAMIC_UPDATE_SLICE RELU_0_TO_1 UNSORTED_SEGMENT_PROD UNSORTED_SEGMENT_MAX "
    "UNSORTED_SEGMENT_SUM ATAN2 UNSORTED_SEGMENT_MIN SIGN BITCAST BITWISE_XOR RIGHT_SHIFT STABLEHLO_LOGISTIC "
    "STABLEHLO_ADD STABLEHLO_DIVIDE STABLEHLO_MULTIPLY STABLEHLO_MAXIMUM STABLEHLO_RESHAPE STABLEHLO_CLAMP "
    "STABLEHLO_CONCATENATE STABLEHLO_BROADCAST_IN_DIM STABLEHLO_CONVOLUTION STABLEHLO_SLICE STABLEHLO_CUSTOM_CALL "
    "STABLEHLO_REDUCE STABLEHLO_ABS STABLEHLO_AND STABLEHLO_COSINE STABLEHLO_EXPONENTIAL STABLEHLO_FLOOR "
    "STABLEHLO_LOG STABLEHLO_MINIMUM STABLEHLO_NEGATE STABLEHLO_OR STABLEHLO_POWER STABLEHLO_REMAINDER "
    "STABLEHLO_RSQRT STABLEHLO_SELECT STABLEHLO_SUBTRACT STABLEHLO_TANH STABLEHLO_SCATTER STABLEHLO_COMPARE "
    "STABLEHLO_CONVERT STABLEHLO_DYNAMIC_SLICE STABLEHLO_DYNAMIC_UPDATE_SLICE STABLEHLO_PAD STABLEHLO_IOTA "
    "STABLEHLO_DOT_GENERAL STABLEHLO_REDUCE_WINDOW STABLEHLO_SORT STABLEHLO_WHILE STABLEHLO_GATHER "
    "STABLEHLO_TRANSPOSE DILATE STABLEHLO_RNG_BIT_GENERATOR REDUCE_WINDOW STABLEHLO_COMPOSITE STABLEHLO_SHIFT_LEFT "
    "STABLEHLO_CBRT STABLEHLO_CASE"
)
NAMES: Final = tuple(_SCHEMA.split())

MEASURED: Final = (
    _table(
        "tflite-runtime",
        "2.14.0",
        {
            1: (
                "FLOOR HASHTABLE_LOOKUP L2_POOL_2D LOCAL_RESPONSE_NORMALIZATION LSH_PROJECTION RELU_N1_TO_1 RESHAPE "
                "SKIP_GRAM EMBEDDING_LOOKUP_SPARSE PRELU NEG SIN EXPAND_DIMS LOG SQRT SHAPE POW LOGICAL_OR ONE_HOT "
                "LOGICAL_AND LOGICAL_NOT REDUCE_ANY SQUARE ZEROS_LIKE UNIQUE CEIL ADD_N COS RANK ELU REVERSE_SEQUENCE "
                "MATRIX_DIAG MATRIX_SET_DIAG ROUND HARD_SWISH IF WHILE NON_MAX_SUPPRESSION_V4 NON_MAX_SUPPRESSION_V5 "
                "SCATTER_ND DENSIFY SEGMENT_SUM CUMSUM CALL_ONCE RFFT2D CONV_3D IMAG REAL COMPLEX_ABS HASHTABLE "
                "HASHTABLE_FIND HASHTABLE_IMPORT HASHTABLE_SIZE REDUCE_ALL CONV_3D_TRANSPOSE VAR_HANDLE READ_VARIABLE "
                "ASSIGN_VARIABLE BROADCAST_ARGS RANDOM_STANDARD_NORMAL BUCKETIZE RANDOM_UNIFORM MULTINOMIAL "
                "DYNAMIC_UPDATE_SLICE RELU_0_TO_1 UNSORTED_SEGMENT_PROD UNSORTED_SEGMENT_MAX UNSORTED_SEGMENT_SUM ATAN2 "
                "UNSORTED_SEGMENT_MIN BITCAST BITWISE_XOR RIGHT_SHIFT"
            ),
            2: (
                "DEPTH_TO_SPACE L2_NORMALIZATION SPACE_TO_DEPTH DIV SQUEEZE EXP LOG_SOFTMAX GREATER LESS_EQUAL SUM RSQRT "
                "FAKE_QUANT REDUCE_PROD FLOOR_MOD RANGE LEAKY_RELU SQUARED_DIFFERENCE SPLIT_V WHERE SELECT_V2 GELU SIGN"
            ),
            3: (
                "AVERAGE_POOL_2D EMBEDDING_LOOKUP LOGISTIC MAX_POOL_2D RELU RELU6 RNN SOFTMAX TANH "
                "UNIDIRECTIONAL_SEQUENCE_RNN MEAN BIDIRECTIONAL_SEQUENCE_RNN TOPK_V2 BIDIRECTIONAL_SEQUENCE_LSTM ARG_MAX "
                "LESS GREATER_EQUAL SPARSE_TO_DENSE TILE NOT_EQUAL ARG_MIN REDUCE_MAX REDUCE_MIN FLOOR_DIV MIRROR_PAD "
                "REVERSE_V2 QUANTIZE BROADCAST_TO"
            ),
            4: (
                "CONCATENATION LSTM RESIZE_BILINEAR SVDF PAD BATCH_TO_SPACE_ND SPACE_TO_BATCH_ND "
                "UNIDIRECTIONAL_SEQUENCE_LSTM SPLIT MAXIMUM MINIMUM PADV2 SELECT TRANSPOSE_CONV EQUAL PACK UNPACK FILL "
                "RESIZE_NEAREST_NEIGHBOR GATHER_ND BATCH_MATMUL"
            ),
            5: ("ADD DEQUANTIZE SUB CAST ABS"),
            6: ("GATHER TRANSPOSE SLICE"),
            7: ("CONV_2D DEPTHWISE_CONV_2D MUL"),
            8: ("STRIDED_SLICE"),
            10: ("FULLY_CONNECTED"),
        },
    ),
    _table(
        "ai-edge-litert",
        "2.3.0",
        {
            1: (
                "FLOOR HASHTABLE_LOOKUP L2_POOL_2D LOCAL_RESPONSE_NORMALIZATION LSH_PROJECTION RELU_N1_TO_1 RESHAPE "
                "SKIP_GRAM EMBEDDING_LOOKUP_SPARSE PRELU NEG EXPAND_DIMS SHAPE POW LOGICAL_OR ONE_HOT LOGICAL_AND "
                "LOGICAL_NOT REDUCE_ANY SQUARE ZEROS_LIKE UNIQUE CEIL ADD_N RANK ELU REVERSE_SEQUENCE MATRIX_DIAG "
                "MATRIX_SET_DIAG ROUND HARD_SWISH IF WHILE NON_MAX_SUPPRESSION_V4 NON_MAX_SUPPRESSION_V5 SCATTER_ND "
                "DENSIFY SEGMENT_SUM CUMSUM CALL_ONCE RFFT2D CONV_3D IMAG REAL COMPLEX_ABS HASHTABLE HASHTABLE_FIND "
                "HASHTABLE_IMPORT HASHTABLE_SIZE REDUCE_ALL CONV_3D_TRANSPOSE VAR_HANDLE READ_VARIABLE ASSIGN_VARIABLE "
                "BROADCAST_ARGS RANDOM_STANDARD_NORMAL BUCKETIZE RANDOM_UNIFORM MULTINOMIAL RELU_0_TO_1 "
                "UNSORTED_SEGMENT_PROD UNSORTED_SEGMENT_MAX UNSORTED_SEGMENT_SUM ATAN2 UNSORTED_SEGMENT_MIN BITCAST "
                "BITWISE_XOR RIGHT_SHIFT STABLEHLO_ADD STABLEHLO_MULTIPLY STABLEHLO_MAXIMUM STABLEHLO_AND "
                "STABLEHLO_MINIMUM STABLEHLO_SCATTER STABLEHLO_PAD STABLEHLO_REDUCE_WINDOW STABLEHLO_GATHER DILATE "
                "STABLEHLO_RNG_BIT_GENERATOR REDUCE_WINDOW STABLEHLO_COMPOSITE STABLEHLO_SHIFT_LEFT STABLEHLO_CASE"
            ),
            2: (
                "DEPTH_TO_SPACE L2_NORMALIZATION SPACE_TO_DEPTH DIV SQUEEZE EXP LOG_SOFTMAX GREATER LESS_EQUAL SIN LOG "
                "SUM SQRT FAKE_QUANT REDUCE_PROD FLOOR_MOD RANGE LEAKY_RELU SQUARED_DIFFERENCE COS WHERE SELECT_V2 SIGN"
            ),
            3: (
                "AVERAGE_POOL_2D LOGISTIC MAX_POOL_2D RELU RELU6 RNN TANH UNIDIRECTIONAL_SEQUENCE_RNN MEAN "
                "BIDIRECTIONAL_SEQUENCE_RNN TOPK_V2 BIDIRECTIONAL_SEQUENCE_LSTM ARG_MAX LESS GREATER_EQUAL "
                "SPARSE_TO_DENSE TILE RSQRT ARG_MIN REDUCE_MAX REDUCE_MIN FLOOR_DIV MIRROR_PAD SPLIT_V GELU"
            ),
            4: (
                "LSTM RESIZE_BILINEAR SOFTMAX SVDF BATCH_TO_SPACE_ND SPACE_TO_BATCH_ND UNIDIRECTIONAL_SEQUENCE_LSTM "
                "MAXIMUM MINIMUM SELECT NOT_EQUAL RESIZE_NEAREST_NEIGHBOR REVERSE_V2 BATCH_MATMUL BROADCAST_TO"
            ),
            5: ("EMBEDDING_LOOKUP SUB SPLIT TRANSPOSE_CONV EQUAL PACK FILL ABS"),
            6: ("ADD PAD PADV2 UNPACK GATHER_ND QUANTIZE DYNAMIC_UPDATE_SLICE"),
            7: ("CONCATENATION DEPTHWISE_CONV_2D"),
            8: ("CONV_2D MUL GATHER STRIDED_SLICE SLICE"),
            9: ("DEQUANTIZE TRANSPOSE CAST"),
            14: ("FULLY_CONNECTED"),
        },
    ),
)
