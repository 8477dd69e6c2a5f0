"""The page in a real browser: what a person sees change without touching anything."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fakes.apps import served
from fakes.chromium import NEEDS_CHROMIUM, chromium
from fakes.stores import FakeStore, cell_row, device_row, flag_row, release_row, run_context

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

pytestmark = NEEDS_CHROMIUM


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Chrome]:
    with chromium(tmp_path) as driver:
        yield driver


def test_cell_turns_outside_on_the_open_page(browser: Chrome, tmp_path: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.wait import WebDriverWait

    variants = [f"variant-{number}" for number in range(9)]
    release = release_row(*variants)
    store = FakeStore()
    store.release_rows.append(release)
    store.put_device(device_row("press-01"))
    for variant in variants:
        store.put_cell(cell_row("press-01", variant, release.release, verdict="undetermined"))
    with served(store, tmp_path / "artifacts") as url:
        browser.get(url)
        wait = WebDriverWait(browser, 20, poll_frequency=0.05)
        wait.until(lambda page: page.find_element(By.ID, "follow").text == "live")
        cell = 'document.getElementById("cell.press-01.variant-0").dataset.verdict'
        assert browser.execute_script(f"return {cell}") == "undetermined"
        browser.execute_script(
            'window.untouched = true; document.getElementById("matrix").scrollLeft = 150;'
            'document.getElementById("device.press-01").focus()'
        )
        scrolled = browser.execute_script('return document.getElementById("matrix").scrollLeft')
        assert scrolled > 0, "the table must scroll inside a narrow page"

        before = next(iter(store.cells(release=release.release)))
        store.flag_rows.append(flag_row(1, "press-01", "variant-0", release.release))
        store.put_cell(replace(before, verdict="outside", reason="far too slow"))

        wait.until(lambda page: page.execute_script(f"return {cell}") == "outside")
        assert browser.execute_script("return window.untouched"), "the page was loaded again"
        assert "press-01 · variant-0 · latency" in browser.find_element(By.ID, "flags").text
        state = browser.execute_script(
            'return [document.getElementById("matrix").scrollLeft, document.activeElement.id,'
            " document.documentElement.scrollWidth <= window.innerWidth]"
        )
        assert state == [scrolled, "device.press-01", True]
        assert browser.get_log("browser") == []  # type: ignore[no-untyped-call]
    wait.until(lambda page: page.find_element(By.ID, "follow").text == "reconnecting…")


def test_page_is_whole_without_its_script(browser: Chrome, tmp_path: Path) -> None:
    from selenium.webdriver.common.by import By

    release = release_row()
    store = FakeStore()
    store.release_rows.append(release)
    store.put_cell(cell_row("press-01", "int8", release.release, verdict="outside"))
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    with served(store, tmp_path / "artifacts") as url:
        browser.get(url)
        assert "outside" in browser.find_element(By.ID, "cell.press-01.int8").text
        assert browser.find_element(By.ID, "follow").text.startswith("as of ")


def test_text_of_a_device_is_shown_and_never_run_and_stays_in_its_place(browser: Chrome, tmp_path: Path) -> None:
    from selenium.webdriver.common.by import By

    hostile = '"><img src=x onerror="document.title=1"><script>document.title="run"</script>{{ 7 * 7 }}'
    run = run_context(runtime=hostile, accelerator_executed=hostile, fallback_reason=hostile, device_class=hostile)
    device = "a" * 63
    release = release_row("float32", "int8")
    store = FakeStore()
    store.dead = {hostile: 1}
    store.release_rows.append(release)
    store.put_device(device_row(device))
    common = {"device_class": hostile, "run": run, "reason": hostile}
    store.put_cell(cell_row(device, "float32", release.release, **common))
    store.put_cell(cell_row(device, "int8", release.release, refusal=hostile, **common))
    store.flag_rows.append(flag_row(1, device, "int8", release.release, reason=hostile))
    with served(store, tmp_path / "artifacts") as url:
        browser.get(url)
        assert hostile in browser.find_element(By.ID, "flags").text
        assert browser.title == "Evenfleet · digits-cnn"
        assert browser.execute_script('return document.querySelectorAll("[onerror], img[src=x]").length') == 0
        spills = (
            'const head = document.querySelector("th[scope=row]"); const right = head.getBoundingClientRect().right;'
            "return [...head.children].filter(part => part.scrollWidth > part.clientWidth + 1 ||"
            " part.getBoundingClientRect().right > right + 1).length"
        )
        assert browser.execute_script(spills) == 0
        assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
