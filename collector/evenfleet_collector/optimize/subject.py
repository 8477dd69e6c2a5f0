"""The model that was given: what is known of it is kept, and it is opened only when something must be made of it.

A file's digest is known without opening it, and what opening and trying it out would say is kept under that; so a build
that finds everything in the cache loads no TensorFlow. A function is a program, and called each time: nobody else
knows what it gives.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from evenfleet_collector.optimize import cache, models
from evenfleet_collector.optimize.data import LabelledData
from evenfleet_collector.optimize.models import OpenedModel
from evenfleet_collector.optimize.quiet import NoiseLog
from evenfleet_collector.optimize.sources import ModelSource
from evenfleet_collector.optimize.technique import OutputKind, Stage

_FACTS: Final = "facts.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What is known of a model once it was opened; see `OpenedModel`."""

    stage: Stage
    sample_shape: tuple[int | None, ...] | None
    digest: str
    own_name: str | None = None
    lineage: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """What is known of a model once it was run on the data; see `CheckedModel`.

    `answers_sha256` is of the model that a function gave: its digest is of configuration and weights, and layers and
    models of the user's own have code besides, which may change and leave both as they are.
    """

    classes: int
    output_kind: OutputKind
    answers_sha256: str | None = None


class Subject:
    """One model of one build."""

    def __init__(
        self,
        source: ModelSource,
        *,
        seed: int,
        salt: str,
        work: Path,
        kept: cache.Cache,
        noise: NoiseLog,
        say: Callable[[str], None],
    ) -> None:
        self._source = source
        self._seed = seed
        self._salt = salt
        self._work = work
        self._kept = kept
        self._noise = noise
        self._say = say
        self._opened: OpenedModel | None = None
        self._digest = models.digest(source)

    def opened(self) -> OpenedModel:
        """Return the model, loaded the first time; imports TensorFlow.

        Raises:
            ModelRefusedError: It cannot be loaded.
            ConfigError: There is no such function.
            RuntimeMissingError: TensorFlow, or what loads the model, is not installed.
        """
        if self._opened is None:
            self._say("starting TensorFlow")
            with self._noise.taking():
                models.import_tensorflow()
            self._say("loading model")
            with self._noise.taking():
                import keras

                keras.utils.clear_session()  # names of layers start anew: they end up in the files
                keras.utils.set_random_seed(self._seed)
                self._opened = models.open_model(self._source, self._work)
        return self._opened

    def facts(self) -> ModelFacts:
        """Return what is known of it; raises as `opened` does."""
        if self._digest is None:
            return _facts(self.opened())
        name = cache.key("model", self._salt, self._digest, self._source.name)
        entry = self._kept.find(name) or self._kept.put(name, lambda folder: _write(folder, _facts(self.opened())))
        return msgspec.json.decode((entry / _FACTS).read_bytes(), type=ModelFacts)

    def fit(self, facts: ModelFacts, data: LabelledData) -> Fit:
        """Return what it is to the data.

        Raises:
            ModelRefusedError: It is no classifier.
            DataError: The data's samples or labels do not fit it.
        """
        if self._digest is None:
            return self._tried_on(data)
        name = cache.key("fit", self._salt, facts.digest, data.digest, *data.class_names)
        entry = self._kept.find(name) or self._kept.put(name, lambda folder: _write(folder, self._tried_on(data)))
        return msgspec.json.decode((entry / _FACTS).read_bytes(), type=Fit)

    def _tried_on(self, data: LabelledData) -> Fit:
        opened = self.opened()
        with self._noise.taking():
            checked = opened.checked(data)
        answers = hashlib.sha256(checked.scores.tobytes()).hexdigest() if self._digest is None else None
        return Fit(classes=checked.classes, output_kind=checked.output_kind, answers_sha256=answers)


def _facts(opened: OpenedModel) -> ModelFacts:
    return ModelFacts(
        stage=opened.stage,
        sample_shape=opened.sample_shape,
        digest=opened.digest,
        own_name=opened.own_name,
        lineage=dict(opened.lineage),
    )


def _write(folder: Path, known: ModelFacts | Fit) -> None:
    (folder / _FACTS).write_bytes(msgspec.json.encode(known))
