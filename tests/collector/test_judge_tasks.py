"""Windows of each task, from the wire to a cell: the exact test is the same, whatever makes a sample right."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from evenfleet_collector.ingest import Ingest
from evenfleet_collector.judge import Judge
from evenfleet_collector.store.rows import CellRow
from evenfleet_collector.store.sqlite import SqliteReader, SqliteWriter, open_reader, open_writer
from evenfleet_collector.tolerance import Policy
from evenfleet_collector.web.matrix import draw
from evenfleet_shared import manifest as manifests
from evenfleet_shared import messages
from evenfleet_shared.messages import Accuracy, Agreement, Task
from fakes import uplink
from fakes.task_releases import CASES, write_task_release
from fakes.uplink import RUN, arrival, context, state, window

NOW_S = 1.7e9


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[SqliteWriter]:
    writer = open_writer(tmp_path)
    yield writer
    writer.close()


def found(described: manifests.Manifest, task: Task, *, more_wrong: int = 0) -> Accuracy:
    """Return what a device reports that scored as the case says, but for some more samples that it got wrong."""
    case, reference = CASES[task], described.variants[0].reference
    return Accuracy(
        golden=described.golden.digest,
        task=task,
        n=reference.n,
        errors=reference.errors + more_wrong,
        tp=(case.tp[0] - more_wrong, *case.tp[1:]) if task == "classification" else case.tp,
        fp=case.fp,
        fn=(case.fn[0] + more_wrong, *case.fn[1:]) if task == "classification" else case.fn,
        discordant_b=more_wrong,
        discordant_c=0,
        hamming=0,
        prediction_digest="c" * 64,
        agreement=Agreement(noise_class="same-decision", top1_ratio=1.0, max_abs_diff=0.1, rms_diff=0.1),
        metric=case.metric,
        score=case.score,
    )


def judged(writer: SqliteWriter, tmp_path: Path, task: Task, accuracies: list[Accuracy], payload: bytes) -> CellRow:
    release = manifests.digest(payload)
    described = manifests.decode(payload, "it")
    with writer.transaction() as tx:
        tx.put_policy(Policy(revision=2, burn_in_windows=3, calibration_windows=3), NOW_S)
        tx.put_release(release, payload, described.model, NOW_S)
    sent = [state(), context(1, RUN)]
    sent += [
        window(
            seq,
            release=release,
            variant="float32",
            artifact=described.variants[0].artifact.sha256,
            context=messages.context_digest(RUN),
            latency=uplink.latency([1.0] * 20),
            accuracy=accuracy,
        )
        for seq, accuracy in enumerate(accuracies, start=2)
    ]
    Ingest(writer).save([arrival(one) for one in sent], NOW_S)
    judge = Judge(writer)
    while judge.step(NOW_S, connected_since_s=None):
        pass
    reader: SqliteReader = open_reader(tmp_path)
    (cell,) = reader.cells()
    return cell


@pytest.mark.parametrize("task", CASES)
def test_window_of_each_task_is_judged_within_where_it_scores_as_its_release(
    writer: SqliteWriter, tmp_path: Path, task: Task
) -> None:
    payload = (write_task_release(tmp_path, task) / manifests.MANIFEST_NAME).read_bytes()
    cell = judged(writer, tmp_path, task, [found(manifests.decode(payload, "it"), task)] * 4, payload)
    (accuracy,) = (metric for metric in cell.metrics if metric.metric == "accuracy")
    assert accuracy.verdict == "within"
    case = CASES[task]
    assert cell.accuracy_ratio == pytest.approx(case.correct.count("1") / len(case.correct))
    assert (cell.score_metric, cell.score) == (case.metric, case.score)
    assert draw(cell).score == (None if case.score is None else f"{case.metric} {case.score:.4g}")


@pytest.mark.parametrize("task", CASES)
def test_one_more_wrong_sample_than_the_margin_allows_is_outside_in_each_task(
    writer: SqliteWriter, tmp_path: Path, task: Task
) -> None:
    payload = (write_task_release(tmp_path, task) / manifests.MANIFEST_NAME).read_bytes()
    cell = judged(writer, tmp_path, task, [found(manifests.decode(payload, "it"), task, more_wrong=1)] * 4, payload)
    (accuracy,) = (metric for metric in cell.metrics if metric.metric == "accuracy")
    assert accuracy.verdict == "outside"


def test_pass_that_was_scored_as_another_task_is_incomparable(writer: SqliteWriter, tmp_path: Path) -> None:
    payload = (write_task_release(tmp_path, "segmentation") / manifests.MANIFEST_NAME).read_bytes()
    accuracy = replace(found(manifests.decode(payload, "it"), "segmentation"), task="detection")
    cell = judged(writer, tmp_path, "segmentation", [accuracy] * 4, payload)
    (verdict,) = (metric for metric in cell.metrics if metric.metric == "accuracy")
    assert verdict.verdict == "incomparable"
    assert "scored as detection, the release is of segmentation" in verdict.reason


def test_criteria_are_part_of_what_a_pass_is_comparable_on(writer: SqliteWriter, tmp_path: Path) -> None:
    payload = (write_task_release(tmp_path, "detection") / manifests.MANIFEST_NAME).read_bytes()
    described = manifests.decode(payload, "it")
    stricter = replace(described, golden=replace(described.golden, criteria=manifests.Criteria(iou_threshold=0.75)))
    cell = judged(writer, tmp_path, "detection", [found(stricter, "detection")] * 4, payload)
    (verdict,) = (metric for metric in cell.metrics if metric.metric == "accuracy")
    assert verdict.verdict == "incomparable"
