"""Build a release directory: read, build each variant, time them, write the manifest, rename into place.

Decides the order and what a failure costs: one that is about a single variant lands in the manifest's `missing`, any
other ends the build and leaves nothing behind but what the cache keeps. Leaves making variants to `builder`, timing to
`timing`, what they are worth to `appraise`, what the manifest says to `describe`, and the directory to `place`.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from evenfleet_collector.optimize import (
    appraise,
    datasets,
    describe,
    forecast,
    gain,
    ladder,
    models,
    place,
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
from evenfleet_shared import __version__, manifest
from evenfleet_shared.errors import ConfigError, EvenfleetError, ModelRefusedError
from evenfleet_shared.manifest import Manifest, MissingVariant, Variant
from evenfleet_shared.messages import Name

DEFAULT_GOLDEN: Final = 300
DEFAULT_SEED: Final = 0
DEFAULT_CLASS: Final = "build-machine"

# Where the variant that should be the reference was not built.
_OTHER_REFERENCES: Final = ("float32", "saved-model")
_MAX_REASON: Final = 480


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
        rescue_drop_ratio: A full int8 variant that loses more accuracy than this against its own form in float is built
            once more, with its worst operators in float (`rescue`); None rescues none.
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
    place.check(out)
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
    with place.staging(out) as staging:
        build = _Build(order, staging, Cache(cache_folder or staging / "cache"), _Steps(report))
        manifest_bytes, rows, labelled = build.run(parsed_model, parsed_data)
        built = manifest.decode(manifest_bytes, str(out))
        place.move(staging / "release", out)
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
            below = {one.recipe.name for one in self._built if self._lost_to_int8(one) > order.rescue_drop_ratio}
            self._add(variants.rescued(recipes, below, order.rescue_drop_ratio))
        while more := self._wanted_for_target(facts):
            self._add(more[:1])
        reference = self._reference()
        rows = [self._with_gain(row, built) for row, built in zip(self._rows(), self._built, strict=True)]
        self._steps.begin("writing the manifest")
        rows = list(appraise.beside_each_other(rows, reference.recipe.name))
        written = Manifest(
            model=describe.model_name(model_source.short_name),
            reference_variant=reference.recipe.name,
            variants=tuple(self._entries.values()),
            golden=describe.write_golden(self._release, reference, labelled, self._golden, classes=fit.classes),
            preprocessing=describe.preprocessing(labelled),
            lineage={
                "model": model_source.name,
                "model_sha256": facts.digest,
                "data": "arrays" if isinstance(data_source, LabelledData) else data_source.name,
                "data_sha256": labelled.digest,
                "seed": str(order.seed),
                "evenfleet": __version__,
                "python": platform.python_version(),
                "machine": platform.machine(),
                **describe.class_names(labelled),
                **models.versions(),
                **facts.lineage,
                **recipe.lineage([each.recipe for each in self._built]),
                **({"target": ", ".join(map(str, order.target))} if order.target else {}),
            },
            missing=tuple(self._missing),
            envelope=tuple(
                describe.envelope(
                    row,
                    row.timing,
                    device_class=order.device_class,
                    machine=timing.machine(),
                    test_n=len(labelled.x_test),
                )
                for row in rows
                if row.timing is not None
            ),
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
        entries = {
            each.recipe.name: describe.entry(self._release, each, self._reference(), self._data, self._golden)
            for each in built
        }
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

    def _lost_to_int8(self, built: Built) -> float:
        """Return how much accuracy a full int8 variant lost against its own form in float; what training lost is no part."""
        plain = variants.in_float(built.recipe)
        if plain is None:
            return 0.0
        self._steps.say(f"{built.recipe.name}: against its float form")
        try:
            other = self._builder.build(plain, self._order.seed)
        except EvenfleetError:  # then there is nothing to hold it against
            return 0.0
        labels = self._data.y_test
        return (int(other.correct(labels).sum()) - int(built.correct(labels).sum())) / len(labels)

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


def _check_device_class(name: str) -> None:
    try:
        msgspec.convert(name, Name)
    except msgspec.ValidationError:
        raise ConfigError(
            f"--device-class {name!r}: expected 1 to 64 letters, digits, '.', '_', '+' and '-', the first a letter or digit"
        ) from None
