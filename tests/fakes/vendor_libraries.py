"""Vendors' shared libraries without their hardware: compiled from C, and loaded by the real loaders."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCES = Path(__file__).parent


def delegate(directory: Path, name: str = "libfake_delegate.so") -> Path:
    """Compile a TFLite delegate; see delegate.c for what it can be told to do."""
    return _compiled("delegate.c", directory / name)


def nvml(directory: Path) -> Path:
    """Compile a libnvidia-ml.so.1; see nvml.c for what it can be told to do."""
    return _compiled("nvml.c", directory / "libnvidia-ml.so.1")


def _compiled(source: str, library: Path) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler here; the Debian package is gcc")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCES / source)], check=True)
    return library
