"""Find what there is to measure at a path, and what may run it.

Decides what a path is (a .tflite, an .onnx, a SavedModel, a tar of one, a release), which runtimes to try, and which
arguments go together. Looks at files and at which packages a Python has; builds no interpreter.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import msgspec

from evenfleet_agent import engines, runtimes
from evenfleet_agent.runner.protocol import RunnerSpec, on_golden_set
from evenfleet_shared import manifest
from evenfleet_shared.errors import ConfigError
from evenfleet_shared.manifest import Format
from evenfleet_shared.messages import Task

AUTO: Final = "auto"


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
        if not tasks.by_name(spec.task).has_tolerance:
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
