"""When to try the next session, and how fast to read from a broker that says too much.

Pure: what happened and the time go in, a pause comes out.

* After a broker's restart a fleet comes back spread over the pause, not in step: full jitter.
* Sessions that something ends as soon as they stand are further and further apart: where two clients have one id, the
  broker ends the session of one for that of the other, and back, for ever.
"""

from __future__ import annotations

from typing import Final

BASE_S: Final = 1.0
CAP_S: Final = 60.0
# A shorter session is one that something ends as soon as it stands.
LASTING_SESSION_S: Final = 30.0

# Far more than a collector has to say to one device; beyond it the broker waits.
READ_BYTES_PER_S: Final = 128 * 1024
READ_BURST_BYTES: Final = 512 * 1024


def reconnect_pause_s(failures: int, uniform: float) -> float:
    """Return how long to wait for the next session.

    Args:
        failures: Tries in a row, before this one, that did not bring a lasting session.
        uniform: A random number, evenly from 0 to 1.

    Source:
        Brooker (2015), "Exponential Backoff And Jitter", AWS Architecture Blog: full jitter.

    >>> [reconnect_pause_s(failures, 1.0) for failures in (0, 1, 2, 6, 1000)]
    [1.0, 2.0, 4.0, 60.0, 60.0]
    >>> reconnect_pause_s(3, 0.25)
    2.0
    """
    return uniform * min(CAP_S, BASE_S * 2.0 ** min(max(0, failures), 30))


def failures_after(failures: int, lasted_s: float | None) -> int:
    """Return the count of failures after one more try, whose session lasted so long (None: there was none).

    >>> failures_after(4, None), failures_after(4, 3.0), failures_after(4, 30.0)
    (5, 5, 0)
    """
    return 0 if lasted_s is not None and lasted_s >= LASTING_SESSION_S else failures + 1


class ReadPace:
    """A bucket that reading fills and time empties."""

    def __init__(self, now_s: float) -> None:
        self._level_bytes = 0.0
        self._at_s = now_s

    def pause_s(self, read_bytes: int, now_s: float) -> float:
        """Return how long to read nothing, after so much was read since the last call.

        >>> pace = ReadPace(0.0)
        >>> pace.pause_s(READ_BURST_BYTES, 0.0), pace.pause_s(READ_BYTES_PER_S, 0.0), pace.pause_s(0, 1.0)
        (0.0, 1.0, 0.0)
        """
        self._level_bytes = max(0.0, self._level_bytes - (now_s - self._at_s) * READ_BYTES_PER_S) + read_bytes
        self._at_s = now_s
        return max(0.0, self._level_bytes - READ_BURST_BYTES) / READ_BYTES_PER_S
