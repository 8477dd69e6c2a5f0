"""The judge over a real store: order, patience, baselines, flags, silence, and a death in the middle."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenfleet_collector.cell import ClassKey
from evenfleet_collector.ingest import Arrival, Ingest
from evenfleet_collector.judge import Judge
from evenfleet_collector.steer import Steer
from evenfleet_collector.store.rows import CellRow, Circumstances, FlagRow
from evenfleet_collector.store.sqlite import FILE_NAME, SqliteReader, SqliteWriter, open_reader, open_writer
from evenfleet_collector.tolerance import Policy
from evenfleet_shared import manifest as manifests
from evenfleet_shared import messages
from evenfleet_shared.messages import Incarnation, Limit, MemoryReading, RunContext, Uplink, Window
from fakes import uplink
from fakes.stores import small_manifest
from fakes.uplink import DEVICE, RUN, accuracy, arrival, context, event, exceedances, latency, state, window

NOW_S = 1.7e9
MANIFEST, _ = small_manifest()
PAYLOAD = manifests.encode(MANIFEST)
RELEASE = manifests.digest(PAYLOAD)
ARTIFACTS = {variant.name: variant.artifact.sha256 for variant in MANIFEST.variants}
POLICY = Policy(revision=2, burn_in_windows=3, calibration_windows=3)
STEADY = [1.0] * 20
SLOW = [2.0] * 20
VERDICTS_PAGE = Path(__file__).parents[2] / "docs/verdicts.md"


@dataclass
class Fleet:
    """A collector's first two loops, and the messages of its devices."""

    directory: Path
    connect: Callable[[], sqlite3.Connection] | None = None
    now_s: float = NOW_S
    policy: Policy = POLICY
    sent: list[Uplink] = field(default_factory=list)
    seqs: dict[tuple[str, Incarnation], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.writer = SqliteWriter(self.connect) if self.connect else open_writer(self.directory)
        self.reader: SqliteReader = open_reader(self.directory)
        self.judge = Judge(self.writer)
        with self.writer.transaction() as tx:
            tx.put_policy(self.policy, self.now_s)
            tx.put_release(RELEASE, PAYLOAD, MANIFEST.model, self.now_s)

    def take(self, *sent: Uplink) -> None:
        """Ingest one batch, and judge what there is."""
        self.sent += sent
        Ingest(self.writer).save([arrival(one) for one in sent], self.now_s)
        self.step()

    def step(self, *, connected_since_s: float | None = None) -> None:
        while self.judge.step(self.now_s, connected_since_s=connected_since_s):
            pass

    def seq(self, device: str = DEVICE, incarnation: Incarnation = uplink.LIFE) -> int:
        key = (device, incarnation)
        self.seqs[key] = self.seqs.get(key, 0) + 1
        return self.seqs[key]

    def born(self, *devices: str, run: RunContext = RUN) -> None:
        for device in devices or (DEVICE,):
            self.take(
                state(device=device, device_class=run.device_class), context(self.seq(device), run, device=device)
            )

    def measured(
        self,
        samples_ms: Sequence[float] = STEADY,
        *,
        device: str = DEVICE,
        variant: str = "float32",
        run: RunContext = RUN,
        incarnation: Incarnation = uplink.LIFE,
        **changes: Any,
    ) -> Window:
        """Return the next window of a device, counted against the limits that are in force for it."""
        limits = self.limits(variant, run.device_class)
        fields: dict[str, Any] = {
            "release": RELEASE,
            "variant": variant,
            "artifact": ARTIFACTS.get(variant, "0" * 64),
            "context": messages.context_digest(run),
            "latency": latency(samples_ms),
            "exceedances": exceedances(samples_ms, limits),
        }
        seq = self.seq(device, incarnation)
        return window(seq, device=device, incarnation=incarnation, **(fields | changes))

    def reports(self, count: int, samples_ms: Sequence[float] = STEADY, **changes: Any) -> None:
        for _ in range(count):
            self.take(self.measured(samples_ms, **changes))

    def calibrated(self, *devices: str) -> None:
        """Bring a class to where it is judged."""
        self.born(*devices)
        for _ in range(7):
            for device in devices or (DEVICE,):
                self.reports(1, device=device)
        assert self.cell(devices[0] if devices else DEVICE).phase == "judged"

    def assigned(self, release: str | None) -> None:
        """Assign a release, which the collector need not have, and tell the device."""
        with self.writer.transaction() as tx:
            if release and release != RELEASE:
                tx.put_release(release, PAYLOAD, MANIFEST.model, self.now_s)
            tx.put_assignment(DEVICE, release, self.now_s)
        Steer(self.writer, "http://127.0.0.1:8080/api/v1/artifacts").step(self.now_s)

    def limits(self, variant: str = "float32", device_class: str = RUN.device_class) -> tuple[Limit, ...]:
        with self.writer.transaction() as tx:
            return tx.limits(RELEASE, device_class).get(variant, ())

    def cell(self, device: str = DEVICE, variant: str = "float32") -> CellRow:
        return next(row for row in self.reader.cells(device=device) if row.variant == variant)

    def flags(self, *, only_open: bool = False) -> list[FlagRow]:
        return list(self.reader.flags(only_open=only_open))

    def skips(self) -> list[tuple[int, int, int, str]]:
        with sqlite3.connect(self.directory / FILE_NAME) as db:
            return db.execute("SELECT counter, first, last, reason FROM skips ORDER BY counter, first").fetchall()

    def metric(self, name: str, device: str = DEVICE) -> Any:
        return next(one for one in self.cell(device).metrics if one.metric == name)

    def outcome(self) -> tuple[list[CellRow], list[FlagRow]]:
        """Return what was made of the log, without when and in how many steps."""
        cells = [replace(row, version=0, updated_s=0.0) for row in self.reader.cells()]
        flags = [replace(row, opened_s=0.0, cleared_s=row.cleared_s and 0.0) for row in self.flags()]
        return cells, flags


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path)
    yield fleet
    fleet.writer.close()


# order


