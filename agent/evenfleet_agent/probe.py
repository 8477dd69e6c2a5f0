"""Count an application's own inferences, without ever making it wait: what the application imports.

Decides what of a call is noted and when a call is looked at more closely. Leaves to the agent (`intake`) to read what was
noted, and to `appwindow` what it comes to. Imports nothing but the standard library, so this file may also be copied into
an application by itself.

A process notes its calls in a file of its own, mapped into memory: a ring of durations, which every call writes two words
into, and a ring of statistics, which 1 call in N writes into. N follows what statistics cost here against how long an
inference takes, so that they stay within `budget_ratio` of the application's own inference time.

* Nothing here raises into the application or waits: no lock is waited for, and where there is no agent, no room or no
  right to write, calls go on unnoted, which is logged once.
* The exception of a body passes through unchanged, and its call counts as failed.
* Threads share a ring: each claims its place by one step of a counter, which nothing can come between.
* A forked child gets a ring of its own. A ring whose writer is gone is known by its lock, which the kernel lets go of.
* What is noted of inputs and outputs are statistics: the values themselves are never written anywhere.
"""

from __future__ import annotations

import hashlib
import inspect
import itertools
import logging
import math
import mmap
import os
import re
import secrets
import struct
import threading
import weakref
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial, wraps
from pathlib import Path
from time import perf_counter_ns
from types import TracebackType
from typing import Any, Final, Literal, NamedTuple, TypeVar

try:
    import fcntl
except ImportError:  # not Linux: nothing is noted, and the log says so
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Any])
OutputKind = Literal["auto", "probabilities", "logits", "none"]

DEFAULT_DIRECTORY: Final = "/run/evenfleet/probe"
DIRECTORY_VARIABLE: Final = "EVENFLEET_PROBE__DIRECTORY"  # the agent's own name for its setting
BUDGET_NAME: Final = "budget"
DEFAULT_BUDGET_RATIO: Final = 0.01
MAX_BUDGET_RATIO: Final = 0.5

# The file, which `intake` reads. Native byte order: it never leaves the machine.
MAGIC: Final = b"EVFPROBE"
VERSION: Final = 1
HEADER_BYTES: Final = 4096
RECORD_SLOTS: Final = 1 << 14
RECORD: Final = struct.Struct("=QQ")  # duration in ns, with FAILED; number << NUMBER_SHIFT ^ the same
# Half a record, with the other half of an older one, is seen by this: what is left in these bits is no number's.
NUMBER_SHIFT: Final = 16
SAMPLE_SLOTS: Final = 512
SAMPLE_BYTES: Final = 384
SAMPLES_AT: Final = HEADER_BYTES + RECORD_SLOTS * RECORD.size
FILE_BYTES: Final = SAMPLES_AT + SAMPLE_SLOTS * SAMPLE_BYTES
HEADER: Final = struct.Struct(
    "=8sIIIIIIQQ"
)  # magic, version, the sizes above, pid, 0; first number, calls missed before
NAMES_AT: Final = 64
NAMES: Final = struct.Struct("=64s64s")  # application, model; padded with zeros
UNREADABLE_AT: Final = 192  # samples of values that are no numbers
SAMPLE_FRONT: Final = struct.Struct("=QII")  # number; crc32 and size of what follows
SAMPLE_HEAD: Final = struct.Struct("=QIBBH")  # cost in ns, 1 in so many, inputs, rows, 0
SAMPLE_INPUT: Final = struct.Struct("=IIIIdddd")  # elements, NaN, infinite, 0; mean, std, min, max of the finite ones
SAMPLE_ROW: Final = struct.Struct("=If")  # class, entropy (NaN: not known)
MAX_INPUTS: Final = 4
MAX_ROWS: Final = 16
FAILED: Final = 1 << 62

RING_NAME: Final = re.compile(r"\.?ring-[0-9]{1,10}-[0-9a-f]{16}")
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
MAX_RINGS: Final = 32

