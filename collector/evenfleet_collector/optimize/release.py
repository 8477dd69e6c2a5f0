"""Build a release directory: read, build each variant, time them, write the manifest, rename into place.

Decides the order and what a failure costs: one that is about a single variant lands in the manifest's `missing`, any
other ends the build and leaves nothing behind but what the cache keeps. Leaves making variants to `builder`, timing to
`timing`, and what they are worth to `worth`.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from evenfleet_collector.optimize import (
    appraise,
    datasets,
    evaluate,
    forecast,
    gain,
    ladder,
    models,
    recipe,
    strata,
    timing,
    variants,
)
from evenfleet_collector.optimize import target as targets
from evenfleet_collector.optimize.builder import Builder, salt
from evenfleet_collector.optimize.built import Built
from evenfleet_collector.optimize.cache import Cache
from evenfleet_collector.optimize.data import LabelledData
from evenfleet_collector.optimize.datasets import DataOptions, Wanted
from evenfleet_collector.optimize.gain import Gain
from evenfleet_collector.optimize.quiet import NoiseLog
from evenfleet_collector.optimize.sources import ModelSource, Source
from evenfleet_collector.optimize.subject import ModelFacts, Subject
from evenfleet_collector.optimize.target import Choice, Constraint
from evenfleet_collector.optimize.technique import Material
from evenfleet_collector.optimize.variants import Recipe
from evenfleet_collector.optimize.worth import ForecastErrors, ReportDocument, Timing, VariantReport
from evenfleet_shared import __version__, disk, manifest, trust
from evenfleet_shared.errors import ConfigError, EvenfleetError, ModelRefusedError
from evenfleet_shared.manifest import Envelope, Golden, Manifest, MissingVariant, Variant
from evenfleet_shared.messages import Name

DEFAULT_GOLDEN: Final = 300
DEFAULT_SEED: Final = 0
DEFAULT_CLASS: Final = "build-machine"

# Where the variant that should be the reference was not built.
_OTHER_REFERENCES: Final = ("float32", "saved-model")
_MAX_REASON: Final = 480
_LOCK: Final = "lock"
_EARLIER: Final = "earlier"
_OURS: Final = frozenset({manifest.MANIFEST_NAME, "artifacts", "golden", trust.FOLDER})
_SUFFIX: Final = {"tflite": ".tflite", "saved_model": ".tar"}


@dataclass(frozen=True, slots=True)
class Progress:
    """Step `step` of `steps` is at work on `label`; `steps` may grow."""

    step: int
    steps: int
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildReport:
    """What was built. `digest` is the release's name, `class_names` are by class where the data has names."""

    directory: Path
    digest: str
    manifest: Manifest
    test_n: int
    class_names: tuple[str, ...]
    variants: tuple[VariantReport, ...]
    missing: tuple[MissingVariant, ...]
    choice: Choice | None
    elapsed_s: float

    @property
    def forecast_errors(self) -> ForecastErrors | None:
        """Return how good the forecasts of the p50 are; None where nothing was timed."""
        found = {row.name: row.forecast for row in self.variants if row.forecast is not None}
        return forecast.errors(self.variants, found) if found else None

    def document(self, said_of_target: Sequence[str] = ()) -> ReportDocument:
        """Return what the report is made from; `said_of_target` is what becomes of the target, in words."""
        return ReportDocument(
            model=self.manifest.model,
            release=self.digest,
            reference_variant=self.manifest.reference_variant,
            test_n=self.test_n,
            golden_n=self.manifest.golden.n,
            machine=timing.machine_facts(),
            rows=self.variants,
            missing=self.missing,
            lineage=self.manifest.lineage,
            preprocessing=self.manifest.preprocessing,
            class_names=self.class_names,
            forecast_errors=self.forecast_errors,
            target=tuple(said_of_target),
            chosen=self.choice.row.name if self.choice else None,
            elapsed_s=self.elapsed_s,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Order:
    """What is to be built; see `build_release`."""

    recipes: tuple[Recipe, ...]
    seed: int
    golden_n: int
    seeds: int
    data_options: DataOptions
    timed: bool
    device_class: str
    rescue_drop_ratio: float | None
    target: tuple[Constraint, ...]


def build_release(
    model_source: str | Path,
    data_source: str | Path | LabelledData,
    out: Path,
    *,
    recipes: Sequence[Recipe] = variants.DEFAULT,
    seed: int = DEFAULT_SEED,
    golden_n: int = DEFAULT_GOLDEN,
    only: Sequence[str] = (),
    seeds: int = 1,
    data_options: DataOptions = DataOptions(),  # noqa: B008 - frozen
    cache_folder: Path | None = None,
    timed: bool = False,
    device_class: str = DEFAULT_CLASS,
    rescue_drop_ratio: float | None = None,
    target: Sequence[Constraint] = (),
    report: Callable[[Progress], None] = lambda _: None,
) -> BuildReport:
    """Build a release from a model and labelled data.

    Redirects the process's descriptors 1 and 2 while TensorFlow works (see `quiet`); `report` is called outside of
    that, on the caller's thread.

    Args:
        model_source: What `models.parse` takes: a file, a directory, or ``module:function`` returning a Keras model.
        data_source: What `datasets.parse` takes, or data already read.
        out: The directory to make. An earlier release there is replaced, anything else refused.
        recipes: The variants; the first is the reference, or float32 where it cannot be built.
        seed: Decides splits, the golden set and training.
        golden_n: Test samples in the golden set; all of them where there are fewer.
        only: Variants to build beside the reference; empty for all.
        seeds: How many times a trained variant and its control are trained to say what the technique brings; 0 trains
            no controls. What is released is of the first seed.
        data_options: What is said of the data beside its name.
        cache_folder: Where results are kept and found again; None keeps nothing.
        timed: Measure latency and memory here, for the report and the envelope.
        device_class: What the envelope calls this machine.
        rescue_drop_ratio: An int8 variant that loses more accuracy than this against the reference is built once more,
            with its worst operators in float (`rescue`); None rescues none.
        target: What a variant is to hold. Where none does, others that could are built too, until one does.
        report: Told before every step.

    Raises:
        ConfigError: A source or variant does not exist, or `out` or the cache cannot be written.
        DataError: The data is unacceptable or does not fit the model.
        ModelRefusedError: The model cannot be loaded, is no classifier, or no variant at all could be built.
        RuntimeMissingError: TensorFlow is not installed.
    """
    started_s = time.monotonic()
    chosen = variants.select(recipes, only)
    parsed_model = models.parse(model_source)
    parsed_data = data_source if isinstance(data_source, LabelledData) else datasets.parse(data_source)
    untimed = [limit for limit in target if limit.what.needs_timing and not timed]
    if untimed:
        raise ConfigError(f"--target {untimed[0]}: variants have to be timed for that; leave --no-timing out")
    if golden_n < 1:
        raise ConfigError(f"the golden set needs at least 1 sample, found {golden_n}")
    _check_device_class(device_class)
    out = Path(os.path.abspath(out))  # noqa: PTH100 - resolve() would follow a link that is to be refused
    _check_target(out)
    order = _Order(
        recipes=chosen,
        seed=seed,
        golden_n=golden_n,
        seeds=seeds,
        data_options=data_options,
        timed=timed,
        device_class=device_class,
        rescue_drop_ratio=rescue_drop_ratio,
        target=tuple(target),
    )
    with _staging(out) as staging:
        build = _Build(order, staging, Cache(cache_folder or staging / "cache"), _Steps(report))
        manifest_bytes, rows, labelled = build.run(parsed_model, parsed_data)
        built = manifest.decode(manifest_bytes, str(out))
        _move_into_place(staging / "release", out)
    return BuildReport(
        directory=out,
        digest=manifest.digest(manifest_bytes),
        manifest=built,
        test_n=len(labelled.x_test),
        class_names=labelled.class_names,
        variants=rows,
        missing=built.missing,
        choice=targets.choose(rows, target) if target else None,
        elapsed_s=time.monotonic() - started_s,
    )


class _Steps:
    """Counts what is done of what is to do, and tells it."""

    def __init__(self, report: Callable[[Progress], None]) -> None:
        self._report = report
        self._step = 0
        self._steps = 0

    def expect(self, steps: int) -> None:
        """Have so many more to do."""
        self._steps += steps

    def begin(self, label: str) -> None:
        """Begin the next step."""
        self._step += 1
        self.say(label)

    def say(self, label: str) -> None:
        """Say what the present step is at."""
        self._report(Progress(self._step, self._steps, label))


class _Build:
    """One build. Holds what its parts share."""

    def __init__(self, order: _Order, staging: Path, kept: Cache, steps: _Steps) -> None:
        self._order = order
        self._kept = kept
        self._steps = steps
        self._release = staging / "release"
        self._work = staging / "work"
        self._noise = NoiseLog(staging / "noise.log")
        self._built: list[Built] = []
        self._entries: dict[str, Variant] = {}
        self._timings: dict[str, timing.Outcome] = {}
        self._missing: list[MissingVariant] = []
        for folder in (self._work, self._release / "artifacts", self._release / "golden"):
            folder.mkdir(parents=True)

    def run(
        self, model_source: ModelSource, data_source: Source | LabelledData
    ) -> tuple[bytes, tuple[VariantReport, ...], LabelledData]:
        """Build everything into the staging folder; return the manifest's bytes, the rows, and the data."""
        order = self._order
        self._steps.expect(3)
        self._salt = salt()
        self._steps.begin("opening the model")
        subject = Subject(
            model_source,
            seed=order.seed,
            salt=self._salt,
            work=self._work,
            kept=self._kept,
            noise=self._noise,
            say=self._steps.say,
        )
        facts = subject.facts()
        self._steps.begin("reading the data")
        labelled = data_source if isinstance(data_source, LabelledData) else self._read(data_source, facts)
        fit = subject.fit(facts, labelled)
        self._data = labelled
        self._golden = strata.choose(labelled.y_test, order.golden_n, order.seed)
        self._classes = fit.classes
        self._builder = Builder(
            subject,
            facts,
            fit,
            Material(
                data=labelled,
                classes=fit.classes,
                output_kind=fit.output_kind,
                seed=order.seed,
                folder=self._work,
            ),
            salt=self._salt,
            kept=self._kept,
            noise=self._noise,
            say=self._steps.say,
        )
        recipes = order.recipes
        if facts.own_name is not None:
            recipes = variants.starting_from_file(recipes, facts.own_name)
        self._references = (recipes[0].name, *_OTHER_REFERENCES)
        self._add(recipes)
        if not self._built:
            raise ModelRefusedError(f"no variant could be built; {self._missing[0].name}: {self._missing[0].reason}")
        if order.rescue_drop_ratio is not None:
            below = {row.name for row in self._rows() if -row.delta_ratio > order.rescue_drop_ratio}
            self._add(variants.rescued(recipes, below, order.rescue_drop_ratio))
        while more := self._wanted_for_target(facts):
            self._add(more[:1])
        reference = self._reference()
        rows = [self._with_gain(row, built) for row, built in zip(self._rows(), self._built, strict=True)]
        self._steps.begin("writing the manifest")
        rows = list(appraise.beside_each_other(rows, reference.recipe.name))
        written = Manifest(
            model=_name(model_source.short_name),
            reference_variant=reference.recipe.name,
            variants=tuple(self._entries.values()),
            golden=self._write_golden(reference),
            preprocessing=_preprocessing(labelled),
            lineage={
                "model": model_source.name,
                "model_sha256": facts.digest,
                "data": "arrays" if isinstance(data_source, LabelledData) else data_source.name,
                "data_sha256": labelled.digest,
                "seed": str(order.seed),
                "evenfleet": __version__,
                "python": platform.python_version(),
                "machine": platform.machine(),
                **_class_names(labelled),
                **models.versions(),
                **facts.lineage,
                **recipe.lineage([each.recipe for each in self._built]),
                **({"target": ", ".join(map(str, order.target))} if order.target else {}),
            },
            missing=tuple(self._missing),
            envelope=tuple(self._envelope(row) for row in rows if row.timing is not None),
        )
        payload = manifest.encode(written)
        (self._release / manifest.MANIFEST_NAME).write_bytes(payload)
        return payload, tuple(rows), labelled

    def _read(self, source: Source, facts: ModelFacts) -> LabelledData:
        wanted = Wanted(seed=self._order.seed, sample_shape=facts.sample_shape, options=self._order.data_options)
        with self._noise.taking():
            return datasets.read(source, wanted)

    def _add(self, recipes: Iterable[Recipe]) -> None:
        """Build what can be built, copy it into the release, and time it; the others are missing with the reason."""
        recipes = list(recipes)
        trained = sum(variants.control(one.chain) is not None for one in recipes)
        self._steps.expect(len(recipes) + trained * max(0, 2 * self._order.seeds - 1))
        built: list[Built] = []
        for one in recipes:
            self._steps.begin(one.name)
            if len(self._built) + len(built) == manifest.MAX_VARIANTS:
                reason = f"a release holds at most {manifest.MAX_VARIANTS} variants"
                self._missing.append(MissingVariant(name=one.name, reason=reason))
                continue
            try:
                built.append(self._builder.build(one, self._order.seed))
            except EvenfleetError as error:
                self._missing.append(MissingVariant(name=one.name, reason=str(error)[:_MAX_REASON]))
        self._built += built
        entries = {each.recipe.name: self._entry(each, self._reference()) for each in built}
        self._entries |= entries
        if self._order.timed and entries:
            self._timings |= self._timed(entries.values())

    def _reference(self) -> Built:
        """Return what the others are compared with: the recipe's first, or what comes closest of those that were built."""
        for name in self._references:
            for each in self._built:
                if each.recipe.name == name:
                    return each
        return self._built[0]

    def _rows(self) -> list[VariantReport]:
        reference = self._reference()
        return [self._row(each, self._entries[each.recipe.name], reference) for each in self._built]

    def _wanted_for_target(self, facts: ModelFacts) -> tuple[Recipe, ...]:
        """Return what is worth building because nothing holds the target yet, and was not tried."""
        if not self._order.target:
            return ()
        tried = {one.name for one in self._missing}
        candidates = ladder.next_candidates(self._order.target, self._rows(), facts.stage)
        return tuple(one for one in candidates if one.name not in tried)

    def _gain(self, built: Built) -> Gain | None:
        """Train the variant's matched control, and both with other seeds, and return what the technique brought."""
        chain = built.recipe.chain
        place, without = variants.last_idea(chain), variants.control(chain)
        if place is None or without is None or not self._order.seeds:
            return None
        control = Recipe(f"control of {built.recipe.name}", without)
        labels, pairs = self._data.y_test, []
        for seed in range(self._order.seed, self._order.seed + self._order.seeds):
            if seed == self._order.seed:
                variant = built
            else:
                self._steps.begin(f"{built.recipe.name} with seed {seed}")
                variant = self._builder.build(built.recipe, seed)
            self._steps.begin(control.name)
            pairs.append((variant.correct(labels), self._builder.build(control, seed).correct(labels)))
        return gain.of(chain[place].name, control.words, pairs)

    def _with_gain(self, row: VariantReport, built: Built) -> VariantReport:
        try:
            return replace(row, gain=self._gain(built))
        except EvenfleetError as error:
            # The variant is built: what cannot be said is what its technique is worth.
            return replace(row, no_gain=f"its control was not built: {error}"[:_MAX_REASON])

    def _row(self, built: Built, entry: Variant, reference: Built) -> VariantReport:
        row = appraise.row(built, entry, reference, self._data, classes=self._classes)
        timed = self._timings.get(entry.name)
        if isinstance(timed, Timing):
            return replace(row, timing=timed)
        return row if timed is None else replace(row, no_timing=str(timed)[:_MAX_REASON])

    def _entry(self, built: Built, reference: Built) -> Variant:
        """Copy the artifact into the release, and describe it."""
        facts, golden = built.facts, self._golden
        file = f"artifacts/{built.recipe.name}{_SUFFIX[facts.format]}"
        shutil.copyfile(built.artifact, self._release / file)
        return Variant(
            name=built.recipe.name,
            format=facts.format,
            artifact=manifest.file_ref(self._release, file),
            techniques=built.recipe.words,
            input=facts.input,
            output=facts.output,
            parameters=facts.parameters,
            macs=facts.macs,
            operators=facts.operators,
            min_runtime_version=facts.min_runtime_version,
            calibration=facts.calibration,
            reference=evaluate.reference_result(
                built.outputs[golden], self._data.y_test[golden], reference.outputs[golden], facts.output.scale
            ),
        )

    def _write_golden(self, reference: Built) -> Golden:
        data, golden = self._data, self._golden
        arrays: dict[str, Any] = {
            "inputs": data.x_test[golden].astype("<f4"),
            "labels": data.y_test[golden].astype("<i8"),
            "outputs": reference.outputs[golden].astype("<f4"),
        }
        for name, array in arrays.items():
            np.save(self._release / "golden" / f"{name}.npy", array, allow_pickle=False)
        inputs, labels, outputs = (manifest.file_ref(self._release, f"golden/{name}.npy") for name in arrays)
        return Golden(n=len(golden), classes=self._classes, inputs=inputs, labels=labels, outputs=outputs)

    def _timed(self, entries: Iterable[Variant]) -> dict[str, timing.Outcome]:
        candidates = [
            timing.Candidate(
                name=entry.name,
                artifact=self._release / entry.artifact.file,
                sha256=entry.artifact.sha256,
                format=entry.format,
            )
            for entry in entries
        ]
        samples = self._work / "golden.npz"
        if not samples.exists():
            np.savez(samples, x=self._data.x_test[self._golden], y=self._data.y_test[self._golden])
        self._steps.expect(timing.rounds(candidates))
        return timing.take(candidates, salt=self._salt, kept=self._kept, data=samples, begin=self._steps.begin)

    def _envelope(self, row: VariantReport) -> Envelope:
        taken = row.timing
        assert taken is not None
        return Envelope(
            variant=row.name,
            device_class=self._order.device_class,
            machine=timing.machine(),
            runtime=taken.runtime,
            runtime_version=taken.runtime_version,
            threads=taken.threads,
            test_n=len(self._data.x_test),
            accuracy_ratio=row.accuracy_ratio,
            accuracy_low_ratio=row.accuracy_interval[0],
            accuracy_high_ratio=row.accuracy_interval[1],
            n=taken.n,
            rounds=taken.rounds,
            p50_ms=taken.p50_ms,
            p50_low_ms=taken.p50_low_ms,
            p50_high_ms=taken.p50_high_ms,
            p95_ms=taken.p95_ms,
            p95_low_ms=taken.p95_low_ms,
            p95_high_ms=taken.p95_high_ms,
            peak_rss_bytes=taken.peak_rss_bytes,
        )


def _preprocessing(labelled: LabelledData) -> dict[str, str]:
    """Say what the model is fed, so that a device that feeds something else can be told."""
    x = labelled.x_train
    return {
        **labelled.preprocessing.wire(),
        "minimum": f"{x.min():.6g}",
        "maximum": f"{x.max():.6g}",
        "mean": f"{x.mean(dtype=np.float64):.6g}",
        "note": "inputs are as the float32 model takes them; nothing is scaled after",
    }


def _class_names(labelled: LabelledData) -> dict[str, str]:
    """Return the names of the classes as JSON text, where the data has them: lineage is text throughout."""
    return {"class_names": json.dumps(labelled.class_names, ensure_ascii=False)} if labelled.class_names else {}


def _name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._+-]", "-", text).lstrip("._+-")[:64] or "model"


