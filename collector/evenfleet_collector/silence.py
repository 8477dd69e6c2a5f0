"""Notice what should be heard of and is not, and close the books on what is not run any more.

A step of the judge. Silence is a cell's, not a device's: a device that goes on with one variant may have lost another.

* Only a cell that its device is to run can be silent. One that it is not to run, and of which nothing comes any more,
  is retired: its flags are closed, and it starts without evidence should it come back.
* Silence neither opens nor closes a flag.
* It counts only while the collector itself could hear.
* Who stretches its windows, or has said that it sleeps, is missed later: `Policy.silent_after` says how much.
"""

from __future__ import annotations

import logging
from typing import Final

from evenfleet_collector import cell as cells
from evenfleet_collector import shown
from evenfleet_collector.containment import Containment
from evenfleet_collector.desired import is_to_run
from evenfleet_collector.store import JudgeRows
from evenfleet_collector.store.rows import QuietCell
from evenfleet_collector.tolerance import Policy
from evenfleet_shared.messages import Desired

log = logging.getLogger(__name__)

BATCH: Final = 500


def note(tx: JudgeRows, policy: Policy, now_s: float, connected_since_s: float, contained: Containment) -> bool:
    """Write down which cells are silent and which are retired; return whether there are more.

    Args:
        tx: The judge's transaction.
        policy: Says after how long.
        now_s: Seconds since 1970, by the collector's clock.
        connected_since_s: Since when the collector can hear devices.
        contained: Keeps one cell's failure from being all others'.
    """
    quiet = tx.quiet(policy, now_s, connected_since_s, BATCH)
    for one in quiet:
        row = one.row
        with contained.part(tx, f"silence of {row.device}, {row.variant}"):
            _note(tx, one, now_s, policy.silent_after(one.length_s, slept=one.slept))
        tx.set_aside(row.device, row.release, row.variant)
    return len(quiet) == BATCH


def _note(tx: JudgeRows, quiet: QuietCell, now_s: float, after_s: float) -> None:
    row = quiet.row
    desired = tx.desired(row.device)
    if desired is not None and not is_to_run(desired, row.release, row.variant):
        _retire(tx, quiet, desired, now_s)
    elif row.refusal is None:
        tx.put_row(shown.silent(row, quiet.cell, _reason(quiet, now_s - after_s, after_s), now_s))


def _retire(tx: JudgeRows, quiet: QuietCell, desired: Desired, now_s: float) -> None:
    row, cell = quiet.row, quiet.cell
    told = f"release {desired.release[:12]}…" if desired.release else "nothing"
    if desired.release == row.release:
        told = f"other variants of {told}"
    ended = shown.retired(row, f"not run any more: the device is to run {told}", now_s)
    if cell is None:
        tx.put_row(ended)
        return
    for metric in cells.METRICS:
        if cells.is_flagged(cell, metric):
            log.info("closed, not run any more: %s %s %s", row.device, row.variant, metric)
            tx.clear_flag(row.device, row.release, row.variant, metric, now_s)
    tx.put_cell(cells.retired(cell), ended)


def _reason(quiet: QuietCell, heard_before_s: float, after_s: float) -> str:
    if quiet.slept:
        return f"no window of this variant came for more than {after_s:g} s, of which the device may have slept a day"
    if quiet.device_heard_s is None or quiet.device_heard_s < heard_before_s:
        return f"nothing heard of the device for more than {after_s:g} s"
    return f"the device is heard of, but no window of this variant came for more than {after_s:g} s"
