from __future__ import annotations

from evenfleet_collector.cell import MetricVerdict
from evenfleet_collector.store.rows import Circumstances
from evenfleet_collector.tolerance import Policy
from evenfleet_collector.web.matrix import Progress, arrange, draw
from evenfleet_shared.messages import Conditions
from fakes.stores import cell_row, run_context

RELEASE = "a" * 64


def test_devices_stand_by_class_and_variants_in_the_manifests_order() -> None:
    cells = [
        cell_row("b", "int8", RELEASE, device_class="board"),
        cell_row("a", "int8", RELEASE, device_class="board"),
        cell_row("c", "float32", RELEASE, device_class="aaa"),
        cell_row("c", "extra", RELEASE, device_class="aaa"),
    ]
    matrix = arrange(cells, order=("float32", "dynamic", "int8"))
    assert matrix.variants == ("float32", "int8", "extra")
    assert [(group.device_class, [line.device for line in group.lines]) for group in matrix.groups] == [
        ("aaa", ["c"]),
        ("board", ["a", "b"]),
    ]
    assert [cell is None for cell in matrix.groups[0].lines[0].cells] == [False, True, False]


def test_refused_cell_is_called_refused_whatever_its_verdict() -> None:
    drawn = draw(cell_row("a", "dynamic", RELEASE, verdict="undetermined", refusal="operator version 12"))
    assert (drawn.word, drawn.reason) == ("refused", "operator version 12")
    assert arrange([cell_row("a", "x", RELEASE, refusal="no")]).counts["refused"] == 1


def test_metric_that_is_outside_is_marked() -> None:
    metrics = (
        MetricVerdict(metric="accuracy", verdict="within", reason=""),
        MetricVerdict(metric="latency", verdict="outside", reason="slow", evidence=17.0, evidence_needed=16.0),
    )
    drawn = draw(cell_row("a", "int8", RELEASE, verdict="outside", metrics=metrics))
    assert drawn.faults == {"latency"}
    assert drawn.details == ("accuracy: within", "latency: outside, evidence 17.0 of 16.0; slow")


def test_progress_counts_the_windows_of_the_phase() -> None:
    policy = Policy(burn_in_windows=40, calibration_windows=20)
    waiting = cell_row("a", "int8", RELEASE, verdict="undetermined", phase="burn-in", windows=17)
    assert draw(waiting, policy).progress == Progress(phase="burn-in", done=17, needed=40)
    calibrating = cell_row("a", "int8", RELEASE, verdict="undetermined", phase="calibrating", windows=99)
    assert draw(calibrating, policy).progress == Progress(phase="calibrating", done=20, needed=20)
    outside = cell_row("a", "int8", RELEASE, verdict="outside", phase="burn-in", windows=5)
    assert draw(outside, policy).progress is None


def test_accelerator_that_really_ran_is_named_with_the_reason_for_another() -> None:
    run = run_context(
        accelerator_requested="gpu", accelerator_executed="cpu", delegated_ratio=0.5, fallback_reason="no driver"
    )
    (group,) = arrange([cell_row("a", "int8", RELEASE, run=run)]).groups
    assert group.lines[0].run == "litert 2.1.0 · cpu 50 %"
    assert group.lines[0].fallback == "asked for gpu, ran on cpu: no driver"


def test_what_the_latest_window_was_measured_under_is_told_apart_from_the_verdict() -> None:
    drawn = draw(cell_row("a", "int8", RELEASE, circumstances=Circumstances(conditions=Conditions(temperature_c=61.0))))
    assert drawn.circumstances == ("conditions: 61.0 °C",)
    assert drawn.details == ()
