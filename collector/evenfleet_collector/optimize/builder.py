"""Make variants: apply a chain's techniques one after the other, run what comes out, and keep it.

Decides what makes two variants the same, and so whether one is taken from the cache: the model, the data, the chain with its
settings, the seed where something is trained, and the versions of all that has a part in it, this code included. Leaves
each step to the technique, and to `release` which variants there are.

* A form is made once: two variants may share its beginning. What was trained is kept too, so that a build that was
  interrupted goes on after the last training that ended.
* A failure is of one variant and is not kept: it may have been the machine's.
"""

from __future__ import annotations

import contextlib
import hashlib
import platform
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from evenfleet_collector.optimize import archive, built, cache, evaluate, graph, models, saved_model, sources, variants
from evenfleet_collector.optimize.built import Built, Facts
from evenfleet_collector.optimize.quiet import NoiseLog
from evenfleet_collector.optimize.subject import Fit, ModelFacts, Subject
from evenfleet_collector.optimize.technique import Form, Material, Stage, Technique
from evenfleet_collector.optimize.variants import Recipe
from evenfleet_shared import agreement, manifest, metrics
from evenfleet_shared.errors import EvenfleetError, ModelRefusedError

_KERAS_FILE: Final = "model.keras"
_MARKS_FILE: Final = "marks.json"
_Key = tuple[int, tuple[Technique, ...]]


def salt() -> str:
    """Return what stands for everything that is the same in a whole build, and may be another in the next.

    Raises:
        RuntimeMissingError: TensorFlow or LiteRT is not installed.
    """
    code = hashlib.sha256()
    folder = Path(__file__).parent
    for file in (*sorted(folder.rglob("*.py")), *(Path(str(each.__file__)) for each in (agreement, manifest, metrics))):
        code.update(file.read_bytes())
    machine = (platform.machine(), platform.python_version(), models.onnx_environment())
    return cache.key(code.hexdigest(), *machine, *(f"{name} {it}" for name, it in models.all_versions().items()))


