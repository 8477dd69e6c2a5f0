"""Walk two files: the process that `diff` starts, which a hostile file may take down.

`python -m evenfleet_collector.optimize.diff_worker FOLDER`. The folder holds the job and the samples; the report is written
into it. The last line that is printed says why where it could not be done.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import numpy as np

from evenfleet_collector.optimize import walk
from evenfleet_collector.optimize.diff import JOB_FILE, LABELS_FILE, REFUSED, REPORT_FILE, SAMPLES_FILE, encoded
from evenfleet_collector.optimize.sources import one_line


def main(folder: Path) -> int:
    """Do the job."""
    job = json.loads((folder / JOB_FILE).read_text(encoding="utf-8"))
    x, labels = (np.load(folder / name, allow_pickle=False) for name in (SAMPLES_FILE, LABELS_FILE))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            report = walk.walk(
                Path(job["a"]).read_bytes(),
                Path(job["b"]).read_bytes(),
                x,
                labels,
                runtime_a=job["runtime_a"],
                runtime_b=job["runtime_b"],
            )
    except Exception as error:  # noqa: BLE001 - the files decide what their readers trip over
        sys.stdout.write(f"{error if isinstance(error, ValueError) else one_line(error)}\n")
        return REFUSED
    (folder / REPORT_FILE).write_text(encoded(report), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
