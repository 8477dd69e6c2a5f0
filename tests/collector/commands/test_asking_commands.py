from __future__ import annotations

import json
import re
import socket
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evenfleet_collector.store.rows import AppWindowRow, Circumstances, WindowRow
from evenfleet_shared import manifest as manifests
from evenfleet_shared import trust
from evenfleet_shared.messages import Conditions
from fakes import uplink
from fakes.cables import cable_to
from fakes.stores import (
    NOW_S,
    FakeStore,
    cell_row,
    device_row,
    event_row,
    flag_row,
    release_row,
    small_manifest,
    write_files,
)
from fakes.uplink import app_window, reply

Run = Callable[..., Any]


@pytest.fixture
def release_dir(tmp_path: Path) -> Path:
    return write_files(tmp_path / "release", *small_manifest())


@pytest.fixture
def fleet(store: FakeStore) -> str:
    row = release_row("float32", "int8")
    store.release_rows.append(row)
    for device in ("press-01", "press-02"):
        store.put_device(device_row(device, release=row.release))
        store.put_cell(cell_row(device, "float32", row.release))
        store.put_cell(cell_row(device, "int8", row.release, p95_ms=0.312))
    return row.release


@pytest.mark.parametrize("command", ["parity", "flags", "release list", "device list", "device show a"])
def test_collector_that_is_not_there_is_one_line_and_exit_1(evenfleet: Run, command: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    outcome = evenfleet(*command.split(), "--url", f"http://127.0.0.1:{port}")
    assert (outcome.code, outcome.out) == (1, "")
    assert f"no collector answers at http://127.0.0.1:{port} (Connection refused)" in outcome.err
    assert outcome.err.count("\n") == 1


@pytest.mark.parametrize("url", ["127.0.0.1:8080", "ftp://x", "http://", "http://x:port"])
def test_url_that_is_none_is_exit_2(evenfleet: Run, url: str) -> None:
    outcome = evenfleet("flags", "--url", url)
    assert outcome.code == 2
    assert "expected http://HOST:PORT" in outcome.err


@pytest.mark.parametrize(
    "command",
    [
        *("release", "release push", "release list", "release show", "release verify", "release assign"),
        *("device", "device list", "device show", "device enrol", "device measure", "device restart-runner"),
        *("flags", "parity"),
    ],
)
def test_help_gives_an_example_and_the_exit_codes(evenfleet: Run, command: str) -> None:
    outcome = evenfleet(*command.split(), "--help")
    assert outcome.code == 0
    assert "Example:" in outcome.out
    assert "Exit codes:" in outcome.out


@pytest.mark.usefixtures("collector")
class TestRelease:
    def test_pushed_release_is_there_with_its_files(self, evenfleet: Run, store: FakeStore, release_dir: Path) -> None:
        digest = manifests.load(release_dir)[1]
        outcome = evenfleet("release", "push", release_dir)
        assert (outcome.code, outcome.out) == (0, f"{digest}\n")
        assert [row.release for row in store.release_rows] == [digest]
        again = evenfleet("release", "push", release_dir, "--json")
        assert json.loads(again.out) == {"release": digest, "model": "digits-cnn", "uploaded": [], "signatures": []}

    def test_signatures_travel_along_and_are_shown(
        self, evenfleet: Run, store: FakeStore, release_dir: Path, tmp_path: Path
    ) -> None:
        evenfleet("release", "push", release_dir)
        evenfleet("release", "keygen", "--out", tmp_path / "key")
        evenfleet("release", "sign", release_dir, "--key", tmp_path / "key")
        again = json.loads(evenfleet("release", "push", release_dir, "--json").out)
        (made,) = trust.read(release_dir)
        assert again["signatures"] == [made.key]
        assert store.release_rows[0].signatures == (made,)
        shown = evenfleet("release", "show", again["release"]).out
        assert f"signed by these keys, which are not checked here:\n  {made.key}\n" in shown
        assert made.key[:12] in evenfleet("release", "list").out

    def test_upload_that_breaks_goes_on_where_it_stopped(
        self, evenfleet: Run, store: FakeStore, collector: str, tmp_path: Path
    ) -> None:
        manifest, files = small_manifest("float32", artifact_bytes=8_000_000)
        release_dir = write_files(tmp_path / "big", manifest, files)
        with cable_to(collector) as cable:
            cable.breaks_after = [3_000_000, 6_000_000]
            outcome = evenfleet("release", "push", release_dir, "--url", cable.url)
        assert (outcome.code, outcome.err) == (0, "")
        assert len(store.release_rows) == 1
        assert cable.sent_bytes < 8_500_000

    def test_push_goes_on_where_an_earlier_one_stopped(
        self, evenfleet: Run, store: FakeStore, collector: str, tmp_path: Path
    ) -> None:
        manifest, files = small_manifest("float32", artifact_bytes=8_000_000)
        release_dir = write_files(tmp_path / "big", manifest, files)
        with cable_to(collector) as cable:
            cable.breaks_after = [5_000_000]
            cable.breaks_for_good = True
            outcome = evenfleet("release", "push", release_dir, "--url", cable.url)
            assert (outcome.code, outcome.out) == (1, "")
            assert (
                "the upload of artifacts/float32.tflite broke off; pushed again within a day, it goes on" in outcome.err
            )
            assert store.release_rows == []
        with cable_to(collector) as mended:
            assert evenfleet("release", "push", release_dir, "--url", mended.url).code == 0
        assert mended.sent_bytes < 3_500_000
        assert len(store.release_rows) == 1

    def test_part_that_was_spoilt_is_uploaded_anew(
        self, evenfleet: Run, store: FakeStore, release_dir: Path, tmp_path: Path
    ) -> None:
        (reference, *_) = manifests.load(release_dir)[0].files
        part = tmp_path / "artifacts" / f".upload-{reference.sha256}-x"
        part.write_bytes(b"??")
        assert evenfleet("release", "push", release_dir).code == 0
        assert len(store.release_rows) == 1
        assert not part.exists()

    def test_tag_is_given_moved_shown_and_taken_away(self, evenfleet: Run, store: FakeStore, fleet: str) -> None:
        newer = release_row("float32")
        store.release_rows.append(newer)
        assert evenfleet("release", "tag", newer.release[:8], "prod").out == f"prod is {newer.release[:12]}\n"
        moved = evenfleet("release", "tag", fleet[:8], "prod")
        assert moved.out == f"prod is {fleet[:12]}, moved from {newer.release[:12]}\n"
        assert evenfleet("release", "tag", "prod", "canary").code == 0
        assert json.loads(evenfleet("release", "show", "prod", "--json").out)["tags"] == ["canary", "prod"]
        assert "tags: canary, prod" in evenfleet("release", "show", "canary").out
        assert "canary, prod" in evenfleet("release", "list").out
        assert json.loads(evenfleet("parity", "prod", "--json").out)["release"] == fleet
        assert evenfleet("release", "assign", "prod", "--all").code == 0
        assert store.assigned == {"*": fleet}
        assert evenfleet("release", "untag", "prod").out == f"prod was {fleet[:12]} and is no tag any more\n"
        gone = evenfleet("release", "untag", "prod")
        assert (gone.code, gone.out) == (3, "")
        assert evenfleet("release", "show", "prod").code == 3
        assert store.assigned == {"*": fleet}

    @pytest.mark.parametrize("tag", ["beef", "abc", "Prod", "a/b", "", "x" * 64])
    def test_tag_that_could_be_a_digest_is_exit_2(self, evenfleet: Run, store: FakeStore, fleet: str, tag: str) -> None:
        refused = evenfleet("release", "tag", fleet[:8], tag)
        assert (refused.code, refused.out) == (2, "")
        assert f"not hexadecimal digits alone, which stand for a digest; found {tag!r}" in refused.err
        assert store.tag_rows == {}

    def test_damaged_release_is_not_pushed(self, evenfleet: Run, store: FakeStore, release_dir: Path) -> None:
        (release_dir / "artifacts" / "int8.tflite").write_bytes(b"digits-cnn int9")
        outcome = evenfleet("release", "push", release_dir)
        assert outcome.code == 1
        assert "int8.tflite has sha256" in outcome.err
        assert store.release_rows == []

    def test_directory_that_is_no_release_is_one_line(self, evenfleet: Run, tmp_path: Path) -> None:
        outcome = evenfleet("release", "push", tmp_path / "nothing")
        assert outcome.code == 2
        assert "DIR: expected the directory of a release, found nothing at" in outcome.err
        (tmp_path / "empty").mkdir()
        outcome = evenfleet("release", "push", tmp_path / "empty")
        assert outcome.code == 1
        assert "is not a release" in outcome.err

    def test_verify_names_the_release(self, evenfleet: Run, release_dir: Path) -> None:
        outcome = evenfleet("release", "verify", release_dir)
        assert outcome.code == 0
        assert outcome.out.startswith(manifests.load(release_dir)[1])

    def test_list_and_show(self, evenfleet: Run, fleet: str) -> None:
        assert fleet[:12] in evenfleet("release", "list").out
        assert json.loads(evenfleet("release", "list", "--json").out)[0]["release"] == fleet
        shown = evenfleet("release", "show", fleet[:6])
        assert fleet in shown.out
        assert "75.0 %" in shown.out
        refused = evenfleet("release", "show", "ffffff")
        assert refused.code == 3
        assert "/api" not in refused.err

    def test_assign_to_devices_or_to_all(self, evenfleet: Run, store: FakeStore, fleet: str) -> None:
        assert evenfleet("release", "assign", fleet[:8], "--device", "press-01").code == 0
        assert evenfleet("release", "assign", fleet[:8], "--all").code == 0
        assert store.assigned == {"press-01": fleet, "*": fleet}
        refused = evenfleet("release", "assign", fleet[:8], "--device", "ghost")
        assert refused.code == 3
        assert "ghost is not enrolled" in refused.err
        assert evenfleet("release", "assign", fleet[:8]).code == 2
        for command in ("release assign {} --all", "release show {}", "parity {}"):
            for digits in (fleet[:3], fleet[:6].upper() + "X", "../x"):
                short = evenfleet(*command.format(digits).split())
                assert (short.code, short.out) == (2, "")
                assert f"at least 4 hexadecimal digits of its start, found {digits!r}" in short.err
        assert evenfleet("release", "assign", fleet[:8], "--device", "press 1").code == 2


@pytest.mark.usefixtures("collector")
class TestPolicy:
    @pytest.mark.parametrize(
        ("word", "told"),
        [
            ("window_length_s=abc", "window_length_s: expected a number, found 'abc'"),
            ("window_length_s=-1", "window_length_s: expected a number of at least 0.1, found '-1'"),
            ("burn_in_windows=1.5", "burn_in_windows: expected a whole number, found '1.5'"),
            ("memory.quantile=nan", "memory.quantile: expected a number of at least 0.5, found 'nan'"),
            ("latency.margin=1", "unknown setting latency.margin; did you mean latency.margin_ratio?"),
            ("latency=1", "latency must be a table, found '1'; it holds latency.quantile"),
            ("latency.quantile", "expected SETTING=VALUE, found 'latency.quantile'"),
            ("revision=7", "revision is counted by the collector"),
        ],
    )
    @pytest.mark.parametrize("option", [(), ("--json",)])
    def test_wrong_setting_is_named_as_it_was_typed_and_changes_nothing(
        self, evenfleet: Run, store: FakeStore, word: str, told: str, option: tuple[str, ...]
    ) -> None:
        before = store.policy()
        outcome = evenfleet("policy", "set", "min_windows=9", word, *option)
        assert (outcome.code, outcome.out) == (2, "")
        assert outcome.err.startswith("evenfleet: policy set")
        assert told in outcome.err
        assert "nothing was changed" in outcome.err
        assert "$" not in outcome.err
        assert store.policy() == before


@pytest.mark.usefixtures("collector")
class TestDevice:
    def test_token_is_printed_once(self, evenfleet: Run) -> None:
        assert "token-of-press-07" in evenfleet("device", "enrol", "press-07").out
        again = evenfleet("device", "enrol", "press-07")
        assert (again.code, again.out) == (3, "")
        assert "enrolled already" in again.err

    def test_token_file_is_for_its_owner_alone(self, evenfleet: Run, tmp_path: Path) -> None:
        path = tmp_path / "press-07.token"
        outcome = evenfleet("device", "enrol", "press-07", "--token-file", path)
        assert "token-of-press-07" not in outcome.out
        assert path.read_text() == "token-of-press-07\n"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600

    def test_token_file_that_cannot_be_made_enrols_nothing(
        self, evenfleet: Run, store: FakeStore, tmp_path: Path
    ) -> None:
        there = tmp_path / "there"
        there.write_text("precious")
        for path in (there, tmp_path / "no" / "folder"):
            outcome = evenfleet("device", "enrol", "press-07", "--token-file", path)
            assert outcome.code == 2
            assert "nothing was enrolled" in outcome.err
        assert there.read_text() == "precious"
        assert store.device_rows == {}

    def test_refused_enrolment_leaves_no_token_file(self, evenfleet: Run, store: FakeStore, tmp_path: Path) -> None:
        store.put_device(device_row("press-07"))
        path = tmp_path / "token"
        assert evenfleet("device", "enrol", "press-07", "--token-file", path).code == 3
        assert not path.exists()

    def test_list_is_filtered_by_verdict(self, evenfleet: Run, store: FakeStore) -> None:
        store.put_device(device_row("good"))
        store.put_device(device_row("bad", verdict="outside"))
        assert [row["device"] for row in json.loads(evenfleet("device", "list", "--json").out)] == ["bad", "good"]
        filtered = evenfleet("device", "list", "--verdict", "outside").out
        assert "bad" in filtered
        assert "good" not in filtered

    def test_list_at_80_columns_breaks_no_word_and_no_time(
        self, evenfleet: Run, store: FakeStore, fleet: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("COLUMNS", "80")
        lately_s = time.time() - 12.5
        for device, status, verdict in (
            ("a-device-with-a-name-that-is-longer-than-most-01", "birth", "incomparable"),
            ("stopped-01", "gone", "undetermined"),
            ("lost-01", "lost", None),
        ):
            store.put_device(
                device_row(
                    device,
                    device_class="a-board-with-a-long-name",
                    status=status,
                    verdict=verdict,
                    release=fleet,
                    last_seen_s=lately_s,
                )
            )
        store.put_device(device_row("new-01", status="enrolled", verdict=None, last_seen_s=None))
        out = evenfleet("device", "list").out
        assert max(len(line) for line in out.splitlines()) <= 80
        for told in (
            "incomparable",
            "undetermined",
            " online ",
            " stopped ",
            " lost ",
            " enrolled ",
            fleet[:12],
            "never",
        ):
            assert told in out
        assert re.search(r"1[2-9] s ago", out)
        assert "birth" in evenfleet("device", "list", "--json").out

    @pytest.mark.usefixtures("fleet")
    def test_show_has_cells_and_flags_of_this_device_alone(self, evenfleet: Run) -> None:
        outcome = evenfleet("device", "show", "press-01")
        assert "312 µs" in outcome.out
        assert "press-02" not in outcome.out
        assert evenfleet("device", "show", "press-99").code == 3
        assert evenfleet("device", "show", "Press 1").code == 2

    @pytest.mark.parametrize(
        ("hours", "told"),
        [
            (5, "5 h ago; what it measures comes when the next day begins, within a day of that"),
            (30, "1 d ago; that day is over, and it should have been heard of again"),
        ],
    )
    def test_show_says_that_a_device_sleeps_and_until_when(
        self, evenfleet: Run, store: FakeStore, fleet: str, hours: int, told: str
    ) -> None:
        store.put_device(
            device_row("press-01", status="sleeping", release=fleet, last_seen_s=time.time() - 3600 * hours)
        )
        out = " ".join(evenfleet("device", "show", "press-01").out.split())
        assert f"sleeping: its bytes of the day were used up {told}" in out

    @pytest.mark.usefixtures("fleet")
    def test_show_says_what_the_devices_applications_did_last(self, evenfleet: Run, store: FakeStore) -> None:
        for seq, told in enumerate(
            [app_window(1, model="a" * 64), app_window(2, model="a" * 64), app_window(3, app="x")]
        ):
            row = AppWindowRow(id=seq, received_s=NOW_S, backfill=False, window=told)
            store.app_window_rows.append(row)
        out = " ".join(evenfleet("device", "show", "press-01").out.split())
        assert out.count("application inspection, model aaaaaaaaaaaa: 25 calls in 300 s, p50 1 ms, p95 1 ms") == 1
        assert "application x, model fashion-cnn: 25 calls in 300 s" in out
        assert "2 raised, 3 dropped" in out
        shown = json.loads(evenfleet("device", "show", "press-01", "--json").out)
        assert [row["window"]["seq"] for row in shown["apps"]] == [2, 3]

    def test_show_tells_what_was_measured_under_and_what_happened_last(
        self, evenfleet: Run, store: FakeStore, fleet: str
    ) -> None:
        circumstances = Circumstances(conditions=Conditions(temperature_c=61.0))
        store.put_cell(cell_row("press-01", "int8", fleet, circumstances=circumstances))
        store.event_rows += [event_row(n, "press-01", detail=f"jump {n}") for n in range(1, 8)]
        store.event_rows.append(event_row(9, "press-02", detail="elsewhere"))
        out = evenfleet("device", "show", "press-01").out
        assert "int8  conditions: 61.0 °C" in out
        assert "clock-jumped" in out
        assert "jump 7" in out
        assert "jump 2" not in out
        assert "elsewhere" not in out
        assert out.index("jump 7") < out.index("jump 3")
        told = json.loads(evenfleet("device", "show", "press-01", "--json").out)
        assert [event["id"] for event in told["events"]] == [7, 6, 5, 4, 3]


@pytest.mark.usefixtures("collector")
class TestOrders:
    @pytest.fixture(autouse=True)
    def device(self, store: FakeStore) -> None:
        store.put_device(device_row("press-07"))

    @pytest.mark.parametrize("command", ["measure", "restart-runner"])
    def test_without_wait_it_says_where_the_answer_will_be(
        self, evenfleet: Run, store: FakeStore, command: str
    ) -> None:
        outcome = evenfleet("device", command, "press-07", "--variant", "int8", "--ttl-s", "60")
        assert outcome.code == 0
        assert "for 60 s at most" in outcome.out
        assert "/api/v1/devices/press-07/commands/c1" in outcome.out
        (row,) = store.command_rows
        assert (row.command, row.variant, row.ttl_s) == (command, "int8", 60.0)

    def test_load_that_is_asked_for_has_to_fit_into_the_time(self, evenfleet: Run, store: FakeStore) -> None:
        outcome = evenfleet("device", "measure", "press-07", "--sustained", "120", "--offline", "10")
        assert outcome.code == 0
        (row,) = store.command_rows
        assert (row.sustained_s, row.offline_s) == (120.0, 10.0)

        refused = evenfleet("device", "measure", "press-07", "--sustained", "300")
        assert refused.code == 2
        assert "--ttl-s is 300, --sustained and --offline take 300 s of each variant" in refused.err
        assert len(store.command_rows) == 1

    def test_with_wait_it_shows_the_windows_that_were_made_and_no_others(
        self, evenfleet: Run, store: FakeStore
    ) -> None:
        made, other = (
            uplink.window(7, device="press-07", variant="int8"),
            uplink.window(8, device="press-07", variant="other-one"),
        )
        store.window_rows += [
            WindowRow(id=i, received_s=NOW_S + 1, backfill=False, window=one) for i, one in ((1, made), (2, other))
        ]
        store.answers = lambda row: replace(
            row, state="done", reply=reply(row.correlation_id, device="press-07", seqs=(7,))
        )
        outcome = evenfleet("device", "measure", "press-07", "--wait")
        assert outcome.code == 0
        assert "waiting for the answer of press-07, for 300 s at most" in outcome.err
        assert "press-07 has done measure" in outcome.out
        assert "int8" in outcome.out
        assert "1.00 ms" in outcome.out
        assert "other-one" not in outcome.out
        told = json.loads(evenfleet("device", "measure", "press-07", "--wait", "--json").out)
        assert [row["window"]["seq"] for row in told["windows"]] == [7]
        assert told["command"]["state"] == "done"

    @pytest.mark.parametrize(
        ("state", "code", "told"),
        [
            ("refused", 3, "press-07 refused measure: it runs nothing"),
            ("failed", 1, "press-07 failed at measure: it runs nothing"),
            ("expired", 1, "press-07 did not do measure within 300 s: it runs nothing"),
        ],
    )
    def test_an_answer_that_is_no_success_is_one_line_and_its_exit_code(
        self, evenfleet: Run, store: FakeStore, state: Any, code: int, told: str
    ) -> None:
        store.answers = lambda row: replace(
            row, state=state, reply=reply(row.correlation_id, status=state, detail="it runs nothing")
        )
        outcome = evenfleet("device", "measure", "press-07", "--wait")
        assert (outcome.code, outcome.out) == (code, "")
        assert told in outcome.err.splitlines()[-1]
        as_json = evenfleet("device", "measure", "press-07", "--wait", "--json")
        assert as_json.code == code
        assert json.loads(as_json.out)["command"]["state"] == state

    def test_no_answer_in_time_is_exit_1(self, evenfleet: Run, store: FakeStore) -> None:
        store.answers = lambda row: replace(row, state="expired")
        outcome = evenfleet("device", "restart-runner", "press-07", "--wait")
        assert outcome.code == 1
        assert "'evenfleet device show press-07' says whether it is online" in outcome.err

    @pytest.mark.parametrize(
        ("arguments", "code"),
        [
            (("Press 7",), 2),
            (("press-99",), 3),
            (("press-07", "--variant", "a b"), 3),
            (("press-07", "--ttl-s", "0"), 2),
            (("press-07", "--ttl-s", "nan"), 2),
            (("press-07", "--ttl-s", "soon"), 2),
        ],
    )
    def test_what_cannot_be_asked_is_refused(
        self, evenfleet: Run, store: FakeStore, arguments: tuple[str, ...], code: int
    ) -> None:
        outcome = evenfleet("device", "measure", *arguments)
        assert (outcome.code, outcome.out) == (code, "")
        assert store.command_rows == []


@pytest.mark.usefixtures("collector")
class TestFlags:
    def test_no_open_flag_is_exit_0_and_an_open_one_exit_4(self, evenfleet: Run, store: FakeStore, fleet: str) -> None:
        store.flag_rows.append(flag_row(1, "press-01", "int8", fleet, cleared_s=NOW_S + 1))
        assert evenfleet("flags").code == 0
        assert evenfleet("flags", "--all").code == 0
        store.flag_rows.append(flag_row(2, "press-02", "int8", fleet, reason="far too slow"))
        outcome = evenfleet("flags")
        assert outcome.code == 4
        assert "#2  press-02 int8 latency" in outcome.out
        assert "far too slow" in outcome.out
        assert [flag["id"] for flag in json.loads(evenfleet("flags", "--all", "--json").out)] == [1, 2]

    def test_reason_is_one_line_where_there_is_no_terminal_and_wrapped_where_there_is_one(
        self, evenfleet: Run, store: FakeStore, fleet: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        reason = "far too slow, and " * 20 + "so on"
        store.flag_rows.append(flag_row(1, "press-01", "int8", fleet, reason=reason))
        store.put_cell(cell_row("press-01", "int8", fleet, verdict="outside", reason=reason))
        assert max(map(len, evenfleet("flags").out.splitlines())) <= 100
        monkeypatch.delenv("COLUMNS")
        assert f"    {reason}" in evenfleet("flags").out.splitlines()
        assert f"▲ press-01 int8  {reason}" in evenfleet("parity").out.splitlines()
        assert f"    {reason}" in evenfleet("device", "show", "press-01").out.splitlines()

    def test_why_shows_the_windows_and_sums(self, evenfleet: Run, store: FakeStore, fleet: str) -> None:
        store.flag_rows.append(flag_row(1, "press-01", "int8", fleet))
        outcome = evenfleet("flags", "--why", "1")
        assert outcome.code == 4
        assert outcome.out.split()[-3:] == ["7", "8.5", "8.5"]
        assert evenfleet("flags", "--why", "9").code == 3
        assert evenfleet("flags", "--why", "0").code == 2


@pytest.mark.usefixtures("collector")
class TestParity:
    def test_even_fleet_is_exit_0(self, evenfleet: Run, fleet: str) -> None:
        outcome = evenfleet("parity")
        assert outcome.code == 0
        for told in (fleet[:12], "press-01", "● within", "312 µs", "97.2 %", "4 within"):
            assert told in outcome.out

    def test_cell_outside_is_exit_4_with_its_reason(self, evenfleet: Run, store: FakeStore, fleet: str) -> None:
        store.put_cell(cell_row("press-02", "int8", fleet, verdict="outside", reason="far too slow"))
        outcome = evenfleet("parity", fleet[:8])
        assert outcome.code == 4
        assert "▲ press-02 int8  far too slow" in outcome.out
        assert evenfleet("parity", "--json").code == 4

    def test_json_holds_every_cell_of_a_fleet_of_many_pages(self, evenfleet: Run, store: FakeStore, fleet: str) -> None:
        for number in range(1500):
            store.put_cell(cell_row(f"many-{number:04}", "int8", fleet))
        cells = json.loads(evenfleet("parity", "--json").out)["items"]
        assert len({(cell["device"], cell["variant"]) for cell in cells}) == len(cells) == 1504

    @pytest.mark.parametrize("columns", [44, 80, 200])
    @pytest.mark.usefixtures("fleet")
    def test_terminal_of_any_width_shows_every_figure_whole(
        self, evenfleet: Run, monkeypatch: pytest.MonkeyPatch, columns: int
    ) -> None:
        monkeypatch.setenv("COLUMNS", str(columns))
        outcome = evenfleet("parity")
        assert max(len(line) for line in outcome.out.splitlines()) <= columns
        assert outcome.out.count("312 µs") == 2
        assert "…" not in outcome.out

    def test_before_any_release_it_says_how_to_begin(self, evenfleet: Run) -> None:
        outcome = evenfleet("parity")
        assert outcome.code == 0
        assert "evenfleet release push" in outcome.out
        assert evenfleet("parity", "abcdef").code == 3


def test_server_of_another_kind_is_told_as_a_wrong_url(evenfleet: Run) -> None:
    """Whatever else answers HTTP there: it has refused nothing, it is not the other side."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(10_000)
                connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 6\r\n\r\n<html>")

        other = threading.Thread(target=answer)
        other.start()
        outcome = evenfleet("flags", "--url", f"http://127.0.0.1:{listener.getsockname()[1]}")
        other.join(timeout=10)
    assert outcome.code == 1
    assert "answered 404 Not Found, and not as an Evenfleet collector does; is --url" in outcome.err


def test_collector_of_another_kind_is_told(evenfleet: Run, store: FakeStore, collector: str) -> None:
    store.put_device(replace(device_row("a"), verdict="splendid"))  # type: ignore[arg-type]
    outcome = evenfleet("device", "list")
    assert outcome.code == 1
    assert outcome.err.count("\n") == 1
