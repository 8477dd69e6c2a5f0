"""Follow the log in order and have every window assessed, and every refusal and silence noted.

Decides the order, and what is not waited for. Leaves to `assess` what a window means, to `silence` what is missing,
to `steer` what devices are told in consequence. Everything that one step does is one transaction with its cursor.

* The order is (incarnation, seq), never the wall clock or the order of arrival: a window waits for those before it.
* It does not wait for ever: behind three later windows, or twenty minutes, what is missing is passed over, which is
  written as a skip row, so that a replay of the log passes it over too.
* An incarnation that a later one has overtaken is history: its windows are kept, and judge nobody.
* A window that cannot be assessed is passed over like one that is missing: judging stops for no device's data.
* A step assesses what stands in its batch of the log, however many windows a device has sent since.
* A kill at any instant loses nothing: what was not committed is judged again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from evenfleet_collector import shown, silence
from evenfleet_collector.assess import assess, has_variant
from evenfleet_collector.containment import Containment
from evenfleet_collector.store import JudgeRows, Writer
from evenfleet_collector.store.rows import ArrivalRow, EventRow
from evenfleet_shared.messages import Incarnation, Window

BATCH: Final = 500
WATERMARK_WINDOWS: Final = 3
WATERMARK_S: Final = 20 * 60.0
_STALE_EVERY_S: Final = 60.0


class Judge:
    """The loop behind `ingest`."""

    def __init__(self, store: Writer) -> None:
        self._store = store
        self._contained = Containment("judging-failed")
        self._stale_checked_s = 0.0

    def step(self, now_s: float, *, connected_since_s: float | None) -> bool:
        """Judge what has come.

        Args:
            now_s: Seconds since 1970, by the collector's clock.
            connected_since_s: Since when the collector itself can hear devices, None while it cannot: silence counts
                from then on.

        Returns:
            Whether there is more to do at once.
        """
        with self._store.transaction() as tx:
            cursor = tx.cursor("judge")
            arrivals = tx.arrivals(cursor, BATCH)
            if arrivals:
                cursor = arrivals[-1].id
                tx.put_cursor("judge", cursor)
            # In order: an older life that came in the same batch is not overtaken by the newer one.
            for device, incarnation in sorted({(arrival.device, arrival.incarnation) for arrival in arrivals}):
                self._judge_life(tx, device, incarnation, cursor, now_s)
            # Now that the cells which they are of have rows.
            _hear(tx, arrivals)
            if now_s - self._stale_checked_s >= _STALE_EVERY_S:
                self._stale_checked_s = now_s
                for device, incarnation in sorted(tx.unjudged(now_s - WATERMARK_S)):
                    self._judge_life(tx, device, incarnation, cursor, now_s)
            more = len(arrivals) == BATCH
            more |= self._note_refusals(tx, now_s)
            if connected_since_s is not None and not more:
                with self._contained.part(tx, "noticing silence"):
                    more = silence.note(tx, tx.policy(), now_s, connected_since_s, self._contained)
        return more

    def _judge_life(
        self, tx: JudgeRows, device: str, incarnation: Incarnation, log_position: int, now_s: float
    ) -> None:
        with self._contained.part(tx, f"judging life {incarnation.counter} of {device}"):
            _Life(tx, device, incarnation, log_position, now_s, self._contained).judge()

    def _note_refusals(self, tx: JudgeRows, now_s: float) -> bool:
        events = tx.events(tx.cursor("judge-events"), BATCH)
        for event in events:
            if event.event == "variant-refused":
                with self._contained.part(tx, f"event {event.id} of {event.device}"):
                    _note_refusal(tx, event, now_s)
        if events:
            tx.put_cursor("judge-events", events[-1].id)
        return len(events) == BATCH


def _hear(tx: JudgeRows, arrivals: Sequence[ArrivalRow]) -> None:
    last = {(arrival.device, arrival.release, arrival.variant): arrival for arrival in arrivals}
    for cell, arrival in last.items():
        tx.hear_cell(*cell, arrival.received_s, arrival.length_s)


def _note_refusal(tx: JudgeRows, event: EventRow, now_s: float) -> None:
    if event.release is None or event.variant is None or not has_variant(tx.manifest(event.release), event.variant):
        return
    newest = tx.newest_judged(event.device)
    if newest is not None and event.incarnation < newest:
        return  # of a life that is over: what it could not run, a later one may
    cell = tx.cell(event.device, event.release, event.variant)
    tx.put_row(shown.refused(event, tx.device_class(event.device) or "unclassified", cell, now_s))


class _Life:
    """One incarnation of one device, judged as far as it has come."""

    def __init__(
        self,
        tx: JudgeRows,
        device: str,
        incarnation: Incarnation,
        log_position: int,
        now_s: float,
        contained: Containment,
    ) -> None:
        self._tx = tx
        self._device = device
        self._incarnation = incarnation
        self._log_position = log_position
        self._now_s = now_s
        self._contained = contained
        self._settled = tx.incarnation(device, incarnation).settled
        self._judged_to = tx.judging(device, incarnation)

    def judge(self) -> None:
        """Judge what is in order; pass over what is missing for too long, or has been overtaken."""
        newest = self._tx.newest_judged(self._device)
        if newest is not None and newest > self._incarnation:
            self._skip(self._settled[-1][1], "overtaken")
        for first, last in self._settled:
            if last <= self._judged_to:
                continue
            if first > self._judged_to + 1:
                if not self._is_behind_watermark(first):
                    break
                self._skip(first - 1, "watermark")
            # What stands further on in the log is another step's, which will find this life again.
            later = self._tx.first_behind(
                self._device, self._incarnation, self._judged_to + 1, last, self._log_position
            )
            self._judge_to(last if later is None else later - 1)
            if later is not None:
                break

    def _judge_to(self, last: int) -> None:
        for row in self._tx.windows_in(self._device, self._incarnation, self._judged_to + 1, last):
            self._advance(row.window.seq)
            self._assess(row.window)
        self._advance(last)

    def _assess(self, window: Window) -> None:
        name = f"window {window.seq} of {window.device}, {window.variant}"
        assessed = False
        with self._contained.part(self._tx, name):
            assess(self._tx, window, self._now_s, self._contained)
            assessed = True
        if not assessed:
            self._tx.add_skip(self._device, self._incarnation, window.seq, window.seq, "failed")
            with self._contained.part(self._tx, f"the row of {name}"):
                self._show_failure(window)

    def _show_failure(self, window: Window) -> None:
        cell = self._tx.cell(window.device, window.release, window.variant)
        device_class = cell.key.device_class if cell else self._tx.device_class(window.device) or "unclassified"
        reason = f"window {window.seq} could not be judged; the collector's log says why"
        self._tx.put_row(shown.not_judged(window, device_class, cell, reason, self._now_s))

    def _is_behind_watermark(self, gap_end: int) -> bool:
        received_s = self._tx.received_from(self._device, self._incarnation, gap_end, WATERMARK_WINDOWS)
        return len(received_s) >= WATERMARK_WINDOWS or any(at < self._now_s - WATERMARK_S for at in received_s)

    def _skip(self, last: int, reason: str) -> None:
        if last > self._judged_to:
            self._tx.add_skip(self._device, self._incarnation, self._judged_to + 1, last, reason)
            self._advance(last)

    def _advance(self, seq: int) -> None:
        self._judged_to = seq
        self._tx.put_judging(self._device, self._incarnation, seq)