def _check_device_class(name: str) -> None:
    try:
        msgspec.convert(name, Name)
    except msgspec.ValidationError:
        raise ConfigError(
            f"--device-class {name!r}: expected 1 to 64 letters, digits, '.', '_', '+' and '-', the first a letter or digit"
        ) from None


def _check_target(out: Path) -> None:
    """Refuse a target that holds anything but an earlier release, before any work is done."""
    try:
        if not out.exists() and not out.is_symlink():
            return
        if out.is_symlink() or not out.is_dir():
            raise ConfigError(f"--out {out} is not a directory; give one that is new, empty, or an earlier release")
        entries = {entry.name for entry in out.iterdir()}
    except OSError as error:
        raise ConfigError(f"--out {out} cannot be read: {error.strerror}") from None
    if entries and not (manifest.MANIFEST_NAME in entries and entries <= _OURS):
        found = ", ".join(sorted(entries - _OURS)[:3]) or "no manifest"
        raise ConfigError(
            f"--out {out} already holds something else ({found}); give a directory that is new, empty, or an earlier release"
        )


@contextlib.contextmanager
def _staging(out: Path) -> Iterator[Path]:
    """Give a folder beside `out` until the block ends, and remove those of builds that were killed."""
    prefix = f".{out.name or 'release'}-building-"
    with contextlib.ExitStack() as stack:
        try:
            for left in out.parent.glob(f"{glob.escape(prefix)}*"):
                _remove_abandoned(left)
            folder = Path(tempfile.mkdtemp(prefix=prefix, dir=out.parent))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            stack.enter_context(disk.held(folder / _LOCK))
        except OSError as error:
            raise ConfigError(f"--out {out}: cannot write in {out.parent}: {error.strerror}") from None
        yield folder


def _remove_abandoned(staging: Path) -> None:
    # One without a lock may be about to get it; one that was killed while moving holds the only earlier release.
    if not (staging / _LOCK).is_file() or (staging / _EARLIER).exists():
        return
    with contextlib.suppress(OSError), disk.held(staging / _LOCK):  # another build's, which goes on
        shutil.rmtree(staging, ignore_errors=True)


def _move_into_place(finished: Path, out: Path) -> None:
    _check_target(out)  # it may have been filled while we worked
    earlier = finished.parent / _EARLIER
    try:
        if out.exists():
            out.rename(earlier)
        finished.rename(out)
    except OSError as error:
        raise ConfigError(f"--out {out} cannot be written: {error.strerror}; nothing was changed") from None
    finally:
        # Also when interrupted between the two: the earlier release would go with the staging folder.
        if earlier.exists() and not out.exists():
            earlier.rename(out)
