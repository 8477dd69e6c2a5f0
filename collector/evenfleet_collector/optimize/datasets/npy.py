"""The header of a ``.npy``: looked at before anything of it is believed, and never unpickled."""

from __future__ import annotations

from typing import IO, Final

import numpy as np

from evenfleet_shared.errors import DataError

# What reading a damaged header or archive raises; a DataError of our own passes through.
UNREADABLE: Final = (OSError, ValueError, EOFError, SyntaxError, NotImplementedError, RuntimeError)


def check_header(file: IO[bytes], size_bytes: int, what: str) -> None:
    """Refuse pickled objects, and a header that promises other than is there.

    Args:
        file: At its start.
        size_bytes: Of the whole file, unpacked.
        what: The file's name, for errors.

    Raises:
        DataError: As above.
        ValueError: It is no header.
    """
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(file)
    if dtype.hasobject:
        raise DataError(f"{what} holds pickled Python objects, which are never loaded; expected plain numbers")
    promised = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if promised != size_bytes - file.tell():
        raise DataError(f"the header of {what} promises {promised} bytes, {size_bytes - file.tell()} are there")
