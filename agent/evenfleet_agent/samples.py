"""Read a user's samples, labels and a reference's outputs out of an .npz, for a runner to measure on.

Decides by which names the arrays are known, and refuses what is no samples by the file's name. What labels a task takes
is said by the task.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from evenfleet_shared.errors import DataError
from evenfleet_shared.messages import Task

_INPUT_NAMES: Final = ("x_test", "x", "X_test", "X", "inputs")
_LABEL_NAMES: Final = ("y_test", "y", "Y_test", "Y", "labels")
_OUTPUT_NAMES: Final = ("outputs", "outputs_test")


class DataFiles(NamedTuple):
    """Where the arrays of an .npz were written; None for those it does not have."""

    inputs: str
    labels: str | None
    outputs: str | None


def write_data(file: Path, directory: Path, task: Task = "classification") -> DataFiles:
    """Take samples, labels and a reference's outputs out of an .npz.

    Args:
        file: With an array x_test, x or inputs, perhaps y_test, y or labels, and perhaps outputs.
        directory: Where the arrays are written, one file each.
        task: What the labels are of.

    Raises:
        DataError: It is no .npz of numbers, has no samples, or labels that do not go with them or with the task.
    """
    import numpy as np

    from evenfleet_agent.runner import tasks

    if file.exists() and not file.is_file():
        raise DataError(f"{file} is not a file; expected an .npz with x and y")
    try:
        arrays = np.load(file, allow_pickle=False)
        if not isinstance(arrays, np.lib.npyio.NpzFile):
            raise DataError(f"{file} is a single array; expected an .npz with x and y")
        with arrays:
            inputs = _first_of(arrays, _INPUT_NAMES)
            labels = _first_of(arrays, _LABEL_NAMES)
            outputs = _first_of(arrays, _OUTPUT_NAMES)
            if inputs is None:
                raise DataError(
                    f"{file} has no array called {', '.join(_INPUT_NAMES)}; it has: {', '.join(arrays.files) or 'none'}"
                )
    except FileNotFoundError:
        raise DataError(f"{file} does not exist; expected an .npz with x and y") from None
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from None
    except (ValueError, EOFError, zipfile.BadZipFile, AttributeError):
        # numpy's own words advise to unpickle the file.
        raise DataError(f"{file} is not a whole .npz of plain numbers; pickled objects are not read") from None
    except MemoryError:
        raise DataError(f"{file} says that it holds more than this machine has memory for; use fewer samples") from None
    _check_samples(inputs, file)
    try:
        if labels is not None:
            labels = tasks.by_name(task).labels(labels, len(inputs))
    except DataError as error:
        raise DataError(f"{file}: {error}") from None
    if outputs is not None:
        outputs = _reference(outputs, len(inputs), file)
    files = []
    for name, array in (("inputs", inputs), ("labels", labels), ("outputs", outputs)):
        path = directory / f"{name}.npy"
        if array is not None:
            np.save(path, array, allow_pickle=False)
        files.append(None if array is None else str(path))
    return DataFiles(str(files[0]), *files[1:])


def _first_of(arrays: Any, names: Sequence[str]) -> Any:
    return next((arrays[name] for name in names if name in arrays.files), None)


def _check_samples(inputs: Any, file: Path) -> None:
    import numpy as np

    if not inputs.ndim or not len(inputs) or inputs.dtype.kind not in "iufb":
        raise DataError(
            f"{file}: x must hold real numbers, one entry per sample, found {inputs.dtype} of shape {list(inputs.shape)}"
        )
    # Models take no more than float32 has.
    if inputs.dtype.kind == "f" and not (np.abs(inputs) <= np.finfo(np.float32).max).all():
        raise DataError(
            f"{file}: x holds NaN, infinite values or such that float32 has no room for; clean the data first"
        )


def _reference(outputs: Any, samples: int, file: Path) -> Any:
    import numpy as np

    if not outputs.ndim or len(outputs) != samples or not outputs.size or outputs.dtype.kind not in "iuf":
        raise DataError(
            f"{file}: outputs must hold real numbers, one entry for each of {samples} samples, found {outputs.dtype} of "
            f"shape {list(outputs.shape)}"
        )
    return outputs.astype(np.float32)