_SLOT_MASK: Final = RECORD_SLOTS - 1
# Every so many calls it is looked whether the file is still there: a directory under /run may go with the agent's service.
_CHECK_MASK: Final = 255
_RETRY_NS: Final = 10_000_000_000
# The first calls are no measure of what an inference takes.
_WARM_UP_CALLS: Final = 3
_MAX_ONE_IN: Final = 1_000_000
_RECENT: Final = 64
_MAX_ELEMENTS: Final = 16_384
_MAX_PLAIN_ELEMENTS: Final = 1024
_MAX_ENTROPY_CLASSES: Final = 4096
_NUMBER_KINDS: Final = "fiub"


class Summary(NamedTuple):
    """What is noted of one input: of up to 16,384 of its elements, evenly spaced."""

    elements: int
    nan: int
    infinite: int
    mean: float
    std: float
    low: float
    high: float


class Scale(NamedTuple):
    """How a quantised tensor's integers stand for numbers."""

    scale: float = 1.0
    zero_point: int = 0


UNSCALED: Final = Scale()


class Timing:
    """One call that is timed: a context manager of its own, so that threads and tasks never share one."""

    __slots__ = ()

    def __enter__(self) -> Timing:
        raise NotImplementedError

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        raise NotImplementedError

    def input(self, value: Any) -> None:
        """Show an input: summarised once the call is over, if this call is one that is sampled."""

    def output(self, value: Any) -> None:
        """Show the output: its class and entropy are noted if this call is one that is sampled."""


