"""From what the user declares and what the model takes to the whole preprocessing of images.

Pure. Decides the size (the model's, unless declared), the channels and the layout; refuses a declaration that the
model cannot take.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Union

from msgspec import Meta

from evenfleet_shared import settings
from evenfleet_shared.errors import ConfigError, DataError
from evenfleet_shared.preprocessing import Channels, Fit, Layout, PerChannel, Preprocessing, Resize

Side = Annotated[int, Meta(ge=1, le=8192)]
Numbers = Union[float, PerChannel]

_COUNTS: Final[dict[Channels, int]] = {"RGB": 3, "BGR": 3, "gray": 1}
_NUMBERS: Final = ("scale", "offset", "mean", "std")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSettings:
    """The table ``[preprocessing]`` of a recipe; what is not said follows from the model's input.

    Attributes:
        width: Of the image as the model takes it.
        height: See width.
        resize: Method, named with the library that defines it.
        fit: ``stretch``, or ``crop`` to the middle.
        channels: Their order.
        layout: Of the sample.
        scale: A pixel of 0 to 255 becomes pixel × scale + offset.
        offset: See scale.
        mean: Instead of offset: (pixel × scale - mean) / std.
        std: See mean.
    """

    width: Side | None = None
    height: Side | None = None
    resize: Resize = "pillow-bilinear"
    fit: Fit = "stretch"
    channels: Channels | None = None
    layout: Layout | None = None
    scale: Numbers = 1 / 255
    offset: Numbers | None = None
    mean: Numbers | None = None
    std: Numbers | None = None


def parse(words: Sequence[str], typed: str, base: ImageSettings) -> ImageSettings:
    """Read ``key=value`` words; a number may be a fraction, and one for each channel with commas between.

    Args:
        words: What was typed.
        typed: Where, for errors.
        base: What holds where nothing was typed: a recipe's table.

    Raises:
        ConfigError: An unknown key, or a value that it does not take.

    >>> parse(["resize=pillow-bicubic", "mean=0.5", "std=1/2"], "--preprocessing", ImageSettings()).std
    0.5
    """
    values: dict[str, object] = {
        field.name: getattr(base, field.name)
        for field in dataclasses.fields(base)
        if getattr(base, field.name) is not None
    }
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise ConfigError(f"{typed} {word}: expected KEY=VALUE, such as resize=pillow-bilinear")
        values[key] = _number_or_numbers(text, f"{typed} {word}") if key in _NUMBERS else text
    return settings.load(ImageSettings, None, {}, values, typed=typed)


def complete(wished: ImageSettings, model_shape: tuple[int | None, ...] | None) -> Preprocessing:
    """Return the whole declaration.

    Args:
        wished: What the user declares.
        model_shape: What the model takes, batch aside; None where it does not say.

    Raises:
        DataError: The model takes no images, or does not say their size and nor does the user.
        ConfigError: The declaration contradicts the model or itself.

    >>> complete(ImageSettings(), (32, 48, 3)).channels
    'RGB'
    >>> complete(ImageSettings(), (1, 28, 28)).layout
    'CHW'
    """
    layout, height, width, count = _split(wished, model_shape)
    channels: Channels = wished.channels or ("gray" if count == 1 else "RGB")
    if count not in (None, _COUNTS[channels]):
        raise ConfigError(f"preprocessing: channels is {channels}, the model takes {count} channels")
    for name, declared, taken in (("height", wished.height, height), ("width", wished.width, width)):
        if declared is not None and taken not in (None, declared):
            raise ConfigError(f"preprocessing: {name} is {declared}, the model takes a {name} of {taken}")
    height, width = height or wished.height, width or wished.width
    if height is None or width is None:
        raise DataError(
            "the model takes images of any size; say which: width=… and height=… in the recipe's [preprocessing], "
            "or with --preprocessing"
        )
    sides = {"H": height, "W": width, "C": _COUNTS[channels]}
    scale, offset = _scale_and_offset(wished, _COUNTS[channels])
    return Preprocessing(
        input="image",
        shape=tuple(sides[letter] for letter in layout),
        resize=wished.resize,
        fit=wished.fit,
        channels=channels,
        scale=scale,
        offset=offset,
        layout=layout,
    )


def _split(
    wished: ImageSettings, shape: tuple[int | None, ...] | None
) -> tuple[Layout, int | None, int | None, int | None]:
    """Return layout, height, width and channels, as far as the model says them."""
    if shape is None:
        return wished.layout or "HWC", None, None, None
    if len(shape) == 2 and wished.layout in (None, "HW"):
        return "HW", shape[0], shape[1], 1
    if len(shape) == 3 and wished.layout != "HW":
        first_is_channels = shape[0] in (1, 3) and shape[2] not in (1, 3)
        layout: Layout = wished.layout or ("CHW" if first_is_channels else "HWC")
        if layout == "CHW":
            return layout, shape[1], shape[2], shape[0]
        return layout, shape[0], shape[1], shape[2]
    taken = " × ".join("any" if side is None else str(side) for side in shape) or "single numbers"
    raise DataError(
        f"the model takes samples of {taken}, DATA holds images: expected height × width × channels"
        + (f", or what layout={wished.layout} means" if wished.layout else "")
    )


def _scale_and_offset(wished: ImageSettings, count: int) -> tuple[PerChannel, PerChannel]:
    if wished.offset is not None and (wished.mean is not None or wished.std is not None):
        raise ConfigError("preprocessing: offset and mean or std say the same in two ways; give one of them")
    scale = _per_channel("scale", wished.scale, count)
    offset = _per_channel("offset", 0.0 if wished.offset is None else wished.offset, count)
    mean = _per_channel("mean", 0.0 if wished.mean is None else wished.mean, count)
    std = _per_channel("std", 1.0 if wished.std is None else wished.std, count)
    if any(value == 0.0 for value in (*scale, *std)):
        raise ConfigError("preprocessing: scale or std is 0, which makes every image the same")
    if wished.mean is None and wished.std is None:
        return scale, offset
    scaled = tuple(one / spread for one, spread in zip(scale, std, strict=True))
    return scaled, tuple(0.0 - middle / spread for middle, spread in zip(mean, std, strict=True))


def _per_channel(name: str, value: Numbers, count: int) -> PerChannel:
    values = value if isinstance(value, tuple) else (value,)
    if len(values) not in (1, count):
        raise ConfigError(
            f"preprocessing: {name} has {len(values)} numbers for {count} channels; expected 1 or {count}"
        )
    return values * count if len(values) == 1 else values


def _number_or_numbers(text: str, typed: str) -> float | list[float]:
    try:
        numbers = [_number(part) for part in text.split(",")]
    except (ValueError, ZeroDivisionError, OverflowError):
        raise ConfigError(
            f"{typed}: expected a number, a fraction such as 1/255, or one for each channel: 1,2,3"
        ) from None
    return numbers[0] if len(numbers) == 1 else numbers


def _number(text: str) -> float:
    above, _, below = text.partition("/")
    return float(above) / float(below or 1)
