from __future__ import annotations

import contextlib
import os
import subprocess
import sys

import pytest

from evenfleet_agent.runtimes import delegates


def test_words_of_native_code_are_heard_and_still_told(capfd):
    with delegates.overheard() as words:
        os.write(2, b"INFO: starting\nERROR: [a.cc:1] no adapters found\nE0000 later\nINFO: ending\n")
        heard = words()
    assert heard == "ERROR: [a.cc:1] no adapters found"
    assert "INFO: ending" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        (b"", ""),
        (b"INFO: all is well\nI0000 00 x\n", ""),
        (b"INFO: starting\nno device\nINFO: ending\n", "no device"),
        (b"F driver.cc:9] fatal\n", "F driver.cc:9] fatal"),
        (b"Edge TPU is fine\n", "Edge TPU is fine"),
    ],
)
def test_mere_information_is_no_trouble(said, heard):
    with delegates.overheard() as words:
        os.write(2, said)
        assert words() == heard


def test_standard_error_is_given_back_after_an_exception(capfd):
    with contextlib.suppress(ValueError), delegates.overheard():
        os.write(2, b"within\n")
        raise ValueError
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "within\nafter\n"


_PRINT = """
import ctypes
from evenfleet_agent.runtimes import delegates
with delegates.overheard(all_of_it=True) as words:
    ctypes.CDLL(None).printf(b"placed on %s\\n", b"GPU:0")
    heard = words()
print([heard])
"""


def test_what_native_code_prints_is_heard_before_its_buffer_is_full():
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run([sys.executable, "-c", _PRINT], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "['placed on GPU:0\\n']\n"
    assert done.stderr == "placed on GPU:0\n"
