"""What holds for every test: how Hypothesis draws, and what a test that could not run means."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, settings

# On an automatic build nothing may be left out silently, and a failure must come again.
CI = os.environ.get("CI") == "true"

# No deadline: two cores measure models beside the tests.
settings.register_profile("here", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("here"), derandomize=True, print_blob=True)
settings.load_profile("ci" if CI else "here")


SHARED_MEMORY: Final = Path("/dev/shm")
_ENOUGH_BYTES: Final = 4 << 30


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Keep the tests' files in memory where there is room: thousands of them wait for a disk otherwise."""
    if config.option.basetemp is not None or not SHARED_MEMORY.is_dir():
        return
    if shutil.disk_usage(SHARED_MEMORY).free < _ENOUGH_BYTES:
        return
    config.option.basetemp = tempfile.mkdtemp(prefix="evenfleet-tests-", dir=SHARED_MEMORY)
    config.add_cleanup(lambda: shutil.rmtree(config.option.basetemp, ignore_errors=True))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = _skipped(terminalreporter)
    if not skipped:
        return
    terminalreporter.section("not run" + (", which fails with CI=true" if CI else ""), red=CI, yellow=not CI)
    for reason, tests in sorted(skipped.items()):
        terminalreporter.write_line(f"{reason}:")
        for test in sorted(tests):
            terminalreporter.write_line(f"  {test}")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    # A worker of xdist has no terminal, and its skips are counted where there is one.
    if CI and exitstatus == pytest.ExitCode.OK and reporter is not None and _skipped(reporter):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _skipped(reporter: pytest.TerminalReporter) -> dict[str, set[str]]:
    """Return the tests that did not run, by reason."""
    found: dict[str, set[str]] = {}
    for report in reporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        found.setdefault(reason.removeprefix("Skipped: "), set()).add(report.nodeid)
    return found
