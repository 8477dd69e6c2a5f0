"""Where everything that must survive a crash is kept: one Protocol per side, so that HTTP can only read.

`Reader` is what routes and the dashboard see; each thread that answers requests has its own. `Writer` is held by the
loops alone. `sqlite` implements both; the contract suite in `tests/contracts` says what any other store must do.
"""

from __future__ import annotations

from evenfleet_collector.store.reading import Reader
from evenfleet_collector.store.writing import (
    EditRows,
    IngestRows,
    JudgeRows,
    OutgoingRows,
    Shared,
    SteerRows,
    Transaction,
    Writer,
)

__all__ = [
    "EditRows",
    "IngestRows",
    "JudgeRows",
    "OutgoingRows",
    "Reader",
    "Shared",
    "SteerRows",
    "Transaction",
    "Writer",
]