def a_story(fleet: Fleet) -> list[Uplink]:
    """Tell of a device that is measured, slows down, is flagged, recovers, and is wrong for a while."""
    fleet.born()
    for _ in range(6):
        fleet.reports(1)
        fleet.reports(1, variant="int8")
    for wrong in (1, 1, 1, 1, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1):
        fleet.reports(1, SLOW if wrong == 2 else [1.0] * 12 + [2.0] * 8, accuracy=accuracy(wrong))
        fleet.reports(1, variant="int8")
    fleet.reports(7)
    flags = fleet.flags()
    assert {flag.metric for flag in flags} == {"latency", "accuracy"}
    assert all(flag.cleared_s for flag in flags)
    return fleet.sent


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Uplink], tuple[list[CellRow], list[FlagRow]]]:
    fleet = Fleet(tmp_path_factory.mktemp("story"))
    sent = a_story(fleet)
    outcome = fleet.outcome()
    fleet.writer.close()
    return sent, outcome


@given(data=st.data())
@settings(max_examples=25)
def test_the_order_of_arrival_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory,
    story: tuple[list[Uplink], tuple[list[CellRow], list[FlagRow]]],
    data: st.DataObject,
) -> None:
    """Any order within a batch, neighbours that change places between batches, and duplicates everywhere."""
    sent, expected = story
    order = list(range(len(sent)))
    # Apart, so that no message is carried on by three swaps, which the judge rightly does not wait for.
    cuts = sorted(3 * cut for cut in data.draw(st.sets(st.integers(1, len(sent) // 3 - 1), max_size=6)))
    for cut in cuts:
        if data.draw(st.booleans()):
            order[cut - 1], order[cut] = order[cut], order[cut - 1]
    edges = [0, *cuts, len(sent)]
    fleet = Fleet(tmp_path_factory.mktemp("shuffled"))
    for start, end in zip(edges, edges[1:], strict=False):  # noqa: RUF007 - the same as everywhere here
        batch = data.draw(st.permutations(order[start:end]))
        fleet.take(*(sent[index] for index in batch), *(sent[index] for index in batch[:2]))

    outcome = fleet.outcome()
    fleet.writer.close()
    assert outcome == expected
    assert not fleet.skips()


def test_lives_that_come_in_one_batch_are_judged_in_their_order(fleet: Fleet) -> None:
    """A device that rebooted offline sends both lives at once, and the broker may deliver the newer one first."""
    newer = Incarnation(2, "00000000")
    fleet.born()
    older = [fleet.measured() for _ in range(2)]
    fleet.take(fleet.measured(incarnation=newer), *older)

    assert fleet.cell().windows == 3
    assert not fleet.skips()


def test_a_life_that_a_later_one_has_overtaken_is_passed_over(fleet: Fleet) -> None:
    fleet.born()
    late = [fleet.measured() for _ in range(3)]
    fleet.take(fleet.measured(incarnation=Incarnation(2, "00000000")))
    assert fleet.cell().windows == 1

    fleet.take(*late)

    assert fleet.cell().windows == 1
    assert fleet.skips() == [(1, 1, 4, "overtaken")]
    assert len(fleet.reader.windows(DEVICE)) == 4


def test_a_window_waits_for_those_before_it(fleet: Fleet) -> None:
    fleet.born()
    first, second, third = (fleet.measured() for _ in range(3))
    fleet.take(first, third)
    assert fleet.cell().windows == 1

    fleet.take(second)
    assert fleet.cell().windows == 3


def test_behind_three_later_windows_nothing_is_waited_for_and_that_is_written_down(fleet: Fleet) -> None:
    fleet.born()
    missing = [fleet.measured() for _ in range(2)]
    for already in (0, 0, 3):
        fleet.reports(1)
        assert sum(cell.windows for cell in fleet.reader.cells()) == already

    assert fleet.skips() == [(1, 2, 3, "watermark")]
    fleet.take(*missing)
    fleet.reports(1)
    assert fleet.cell().windows == 4


def test_twenty_minutes_later_nothing_is_waited_for(fleet: Fleet) -> None:
    fleet.born()
    fleet.measured()
    fleet.reports(1)
    fleet.now_s += 19 * 60
    fleet.step()
    assert not fleet.reader.cells()

    fleet.now_s += 2 * 60
    fleet.step()

    assert fleet.cell().windows == 1
    assert fleet.skips() == [(1, 2, 2, "watermark")]


def test_lives_that_waited_long_are_judged_in_their_order(fleet: Fleet) -> None:
    """The newer life's window was received first; the older one's is no history for that."""
    newer = Incarnation(2, "00000000")
    fleet.born()
    fleet.measured(), fleet.measured(incarnation=newer)
    fleet.take(fleet.measured(incarnation=newer))
    fleet.now_s += 1
    fleet.reports(1)
    fleet.now_s += 21 * 60
    fleet.step()

    assert fleet.cell().windows == 2
    assert {reason for *_, reason in fleet.skips()} == {"watermark"}


def test_a_gap_that_is_new_is_waited_for_though_an_older_one_is_not(fleet: Fleet) -> None:
    fleet.born()
    fleet.measured()
    fleet.reports(1)
    fleet.now_s += 21 * 60
    late = fleet.measured()
    fleet.reports(1)
    fleet.step()
    assert fleet.cell().windows == 1

    fleet.take(late)
    assert fleet.cell().windows == 3
    assert fleet.skips() == [(1, 2, 2, "watermark")]


def test_a_gap_closed_by_a_loss_is_not_waited_for(fleet: Fleet) -> None:
    fleet.born()
    fleet.measured()
    fleet.take(fleet.measured(floor=3))

    assert fleet.cell().windows == 1
    assert not fleet.skips()


def test_a_gap_closed_by_something_other_than_a_window_lets_the_next_step_go_on(fleet: Fleet) -> None:
    fleet.born()
    told = event(fleet.seq())
    fleet.reports(1)
    fleet.take(told)
    fleet.reports(1)

    assert fleet.cell().windows == 2


# what is not known


def test_a_window_of_an_unknown_context_is_undetermined_and_the_next_one_recovers(fleet: Fleet) -> None:
    fleet.take(state(), fleet.measured())
    assert fleet.cell().verdict == "undetermined"
    assert "run context" in fleet.cell().reason

    fleet.born()
    fleet.reports(1)
    assert (fleet.cell().phase, fleet.cell().windows) == ("burn-in", 1)


@pytest.mark.parametrize("changes", [{"release": "f" * 64}, {"variant": "int4"}])
def test_what_is_measured_of_unknown_releases_and_variants_is_counted_and_makes_no_cell(
    fleet: Fleet, changes: dict[str, Any]
) -> None:
    """A device may make up as many as it likes: they must take no place, and no share of the false-flag budget."""
    fleet.born()
    fleet.take(fleet.measured(**changes), event(fleet.seq(), event="variant-refused", **{"release": RELEASE} | changes))

    assert not fleet.reader.cells()
    assert fleet.reader.stats().passed_over["unknown-release"] == 1


def test_a_window_of_another_file_than_the_releases_is_incomparable_and_makes_no_baseline(fleet: Fleet) -> None:
    fleet.born()
    fleet.reports(5, artifact="e" * 64)

    cell = fleet.cell()
    assert (cell.verdict, cell.phase) == ("incomparable", "burn-in")
    assert "e" * 12 in cell.reason

    fleet.reports(2)
    assert fleet.cell().phase == "burn-in"
    fleet.reports(1)
    assert not fleet.limits()[0].limit_ms > 1.2


def test_a_pass_over_another_golden_set_is_incomparable(fleet: Fleet) -> None:
    fleet.born()
    fleet.reports(5, accuracy=accuracy(4, golden="e" * 64))

    assert fleet.metric("accuracy").verdict == "incomparable"
    assert "golden set eeee" in fleet.metric("accuracy").reason
    assert not fleet.flags()


def test_a_window_whose_context_comes_too_late_is_in_no_evidence(fleet: Fleet) -> None:
    """The device alternates between two contexts, and the collector is told of the second one only later."""
    late = replace(RUN, attributes={"site": "north"})
    fleet.calibrated()
    for _ in range(3):
        fleet.reports(1, SLOW)
        fleet.reports(1, SLOW, run=late)
    fleet.take(context(fleet.seq(), late))
    fleet.reports(4, SLOW)

    (flag,) = fleet.flags()
    listed = {one["seq"] for one in json.loads(flag.evidence_json)["windows"]}
    unknown = {first for _, first, _, reason in fleet.skips() if reason == "unknown-context"}
    assert len(unknown) == 3
    assert not listed & unknown


def test_a_pass_over_a_set_of_another_size_is_not_compared(fleet: Fleet) -> None:
    fleet.born()
    fleet.reports(5, accuracy=accuracy(3, 10))

    assert fleet.metric("accuracy").verdict == "undetermined"
    assert "10 samples" in fleet.metric("accuracy").reason


def test_a_variant_that_was_refused_says_why(fleet: Fleet) -> None:
    fleet.born()
    told = event(fleet.seq(), event="variant-refused", release=RELEASE, variant="int8", detail="operator too new")
    fleet.take(told)

    cell = fleet.cell(variant="int8")
    assert (cell.verdict, cell.phase, cell.refusal) == ("undetermined", "refused", "operator too new")


def test_a_sketch_of_infinite_latencies_reaches_no_judge(fleet: Fleet) -> None:
    """Any quantile of it is an overflow, which would end the collector at every start."""
    fleet.born()
    sane = fleet.measured()
    assert sane.latency is not None
    payload = messages.encode(sane).replace(b'"relative_accuracy":0.01', b'"relative_accuracy":0.99')
    (index,) = [index for index, _ in sane.latency.sketch.bins]
    payload = payload.replace(b'"bins":[[%d,' % index, b'"bins":[[100000,')
    Ingest(fleet.writer).save([Arrival(arrival(sane).topic, payload)], fleet.now_s)
    fleet.reports(5)

    assert fleet.reader.stats().dead_letters_by_reason == {"invalid": 1}
    assert fleet.cell().windows == 5


def test_hostile_figures_are_judged_like_any_other(fleet: Fleet) -> None:
    """The slowest latency that a message can say makes a limit that a message can say."""
    fleet.born()
    fleet.reports(8, [1e9] * 20, memory=())

    assert fleet.limits() == (Limit(limit_ms=1e9, revision=1),)
    assert fleet.cell().phase == "judged"


# baselines


def test_a_class_waits_for_all_its_devices(fleet: Fleet) -> None:
    fleet.born("a", "b")
    fleet.reports(4, device="a")
    assert fleet.limits() == ()

    fleet.reports(3, device="b")
    assert len(fleet.limits()) == 1
    fleet.reports(1, device="b")
    assert fleet.cell("b").phase == "calibrating"


def test_a_class_does_not_wait_for_ever(fleet: Fleet) -> None:
    fleet.born("a", "silent-one")
    fleet.reports(5, device="a")
    assert fleet.limits() == ()

    fleet.reports(1, device="a")
    assert len(fleet.limits()) == 1
    fleet.reports(7, device="a")
    assert fleet.cell("a").phase == "judged"


def test_a_device_that_comes_later_is_held_to_its_class_at_once(fleet: Fleet) -> None:
    fleet.calibrated("a", "b")
    fleet.born("late")
    fleet.reports(5, SLOW, device="late")

    assert fleet.cell("late").phase == "judged"
    assert [flag.device for flag in fleet.flags()] == ["late"]


def test_a_class_that_was_not_steady_takes_its_reference_anew_before_anybody_is_judged(fleet: Fleet) -> None:
    """Burn-in fell into a quiet hour: not one device keeps to the limit that it set."""
    busy = [1.0] * 10 + [1.5] * 10
    fleet.born("press-01", "press-02")
    for samples in [STEADY] * 3 + [busy] * 12:
        for device in ("press-01", "press-02"):
            fleet.reports(1, samples, device=device)

    assert fleet.limits()[0].revision == 2
    assert fleet.limits()[0].limit_ms > 1.5
    assert fleet.cell().phase == "judged"
    assert not fleet.flags()
    for _ in range(10):
        fleet.reports(1, [3.0] * 20)
    assert [flag.device for flag in fleet.flags()] == ["press-01"]


def test_a_class_that_is_not_steady_says_so_while_it_waits(fleet: Fleet) -> None:
    fleet.born()
    fleet.reports(3)
    fleet.reports(5, [1.0] * 10 + [1.5] * 10)

    assert fleet.cell().phase == "calibrating"
    assert "its class was not steady, this is its reference no. 2" in fleet.metric("latency").reason
    assert "2 of 3 windows" in fleet.metric("latency").reason


def test_throttled_windows_make_no_baseline(fleet: Fleet) -> None:
    fleet.born()
    fleet.reports(10, SLOW, throttled=True)
    assert fleet.limits() == ()

    fleet.reports(3)
    (limit,) = fleet.limits()
    assert limit.limit_ms == pytest.approx(1.1, rel=0.02)


def test_windows_of_a_device_that_is_outside_in_accuracy_make_no_baseline(fleet: Fleet) -> None:
    fleet.born("wrong", "right")
    fleet.reports(2, device="wrong", accuracy=accuracy(2))
    fleet.reports(6, SLOW, device="wrong", accuracy=accuracy(2))
    assert fleet.cell("wrong").verdict == "outside"
    fleet.reports(6, device="right", accuracy=accuracy(1))

    (limit,) = fleet.limits()
    assert limit.limit_ms == pytest.approx(1.1, rel=0.02)


def test_a_count_against_another_limit_is_no_evidence(fleet: Fleet) -> None:
    """A device that changed release or class counts against the older limit for a while, of the same revision."""
    fleet.calibrated()
    wrong = (Limit(limit_ms=0.5, revision=1),)
    fleet.reports(8, exceedances=exceedances(STEADY, wrong))

    assert not fleet.flags()
    assert "limit in force" in fleet.metric("latency").reason


def test_a_run_that_may_not_be_compared_is_incomparable_and_the_keys_are_named(fleet: Fleet) -> None:
    fleet.calibrated("a")
    odd = replace(RUN, threads=4, accelerator_executed="none")
    fleet.born("b", run=odd)
    fleet.reports(8, SLOW, device="b", run=odd)

    cell = fleet.cell("b")
    assert cell.verdict == "incomparable"
    assert "threads (4 here, 1 in its class)" in cell.reason
    assert "accelerator_executed (none here, xnnpack in its class)" in cell.reason
    assert not fleet.flags()


@pytest.mark.parametrize(
    ("odd", "named"),
    [
        (
            {"mode": "cadence", "cadence_ms": 40.0},
            "mode (cadence here, steady in its class), cadence_ms (40.0 here, None in its class)",
        ),
        ({"run": replace(RUN, delegated_ratio=0.1)}, "delegated_ratio (0.1 here, 1.0 in its class)"),
    ],
)
def test_a_window_that_was_executed_in_another_way_is_incomparable(
    fleet: Fleet, odd: dict[str, Any], named: str
) -> None:
    fleet.calibrated()
    fleet.born(run=odd.get("run", RUN))
    fleet.reports(8, SLOW, **odd)

    assert fleet.cell().verdict == "incomparable"
    assert named in fleet.metric("latency").reason
    assert not fleet.flags()

    fleet.reports(1)
    assert fleet.cell().verdict == "undetermined"


def test_windows_of_another_cadence_than_most_make_no_baseline(fleet: Fleet) -> None:
    """Neither burn-in's nor calibration's, though they come from the same run context."""
    often = {"mode": "cadence", "cadence_ms": 40.0}
    seldom = {"mode": "cadence", "cadence_ms": 1000.0}
    fleet.born("a-odd-one", "b", "c")
    for _ in range(7):
        fleet.reports(1, device="c", **often)
        fleet.reports(1, device="b", **often)
        fleet.reports(1, SLOW, device="a-odd-one", **seldom)

    assert {row.device: row.verdict for row in fleet.reader.cells()} == {
        "a-odd-one": "incomparable",
        "b": "undetermined",
        "c": "undetermined",
    }
    assert "cadence_ms (1000.0 here, 40.0 in its class)" in fleet.cell("a-odd-one").reason
    (limit,) = fleet.limits()
    assert limit.limit_ms == pytest.approx(1.1, rel=0.02)
    with fleet.writer.transaction() as tx:
        baseline = tx.class_baseline(ClassKey(RELEASE, "float32", RUN.device_class))
    assert baseline is not None
    assert (baseline.mode, baseline.cadence_ms, baseline.devices) == ("cadence", 40.0, 2)


def test_a_device_that_changes_its_cadence_in_burn_in_gives_its_first_ones_windows_alone(fleet: Fleet) -> None:
    fleet.born()
    fleet.reports(1)
    fleet.reports(2, SLOW, mode="cadence", cadence_ms=40.0)

    (limit,) = fleet.limits()
    assert limit.limit_ms == pytest.approx(1.1, rel=0.02)


def test_windows_of_another_cadence_are_not_in_the_evidence(fleet: Fleet) -> None:
    """They were never counted: an explanation that holds them would not add up."""
    fleet.calibrated()
    fleet.reports(3, SLOW)
    odd = fleet.measured(SLOW, mode="cadence", cadence_ms=40.0)
    fleet.take(odd)
    fleet.reports(3, SLOW)

    (flag,) = fleet.flags()
    evidence = json.loads(flag.evidence_json)
    assert odd.seq not in [window["seq"] for window in evidence["windows"]]
    assert evidence["stat_nats"] >= evidence["threshold_nats"]


def test_the_odd_one_of_a_class_does_not_become_what_the_others_are_held_to(fleet: Fleet) -> None:
    """Not even where it is the last to finish, and slower."""
    odd = replace(RUN, threads=4)
    fleet.born("a", "b", "c")
    fleet.born("odd", run=odd)
    for device in ("a", "b", "c"):
        fleet.reports(3, device=device)
    fleet.reports(3, SLOW, device="odd", run=odd)
    for device in ("a", "b", "c", "odd"):
        fleet.reports(1, device=device, run=odd if device == "odd" else RUN)

    assert {row.device: row.verdict for row in fleet.reader.cells()} == {
        "a": "undetermined",
        "b": "undetermined",
        "c": "undetermined",
        "odd": "incomparable",
    }
    (limit,) = fleet.limits()
    assert limit.limit_ms == pytest.approx(1.1, rel=0.02)
    with fleet.writer.transaction() as tx:
        baseline = tx.class_baseline(ClassKey(RELEASE, "float32", RUN.device_class))
    assert baseline is not None
    assert (baseline.run.threads, baseline.devices) == (1, 3)


def test_a_device_that_moves_to_another_class_takes_no_flag_along(fleet: Fleet) -> None:
    fleet.calibrated()
    fleet.reports(5, SLOW)
    assert [flag.metric for flag in fleet.flags(only_open=True)] == ["latency"]

    moved = replace(RUN, device_class="another")
    fleet.born(run=moved)
    fleet.reports(1, SLOW, run=moved)

    assert fleet.flags(only_open=True) == []
    assert (fleet.cell().device_class, fleet.cell().phase) == ("another", "burn-in")


# flags


def test_a_steady_device_gets_to_within_and_is_never_flagged(fleet: Fleet) -> None:
    fleet.calibrated()
    fleet.reports(70, accuracy=accuracy(1))
    assert fleet.metric("latency").verdict == "within"
    assert fleet.metric("accuracy").verdict == "within"
    assert not fleet.flags()


def test_three_bad_windows_are_no_flag_and_more_of_them_are_one(fleet: Fleet) -> None:
    fleet.calibrated()
    fleet.reports(3, SLOW)
    assert not fleet.flags()

    fleet.reports(2, SLOW)
    (flag,) = fleet.flags()
    assert (flag.device, flag.metric, flag.cleared_s) == (DEVICE, "latency", None)
    assert fleet.cell().verdict == "outside"

    fleet.reports(20, SLOW)
    assert len(fleet.flags()) == 1


def test_a_flag_clears_once_and_opens_again(fleet: Fleet) -> None:
    fleet.calibrated()
    fleet.reports(6, SLOW)
    fleet.reports(5)
    assert fleet.cell().verdict == "outside"

    fleet.now_s += 7
    fleet.reports(10)
    (flag,) = fleet.flags()
    assert flag.cleared_s == NOW_S + 7
    assert fleet.cell().verdict == "undetermined"

    fleet.reports(6, SLOW)
    assert [one.cleared_s is None for one in fleet.flags()] == [False, True]


def test_accuracy_is_judged_from_the_first_window(fleet: Fleet) -> None:
    fleet.born()
    fleet.reports(1, accuracy=replace(accuracy(2), hamming=None))
    fleet.reports(2, accuracy=accuracy(2))
    assert not fleet.flags()

    fleet.reports(1, accuracy=accuracy(2))
    (flag,) = fleet.flags()
    assert flag.metric == "accuracy"
    assert "2 against 1 of 4" in flag.reason

    fleet.reports(6, accuracy=accuracy(1))
    assert fleet.flags(only_open=True) == []


@pytest.mark.parametrize("metric", ["latency", "accuracy", "memory"])
def test_the_evidence_alone_makes_the_flag_again(fleet: Fleet, metric: str) -> None:
    """By the program that the documentation gives to whoever does not believe it."""
    program = VERDICTS_PAGE.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    fleet.calibrated()
    fleet.reports(2, SLOW[:12] + STEADY[:8])
    skipped = fleet.measured(SLOW)
    large = MemoryReading(kind="peak_rss", bytes=90_000_000, method="VmHWM")
    bad = {"latency": {"samples_ms": SLOW}, "accuracy": {"accuracy": accuracy(3)}, "memory": {"memory": (large,)}}
    fleet.reports(30, **bad[metric])  # type: ignore[arg-type]
    fleet.take(skipped)
    flag = next(flag for flag in fleet.flags() if flag.metric == metric)

    evidence = json.dumps({"why": json.loads(flag.evidence_json)})
    done = subprocess.run([sys.executable, "-c", program], input=evidence, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_window_that_came_too_late_is_not_in_the_evidence(fleet: Fleet) -> None:
    """It was passed over, so it was never counted: an explanation that holds it would not add up."""
    fleet.calibrated()
    late = fleet.measured(SLOW)
    fleet.reports(3, SLOW)
    fleet.take(late)
    fleet.reports(5, SLOW)

    (flag,) = fleet.flags()
    evidence = json.loads(flag.evidence_json)
    assert late.seq not in [window["seq"] for window in evidence["windows"]]
    assert evidence["stat_nats"] >= evidence["threshold_nats"]


# policies


def put_policy(fleet: Fleet, policy: Policy) -> None:
    with fleet.writer.transaction() as tx:
        tx.put_policy(policy, fleet.now_s)


def test_a_new_policy_starts_the_evidence_anew_and_no_baseline(fleet: Fleet) -> None:
    fleet.calibrated()
    fleet.reports(4, SLOW)
    limits = fleet.limits()
    put_policy(fleet, replace(POLICY, revision=3))
    fleet.reports(4, SLOW)

    assert not fleet.flags()
    assert fleet.limits() == limits
    assert fleet.cell().phase == "judged"
    fleet.reports(1, SLOW)
    assert len(fleet.flags()) == 1


def test_a_policy_that_allows_more_than_a_frozen_baseline_judges_on(fleet: Fleet) -> None:
    fleet.calibrated()
    looser = replace(POLICY.latency, quantile=POLICY.latency.quantile - 0.10)
    put_policy(fleet, replace(POLICY, revision=3, latency=looser))
    fleet.reports(12, SLOW)
    assert len(fleet.flags()) == 1


def test_a_flag_that_is_open_stays_so_under_a_new_policy_and_opens_no_second_time(fleet: Fleet) -> None:
    fleet.calibrated()
    fleet.reports(5, SLOW)
    put_policy(fleet, replace(POLICY, revision=3))
    fleet.reports(10, SLOW)
    assert len(fleet.flags()) == 1
    assert fleet.cell().verdict == "outside"

    fleet.reports(6)
    assert fleet.flags(only_open=True) == []


@pytest.mark.parametrize("at_once", [True, False])
def test_the_budget_makes_room_for_every_stream(fleet: Fleet, at_once: bool) -> None:
    devices = [f"press-{number:02}" for number in range(30)]
    fleet.born(*devices)
    windows = [fleet.measured(device=device) for device in devices]
    for batch in [windows] if at_once else [[one] for one in windows]:
        fleet.take(*batch)

    assert len(fleet.reader.cells()) == 30
    policy = fleet.reader.policy()
    assert (policy.streams, policy.revision) == (128, POLICY.revision + 1)
    assert replace(policy, streams=64, revision=2) == POLICY


# what fails


def test_what_cannot_be_judged_is_passed_over_once_and_everything_else_goes_on(fleet: Fleet) -> None:
    """One class's baseline is damaged: each of its windows fails, at this start and at every other."""
    other = replace(RUN, device_class="board")
    fleet.calibrated()
    fleet.born("press-02", run=other)
    damaged = fleet.measured()
    with sqlite3.connect(fleet.directory / FILE_NAME) as db:
        db.execute("UPDATE class_baselines SET body = 'damaged'")
    sound = fleet.measured(device="press-02", run=other)
    fleet.take(damaged, sound)

    assert fleet.cell("press-02").windows == 1
    assert fleet.skips() == [(1, damaged.seq, damaged.seq, "failed")]
    assert (fleet.cell().verdict, fleet.cell().windows) == ("undetermined", 7)
    assert f"window {damaged.seq} could not be judged" in fleet.cell().reason
    assert fleet.reader.stats().passed_over["judging-failed"] == 1

    fleet.judge = Judge(fleet.writer)
    fleet.step()
    assert fleet.reader.stats().passed_over["judging-failed"] == 1
    assert fleet.reader.lag() == 0


@pytest.mark.parametrize(
    "damage", ["UPDATE cells SET row = 'damaged'", "UPDATE windows SET body = 'damaged' WHERE seq = 9"]
)
def test_a_damaged_row_of_one_device_keeps_no_other_from_being_judged(fleet: Fleet, damage: str) -> None:
    fleet.calibrated()
    Ingest(fleet.writer).save([arrival(fleet.measured())], fleet.now_s)
    if "cells" in damage:
        fleet.step()
    with sqlite3.connect(fleet.directory / FILE_NAME) as db:
        db.execute(damage)
    fleet.now_s += 1e6
    other = replace(RUN, device_class="board")
    fleet.born("press-02", run=other)
    fleet.reports(1, device="press-02", run=other)
    fleet.step(connected_since_s=NOW_S)

    with sqlite3.connect(fleet.directory / FILE_NAME) as db:
        assert db.execute("SELECT verdict FROM cells WHERE device = 'press-02'").fetchone() == ("undetermined",)
    assert fleet.reader.stats().passed_over["judging-failed"] >= 1


def test_a_class_whose_baseline_cannot_be_made_does_not_keep_its_devices_from_being_judged(fleet: Fleet) -> None:
    fleet.born()
    fleet.reports(2, accuracy=accuracy(1))
    with sqlite3.connect(fleet.directory / FILE_NAME) as db:
        db.execute("UPDATE windows SET body = 'damaged' WHERE seq = 2")
    fleet.reports(3, accuracy=accuracy(1))

    assert fleet.cell().phase == "burn-in"
    assert fleet.metric("accuracy").verdict == "within"
    assert not fleet.skips()


def test_a_device_that_sends_every_other_number_is_judged_like_any_other(fleet: Fleet) -> None:
    fleet.born()
    every_other = [fleet.measured() for _ in range(600)][::2]
    fleet.take(*every_other)

    assert fleet.cell().windows == 300 - 2  # the last two gaps have not three windows behind them yet
    assert len(fleet.skips()) == 297


def test_one_step_takes_no_more_than_its_share_of_a_long_queue(fleet: Fleet) -> None:
    fleet.born()
    Ingest(fleet.writer).save([arrival(fleet.measured()) for _ in range(1200)], fleet.now_s)

    counts = []
    while fleet.judge.step(fleet.now_s, connected_since_s=None):
        counts.append(fleet.cell().windows)
    assert counts == [500, 1000]
    assert fleet.cell().windows == 1200


# what windows say of themselves


def test_a_window_that_names_another_comparability_than_its_context_is_judged_by_the_context_and_counted(
    fleet: Fleet,
) -> None:
    fleet.calibrated()
    honest, lying = messages.comparability(RUN), "0123456789abcdef"
    fleet.reports(2, comparability=honest)
    assert "comparability-differs" not in fleet.reader.stats().passed_over

    windows = fleet.cell().windows
    fleet.reports(2, comparability=lying)

    assert fleet.reader.stats().passed_over["comparability-differs"] == 2
    assert fleet.reader.stats().dead_letters == 0
    assert fleet.cell().windows == windows + 2
    assert fleet.cell().verdict != "incomparable"


def test_a_window_before_its_context_is_undetermined_whatever_comparability_it_names(fleet: Fleet) -> None:
    fleet.take(state(), fleet.measured(comparability=messages.comparability(RUN)))

    assert fleet.cell().verdict == "undetermined"
    assert "comparability-differs" not in fleet.reader.stats().passed_over


def test_how_the_latest_windows_inferences_were_called_is_in_the_row(fleet: Fleet) -> None:
    told: dict[str, Any] = {
        "cadence_ms": 40.0,
        "late_starts": 3,
        "phases": (messages.Phase(name="queue", n=20, p50_ms=0.1, p95_ms=0.2),),
        "sustained": messages.Sustained(
            duration_s=600.0, span_s=60.0, inferences=9, first_p50_ms=4.0, last_p50_ms=5.0, slowdown_ratio=1.25
        ),
        "throughput": messages.Throughput(batch=8, inferences=80, duration_s=1.0, per_s=80.0),
    }
    fleet.born()
    fleet.reports(1, mode="cadence", **told)
    assert fleet.cell().circumstances == Circumstances(**told)


def test_what_the_latest_window_was_measured_under_is_in_the_row_and_goes_with_the_next(fleet: Fleet) -> None:
    fleet.born()
    conditions = messages.Conditions(steal_ratio=0.25)
    fleet.reports(1, conditions=conditions)
    assert fleet.cell().circumstances == Circumstances(conditions=conditions)

    fleet.reports(1)
    assert fleet.cell().circumstances is None


# silence


def test_a_device_is_silent_after_three_windows_without_a_word_and_not_before(fleet: Fleet) -> None:
    fleet.calibrated()
    fleet.now_s += 3 * 300
    fleet.step(connected_since_s=NOW_S - 1e6)
    assert fleet.cell().verdict != "silent"

    fleet.now_s += 1
    fleet.step(connected_since_s=NOW_S - 1e6)
    assert fleet.cell().verdict == "silent"

    fleet.reports(1)
    assert fleet.cell().verdict == "undetermined"


@pytest.mark.parametrize(("length_s", "after_s"), [(3600.0, 3 * 3600), (1e11, 3 * 86_400), (60.0, 3 * 300)])
def test_a_device_that_stretches_its_windows_is_silent_after_three_of_its_own_a_day_each_at_most(
    fleet: Fleet, length_s: float, after_s: float
) -> None:
    fleet.born()
    fleet.take(fleet.measured(length_s=length_s), fleet.measured(variant="int8"))
    fleet.now_s += after_s
    fleet.step(connected_since_s=NOW_S - 1e6)
    assert fleet.cell().verdict != "silent"

    fleet.now_s += 1
    fleet.step(connected_since_s=NOW_S - 1e6)
    assert fleet.cell().verdict == "silent"
    assert fleet.cell().reason == f"nothing heard of the device for more than {after_s:g} s"
    assert fleet.cell(variant="int8").reason == "nothing heard of the device for more than 900 s"


def test_a_device_that_goes_back_to_short_windows_is_missed_as_soon_as_others(fleet: Fleet) -> None:
    fleet.born()
    fleet.take(fleet.measured(length_s=3600.0))
    fleet.take(fleet.measured(length_s=300.0))
    fleet.now_s += 901
    fleet.step(connected_since_s=NOW_S - 1e6)

    assert fleet.cell().verdict == "silent"


def test_a_stretched_window_is_waited_for_from_when_the_collector_could_hear(fleet: Fleet) -> None:
    fleet.born()
    fleet.take(fleet.measured(length_s=3600.0))
    fleet.now_s += 1e6
    fleet.step(connected_since_s=fleet.now_s - 3 * 3600)
    assert fleet.cell().verdict != "silent"

    fleet.step(connected_since_s=fleet.now_s - 3 * 3600 - 1)
    assert fleet.cell().verdict == "silent"


@pytest.mark.parametrize(("length_s", "awake_s"), [(300.0, 900), (3600.0, 3 * 3600)])
def test_a_device_that_sleeps_is_silent_a_day_later_than_others(fleet: Fleet, length_s: float, awake_s: float) -> None:
    fleet.born()
    fleet.take(fleet.measured(length_s=length_s))
    fleet.now_s += 60
    fleet.take(state(status="sleeping"))
    fleet.now_s += 86_400 + awake_s - 60
    fleet.step(connected_since_s=NOW_S - 1e6)
    assert fleet.cell().verdict == "undetermined"

    fleet.now_s += 1
    fleet.step(connected_since_s=NOW_S - 1e6)
    assert fleet.cell().verdict == "silent"
    told = (
        f"no window of this variant came for more than {86_400 + awake_s:g} s, of which the device may have slept a day"
    )
    assert fleet.cell().reason == told


def test_a_device_that_woke_has_time_to_send_what_waited(fleet: Fleet) -> None:
    fleet.born()
    fleet.reports(1)
    fleet.take(state(status="sleeping"))
    fleet.now_s += 86_400
    fleet.take(state(session="00000001"))
    fleet.step(connected_since_s=NOW_S - 1e6)
    assert fleet.cell().verdict == "undetermined"

    fleet.reports(1)
    fleet.now_s += 901
    fleet.step(connected_since_s=NOW_S - 1e6)
    assert fleet.cell().verdict == "silent"
    assert fleet.cell().reason == "nothing heard of the device for more than 900 s"


def test_a_device_that_falls_asleep_over_and_over_without_a_window_is_silent_all_the_same(fleet: Fleet) -> None:
    fleet.born()
    fleet.reports(1)
    for hour in range(25):
        fleet.take(state(session=f"{hour:08x}"), state(status="sleeping", session=f"{hour:08x}"))
        fleet.step(connected_since_s=NOW_S - 1e6)
        assert fleet.cell().verdict == "undetermined"
        fleet.now_s += 3600
    fleet.step(connected_since_s=NOW_S - 1e6)
    assert fleet.cell().verdict == "silent"


def test_nobody_is_silent_while_the_collector_cannot_hear(fleet: Fleet) -> None:
    fleet.calibrated()
    fleet.now_s += 1e6
    fleet.step(connected_since_s=None)
    fleet.step(connected_since_s=fleet.now_s - 899)
    assert fleet.cell().verdict != "silent"

    fleet.step(connected_since_s=fleet.now_s - 901)
    assert fleet.cell().verdict == "silent"


def test_a_refused_variant_is_not_called_silent(fleet: Fleet) -> None:
    fleet.born()
    fleet.take(event(fleet.seq(), event="variant-refused", release=RELEASE, variant="int8", detail="too new"))
    fleet.now_s += 1e6
    fleet.step(connected_since_s=NOW_S)

    assert fleet.cell(variant="int8").verdict == "undetermined"


def test_silence_neither_clears_nor_opens_a_flag(fleet: Fleet) -> None:
    fleet.calibrated()
    fleet.reports(5, SLOW)
    fleet.now_s += 1e6
    fleet.step(connected_since_s=NOW_S)

    assert (fleet.cell().verdict, fleet.metric("latency").verdict) == ("outside", "outside")
    assert "nothing heard of the device" in fleet.cell().reason
    assert fleet.metric("memory").verdict == "silent"

    fleet.reports(1, SLOW)
    assert len(fleet.flags(only_open=True)) == 1
    assert fleet.cell().verdict == "outside"


def test_a_variant_that_stops_is_silent_though_its_device_goes_on_with_another(fleet: Fleet) -> None:
    fleet.born()
    fleet.reports(3)
    fleet.reports(3, variant="int8")
    for _ in range(4):
        fleet.now_s += 300
        fleet.reports(1)
        fleet.step(connected_since_s=NOW_S - 1e6)

    assert fleet.cell().verdict == "undetermined"
    assert fleet.cell(variant="int8").verdict == "silent"
    assert "no window of this variant" in fleet.cell(variant="int8").reason
    assert fleet.cell(variant="int8").p95_ms == 1.0


def test_a_variant_that_was_to_run_and_never_came_is_silent(fleet: Fleet) -> None:
    fleet.born()
    fleet.assigned(RELEASE)
    assert fleet.cell(variant="int8").verdict == "undetermined"
    fleet.now_s += 901
    fleet.reports(1)
    fleet.step(connected_since_s=NOW_S - 1e6)

    assert fleet.cell(variant="int8").verdict == "silent"
    assert fleet.cell().verdict == "undetermined"


@pytest.mark.parametrize("instead", [None, "f" * 64])
def test_flags_of_what_is_not_run_any_more_are_closed_once_nothing_comes_of_it(
    fleet: Fleet, instead: str | None
) -> None:
    fleet.calibrated()
    fleet.assigned(RELEASE)
    fleet.reports(5, SLOW, accuracy=accuracy(4))
    assert {flag.metric for flag in fleet.flags(only_open=True)} == {"latency", "accuracy"}

    fleet.assigned(instead)
    fleet.reports(1, SLOW, accuracy=accuracy(4))
    assert len(fleet.flags(only_open=True)) == 2  # the device goes on until it has the other release
    fleet.now_s += 901
    fleet.step(connected_since_s=NOW_S - 1e6)

    assert not fleet.flags(only_open=True)
    assert fleet.cell().verdict == "undetermined"
    assert "not run any more" in fleet.cell().reason

    fleet.assigned(RELEASE)
    fleet.reports(1)
    assert fleet.cell().verdict == "undetermined"


def test_a_cell_that_was_silent_when_its_release_was_replaced_is_retired_too(fleet: Fleet) -> None:
    fleet.calibrated()
    fleet.assigned(RELEASE)
    fleet.reports(5, SLOW)
    fleet.now_s += 901
    fleet.step(connected_since_s=NOW_S - 1e6)
    assert len(fleet.flags(only_open=True)) == 1

    fleet.assigned(None)
    fleet.step(connected_since_s=NOW_S - 1e6)
    assert not fleet.flags(only_open=True)


@pytest.mark.parametrize(
    "odd",
    [
        {"run": replace(RUN, threads=4)},
        {"context": "e" * 64},
        {"artifact": "e" * 64},
        {"accuracy": accuracy(4, golden="e" * 64)},
        {"accuracy": None},
    ],
)
def test_an_open_flag_is_outside_whatever_the_next_window_lacks(fleet: Fleet, odd: dict[str, Any]) -> None:
    fleet.calibrated()
    fleet.reports(5, SLOW, accuracy=accuracy(4))
    fleet.born(run=odd.get("run", RUN))
    fleet.take(fleet.measured(**odd))

    assert len(fleet.flags(only_open=True)) == 2
    assert fleet.cell().verdict == "outside"
    assert "accuracy" in fleet.cell().reason
    assert "latency" in fleet.cell().reason


def test_a_release_that_is_wanted_again_is_not_silent_before_its_time(fleet: Fleet) -> None:
    fleet.calibrated()
    fleet.assigned(RELEASE)
    fleet.reports(1)
    fleet.assigned("f" * 64)
    fleet.now_s += 86_400
    fleet.step(connected_since_s=NOW_S - 1e6)

    fleet.assigned(RELEASE)
    fleet.now_s += 1
    fleet.step(connected_since_s=NOW_S - 1e6)
    assert fleet.cell().verdict == "undetermined"

    fleet.now_s += 901
    fleet.step(connected_since_s=NOW_S - 1e6)
    assert fleet.cell().verdict == "silent"


def test_a_refusal_of_a_life_that_is_over_says_nothing_of_the_next(fleet: Fleet) -> None:
    newer = Incarnation(2, "00000000")
    fleet.born()
    refused = event(fleet.seq(), event="variant-refused", release=RELEASE, variant="float32", detail="too new")
    fleet.take(fleet.measured(incarnation=newer), refused)

    assert (fleet.cell().refusal, fleet.cell().windows) == (None, 1)


def test_a_refused_variant_keeps_its_open_flag_in_view(fleet: Fleet) -> None:
    fleet.calibrated()
    fleet.reports(5, SLOW)
    fleet.take(event(fleet.seq(), event="variant-refused", release=RELEASE, variant="float32", detail="too new"))

    assert (fleet.cell().verdict, fleet.cell().refusal) == ("outside", "too new")


# death


class Killed(BaseException):
    pass


@pytest.mark.parametrize("every", [1, 2, 5, 23, 211])
def test_a_death_at_any_statement_changes_nothing(
    tmp_path: Path, story: tuple[list[Uplink], tuple[list[CellRow], list[FlagRow]]], every: int
) -> None:
    """The judge dies again and again, each time one statement further on, until it has come through."""
    sent, expected = story
    left: list[int] = []

    class Dying(sqlite3.Connection):
        def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
            if left:
                left[0] -= 1
                if left[0] < 0:
                    raise Killed
            return super().execute(sql, *values)

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None, factory=Dying)

    fleet = Fleet(tmp_path, connect)
    with fleet.writer.transaction() as tx:
        assert tx.policy() == POLICY
    for start in range(0, len(sent), 20):
        Ingest(fleet.writer).save([arrival(one) for one in sent[start : start + 20]], fleet.now_s)
        for survived in range(0, 100_000, every):
            left[:] = [survived]
            try:
                fleet.step()
                break
            except Killed:
                left.clear()
                fleet.writer.close()
                fleet.writer = SqliteWriter(connect)
                fleet.judge = Judge(fleet.writer)
        left.clear()

    assert fleet.outcome() == expected
    fleet.writer.close()
