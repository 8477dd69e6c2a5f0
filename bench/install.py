"""Install the agent as a board does, in an environment of its own, and print what came and what it weighs.

    python bench/install.py [EXTRAS]

Needs the index that pip is set up with. What comes is held against the list that a test holds the metadata against: a
package that is not in it is a failure, whatever brought it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = "agent,litert"
# What an environment has before anything is installed.
BARE = {"pip", "setuptools"}
EXPECTED = {
    "evenfleet": "this project",
    "click": "command line",
    "msgspec": "messages",
    "paho-mqtt": "MQTT",
    "numpy": "models' inputs and outputs",
    "pynacl": "signatures of releases",
    "cffi": "of pynacl",
    "pycparser": "of cffi",
    "ai-edge-litert": "runtime",
    "backports-strenum": "of the runtime",
    "flatbuffers": "of the runtime",
    "ml-dtypes": "of the runtime",
    "protobuf": "of the runtime",
    "tqdm": "of the runtime",
    "typing-extensions": "of the runtime",
    "tomli": "TOML, before Python 3.11",
}
# Run in the new environment: what each distribution wrote, compiled files included, links not followed.
LIST = """
import importlib.metadata as metadata, json, os, re
found = {}
for distribution in metadata.distributions():
    files = {os.path.realpath(distribution.locate_file(file)) for file in distribution.files or ()}
    name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower()
    found[name] = [distribution.version, sum(os.path.getsize(file) for file in files if os.path.isfile(file))]
print(json.dumps(found))
"""


def main() -> int:
    """Install, print, and return 1 if something came that is not expected."""
    extras = sys.argv[1] if len(sys.argv) > 1 else EXTRAS
    with tempfile.TemporaryDirectory(prefix="evenfleet-install-") as name:
        began_s = time.monotonic()
        venv.create(name, with_pip=True)
        python = str(Path(name) / "bin" / "python")
        installed = subprocess.run(
            [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", f"{ROOT}[{extras}]"],
            env={**os.environ, "PIP_CONSTRAINT": str(ROOT / "constraints.txt")},
            check=False,
        )
        if installed.returncode:
            print("pip could not install, see above; it needs an index", file=sys.stderr)
            return 1
        took_s = time.monotonic() - began_s
        listed = subprocess.run([python, "-I", "-c", LIST], check=True, capture_output=True, text=True).stdout
    found: dict[str, tuple[str, int]] = {name: (version, size) for name, (version, size) in json.loads(listed).items()}
    print(f"pip install .[{extras}], Python {sys.version.split()[0]}, {os.uname().machine}, {took_s:.0f} s")
    for package, (version, size_bytes) in sorted(found.items(), key=lambda item: -item[1][1]):
        if package not in BARE:
            print(f"  {size_bytes / 1e6:7.1f} MB  {package} {version}: {EXPECTED.get(package, 'NOT EXPECTED')}")
    came = {package: size_bytes for package, (_, size_bytes) in found.items() if package not in BARE}
    print(f"  {sum(came.values()) / 1e6:7.1f} MB  in all, {len(came)} packages")
    strangers = sorted(set(came) - set(EXPECTED))
    print(f"target: nothing but what is expected: {'met' if not strangers else 'missed by ' + ', '.join(strangers)}")
    return 1 if strangers else 0


if __name__ == "__main__":
    sys.exit(main())
