"""Sets of sequence numbers as inclusive ranges: what has been settled of one incarnation, and what is missing.

Pure. A set is a tuple of `(first, last)` in rising order that neither touch nor overlap; that stays small however
many numbers it holds, so it can outlive the messages themselves, and an old duplicate never becomes a new message.
"""

from __future__ import annotations

import bisect
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
    index = _next(ranges, seq)
    return index > 0 and seq <= ranges[index - 1][1]


def add(ranges: Ranges, seq: int) -> Ranges:
    """Return the set with one more number, which must not be in it.

    >>> add(((1, 3), (5, 6)), 4), add(((1, 3), (8, 9)), 5), add(((1, 3), (8, 9)), 7)
    (((1, 6),), ((1, 3), (5, 5), (8, 9)), ((1, 3), (7, 9)))
    """
    index = _next(ranges, seq)
    before, behind = ranges[:index], ranges[index:]
    first = last = seq
    if before and before[-1][1] == seq - 1:
        first, before = before[-1][0], before[:-1]
    if behind and behind[0][0] == seq + 1:
        last, behind = behind[0][1], behind[1:]
    return (*before, (first, last), *behind)


def _next(ranges: Ranges, seq: int) -> int:
    """Return the index of the first range that begins above a number."""
    return bisect.bisect_left(ranges, (seq + 1,))


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