class Probe:
    """Notes the inferences of one application, under its name and its model's.

    >>> probe = Probe("inspection", model="fashion-cnn", directory="/nowhere")
    >>> with probe.timing():
    ...     total = sum(range(10))
    >>> @probe.timed
    ... def predict(value):
    ...     return value + 1
    >>> predict(1)
    2
    """

    def __init__(
        self,
        app: str,
        *,
        model: str | None = None,
        model_file: str | os.PathLike[str] | None = None,
        output: OutputKind = "auto",
        budget_ratio: float | None = None,
        directory: str | os.PathLike[str] | None = None,
    ) -> None:
        """Prepare; the ring is made at the first call.

        Args:
            app: The application's name; what may not stand in one is replaced by ``-``.
            model: The model's name, or the sha256 of its file.
            model_file: The model's file, to be named by its sha256, which is what a release names it by.
            output: What outputs are: probabilities, logits, ``none`` of classes, or to be told by looking (``auto``: an
                output of one or two dimensions has its classes in the last; it holds probabilities if they add up to 1).
            budget_ratio: What statistics may take of the inference time; the agent's setting by default, 0 for none.
            directory: Where the agent looks; its default, or what ``EVENFLEET_PROBE__DIRECTORY`` names. Empty, in either:
                nowhere, so that nothing is noted.
        """
        self._app = _as_name(app) or "app"
        self._model = _digest(model_file) if model_file is not None else _as_name(model or "")
        self._output = output
        self._directory = os.fspath(
            os.environ.get(DIRECTORY_VARIABLE, DEFAULT_DIRECTORY) if directory is None else directory
        )
        self._told = False
        self._given_budget_ratio = budget_ratio
        self._budget_ratio = 0.0
        self._cost_ns = 0.0
        self._one_in = 1
        self._begin()
        self._bind_calls()
        _probes.add(self)

    timing: Callable[[], Timing]
    """Return a context manager that times its body."""

    observing: Callable[[], Timing]
    """Return a context manager that times its body, and takes what `input` and `output` of it are shown 1 time in N."""

    @property
    def recording(self) -> bool:
        """Whether calls are noted at present; False before the first one."""
        return self._ring is not None

    @property
    def one_in(self) -> int:
        """N: statistics are taken of 1 call in so many."""
        return self._one_in

    def timed(self, function: F) -> F:
        """Return `function` with every call of it timed; of a coroutine function, until it returns."""
        if inspect.iscoroutinefunction(function):

            @wraps(function)
            async def timed_coroutine(*args: Any, **kwargs: Any) -> Any:
                with self.timing():
                    return await function(*args, **kwargs)

            return timed_coroutine  # type: ignore[return-value]
        return wraps(function)(self._timed_call(function))  # type: ignore[return-value]

    def observed(self, function: F) -> F:
        """Return `function` with every call timed, and 1 in N looked at: its array arguments, and what it returns.

        Of a dict or a sequence of arrays that is returned, the first one is taken as the output.
        """
        if inspect.iscoroutinefunction(function):

            @wraps(function)
            async def observed_coroutine(*args: Any, **kwargs: Any) -> Any:
                with self.observing() as call:
                    result = await function(*args, **kwargs)
                    _show(call, (*args, *kwargs.values()), result)
                    return result

            return observed_coroutine  # type: ignore[return-value]

        @wraps(function)
        def observed_call(*args: Any, **kwargs: Any) -> Any:
            with self.observing() as call:
                result = function(*args, **kwargs)
                _show(call, (*args, *kwargs.values()), result)
                return result

        return observed_call  # type: ignore[return-value]

    def wrap(self, interpreter: Any) -> Any:
        """Return an interpreter (LiteRT's, tflite-runtime's) that is `interpreter`, but for every `invoke` being noted.

        1 invoke in N is looked at: input tensors are read before, the first output with classes after it, off the clock.
        Signature runners that it hands out are noted in the same way.
        """
        return _Wrapped(interpreter, self)

    def _begin(self) -> None:
        """Start over, with a ring yet to be made: in a new probe and in a forked child."""
        self._ring: _Ring | None = None
        self._opening = threading.Lock()
        self._sampling = threading.Lock()
        self._calls = itertools.count(1)
        self._samples = 0
        self._entries = itertools.count(1)
        self._due = _WARM_UP_CALLS
        # The last call's number that went into a ring which is no more: missed are those after it.
        self._ended = 0
        self._tried_ns: int | None = None

    def _bind_calls(self) -> None:
        """Make what every call runs through. Closures, for a variable of one is found faster than an attribute."""
        clock, probe = perf_counter_ns, self
        words: Any = _Unopened(probe)
        claim = self._calls.__next__

        def bind(new_words: Any, new_claim: Callable[[], int]) -> None:
            nonlocal words, claim
            words, claim = new_words, new_claim

        def record(noted_ns: int) -> None:
            number = claim()
            at = (number & _SLOT_MASK) << 1
            words[at] = noted_ns
            words[at + 1] = number << NUMBER_SHIFT ^ noted_ns
            if not number & _CHECK_MASK:
                probe._check()

        class Timed(Timing):
            __slots__ = ("start",)

            def __enter__(self) -> Timing:
                self.start = clock()
                return self

            def __exit__(self, kind: Any, error: Any, at: Any) -> None:
                # `record`, written out: a call of it is a seventh of what this may take.
                noted_ns = clock() - self.start
                if kind is not None:
                    noted_ns |= FAILED
                number = claim()
                place = (number & _SLOT_MASK) << 1
                words[place] = noted_ns
                words[place + 1] = number << NUMBER_SHIFT ^ noted_ns
                if not number & _CHECK_MASK:
                    probe._check()

        def timed_call(function: Callable[..., Any]) -> Callable[..., Any]:
            def timed(*args: Any, **kwargs: Any) -> Any:
                start = clock()
                try:
                    result = function(*args, **kwargs)
                except BaseException:
                    record(clock() - start | FAILED)
                    raise
                noted_ns = clock() - start
                number = claim()
                place = (number & _SLOT_MASK) << 1
                words[place] = noted_ns
                words[place + 1] = number << NUMBER_SHIFT ^ noted_ns
                if not number & _CHECK_MASK:
                    probe._check()
                return result

            return timed

        class Sampled(Timing):
            __slots__ = ("inputs", "out", "start")

            def __enter__(self) -> Timing:
                self.inputs: list[Any] = []
                self.out: Any = None
                self.start = clock()
                return self

            def __exit__(self, kind: Any, error: Any, at: Any) -> None:
                taken_ns = clock() - self.start
                record(taken_ns if kind is None else taken_ns | FAILED)
                if kind is None:
                    probe._sample(partial(_summaries, self.inputs), partial(_decisions, self.out, probe._output))

            def input(self, value: Any) -> None:
                self.inputs.append(value)

            def output(self, value: Any) -> None:
                self.out = value

        def observing() -> Timing:
            return Sampled() if probe._is_due() else Timed()

        self._bind, self._record, self._timed_call = bind, record, timed_call
        self.timing, self.observing = Timed, observing

    def _is_due(self) -> bool:
        return next(self._entries) > self._due and self._ring is not None

    # the ring

    def _may_open(self) -> bool:
        if self._tried_ns is None or self._opening.locked():
            return bool(self._directory)
        return perf_counter_ns() - self._tried_ns >= _RETRY_NS

    def _open(self, waiting: dict[int, int]) -> None:
        """Make the ring and write into it what threads wanted to write meanwhile, or find that it cannot be made."""
        if not self._opening.acquire(blocking=False):
            return  # another thread is at it
        try:
            if self._ring is not None:
                return
            now_ns = perf_counter_ns()
            first = 1 if self._tried_ns is None else _next_of(self._calls)
            self._tried_ns = now_ns
            try:
                missed = first - 1 - self._ended
                ring = _Ring(Path(self._directory), self._app, self._model, first=first, missed=missed)
            except Exception as error:  # noqa: BLE001 - whatever it is, the application has nothing to do with it
                self._tell(error)
                waiting.clear()
                return
            self._use(ring)
            while waiting:
                at, word = waiting.popitem()  # in one step: others still add to it
                ring.words[at] = word
        finally:
            self._opening.release()

    def _use(self, ring: _Ring) -> None:
        self._ring = ring
        self._samples = 0
        self._budget_ratio = _budget_ratio(Path(self._directory), self._given_budget_ratio)
        self._due = max(self._due, _WARM_UP_CALLS) if self._budget_ratio else math.inf  # type: ignore[assignment]
        self._bind(ring.words, self._calls.__next__)

    def _check(self) -> None:
        """Take a new ring where the old one was removed."""
        ring = self._ring
        if ring is None or not ring.is_removed() or not self._opening.acquire(blocking=False):
            return
        try:
            try:
                first = _next_of(self._calls)
                self._use(_Ring(Path(self._directory), self._app, self._model, first=first, missed=0))
            except Exception as error:  # noqa: BLE001 - as above
                self._tell(error)
                self._ring, self._ended, self._tried_ns = None, first - 1, perf_counter_ns()
                self._bind(_Unopened(self), self._calls.__next__)
        finally:
            self._opening.release()

    def _after_fork(self) -> None:
        ring = self._ring
        self._begin()
        self._bind(_Unopened(self), self._calls.__next__)
        if ring is not None:
            ring.let_go()

    def _tell(self, error: Exception) -> None:
        if not self._told:
            self._told = True
            log.warning(
                "inferences of %s are not noted: %s; tried again now and then, the application goes on",
                self._app,
                error,
            )

    # statistics

    def _sample(
        self,
        inputs: Callable[[], Sequence[Summary]],
        rows: Callable[[], Sequence[tuple[int, float]]],
        spent_ns: int = 0,
    ) -> None:
        """Take and note the statistics of a call that is over; `spent_ns` was taken for them before."""
        ring = self._ring
        if ring is None or not self._sampling.acquire(blocking=False):
            return
        try:
            start_ns = perf_counter_ns() - spent_ns
            try:
                summaries, decisions = inputs(), rows()
                if summaries or decisions:
                    self._samples += 1
                    cost_ns = perf_counter_ns() - start_ns
                    ring.put_sample(self._samples, cost_ns, self._one_in, summaries, decisions)
            except Exception:  # noqa: BLE001 - the application's own objects may raise anything
                ring.count_unreadable()
            self._adapt(ring, perf_counter_ns() - start_ns)
        finally:
            self._sampling.release()

    def _adapt(self, ring: _Ring, cost_ns: int) -> None:
        self._cost_ns = cost_ns if not self._cost_ns else 0.8 * self._cost_ns + 0.2 * cost_ns
        recent = ring.recent_ns(_next_of(self._calls))
        # Half of the calls take longer than the median, so this asks for too few rather than too many.
        typical_ns = recent[len(recent) // 2] if recent else 0
        if typical_ns and self._budget_ratio:
            wanted = math.ceil(self._cost_ns / (self._budget_ratio * typical_ns))
            self._one_in = min(max(wanted, 1), _MAX_ONE_IN)
        self._due = _next_of(self._entries) - 2 + self._one_in


class _Unopened:
    """Stands where the ring's words will: makes the ring when the first word is to be written."""

    __slots__ = ("probe", "waiting")

    def __init__(self, probe: Probe) -> None:
        self.probe = weakref.proxy(probe)
        self.waiting: dict[int, int] = {}

    def __setitem__(self, at: int, word: int) -> None:
        if self.probe._ring is None and self.probe._may_open():
            # Noted before the ring is looked for again: whoever makes it either finds this word, or has made it by then.
            self.waiting[at] = word
            self.probe._open(self.waiting)
        ring = self.probe._ring
        if ring is not None:
            ring.words[at] = word


class _Ring:
    """The file of one process: made under a draft's name, locked, and only then shown to the agent."""

    def __init__(self, directory: Path, app: str, model: str, *, first: int, missed: int) -> None:
        """Make it.

        Raises:
            OSError: The directory is missing, full or not to be written by this user, or this is not Linux.
        """
        if fcntl is None:
            raise OSError("needs Linux")
        if sum(1 for path in directory.iterdir() if RING_NAME.fullmatch(path.name)) >= MAX_RINGS:
            raise OSError(f"{directory} holds {MAX_RINGS} rings already; is no agent reading them?")
        name = f"ring-{os.getpid()}-{secrets.token_hex(8)}"
        draft = directory / f".{name}"
        self._descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever else may write here may not shorten it: touching what is gone would end the application.
            os.fchmod(self._descriptor, 0o640)
            status = os.fstat(self._descriptor)
            self._file = (status.st_dev, status.st_ino)
            # All of its room is taken now, for a write into a mapping that finds none would end the application too.
            os.posix_fallocate(self._descriptor, 0, FILE_BYTES)
            self._map = mmap.mmap(
                self._descriptor, FILE_BYTES, flags=mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)
            )
            sizes = (RECORD_SLOTS, SAMPLE_SLOTS, SAMPLE_BYTES)
            HEADER.pack_into(self._map, 0, MAGIC, VERSION, *sizes, os.getpid(), 0, first, missed)
            NAMES.pack_into(self._map, NAMES_AT, app.encode(), model.encode())
            draft.rename(directory / name)
        except BaseException:
            os.close(self._descriptor)
            draft.unlink(missing_ok=True)
            raise
        self._all = memoryview(self._map).cast("Q")
        self.words = self._all[HEADER_BYTES // 8 : SAMPLES_AT // 8]

    def __del__(self) -> None:
        self.let_go()

    def let_go(self) -> None:
        """Close this process's hold of the file; that of the process it was forked from stays."""
        if getattr(self, "words", None) is None:
            return
        descriptor, is_ours = self._descriptor, self._is_open()
        self._descriptor = -1
        if descriptor >= 0:
            try:
                if is_ours:
                    os.close(descriptor)
                # What is mapped or half-written by a frame that still runs stays until that frame ends.
                self.words.release()
                self._all.release()
                self._map.close()
            except (BufferError, OSError):
                pass

    def is_removed(self) -> bool:
        return not self._is_open() or os.fstat(self._descriptor).st_nlink == 0

    def _is_open(self) -> bool:
        """Return whether the descriptor is still this file's: one that becomes a daemon closes all, and opens others."""
        try:
            status = os.fstat(self._descriptor)
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self._file

    def recent_ns(self, next_number: int) -> list[int]:
        """Return how long the last calls took, in rising order, without those that failed."""
        words = self.words
        numbers = range(max(1, next_number - _RECENT), next_number)
        noted = (words[(number & _SLOT_MASK) << 1] for number in numbers)
        return sorted(word for word in noted if 0 < word < FAILED)

    def count_unreadable(self) -> None:
        self._all[UNREADABLE_AT // 8] += 1

    def put_sample(
        self, number: int, cost_ns: int, one_in: int, inputs: Sequence[Summary], rows: Sequence[tuple[int, float]]
    ) -> None:
        inputs, rows = inputs[:MAX_INPUTS], rows[:MAX_ROWS]
        body = b"".join(
            [
                SAMPLE_HEAD.pack(cost_ns, one_in, len(inputs), len(rows), 0),
                *(SAMPLE_INPUT.pack(i.elements, i.nan, i.infinite, 0, i.mean, i.std, i.low, i.high) for i in inputs),
                *(SAMPLE_ROW.pack(found, entropy) for found, entropy in rows),
            ]
        )
        written = SAMPLE_FRONT.pack(number, zlib.crc32(body), len(body)) + body
        at = SAMPLES_AT + (number % SAMPLE_SLOTS) * SAMPLE_BYTES
        self._map[at : at + len(written)] = written


class _Wrapped:
    """An interpreter whose `invoke` is noted; everything else is the interpreter's own."""

    __slots__ = ("__weakref__", "_evenfleet_invoke", "_evenfleet_probe", "_evenfleet_wrapped")

    def __init__(self, interpreter: Any, probe: Probe) -> None:
        put = partial(object.__setattr__, self)
        put("_evenfleet_wrapped", interpreter)
        put("_evenfleet_probe", probe)
        put("_evenfleet_invoke", _noted_invoke(interpreter, probe))

    @property
    def invoke(self) -> Callable[[], None]:
        found: Callable[[], None] = self._evenfleet_invoke
        return found

    def get_signature_runner(self, *args: Any, **kwargs: Any) -> Any:
        runner = self._evenfleet_wrapped.get_signature_runner(*args, **kwargs)
        return _WrappedRunner(runner, self._evenfleet_probe)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self._evenfleet_wrapped)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._evenfleet_wrapped, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._evenfleet_wrapped, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._evenfleet_wrapped, name)

    def __dir__(self) -> Iterable[str]:
        return dir(self._evenfleet_wrapped)

    def __repr__(self) -> str:
        return f"<probed {self._evenfleet_wrapped!r}>"


