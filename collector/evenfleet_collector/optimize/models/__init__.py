"""Open a model in whatever form it comes.

    keras_model.py    saved_model_files.py    tflite_file.py    onnx_file.py    one form (or two) per file, in `MODEL_FORMATS`
    onnx_child.py     the conversion of an .onnx: a program of its own, in whatever environment has the converter
    interface.py      what a form is; what makes a model a classifier that fits the data

A release is built from a classifier: one float32 input (or, in a .tflite, an integer one with a scale), one row of at
least two scores per sample, finite on the user's own data.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from evenfleet_collector.optimize import sources
from evenfleet_collector.optimize.models.interface import CheckedModel, ModelFormat, OpenedModel
from evenfleet_collector.optimize.models.keras_model import KerasFile, KerasFunction
from evenfleet_collector.optimize.models.onnx_file import OnnxFile
from evenfleet_collector.optimize.models.onnx_file import other_environment as onnx_environment
from evenfleet_collector.optimize.models.saved_model_files import SavedModelFiles, digest_of_files
from evenfleet_collector.optimize.models.tensorflow_versions import all_versions, import_tensorflow, versions
from evenfleet_collector.optimize.models.tflite_file import TFLiteFile
from evenfleet_collector.optimize.sources import FileSource, ModelSource
from evenfleet_shared.errors import ConfigError, ModelRefusedError
from evenfleet_shared.manifest import file_digest

MODEL_FORMATS: Final[tuple[ModelFormat, ...]] = (
    KerasFile(),
    SavedModelFiles(),
    TFLiteFile(),
    OnnxFile(),
    KerasFunction(),
)
FORMS: Final = ", ".join(each.form for each in MODEL_FORMATS[:-1]) + f", or {MODEL_FORMATS[-1].form}"

# What people try, and how it becomes one of the above.
_HINTS: Final = {
    ".h5": "keras.models.load_model(file).save('model.keras')",
    ".hdf5": "keras.models.load_model(file).save('model.keras')",
    ".pb": "give the SavedModel's directory",
    ".pt": "docs/models.md says how PyTorch becomes a .tflite or an .onnx",
    ".pth": "docs/models.md says how PyTorch becomes a .tflite or an .onnx",
    ".pt2": "docs/models.md says how PyTorch becomes a .tflite or an .onnx",
}

__all__ = [
    "FORMS",
    "MODEL_FORMATS",
    "CheckedModel",
    "ModelFormat",
    "OpenedModel",
    "all_versions",
    "digest",
    "import_tensorflow",
    "onnx_environment",
    "open_model",
    "parse",
    "versions",
]


def parse(text: str | Path) -> ModelSource:
    """Say what MODEL names.

    Raises:
        ConfigError: There is nothing of that name, or a file of another type.
        ModelRefusedError: A directory that is no SavedModel.

    >>> parse("examples.small_cnn:model").short_name
    'small_cnn'
    """
    source = sources.parse(text, "MODEL", FORMS)
    _format_of(source)
    if isinstance(source, FileSource) and source.path.is_dir() and not (source.path / "saved_model.pb").is_file():
        raise ModelRefusedError(
            f"MODEL {source.path} is a directory without saved_model.pb, so no SavedModel; expected {FORMS}"
        )
    return source


def digest(source: ModelSource) -> str | None:
    """Return the sha256 that a file or directory will have as a model; None for a function, which is to be called first.

    Raises:
        ModelRefusedError: It cannot be read.
    """
    if not isinstance(source, FileSource):
        return None
    try:
        return digest_of_files(source.path) if source.path.is_dir() else file_digest(source.path)
    except OSError as error:
        raise ModelRefusedError(f"MODEL {source.path} cannot be read: {error.strerror}") from None


def open_model(source: ModelSource, work: Path) -> OpenedModel:
    """Load what MODEL names; a conversion is written into `work`.

    Raises:
        ModelRefusedError: It cannot be loaded, or cannot be a classifier as a release holds one.
        ConfigError: There is no such function.
        RuntimeMissingError: What loads it is not installed.
    """
    return _format_of(source).open(source, work)


def _format_of(source: ModelSource) -> ModelFormat:
    for each in MODEL_FORMATS:
        if each.takes(source):
            return each
    suffix = source.path.suffix.lower() if isinstance(source, FileSource) else ""
    if suffix in _HINTS:
        raise ConfigError(f"MODEL {source.name}: {suffix} files are not read; expected {FORMS}. {_HINTS[suffix]}")
    raise ConfigError(f"MODEL {source.name}: expected {FORMS}, found a file ending in {suffix!r}")
