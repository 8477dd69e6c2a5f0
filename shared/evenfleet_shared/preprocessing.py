"""Say what is done to a sample before the model sees it, once, so that a device can hold its own code against it.

A release carries the declaration as text with a fingerprint over it. Another resize method or channel order on the
device costs accuracy and raises no error, so both are named by library and by kind: bilinear in one library is not
bilinear in another. Decides nothing about pixels; whoever decodes images applies it.

The fingerprint is the sha256 of the declaration's fields but itself, all text, as JSON with sorted keys and without
spaces: any language can compute it. What a manifest says of its data beside them (minimum, mean, …) is no part of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from evenfleet_shared.errors import DataError, ReleaseError

# Pillow's methods look at every pixel that a target pixel covers (antialiasing), TensorFlow's at the nearest few.
Resize = Literal[
    "pillow-nearest",
    "pillow-box",
    "pillow-bilinear",
    "pillow-hamming",
    "pillow-bicubic",
    "pillow-lanczos",
    "tensorflow-nearest",
    "tensorflow-bilinear",
    "tensorflow-bicubic",
    "tensorflow-area",
]
# stretch: to the target's size whatever the shape; crop: the largest middle part of the target's shape, then resized.
Fit = Literal["stretch", "crop"]
Channels = Literal["RGB", "BGR", "gray"]
Layout = Literal["HWC", "CHW", "HW"]
PerChannel = Annotated[tuple[float, ...], Meta(min_length=1, max_length=3)]

_SHORT_DIGITS: Final = 12
_FINGERPRINT: Final = "fingerprint"


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """What becomes of a sample.

    Attributes:
        input: ``as-given``: the samples are what the model takes, and how they came about is not known here.
            ``image``: a decoded image, resized and scaled as the other fields say, which only then are set.
        shape: Of one sample as the model takes it.
        dtype: Of its values.
        resize: Method, named with the library that defines it.
        fit: What happens to an image of another shape.
        channels: Their order; ``gray`` is ITU-R 601 luma.
        scale: A pixel of 0 to 255 becomes pixel × scale + offset; one number, or one for each channel.
        offset: See scale.
        layout: The order of height, width and channels in `shape`.

    >>> Preprocessing(input="as-given", shape=(28, 28, 1)).wire()["shape"]
    '28x28x1'
    """

    input: Literal["as-given", "image"]
    shape: tuple[int, ...]
    dtype: Literal["float32"] = "float32"
    resize: Resize | None = None
    fit: Fit | None = None
    channels: Channels | None = None
    scale: PerChannel | None = None
    offset: PerChannel | None = None
    layout: Layout | None = None

    @property
    def fingerprint(self) -> str:
        """Return the sha256 over the declaration."""
        return _fingerprint(self._fields())

    @property
    def short_fingerprint(self) -> str:
        """Return enough of the fingerprint for a person to compare."""
        return self.fingerprint[:_SHORT_DIGITS]

    def wire(self) -> dict[str, str]:
        """Return it as a manifest carries it, fingerprint included."""
        return {**self._fields(), _FINGERPRINT: self.fingerprint}

    def require_same(self, declared: Mapping[str, str]) -> None:
        """Hold this, which is what a device does, against what a release's manifest declares.

        Raises:
            DataError: They differ; names every field that does.
            ReleaseError: The manifest contradicts itself, or declares nothing.
        """
        wanted, own = from_wire(declared)._fields(), self._fields()
        differing = [name for name in sorted({*wanted, *own}) if wanted.get(name) != own.get(name)]
        if differing:
            found = "; ".join(
                f"{name} is {own.get(name, 'not set')} here, the release was built with {wanted.get(name, 'none')}"
                for name in differing
            )
            raise DataError(f"preprocessing differs from the release's: {found}")

    def _fields(self) -> dict[str, str]:
        texts = {
            "input": self.input,
            "shape": "x".join(str(side) for side in self.shape),
            "dtype": self.dtype,
            "resize": self.resize,
            "fit": self.fit,
            "channels": self.channels,
            "scale": _numbers(self.scale),
            "offset": _numbers(self.offset),
            "layout": self.layout,
        }
        return {name: text for name, text in texts.items() if text is not None}


def from_wire(declared: Mapping[str, str]) -> Preprocessing:
    """Read what a manifest declares; what stands there beside it is left alone.

    Raises:
        ReleaseError: It declares nothing, or the fingerprint is of another declaration.

    >>> from_wire(Preprocessing(input="as-given", shape=(4,)).wire()).shape
    (4,)
    """
    if _FINGERPRINT not in declared:
        raise ReleaseError("the release declares no preprocessing: its manifest has no preprocessing.fingerprint")
    values: dict[str, object] = {
        name: declared[name] for name in ("input", "dtype", "resize", "fit", "channels", "layout") if name in declared
    }
    try:
        values["shape"] = tuple(int(side) for side in declared.get("shape", "").split("x"))
        values |= {
            name: tuple(float(number) for number in declared[name].split(","))
            for name in ("scale", "offset")
            if name in declared
        }
        read = msgspec.convert(values, Preprocessing)
    except (ValueError, msgspec.ValidationError) as error:
        raise ReleaseError(f"preprocessing of the manifest cannot be read: {error}") from None
    if read.fingerprint != declared[_FINGERPRINT]:
        raise ReleaseError(
            f"preprocessing.fingerprint is {declared[_FINGERPRINT][:_SHORT_DIGITS]}…, its fields give "
            f"{read.short_fingerprint}…; the manifest was changed, do not use it"
        )
    return read


def _fingerprint(fields: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode("utf-8")).hexdigest()


def _numbers(values: tuple[float, ...] | None) -> str | None:
    """Return numbers as the shortest text that reads back as the same; one where all channels are alike."""
    if values is None:
        return None
    return ",".join(repr(float(value)) for value in (values[:1] if len(set(values)) == 1 else values))