class _WrappedRunner(_Wrapped):
    """A signature runner whose calls are noted."""

    __slots__ = ()

    def __init__(self, runner: Any, probe: Probe) -> None:
        object.__setattr__(self, "_evenfleet_wrapped", runner)
        object.__setattr__(self, "_evenfleet_probe", probe)
        object.__setattr__(self, "_evenfleet_invoke", probe.observed(runner))

    def __call__(self, **inputs: Any) -> Any:
        return self._evenfleet_invoke(**inputs)


def _noted_invoke(interpreter: Any, probe: Probe) -> Callable[[], None]:
    invoke, record, clock = interpreter.invoke, probe._record, perf_counter_ns
    is_due = probe._is_due

    def noted_invoke() -> None:
        if is_due():
            observed_invoke()
            return
        start = clock()
        try:
            invoke()
        except BaseException:
            record(clock() - start | FAILED)
            raise
        record(clock() - start)

    def observed_invoke() -> None:
        before_ns = clock()
        try:
            summaries = _input_tensors(interpreter)
        except Exception:  # noqa: BLE001 - an interpreter that is not what it seems is still the application's to call
            summaries = None
        start = clock()
        try:
            invoke()
        except BaseException:
            record(clock() - start | FAILED)
            raise
        taken_ns = clock() - start
        record(taken_ns)

        def inputs() -> Sequence[Summary]:
            if summaries is None:
                raise TypeError("the input tensors could not be read")
            return summaries

        probe._sample(inputs, partial(_output_tensor, interpreter, probe._output), spent_ns=start - before_ns)

    return noted_invoke


