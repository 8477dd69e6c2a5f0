"""The agent's process as it is on a device: what it goes without, it really goes without."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Runs what `lean` runs up to the agent itself, and says what is loaded then.
LOOK = """
import json, os, sys
from evenfleet_agent import lean
def looked(*_):
    loaded = {name: type(module).__name__ for name, module in sys.modules.items()}
    print(json.dumps({"loaded": loaded, "arena": os.environ.get("MALLOC_ARENA_MAX")}))
import builtins
found = builtins.__import__
def imported(name, g=None, l=None, names=(), level=0):
    module = found(name, g, l, names, level)
    if name == "evenfleet_agent" and names and "service" in names:
        module.service.serve = looked
    return module
builtins.__import__ = imported
lean.main()
"""


def loaded(tmp_path: Path, url: str) -> tuple[dict[str, str], str | None]:
    config = tmp_path / "agent.toml"
    config.write_text(f'device = "press-01"\nstate_dir = "{tmp_path}"\n[broker]\nurl = "{url}"\n')
    path = os.pathsep.join(str(ROOT / part) for part in ("agent", "shared"))
    done = subprocess.run(
        [sys.executable, "-c", LOOK, str(config)],
        env={**os.environ, "PYTHONPATH": path, "MALLOC_ARENA_MAX": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    told = json.loads(done.stdout)
    return told["loaded"], told["arena"]


@pytest.mark.parametrize("url", ["mqtt://b", "mqtts://b"])
def test_what_only_others_need_is_not_loaded(tmp_path: Path, url: str) -> None:
    modules, arena = loaded(tmp_path, url)
    for name in ("http.client", "email", "socks", "bz2", "lzma", "_hashlib", "typing_extensions", "numpy", "_decimal"):
        assert modules.get(name, "NoneType") == "NoneType", name
    for name in ("inspect", "ast", "difflib", "ipaddress"):
        assert modules[name] == "_Later", name
    assert arena is None  # the runners have a heap for each thread


def test_openssl_is_loaded_only_for_a_broker_over_tls(tmp_path: Path) -> None:
    assert "_ssl" not in loaded(tmp_path, "mqtt://b")[0]
    assert "_ssl" in loaded(tmp_path, "mqtts://b")[0]


def test_module_that_is_asked_for_after_all_is_loaded_whole(tmp_path: Path) -> None:
    code = (
        "import sys; from evenfleet_agent import lean\n"
        "sys.modules['ipaddress'] = lean._Later('ipaddress')\n"
        "import ipaddress; print(ipaddress.ip_address('::1')); from ipaddress import IPv4Address; import ipaddress\n"
        "print(type(sys.modules['ipaddress']).__name__, ipaddress.ip_address('127.0.0.1'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines() == ["::1", "module 127.0.0.1"]
