"""Figures are taken from the cache only where they would be measured alike."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import evenfleet_agent

CODE = """
import sys
from evenfleet_collector.optimize import limits, timing
if len(sys.argv) > 1:
    limits.use_cores(int(sys.argv[1]))
print(timing.conditions())
"""


def conditions(*words: str, path: str = "") -> str:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (path, os.environ.get("PYTHONPATH"))))}
    return subprocess.run(
        [sys.executable, "-c", CODE, *words], env=env, capture_output=True, text=True, check=True
    ).stdout


def test_figures_of_other_cores_and_of_another_agent_are_others(tmp_path: Path) -> None:
    (source,) = evenfleet_agent.__path__
    shutil.copytree(source, tmp_path / "evenfleet_agent")
    here = conditions()
    assert conditions(path=str(tmp_path)) == here
    assert len(os.sched_getaffinity(0)) == 1 or conditions("1") != here
    with (tmp_path / "evenfleet_agent" / "measure.py").open("a", encoding="utf-8") as file:
        file.write("\n# measures otherwise\n")
    assert conditions(path=str(tmp_path)) != here
