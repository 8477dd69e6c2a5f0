"""Measure models on this device, with no broker and no collector: what `evenfleet-agent measure` does.

Decides what a path is (a .tflite, an .onnx, a SavedModel, a tar of one, a release), which runtimes to try, and how the figures
are told. Leaves measuring to the runner, which the supervisor uses too, so that both give the same figures.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from evenfleet_agent import engines, host, predict, rounds, runtimes, window, wording
from evenfleet_agent.host import conditions
from evenfleet_agent.host.conditions import Look
from evenfleet_agent.rounds import Spread
from evenfleet_agent.runner import Runner
from evenfleet_agent.runner.protocol import (
    Evaluation,
    Failed,
    Loaded,
    Measure,
    Measured,
    Refused,
    Response,
    RunnerSpec,
    on_golden_set,
)
from evenfleet_shared import manifest, messages
from evenfleet_shared.errors import (
    ConfigError,
    DataError,
    EvenfleetError,
    ModelRefusedError,
    RunnerError,
    RuntimeMissingError,
)
from evenfleet_shared.manifest import Format, TensorSpec
from evenfleet_shared.messages import (
    Agreement,
    Conditions,
    Cost,
    Latency,
    MemoryReading,
    Phase,
    RunContext,
    Sustained,
    Task,
    Throughput,
)
from evenfleet_shared.metrics import ClassCounts, runs_needed, wilson_interval

AUTO: Final = "auto"
OFFLINE_S: Final = 10.0
_QUANTILES: Final = {"p50_ms": 0.5, "p90_ms": 0.9, "p95_ms": 0.95, "p99_ms": 0.99}
_INPUT_NAMES: Final = ("x_test", "x", "X_test", "X", "inputs")
_LABEL_NAMES: Final = ("y_test", "y", "Y_test", "Y", "labels")
_OUTPUT_NAMES: Final = ("outputs", "outputs_test")
# What a task's counts are of, and what a class's share of them is called.
_COUNTED: Final[dict[Task, str]] = {"detection": "objects", "segmentation": "pixels"}
_POLL_S: Final = 0.2

Progress = Callable[[str, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One model to measure; the runtimes are tried in turn until one is installed.

    `data` is where the samples come from, as the user knows it; None for made-up ones. `size_bytes` is the artifact's and
    `macs` the model's multiply-accumulates, None where nobody said.
    """

    name: str
    runtimes: tuple[str, ...]
    spec: RunnerSpec
    data: str | None = None
    size_bytes: int | None = None
    macs: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Outcome of one pass over samples that were right or wrong by their task's criterion; `interval` is Wilson's, 95 %.

    `metric`, `score` and `details` are those of `Evaluation`. The ratios by class are of tasks that have such; a class
    accuracy only of those whose counts are of samples, since nobody counts the boxes that are rightly not there.
    """

    task: Task
    n: int
    errors: int
    accuracy_ratio: float
    interval: tuple[float, float]
    metric: str | None
    score: float | None
    details: dict[str, float]
    class_accuracy_ratios: tuple[float, ...]
    class_recall_ratios: tuple[float | None, ...]
    counts: ClassCounts


class DataFiles(NamedTuple):
    """Where the arrays of an .npz were written; None for those it does not have."""

    inputs: str
    labels: str | None
    outputs: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One measured model.

    Attributes:
        intervals: A distribution-free 95 % interval by quantile, None where n is too small.
        throughput_per_s: One inference at a time; `throughput` is that of batches back to back.
        processes: How many were started for it; the figures are those of the one with the median p50.
        spread: What the processes' figures lie between, by figure; None of a single one.
        comparability: The short name of `comparable_by`, which must be equal for two results to be compared.
        conditions: From `start` to `end`, all processes included.
    """

    name: str
    artifact: str
    format: Format
    runtime: str
    runtime_version: str
    python: str
    threads: int
    accelerator_requested: str
    accelerator_executed: str
    delegated_ratio: float | None
    fallback_reason: str | None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    synthetic_inputs: bool
    latency: Latency
    intervals: dict[str, tuple[float, float] | None]
    throughput_per_s: float
    cpu_share: float
    memory: tuple[MemoryReading, ...]
    accuracy: Accuracy | None
    agreement: Agreement | None
    notes: tuple[str, ...]
    size_bytes: int | None
    cost: Cost
    phases: tuple[Phase, ...]
    cadence_ms: float | None
    late_starts: int | None
    sustained: Sustained | None
    throughput: Throughput | None
    comparability: str
    comparable_by: dict[str, str | int | None]
    start: Look
    end: Look
    conditions: Conditions
    throttled: bool | None
    processes: int = 1
    spread: dict[str, Spread] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A model that could not be measured; `kind` is that of `Refused`, or ``runner``."""

    name: str
    kind: str
    reason: str


def find_targets(
    model: Path,
    *,
    runtime: str,
    template: RunnerSpec,
    variants: Sequence[str] = (),
    data: Path | None = None,
) -> list[Target]:
    """Return what there is to measure at a path.

    Args:
        model: A .tflite file, a SavedModel's directory or tar, or a release's directory.
        runtime: A runtime's name, or ``auto``.
        template: What every target has: threads, data and so on.
        variants: Of a release; none is all that the runtime can take.
        data: What the template's samples were taken from.

    Raises:
        ConfigError: It is none of these, or the arguments do not go together.
        ArtifactError: A file of the release is missing or damaged.
    """
    if not model.exists():
        raise ConfigError(f"{model} does not exist; expected a .tflite or .onnx file, a SavedModel or a release")
    if model.is_dir() and (model / manifest.MANIFEST_NAME).exists():
        return _release_targets(model, runtime, template, variants, data)
    if variants:
        raise ConfigError(f"{model} is not a release, so it has no variants to choose from; leave --variant away")
    model_format = _sniff(model)
    spec = msgspec.structs.replace(template, artifact=str(model), format=model_format)
    candidates = _candidates(runtime, model_format)
    return [
        Target(
            name=model.name,
            runtimes=candidates,
            spec=spec,
            data=None if data is None else str(data),
            size_bytes=model.stat().st_size if model.is_file() else None,
        )
    ]


def left_out(model: Path, targets: Sequence[Target]) -> list[str]:
    """Return the variants of a release that are not among the targets; of anything else, none."""
    if not (model / manifest.MANIFEST_NAME).exists():
        return []
    release, _ = manifest.load(model)
    taken = {target.name for target in targets}
    return [variant.name for variant in release.variants if variant.name not in taken]


def delegate_options(delegate: str | None, options: Sequence[str]) -> dict[str, str]:
    """Return a delegate's options, given as ``key=value``.

    Raises:
        ConfigError: One is not of that form, the delegate is neither a known name nor a path, or there is none.
    """
    if delegate is not None and delegate not in engines.DELEGATES and not delegate.startswith("/"):
        raise ConfigError(
            f"--delegate is {delegate!r}, expected {', '.join(engines.DELEGATES)} or the absolute path of a library"
        )
    if options and delegate is None:
        raise ConfigError("--delegate-option is for a delegate; name it with --delegate")
    wrong = [option for option in options if not option.partition("=")[1] or option.startswith("=")]
    if wrong:
        raise ConfigError(f"--delegate-option is {wrong[0]!r}, expected KEY=VALUE")
    return {name: value for name, _, value in (option.partition("=") for option in options)}


def check_python(python: str | None) -> None:
    """Refuse another Python that is not there.

    Raises:
        ConfigError: It is no program.
    """
    if python is not None and shutil.which(python) is None:
        raise ConfigError(f"--python: {python} is not a program; expected the Python of another environment")


def measure(target: Target, request: Measure, runner: Runner, progress: Progress) -> Result | Failure:
    """Measure one model in a subprocess of its own.

    Args:
        target: The model.
        request: How long, how often.
        runner: Not started.
        progress: Is told the target and the stage, some times a second.
    """
    refused: Refused | None = None
    for name in target.runtimes:
        spec = msgspec.structs.replace(target.spec, runtime=name)
        try:
            runner.start(spec)
            loaded = _await_answer(runner, target.name, progress)
            if isinstance(loaded, Refused):
                # The first runtime is the preferred one: its pip command is the one to show.
                refused = refused or loaded
                if loaded.kind == "runtime":
                    continue
                return _failure(target, loaded)
            if not isinstance(loaded, Loaded):
                raise _unexpected(loaded)
            before = conditions.look()
            runner.send(request)
            measured = _await_answer(runner, target.name, progress)
            if isinstance(measured, Refused):
                return _failure(target, measured)
            if not isinstance(measured, Measured):
                raise _unexpected(measured)
            return _result(target, spec, loaded, measured, before, conditions.look())
        except RunnerError as error:
            return Failure(name=target.name, kind="runner", reason=str(error))
        finally:
            runner.stop()
    assert refused is not None  # a target has at least one runtime
    return _failure(target, refused)


def measure_in_turns(
    targets: Sequence[Target], request: Measure, runner: Runner, progress: Progress, *, processes: int = 1
) -> list[Result | Failure]:
    """Measure models in several processes each, every one of them once before any of them again.

    Args:
        targets: The models.
        request: How long, how often, in each process.
        runner: Not started.
        progress: Is told the target and the stage, some times a second.
        processes: For each model. One that fails once is not tried again.

    Returns:
        One outcome per target, in their order.
    """
    found: list[list[Result]] = [[] for _ in targets]
    failures: dict[int, Failure] = {}
    for _ in range(processes):
        for number, target in enumerate(targets):
            if number in failures:
                continue
            # What the first process took, the others take too.
            known = replace(target, runtimes=(found[number][0].runtime,)) if found[number] else target
            outcome = measure(known, request, runner, progress)
            if isinstance(outcome, Result):
                found[number].append(outcome)
            else:
                failures[number] = outcome
    return foretell(
        [failures[number] if number in failures else _over_processes(found[number]) for number in range(len(targets))]
    )


def foretell(outcomes: Sequence[Result | Failure]) -> list[Result | Failure]:
    """Return the outcomes with what each model's own time is foretold to be by the others that were run like it."""
    results = [outcome for outcome in outcomes if isinstance(outcome, Result)]
    return [_foretold(outcome, results) if isinstance(outcome, Result) else outcome for outcome in outcomes]


