"""What a runner and its subprocess say to each other: length-prefixed MessagePack frames on a pair of pipes.

A frame is its body's length (4 bytes, big-endian) and the body. Decides what is a frame and what is none; leaves
pipes and processes to `process` and `worker`. A frame is bounded on both sides, so that a subprocess gone wild cannot
make the supervisor grow.
"""

from __future__ import annotations

import struct
from typing import Annotated, Final, Literal, Union

import msgspec
from msgspec import Meta

from evenfleet_shared.errors import RunnerError
from evenfleet_shared.layers import LayerOutput
from evenfleet_shared.manifest import Criteria, Format, Manifest, TensorSpec
from evenfleet_shared.messages import Agreement, MemoryReading, Phase, Sustained, Task, Throughput

MAX_FRAME_BYTES: Final = 16 * 1024 * 1024
# 8 bytes each, so that a `Measured` always fits into a frame.
MAX_SAMPLES: Final = 1_000_000

_LENGTH: Final = struct.Struct(">I")

# What a worker may be doing.
Stage = Literal[
    "waiting",
    "loading",
    "warming up",
    "measuring",
    "evaluating",
    "under sustained load",
    "running batches",
    "looking at layers",
]
Positive = Annotated[int, Meta(ge=1)]
NotNegative = Annotated[float, Meta(ge=0.0)]
Counted = Literal["samples", "objects", "pixels"]


class RunnerSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What to load and how.

    Attributes:
        runtime: A name of `evenfleet_agent.runtimes.RUNTIMES`.
        artifact: A .tflite file; a SavedModel as a tar or a directory.
        format: What the artifact is.
        threads: Threads of the interpreter.
        xnnpack: Let the interpreter use its XNNPACK kernels; no meaning for TensorFlow.
        delegate: What shall run the model instead of the CPU: ``gpu``, ``edgetpu``, ``npu``, or a library's path.
        delegate_options: As the delegate takes them.
        inputs_file: Samples as .npy, shape ``(n, ...)``; None makes up a few (the same ones every time).
        labels_file: Labels as .npy, one entry a sample, of the task's kind.
        outputs_file: The reference's outputs as .npy, shape ``(n, ...)``.
        reference_correct: One digit per sample, 1 where the reference was right.
        task: What the answers are, and so what is right about them (`tasks`).
        classes: How many the golden set has; None where nobody said.
        criteria: What makes a sample right, where the task leaves it open.
        input_scale: Multiplied into every input before quantisation; 1.0 but for a planted fault.
        warm_up_min: Inferences before anything is timed as steady, at least, if there is time for them.
        warm_up_max_s: When to stop waiting for the latency to settle.
        lock_file: Held during load and warm-up, where devices on one machine measure in turns.
        python: The Python that runs the worker; None is this one. It needs this package installed too.
        scratch_dir: Where a SavedModel's tar is unpacked while it is loaded; None is the system's place.
    """

    runtime: str
    artifact: str
    format: Format
    threads: Positive = 1
    xnnpack: bool = True
    delegate: str | None = None
    delegate_options: dict[str, str] = {}
    inputs_file: str | None = None
    labels_file: str | None = None
    outputs_file: str | None = None
    reference_correct: str | None = None
    task: Task = "classification"
    classes: int | None = None
    criteria: Criteria = Criteria()
    input_scale: float = 1.0
    warm_up_min: Positive = 10
    warm_up_max_s: NotNegative = 2.0
    lock_file: str | None = None
    python: str | None = None
    scratch_dir: str | None = None


def on_golden_set(spec: RunnerSpec, release: Manifest, directory: str, *, correct: str) -> RunnerSpec:
    """Return a spec that measures on a release's golden set.

    Args:
        spec: Without samples.
        release: The manifest.
        directory: Where the release's files are.
        correct: One digit per sample, 1 where what it is compared with was right.
    """
    golden = release.golden
    return msgspec.structs.replace(
        spec,
        inputs_file=f"{directory}/{golden.inputs.file}",
        labels_file=None if golden.labels is None else f"{directory}/{golden.labels.file}",
        outputs_file=f"{directory}/{golden.outputs.file}",
        reference_correct=correct,
        task=release.task,
        classes=golden.classes,
        criteria=golden.criteria,
    )


class Load(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Load the model, time its first inference apart, warm it up.

    Attributes:
        spec: What to load.
        scratch: A directory that the worker may make, and removes again; the runner knows of it, should the worker die.
    """

    spec: RunnerSpec
    scratch: str


