"""Measure models on this device, with no broker and no collector: what `evenfleet-agent measure` does.

Decides the turns of models and processes, which runtime a model gets, and what of a runner's answers a result is. Leaves
finding models to `targets`, data to `samples`, telling the figures to `tables`, and measuring itself to the runner, which
the supervisor uses too, so that both give the same figures.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import msgspec

from evenfleet_agent import machine, predict, rounds, window
from evenfleet_agent.host import conditions
from evenfleet_agent.host.conditions import Look
from evenfleet_agent.rounds import Spread
from evenfleet_agent.runner import Runner
from evenfleet_agent.runner.answers import next_answer
from evenfleet_agent.runner.protocol import (
    Counted,
    Evaluation,
    Failed,
    Loaded,
    Measure,
    Measured,
    Refused,
    Response,
    RunnerSpec,
)
from evenfleet_agent.targets import Target
from evenfleet_shared import messages
from evenfleet_shared.errors import (
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
    Sustained,
    Task,
    Throughput,
)
from evenfleet_shared.metrics import ClassCounts, wilson_interval

OFFLINE_S: Final = 10.0
QUANTILES: Final = {"p50_ms": 0.5, "p90_ms": 0.9, "p95_ms": 0.95, "p99_ms": 0.99}

Progress = Callable[[str, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Outcome of one pass over samples that were right or wrong by their task's criterion; `interval` is Wilson's, 95 %.

    `counted`, `metric`, `score` and `details` are those of `Evaluation`. The ratios by class are of tasks that have such; a class
    accuracy only of those whose counts are of samples, since nobody counts the boxes that are rightly not there.
    """

    task: Task
    counted: Counted
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


def measure(target: Target, request: Measure, runner: Runner, progress: Progress) -> Result | Failure:
    """Measure one model in a subprocess of its own.

    Args:
        target: The model.
        request: How long, how often.
        runner: Not started.
        progress: Is told the target and the stage, some times a second.
    """

    def waiting() -> None:
        progress(target.name, getattr(runner, "stage", ""))

    refused: Refused | None = None
    for name in target.runtimes:
        spec = msgspec.structs.replace(target.spec, runtime=name)
        try:
            runner.start(spec)
            loaded = next_answer(runner, waiting)
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
            measured = next_answer(runner, waiting)
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


def _failure(target: Target, refused: Refused) -> Failure:
    # The runner was given copies in a temporary directory, which say nothing to whoever reads this.
    of_data = target.data is not None and refused.kind == "data"
    return Failure(
        name=target.name, kind=refused.kind, reason=f"{target.data}: {refused.reason}" if of_data else refused.reason
    )


def _unexpected(answer: Response) -> RunnerError:
    if isinstance(answer, Failed):
        return RunnerError(answer.reason)
    return RunnerError(f"the runner answered {type(answer).__name__}, which was not asked for")


def _result(target: Target, spec: RunnerSpec, loaded: Loaded, measured: Measured, before: Look, after: Look) -> Result:
    run = machine.run_context(loaded, runtime=spec.runtime, threads=spec.threads)
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
        intervals={name: _interval(body.latency, q) for name, q in QUANTILES.items()},
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
    prediction = predict.among(_run(result), [_run(other) for other in results if other is not result])
    if prediction is None:
        return result
    cost = replace(result.cost, predicted_ms=prediction.predicted_ms, predicted_error_ratio=prediction.error_ratio)
    return replace(result, cost=cost)


def _run(result: Result) -> predict.Run:
    return predict.Run(
        size_bytes=result.size_bytes,
        macs=result.cost.macs,
        p50_ms=result.latency.p50_ms,
        alike=(result.format, result.comparability),
    )


def _accuracy(evaluation: Evaluation) -> Accuracy | None:
    if evaluation.errors is None:
        return None
    counts = ClassCounts(n=evaluation.n, tp=evaluation.tp, fp=evaluation.fp, fn=evaluation.fn)
    right = evaluation.n - evaluation.errors
    return Accuracy(
        task=evaluation.task,
        counted=evaluation.counted,
        n=evaluation.n,
        errors=evaluation.errors,
        accuracy_ratio=right / evaluation.n,
        interval=wilson_interval(right, evaluation.n),
        metric=evaluation.metric,
        score=evaluation.score,
        details=evaluation.details,
        class_accuracy_ratios=() if evaluation.counted != "samples" else counts.class_accuracy_ratios,
        class_recall_ratios=counts.class_recall_ratios,
        counts=counts,
    )


def _silent(_name: str, _stage: str) -> None:
    pass