def check_installed(runtime_name: str, python: str | None) -> None:
    """Look whether a runtime is installed, without building an interpreter; `doctor` does.

    Args:
        runtime_name: Of `runtimes`.
        python: The Python that runs the models; None is this one.

    Raises:
        ConfigError: It is not, or that Python has no evenfleet.
    """
    runtime = runtimes.by_name(runtime_name)
    program = python or sys.executable
    if not _has_module(program, "evenfleet_agent"):
        raise ConfigError(f"runtime.python is {program}, which is no Python that has evenfleet installed")
    if not _has_module(program, runtime.module.partition(".")[0]):
        raise ConfigError(f"runtime.name is {runtime_name}, which {program} has not installed: {runtime.install}")


def as_error(failure: Failure) -> EvenfleetError:
    """Return the error that a failure is, for its exit code."""
    errors: dict[str, type[EvenfleetError]] = {
        "model": ModelRefusedError,
        "runtime": RuntimeMissingError,
        "data": DataError,
    }
    return errors.get(failure.kind, RunnerError)(failure.reason)


def first_to_mend(failures: Sequence[Failure]) -> Failure:
    """Return the failure to tell where nothing could be measured: wrong data before what a model or a runtime lacks."""
    return next((failure for failure in failures if failure.kind == "data"), failures[0])


