"""What of the day's bytes is spent is known to the next process."""

from __future__ import annotations

from pathlib import Path

import pytest

from evenfleet_agent.link.purse import STEPS, Purse
from evenfleet_agent.traffic import DAY_S

BUDGET = 320_000
STEP = BUDGET // STEPS


def purse(path: Path, now_s: float, boot: str = "boot-1") -> Purse:
    return Purse(BUDGET, path, boot, now_s)


def spend(from_: Purse, size: int, now_s: float) -> bool:
    """Spend as the wire does."""
    if not from_.allowance.may_send(size, now_s):
        return False
    from_.cover(size, now_s)
    from_.allowance.spend(size)
    return True


def test_agent_that_is_killed_over_and_over_spends_a_day_once(tmp_path: Path) -> None:
    path, spent, now_s = tmp_path / "traffic.json", 0, 0.0
    for _ in range(200):
        life = purse(path, now_s)
        for _ in range(3):
            now_s += 1.0
            spent += 1000 * spend(life, 1000, now_s)
    assert spent <= BUDGET
    assert spent >= BUDGET // 10


def test_orderly_end_loses_nothing_of_the_day(tmp_path: Path) -> None:
    path = tmp_path / "traffic.json"
    life = purse(path, 0.0)
    assert spend(life, 1000, 1.0)
    life.settle(2.0)
    assert purse(path, 3.0).allowance.spent_bytes == 1000


def test_same_boot_goes_on_in_the_same_day_and_sees_its_end(tmp_path: Path) -> None:
    path = tmp_path / "traffic.json"
    spend(purse(path, 100.0), 1000, 200.0)
    life = purse(path, 100.0 + DAY_S - 1.0)
    assert life.allowance.next_day_in_s(100.0 + DAY_S - 1.0) == 1.0
    assert purse(path, 100.0 + DAY_S + 1.0).allowance.may_send(BUDGET, 100.0 + DAY_S + 1.0)


def test_reboot_makes_no_day_shorter_and_hours_of_running_still_bring_its_end(tmp_path: Path) -> None:
    """Of the time with the device off nobody knows: it is taken for none."""
    path, hours = tmp_path / "traffic.json", 0
    spend(purse(path, 0.0, "boot-0"), BUDGET, 1.0)
    for boot in range(1, 30):
        life = purse(path, 5.0, f"boot-{boot}")
        if life.allowance.may_send(BUDGET // 2, 5.0):
            break
        life.cover(0, 5.0 + 3605.0)  # an hour later
        hours += 1
    assert 22 <= hours <= 25


def test_file_is_written_a_few_dozen_times_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    life, seen = purse(tmp_path / "traffic.json", 0.0), set()
    for second in range(0, int(DAY_S), 10):
        spend(life, 37, float(second))
        seen.add((tmp_path / "traffic.json").read_bytes())
    assert STEPS - 5 < len(seen) < STEPS + 25


def test_file_that_is_damaged_or_from_nowhere_is_a_new_day(tmp_path: Path) -> None:
    path = tmp_path / "traffic.json"
    for junk in (b"", b"{", b"[]", b'{"boot":1}', b"\xff" * 100):
        path.write_bytes(junk)
        assert purse(path, 0.0).allowance.spent_bytes == 0


def test_disk_that_cannot_be_written_is_told_once_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    life = purse(Path("/proc/no/such/traffic.json"), 0.0)
    assert all(spend(life, STEP, float(second)) for second in range(5))
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "cannot write /proc/no/such/traffic.json"
    ]


def test_without_a_budget_nothing_is_written(tmp_path: Path) -> None:
    life = Purse(None, tmp_path / "traffic.json", "boot", 0.0)
    life.cover(10**9, 1.0)
    life.settle(2.0)
    assert list(tmp_path.iterdir()) == []
