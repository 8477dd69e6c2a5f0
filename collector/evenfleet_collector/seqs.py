"""Sets of sequence numbers as inclusive ranges: what has been settled of one incarnation, and what is missing.

Pure. A set is a tuple of `(first, last)` in rising order that neither touch nor overlap; that stays small however
many numbers it holds, so it can outlive the messages themselves, and an old duplicate never becomes a new message.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

Ranges = tuple[tuple[int, int], ...]


def union(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Return the set of all numbers in `ranges`, which may overlap and come in any order.

    >>> union([(5, 6), (1, 2), (3, 3), (8, 9)])
    ((1, 3), (5, 6), (8, 9))
    """
    merged: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return tuple(merged)


def contains(ranges: Ranges, seq: int) -> bool:
    """Return whether a number is in the set.

    >>> contains(((1, 3), (8, 9)), 4), contains(((1, 3), (8, 9)), 8)
    (False, True)
    """
    return any(first <= seq <= last for first, last in ranges)


def contiguous(ranges: Ranges) -> int:
    """Return the last number of the run that begins at 1; 0 where 1 is missing.

    >>> contiguous(((1, 3), (8, 9))), contiguous(((2, 3),))
    (3, 0)
    """
    return ranges[0][1] if ranges and ranges[0][0] == 1 else 0


def gaps(ranges: Ranges) -> Ranges:
    """Return what is missing from 1 to the highest number.

    >>> gaps(((2, 3), (8, 9)))
    ((1, 1), (4, 7))
    """
    return tuple((a[1] + 1, b[0] - 1) for a, b in pairwise(((0, 0), *ranges)) if a[1] + 1 < b[0])


def missing(ranges: Ranges, first: int, last: int) -> Ranges:
    """Return what is missing of `first` to `last`; nothing where last < first.

    >>> missing(((2, 3), (6, 6)), 1, 7)
    ((1, 1), (4, 5), (7, 7))
    """
    found: list[tuple[int, int]] = []
    for low, high in ranges:
        if high < first:
            continue
        if low > last:
            break
        if low > first:
            found.append((first, low - 1))
        first = high + 1
    if first <= last:
        found.append((first, last))
    return tuple(found)


def size(ranges: Ranges) -> int:
    """Return how many numbers are in the set.

    >>> size(((1, 3), (8, 9)))
    5
    """
    return sum(last - first + 1 for first, last in ranges)