def _input_tensors(interpreter: Any) -> list[Summary]:
    details = interpreter.get_input_details()[:MAX_INPUTS]
    return [_summary(interpreter.get_tensor(one["index"]), _scale(one)) for one in details]


def _output_tensor(interpreter: Any, kind: OutputKind) -> Sequence[tuple[int, float]]:
    for one in interpreter.get_output_details():
        if kind != "auto" or len(one["shape"]) <= 2:
            return _decisions(interpreter.get_tensor(one["index"]), kind, _scale(one))
    return ()


def _scale(details: Mapping[str, Any]) -> Scale:
    scale, zero_point = details.get("quantization") or (0.0, 0)
    return Scale(float(scale), int(zero_point)) if scale else UNSCALED


def _show(call: Timing, arguments: Iterable[Any], result: Any) -> None:
    for value in arguments:
        if _is_array(value):
            call.input(value)
    if isinstance(result, Mapping):
        result = next(iter(result.values()), None)
    elif isinstance(result, (tuple, list)) and result and _is_array(result[0]):
        result = result[0]
    if _is_array(result):
        call.output(result)


def _is_array(value: Any) -> bool:
    return hasattr(value, "dtype") or (
        isinstance(value, (list, tuple)) and bool(value) and isinstance(value[0], (int, float))
    )


