"""DATA as a directory of images by class."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image

from evenfleet_collector.optimize import LabelledData, datasets, read_recipe
from evenfleet_collector.optimize.datasets import DataOptions, Wanted, declared, images
from evenfleet_collector.optimize.datasets.declared import ImageSettings
from evenfleet_shared.errors import ConfigError, DataError

SHAPE = (8, 8, 3)


def picture(red: int, size: tuple[int, int] = (10, 6)) -> Image.Image:
    return Image.new("RGB", size, (red, 100, 200))


def fill(folder: Path, **classes: int) -> Path:
    """Write ten pictures per class, of the redness given."""
    for name, red in classes.items():
        (folder / name).mkdir(parents=True)
        for number in range(10):
            picture(red).save(folder / name / f"{number}.png")
    return folder


def read(
    folder: Path, shape: tuple[int | None, ...] | None = SHAPE, max_bytes: int = 1 << 30, **settings: Any
) -> LabelledData:
    options = DataOptions(preprocessing=ImageSettings(**settings))
    wanted = Wanted(seed=0, sample_shape=shape, options=options, max_bytes=max_bytes)
    return datasets.read(datasets.parse(folder), wanted)


def test_folders_in_sorted_order_are_the_classes(tmp_path: Path) -> None:
    labelled = read(fill(tmp_path / "d", pear=250, apple=0, fig=51))
    assert labelled.class_names == ("apple", "fig", "pear")
    assert {
        int(y): round(float(x[0, 0, 0] * 255)) for x, y in zip(labelled.x_train, labelled.y_train, strict=True)
    } == {
        0: 0,
        1: 51,
        2: 250,
    }
    assert np.bincount(labelled.y_test).tolist() == [2, 2, 2]


def test_train_and_test_folders_are_kept_apart(tmp_path: Path) -> None:
    fill(tmp_path / "d" / "train", a=10, b=20)
    fill(tmp_path / "d" / "test", a=30, b=40)
    labelled = read(tmp_path / "d")
    assert (labelled.x_train[..., 0] * 255).round().max() == 20
    assert (labelled.x_test[..., 0] * 255).round().min() == 30


@pytest.mark.parametrize(
    ("shape", "settings", "sample", "first"),
    [
        ((8, 8, 3), {}, (8, 8, 3), 250 / 255),
        ((None, None, 3), {"width": 4, "height": 5}, (5, 4, 3), 250 / 255),
        (None, {"width": 4, "height": 5}, (5, 4, 3), 250 / 255),
        ((3, 8, 8), {}, (3, 8, 8), 250 / 255),
        ((8, 8, 3), {"channels": "BGR"}, (8, 8, 3), 200 / 255),
        ((8, 8, 3), {"scale": 1.0, "offset": -10.0}, (8, 8, 3), 240.0),
        ((8, 8, 3), {"mean": (0.5, 0.4, 0.4), "std": (0.5, 0.2, 0.2)}, (8, 8, 3), (250 / 255 - 0.5) / 0.5),
        ((8, 8, 1), {}, (8, 8, 1), 156 / 255),
        ((8, 8), {}, (8, 8), 156 / 255),
    ],
)
def test_declaration_decides_what_the_model_is_given(
    tmp_path: Path,
    shape: tuple[int | None, ...] | None,
    settings: dict[str, Any],
    sample: tuple[int, ...],
    first: float,
) -> None:
    labelled = read(fill(tmp_path / "d", a=250, b=250), shape, **settings)
    assert labelled.sample_shape == labelled.preprocessing.shape == sample
    assert float(labelled.x_train[0].reshape(-1)[0]) == pytest.approx(first, abs=1e-6)


def test_two_resize_methods_give_other_pixels_and_another_fingerprint() -> None:
    """What a device that resizes with another library does to the model, before any model is run."""
    random = np.random.default_rng(0)
    image = Image.fromarray(random.integers(0, 256, (64, 48, 3), dtype=np.uint8))
    one = declared.complete(ImageSettings(), SHAPE)
    other = replace(one, resize="pillow-bicubic")
    assert one.fingerprint != other.fingerprint
    assert np.abs(images.apply(image, one) - images.apply(image, other)).max() > 0.02


@pytest.mark.tensorflow
def test_bilinear_of_two_libraries_is_not_the_same() -> None:
    """Pillow looks at every pixel that a target pixel covers, TensorFlow at the four nearest."""
    random = np.random.default_rng(0)
    image = Image.fromarray(random.integers(0, 256, (64, 48, 3), dtype=np.uint8))
    pillow = declared.complete(ImageSettings(), SHAPE)
    tensorflow = replace(pillow, resize="tensorflow-bilinear")
    assert np.abs(images.apply(image, pillow) - images.apply(image, tensorflow)).mean() > 0.05


def test_every_resize_method_has_its_function() -> None:
    assert set(images.RESIZERS) == set(get_args(declared.Resize))


def test_crop_keeps_the_middle_and_its_shape() -> None:
    image = Image.new("RGB", (30, 10))
    image.paste((255, 255, 255), (10, 0, 20, 10))
    cropped = images.apply(image, declared.complete(ImageSettings(fit="crop"), (5, 5, 3)))
    stretched = images.apply(image, declared.complete(ImageSettings(), (5, 5, 3)))
    assert cropped.min() == 1.0
    assert stretched.min() == 0.0


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA"])
def test_image_of_another_kind_that_can_be_read_in_one_way_is_read(tmp_path: Path, mode: str) -> None:
    folder = fill(tmp_path / "d", a=0, b=250)
    picture(255).convert(mode).save(folder / "a" / "0.png")
    assert np.isfinite(read(folder).x_train).all()


def glassy(path: Path) -> None:
    Image.new("RGBA", (4, 4), (255, 0, 0, 128)).save(path)


def animated(path: Path) -> None:
    picture(0).save(path, "GIF", save_all=True, append_images=[picture(255)])


def truncated(path: Path) -> None:
    Image.effect_noise((200, 200), 50).save(path)
    path.write_bytes(path.read_bytes()[:5000])


def promising(path: Path) -> None:
    """A PNG of a hundred bytes that says it has 10^10 pixels."""
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b""))
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def large(path: Path) -> None:
    """Within what Pillow allows, and beyond what we do."""
    Image.new("1", (10_000, 6_000)).save(path)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (glassy, "transparent in places"),
        (animated, "2 frames; expected a still image"),
        (truncated, "cannot be decoded"),
        (promising, "cannot be decoded: Image size"),
        (large, "10000 × 6000 pixels, at most 50,000,000"),
        (lambda path: path.write_bytes(b""), "cannot be decoded"),
        (lambda path: path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "cannot be decoded"),
        (lambda path: picture(0).save(path, "TGA"), "cannot be decoded"),  # a decoder that few look after
        (lambda path: Image.new("I;16", (4, 4)).save(path), "of the kind I;16; expected 8-bit"),
        (lambda path: Image.new("CMYK", (4, 4)).save(path, "JPEG"), "of the kind CMYK"),
    ],
)
def test_image_that_cannot_be_trusted_is_named(tmp_path: Path, write: Callable[[Path], None], message: str) -> None:
    folder = fill(tmp_path / "d", a=0, b=250)
    write(folder / "b" / "5.png")
    with pytest.raises(DataError, match=f"b/5.png.*{message}") as caught:
        read(folder)
    assert "\n" not in str(caught.value)


def test_what_file_managers_leave_is_passed_over(tmp_path: Path) -> None:
    folder = fill(tmp_path / "d", a=0, b=250)
    (folder / ".DS_Store").write_text("x")
    (folder / "a" / "Thumbs.db").write_text("x")
    assert len(read(folder).x_test) == 4


def loose_image(folder: Path) -> None:
    picture(0).save(folder / "0.png")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (loose_image, "d/0.png lies beside the classes' folders, so it has no label"),
        (lambda folder: (folder / "c").mkdir(), "the folder c is empty"),
        (lambda folder: (folder / "a" / "notes.txt").write_text("x"), "a/notes.txt is no image that is read here"),
        (lambda folder: (folder / "a" / "more").mkdir(), "a/more is no image"),
        (lambda folder: fill(folder / "train", a=1, b=2), "expected the folders train and test .* test missing"),
    ],
)
def test_directory_of_another_build_is_refused(tmp_path: Path, change: Callable[[Path], None], message: str) -> None:
    folder = fill(tmp_path / "d", a=0, b=250)
    change(folder)
    with pytest.raises(DataError, match=message):
        read(folder)


def test_one_class_only_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="only the class a; accuracy needs at least two"):
        read(fill(tmp_path / "d", a=0))


def test_empty_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    with pytest.raises(DataError, match="holds no folders"):
        read(tmp_path / "d")


def test_test_class_that_was_never_trained_is_refused(tmp_path: Path) -> None:
    fill(tmp_path / "d" / "train", a=10, b=20)
    fill(tmp_path / "d" / "test", a=30, c=40)
    with pytest.raises(DataError, match="test has the class c, train has not"):
        read(tmp_path / "d")


def test_more_images_than_fit_are_refused_before_one_is_decoded(tmp_path: Path) -> None:
    folder = fill(tmp_path / "d", a=0, b=250)
    (folder / "a" / "0.png").write_bytes(b"no image at all")
    with pytest.raises(DataError, match="20 images of 8×8×3 take 15360 bytes, at most 10000"):
        read(folder, max_bytes=10_000)


@pytest.mark.parametrize(
    ("shape", "settings", "error", "message"),
    [
        ((None, None, 3), {}, DataError, "any size; say which: width"),
        ((784,), {}, DataError, "the model takes samples of 784, DATA holds images"),
        ((8, 8, 3), {"width": 16}, ConfigError, "width is 16, the model takes a width of 8"),
        ((8, 8, 3), {"channels": "gray"}, ConfigError, "channels is gray, the model takes 3 channels"),
        ((8, 8, 4), {}, ConfigError, "channels is RGB, the model takes 4"),
        ((8, 8, 3), {"offset": 1.0, "mean": 1.0}, ConfigError, "say the same in two ways"),
        ((8, 8, 3), {"scale": (1.0, 2.0)}, ConfigError, "scale has 2 numbers for 3 channels"),
        ((8, 8, 3), {"std": 0.0}, ConfigError, "std is 0"),
    ],
)
def test_declaration_that_the_model_cannot_take_is_refused(
    tmp_path: Path, shape: Any, settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        read(fill(tmp_path / "d", a=0, b=250), shape, **settings)


def test_words_of_the_command_line_are_a_declaration() -> None:
    parsed = declared.parse(
        ["resize=pillow-box", "scale=1/127.5", "offset=-1", "width=32", "mean=1,2,3"], "--p", ImageSettings()
    )
    assert (parsed.resize, parsed.offset, parsed.width, parsed.mean) == ("pillow-box", -1.0, 32, (1.0, 2.0, 3.0))
    assert parsed.scale == pytest.approx(1 / 127.5)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("resise=pillow-box", "unknown setting resise; did you mean resize"),
        ("resize=bilinear", "resize"),
        ("scale=big", "expected a number, a fraction such as 1/255"),
        ("scale=1/0", "expected a number"),
        ("width=0", "width: expected a whole number of at least 1"),
        ("crop", "expected KEY=VALUE"),
    ],
)
def test_wrong_word_of_the_command_line_is_named(word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        declared.parse([word], "--preprocessing", ImageSettings())


def test_preprocessing_for_arrays_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.zeros((20, 3)), y=np.arange(20) % 2)
    options = DataOptions(preprocessing=ImageSettings(channels="BGR"))
    with pytest.raises(ConfigError, match=r"preprocessing is declared for images, and DATA d.npz is an .npz file"):
        datasets.read(datasets.parse(tmp_path / "d.npz"), Wanted(seed=0, options=options))


def test_word_of_the_command_line_goes_before_the_recipe(tmp_path: Path) -> None:
    base = ImageSettings(resize="pillow-box", channels="BGR")
    parsed = declared.parse(["resize=pillow-bicubic"], "--preprocessing", base)
    assert (parsed.resize, parsed.channels) == ("pillow-bicubic", "BGR")


def test_recipe_declares_preprocessing(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(
        'label_column = "kind"\n[preprocessing]\nresize = "pillow-box"\nmean = [0.1, 0.2, 0.3]\n'
    )
    plan, _ = read_recipe(tmp_path / "r.toml")
    assert (plan.preprocessing.resize, plan.preprocessing.mean) == ("pillow-box", (0.1, 0.2, 0.3))
    assert plan.label_column == "kind"


def test_recipe_with_an_unknown_key_of_preprocessing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text('[preprocessing]\nresise = "pillow-box"\n')
    with pytest.raises(ConfigError, match=r"unknown setting preprocessing\.resise; did you mean preprocessing\.resize"):
        read_recipe(tmp_path / "r.toml")
