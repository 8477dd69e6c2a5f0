"""Run two files side by side, one sample at a time, and measure what each operator adds to the difference.

Each file is run as it is, with all its tensors exposed; then cut apart: A's operators with B's inputs, which tells what an
operator of B introduces, and B's operators with A's inputs, which put into A tell what each does to the output.

Leaves taking files apart to `dissect`, and what is too much to `layers`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np

from evenfleet_collector.optimize import layers
from evenfleet_collector.optimize.data import Labels, Samples
from evenfleet_collector.optimize.dissect import Array, Graph, Tensor
from evenfleet_collector.optimize.layers import DiffReport, LayerReport, Operator

# What runs a file, by the name that the command takes, and the interpreter's word for it.
RUNTIMES: Final = {
    "litert": "BUILTIN_WITHOUT_DEFAULT_DELEGATES",
    "litert-xnnpack": "AUTO",
    "litert-reference": "BUILTIN_REF",
}
DEFAULT_RUNTIME: Final = "litert"

# TFLite fixes the output scale of these: with a thousand classes most channels of a softmax are below its step by design.
_FIXED_SCALE: Final = ("SOFTMAX", "LOG_SOFTMAX", "LOGISTIC", "TANH", "L2_NORMALIZATION")
# Files of A that are open at once while operators are put into it, together.
_OPEN_BYTES: Final = 512 << 20


def walk(
    a: bytes,
    b: bytes,
    x: Samples,
    labels: Labels | None = None,
    *,
    runtime_a: str = DEFAULT_RUNTIME,
    runtime_b: str = DEFAULT_RUNTIME,
) -> DiffReport:
    """Feed both files the same samples and return what each operator of B does.

    Args:
        a: The reference, a .tflite file.
        b: What is held against it.
        x: Samples, shape ``(n, …)`` without a batch.
        labels: Their classes, for accuracies.
        runtime_a: What runs `a`, of `RUNTIMES`.
        runtime_b: What runs `b`.

    Raises:
        ValueError: The files are not of one graph; says why.
        Exception: Whatever the interpreter trips over in a file that is not sound.
    """
    one, other = _Side(a, runtime_a), _Side(b, runtime_b)
    if one.graph.shape(one.graph.input)[1:] != other.graph.shape(other.graph.input)[1:]:
        shapes = [each.graph.shape(each.graph.input)[1:] for each in (one, other)]
        raise ValueError(f"A takes samples of shape {shapes[0]}, B of shape {shapes[1]}: not files of one graph")
    walked = _Walk(one, other)
    if not walked.pairs:
        raise ValueError("A and B share no operator by name, kind and shape: not files of one graph")
    walked.measure(x)
    walked.replace(x)
    return walked.report(len(x), labels)


def ranges(payload: bytes, x: Samples) -> dict[str, tuple[float, float]]:
    """Return the smallest and the largest value of every tensor that a file computes from samples, its input too.

    Args:
        payload: A .tflite file.
        x: Samples, shape ``(n, …)`` without a batch.
    """
    side = _Side(payload, DEFAULT_RUNTIME)
    numbers = [side.graph.input, *side.graph.producer]
    found: dict[str, tuple[float, float]] = {}
    for sample in x:
        side.run(sample)
        for number in numbers:
            if side.graph.tensor(number) is None:
                continue
            name, values = side.graph.name(number), side.real(number)
            low, high = found.get(name, (math.inf, -math.inf))
            found[name] = min(low, float(values.min())), max(high, float(values.max()))
    return found


class _Runner:
    """One file in an interpreter."""

    def __init__(self, payload: bytes, runtime: str) -> None:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        self._interpreter = Interpreter(
            model_content=payload,
            num_threads=1,
            experimental_op_resolver_type=getattr(OpResolverType, RUNTIMES[runtime]),
        )
        self._shapes = {
            int(each["index"]): tuple(int(side) for side in each["shape"])
            for each in self._interpreter.get_input_details()
        }
        self._interpreter.allocate_tensors()

    def run(self, values: Mapping[int, Array]) -> None:
        changed = False
        for number, value in values.items():
            # Shapes that are worked out while running are not always those that the file says.
            if self._shapes[number] != value.shape:
                self._interpreter.resize_tensor_input(number, value.shape)
                self._shapes[number] = value.shape
                changed = True
        if changed:
            self._interpreter.allocate_tensors()
        self._interpreter.reset_all_variables()
        for number, value in values.items():
            self._interpreter.set_tensor(number, value)
        self._interpreter.invoke()

    def takes(self, number: int) -> bool:
        return number in self._shapes

    def get(self, number: int) -> Array:
        found: Array = self._interpreter.get_tensor(number)
        return found


class _Side:
    """One file: its graph, run whole and run in pieces."""

    def __init__(self, payload: bytes, runtime: str) -> None:
        self.runtime = runtime
        self.graph = Graph(payload)
        self.input = _held(self.graph, self.graph.input, "input")
        self.output = _held(self.graph, self.graph.output, "output")
        self._whole = _Runner(self.graph.exposed(), runtime)
        cut, self.slots = self.graph.cut()
        self._pieces = _Runner(cut, runtime)
        self._sample: Array = np.zeros(0)

    def run(self, sample: Array) -> None:
        self._sample = self.input.encode(sample[np.newaxis])
        self._whole.run({self.graph.input: self._sample})

    def stored(self, number: int) -> Array:
        """Return a tensor of the last run, as it is stored."""
        return self._sample if number == self.graph.input else self._whole.get(number)

    def real(self, number: int) -> Array:
        """Return what a tensor of the last run stands for."""
        return _tensor(self.graph, number).decode(self.stored(number))

    def run_pieces(self, given: Mapping[tuple[int, int], Array]) -> None:
        """Run every operator on its own: with real values by operator and place, else with those of the last run."""
        values = {self.graph.input: self._sample}
        for position in range(len(self.graph.operators)):
            for slot, tensor in self.graph.inputs(position).items():
                value = given.get((position, slot))
                stored = self.stored(tensor) if value is None else _tensor(self.graph, tensor).encode(value)
                values[self.slots[position, slot]] = stored
        self._pieces.run(values)

    def piece(self, number: int) -> Array:
        """Return what an operator on its own gave, as real values."""
        return _tensor(self.graph, number).decode(self._pieces.get(number))


class _Walk:
    """One comparison. Holds the sums that both passes over the samples add to."""

    def __init__(self, a: _Side, b: _Side) -> None:
        self.a, self.b = a, b
        of_a, of_b = _compared(a.graph), _compared(b.graph)
        found = ((of_a[place_a], of_b[place_b]) for place_a, place_b in layers.matched(of_a, of_b))
        self.pairs = {
            two.position: one
            for one, two in found
            if _inputs(a.graph, one) == _inputs(b.graph, two)
            and len(a.graph.outputs(one.position)) == len(b.graph.outputs(two.position))
        }
        # Tensors of A by those of B.
        self.tensors = {b.graph.input: a.graph.input} | {
            number: twin
            for position, one in self.pairs.items()
            for number, twin in zip(b.graph.outputs(position), a.graph.outputs(one.position), strict=True)
        }
        self.conversions = [
            one.position
            for one in b.graph.operators
            if one.kind == "QUANTIZE"
            and one.position not in self.pairs
            and b.graph.inputs(one.position)
            and b.graph.tensor(b.graph.outputs(one.position)[0])
        ]
        self.rows = [-1, *sorted([*self.pairs, *self.conversions])]
        self.introduced = {row: _Sums() for row in self.rows}
        self.total = {row: _Sums() for row in self.rows}
        self.moved = {row: _Sums() for row in self.rows}
        self.changed = dict.fromkeys(self.rows, 0)
        self.output = _Sums()
        self.decisions: list[tuple[int, int]] = []

    def measure(self, x: Samples) -> None:
        a, b = self.a, self.b
        for sample in x:
            a.run(sample)
            b.run(sample)
            a.run_pieces(
                {
                    (one.position, slot): b.real(tensor)
                    for position, one in self.pairs.items()
                    for slot, tensor in b.graph.inputs(position).items()
                }
            )
            for row in self.rows:
                number = self._output(row)
                held = _tensor(b.graph, number)
                self.introduced[row].add(self._expected(row, sample), held, b.stored(number))
                twin = self._twin(number)
                if twin is not None:
                    self.total[row].add(a.real(twin), held, b.stored(number))
            final_a, final_b = a.real(a.graph.output), b.real(b.graph.output)
            if final_a.size != final_b.size:
                raise ValueError(f"A gives {final_a.size} values per sample, B {final_b.size}: not files of one graph")
            self.output.add(final_a, b.output, b.stored(b.graph.output).reshape(final_a.shape))
            self.decisions.append((int(final_a.argmax()), int(final_b.argmax())))

    def _twin(self, number: int) -> int | None:
        """Return the tensor of A that a tensor of B should equal: of a conversion that A has not, what it converts."""
        return self.tensors.get(number, self.tensors.get(self.b.graph.root(number)))

    def _output(self, row: int) -> int:
        return self.b.graph.input if row < 0 else self.b.graph.outputs(row)[0]

    def _expected(self, row: int, sample: Array) -> Array:
        if row < 0:
            return self.a.input.decode(self.a.input.encode(sample[np.newaxis]))
        if row in self.pairs:
            return self.a.piece(self.a.graph.outputs(self.pairs[row].position)[0])
        return self.b.real(next(iter(self.b.graph.inputs(row).values())))

    def replace(self, x: Samples) -> None:
        """Put each operator of B into A, alone, and see what becomes of A's output."""
        a, b = self.a, self.b
        for opened in self._opened():
            for sample in x:
                a.run(sample)
                b.run(sample)
                b.run_pieces(
                    {
                        (position, slot): a.real(tensor)
                        for position, one in self.pairs.items()
                        for slot, tensor in a.graph.inputs(one.position).items()
                    }
                )
                final = a.real(a.graph.output)
                for row, (runner, given) in opened.items():
                    found = self._with(row, runner, given)
                    self.moved[row].add(final, Tensor("FLOAT32"), found)
                    self.changed[row] += int(final.argmax() != found.argmax())

    def _opened(self) -> Iterator[dict[int, tuple[_Runner | None, dict[int, int]]]]:
        graph = self.a.graph
        opened: dict[int, tuple[_Runner | None, dict[int, int]]] = {}
        size_bytes = 0
        for row in self.rows:
            replaced = self._replaced(row)
            if not replaced:
                continue
            payload, given = graph.resumed(replaced)
            # What gives the output itself has nothing after it.
            runner = _Runner(payload, self.a.runtime) if given else None
            opened[row] = runner, given
            size_bytes += len(payload)
            if size_bytes >= _OPEN_BYTES:
                yield opened
                opened, size_bytes = {}, 0
        if opened:
            yield opened

    def _replaced(self, row: int) -> tuple[int, ...]:
        """Return the tensors of A that an operator of B gives in their place."""
        if row in self.pairs:
            outputs = self.a.graph.outputs(self.pairs[row].position)
            return tuple(number for number in outputs if self.a.graph.tensor(number) is not None)
        twin = self._twin(self._output(row))
        return () if twin is None else (twin,)

    def _with(self, row: int, runner: _Runner | None, given: Mapping[int, int]) -> Array:
        a, b = self.a, self.b
        if row in self.pairs:
            twins = zip(a.graph.outputs(self.pairs[row].position), b.graph.outputs(row), strict=True)
            made = {number: b.piece(twin) for number, twin in twins if number in given or number == a.graph.output}
        else:
            held = _tensor(b.graph, self._output(row))
            made = {number: held.decode(held.encode(a.real(number))) for number in self._replaced(row)}
        if runner is None:
            return made.get(a.graph.output, a.real(a.graph.output))
        values = {new: _tensor(a.graph, number).encode(made[number]) for number, new in given.items()}
        if a.graph.input not in given and runner.takes(a.graph.input):
            values[a.graph.input] = a.stored(a.graph.input)
        runner.run(values)
        return a.output.decode(runner.get(a.graph.output))

    def report(self, samples: int, labels: Labels | None) -> DiffReport:
        of_a, of_b = _compared(self.a.graph), _compared(self.b.graph)
        met = {one.position for one in self.pairs.values()}
        right = None if labels is None else np.array(self.decisions) == np.asarray(labels)[:, np.newaxis]
        return DiffReport(
            samples=samples,
            layers=tuple(self._row(row) for row in self.rows if row >= 0 or self._input_differs()),
            only_in_a=tuple(
                f"{one.kind} {one.name}" for one in of_a if one.position not in met and one.kind != "QUANTIZE"
            ),
            only_in_b=tuple(f"{one.kind} {one.name}" for one in of_b if one.position not in self.rows),
            output_rms=self.output.error_rms,
            output_ratio=self.output.ratio,
            changed=sum(one != other for one, other in self.decisions),
            accuracy_a=None if right is None else float(right[:, 0].mean()),
            accuracy_b=None if right is None else float(right[:, 1].mean()),
        )

    def _input_differs(self) -> bool:
        return self.a.input != self.b.input

    def _row(self, row: int) -> LayerReport:
        a, b = self.a.graph, self.b.graph
        held = _tensor(b, self._output(row))
        operator = b.operators[row] if row >= 0 else _input(b, held)
        twin = self.pairs.get(row) if row >= 0 else _input(a, self.a.input)
        introduced, total = self.introduced[row], self.total[row]
        whole = introduced.ratio
        ratio = whole if operator.kind in _FIXED_SCALE else max(whole, introduced.channel_ratio)
        return LayerReport(
            position=row,
            kind=operator.kind,
            name=operator.name,
            counterpart=twin.name if twin is not None else None,
            type=held.type,
            signal_rms=introduced.signal_rms,
            introduced_rms=introduced.error_rms,
            introduced_max=introduced.largest,
            introduced_ratio=ratio if math.isfinite(whole) else whole,
            bound=layers.bound(twin, operator),
            rounding_rms=None if held.scale is None else held.scale / math.sqrt(12.0),
            saturated_ratio=introduced.saturated_ratio,
            weights_error_ratio=_weights_error(a, b, twin, row),
            other_weights=twin is not None and layers.other_weights(twin, operator),
            total_rms=total.error_rms if total.values else None,
            total_ratio=total.ratio if total.values else None,
            sensitivity_ratio=self.moved[row].ratio if self.moved[row].values else None,
            changed=self.changed[row] if self.moved[row].values else None,
        )