def write_data(file: Path, directory: Path, task: Task = "classification") -> DataFiles:
    """Take samples, labels and a reference's outputs out of an .npz.

    Args:
        file: With an array x_test, x or inputs, perhaps y_test, y or labels, and perhaps outputs.
        directory: Where the arrays are written, one file each.
        task: What the labels are of.

    Raises:
        DataError: It is no .npz of numbers, has no samples, or labels that do not go with them or with the task.
    """
    import numpy as np

    from evenfleet_agent.runner import tasks

    if file.exists() and not file.is_file():
        raise DataError(f"{file} is not a file; expected an .npz with x and y")
    try:
        arrays = np.load(file, allow_pickle=False)
        if not isinstance(arrays, np.lib.npyio.NpzFile):
            raise DataError(f"{file} is a single array; expected an .npz with x and y")
        with arrays:
            inputs = _first_of(arrays, _INPUT_NAMES)
            labels = _first_of(arrays, _LABEL_NAMES)
            outputs = _first_of(arrays, _OUTPUT_NAMES)
            if inputs is None:
                raise DataError(
                    f"{file} has no array called {', '.join(_INPUT_NAMES)}; it has: {', '.join(arrays.files) or 'none'}"
                )
    except FileNotFoundError:
        raise DataError(f"{file} does not exist; expected an .npz with x and y") from None
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from None
    except (ValueError, EOFError, zipfile.BadZipFile, AttributeError):
        # numpy's own words advise to unpickle the file.
        raise DataError(f"{file} is not a whole .npz of plain numbers; pickled objects are not read") from None
    except MemoryError:
        raise DataError(f"{file} says that it holds more than this machine has memory for; use fewer samples") from None
    _check_samples(inputs, file)
    try:
        if labels is not None:
            labels = tasks.by_name(task).labels(labels, len(inputs))
    except DataError as error:
        raise DataError(f"{file}: {error}") from None
    if outputs is not None:
        outputs = _reference(outputs, len(inputs), file)
    files = []
    for name, array in (("inputs", inputs), ("labels", labels), ("outputs", outputs)):
        path = directory / f"{name}.npy"
        if array is not None:
            np.save(path, array, allow_pickle=False)
        files.append(None if array is None else str(path))
    return DataFiles(str(files[0]), *files[1:])


