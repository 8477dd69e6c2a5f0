from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenfleet_agent.runner.protocol import (
    MAX_FRAME_BYTES,
    Check,
    Failed,
    FrameBuffer,
    Load,
    Measure,
    Refused,
    RunnerSpec,
    decode_frame,
    decode_request,
    encode,
)
from evenfleet_shared.errors import RunnerError

REQUESTS = [
    Load(spec=RunnerSpec(runtime="litert", artifact="/m.tflite", format="tflite", threads=2), scratch="/tmp/s"),
    Measure(samples=10, min_sample_s=0.005),
    Check(runtime="tensorflow"),
]


@pytest.mark.parametrize("request_", REQUESTS)
def test_request_comes_out_as_it_went_in(request_):
    (body,) = FrameBuffer().feed(encode(request_))
    assert decode_request(body) == request_


@given(st.lists(st.text(max_size=20), max_size=5), st.integers(1, 7))
def test_stream_cut_anywhere_gives_the_same_frames(reasons, size):
    stream = b"".join(encode(Failed(reason=reason)) for reason in reasons)
    frames = FrameBuffer()
    bodies = [body for at in range(0, len(stream), size) for body in frames.feed(stream[at : at + size])]
    assert [decode_frame(body) for body in bodies] == [Failed(reason=reason) for reason in reasons]


def test_frame_that_claims_too_much_is_refused_before_it_is_collected():
    with pytest.raises(RunnerError, match="claims"):
        FrameBuffer().feed(struct.pack(">I", MAX_FRAME_BYTES + 1))


def test_frame_too_large_to_send_is_refused():
    with pytest.raises(RunnerError, match="at most"):
        encode(Refused(kind="model", reason="x" * MAX_FRAME_BYTES))


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_a_frame_or_a_runner_error(body):
    for decode in (decode_frame, decode_request):
        with contextlib.suppress(RunnerError):
            decode(body)