def _plain(value: Any) -> Any:
    """Return a tensor of a framework as the array that it is, without its gradient."""
    if hasattr(value, "detach"):
        value = value.detach()
    made = getattr(value, "numpy", None)
    return made() if callable(made) else value


def _summaries(values: Sequence[Any]) -> list[Summary]:
    return [_summary(value) for value in values[:MAX_INPUTS]]


def _summary(value: Any, scale: Scale = UNSCALED) -> Summary:
    """Summarise an array by its own methods, or what else holds numbers one by one.

    Raises:
        TypeError: It holds no numbers.
    """
    value = _plain(value)
    found = _array_summary(value) if hasattr(value, "dtype") else _plain_summary(_numbers(value))
    if scale == UNSCALED:
        return found
    by, zero = scale
    return found._replace(
        mean=(found.mean - zero) * by, std=found.std * by, low=(found.low - zero) * by, high=(found.high - zero) * by
    )


def _array_summary(array: Any) -> Summary:
    if array.dtype.kind not in _NUMBER_KINDS:
        raise TypeError(f"no numbers: {array.dtype}")
    flat = _spaced(array.reshape(-1), _MAX_ELEMENTS)
    n = len(flat)
    if not n:
        return Summary(0, 0, 0, 0.0, 0.0, 0.0, 0.0)
    nan = infinite = 0
    low, high = float(flat.min()), float(flat.max())
    if not (low > -math.inf and high < math.inf):
        nan = int((flat != flat).sum())  # noqa: PLR0124 - what NaN is known by
        flat = flat[abs(flat) < math.inf]
        infinite = n - nan - len(flat)
        if not len(flat):
            return Summary(n, nan, infinite, 0.0, 0.0, 0.0, 0.0)
        low, high = float(flat.min()), float(flat.max())
    return Summary(n, nan, infinite, float(flat.mean(dtype="float64")), float(flat.std(dtype="float64")), low, high)