class _Sums:
    """What is kept of many pairs of tensors: squares by channel, the largest error, values at the end of the range."""

    def __init__(self) -> None:
        self.values = 0
        self.largest = 0.0
        self._saturated = 0
        self._signal: Array = np.zeros(1)
        self._error: Array = np.zeros(1)

    def add(self, expected: Array, held: Tensor, stored: Array) -> None:
        found = held.decode(stored)
        if found.shape != expected.shape:
            found = found.reshape(expected.shape)
        error = found - expected
        channels = expected.shape[-1] if expected.ndim > 1 else 1
        self._signal = self._signal + np.square(expected.reshape(-1, channels)).sum(axis=0)
        self._error = self._error + np.square(error.reshape(-1, channels)).sum(axis=0)
        self.values += expected.size
        self.largest = float(np.maximum(self.largest, np.abs(error).max(initial=0.0)))  # `max` loses a NaN
        if held.scale is not None and held.limits is not None:
            at_end = np.isin(stored, held.limits).reshape(error.shape)
            # A softmax of 1.0 is one step beyond its range, and as it should be.
            self._saturated += int((at_end & (np.abs(error) > 1.5 * held.scale)).sum())

    @property
    def error_rms(self) -> float:
        return math.sqrt(float(self._error.sum()) / max(1, self.values))

    @property
    def signal_rms(self) -> float:
        return math.sqrt(float(self._signal.sum()) / max(1, self.values))

    @property
    def ratio(self) -> float:
        return _ratio(self.error_rms, self.signal_rms)

    @property
    def channel_ratio(self) -> float:
        ratios = [_ratio(float(error), float(signal)) for error, signal in zip(self._error, self._signal, strict=True)]
        return math.sqrt(float(np.median(ratios)))

    @property
    def saturated_ratio(self) -> float:
        return self._saturated / max(1, self.values)