def task_of(model: Path, asked: Task | None) -> Task:
    """Return the task that a model is scored by: a release's own, or the one asked for, classification by default.

    Raises:
        ConfigError: The release is of another than the one asked for.
        ReleaseError: The release cannot be read.
    """
    if not (model / manifest.MANIFEST_NAME).exists():
        return asked or "classification"
    release, _ = manifest.load(model)
    if asked not in {None, release.task}:
        raise ConfigError(f"--task is {asked}, {model} is a release of task {release.task}; leave --task away")
    return release.task


def held_to(target: Target, *, tolerance: float | None, threshold: float | None) -> Target:
    """Return a target whose samples are right by other criteria.

    Args:
        target: Its spec has the task, and the criteria that hold otherwise.
        tolerance: Of a regression or an agreement; None leaves it.
        threshold: The task's own; None leaves it.

    Raises:
        ConfigError: The task has no such criterion, the value cannot be one, or the samples are a release's own, which
            come with theirs.
    """
    if tolerance is None and threshold is None:
        return target
    from evenfleet_agent.runner import tasks

    spec, changes = target.spec, {}
    if spec.reference_correct is not None:
        raise ConfigError(f"--tolerance and --threshold go with --data; {target.data} says itself what is right")
    if tolerance is not None:
        if spec.task not in {"regression", "agreement"}:
            raise ConfigError(f"--tolerance is {tolerance}, task {spec.task} has none; leave it away")
        changes["tolerance"] = tolerance
    if threshold is not None:
        field = tasks.by_name(spec.task).threshold
        if field is None:
            raise ConfigError(f"--threshold is {threshold}, task {spec.task} has none; leave it away")
        changes[field] = threshold
    try:
        criteria = msgspec.convert({**msgspec.to_builtins(spec.criteria), **changes}, manifest.Criteria)
    except msgspec.ValidationError as error:
        raise ConfigError(f"--tolerance or --threshold cannot be that: {error}") from None
    return replace(target, spec=msgspec.structs.replace(spec, criteria=criteria))


def table(outcomes: Sequence[Result | Failure]) -> str:
    """Return the outcomes for a person: one model in detail, several side by side."""
    results = [outcome for outcome in outcomes if isinstance(outcome, Result)]
    failures = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
    parts = []
    if len(outcomes) == 1 and results:
        parts.append(_detail(results[0]))
    elif results:
        parts.append(_side_by_side(results))
        notes = dict.fromkeys(f"{result.name}: {note}" for result in results for note in _remarks(result))
        parts.append("\n".join(notes))
    parts.append("\n".join(f"{failure.name}: not measured: {failure.reason}" for failure in failures))
    return "\n\n".join(part for part in parts if part)


@contextlib.contextmanager
def progress_line() -> Iterator[Progress]:
    """Yield a callback that keeps one line on the terminal up to date, and is silent where there is none."""
    if not sys.stderr.isatty():
        yield _silent
        return

    def show(name: str, stage: str) -> None:
        sys.stderr.write(f"\r\x1b[K{name}: {stage or 'starting'} …")
        sys.stderr.flush()

    try:
        yield show
    finally:
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()


