"""Read, write and check a release: an immutable directory, named by the sha256 of its manifest.

    manifest.json      canonical JSON; everything below is named in it with size and sha256
    artifacts/         one file per variant: a .tflite, or a SavedModel as a tar
    golden/            inputs.npy, labels.npy (not of a task without labels), outputs.npy: real test samples, the reference's outputs

Decides whether the files are those of the manifest. Leaves to others what is in them (`runtimes`), where they come
from (`fetch`) and who signed them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from evenfleet_shared.errors import ArtifactError, ReleaseError
from evenfleet_shared.messages import Agreement, Count, Digest, Finite, Milliseconds, Name, Ratio, Seq, Task, Text

MANIFEST_NAME: Final = "manifest.json"
MAX_MANIFEST_BYTES: Final = 4 * 1024 * 1024
MAX_VARIANTS: Final = 64
_CHUNK_BYTES: Final = 1 << 20

# One known folder, one plain name: never a path that could leave the release.
RelativeFile = Annotated[str, Meta(pattern=r"^(artifacts|golden)/[A-Za-z0-9][A-Za-z0-9._+-]{0,127}$(?!\n)")]
Format = Literal["tflite", "saved_model", "onnx"]
DetectionPart = Literal["boxes", "classes", "scores", "count"]

# How many classes a golden set has at least, by task; a task that is not here has no classes, and so no counts of any.
LEAST_CLASSES: Final[dict[Task, int]] = {"classification": 2, "multi-label": 1, "detection": 1, "segmentation": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRef:
    """One file of the release."""

    file: RelativeFile
    sha256: Digest
    size_bytes: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """An input or output; `shape` has -1 where any size goes, `scale` and `zero_point` are of a quantised tensor."""

    name: Text
    shape: tuple[int, ...]
    dtype: Name
    scale: float | None = None
    zero_point: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Criteria:
    """What makes a golden sample right, as far as its task leaves that open; `docs/tasks.md` says which task reads which.

    Part of the golden set, so that whoever builds a release and every device that runs it score by the same.

    Attributes:
        score_threshold: From which score a class, a label or an object counts as claimed.
        iou_threshold: The least overlap of a found object with its label, or of a sample's classes with their labels.
        cosine_threshold: The least cosine of an embedding with the one it should be.
        tolerance: The largest difference: of a regression in its own unit, of unlabelled outputs as a share of the
            reference's. A regression has no default.
        detection_outputs: What a detector's output tensors are, in its own order, where their names do not tell.
    """

    score_threshold: Finite = 0.5
    iou_threshold: Annotated[float, Meta(gt=0.0, le=1.0)] = 0.5
    cosine_threshold: Annotated[float, Meta(ge=-1.0, le=1.0)] = 0.9
    tolerance: Annotated[float, Meta(ge=0.0, le=1e300)] | None = None
    detection_outputs: Annotated[tuple[DetectionPart, ...], Meta(max_length=4)] = ()

    def __post_init__(self) -> None:
        named = self.detection_outputs
        if named and (len(set(named)) != len(named) or {"boxes", "classes", "scores"} - set(named)):
            raise ValueError(
                "criteria.detection_outputs must name boxes, classes and scores, and perhaps count, once each"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceResult:
    """What the variant scored on the golden set where the release was built.

    The fields are those of `messages.Accuracy`: `tp`, `fp` and `fn` are empty for a task without classes, `metric` and
    `score` are there for tasks that have another headline than the share of right samples.
    """

    n: Seq
    errors: Count
    tp: tuple[Count, ...] = ()
    fp: tuple[Count, ...] = ()
    fn: tuple[Count, ...] = ()
    correct: Annotated[str, Meta(pattern=r"^[01]+$(?!\n)", description="one digit per golden sample: 1 is right")]
    prediction_digest: Digest
    agreement: Agreement
    metric: Name | None = None
    score: Finite | None = None

    def __post_init__(self) -> None:
        if len(self.correct) != self.n or self.correct.count("0") != self.errors:
            raise ValueError("reference.correct does not match n and errors")
        if not len(self.tp) == len(self.fp) == len(self.fn):
            raise ValueError(
                f"reference.tp, fp and fn count {len(self.tp)}, {len(self.fp)} and {len(self.fn)} classes; "
                "they must be as many"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Which samples the ranges of a quantised variant were taken from.

    `sha256` is over the samples as they were fed: float32, little-endian, one after the other. Whoever has the data draws
    them again with `n` and `seed`, and knows by it that they are the same.
    """

    n: Seq
    of: Literal["train"] = "train"
    seed: Count
    sha256: Digest
    class_counts: tuple[Count, ...]

    def __post_init__(self) -> None:
        if sum(self.class_counts) != self.n:
            raise ValueError(
                f"calibration.class_counts add up to {sum(self.class_counts)}, calibration.n is {self.n}; "
                "they must be as many"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One form of the model, as one artifact; `calibration` where its ranges were taken from samples."""

    name: Name
    format: Format
    artifact: FileRef
    techniques: tuple[Name, ...]
    input: TensorSpec
    output: TensorSpec
    parameters: Count | None = None
    macs: Count | None = None
    operators: tuple[Text, ...] = ()
    min_runtime_version: Text | None = None
    reference: ReferenceResult
    calibration: Calibration | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Golden:
    """Real test samples: inputs float32 as the float32 model takes them, labels as the task has them, the reference's outputs.

    `classes` and `labels` are there where the task has such (`docs/tasks.md`); the outputs are float32, one entry a sample.
    """

    n: Seq
    classes: Annotated[int, Meta(ge=1, le=1001)] | None = None
    inputs: FileRef
    labels: FileRef | None = None
    outputs: FileRef
    criteria: Criteria = Criteria()

    @property
    def files(self) -> tuple[FileRef, ...]:
        """Return the files of the set."""
        return (self.inputs, *(() if self.labels is None else (self.labels,)), self.outputs)

    @property
    def digest(self) -> str:
        """Return the name of the set: what accuracies are only comparable on, criteria that are not the usual ones included."""
        name = "".join(file.sha256 for file in self.files).encode("ascii")
        if self.criteria != Criteria():
            name += msgspec.json.encode(self.criteria, order="sorted")
        return hashlib.sha256(name).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """What a variant did on one class of devices before it was released: what another device of that class can expect.

    Accuracy is that on the builder's whole test set of `test_n` samples, with Wilson's 95 % interval. `n` inferences were
    timed in `rounds` processes; each quantile is the median over these, `low` and `high` its smallest and largest.
    """

    variant: Name
    device_class: Name
    machine: Text
    runtime: Name
    runtime_version: Text
    threads: Seq
    test_n: Seq
    accuracy_ratio: Ratio
    accuracy_low_ratio: Ratio
    accuracy_high_ratio: Ratio
    n: Seq
    rounds: Seq
    p50_ms: Milliseconds
    p50_low_ms: Milliseconds
    p50_high_ms: Milliseconds
    p95_ms: Milliseconds
    p95_low_ms: Milliseconds
    p95_high_ms: Milliseconds
    peak_rss_bytes: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class MissingVariant:
    """A variant that was asked for and could not be built."""

    name: Name
    reason: Text


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A release. Holds no date: the same inputs give the same manifest and so the same name."""

    schema: Literal["release/1"] = "release/1"
    model: Name
    task: Task = "classification"
    reference_variant: Name
    variants: Annotated[tuple[Variant, ...], Meta(min_length=1, max_length=MAX_VARIANTS)]
    golden: Golden
    preprocessing: dict[str, str]
    lineage: dict[str, str]
    missing: tuple[MissingVariant, ...] = ()
    envelope: Annotated[tuple[Envelope, ...], Meta(max_length=1024)] = ()

    def __post_init__(self) -> None:
        names = [variant.name for variant in self.variants]
        if len(set(names)) != len(names):
            raise ValueError("two variants have the same name")
        if self.reference_variant not in names:
            raise ValueError(f"reference_variant {self.reference_variant!r} is not among the variants")
        _check_against_task(self.golden, self.task)
        for variant in self.variants:
            _check_against_golden(variant, self.golden, self.task)
        for expected in self.envelope:
            if expected.variant not in names:
                raise ValueError(f"envelope is of variant {expected.variant!r}, which is not among the variants")
        known: dict[str, FileRef] = {}
        for reference in self.files:
            # Each file would pass as itself, but only one of them can lie under the name.
            if known.setdefault(reference.file, reference) != reference:
                raise ValueError(f"{reference.file} is named twice, with different sha256 or size")

    def variant(self, name: str) -> Variant:
        """Return the variant called `name`.

        Raises:
            ReleaseError: There is none.
        """
        for variant in self.variants:
            if variant.name == name:
                return variant
        raise ReleaseError(
            f"release of {self.model} has no variant {name!r}; it has {', '.join(v.name for v in self.variants)}"
        )

    @property
    def files(self) -> tuple[FileRef, ...]:
        """Return every file that the manifest names."""
        return tuple(variant.artifact for variant in self.variants) + self.golden.files


def _check_against_task(golden: Golden, task: Task) -> None:
    """Refuse a golden set that its task cannot be scored on."""
    least = LEAST_CLASSES.get(task)
    if least is None and golden.classes is not None:
        raise ValueError(f"golden.classes is {golden.classes}, a release of task {task} has no classes; leave it away")
    if least is not None and (golden.classes is None or golden.classes < least):
        raise ValueError(f"golden.classes is {golden.classes}, a release of task {task} has {least} at least")
    if task == "agreement" and golden.labels is not None:
        raise ValueError("golden.labels is there, a release of task agreement has no labels; leave it away")
    if task not in {"agreement", "embedding"} and golden.labels is None:
        raise ValueError(f"golden.labels is missing, a release of task {task} has labels")
    if task == "regression" and golden.criteria.tolerance is None:
        raise ValueError("golden.criteria.tolerance is missing: say up to which difference a regression is right")


def _check_against_golden(variant: Variant, golden: Golden, task: Task) -> None:
    """Refuse a score that was not made on the manifest's own golden set: devices are compared with it."""
    reference = variant.reference
    if reference.n != golden.n:
        raise ValueError(
            f"variant {variant.name}: reference.n is {reference.n}, the golden set has {golden.n} samples; "
            "they must be as many"
        )
    classes = golden.classes or 0
    if len(reference.tp) != classes:
        raise ValueError(
            f"variant {variant.name}: reference.tp, fp and fn count {len(reference.tp)} classes, the golden set has "
            f"{classes}; they must be as many"
        )
    # A sample whose outputs are no numbers is given no class, so it is nobody's false positive.
    if task == "classification" and (
        not sum(reference.fp) <= sum(reference.fn) == reference.errors
        or sum(reference.tp) + reference.errors != reference.n
    ):
        raise ValueError(f"variant {variant.name}: reference.tp, fp and fn do not add up to n and errors")
    calibration = variant.calibration
    if calibration is not None and len(calibration.class_counts) != classes:
        raise ValueError(
            f"variant {variant.name}: calibration.class_counts has {len(calibration.class_counts)} classes, the golden set "
            f"has {classes}; they must be as many"
        )


def encode(manifest: Manifest) -> bytes:
    """Return the canonical JSON: sorted keys, no spaces.

    What a release does not have is left out, criteria that are the usual ones too: releases from before these were
    recorded keep their bytes, and so their name.
    """
    fields = msgspec.to_builtins(manifest)
    if not fields["envelope"]:
        del fields["envelope"]
    golden = fields["golden"]
    _leave_out(golden, "classes", "labels")
    if manifest.golden.criteria == Criteria():
        del golden["criteria"]
    for variant in fields["variants"]:
        _leave_out(variant, "calibration")
        _leave_out(variant["reference"], "metric", "score")
    return msgspec.json.encode(fields, order="sorted")


def _leave_out(fields: dict[str, Any], *names: str) -> None:
    for name in names:
        if fields[name] is None:
            del fields[name]


def digest(payload: bytes) -> str:
    """Return the release's name: the sha256 of its manifest's bytes."""
    return hashlib.sha256(payload).hexdigest()


def decode(payload: bytes, source: str) -> Manifest:
    """Read a manifest.

    Args:
        payload: The bytes of ``manifest.json``.
        source: Where they come from, for the error.

    Raises:
        ReleaseError: They are not a manifest.
    """
    if len(payload) > MAX_MANIFEST_BYTES:
        raise ReleaseError(f"{source}: {len(payload)} bytes, a manifest has at most {MAX_MANIFEST_BYTES}")
    try:
        return msgspec.json.decode(payload, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ReleaseError(f"{source} is not a release manifest: {error}") from None


def load(directory: Path) -> tuple[Manifest, str]:
    """Read the manifest of a release directory.

    Returns:
        The manifest and the release's digest.

    Raises:
        ReleaseError: There is none, or it is none.
    """
    path = directory / MANIFEST_NAME
    try:
        payload = path.read_bytes()
    except OSError as error:
        raise ReleaseError(
            f"{directory} is not a release: expected {path} ({error.strerror}); build one with 'evenfleet optimize'"
        ) from None
    return decode(payload, str(path)), digest(payload)


def verify(directory: Path) -> tuple[Manifest, str]:
    """Check every file of a release directory against its manifest.

    Raises:
        ArtifactError: A file is missing or is not the one that the manifest names; the first such file is named.
    """
    manifest, name = load(directory)
    for reference in manifest.files:
        check_file(directory / reference.file, reference)
    return manifest, name


def check_file(path: Path, reference: FileRef) -> None:
    """Check one file's size and digest.

    Raises:
        ArtifactError: It is missing or another file.
    """
    try:
        size = path.stat().st_size
        if size != reference.size_bytes:
            raise ArtifactError(f"{path} has {size} bytes, its manifest says {reference.size_bytes}; do not use it")
        found = file_digest(path)
    except OSError as error:
        raise ArtifactError(f"{path} of the release cannot be read: {error.strerror}") from None
    if found != reference.sha256:
        raise ArtifactError(
            f"{path} has sha256 {found[:12]}…, its manifest says {reference.sha256[:12]}…; it was changed, do not use it"
        )


def file_digest(path: Path) -> str:
    """Return a file's sha256 without reading it into memory at once."""
    running = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            running.update(chunk)
    return running.hexdigest()


def file_ref(directory: Path, file: str) -> FileRef:
    """Describe a file of a release directory that is being written."""
    path = directory / file
    return FileRef(file=file, sha256=file_digest(path), size_bytes=path.stat().st_size)