class Builder:
    """Makes the variants of one model on one set of data."""

    def __init__(
        self,
        subject: Subject,
        facts: ModelFacts,
        fit: Fit,
        material: Material,
        *,
        salt: str,
        kept: cache.Cache,
        noise: NoiseLog,
        say: Callable[[str], None],
    ) -> None:
        self._subject = subject
        self._material = material
        self._stage: Stage = facts.stage
        self._kept = kept
        self._noise = noise
        self._say = say
        model = (facts.digest, fit.answers_sha256 or "", str(fit.classes), fit.output_kind)
        self._made_from = (salt, *model, material.data.digest)
        self._start: Form | None = None
        self._forms: dict[_Key, Form | EvenfleetError] = {}
        self._exports: dict[_Key, Form] = {}

    def build(self, wanted: Recipe, seed: int) -> Built:
        """Return a variant, from the cache or made now.

        Raises:
            ModelRefusedError: It cannot be built of this model; says why.
            RuntimeMissingError: What a technique needs is not installed.
        """
        reason = variants.misfit(wanted.chain, self._stage)
        if reason is not None:
            raise ModelRefusedError(reason)
        chain = variants.filled(wanted.chain, self._stage)
        name = self._name("variant", chain, seed)
        entry = self._kept.find(name)
        if entry is None:
            form = self._form(wanted.name, chain, seed)
            self._say(f"{wanted.name}: measuring on {len(self._material.data.x_test)} test samples")
            entry = self._kept.put(name, lambda folder: self._run(form, folder))
        else:
            self._say(f"{wanted.name}: from the cache")
        return built.read(entry, wanted)

    def _name(self, kind: str, chain: tuple[Technique, ...], seed: int) -> str:
        return cache.key(kind, *self._made_from, str(self._seed(chain, seed)), *(step.described for step in chain))

    def _seed(self, chain: tuple[Technique, ...], seed: int) -> int:
        # What is not trained is the same with every seed.
        return seed if any(step.takes == "keras" for step in chain) else self._material.seed

    def _form(self, variant: str, chain: tuple[Technique, ...], seed: int) -> Form:
        """Return the form after `chain`, made once, and its failure too."""
        if not chain:
            if self._start is None:
                opened = self._subject.opened()
                with self._noise.taking():
                    self._start = opened.form(self._material)
            return self._start
        key = (self._seed(chain, seed), chain)
        if key not in self._forms:
            try:
                self._forms[key] = self._kept_or_made(variant, chain, seed)
            except EvenfleetError as error:
                self._forms[key] = error
        found = self._forms[key]
        if isinstance(found, EvenfleetError):
            raise found
        return found

    def _kept_or_made(self, variant: str, chain: tuple[Technique, ...], seed: int) -> Form:
        if chain[-1].gives != "keras":
            return self._made(variant, chain, seed)
        name = self._name("keras", chain, seed)
        entry = self._kept.find(name)
        if entry is not None:
            self._subject.opened()  # for TensorFlow, and the names of layers, which begin anew with the model
            with contextlib.suppress(Exception), self._noise.taking():
                return _read_keras(entry)
        form = self._made(variant, chain, seed)
        # A model that Keras cannot write, or read again without running code, is made again after an interruption.
        with contextlib.suppress(Exception), self._noise.taking():
            self._kept.put(name, lambda folder: _write_keras(folder, form))
        return form

    def _made(self, variant: str, chain: tuple[Technique, ...], seed: int) -> Form:
        before = self._form(variant, chain[:-1], seed)
        step = chain[-1]
        self._say(f"{variant}: {step.name}")
        material = replace(self._material, seed=self._seed(chain, seed))
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

    def _run(self, form: Form, folder: Path) -> None:
        """Write a variant's artifact into `folder`, run it on the test samples, and write what is then known."""
        try:
            with self._noise.taking():
                facts, outputs = self._answers(form, folder)
        except EvenfleetError:
            raise
        except Exception as error:
            raise ModelRefusedError(f"built, but does not run: {self._explain(error)}") from error
        if not np.isfinite(outputs).all():
            raise ModelRefusedError("built, but gives NaN or infinite scores on the test samples")
        built.write(folder, facts, outputs)

    def _answers(self, form: Form, folder: Path) -> tuple[Facts, Any]:
        artifact: evaluate.TFLiteArtifact | evaluate.SavedModelArtifact
        read: graph.GraphFacts | None = None
        if form.tflite is not None:
            file = folder / "artifact.tflite"
            shutil.copyfile(form.tflite, file)
            artifact = evaluate.TFLiteArtifact(file)
            read = graph.read(form.tflite.read_bytes())
        else:
            assert form.saved_model is not None
            file = folder / "artifact.tar"
            archive.pack(form.saved_model, file)
            artifact = evaluate.SavedModelArtifact(form.saved_model)
        facts = Facts(
            file=file.name,
            format=artifact.format,
            input=artifact.input,
            output=artifact.output,
            compressed_bytes=built.compressed_size(file),
            parameters=read.parameters if read else form.parameters,
            macs=read.macs if read else None,
            operators=read.operators if read else (),
            min_runtime_version=read.min_runtime_version if read else None,
            calibration=form.calibration,
            notes=form.notes,
        )
        return facts, artifact.outputs(self._material.data.x_test)

    def _explain(self, error: Exception) -> str:
        said = self._noise.last_line()
        text = sources.one_line(error)
        return text if not said or said in text else f"{text} ({said})"


def _write_keras(folder: Path, form: Form) -> None:
    form.keras.save(folder / _KERAS_FILE)
    (folder / _MARKS_FILE).write_bytes(msgspec.json.encode({"pruned": form.pruned, "clustered": form.clustered}))


def _read_keras(folder: Path) -> Form:
    import keras

    model = keras.models.load_model(folder / _KERAS_FILE, compile=False, safe_mode=True)
    marks = msgspec.json.decode((folder / _MARKS_FILE).read_bytes(), type=dict[str, bool])
    return Form(stage="keras", keras=model, pruned=marks["pruned"], clustered=marks["clustered"])
