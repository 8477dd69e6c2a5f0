"""Build a release directory: load, apply each variant's techniques, measure, write the manifest, rename into place.

Decides the order and what a failure costs: one that is about a single variant lands in the manifest's `missing`, any
other ends the build and leaves nothing behind. Leaves each step to the module that owns it.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from evenfleet_collector.optimize import (
    archive,
    datasets,
    evaluate,
    gain,
    graph,
    models,
    recipe,
    saved_model,
    sources,
    strata,
    variants,
)
from evenfleet_collector.optimize.data import LabelledData, Samples
from evenfleet_collector.optimize.datasets import DataOptions, Wanted
from evenfleet_collector.optimize.gain import Gain
from evenfleet_collector.optimize.quiet import NoiseLog
from evenfleet_collector.optimize.technique import Form, Material, Technique
from evenfleet_collector.optimize.variants import Recipe
from evenfleet_shared import __version__, manifest, metrics, trust
from evenfleet_shared.errors import ConfigError, EvenfleetError, ModelRefusedError
from evenfleet_shared.manifest import Format, Golden, Manifest, MissingVariant, TensorSpec, Variant
from evenfleet_shared.messages import Agreement

DEFAULT_GOLDEN: Final = 300
DEFAULT_SEED: Final = 0
_Key = tuple[int, tuple[Technique, ...]]

_REFERENCES: Final = ("float32", "saved-model")
_MAX_REASON: Final = 480
_OURS: Final = frozenset({manifest.MANIFEST_NAME, "artifacts", "golden", trust.FOLDER})


@dataclass(frozen=True, slots=True)
class Progress:
    """Step `step` of `steps` begins."""

    step: int
    steps: int
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantReport:
    """One variant's row: accuracy and `class_accuracy_ratios` on the whole test set, agreement on the golden set.

    `delta_ratio` is the accuracy minus the reference variant's; `size_ratio` is size over the reference's; `gain` is
    what its last trained technique itself brought, None where none is trained, or `no_gain` says why it is not known.
    """

    name: str
    format: Format
    techniques: tuple[str, ...]
    accuracy_ratio: float
    class_accuracy_ratios: tuple[float, ...]
    delta_ratio: float
    size_bytes: int
    size_ratio: float
    agreement: Agreement
    gain: Gain | None = None
    no_gain: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildReport:
    """What was built. `digest` is the release's name."""

    directory: Path
    digest: str
    manifest: Manifest
    test_n: int
    variants: tuple[VariantReport, ...]
    missing: tuple[MissingVariant, ...]
    elapsed_s: float


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
    report: Callable[[Progress], None] = lambda _: None,
) -> BuildReport:
    """Build a release from a model and labelled data.

    Redirects the process's descriptors 1 and 2 while TensorFlow works (see `quiet`); `report` is called outside of
    that, on the caller's thread.

    Args:
        model_source: What `models.parse` takes: a file, a directory, or ``module:function`` returning a Keras model.
        data_source: What `datasets.parse` takes, or data already read.
        out: The directory to make. An earlier release there is replaced, anything else refused.
        recipes: The variants; the first is the reference.
        seed: Decides splits, the golden set and training.
        golden_n: Test samples in the golden set; all of them where there are fewer.
        only: Variants to build beside the reference; empty for all.
        seeds: How many times a trained variant and its control are trained to say what the technique brings; 0 trains
            no controls. What is released is of the first seed.
        data_options: What is said of the data beside its name.
        report: Told before every step.

    Raises:
        ConfigError: A source or variant does not exist, or `out` cannot be written.
        DataError: The data is unacceptable or does not fit the model.
        ModelRefusedError: The model cannot be loaded, is no classifier, or no variant at all could be built.
        RuntimeMissingError: TensorFlow is not installed.
    """
    started_s = time.monotonic()
    chosen = variants.select(recipes, only)
    parsed_model = models.parse(model_source)
    parsed_data = data_source if isinstance(data_source, LabelledData) else datasets.parse(data_source)
    if golden_n < 1:
        raise ConfigError(f"the golden set needs at least 1 sample, found {golden_n}")
    out = Path(os.path.abspath(out))  # noqa: PTH100 - resolve() would follow a link that is to be refused
    _check_target(out)
    staging = _make_staging(out)
    try:
        build = _Build(
            staging, chosen, seed=seed, golden_n=golden_n, seeds=seeds, data_options=data_options, report=report
        )
        manifest_bytes, rows = build.run(parsed_model, parsed_data)
        _move_into_place(staging / "release", out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    built = manifest.decode(manifest_bytes, str(out))
    return BuildReport(
        directory=out,
        digest=manifest.digest(manifest_bytes),
        manifest=built,
        test_n=build.test_n,
        variants=rows,
        missing=built.missing,
        elapsed_s=time.monotonic() - started_s,
    )


@dataclass(frozen=True, slots=True)
class _Built:
    """A variant whose artifact is written, with its outputs."""

    recipe: Recipe
    format: Format
    file: str
    input: TensorSpec
    output: TensorSpec
    facts: graph.GraphFacts | None
    parameters: int | None
    golden_outputs: Samples
    correct: npt.NDArray[np.bool_]
    test_counts: metrics.ClassCounts


class _Build:
    """One build. Holds what the steps share; every method is one step or a part of one."""

    def __init__(
        self,
        staging: Path,
        recipes: tuple[Recipe, ...],
        *,
        seed: int,
        golden_n: int,
        seeds: int,
        data_options: DataOptions,
        report: Callable[[Progress], None],
    ) -> None:
        self._recipes = recipes
        self._seeds = seeds
        self._seed = seed
        self._golden_n = golden_n
        self._data_options = data_options
        self._report = report
        self._release = staging / "release"
        self._work = staging / "work"
        self._noise = NoiseLog(staging / "noise.log")
        for folder in (self._work, self._release / "artifacts", self._release / "golden"):
            folder.mkdir(parents=True)
        # By seed and steps: two variants may share their beginnings.
        self._forms: dict[_Key, Form | EvenfleetError] = {}
        self._exports: dict[_Key, Form] = {}
        self._step = 0
        chains = {one.chain[: end + 1] for one in recipes for end in range(len(one.chain))}
        self._steps = (
            4 + len(chains) + len(recipes) + seeds * sum(variants.control(one.chain) is not None for one in recipes)
        )
        self.test_n = 0

    def run(
        self, model_source: sources.ModelSource, data_source: sources.Source | LabelledData
    ) -> tuple[bytes, tuple[VariantReport, ...]]:
        """Build everything into the staging folder."""
        self._tell("starting TensorFlow")
        with self._noise.taking():
            versions = models.import_tensorflow()
        self._tell("loading model")
        with self._noise.taking():
            import keras

            keras.utils.clear_session()  # names of layers start anew: they end up in the files
            keras.utils.set_random_seed(self._seed)
            opened = models.open_model(model_source, self._work)
        self._tell("reading data")
        with self._noise.taking():
            labelled = data_source if isinstance(data_source, LabelledData) else self._read(data_source, opened)
            loaded = opened.checked(labelled)
            material = Material(
                data=labelled,
                classes=loaded.classes,
                output_kind=loaded.output_kind,
                seed=self._seed,
                folder=self._work,
            )
            self._start = opened.form(material)
        if opened.own_name is not None:
            self._recipes = variants.starting_from_file(self._recipes, opened.own_name)
        self.test_n = len(labelled.x_test)
        golden = strata.choose(labelled.y_test, self._golden_n, self._seed)

        built: list[_Built] = []
        missing: list[MissingVariant] = []
        for one in self._recipes:
            try:
                built.append(self._variant(one, material, golden))
            except EvenfleetError as error:  # noqa: PERF203 - a variant takes seconds
                missing.append(MissingVariant(name=one.name, reason=str(error)[:_MAX_REASON]))
        if not built:
            raise ModelRefusedError(f"no variant could be built; {missing[0].name}: {missing[0].reason}")

        self._tell("writing the manifest")
        reference = _reference(built)
        written = Manifest(
            model=_name(model_source.short_name),
            reference_variant=reference.recipe.name,
            variants=tuple(self._entry(each, reference, labelled, golden) for each in built),
            golden=self._write_golden(labelled, golden, reference, loaded.classes),
            preprocessing=_preprocessing(labelled),
            lineage={
                "model": model_source.name,
                "model_sha256": opened.digest,
                "data": "arrays" if isinstance(data_source, LabelledData) else data_source.name,
                "data_sha256": labelled.digest,
                "seed": str(self._seed),
                "evenfleet": __version__,
                "python": platform.python_version(),
                "machine": platform.machine(),
                **_class_names(labelled),
                **versions,
                **opened.lineage,
                **recipe.lineage([each.recipe for each in built]),
            },
            missing=tuple(missing),
        )
        payload = manifest.encode(written)
        (self._release / manifest.MANIFEST_NAME).write_bytes(payload)
        size_bytes = written.variant(reference.recipe.name).artifact.size_bytes
        return payload, tuple(
            self._with_gain(_row(each, variant, reference, size_bytes), each, material, golden)
            for each, variant in zip(built, written.variants, strict=True)
        )

    def _read(self, source: sources.Source, opened: models.OpenedModel) -> LabelledData:
        wanted = Wanted(seed=self._seed, sample_shape=opened.sample_shape, options=self._data_options)
        return datasets.read(source, wanted)

    def _variant(self, wanted: Recipe, material: Material, golden: strata.Indices) -> _Built:
        reason = variants.misfit(wanted.chain, self._start.stage)
        if reason is not None:
            raise ModelRefusedError(reason)
        return self._built(wanted, material, golden, self._release / "artifacts")

    def _with_gain(
        self, row: VariantReport, built: _Built, material: Material, golden: strata.Indices
    ) -> VariantReport:
        try:
            return replace(row, gain=self._gain(built, material, golden))
        except EvenfleetError as error:
            # The variant is built: what cannot be said is what its technique is worth.
            return replace(row, no_gain=f"its control was not built: {error}"[:_MAX_REASON])

    def _gain(self, built: _Built, material: Material, golden: strata.Indices) -> Gain | None:
        """Train the variant's matched control, and both with other seeds, and return what the technique brought."""
        place, chain = variants.last_idea(built.recipe.chain), variants.control(built.recipe.chain)
        if place is None or chain is None or not self._seeds:
            return None
        control = Recipe(f"control of {built.recipe.name}", chain)
        pairs = []
        for seed in range(self._seed, self._seed + self._seeds):
            other = replace(material, seed=seed)
            variant = built if seed == self._seed else self._built(built.recipe, other, golden, self._work)
            pairs.append((variant.correct, self._built(control, other, golden, self._work).correct))
        return gain.of(built.recipe.chain[place].name, control.words, pairs)

    def _built(self, wanted: Recipe, material: Material, golden: strata.Indices, folder: Path) -> _Built:
        form = self._form(wanted, variants.filled(wanted.chain, self._start.stage), material)
        self._tell(f"{wanted.name}: measuring on {self.test_n} test samples")
        try:
            with self._noise.taking():
                return self._measured(wanted, form, material, golden, folder)
        except EvenfleetError:
            raise
        except Exception as error:
            raise ModelRefusedError(f"built, but does not run: {self._explain(error)}") from error

    def _form(self, wanted: Recipe, chain: tuple[Technique, ...], material: Material) -> Form:
        """Return the form after `chain`, made once: two variants may share its beginning, and its failure."""
        if not chain:
            return self._start
        # What is not trained is the same with every seed.
        trained = any(step.takes == "keras" for step in chain)
        key = (material.seed if trained else self._seed, chain)
        if key not in self._forms:
            try:
                self._forms[key] = self._made(wanted, chain, material)
            except EvenfleetError as error:
                self._forms[key] = error
        found = self._forms[key]
        if isinstance(found, EvenfleetError):
            raise found
        return found

    def _made(self, wanted: Recipe, chain: tuple[Technique, ...], material: Material) -> Form:
        before = self._form(wanted, chain[:-1], material)
        step = chain[-1]
        self._tell(f"{wanted.name}: {step.name}")
        try:
            with self._noise.taking():
                return step.apply(self._exported(chain[:-1], before, material, wanted=step.takes), material)
        except EvenfleetError:
            raise
        except Exception as error:
            raise ModelRefusedError(f"{step.name}: {self._explain(error)}") from error

    def _exported(self, chain: tuple[Technique, ...], form: Form, material: Material, *, wanted: str) -> Form:
        if form.stage != "keras" or wanted != "saved_model":
            return form
        key = (material.seed, chain)
        if key not in self._exports:
            exported = saved_model.export_keras(form.keras, material.data.sample_shape, material)
            self._exports[key] = replace(exported, pruned=form.pruned, clustered=form.clustered)
        return self._exports[key]

    def _measured(self, wanted: Recipe, form: Form, material: Material, golden: strata.Indices, folder: Path) -> _Built:
        facts = None
        labelled = material.data
        artifact: evaluate.TFLiteArtifact | evaluate.SavedModelArtifact
        if form.tflite is not None:
            file = folder / f"{wanted.name}.tflite"
            shutil.copyfile(form.tflite, file)
            artifact = evaluate.TFLiteArtifact(file)
            facts = graph.read(form.tflite.read_bytes())
            outputs = artifact.outputs(labelled.x_test)
        else:
            assert form.saved_model is not None
            file = folder / f"{wanted.name}.tar"
            archive.pack(form.saved_model, file)
            artifact = evaluate.SavedModelArtifact(form.saved_model)
            outputs = artifact.outputs(labelled.x_test)
        if not np.isfinite(outputs).all():
            raise ModelRefusedError("built, but gives NaN or infinite scores on the test samples")
        return _Built(
            recipe=wanted,
            format=artifact.format,
            file=f"artifacts/{file.name}",
            input=artifact.input,
            output=artifact.output,
            facts=facts,
            parameters=facts.parameters if facts else form.parameters,
            golden_outputs=outputs[golden],
            correct=outputs.argmax(axis=1) == labelled.y_test,
            test_counts=metrics.class_counts(
                labelled.y_test.tolist(), outputs.argmax(axis=1).tolist(), material.classes
            ),
        )

    def _entry(self, built: _Built, reference: _Built, labelled: LabelledData, golden: strata.Indices) -> Variant:
        return Variant(
            name=built.recipe.name,
            format=built.format,
            artifact=manifest.file_ref(self._release, built.file),
            techniques=built.recipe.words,
            input=built.input,
            output=built.output,
            parameters=built.parameters,
            macs=built.facts.macs if built.facts else None,
            operators=built.facts.operators if built.facts else (),
            min_runtime_version=built.facts.min_runtime_version if built.facts else None,
            reference=evaluate.reference_result(
                built.golden_outputs, labelled.y_test[golden], reference.golden_outputs, built.output.scale
            ),
        )

    def _write_golden(self, labelled: LabelledData, golden: strata.Indices, reference: _Built, classes: int) -> Golden:
        arrays: dict[str, Any] = {
            "inputs": labelled.x_test[golden].astype("<f4"),
            "labels": labelled.y_test[golden].astype("<i8"),
            "outputs": reference.golden_outputs.astype("<f4"),
        }
        for name, array in arrays.items():
            np.save(self._release / "golden" / f"{name}.npy", array, allow_pickle=False)
        inputs, labels, outputs = (manifest.file_ref(self._release, f"golden/{name}.npy") for name in arrays)
        return Golden(n=len(golden), classes=classes, inputs=inputs, labels=labels, outputs=outputs)

    def _explain(self, error: Exception) -> str:
        said = self._noise.last_line()
        text = sources.one_line(error)
        return text if not said or said in text else f"{text} ({said})"

    def _tell(self, label: str) -> None:
        self._step += 1
        self._report(Progress(min(self._step, self._steps), self._steps, label))


def _reference(built: Sequence[_Built]) -> _Built:
    """Return the variant that the others are compared with: float32, or what comes closest of those that were built."""
    for name in _REFERENCES:
        for each in built:
            if each.recipe.name == name:
                return each
    return built[0]


def _row(built: _Built, variant: Variant, reference: _Built, reference_size_bytes: int) -> VariantReport:
    return VariantReport(
        name=variant.name,
        format=variant.format,
        techniques=variant.techniques,
        accuracy_ratio=built.test_counts.accuracy_ratio,
        class_accuracy_ratios=built.test_counts.class_accuracy_ratios,
        delta_ratio=built.test_counts.accuracy_ratio - reference.test_counts.accuracy_ratio,
        size_bytes=variant.artifact.size_bytes,
        size_ratio=variant.artifact.size_bytes / reference_size_bytes,
        agreement=variant.reference.agreement,
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


def _make_staging(out: Path) -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix=f".{out.name or 'release'}-building-", dir=out.parent))
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot write in {out.parent}: {error.strerror}") from None


def _move_into_place(finished: Path, out: Path) -> None:
    _check_target(out)  # it may have been filled while we worked
    earlier = finished.parent / "earlier"
    try:
        if out.exists():
            out.rename(earlier)
        finished.rename(out)
    except OSError as error:
        if earlier.exists() and not out.exists():
            earlier.rename(out)
        raise ConfigError(f"--out {out} cannot be written: {error.strerror}; nothing was changed") from None
