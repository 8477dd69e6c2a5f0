"""Load what runs a model in an interpreter's stead: a delegate's shared library, of a vendor or by path.

Decides which library a name means, and turns every way in which one fails into one line of why: not installed, no delegate at
all, no device. A library has its own manners: libedgetpu says nothing where it finds no Edge TPU, so what its failure
means is told here. Leaves falling back, and saying so, to the runtime.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, Final

from evenfleet_agent.engines import DELEGATES, EDGE_TPU, GPU, NPU

_LIBRARIES: Final[Mapping[str, str]] = {EDGE_TPU: "libedgetpu.so.1", GPU: "libtensorflowlite_gpu_delegate.so"}
_INSTALL: Final[Mapping[str, str]] = {
    EDGE_TPU: "apt-get install libedgetpu1-std, from Coral's repository",
    GPU: "no package has it for Linux: build it from TensorFlow's sources, or use the runtime litert-compiled",
}
_ENTRY: Final = "tflite_plugin_create_delegate"
_MAX_WORDS: Final = 300
_STREAMS: Final = (1, 2)


class DelegateUnusableError(Exception):
    """A delegate cannot be had; the message is why, in one line. Handled where the model is loaded: the CPU runs it then."""


def name_of(delegate: str) -> str:
    """Return what a delegate is called in results: its name, or that of its library.

    >>> name_of("gpu"), name_of("/usr/lib/libedgetpu.so.1"), name_of("/opt/vendor/libvx_delegate.so")
    ('gpu', 'edgetpu', 'libvx_delegate.so')
    """
    if delegate in DELEGATES:
        return delegate
    library = PurePosixPath(delegate).name
    if library.startswith("libedgetpu.so"):
        return EDGE_TPU
    # It goes into messages, whose names have no blanks and brackets.
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", library).lstrip("._+-")[:64] or "delegate"


def load(interpreter_module: Any, delegate: str, options: Mapping[str, str]) -> Any:
    """Return a delegate for an interpreter.

    Args:
        interpreter_module: The interpreter's Python module.
        delegate: One of `engines.DELEGATES`, or a library's path.
        options: As the library takes them.

    Raises:
        DelegateUnusableError: It cannot be loaded, or has no device.
    """
    name = name_of(delegate)
    library = _LIBRARIES.get(delegate, delegate)
    if library == NPU:
        raise DelegateUnusableError("an interpreter has no NPU delegate of its own; give its library's path")
    try:
        # Asked first: an interpreter's own loader leaves a traceback on standard error for what is no delegate.
        if not hasattr(ctypes.CDLL(library), _ENTRY):
            raise DelegateUnusableError(f"{library} is no TFLite delegate: it has no {_ENTRY}")
    except OSError as error:
        install = f"; {_INSTALL[name]}" if name in _INSTALL else ""
        raise DelegateUnusableError(f"the library cannot be loaded: {one_line(error)}{install}") from None
    with overheard() as words:
        try:
            return interpreter_module.load_delegate(library, dict(options))
        except (ValueError, OSError, RuntimeError) as error:
            said = one_line(str(error).partition("\n")[2]) or words()
    if name == EDGE_TPU and not said:
        said = "it found no Edge TPU, or none that this user may open (groups plugdev for USB, apex for PCIe)"
    raise DelegateUnusableError(f"{library} made no delegate: {said or 'it gave no reason'}")


@contextlib.contextmanager
def overheard(*, all_of_it: bool = False) -> Iterator[Callable[[], str]]:
    """Yield a function that returns the line of trouble in what native code wrote to the standard streams meanwhile.

    Vendors' libraries throw "failed" and print why. Everything still goes to standard error, at the end.

    Args:
        all_of_it: Return all that was written instead.
    """
    _flush()
    kept = {stream: os.dup(stream) for stream in _STREAMS}
    with tempfile.TemporaryFile() as heard:
        for stream in _STREAMS:
            os.dup2(heard.fileno(), stream)
        try:
            yield lambda: _content(heard).decode(errors="replace") if all_of_it else _trouble(_content(heard))
        finally:
            _flush()
            for stream, copy in kept.items():
                os.dup2(copy, stream)
                os.close(copy)
            with contextlib.suppress(OSError):
                os.write(2, _content(heard))


def one_line(words: BaseException | str) -> str:
    r"""Return words without line breaks, cut to what a result has room for.

    >>> one_line("a\n  b\tc")
    'a b c'
    """
    return " ".join(str(words).split())[:_MAX_WORDS]


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    # TensorFlow logs with printf, which keeps what does not go to a terminal.
    ctypes.CDLL(None).fflush(None)


def _content(file: Any) -> bytes:
    _flush()
    size = os.fstat(file.fileno()).st_size
    return os.pread(file.fileno(), min(size, 1 << 20), max(0, size - (1 << 20)))


def _trouble(content: bytes) -> str:
    """Return the first line that is an error by its own mark; else the last that is no mere information; else nothing."""
    lines = [line for line in content.decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"(?:ERROR|FATAL)\b|[EF]\d{4} |[EF] ", line)]
    others = [line for line in lines if not re.match(r"INFO\b|I\d{4} |I ", line)]
    return one_line(errors[0] if errors else (others or [""])[-1])
