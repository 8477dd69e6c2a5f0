"""The report in a real browser: off the disk, without a network, on a phone, in the dark, with hostile names in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from evenfleet_collector.optimize import page
from fakes.chromium import NEEDS_CHROMIUM, chromium
from fakes.reports import report, variant_row

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

pytestmark = NEEDS_CHROMIUM

HOSTILE = '"><img src=x onerror="document.title=1"><script>document.title="run"</script>{{ 7 * 7 }}</style>'


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Chrome]:
    with chromium(tmp_path) as driver:
        yield driver


def opened(browser: Chrome, folder: Path, text: str) -> None:
    file = folder / "report.html"
    file.write_text(text, encoding="utf-8")
    browser.get(file.as_uri())


def test_report_is_whole_off_the_disk_and_fits_a_phone(browser: Chrome, tmp_path: Path) -> None:
    from selenium.webdriver.common.by import By

    sizes = {"float32": 100_000, "int8": 30_000, "a" * 64: 20_000}
    rows = [variant_row(name, size_bytes=size, p50_ms=size / 1e5) for name, size in sizes.items()]
    opened(browser, tmp_path, page.render(report(*rows)))

    assert browser.find_element(By.TAG_NAME, "h1").text == "digits"
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    assert browser.execute_script('return performance.getEntriesByType("resource").length') == 0
    drawn = "return [...document.querySelectorAll('figure svg')].map(svg => svg.getBoundingClientRect().height)"
    assert all(height > 80 for height in browser.execute_script(drawn))
    assert browser.get_log("browser") == []  # type: ignore[no-untyped-call]


def test_charts_take_the_colours_of_the_page(browser: Chrome, tmp_path: Path) -> None:
    opened(browser, tmp_path, page.render(report(variant_row("float32", p50_ms=1.0), variant_row("int8", p50_ms=0.5))))
    colour = (
        "return [getComputedStyle(document.body).color, getComputedStyle([...document.querySelectorAll('svg text')]"
        ".find(text => text.textContent == 'int8')).fill]"
    )
    seen = []
    for scheme in ("light", "dark"):
        browser.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        )
        page_colour, chart_colour = browser.execute_script(colour)
        assert page_colour == chart_colour
        seen.append(page_colour)
    assert seen[0] != seen[1]


def test_hostile_text_is_shown_and_never_run(browser: Chrome, tmp_path: Path) -> None:
    from selenium.webdriver.common.by import By

    row = variant_row("int8", remarks=(HOSTILE,), p50_ms=1.0)
    opened(
        browser,
        tmp_path,
        page.render(report(variant_row("float32", p50_ms=2.0), row, model=HOSTILE, lineage={HOSTILE: HOSTILE})),
    )

    assert browser.find_element(By.TAG_NAME, "h1").text == HOSTILE
    assert browser.title == f"{HOSTILE}: variants compared"
    assert browser.execute_script('return document.querySelectorAll("[onerror], img, script").length') == 0
