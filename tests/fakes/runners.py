"""Runners without subprocesses: deterministic, driven by values, and never waiting for anything.

A `Bench` says what the runners of one device answer; `Bench.new_runner` is what a supervisor is given. `on_load` and
`on_measure` may be replaced at any time; an answer that is a `RunnerError` is raised, as by a subprocess that died.
"""

from __future__ import annotations

import hashlib
import math
import random
from array import array
from collections.abc import Callable, Collection, Sequence
from typing import Union

from evenfleet_agent.runner.protocol import (
    Evaluation,
    Layered,
    Layers,
    Loaded,
    Measure,
    Measured,
    Refused,
    RunnerSpec,
    WorkerRequest,
)
from evenfleet_agent.runner.protocol import Response as Answered
from evenfleet_shared.errors import RunnerError
from evenfleet_shared.layers import PROJECTIONS, LayerOutput, Summary
from evenfleet_shared.messages import Agreement, MemoryReading

Answer = Union[Answered, RunnerError]
OnLoad = Callable[[RunnerSpec], Answer]
# Given what was loaded and how many windows the bench has measured before.
OnMeasure = Callable[[RunnerSpec, int], Answer]
OnLook = Callable[[RunnerSpec], Answer]


def loaded(spec: RunnerSpec) -> Loaded:
    return Loaded(
        runtime_version="2.1.0",
        python="3.11.7",
        accelerator_requested="xnnpack",
        accelerator_executed="xnnpack",
        delegated_ratio=1.0,
        fallback_reason=None,
        inputs=(),
        outputs=(),
        synthetic_inputs=False,
        notes=(),
        init_ms=5.0,
        first_ms=2.0,
        warm_up_inferences=10,
        waited_s=0.0,
    )


def refused(reason: str = "operator version 99 is not known") -> Refused:
    return Refused(kind="model", reason=reason)


def layered(spec: RunnerSpec) -> Layered:
    """Return what a model of one operator gives, the same on every device."""
    summary = Summary(digest="0123456789abcdef", min=0.0, max=1.0, mean=0.5, rms=0.5, projections=(1.0,) * PROJECTIONS)
    layer = LayerOutput(index=0, operator="RELU", name="y", number=1, shape=(1, 4), dtype="float32", summary=summary)
    return Layered(executed="xnnpack", delegated_ratio=1.0, sample=0, outputs=1, layers=(layer,))


def measured(
    spec: RunnerSpec, samples_ms: Sequence[float], wrong: Collection[int] = (), *, hamming: int | None = 0
) -> Measured:
    """Return a window's measurement in which the golden samples `wrong` are misread, and no others."""
    return Measured(
        samples_ms=array("d", samples_ms).tobytes(),
        inferences_per_sample=1,
        init_ms=5.0,
        first_ms=2.0,
        evaluation=evaluation(spec.reference_correct, wrong, hamming=hamming) if spec.reference_correct else None,
        memory=(MemoryReading(kind="peak_rss", bytes=41_000_000, method="fake"),),
        length_s=math.fsum(samples_ms) / 1000.0,
        waited_s=0.0,
        cpu_s=math.fsum(samples_ms) / 1000.0,
    )


def evaluation(reference_correct: str, wrong: Collection[int], *, hamming: int | None = 0) -> Evaluation:
    """Return one pass over a golden set of two classes, in turns; a sample that is wrong is taken for the other class."""
    n = len(reference_correct)
    classes = [index % 2 for index in range(n)]
    tp, fp, fn = [0, 0], [0, 0], [0, 0]
    for index, true in enumerate(classes):
        if index in wrong:
            fn[true] += 1
            fp[1 - true] += 1
        else:
            tp[true] += 1
    right = [index not in wrong for index in range(n)]
    same = sum(1 for ours, theirs in zip(right, reference_correct, strict=True) if ours == (theirs == "1"))
    return Evaluation(
        n=n,
        errors=len(set(wrong)),
        tp=tuple(tp),
        fp=tuple(fp),
        fn=tuple(fn),
        discordant_b=sum(
            1 for ours, theirs in zip(right, reference_correct, strict=True) if theirs == "1" and not ours
        ),
        discordant_c=sum(1 for ours, theirs in zip(right, reference_correct, strict=True) if theirs == "0" and ours),
        hamming=hamming,
        prediction_digest=hashlib.sha256(repr(sorted(set(wrong))).encode()).hexdigest(),
        agreement=Agreement(
            noise_class="bit-exact" if same == n else "divergent",
            top1_ratio=same / n,
            max_abs_diff=0.0 if same == n else 0.5,
            rms_diff=0.0 if same == n else 0.1,
        ),
    )


def steady(
    seed: int = 0, *, median_ms: float = 1.0, spread: float = 0.05, samples: int = 50, wrong: Collection[int] = ()
) -> OnMeasure:
    """Return what a healthy device measures: log-normal latencies, the same for the same seed, variant and window."""

    def measure(spec: RunnerSpec, before: int) -> Measured:
        draw = random.Random(f"{seed} {spec.artifact.rpartition('/')[2]} {before}")
        return measured(spec, [median_ms * math.exp(draw.gauss(0.0, spread)) for _ in range(samples)], wrong)

    return measure


class Bench:
    """What the runners of one device answer, and every runner that was made."""

    def __init__(self, on_measure: OnMeasure | None = None, on_load: OnLoad = loaded) -> None:
        self.on_load: OnLoad = on_load
        self.on_measure: OnMeasure = on_measure or steady()
        self.on_look: OnLook = layered
        # While held, no answer arrives: a model is loading, or measuring.
        self.held = False
        self.measured = 0
        self.runners: list[FakeRunner] = []

    def new_runner(self) -> FakeRunner:
        runner = FakeRunner(self)
        self.runners.append(runner)
        return runner

    @property
    def running(self) -> list[RunnerSpec]:
        """What is loaded now."""
        return [runner.spec for runner in self.runners if runner.spec]


class FakeRunner:
    """A `Runner` whose answers stand in its bench's plan."""

    def __init__(self, bench: Bench | None = None) -> None:
        self._bench = bench or Bench()
        self._answers: list[Answer] = []
        self.spec: RunnerSpec | None = None
        self.requests: list[WorkerRequest] = []

    @property
    def deadline_s(self) -> float | None:
        return math.inf if self._answers else None

    @property
    def pid(self) -> int | None:
        # No process has such a number.
        return 2**22 + id(self) % 2**22 if self.spec else None

    @property
    def readable(self) -> bool:
        """Whether a loop that waits for its descriptor would wake up."""
        return bool(self._answers) and not self._bench.held

    def start(self, spec: RunnerSpec) -> None:
        self.stop()
        self.spec = spec
        self._answers.append(self._bench.on_load(spec))

    def fileno(self) -> int:
        self._require()
        return -1

    def send(self, request: WorkerRequest) -> None:
        spec = self._require()
        self.requests.append(request)
        if isinstance(request, Layers):
            self._answers.append(self._bench.on_look(spec))
            return
        assert isinstance(request, Measure)
        self._answers.append(self._bench.on_measure(spec, self._bench.measured))
        self._bench.measured += 1

    def receive(self) -> Sequence[Answered]:
        self._require()
        if self._bench.held:
            return []
        answers, self._answers = self._answers, []
        for answer in answers:
            if isinstance(answer, RunnerError):
                self.stop()
                raise answer
        return [answer for answer in answers if not isinstance(answer, RunnerError)]

    def stop(self) -> None:
        self.spec = None
        self._answers.clear()

    def _require(self) -> RunnerSpec:
        if self.spec is None:
            raise RunnerError("the fake runner was not started")
        return self.spec
