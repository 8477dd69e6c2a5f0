"""Read, write and check a release: an immutable directory, named by the sha256 of its manifest.

    manifest.json      canonical JSON; everything below is named in it with size and sha256
    artifacts/         one file per variant: a .tflite, or a SavedModel as a tar
    golden/            inputs.npy, labels.npy, outputs.npy: real test samples and the reference's outputs

Decides whether the files are those of the manifest. Leaves to others what is in them (`runtimes`), where they come
from (`fetch`) and who signed them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from evenfleet_shared.errors import ArtifactError, ReleaseError
from evenfleet_shared.messages import Agreement, Count, Digest, Milliseconds, Name, Ratio, Seq, Text

MANIFEST_NAME: Final = "manifest.json"
MAX_MANIFEST_BYTES: Final = 4 * 1024 * 1024
MAX_VARIANTS: Final = 64
_CHUNK_BYTES: Final = 1 << 20

# One known folder, one plain name: never a path that could leave the release.
RelativeFile = Annotated[str, Meta(pattern=r"^(artifacts|golden)/[A-Za-z0-9][A-Za-z0-9._+-]{0,127}$(?!\n)")]
Format = Literal["tflite", "saved_model", "onnx"]


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
class ReferenceResult:
    """What the variant scored on the golden set where the release was built."""

    n: Seq
    errors: Count
    tp: tuple[Count, ...]
    fp: tuple[Count, ...]
    fn: tuple[Count, ...]
    correct: Annotated[str, Meta(pattern=r"^[01]+$(?!\n)", description="one digit per golden sample: 1 is right")]
    prediction_digest: Digest
    agreement: Agreement

    def __post_init__(self) -> None:
        if len(self.correct) != self.n or self.correct.count("0") != self.errors:
            raise ValueError("reference.correct does not match n and errors")
        if not len(self.tp) == len(self.fp) == len(self.fn):
            raise ValueError(
                f"reference.tp, fp and fn count {len(self.tp)}, {len(self.fp)} and {len(self.fn)} classes; "
                "they must be as many"
            )
        if not sum(self.fp) == sum(self.fn) == self.errors or sum(self.tp) + self.errors != self.n:
            raise ValueError("reference.tp, fp and fn do not add up to n and errors")


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
    """Real test samples: inputs float32 as the float32 model takes them, labels int64, the reference's outputs float32."""

    n: Seq
    classes: Annotated[int, Meta(ge=2, le=1001)]
    inputs: FileRef
    labels: FileRef
    outputs: FileRef

    @property
    def digest(self) -> str:
        """Return the name of the set: what accuracies are only comparable on."""
        files = (self.inputs, self.labels, self.outputs)
        return hashlib.sha256("".join(file.sha256 for file in files).encode("ascii")).hexdigest()


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
    task: Literal["classification"] = "classification"
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
        for variant in self.variants:
            _check_against_golden(variant, self.golden)
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
        golden = (self.golden.inputs, self.golden.labels, self.golden.outputs)
        return tuple(variant.artifact for variant in self.variants) + golden


def _check_against_golden(variant: Variant, golden: Golden) -> None:
    """Refuse a score that was not made on the manifest's own golden set: devices are compared with it."""
    reference = variant.reference
    if reference.n != golden.n:
        raise ValueError(
            f"variant {variant.name}: reference.n is {reference.n}, the golden set has {golden.n} samples; "
            "they must be as many"
        )
    if len(reference.tp) != golden.classes:
        raise ValueError(
            f"variant {variant.name}: reference.tp, fp and fn count {len(reference.tp)} classes, the golden set has "
            f"{golden.classes}; they must be as many"
        )
    calibration = variant.calibration
    if calibration is not None and len(calibration.class_counts) != golden.classes:
        raise ValueError(
            f"variant {variant.name}: calibration.class_counts has {len(calibration.class_counts)} classes, the golden set "
            f"has {golden.classes}; they must be as many"
        )


def encode(manifest: Manifest) -> bytes:
    """Return the canonical JSON: sorted keys, no spaces.

    A calibration or an envelope that there is none of is left out: releases from before these were recorded keep their
    bytes, and so their name.
    """
    fields = msgspec.to_builtins(manifest)
    if not fields["envelope"]:
        del fields["envelope"]
    for variant in fields["variants"]:
        if variant["calibration"] is None:
            del variant["calibration"]
    return msgspec.json.encode(fields, order="sorted")


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
