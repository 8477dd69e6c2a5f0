"""The measuring subprocess: loads one model, warms it up, times it, and passes it over the golden set.

Started by `process` as ``python -m evenfleet_agent.runner.worker``, perhaps by the Python of another environment.
Requests come on standard input, answers go to standard output, one after another. Whatever a native library prints
goes to standard error.

* A latency sample is of `Model.invoke` alone: inputs are set before the clock starts, outputs read after it stopped.
  What a request takes beside it is timed apart.
* Nothing that is kept while timing grows without bound, however long it is asked to go on.
* The end of standard input, or of the parent, is the end of this process, whatever it is doing.
* A SavedModel's tar is unpacked into a private directory, which is gone before the first `Loaded`.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import math
import os
import platform
import shutil
import signal
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from queue import SimpleQueue
from typing import Any, BinaryIO, Final, Literal

import numpy as np
import numpy.typing as npt

from evenfleet_agent import runtimes
from evenfleet_agent.host import cpufreq, energy, nvml, thermal
from evenfleet_agent.runner import golden, layers, memory, scheduling, unpack
from evenfleet_agent.runner.protocol import (
    MAX_SAMPLES,
    Alive,
    Check,
    Checked,
    Evaluation,
    Failed,
    Frame,
    FrameBuffer,
    Layered,
    Layers,
    Load,
    Loaded,
    Measure,
    Measured,
    NotLayered,
    Refused,
    Response,
    RunnerSpec,
    Stage,
    WorkerRequest,
    decode_request,
    encode,
)
from evenfleet_agent.runtimes.interface import Model, Options
from evenfleet_shared.errors import (
    ConfigError,
    DataError,
    EvenfleetError,
    ModelRefusedError,
    RuntimeMissingError,
)
from evenfleet_shared.kinship import die_with_parent
from evenfleet_shared.messages import MemoryReading, Phase, Sustained, Throughput
from evenfleet_shared.metrics import nearest_rank

# How many different samples the steady loop goes round: enough for data-dependent paths, few enough for the memory.
_RING: Final = 32
_HOLD_MAX: Final = 16
_SIGN_OF_LIFE_S: Final = 1.0
# Warm is when a round's median is no better than the best round's by more than this, twice in a row.
_SETTLED_RATIO: Final = 0.05
_ROUND_INFERENCES: Final = 5
_ROUND_S: Final = 0.02
# Pre- and post-processing vary less than inference: so many requests will do, and so small a part of the window's time.
_PHASE_RUNS: Final = 100
_PHASE_RATIO: Final = 0.05
_PHASE_LEAST_S: Final = 0.02
# Counters of energy are brought up to date every millisecond or so; less than this is mostly the error of that.
_ENERGY_LEAST_S: Final = 0.1
# Under sustained load: what is compared, and how long a sample lasts at least, which bounds how many there are of them.
_SPAN_S: Final = 60.0
_SPAN_RATIO: Final = 0.1
_SUSTAINED_SAMPLE_S: Final = 0.001


class Voice:
    """What the worker says; one place, so that signs of life are as frequent as they must be and no more."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._alive_s = 0.0

    def say(self, frame: Frame) -> None:
        """Send a frame."""
        self._out.write(encode(frame))
        self._out.flush()

    def alive(self, stage: Stage, *, at_once: bool = False) -> None:
        """Send a sign of life, unless the last one is recent."""
        now = time.monotonic()
        if at_once or now - self._alive_s >= _SIGN_OF_LIFE_S:
            self._alive_s = now
            self.say(Alive(stage=stage))


@dataclass(slots=True, kw_only=True)
class Session:
    """One loaded model and what was learnt about it."""

    spec: RunnerSpec
    model: Model
    data: golden.Golden
    init_ms: float
    first_ms: float
    inference_ms: float
    samples: list[list[npt.NDArray[Any]]]
    ring: list[Any]
    peak_was_reset: bool
    after_load: MemoryReading | None
    scored: bool
    labelled: bool
    correct: npt.NDArray[np.bool_] | None = None
    # Before its operators were looked at, which took memory that measuring does not.
    peak_before: MemoryReading | None = None
    # By the length it was asked for: a sample should mean the same in every window. It grows where the warm-up was
    # slower than what came after, for a sample that is too short is no longer what was asked for.
    inferences_per_sample: dict[float, int] = field(default_factory=dict)