def _plain_summary(numbers: Sequence[float]) -> Summary:
    finite = [number for number in numbers if math.isfinite(number)]
    nan = sum(1 for number in numbers if number != number)  # noqa: PLR0124 - what NaN is known by
    n, infinite = len(numbers), len(numbers) - nan - len(finite)
    if not finite:
        return Summary(n, nan, infinite, 0.0, 0.0, 0.0, 0.0)
    mean = math.fsum(finite) / len(finite)
    std = math.sqrt(math.fsum((number - mean) ** 2 for number in finite) / len(finite))
    return Summary(n, nan, infinite, mean, std, min(finite), max(finite))


def _numbers(value: Any) -> list[float]:
    if not isinstance(value, (list, tuple)):
        view = memoryview(value)
        value = view if view.ndim == 1 else view.cast("B").cast(view.format)  # type: ignore[call-overload]
    return [float(number) for number in _spaced(value, _MAX_PLAIN_ELEMENTS)]


def _spaced(flat: Any, limit: int) -> Any:
    """Return at most `limit` elements, evenly spaced, by a step that no row or channel count of theirs falls in with."""
    n = len(flat)
    if n <= limit:
        return flat
    step = -(-n // limit)
    while math.gcd(step, n) > 1:
        step += 1
    return flat[::step]


def _decisions(value: Any, kind: OutputKind, scale: Scale = UNSCALED) -> Sequence[tuple[int, float]]:
    """Return class and entropy (nats; NaN where it cannot be known) of up to 16 rows of an output, evenly spaced.

    Raises:
        TypeError: It holds no numbers.
    """
    if value is None or kind == "none":
        return ()
    value = _plain(value)
    if not hasattr(value, "dtype"):
        return [_decision(_numbers(value), kind, scale, known=True)] if len(value) > 1 else ()
    if value.dtype.kind not in _NUMBER_KINDS:
        raise TypeError(f"no numbers: {value.dtype}")
    shape = value.shape
    if not shape or (kind == "auto" and (len(shape) > 2 or shape[-1] < 2)) or 0 in shape:
        return ()
    rows = value.reshape(-1, shape[-1])
    known = value.dtype.kind == "f" or scale != UNSCALED
    every = -(-len(rows) // MAX_ROWS)
    found = []
    for row in rows[::every]:
        if len(row) <= _MAX_ENTROPY_CLASSES:
            found.append(_decision(row.tolist(), kind, scale, known=known))
        else:
            found.append((int(row.argmax()), math.nan))
    return found


def _decision(row: Sequence[float], kind: OutputKind, scale: Scale, *, known: bool) -> tuple[int, float]:
    if any(number != number for number in row):  # noqa: PLR0124 - what NaN is known by
        raise TypeError("an output of NaN decides nothing")
    by, zero = scale
    numbers = [(number - zero) * by for number in row] if scale != UNSCALED else row
    if len(numbers) == 1:
        # One probability or logit, of the second of two classes.
        numbers = [1.0 - numbers[0], numbers[0]] if kind == "probabilities" else [0.0, numbers[0]]
    top = max(numbers)
    decided = numbers.index(top)
    if not known or not math.isfinite(top):
        return decided, math.nan
    total = math.fsum(number for number in numbers)
    rounding = 0.02 + (0.5 * by * len(numbers) if scale != UNSCALED else 0.0)
    if kind == "probabilities" or (kind == "auto" and min(numbers) >= 0.0 and abs(total - 1.0) <= rounding):
        if min(numbers) < 0.0 or total <= 0.0:
            return decided, math.nan
        shares: Iterator[float] = (number / total for number in numbers)
        return decided, abs(math.fsum(-share * math.log(share) for share in shares if share > 0.0))
    above = [number - top for number in numbers]
    weights = [math.exp(number) for number in above]
    mass = math.fsum(weights)
    spread = math.fsum(weight * number for weight, number in zip(weights, above, strict=True) if weight)
    return decided, abs(math.log(mass) - spread / mass)


def _next_of(counter: itertools.count[int]) -> int:
    """Return what a counter will give next, without taking it: its repr is all that tells."""
    return int(repr(counter)[6:-1])


def _as_name(text: str) -> str:
    name = re.sub(r"[^A-Za-z0-9._+-]", "-", text).lstrip("._+-")[:64]
    return name if NAME.fullmatch(name) else ""


def _digest(file: str | os.PathLike[str]) -> str:
    """Return a file's sha256, empty where it cannot be read."""
    digest = hashlib.sha256()
    try:
        with Path(file).open("rb") as opened:
            while piece := opened.read(1 << 20):
                digest.update(piece)
    except OSError as error:
        log.warning("the model file %s cannot be read (%s); its inferences are noted without a model", file, error)
        return ""
    return digest.hexdigest()


def _budget_ratio(directory: Path, given: float | None) -> float:
    """Return what the application gave, or what the agent left in the directory, or the default; within bounds."""
    ratio = DEFAULT_BUDGET_RATIO if given is None else given
    if given is None:
        try:
            descriptor = os.open(directory / BUDGET_NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                ratio = float(os.read(descriptor, 32))
            finally:
                os.close(descriptor)
        except (OSError, ValueError):
            pass
    return min(max(ratio, 0.0), MAX_BUDGET_RATIO) if ratio == ratio else DEFAULT_BUDGET_RATIO  # noqa: PLR0124


_probes: weakref.WeakSet[Probe] = weakref.WeakSet()


def _after_fork() -> None:
    for probe in list(_probes):
        probe._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
