"""Run one sample with the outputs of every operator kept, and tell each in few numbers.

Decides which tensors are kept and what stands for one (`evenfleet_shared.layers`). Leaves the file to `flatbuffer`, the
interpreter to `runtimes`.

* The artifact is loaded once more, with the operators' outputs as the model's: the delegate that runs it runs it here too,
  which it would not with ``experimental_preserve_all_tensors``, that turns XNNPACK off.
* What is kept at once is bounded, and so is what is told; what is left away is told by name.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from evenfleet_agent import flatbuffer, operators, runtimes
from evenfleet_agent.flatbuffer import Graph
from evenfleet_agent.runner.golden import Golden
from evenfleet_agent.runner.protocol import Layered, RunnerSpec
from evenfleet_agent.runtimes import tensors
from evenfleet_agent.runtimes.interface import Model, Options
from evenfleet_agent.runtimes.interpreter import InterpretedModel, Package
from evenfleet_shared.errors import DataError, ModelRefusedError
from evenfleet_shared.layers import MAX_OUTPUTS, MAX_RESULT_BYTES, PROJECTIONS, LayerOutput, Summary, signs
from evenfleet_shared.manifest import TensorSpec

# Of all tensors that are kept at once.
MAX_BYTES: Final = 256 << 20
# What a reply has beside the layers.
_HEAD_BYTES: Final = 4096
# Types of TFLite's schema that are numbers which numpy has.
_NUMBERS: Final = (0, 1, 2, 3, 4, 6, 7, 9, 10, 12, 15, 16)
# Without int32: indices and shapes are that.
_INTEGERS: Final = (3, 7, 9, 17)
_REALS: Final = (0, 1)
# Signs are unpacked so many at a time; a multiple of 8. OpenBLAS sums more than 10,000 products with threads that wait for each
# other: on two busy cores that took 1.8 to 14 s where this takes 0.4 s (a MobileNet of 3.9 million values).
_CHUNK: Final = 8192

Alive = Callable[[], None]


def look(
    spec: RunnerSpec, model: Model, data: Golden, sample: int, *, budget_bytes: int = MAX_BYTES, alive: Alive
) -> Layered:
    """Run a sample and return what each operator made of it.

    Args:
        spec: What the model was loaded by.
        model: The same, loaded; it is not touched.
        data: Where the sample is.
        sample: Its number.
        budget_bytes: What the tensors that are kept may take together.
        alive: Called now and then.

    Raises:
        ModelRefusedError: The runtime does not show operators, or does not run the model with their outputs kept.
        DataError: There is no such sample.
    """
    runtime = runtimes.by_name(spec.runtime)
    if not isinstance(runtime, Package) or not isinstance(model, InterpretedModel):
        raise ModelRefusedError(f"runtime {spec.runtime} does not show what its operators give; litert and tflite do")
    values = next(islice(data.batches(model, 1), sample, None), None)
    if values is None:
        raise DataError(f"there is no golden sample {sample}")
    artifact = Path(spec.artifact)
    try:
        content = artifact.read_bytes()
    except OSError as error:
        raise ModelRefusedError(f"{artifact} cannot be read: {error.strerror}") from None
    graph = flatbuffer.graph(content, artifact.name)
    wanted, unseen = choose(graph, model.sizes(), budget_bytes)
    if not wanted:
        raise ModelRefusedError(f"none of the outputs of {artifact.name}'s operators can be kept")
    opened = runtime.open_up(
        artifact,
        # Without the model's own outputs, what leads to them alone would not be run.
        flatbuffer.with_outputs(content, [*wanted, *(number for number in graph.outputs if number not in wanted)]),
        Options(
            threads=spec.threads,
            xnnpack=spec.xnnpack,
            delegate=spec.delegate,
            delegate_options=spec.delegate_options,
        ),
        data.sample_shape,
    )
    del content
    alive()
    prepared = opened.prepare(values)
    opened.feed(prepared)
    opened.invoke()
    alive()
    told = _told(graph, opened, prepared, wanted, unseen, sample, alive)
    return msgspec.structs.replace(told, note="; ".join(filter(None, [told.note, _otherwise(model, opened)])))


def choose(graph: Graph, sizes: dict[int, int], budget_bytes: int) -> tuple[list[int], dict[int, str]]:
    """Return the tensors that are kept, in the operators' order, and why others are not.

    Args:
        graph: Of the file.
        sizes: What each tensor takes, by its number; those that are not in it are found out by running.
        budget_bytes: What all may take together.
    """
    wanted: list[int] = []
    unseen: dict[int, str] = {}
    constant: set[int] = {number for number, tensor in enumerate(graph.tensors) if tensor.stored}
    used = 0
    for node in graph.nodes:
        inputs = [number for number in node.inputs if number >= 0]
        if inputs and constant.issuperset(inputs):
            # Worked out before the first inference, or never: a delegate takes them as they are stored.
            constant.update(node.outputs)
            unseen.update(dict.fromkeys(node.outputs, "constant"))
            continue
        for number in node.outputs:
            size = sizes.get(number, 0)
            if number < 0 or number in wanted:
                continue
            if graph.tensors[number].type not in _NUMBERS:
                unseen[number] = "its type is not one of numbers"
            elif len(wanted) >= MAX_OUTPUTS:
                unseen[number] = f"more than {MAX_OUTPUTS} outputs"
            elif used + size > budget_bytes:
                unseen[number] = f"all outputs would take more than {budget_bytes >> 20} MiB"
            else:
                wanted.append(number)
                used += size
    return wanted, unseen


def summarise(stored: npt.NDArray[Any], spec: TensorSpec, number: int) -> Summary:
    """Return what stands for a tensor.

    Args:
        stored: Its values as they are stored.
        spec: How they are meant.
        number: The tensor's in its file, which its signs go by.
    """
    flat = np.ascontiguousarray(stored).reshape(-1)
    little = flat.astype(flat.dtype.newbyteorder("<"), copy=False)
    sums = np.zeros(PROJECTIONS)
    total = squares = 0.0
    low, high, not_finite = math.inf, -math.inf, 0
    packed = [signs(number, projection, flat.size) for projection in range(PROJECTIONS)]
    for start in range(0, flat.size, _CHUNK):
        real = tensors.to_real(flat[start : start + _CHUNK], spec).astype(np.float64)
        finite = np.isfinite(real)
        not_finite += int(real.size - np.count_nonzero(finite))
        real[~finite] = 0.0
        whole = float(real.sum())
        total += whole
        squares += float(real @ real)
        low, high = min(low, float(real.min())), max(high, float(real.max()))
        for projection, bits in enumerate(packed):
            piece = np.frombuffer(bits, dtype=np.uint8, count=(real.size + 7) // 8, offset=start // 8)
            plus = np.unpackbits(piece, count=real.size, bitorder="little").astype(np.float64)
            sums[projection] += 2.0 * float(plus @ real) - whole
    n = max(flat.size, 1)
    return Summary(
        digest=hashlib.sha256(little.tobytes()).hexdigest()[:16],
        not_finite=not_finite,
        min=_rounded(low) if flat.size else 0.0,
        max=_rounded(high) if flat.size else 0.0,
        mean=_rounded(total / n),
        rms=_rounded(math.sqrt(squares / n)),
        projections=tuple(_rounded(float(value)) for value in sums),
    )


def _told(
    graph: Graph,
    opened: InterpretedModel,
    prepared: Sequence[npt.NDArray[Any]],
    wanted: Sequence[int],
    unseen: dict[int, str],
    sample: int,
    alive: Alive,
) -> Layered:
    told: list[LayerOutput] = []
    size, outputs = _HEAD_BYTES, sum(len(node.outputs) for node in graph.nodes)
    for layer in _layers(graph, opened, prepared, {number: place for place, number in enumerate(wanted)}, unseen):
        size += len(msgspec.json.encode(layer)) + 1
        if size > MAX_RESULT_BYTES or sum(one.index >= 0 for one in told) >= MAX_OUTPUTS:
            break
        told.append(layer)
        alive()
    shown = sum(layer.index >= 0 for layer in told)
    execution = opened.execution
    return Layered(
        executed=execution.executed[:200],
        delegated_ratio=execution.delegated_ratio,
        sample=sample,
        outputs=outputs,
        layers=tuple(told),
        note="" if shown == outputs else f"only the first {shown} of {outputs} outputs are told of",
    )


def _otherwise(measured: Model, opened: Model) -> str:
    """Say that who runs the model is not who runs it when it is measured; nothing where it is."""
    one, other = measured.execution, opened.execution
    if (one.executed, one.delegated_ratio) == (other.executed, other.delegated_ratio):
        return ""
    by = [f"{each.executed[:100]} ({_percent(each.delegated_ratio)} of its operators)" for each in (one, other)]
    return f"measured, it is run by {by[0]}; with its outputs kept, by {by[1]}"


def _percent(ratio: float | None) -> str:
    return "an unknown share" if ratio is None else f"{100 * ratio:.0f} %"


def _layers(
    graph: Graph,
    opened: InterpretedModel,
    prepared: Sequence[npt.NDArray[Any]],
    places: dict[int, int],
    unseen: dict[int, str],
) -> Iterator[LayerOutput]:
    for number, spec, stored in zip(graph.inputs, opened.inputs, prepared, strict=True):
        yield _layer(graph, -1, "INPUT", number, spec, stored)
    for index, node in enumerate(graph.nodes):
        kind = operators.name_of(node.code)
        by_integers = _multiplies_with_integers(graph, node)
        for number in node.outputs:
            if number not in places:
                name = graph.tensors[number].name[:100] if number >= 0 else ""
                yield LayerOutput(
                    index=index,
                    operator=kind[:100],
                    name=name,
                    number=max(number, 0),
                    unseen=unseen.get(number, "twice"),
                )
                continue
            spec, stored = opened.outputs[places[number]], opened.stored(places[number])
            yield _layer(graph, index, kind, number, spec, stored, integer_weights=by_integers)


def _layer(
    graph: Graph,
    index: int,
    kind: str,
    number: int,
    spec: TensorSpec,
    stored: npt.NDArray[Any],
    *,
    integer_weights: bool = False,
) -> LayerOutput:
    return LayerOutput(
        index=index,
        operator=kind[:100],
        name=graph.tensors[number].name[:100],
        number=number,
        shape=tuple(stored.shape)[:16],
        dtype=stored.dtype.name,
        step=spec.scale,
        integer_weights=integer_weights,
        summary=summarise(stored, spec, number),
    )


def _multiplies_with_integers(graph: Graph, node: flatbuffer.Node) -> bool:
    """Say whether an operator has real inputs and stored integers: it quantises what it is given while running."""
    inputs = [graph.tensors[number] for number in node.inputs if number >= 0]
    reals = any(tensor.type in _REALS and not tensor.stored for tensor in inputs[:1])
    outputs = [graph.tensors[number] for number in node.outputs if number >= 0]
    integers = any(tensor.type in _INTEGERS and tensor.stored for tensor in inputs)
    return reals and integers and any(tensor.type in _REALS for tensor in outputs)


def _rounded(value: float) -> float:
    """Return a number with as many digits as are worth sending: float32 has no more."""
    return float(f"{value:.8g}")
