"""A child that has asked for it ends with its parent, though nobody tells it."""

from __future__ import annotations

import os
import select
import subprocess
import sys

import pytest

from evenfleet_shared import kinship

_WAIT_S = 20.0
# Says that it is there, and would stay for ever.
_STAYS = "import time; print('there', flush=True); time.sleep(3600)"
_ASKS = f"from evenfleet_shared.kinship import die_with_parent; die_with_parent(); {_STAYS}"
# Starts a child as it is told, and waits for it; `PARENT` stands for its own process id.
_PARENT = """
import os, subprocess, sys
subprocess.Popen([word.replace("PARENT", str(os.getpid())) for word in sys.argv[1:]]).wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux promises it")
@pytest.mark.parametrize(
    "command",
    [
        [sys.executable, "-c", _ASKS],
        [sys.executable, "-I", "-S", kinship.__file__, "PARENT", sys.executable, "-c", _STAYS],
    ],
    ids=["asks itself", "through the launcher"],
)
def test_child_ends_when_its_parent_is_killed(command: list[str]) -> None:
    read, write = os.pipe()
    with subprocess.Popen([sys.executable, "-c", _PARENT, *command], stdout=write) as parent:
        os.close(write)
        with os.fdopen(read, "rb") as said:
            assert said.readline() == b"there\n"
            parent.kill()
            # The child holds the other end for as long as it lives.
            assert select.select([said], [], [], _WAIT_S)[0]
            assert said.read() == b""


def test_launcher_whose_parent_has_gone_before_it_asked_starts_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-S", kinship.__file__, "1", sys.executable, "-c", "print('started')"],
        capture_output=True,
        timeout=_WAIT_S,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, b"")
