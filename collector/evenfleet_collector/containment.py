"""Keep what fails on one device's data from stopping the work on all others.

A loop that ended there would end there again at every start. What failed is undone, counted, and logged with its
traceback once; the loop decides what it does instead.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from evenfleet_collector.store import Shared
from evenfleet_shared.errors import StoreError

log = logging.getLogger(__name__)

_REMEMBERED: Final = 1000


class Containment:
    """One loop's."""

    def __init__(self, tally: str) -> None:
        """Prepare.

        Args:
            tally: What failures are counted under.
        """
        self._tally = tally
        self._said: set[str] = set()

    @contextmanager
    def part(self, tx: Shared, what: str) -> Iterator[None]:
        """Undo what was done within if it fails; the rest of the transaction goes on.

        Args:
            tx: The loop's transaction.
            what: Names it for whoever reads the log.

        Raises:
            StoreError: The store failed, which is nobody's data.
        """
        try:
            with tx.part():
                yield
        except StoreError:
            raise
        except Exception as error:
            tx.tally(self._tally, 1)
            fault = f"{type(error).__name__}: {error}"[:200]
            if fault in self._said:
                log.error("%s failed again: %s", what, fault)  # noqa: TRY400 - its traceback is in the log already
                return
            if len(self._said) < _REMEMBERED:
                self._said.add(fault)
            log.exception("%s failed; everything else goes on", what)
