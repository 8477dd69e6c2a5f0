"""A directory of images by class: one folder per class, below ``train/`` and ``test/`` or split by the seed.

Class names in sorted order are the classes 0, 1, …, as the data loaders of Keras and PyTorch have it. Pillow decodes,
with the decoders of `FORMATS` alone; a file that is no such image, or one whose pixels can be read in more than one
way (transparency, several frames, 16 bits, CMYK), is named and refused: silently other pixels cost accuracy. The
orientation in a photo's EXIF is not applied, as TensorFlow and Pillow do not apply it either.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np

from evenfleet_collector.optimize import data
from evenfleet_collector.optimize.data import LabelledData
from evenfleet_collector.optimize.datasets.declared import complete
from evenfleet_collector.optimize.datasets.interface import Wanted
from evenfleet_collector.optimize.sources import FileSource, Source, one_line
from evenfleet_shared.errors import DataError, RuntimeMissingError
from evenfleet_shared.preprocessing import Preprocessing, Resize

FORMATS: Final = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "PPM", "TIFF")
SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
# A photo of 48 megapixels decodes to 144 MB; a small file may claim more than there is memory.
MAX_PIXELS: Final = 50_000_000

_PARTS: Final = ("train", "test")
_ALPHA_MODES: Final = ("RGBA", "LA", "PA", "La", "RGBa")
_PLAIN_MODES: Final = ("RGB", "L", "P", "1")


@dataclass(frozen=True, slots=True)
class _Found:
    """Files by class, in order, below `root`."""

    root: Path
    files: tuple[tuple[Path, int], ...]
    names: tuple[str, ...]


class Images:
    """Folders of images."""

    form = "a directory of images with one folder per class"
    options: tuple[str, ...] = ("preprocessing",)

    def takes(self, source: Source) -> bool:
        return isinstance(source, FileSource) and source.path.is_dir()

    def read(self, source: Source, wanted: Wanted) -> LabelledData:
        assert isinstance(source, FileSource)
        what = f"DATA {source.path}"
        try:
            parts, names = _parts(source.path, what)
        except OSError as error:
            raise DataError(f"{what} cannot be read: {error.strerror}") from None
        declared = complete(wanted.options.preprocessing, wanted.sample_shape)
        count = sum(len(part) for part in parts.values())
        needed = count * prod(declared.shape) * 4
        if needed > wanted.max_bytes:
            raise DataError(
                f"{what}: {count} images of {'×'.join(map(str, declared.shape))} take {needed} bytes, "
                f"at most {wanted.max_bytes} are read"
            )
        arrays: dict[str, Any] = {}
        for part, files in parts.items():
            end = f"_{part}" if part else ""
            arrays[f"x{end}"] = _decoded([path for path, _ in files], declared, what)
            arrays[f"y{end}"] = np.array([number for _, number in files])
        return replace(data.from_arrays(arrays, what, wanted.seed), class_names=names, declared=declared)


def apply(image: Any, declared: Preprocessing) -> Any:
    """Make a decoded image what the model takes.

    Args:
        image: A `PIL.Image.Image` in mode RGB or L, as `channels` asks.
        declared: What to do, every field set.

    Returns:
        float32, of the declared shape.
    """
    assert declared.layout is not None
    assert declared.resize is not None
    sides = dict(zip(declared.layout, declared.shape, strict=True))
    height, width = sides["H"], sides["W"]
    if declared.fit == "crop":
        image = image.crop(_middle(image.size, width, height))
    pixels = RESIZERS[declared.resize](image, width, height)
    if declared.channels == "BGR":
        pixels = pixels[..., ::-1]
    pixels = pixels * np.array(declared.scale or 1.0, np.float32) + np.array(declared.offset or 0.0, np.float32)
    if declared.layout == "CHW":
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))
    return pixels[..., 0] if declared.layout == "HW" else pixels


def _parts(root: Path, what: str) -> tuple[dict[str, tuple[tuple[Path, int], ...]], tuple[str, ...]]:
    """Return the files with their classes, under ``train`` and ``test`` or under an empty name; and the class names."""
    folders = {folder.name: folder for folder in _folders(root, what)}
    if not set(_PARTS) & set(folders):
        names = tuple(sorted(folders))
        return {"": _files(folders, names, what)}, _checked(names, what)
    if set(folders) != set(_PARTS):
        missing, extra = sorted(set(_PARTS) - set(folders)), sorted(set(folders) - set(_PARTS))
        found = [f"{', '.join(missing)} missing"] * bool(missing) + [f"found also {', '.join(extra[:3])}"] * bool(extra)
        raise DataError(f"{what}: expected the folders train and test and no other; {'; '.join(found)}")
    classes = {part: {folder.name: folder for folder in _folders(folders[part], what)} for part in _PARTS}
    unknown = sorted(set(classes["test"]) - set(classes["train"]))
    if unknown:
        raise DataError(
            f"{what}: test has the class {unknown[0]}, train has not; it has {', '.join(sorted(classes['train'])[:10])}"
        )
    names = tuple(sorted(classes["train"]))
    return {part: _files(classes[part], names, what) for part in _PARTS}, _checked(names, what)


def _checked(names: tuple[str, ...], what: str) -> tuple[str, ...]:
    if len(names) < 2:
        raise DataError(f"{what} holds only the class {names[0]}; accuracy needs at least two classes")
    return names


def _folders(folder: Path, what: str) -> list[Path]:
    entries = _entries(folder)
    files = [entry for entry in entries if not entry.is_dir()]
    if files:
        raise DataError(
            f"{what}: {_below(files[0])} lies beside the classes' folders, so it has no label; "
            "expected one folder per class and nothing else"
        )
    if not entries:
        raise DataError(f"{what}: {folder.name} holds no folders; expected one folder per class, with its images")
    return entries


def _files(folders: dict[str, Path], names: Sequence[str], what: str) -> tuple[tuple[Path, int], ...]:
    found: list[tuple[Path, int]] = []
    for number, name in enumerate(names):
        if name not in folders:  # a class without test images
            continue
        entries = _entries(folders[name])
        if not entries:
            raise DataError(f"{what}: the folder {name} is empty; expected the images of that class")
        for path in entries:
            if not path.is_file() or path.suffix.lower() not in SUFFIXES:
                raise DataError(f"{what}: {_below(path)} is no image that is read here; expected {', '.join(SUFFIXES)}")
            found.append((path, number))
    return tuple(found)


def _entries(folder: Path) -> list[Path]:
    """Return what is in a folder, in order, but for what file managers leave there."""
    return sorted(
        (entry for entry in folder.iterdir() if entry.name[0] != "." and entry.name not in {"Thumbs.db", "__MACOSX"}),
        key=lambda entry: entry.name,
    )


def _below(path: Path) -> str:
    return "/".join(path.parts[-2:])


def _decoded(paths: Sequence[Path], declared: Preprocessing, what: str) -> Any:
    mode = "L" if declared.channels == "gray" else "RGB"
    samples = np.empty((len(paths), *declared.shape), dtype=np.float32)
    for sample, path in zip(samples, paths, strict=True):
        sample[...] = apply(_decode(path, mode, what), declared)
    return samples


def _decode(path: Path, mode: str, what: str) -> Any:
    """Return the image in mode L or RGB.

    Raises:
        DataError: It is damaged, too large, or can be read in more than one way.
        RuntimeMissingError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError:
        raise RuntimeMissingError(
            "reading images needs Pillow; install it with: pip install 'evenfleet[optimize]'"
        ) from None
    where = f"{what}: {_below(path)}"
    try:
        with Image.open(path, formats=FORMATS) as image:
            _check_kind(image, where)
            image.load()
            if image.mode in _ALPHA_MODES or "transparency" in image.info:
                _check_opaque(image, where)
            return image.convert("RGB").convert(mode) if image.mode == "P" else image.convert(mode)
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001 - the file decides what the decoder trips over
        raise DataError(f"{where} cannot be decoded: {one_line(error, with_type=False)}") from None


