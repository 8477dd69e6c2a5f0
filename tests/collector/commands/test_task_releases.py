"""A release of each task is verified, pushed and shown like any other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evenfleet_shared import manifest as manifests
from evenfleet_shared.messages import Task
from fakes.stores import FakeStore, cell_row, device_row
from fakes.task_releases import CASES, write_task_release

Run = Callable[..., Any]


@pytest.mark.usefixtures("collector")
@pytest.mark.parametrize("task", CASES)
def test_release_of_each_task_is_verified_pushed_and_shown(
    evenfleet: Run, store: FakeStore, tmp_path: Path, task: Task
) -> None:
    release, case = write_task_release(tmp_path, task), CASES[task]
    verified = evenfleet("release", "verify", release)
    pushed = evenfleet("release", "push", release)
    assert (verified.code, pushed.code, pushed.err) == (0, 0, "")
    assert [row.manifest.task for row in store.release_rows] == [task]
    shown = evenfleet("release", "show", manifests.load(release)[1]).out
    assert case.score is None or f"{case.metric} {case.score:.4g}" in " ".join(shown.split())


@pytest.mark.usefixtures("collector")
def test_score_of_a_task_stands_beside_the_share_of_right_samples(
    evenfleet: Run, store: FakeStore, tmp_path: Path
) -> None:
    release = write_task_release(tmp_path, "detection")
    evenfleet("release", "push", release)
    digest = store.release_rows[0].release
    store.put_device(device_row("press-01", release=digest))
    store.put_cell(cell_row("press-01", "float32", digest, accuracy_ratio=0.75, score_metric="mAP", score=0.7525))
    assert "75.0 % mAP 0.7525" in evenfleet("parity").out


def test_release_with_a_missing_label_file_is_named(evenfleet: Run, tmp_path: Path) -> None:
    release = write_task_release(tmp_path, "segmentation")
    (release / "golden/labels.npy").unlink()
    outcome = evenfleet("release", "verify", release)
    assert outcome.code == 1
    assert "golden/labels.npy" in outcome.err