class Measure(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Time inferences one after another, and evaluate the golden set.

    Attributes:
        samples: Take at least so many latency samples.
        min_duration_s: And go on for at least so long.
        max_duration_s: But stop after so long, with one sample at least.
        min_sample_s: A sample times as many inferences in a row as it takes to last so long; 0 is one inference.
        leave_out_waiting: Leave the time out of a sample in which the runner could have run and had no processor. For
            several devices on one machine, which must not measure each other; a device of its own counts that too.
        evaluate: Pass over the golden set, where there is one.
        lock_file: Held while measuring.
        cadence_ms: Begin an inference every so often, instead of one after another, each with its own pre- and
            post-processing as a request has; a sample is then one inference, whatever `min_sample_s` says.
        sustained_s: Then load the model without interruption for so long; 0 does not.
        offline_s: Then run batches back to back for so long; 0 does not.
    """

    samples: Annotated[int, Meta(ge=1, le=MAX_SAMPLES)]
    min_duration_s: NotNegative = 0.0
    max_duration_s: NotNegative = 30.0
    min_sample_s: NotNegative = 0.0
    leave_out_waiting: bool = False
    evaluate: bool = True
    lock_file: str | None = None
    cadence_ms: Annotated[float, Meta(gt=0.0, le=3_600_000.0)] | None = None
    sustained_s: Annotated[float, Meta(ge=0.0, le=86_400.0)] = 0.0
    offline_s: Annotated[float, Meta(ge=0.0, le=86_400.0)] = 0.0


class Layers(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Run one sample with what every operator gives kept, and tell it in few numbers; the runner then goes on as before.

    Attributes:
        sample: Which of the golden set, from 0; of made-up ones where there is none.
        lock_file: Held meanwhile.
    """

    sample: Annotated[int, Meta(ge=0)] = 0
    lock_file: str | None = None


class Check(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Build a real interpreter of one runtime and run something small in it, with a delegate if one is asked for."""

    runtime: str
    delegate: str | None = None
    delegate_options: dict[str, str] = {}


class Checked(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The runtime works; who ran what was small, and why not the delegate that was asked for."""

    runtime_version: str
    python: str
    accelerator_executed: str
    fallback_reason: str | None


class Alive(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A sign of life between the request and its answer; the runner keeps these to itself."""

    stage: Stage


class Loaded(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The model is ready.

    Attributes:
        notes: What a reader of the results should know, in whole sentences.
        synthetic_inputs: The inputs were made up.
        init_ms: Load the file and allocate; the import of the runtime is not in it.
        first_ms: The first inference.
    """

    runtime_version: str
    python: str
    accelerator_requested: str
    accelerator_executed: str
    delegated_ratio: float | None
    fallback_reason: str | None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    synthetic_inputs: bool
    notes: tuple[str, ...]
    init_ms: float
    first_ms: float
    warm_up_inferences: int
    waited_s: float


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """One pass over the golden set.

    Attributes:
        counted: What the task counts by class.
        errors: Samples that are wrong by the task's criterion; None where they were held against nothing.
        tp: Counts per class, like `fp` and `fn`, of what the task counts; empty without labels or classes.
        metric: The task's headline by its usual name, where that is not the share of right samples; `score` is its value,
            None where it has none.
        details: Further figures by their usual names.
        discordant_b: Samples that only the reference got right; None without a reference.
        discordant_c: Samples that only this run got right.
        hamming: Samples whose correctness differs from the pass before; None at the first.
        prediction_digest: sha256 of the decisions; of a classification, the classes as little-endian int32.
        agreement: With the reference outputs; None without them.
    """

    task: Task = "classification"
    counted: Counted = "samples"
    n: Positive
    errors: int | None
    tp: tuple[int, ...] = ()
    fp: tuple[int, ...] = ()
    fn: tuple[int, ...] = ()
    metric: str | None = None
    score: float | None = None
    details: dict[str, float] = {}
    discordant_b: int | None
    discordant_c: int | None
    hamming: int | None
    prediction_digest: str
    agreement: Agreement | None


class Measured(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Raw samples and everything read beside them.

    Attributes:
        samples_ms: float64 in this machine's byte order, one per sample: mean milliseconds per inference.
        left_out_ms: Of all samples together, as `Measure.leave_out_waiting` asked.
        length_s: From the first sample to the last, without waiting and without evaluation.
        waited_s: For the lock.
        cpu_s: Processor time of the whole subprocess during `length_s`.
        gpu_use_ratio: Of the busiest GPU when the samples had been taken; None where there is none.
        energy_mj: Of the counter that `energy_method` names, during `length_s`; None where there is none to be read.
        phases: What was timed beside `invoke`.
        cadence_ms: As asked for.
        late_starts: Inferences that were due while the one before still ran; None without a cadence.
        sustained: As asked for, like `throughput`.
    """

    samples_ms: bytes
    inferences_per_sample: Positive
    left_out_ms: float = 0.0
    init_ms: float
    first_ms: float
    evaluation: Evaluation | None
    memory: tuple[MemoryReading, ...]
    length_s: float
    waited_s: float
    cpu_s: float
    gpu_use_ratio: float | None = None
    energy_mj: float | None = None
    energy_method: str | None = None
    phases: tuple[Phase, ...] = ()
    cadence_ms: float | None = None
    late_starts: int | None = None
    sustained: Sustained | None = None
    throughput: Throughput | None = None


class Layered(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What `Layers` asked for; the fields are those of `evenfleet_shared.layers.Layers`."""

    executed: str
    delegated_ratio: float | None
    sample: int
    outputs: int
    layers: tuple[LayerOutput, ...]
    note: str = ""


class NotLayered(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What `Layers` asked for cannot be had here; the runner goes on as before."""

    reason: str


class Refused(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The model cannot be measured here, and trying again will not help.

    Attributes:
        kind: ``model``: the runtime cannot run it; ``runtime``: it is not installed, or unusable as installed;
            ``data``: the golden set does not fit.
    """

    kind: Literal["model", "runtime", "data"]
    reason: str


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """This request failed; the subprocess goes on."""

    reason: str


WorkerRequest = Union[Load, Measure, Check, Layers]
Response = Union[Loaded, Measured, Checked, Layered, NotLayered, Refused, Failed]
Frame = Union[Response, Alive]


def encode(message: WorkerRequest | Frame) -> bytes:
    r"""Return a message as a frame.

    Raises:
        RunnerError: It is larger than a frame may be.

    >>> encode(Failed(reason="why"))[:4]
    b'\x00\x00\x00\x18'
    """
    body = msgspec.msgpack.encode(message)
    if len(body) > MAX_FRAME_BYTES:
        raise RunnerError(f"a frame of {len(body)} bytes, at most {MAX_FRAME_BYTES} are sent")
    return _LENGTH.pack(len(body)) + body


class FrameBuffer:
    """Bytes in, whole frames out.

    >>> frames = FrameBuffer()
    >>> frames.feed(_LENGTH.pack(3) + b"ab")
    []
    >>> frames.feed(b"c")
    [b'abc']
    """

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the bodies of the frames that `chunk` completes.

        Raises:
            RunnerError: A frame claims to be larger than frames are.
        """
        self._bytes += chunk
        bodies: list[bytes] = []
        while len(self._bytes) >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(self._bytes)
            if size > MAX_FRAME_BYTES:
                raise RunnerError(f"a frame claims {size} bytes, at most {MAX_FRAME_BYTES} are taken")
            end = _LENGTH.size + size
            if len(self._bytes) < end:
                break
            bodies.append(bytes(self._bytes[_LENGTH.size : end]))
            del self._bytes[:end]
        return bodies


def decode_request(body: bytes) -> WorkerRequest:
    """Decode what a worker is asked.

    Raises:
        RunnerError: It is no request.
    """
    try:
        request: WorkerRequest = msgspec.msgpack.decode(body, type=WorkerRequest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RunnerError(f"not a request: {error}") from None
    return request


def decode_frame(body: bytes) -> Frame:
    """Decode what a worker says.

    Raises:
        RunnerError: It is nothing that a worker says.
    """
    try:
        frame: Frame = msgspec.msgpack.decode(body, type=Frame)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RunnerError(f"not an answer: {error}") from None
    return frame