def _check_kind(image: Any, where: str) -> None:
    """Refuse by what the header says, before a pixel is decoded."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise DataError(f"{where} has {width} × {height} pixels, at most {MAX_PIXELS:,} are decoded")
    # Photos of phones are MPO: further pictures behind the first, which is the photo.
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if frames > 1:
        raise DataError(f"{where} has {frames} frames; expected a still image")
    if image.mode not in _PLAIN_MODES + _ALPHA_MODES:
        raise DataError(f"{where} is of the kind {image.mode}; expected 8-bit RGB or gray: convert it first")


def _check_opaque(image: Any, where: str) -> None:
    lowest, _ = image.convert("RGBA").getchannel("A").getextrema()
    if lowest < 255:
        raise DataError(
            f"{where} is transparent in places; lay it on a background first: what lies under it is anybody's guess"
        )


def _middle(size: tuple[int, int], width: int, height: int) -> tuple[int, int, int, int]:
    """Return the largest middle part of the target's shape: left, top, right, bottom."""
    across = max(1, min(size[0], round(size[1] * width / height)))
    down = max(1, min(size[1], round(size[0] * height / width)))
    left, top = (size[0] - across) // 2, (size[1] - down) // 2
    return left, top, left + across, top + down


def _pillow(name: str) -> Callable[[Any, int, int], Any]:
    def resize(image: Any, width: int, height: int) -> Any:
        from PIL import Image

        return _floats(image.resize((width, height), Image.Resampling[name]))

    return resize


def _tensorflow(method: str) -> Callable[[Any, int, int], Any]:
    def resize(image: Any, width: int, height: int) -> Any:
        import tensorflow as tf

        return tf.image.resize(_floats(image), (height, width), method=method).numpy()

    return resize


def _floats(image: Any) -> Any:
    pixels = np.asarray(image, dtype=np.float32)
    return pixels[..., np.newaxis] if pixels.ndim == 2 else pixels


# From an image in mode RGB or L to float32 pixels of 0 to 255, shape (height, width, channels).
RESIZERS: Final[dict[Resize, Callable[[Any, int, int], Any]]] = {
    "pillow-nearest": _pillow("NEAREST"),
    "pillow-box": _pillow("BOX"),
    "pillow-bilinear": _pillow("BILINEAR"),
    "pillow-hamming": _pillow("HAMMING"),
    "pillow-bicubic": _pillow("BICUBIC"),
    "pillow-lanczos": _pillow("LANCZOS"),
    "tensorflow-nearest": _tensorflow("nearest"),
    "tensorflow-bilinear": _tensorflow("bilinear"),
    "tensorflow-bicubic": _tensorflow("bicubic"),
    "tensorflow-area": _tensorflow("area"),
}
