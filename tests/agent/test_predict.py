from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenfleet_agent import predict
from evenfleet_agent.predict import Known

amounts = st.tuples(st.integers(1_000, 10**8), st.integers(1_000, 10**10))


def timed(size_bytes, macs, *, ms_per_byte, ms_per_mac):
    return Known(size_bytes=size_bytes, macs=macs, p50_ms=size_bytes * ms_per_byte + macs * ms_per_mac)


@given(
    sizes=st.lists(amounts, min_size=3, max_size=8, unique=True),
    own=amounts,
    ms_per_byte=st.floats(1e-8, 1e-5),
    ms_per_mac=st.floats(1e-9, 1e-6),
)
def test_device_that_keeps_to_the_rule_is_foretold(sizes, own, ms_per_byte, ms_per_mac):
    others = [timed(*each, ms_per_byte=ms_per_byte, ms_per_mac=ms_per_mac) for each in sizes]
    found = predict.predict(*own, others)
    assert found is not None
    rates = predict.fit(others, by_macs=True)
    for each in others:
        # Where sizes and operations are all but multiples of each other, no fit can tell them apart, nor need it.
        assert rates.foretell_ms(each.size_bytes, each.macs) == pytest.approx(each.p50_ms, rel=0.05)


@given(
    known=st.lists(st.tuples(amounts, st.floats(1e-3, 1e4)), min_size=1, max_size=8),
    by_macs=st.booleans(),
)
def test_throughputs_are_never_negative(known, by_macs):
    rates = predict.fit([Known(size_bytes=s, macs=m, p50_ms=ms) for (s, m), ms in known], by_macs=by_macs)
    assert rates.ms_per_byte >= 0
    assert rates.ms_per_mac >= 0
    assert max(rates.ms_per_byte, rates.ms_per_mac) > 0


def test_larger_model_that_is_faster_does_not_make_bytes_cost_less_than_nothing():
    others = [Known(size_bytes=size, macs=size, p50_ms=ms) for size, ms in ((100, 4.0), (1000, 2.0), (200, 3.9))]
    found = predict.predict(100_000, 100, others)
    assert found is not None
    assert found.predicted_ms > 0


def test_fewer_than_two_others_foretell_nothing():
    other = Known(size_bytes=100, macs=100, p50_ms=1.0)
    assert predict.predict(100, 100, []) is None
    assert predict.predict(100, 100, [other]) is None
    assert predict.predict(100, 100, [other, other]) is not None


def test_others_whose_operations_are_not_known_are_left_aside_where_the_models_own_are():
    stranger = Known(size_bytes=100, macs=None, p50_ms=1000.0)
    others = [Known(size_bytes=100, macs=100, p50_ms=1.0), Known(size_bytes=200, macs=200, p50_ms=2.0)]
    assert predict.predict(300, 300, [*others, stranger]) == predict.predict(300, 300, others)
    assert predict.predict(300, 300, [others[0], stranger]) is None


def test_without_operations_the_size_foretells():
    others = [Known(size_bytes=size, macs=None, p50_ms=size / 100) for size in (100, 200, 300)]
    found = predict.predict(500, None, others)
    assert found is not None
    assert found.predicted_ms == pytest.approx(5.0)
    assert found.error_ratio == pytest.approx(0.0, abs=1e-12)


def test_error_is_that_of_others_each_of_which_was_left_out():
    """Of three models two are alike; the odd one out is foretold by the others to take half of what it does."""
    others = [Known(size_bytes=100, macs=None, p50_ms=ms) for ms in (1.0, 1.0, 2.0)]
    found = predict.predict(100, None, others)
    assert found is not None
    # Without one of the first two, 1/t is fitted to 1 and 1/2: (1 + 1/2) / (1 + 1/4) = 1.2 ms.
    assert found.error_ratio == pytest.approx(0.2)


def test_measured_time_of_nothing_tells_nothing():
    """A clock too coarse for the model says 0."""
    others = [Known(size_bytes=100, macs=None, p50_ms=0.0)] * 3
    assert predict.predict(100, None, others) is None
