"""The laws of ranges, against plain sets."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from evenfleet_collector import seqs

SMALL = st.integers(1, 30)
RANGES = st.lists(st.tuples(SMALL, st.integers(0, 6)).map(lambda pair: (pair[0], pair[0] + pair[1])), max_size=8)


def numbers(ranges: object) -> set[int]:
    return {seq for first, last in ranges for seq in range(first, last + 1)}  # type: ignore[attr-defined]


@given(RANGES)
def test_union_holds_the_same_numbers_in_the_fewest_ranges(ranges: list[tuple[int, int]]) -> None:
    united = seqs.union(ranges)

    assert numbers(united) == numbers(ranges)
    assert all(a[1] + 1 < b[0] for a, b in pairwise(united))
    assert all(first <= last for first, last in united)


@given(RANGES, SMALL)
def test_contains_is_membership(ranges: list[tuple[int, int]], seq: int) -> None:
    assert seqs.contains(seqs.union(ranges), seq) == (seq in numbers(ranges))


@given(RANGES)
def test_gaps_and_the_set_make_up_all_numbers_to_the_highest(ranges: list[tuple[int, int]]) -> None:
    united = seqs.union(ranges)
    highest = max(numbers(united), default=0)

    assert numbers(seqs.gaps(united)) == set(range(1, highest + 1)) - numbers(united)


@given(RANGES)
def test_contiguous_is_the_number_before_the_first_one_missing(ranges: list[tuple[int, int]]) -> None:
    held = numbers(ranges)

    assert seqs.contiguous(seqs.union(ranges)) == next(seq for seq in range(1, 100) if seq not in held) - 1


@given(RANGES, st.integers(1, 40), st.integers(-2, 40))
def test_missing_is_what_a_stretch_lacks(ranges: list[tuple[int, int]], first: int, last: int) -> None:
    found = seqs.missing(seqs.union(ranges), first, last)

    assert numbers(found) == set(range(first, last + 1)) - numbers(ranges)
    assert found == seqs.union(found)


@given(RANGES)
def test_size_counts_the_numbers(ranges: list[tuple[int, int]]) -> None:
    assert seqs.size(seqs.union(ranges)) == len(numbers(ranges))


@given(RANGES, SMALL)
def test_adding_one_number_is_the_union_with_it(ranges: list[tuple[int, int]], seq: int) -> None:
    without = seqs.union([(one, one) for one in numbers(ranges) - {seq}])

    assert seqs.add(without, seq) == seqs.union([*without, (seq, seq)])