def _ratio(error: float, signal: float) -> float:
    if signal > 0.0 or math.isnan(signal):
        return error / signal
    return math.inf if error > 0.0 else 0.0


def _compared(graph: Graph) -> list[Operator]:
    """Return the operators that are held side by side: those that compute numbers, or round them."""
    return [
        one
        for one in graph.operators
        if one.kind != "DEQUANTIZE" and any(graph.tensor(number) for number in graph.outputs(one.position))
    ]


def _inputs(graph: Graph, operator: Operator) -> dict[int, tuple[int, ...]]:
    return {slot: graph.shape(tensor) for slot, tensor in graph.inputs(operator.position).items()}


def _input(graph: Graph, held: Tensor) -> Operator:
    """Return the samples' conversion as if it were an operator."""
    number = graph.input
    return Operator(
        position=-1,
        kind="INPUT",
        name=graph.name(number),
        shape=graph.shape(number),
        type=held.type,
        step=held.scale,
    )


def _weights_error(a: Graph, b: Graph, twin: Operator | None, row: int) -> float | None:
    """Return how far B's weights are from A's, over A's: the median over those that are not zero in A."""
    if twin is None or row < 0:
        return None
    of_a, of_b = a.weights(twin.position), b.weights(row)
    if of_a is None or of_b is None or of_a.shape != of_b.shape:
        return None
    there = of_a != 0.0
    return float(np.median(np.abs(of_b - of_a)[there] / np.abs(of_a)[there])) if there.any() else None


def _tensor(graph: Graph, number: int) -> Tensor:
    found = graph.tensor(number)
    if found is None:
        raise ValueError(
            f"tensor {graph.name(number)} holds neither float32 nor integers with one scale; graphs with loops (WHILE, as LSTM "
            "and GRU layers make) or per-channel activations are not walked"
        )
    return found


def _held(graph: Graph, number: int, role: str) -> Tensor:
    found = graph.tensor(number)
    if found is None:
        raise ValueError(f"its {role} holds neither float32 nor integers with one scale")
    return found
