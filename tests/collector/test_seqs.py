"""Ranges behave like the sets of numbers that they stand for."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from evenfleet_collector import seqs

numbers = st.sets(st.integers(1, 40))


def ranges_of(those: set[int]) -> seqs.Ranges:
    return seqs.union([(seq, seq) for seq in those])


@given(numbers, st.integers(1, 40))
def test_a_number_is_in_the_ranges_of_a_set_exactly_if_it_is_in_the_set(those: set[int], seq: int) -> None:
    assert seqs.contains(ranges_of(those), seq) == (seq in those)


@given(numbers, st.integers(1, 40))
def test_adding_one_number_is_the_union_with_it(those: set[int], seq: int) -> None:
    assert seqs.add(ranges_of(those - {seq}), seq) == ranges_of(those | {seq})
