from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from evenfleet_shared.disk import held


def test_a_lock_that_is_held_is_refused_to_another_and_free_again_afterwards(tmp_path: Path) -> None:
    with held(tmp_path / "lock"), pytest.raises(BlockingIOError), held(tmp_path / "lock"):
        pass
    with held(tmp_path / "lock"):
        pass


def test_a_process_that_is_killed_lets_go(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib; from evenfleet_shared.disk import held\n"
        "with held(pathlib.Path(sys.argv[1])): print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(BlockingIOError), held(tmp_path / "lock"):
            pass
        holder.kill()
    with held(tmp_path / "lock"):
        pass
