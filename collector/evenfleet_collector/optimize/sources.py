"""Say what the words MODEL and DATA name: a file, a directory, or a Python function.

Decides by what is on disk first, then by the form ``module:function``. Leaves reading it to `model` and `data`.
A function is the user's own code, run with the current directory importable: whatever it raises ends as one line.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Union

from evenfleet_shared.errors import ConfigError, EvenfleetError, ModelRefusedError

_FUNCTION: Final = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_MODEL_FORMS: Final = "a .keras file, a SavedModel directory or module:function"
_DATA_FORMS: Final = "an .npz file or module:function"
_TERMINAL_CODE: Final = re.compile(r"\x1b\[[0-9;]*m")
_KERAS_WRAPPING: Final = "Exception encountered when calling"
_LATER_MODELS: Final = (".tflite", ".onnx", ".h5", ".hdf5", ".pb", ".pt")


@dataclass(frozen=True, slots=True)
class FunctionSource:
    """``module:function``, to be called without arguments."""

    module: str
    function: str

    @property
    def name(self) -> str:
        """Return the source as it was written."""
        return f"{self.module}:{self.function}"

    @property
    def short_name(self) -> str:
        """Return what a release is called after: ``examples.small_cnn:model`` is small_cnn."""
        return self.module.rpartition(".")[2] if self.function == "model" else self.function


@dataclass(frozen=True, slots=True)
class FileSource:
    """A file or a directory that is there."""

    path: Path

    @property
    def name(self) -> str:
        """Return the last part of the path: where a file lay is nobody's business."""
        return self.path.resolve().name

    @property
    def short_name(self) -> str:
        """Return what a release is called after."""
        return self.path.resolve().stem


Source = Union[FunctionSource, FileSource]


def parse_model(text: str | Path) -> Source:
    """Say what MODEL names.

    Raises:
        ConfigError: There is nothing of that name, or a file of another type.
        ModelRefusedError: A directory that is no SavedModel.

    >>> parse_model("examples.small_cnn:model").short_name
    'small_cnn'
    """
    source = _parse(text, "MODEL", _MODEL_FORMS)
    if isinstance(source, FileSource):
        path = source.path
        if path.is_dir():
            if not (path / "saved_model.pb").is_file():
                raise ModelRefusedError(
                    f"MODEL {path} is a directory without saved_model.pb, so no SavedModel; expected {_MODEL_FORMS}"
                )
        elif path.suffix.lower() in _LATER_MODELS:
            raise ConfigError(
                f"MODEL {path}: {path.suffix} files are not read; expected {_MODEL_FORMS}. "
                "From Keras: model.save('model.keras')"
            )
        elif path.suffix.lower() != ".keras":
            raise ConfigError(f"MODEL {path}: expected {_MODEL_FORMS}, found a file ending in {path.suffix!r}")
    return source


def parse_data(text: str | Path) -> Source:
    """Say what DATA names.

    Raises:
        ConfigError: There is nothing of that name, or a file of another type.

    >>> parse_data("examples.small_cnn:data").name
    'examples.small_cnn:data'
    """
    source = _parse(text, "DATA", _DATA_FORMS)
    if isinstance(source, FileSource) and (source.path.is_dir() or source.path.suffix.lower() != ".npz"):
        raise ConfigError(
            f"DATA {source.path}: expected {_DATA_FORMS}; save one with np.savez(file, x_train=…, y_train=…, …)"
        )
    return source


def call(source: FunctionSource, failure: type[EvenfleetError]) -> Any:
    """Import and call the function.

    Args:
        source: Which one.
        failure: What to raise where the function itself fails: it says what was being got.

    Raises:
        ConfigError: There is no such module or function.
    """
    with _importable(Path.cwd()):
        function = _find(source)
        try:
            return function()
        except EvenfleetError:
            raise
        except (Exception, SystemExit) as error:  # noqa: BLE001 - user code: whatever it raises becomes one line
            raise failure(f"{source.name} failed: {one_line(error)}") from None


def one_line(error: BaseException, limit: int = 300, *, with_type: bool = True) -> str:
    r"""Return an error's type and the first line of its message that says something, without terminal codes.

    The type helps where the error comes from a program of the user's, and not where it comes from a file.

    >>> one_line(ValueError("no such layer\nTraceback and more"))
    'ValueError: no such layer'
    >>> one_line(ValueError("Exception encountered when calling Dense.call().\n\n\x1b[1mwrong rank\x1b[0m"))
    'ValueError: wrong rank'
    """
    lines = [_TERMINAL_CODE.sub("", line).strip() for line in str(error).splitlines()]
    telling = [line for line in lines if line and not line.startswith(_KERAS_WRAPPING)] or [
        line for line in lines if line
    ]
    text = "".join(letter for letter in telling[0] if letter.isprintable()) if telling else ""
    if with_type or not text:
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _parse(text: str | Path, what: str, forms: str) -> Source:
    path = Path(text).expanduser()
    try:
        if path.exists():
            return FileSource(path)
    except (OSError, ValueError) as error:  # a name too long, a null byte
        raise ConfigError(f"{what} {str(text)[:80]!r} cannot be a path: {one_line(error)}") from None
    if _FUNCTION.fullmatch(str(text)):
        module, _, function = str(text).partition(":")
        return FunctionSource(module, function)
    raise ConfigError(f"{what} {text} does not exist; expected {forms}")


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Have `folder` first on Python's path; a function may import its neighbours when it is called."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # the user's code may have taken it out
            sys.path.remove(str(folder))


def _find(source: FunctionSource) -> Callable[[], Any]:
    try:
        module = importlib.import_module(source.module)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{source.name}: no module named {error.name} in {Path.cwd()} or elsewhere on Python's path"
        ) from None
    except (Exception, SystemExit) as error:  # noqa: BLE001 - user code: whatever it raises becomes one line
        raise ConfigError(f"{source.name}: importing {source.module} failed: {one_line(error)}") from None
    function = getattr(module, source.function, None)
    if not callable(function):
        functions = sorted(name for name, value in vars(module).items() if inspect.isfunction(value) and name[0] != "_")
        raise ConfigError(
            f"{source.name}: {source.module} has no function {source.function!r}; it has {', '.join(functions) or 'none'}"
        )
    found: Callable[[], Any] = function
    return found