def _has_module(python: str, module: str) -> bool:
    """Ask another Python whether it would find a module, which is not imported for that."""
    question = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    try:
        asked = subprocess.run(
            [python, "-c", question],
            cwd="/",
            env={**os.environ, "PYTHONSAFEPATH": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60.0,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return asked.returncode == 0


def _failure(target: Target, refused: Refused) -> Failure:
    # The runner was given copies in a temporary directory, which say nothing to whoever reads this.
    of_data = target.data is not None and refused.kind == "data"
    return Failure(
        name=target.name, kind=refused.kind, reason=f"{target.data}: {refused.reason}" if of_data else refused.reason
    )


def _release_targets(
    directory: Path, runtime: str, template: RunnerSpec, variants: Sequence[str], data: Path | None
) -> list[Target]:
    release, _ = manifest.load(directory)
    known = [variant.name for variant in release.variants]
    unknown = [name for name in variants if name not in known]
    if unknown:
        raise ConfigError(f"--variant: {directory} has no variant {unknown[0]!r}; it has {', '.join(known)}")
    chosen = [release.variant(name) for name in variants] or [
        variant
        for variant in release.variants
        if runtime == AUTO or variant.format in runtimes.by_name(runtime).formats
    ]
    if not chosen:
        raise ConfigError(f"no variant of {directory} is of a format that {runtime} runs")
    own_data = template.inputs_file is None
    golden = release.golden
    files = [variant.artifact for variant in chosen]
    for reference in [*files, *(golden.files if own_data else ())]:
        manifest.check_file(directory / reference.file, reference)
    targets = []
    for variant in chosen:
        spec = msgspec.structs.replace(template, artifact=str(directory / variant.artifact.file), format=variant.format)
        if own_data:
            correct = release.variant(release.reference_variant).reference.correct
            spec = on_golden_set(spec, release, str(directory), correct=correct)
        else:
            spec = msgspec.structs.replace(spec, classes=golden.classes, criteria=golden.criteria)
        targets.append(
            Target(
                name=variant.name,
                runtimes=_candidates(runtime, variant.format),
                spec=spec,
                data=str(directory / "golden" if data is None else data),
                size_bytes=variant.artifact.size_bytes,
                macs=variant.macs,
            )
        )
    return targets


def _sniff(model: Path) -> Format:
    if model.is_dir():
        if (model / "saved_model.pb").exists() or (model / "saved_model.pbtxt").exists():
            return "saved_model"
        raise ConfigError(
            f"{model} is neither a SavedModel nor a release: it has no saved_model.pb and no {manifest.MANIFEST_NAME}"
        )
    if not model.is_file():
        raise ConfigError(
            f"{model} is neither a file nor a directory; expected a .tflite or .onnx file, a SavedModel or a release"
        )
    try:
        with model.open("rb") as file:
            start = file.read(8)
        if start[4:8] == b"TFL3" or model.suffix in (".tflite", ".lite"):
            return "tflite"
        # ONNX files have no mark of their own.
        if model.suffix == ".onnx":
            return "onnx"
        if tarfile.is_tarfile(model):
            return "saved_model"
    except OSError as error:
        raise ConfigError(f"{model} cannot be read: {error.strerror}") from None
    hint = "; convert it with 'evenfleet optimize'" if model.suffix in (".keras", ".h5", ".hdf5") else ""
    raise ConfigError(f"{model} is neither a .tflite file nor a tar of a SavedModel, nor an .onnx file{hint}")


def _candidates(runtime: str, model_format: Format) -> tuple[str, ...]:
    if runtime == AUTO:
        return tuple(candidate.name for candidate in runtimes.for_format(model_format))
    if model_format not in runtimes.by_name(runtime).formats:
        able = " or ".join(candidate.name for candidate in runtimes.for_format(model_format))
        raise ConfigError(f"runtime {runtime} does not run {model_format} models; use {able}")
    return (runtime,)


def _await_answer(runner: Runner, name: str, progress: Progress) -> Response:
    while True:
        select.select([runner], [], [], _POLL_S)
        answers = runner.receive()
        if answers:
            return answers[0]
        progress(name, getattr(runner, "stage", ""))


def _unexpected(answer: Response) -> RunnerError:
    if isinstance(answer, Failed):
        return RunnerError(answer.reason)
    return RunnerError(f"the runner answered {type(answer).__name__}, which was not asked for")


def _result(target: Target, spec: RunnerSpec, loaded: Loaded, measured: Measured, before: Look, after: Look) -> Result:
    run = _run_context(spec, loaded)
    try:
        body = window.close(
            measured,
            limits=(),
            golden=None,
            surroundings=window.Surroundings(
                conditions=conditions.between(before, after),
                throttled=conditions.throttled(before, after),
                macs=target.macs,
            ),
        )
    except ValueError as error:
        raise RunnerError(f"the runner answered nonsense: {error}") from None
    assert body.conditions is not None
    evaluation = measured.evaluation
    return Result(
        name=target.name,
        artifact=spec.artifact,
        format=spec.format,
        runtime=spec.runtime,
        runtime_version=loaded.runtime_version,
        python=loaded.python,
        threads=spec.threads,
        accelerator_requested=loaded.accelerator_requested,
        accelerator_executed=loaded.accelerator_executed,
        delegated_ratio=loaded.delegated_ratio,
        fallback_reason=loaded.fallback_reason,
        inputs=loaded.inputs,
        outputs=loaded.outputs,
        synthetic_inputs=loaded.synthetic_inputs,
        latency=body.latency,
        intervals={name: _interval(body.latency, q) for name, q in _QUANTILES.items()},
        throughput_per_s=1e3 / max(body.latency.mean_ms, 1e-9),
        cpu_share=measured.cpu_s / max(measured.length_s, 1e-9),
        memory=measured.memory,
        accuracy=_accuracy(evaluation) if evaluation else None,
        agreement=evaluation.agreement if evaluation else None,
        notes=loaded.notes,
        size_bytes=target.size_bytes,
        cost=body.cost,
        phases=body.phases,
        cadence_ms=body.cadence_ms,
        late_starts=body.late_starts,
        sustained=body.sustained,
        throughput=body.throughput,
        comparability=messages.comparability(run),
        comparable_by=messages.comparability_key(run),
        start=before,
        end=after,
        conditions=body.conditions,
        throttled=body.throttled,
    )


def _interval(latency: Latency, q: float) -> tuple[float, float] | None:
    (claim,) = (claim for claim in latency.claims if claim.q == q)
    return None if claim.low_ms is None or claim.high_ms is None else (claim.low_ms, claim.high_ms)


def _run_context(spec: RunnerSpec, loaded: Loaded) -> RunContext:
    return host.run_context(
        device_class="unclassified",
        runtime=spec.runtime,
        runtime_version=loaded.runtime_version,
        python=loaded.python,
        accelerator_requested=loaded.accelerator_requested,
        accelerator_executed=loaded.accelerator_executed,
        delegated_ratio=loaded.delegated_ratio,
        fallback_reason=loaded.fallback_reason,
        threads=spec.threads,
        attributes={},
    )


def _over_processes(results: Sequence[Result]) -> Result:
    if len(results) == 1:
        return results[0]
    first, last = results[0], results[-1]
    throttled = [result.throttled for result in results if result.throttled is not None]
    return replace(
        results[rounds.typical([result.latency.p50_ms for result in results])],
        processes=len(results),
        spread=rounds.spreads([result.latency for result in results]),
        start=first.start,
        end=last.end,
        conditions=conditions.between(first.start, last.end),
        throttled=any(throttled) if throttled else None,
    )


def _foretold(result: Result, results: Sequence[Result]) -> Result:
    if result.size_bytes is None:
        return result
    others = [
        predict.Known(size_bytes=other.size_bytes, macs=other.cost.macs, p50_ms=other.latency.p50_ms)
        for other in results
        if other is not result
        and other.size_bytes is not None
        and (other.comparability, other.format) == (result.comparability, result.format)
    ]
    prediction = predict.predict(result.size_bytes, result.cost.macs, others)
    if prediction is None:
        return result
    cost = replace(result.cost, predicted_ms=prediction.predicted_ms, predicted_error_ratio=prediction.error_ratio)
    return replace(result, cost=cost)


def _accuracy(evaluation: Evaluation) -> Accuracy | None:
    if evaluation.errors is None:
        return None
    counts = ClassCounts(n=evaluation.n, tp=evaluation.tp, fp=evaluation.fp, fn=evaluation.fn)
    right = evaluation.n - evaluation.errors
    return Accuracy(
        task=evaluation.task,
        n=evaluation.n,
        errors=evaluation.errors,
        accuracy_ratio=right / evaluation.n,
        interval=wilson_interval(right, evaluation.n),
        metric=evaluation.metric,
        score=evaluation.score,
        details=evaluation.details,
        class_accuracy_ratios=() if evaluation.task in _COUNTED else counts.class_accuracy_ratios,
        class_recall_ratios=counts.class_recall_ratios,
        counts=counts,
    )


def _first_of(arrays: Any, names: Sequence[str]) -> Any:
    return next((arrays[name] for name in names if name in arrays.files), None)


def _check_samples(inputs: Any, file: Path) -> None:
    import numpy as np

    if not inputs.ndim or not len(inputs) or inputs.dtype.kind not in "iufb":
        raise DataError(
            f"{file}: x must hold real numbers, one entry per sample, found {inputs.dtype} of shape {list(inputs.shape)}"
        )
    # Models take no more than float32 has.
    if inputs.dtype.kind == "f" and not (np.abs(inputs) <= np.finfo(np.float32).max).all():
        raise DataError(
            f"{file}: x holds NaN, infinite values or such that float32 has no room for; clean the data first"
        )


def _reference(outputs: Any, samples: int, file: Path) -> Any:
    import numpy as np

    if not outputs.ndim or len(outputs) != samples or not outputs.size or outputs.dtype.kind not in "iuf":
        raise DataError(
            f"{file}: outputs must hold real numbers, one entry for each of {samples} samples, found {outputs.dtype} of "
            f"shape {list(outputs.shape)}"
        )
    return outputs.astype(np.float32)


def _silent(_name: str, _stage: str) -> None:
    pass


def _detail(result: Result) -> str:
    figures = result.latency
    threads = f"{result.threads} thread{'s' if result.threads > 1 else ''}"
    rows = [
        ("model", f"{result.name} ({result.format})"),
        ("runtime", f"{result.runtime} {result.runtime_version}, {threads}, Python {result.python}"),
        ("executed on", _executed(result)),
        *(("input", _tensor(spec)) for spec in result.inputs),
        *(("output", _tensor(spec)) for spec in result.outputs),
        *(("note", remark) for remark in _remarks(result)),
        ("init", wording.ms(figures.init_ms)),
        ("first", wording.ms(figures.first_ms)),
    ]
    rows += [
        (name.removesuffix("_ms"), wording.quantile(result.latency, q, _spread_of(result, name)))
        for name, q in _QUANTILES.items()
    ]
    rows += [
        (
            "throughput",
            f"{wording.rate(result.throughput_per_s)} inferences/s, one at a time, {result.cpu_share:.2f} CPUs busy",
        ),
        *wording.modes(result.throughput, result.sustained, result.cadence_ms, result.late_starts),
        *(
            (phase.name, f"{wording.ms(phase.p50_ms):<12} n {phase.n}, p95 {wording.ms(phase.p95_ms)}")
            for phase in result.phases
        ),
        *((f"memory {reading.kind}", f"{reading.bytes / 1e6:.1f} MB  ({reading.method})") for reading in result.memory),
        *wording.cost(result.cost),
        ("conditions", wording.conditions(result.start, result.end, throttled=result.throttled)),
        ("comparable", f"{result.comparability}: {wording.key(result.comparable_by)}"),
    ]
    accuracy = result.accuracy
    if accuracy:
        low, high = accuracy.interval
        right = accuracy.n - accuracy.errors
        rows.append(
            (
                "accuracy",
                f"{accuracy.accuracy_ratio:.4f}  ({right} of {accuracy.n}, 95 % interval {low:.4f} to {high:.4f})",
            )
        )
        if accuracy.metric:
            rows.append((accuracy.metric, "no value" if accuracy.score is None else f"{accuracy.score:.4g}"))
        rows += [(name, f"{value:.4g}") for name, value in accuracy.details.items()]
    if result.agreement:
        rows.append(("agreement", _agreement(result.agreement)))
    text = _aligned(rows)
    return f"{text}\n\n{_by_class(accuracy)}" if accuracy and accuracy.counts.tp else text


def _by_class(accuracy: Accuracy) -> str:
    counts = accuracy.counts
    told = [(str(number), str(tp + fn)) for number, (tp, fn) in enumerate(zip(counts.tp, counts.fn, strict=True))]
    recalls = ["-" if recall is None else f"{recall:.4f}" for recall in accuracy.class_recall_ratios]
    if accuracy.class_accuracy_ratios:
        ratios = [f"{ratio:.4f}" for ratio in accuracy.class_accuracy_ratios]
        rows = [(*first, ratio, recall) for first, ratio, recall in zip(told, ratios, recalls, strict=True)]
        return _aligned([("class", "samples", "accuracy", "recall"), *rows])
    false = map(str, counts.fp)
    rows = [(*first, recall, wrong) for first, recall, wrong in zip(told, recalls, false, strict=True)]
    return _aligned([("class", _COUNTED.get(accuracy.task, "samples"), "recall", "false"), *rows])


def _side_by_side(results: Sequence[Result]) -> str:
    head = (
        "model",
        "runtime",
        "executed",
        "init",
        "first",
        "p50",
        "p90",
        "p95",
        "p99",
        "n",
        "peak MB",
        "accuracy",
        "agreement",
    )
    rows: list[tuple[str, ...]] = [head]
    for result in results:
        figures = result.latency
        peak = next((reading.bytes for reading in result.memory if reading.kind == "peak_rss"), None)
        rows.append(
            (
                result.name,
                f"{result.runtime} {result.runtime_version}",
                result.accelerator_executed
                + ("" if result.delegated_ratio in (None, 0.0) else f" {result.delegated_ratio:.0%}"),
                *(wording.ms(value) for value in (figures.init_ms, figures.first_ms)),
                wording.ms(figures.p50_ms) + _between(result),
                *(wording.ms(getattr(figures, name)) for name in ("p90_ms", "p95_ms", "p99_ms")),
                str(figures.n) + ("" if figures.p99_qualified else "!"),
                "-" if peak is None else f"{peak / 1e6:.1f}",
                "-" if result.accuracy is None else _scored(result.accuracy),
                "-" if result.agreement is None else result.agreement.noise_class,
            )
        )
    text = _aligned(rows)
    if any(not result.latency.p99_qualified for result in results):
        text += f"\n! fewer than {runs_needed(0.99)} runs: the p99 is unqualified"
    if any(result.spread for result in results):
        text += f"\n{results[0].processes} processes each, in turns: those with the median p50, and what the p50s lie between"
    throttled = [result.throttled for result in results if result.throttled is not None]
    # They were measured in turns, or one after another: from the first one's beginning to the last one's end.
    start = min((result.start for result in results), key=lambda look: look.at_s)
    end = max((result.end for result in results), key=lambda look: look.at_s)
    text += f"\nconditions: {wording.conditions(start, end, throttled=any(throttled) if throttled else None)}"
    for key in dict.fromkeys(result.comparability for result in results):
        alike = [result for result in results if result.comparability == key]
        named = ", ".join(dict.fromkeys(result.name for result in alike))
        text += f"\ncomparable: {key} ({wording.key(alike[0].comparable_by)}): {named}"
    return text


def _spread_of(result: Result, name: str) -> Spread | None:
    return result.spread[name] if result.spread else None


def _between(result: Result) -> str:
    spread = _spread_of(result, "p50_ms")
    return f" ({spread.low_ms:.4g} to {spread.high_ms:.4g})" if spread else ""


def _scored(accuracy: Accuracy) -> str:
    headline = "" if accuracy.score is None else f" ({accuracy.metric} {accuracy.score:.4g})"
    return f"{accuracy.accuracy_ratio:.4f}{headline}"


def _remarks(result: Result) -> list[str]:
    remarks = ["synthetic inputs: latency and memory only, nothing about accuracy"] if result.synthetic_inputs else []
    if result.fallback_reason:
        remarks.append(result.fallback_reason)
    return [*remarks, *result.notes]


def _executed(result: Result) -> str:
    if result.delegated_ratio is None or result.accelerator_requested == "cpu":
        return result.accelerator_executed
    return f"{result.accelerator_executed}, {result.delegated_ratio:.0%} of the operators delegated"


def _tensor(spec: TensorSpec) -> str:
    quantised = f", step {spec.scale:.6g}, zero point {spec.zero_point}" if spec.scale else ""
    return f"{spec.name} {spec.dtype} {list(spec.shape)}{quantised}"


def _agreement(agreement: Agreement) -> str:
    steps = "" if agreement.lsb_max is None else f", {agreement.lsb_max:.1f} steps of its quantisation"
    return (
        f"{agreement.noise_class}: same decision in {agreement.top1_ratio:.2%}, largest difference "
        f"{agreement.max_abs_diff:.3g}{steps}"
    )


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
