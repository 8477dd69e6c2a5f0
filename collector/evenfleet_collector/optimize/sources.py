"""Say what the words MODEL and DATA name: a file, a directory, or a Python function.

Decides by what is on disk first, then by the form ``module:function``. Leaves reading it to `models` and `datasets`.
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

from evenfleet_shared.errors import ConfigError, EvenfleetError

_FUNCTION: Final = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_TERMINAL_CODE: Final = re.compile(r"\x1b\[[0-9;]*m")
_KERAS_WRAPPING: Final = "Exception encountered when calling"


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


@dataclass(frozen=True, slots=True)
class PairSource:
    """Two files that are there, written ``x.npy,y.npy``: samples and labels."""

    x: Path
    y: Path

    @property
    def name(self) -> str:
        """Return the last parts of both paths."""
        return f"{self.x.resolve().name},{self.y.resolve().name}"


ModelSource = Union[FunctionSource, FileSource]
Source = Union[FunctionSource, FileSource, PairSource]


def parse(text: str | Path, what: str, forms: str) -> ModelSource:
    """Say what a word names.

    Args:
        text: The word.
        what: What it is, for errors: ``MODEL`` or ``DATA``.
        forms: What it may be, for errors.

    Raises:
        ConfigError: There is nothing of that name.

    >>> parse("examples.small_cnn:model", "MODEL", "a file").short_name
    'small_cnn'
    """
    if (path := existing(text, what)) is not None:
        return FileSource(path)
    if _FUNCTION.fullmatch(str(text)):
        module, _, function = str(text).partition(":")
        return FunctionSource(module, function)
    raise ConfigError(f"{what} {text} does not exist; expected {forms}")


def existing(text: str | Path, what: str) -> Path | None:
    """Return the file or directory of that name, ``~`` being a home directory; None where there is none.

    Raises:
        ConfigError: There can be none of that name.
    """
    try:
        path = Path(text).expanduser()
        return path if path.exists() else None
    except (OSError, ValueError, RuntimeError) as error:  # a name too long, a null byte, nobody's home
        reason = one_line(error, with_type=False)
        raise ConfigError(f"{what} {str(text)[:80]!r} cannot be a path: {reason}") from None


def call(
    source: FunctionSource, failure: type[EvenfleetError], finish: Callable[[Any], Any] = lambda made: made
) -> Any:
    """Import and call the function.

    Args:
        source: Which one.
        failure: What to raise where the function itself fails: it says what was being got.
        finish: Given what the function returned, as a part of the call: a generator runs the user's code later.

    Raises:
        ConfigError: There is no such module or function.
    """
    with _importable(Path.cwd()):
        function = _find(source)
        try:
            return finish(function())
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