def main() -> None:
    """Serve requests until standard input ends."""
    # The terminal's Ctrl-C is the supervisor's to handle.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent()
    requests_in, answers_out = _take_pipes()
    scratch: list[str] = []
    requests: SimpleQueue[WorkerRequest] = SimpleQueue()
    threading.Thread(target=_listen, args=(requests_in, requests, scratch), daemon=True).start()
    voice = Voice(answers_out)
    session: Session | None = None
    while True:
        request = requests.get()
        answer: Response
        try:
            if isinstance(request, Load):
                scratch.append(request.scratch)
                session, answer = load(request, voice)
            elif isinstance(request, Check):
                answer = check(request)
            elif session is not None and isinstance(request, Layers):
                answer = look(session, request, voice)
            elif session is None or isinstance(request, Layers):
                answer = Failed(reason="asked to measure before a model was loaded")
            else:
                answer = measure(session, request, voice)
        except ModelRefusedError as error:
            answer = Refused(kind="model", reason=str(error))
        except RuntimeMissingError as error:
            answer = Refused(kind="runtime", reason=str(error))
        except DataError as error:
            answer = Refused(kind="data", reason=str(error))
        except EvenfleetError as error:
            answer = Failed(reason=str(error))
        except Exception as error:  # noqa: BLE001 - the shell: whatever it is, the other side gets one line of it
            traceback.print_exc()
            answer = Failed(reason=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
        voice.say(answer)


def load(request: Load, voice: Voice) -> tuple[Session, Loaded]:
    """Load, time the first inference, warm up."""
    spec = request.spec
    runtime = runtimes.by_name(spec.runtime)
    if spec.format not in runtime.formats:
        raise ModelRefusedError(f"runtime {spec.runtime} runs {', '.join(runtime.formats)}, not {spec.format}")
    with _turn(spec.lock_file, voice) as waited_s:
        voice.alive("loading", at_once=True)
        with _artifact(spec, Path(request.scratch)) as artifact:
            version = runtime.version()  # imports it, which is no part of loading a model
            data = golden.load(spec)
            peak_was_reset = memory.reset_peak()
            started = time.perf_counter_ns()
            model = runtime.load(artifact, _options(spec), data.sample_shape)
            init_ms = (time.perf_counter_ns() - started) / 1e6
            after_load = memory.after_load()
            golden.check_fits(data, model)
            samples = list(islice(data.batches(model, 1), _RING))
            ring = [model.prepare(values) for values in samples]
            model.feed(ring[0])
            started = time.perf_counter_ns()
            model.invoke()
            first_ms = (time.perf_counter_ns() - started) / 1e6
        not_scored = golden.why_not_scored(data, model.read(), model.outputs)
        inferences, inference_ms = _warm_up(model, ring, spec, voice)
    # What a runtime's import left behind (TensorFlow: half a million objects) stays; without this, looking through it
    # before every window takes six times as long as the window's own samples.
    gc.collect()
    gc.freeze()
    session = Session(
        spec=spec,
        model=model,
        data=data,
        init_ms=init_ms,
        first_ms=first_ms,
        inference_ms=inference_ms,
        samples=samples,
        ring=ring,
        peak_was_reset=peak_was_reset,
        after_load=after_load,
        scored=data.outputs is not None or (data.inputs is not None and not_scored is None),
        labelled=data.labels is not None and not_scored is None,
    )
    execution = model.execution
    return session, Loaded(
        runtime_version=version,
        python=platform.python_version(),
        accelerator_requested=execution.requested,
        accelerator_executed=execution.executed,
        delegated_ratio=execution.delegated_ratio,
        fallback_reason=execution.fallback_reason,
        inputs=model.inputs,
        outputs=model.outputs,
        synthetic_inputs=data.inputs is None,
        notes=(not_scored,) if not_scored else (),
        init_ms=init_ms,
        first_ms=first_ms,
        warm_up_inferences=inferences,
        waited_s=waited_s,
    )


def check(request: Check) -> Checked:
    """Run something small in a runtime."""
    runtime = runtimes.by_name(request.runtime)
    found = runtime.check(Options(delegate=request.delegate, delegate_options=request.delegate_options))
    return Checked(
        runtime_version=runtime.version(),
        python=platform.python_version(),
        accelerator_executed=found.executed,
        fallback_reason=found.fallback_reason,
    )


def measure(session: Session, request: Measure, voice: Voice) -> Measured:
    """Take latency samples, then do what else was asked for, and pass over the golden set."""
    with _turn(request.lock_file, voice) as waited_s:
        voice.alive("measuring", at_once=True)
        cadence = request.cadence_ms is not None
        repeats = 1 if cadence else _repeats_for(session, request)
        energy_before = energy.energy()
        with _no_collection():
            cpu_before, started = time.process_time(), time.monotonic()
            steady = _at_cadence(session, request, voice) if cadence else _steady(session, request, repeats, voice)
            length_s, cpu_s = time.monotonic() - started, time.process_time() - cpu_before
            energy_after = energy.energy() if energy_before is not None else None
            gpus = nvml.read()
            phases = steady.phases or _phases(session, max(_PHASE_LEAST_S, _PHASE_RATIO * length_s), voice)
            sustained = _sustained(session, request.sustained_s, voice) if request.sustained_s else None
            throughput = _offline(session, request.offline_s, voice) if request.offline_s else None
        _keep_repeats(session, request, repeats, min(steady.samples_ms))
        evaluation = _evaluate(session, voice) if request.evaluate and session.scored else None
    energy_mj = energy.used_mj(energy_before, energy_after) if length_s >= _ENERGY_LEAST_S else None
    return Measured(
        samples_ms=np.asarray(steady.samples_ms, dtype=np.float64).tobytes(),
        inferences_per_sample=repeats,
        left_out_ms=steady.left_out_ms,
        init_ms=session.init_ms,
        first_ms=session.first_ms,
        evaluation=evaluation,
        memory=memory.readings(
            session.after_load, gpus, was_reset=session.peak_was_reset, peak_before=session.peak_before
        ),
        gpu_use_ratio=max((gpu.use_ratio for gpu in gpus.gpus if gpu.use_ratio is not None), default=None),
        length_s=length_s,
        waited_s=waited_s,
        cpu_s=cpu_s,
        energy_mj=energy_mj,
        energy_method=energy_before.method if energy_before is not None and energy_mj is not None else None,
        phases=phases,
        cadence_ms=request.cadence_ms,
        late_starts=steady.late_starts,
        sustained=sustained,
        throughput=throughput,
    )


def look(session: Session, request: Layers, voice: Voice) -> Layered | NotLayered:
    """Look at every operator once, and leave the session as it was."""
    peak = memory.peak(was_reset=session.peak_was_reset)
    try:
        with _turn(request.lock_file, voice):
            voice.alive("looking at layers", at_once=True)
            return layers.look(
                session.spec,
                session.model,
                session.data,
                request.sample,
                budget_bytes=memory.affordable(layers.MAX_BYTES),
                alive=lambda: voice.alive("looking at layers"),
            )
    except EvenfleetError as error:
        return NotLayered(reason=str(error))
    finally:
        gc.collect()
        memory.give_back()
        if session.peak_was_reset and memory.reset_peak():
            session.peak_before = memory.larger(session.peak_before, peak)


def _options(spec: RunnerSpec) -> Options:
    return Options(
        threads=spec.threads, xnnpack=spec.xnnpack, delegate=spec.delegate, delegate_options=spec.delegate_options
    )


def _warm_up(model: Model, ring: list[Any], spec: RunnerSpec, voice: Voice) -> tuple[int, float]:
    """Run until the latency has settled; return the inferences it took and what one takes now, in ms."""
    inferences, best_ms, settled = 0, math.inf, 0
    round_ms: list[float] = []
    started = time.monotonic()
    round_started = started
    inputs = cycle(ring)
    while True:
        model.feed(next(inputs))
        round_ms.append(_time_ms(model, 1))
        inferences += 1
        now = time.monotonic()
        if len(round_ms) >= _ROUND_INFERENCES and now - round_started >= _ROUND_S:
            median_ms = statistics.median(round_ms)
            settled = settled + 1 if median_ms >= best_ms * (1 - _SETTLED_RATIO) else 0
            best_ms = min(best_ms, median_ms)
            round_ms, round_started = [], now
        if now - started >= spec.warm_up_max_s or (settled >= 2 and inferences >= spec.warm_up_min):
            return inferences, min([best_ms, *round_ms])
        voice.alive("warming up")


@dataclass(slots=True, kw_only=True)
class _Timed:
    """What a loop has timed; `left_out_ms` is of all samples together."""

    samples_ms: list[float] = field(default_factory=list)
    left_out_ms: float = 0.0
    phases: tuple[Phase, ...] = ()
    late_starts: int | None = None

    def take(self, model: Model, repeats: int, *, leave_out_waiting: bool) -> None:
        """Time what was fed."""
        bracket_started = time.perf_counter_ns()
        waited_before_ms = scheduling.waited_ms() if leave_out_waiting else None
        sample_ms = _time_ms(model, repeats)
        if waited_before_ms is not None:
            waited_ms = (scheduling.waited_ms() or 0.0) - waited_before_ms
            bracket_ms = (time.perf_counter_ns() - bracket_started) / 1e6
            left_out_ms = scheduling.waited_within(waited_ms, bracket_ms, sample_ms * repeats)
            self.left_out_ms += left_out_ms
            sample_ms -= left_out_ms / repeats
        self.samples_ms.append(sample_ms)

    def is_enough(self, request: Measure, elapsed_s: float) -> bool:
        """Return whether there are enough samples, or no more time."""
        if elapsed_s >= request.max_duration_s or len(self.samples_ms) >= MAX_SAMPLES:
            return True
        return len(self.samples_ms) >= request.samples and elapsed_s >= request.min_duration_s


def _steady(session: Session, request: Measure, repeats: int, voice: Voice) -> _Timed:
    """Time inferences one after another.

    An input is held over some samples. Writing one brings it into the processor's cache, or drives weights out of it:
    done before every sample, it made a network of 600 KB inputs 2 % faster than in a loop of nothing but inferences.
    """
    timed = _Timed()
    model, inputs = session.model, cycle(session.ring)
    hold = _hold(session, request, repeats)
    started = time.monotonic()
    while True:
        if len(timed.samples_ms) % hold == 0:
            model.feed(next(inputs))
        timed.take(model, repeats, leave_out_waiting=request.leave_out_waiting)
        if timed.is_enough(request, time.monotonic() - started):
            return timed
        voice.alive("measuring")


def _hold(session: Session, request: Measure, repeats: int) -> int:
    """Return over how many samples an input is held: fewer where there is no time for every input to have its turn."""
    in_time = request.max_duration_s * 1e3 / max(session.inference_ms * repeats, 1e-6)
    return min(_HOLD_MAX, max(1, int(min(request.samples, in_time)) // len(session.ring)))


def _at_cadence(session: Session, request: Measure, voice: Voice) -> _Timed:
    """Time whole requests, each begun when it is due: so many periods after the first, however long any of them took."""
    assert request.cadence_ms is not None
    timed = _Timed()
    model, period_ns = session.model, round(request.cadence_ms * 1e6)
    queue_ms: list[float] = []
    before_ms: list[float] = []
    after_ms: list[float] = []
    late_starts = 0
    first_due_ns = time.monotonic_ns()
    for number, values in enumerate(cycle(session.samples)):
        due_ns = first_due_ns + number * period_ns
        late_starts += number > 0 and time.monotonic_ns() > due_ns
        while (ahead_ns := due_ns - time.monotonic_ns()) > 0:
            voice.alive("measuring")
            time.sleep(min(ahead_ns / 1e9, _SIGN_OF_LIFE_S))
        begun_ns = time.monotonic_ns()
        model.feed(model.prepare(values))
        before_ms.append((time.monotonic_ns() - begun_ns) / 1e6)
        timed.take(model, 1, leave_out_waiting=request.leave_out_waiting)
        done_ns = time.monotonic_ns()
        model.read()
        ended_ns = time.monotonic_ns()
        after_ms.append((ended_ns - done_ns) / 1e6)
        queue_ms.append((begun_ns - due_ns) / 1e6)
        if timed.is_enough(request, (ended_ns - first_due_ns) / 1e9):
            break
        voice.alive("measuring")
    timed.late_starts = late_starts
    timed.phases = (_phase("preprocess", before_ms), _phase("queue", queue_ms), _phase("postprocess", after_ms))
    return timed


def _phases(session: Session, budget_s: float, voice: Voice) -> tuple[Phase, ...]:
    """Time what a request takes before and after `invoke`, on a few requests beside the samples."""
    model = session.model
    before_ms: list[float] = []
    after_ms: list[float] = []
    started = time.monotonic()
    for values in islice(cycle(session.samples), _PHASE_RUNS):
        begun_ns = time.perf_counter_ns()
        model.feed(model.prepare(values))
        fed_ns = time.perf_counter_ns()
        model.invoke()
        done_ns = time.perf_counter_ns()
        model.read()
        after_ms.append((time.perf_counter_ns() - done_ns) / 1e6)
        before_ms.append((fed_ns - begun_ns) / 1e6)
        if time.monotonic() - started >= budget_s:
            break
        voice.alive("measuring")
    return _phase("preprocess", before_ms), _phase("postprocess", after_ms)


def _phase(name: Literal["preprocess", "queue", "postprocess"], values_ms: list[float]) -> Phase:
    ordered = sorted(values_ms)
    return Phase(name=name, n=len(ordered), p50_ms=nearest_rank(ordered, 0.5), p95_ms=nearest_rank(ordered, 0.95))


def _sustained(session: Session, duration_s: float, voice: Voice) -> Sustained:
    """Load the model without interruption, and hold the end against the beginning.

    Temperature and frequency are read at the end of either span, under load: before it, an idle processor's are.
    """
    model, inputs = session.model, cycle(session.ring)
    span_s = min(_SPAN_S, _SPAN_RATIO * duration_s)
    repeats = _repeats(_SUSTAINED_SAMPLE_S, session.inference_ms)
    first_ms: list[float] = []
    last_ms: list[float] = []
    inferences = 0
    at_first: tuple[float | None, float | None] | None = None  # °C and MHz
    started = time.monotonic()
    elapsed_s = 0.0
    while elapsed_s < duration_s:
        model.feed(next(inputs))
        sample_ms = _time_ms(model, repeats)
        inferences += repeats
        # A sample belongs to the span that it began in.
        if elapsed_s < span_s:
            first_ms.append(sample_ms)
        elif at_first is None:
            at_first = (thermal.hottest_c(), cpufreq.frequency_mhz())
        if elapsed_s >= duration_s - span_s:
            last_ms.append(sample_ms)
        elapsed_s = time.monotonic() - started
        voice.alive("under sustained load")
    at_last = (thermal.hottest_c(), cpufreq.frequency_mhz())
    first_c, first_mhz = at_first or at_last
    first_p50_ms = statistics.median(first_ms)
    # One inference may take longer than the whole load was to last.
    last_p50_ms = statistics.median(last_ms or [sample_ms])
    return Sustained(
        duration_s=elapsed_s,
        span_s=span_s,
        inferences=inferences,
        first_p50_ms=first_p50_ms,
        last_p50_ms=last_p50_ms,
        slowdown_ratio=last_p50_ms / max(first_p50_ms, 1e-6),
        first_temperature_c=first_c,
        last_temperature_c=at_last[0],
        first_frequency_mhz=first_mhz,
        last_frequency_mhz=at_last[1],
    )


def _offline(session: Session, duration_s: float, voice: Voice) -> Throughput:
    """Run the largest batches that the model takes, back to back."""
    model = session.model
    batch = model.max_batch
    ring = session.ring if batch == 1 else [_one_batch(session, batch)]
    batches = 0
    started = time.monotonic()
    for prepared in cycle(ring):
        model.feed(prepared)
        model.invoke()
        batches += 1
        elapsed_s = time.monotonic() - started
        if elapsed_s >= duration_s:
            break
        voice.alive("running batches")
    inferences = batches * batch
    return Throughput(batch=batch, inferences=inferences, duration_s=elapsed_s, per_s=inferences / max(elapsed_s, 1e-9))


def _one_batch(session: Session, size: int) -> Any:
    samples = list(islice(cycle(session.samples), size))
    return session.model.prepare([np.concatenate(values) for values in zip(*samples, strict=True)])


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Keep Python's garbage collector out of the samples: it would be told as the model's latency."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _time_ms(model: Model, repeats: int) -> float:
    invoke, clock = model.invoke, time.perf_counter_ns
    if repeats == 1:
        started = clock()
        invoke()
        return (clock() - started) / 1e6
    rounds = range(repeats)
    started = clock()
    for _ in rounds:
        invoke()
    return (clock() - started) / 1e6 / repeats


def _repeats_for(session: Session, request: Measure) -> int:
    return session.inferences_per_sample.setdefault(
        request.min_sample_s, _repeats(request.min_sample_s, session.inference_ms)
    )


def _keep_repeats(session: Session, request: Measure, repeats: int, shortest_ms: float) -> None:
    if request.cadence_ms is None and shortest_ms * repeats < request.min_sample_s * 1e3:
        session.inferences_per_sample[request.min_sample_s] = _repeats(request.min_sample_s, shortest_ms)


def _repeats(min_sample_s: float, inference_ms: float) -> int:
    # A tenth more, so that a sample that runs a little faster than the warm-up still lasts long enough.
    return max(1, math.ceil(1.1 * min_sample_s * 1e3 / max(inference_ms, 1e-4)))


def _evaluate(session: Session, voice: Voice) -> Evaluation:
    model, data = session.model, session.data
    one_pass = golden.Pass(data, model.outputs, labelled=session.labelled)
    for values in data.batches(model, model.max_batch):
        model.feed(model.prepare(values))
        model.invoke()
        one_pass.add(model.read(), len(values[0]))
        voice.alive("evaluating")
    evaluation, session.correct = one_pass.end(session.correct)
    return evaluation


@contextlib.contextmanager
def _artifact(spec: RunnerSpec, scratch: Path) -> Iterator[Path]:
    artifact = Path(spec.artifact)
    if not artifact.exists():
        raise ModelRefusedError(f"{artifact} does not exist")
    if spec.format != "saved_model" or artifact.is_dir():
        yield artifact
        return
    try:
        scratch.mkdir(mode=0o700)
    except OSError as error:
        raise ConfigError(
            f"{scratch.parent} cannot be written to, to unpack {artifact.name}: {error.strerror}"
        ) from None
    try:
        yield unpack.saved_model(artifact, scratch)
    finally:
        # All of it is in memory now: TensorFlow reads variables and assets while loading.
        shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def _turn(lock_file: str | None, voice: Voice) -> Iterator[float]:
    """Hold the lock and yield how long it took to get, in seconds."""
    if lock_file is None:
        yield 0.0
        return
    try:
        descriptor = os.open(lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise ConfigError(f"lock file {lock_file} cannot be opened: {error.strerror}") from None
    try:
        started = time.monotonic()
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            voice.alive("waiting", at_once=True)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield time.monotonic() - started
    finally:
        os.close(descriptor)  # lets go of the lock


def _listen(requests_in: BinaryIO, requests: SimpleQueue[WorkerRequest], scratch: list[str]) -> None:
    frames = FrameBuffer()
    status = 0
    try:
        while chunk := os.read(requests_in.fileno(), 65_536):
            for body in frames.feed(chunk):
                requests.put(decode_request(body))
    except EvenfleetError as error:
        sys.stderr.write(f"{error}\n")
        status = 1
    for directory in scratch:
        shutil.rmtree(directory, ignore_errors=True)
    sys.stderr.flush()
    os._exit(status)  # the main thread may be inside an interpreter that never comes back


def _take_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Return the two pipes, having put others in their places, so that a stray print cannot break the stream."""
    requests_in = os.fdopen(os.dup(0), "rb", buffering=0)
    answers_out = os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return requests_in, answers_out


if __name__ == "__main__":
    main()
