"""`evenfleet diff --device A --device B`: what it asks, what it names, and how it ends where a device does not do it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from evenfleet_collector.store.rows import CommandRow
from evenfleet_shared.layers import PROJECTIONS, LayerOutput, Layers, Summary
from fakes.stores import FakeStore, device_row
from fakes.uplink import reply

Run = Callable[..., Any]
ASK = ("diff", "--device", "press-07", "--device", "press-08", "--variant", "int8")

pytestmark = pytest.mark.usefixtures("collector")


@pytest.fixture(autouse=True)
def fleet(store: FakeStore) -> None:
    for device in ("press-07", "press-08"):
        store.put_device(device_row(device))


def layer(index: int, value: float) -> LayerOutput:
    summary = Summary(
        digest=f"{index + 1:08x}{int(value * 1000):08x}",
        min=-1.0,
        max=1.0,
        mean=0.0,
        rms=1.0,
        projections=(value,) * PROJECTIONS,
    )
    return LayerOutput(
        index=index,
        operator="INPUT" if index < 0 else "CONV_2D",
        name=f"t{index};fused",
        number=index + 1,
        shape=(1, 4),
        dtype="float32",
        summary=summary,
    )


def run(*projected: float, **changes: Any) -> Layers:
    """Return a run of an input and operators whose tensors have these projections."""
    base = Layers(
        artifact="a" * 64,
        golden="b" * 64,
        variant="int8",
        runtime="litert",
        runtime_version="2.1.0",
        executed="xnnpack",
        delegated_ratio=1.0,
        sample=0,
        outputs=len(projected) - 1,
        layers=tuple(layer(number - 1, value) for number, value in enumerate(projected)),
    )
    return replace(base, **changes)


def answer(store: FakeStore, **told: Any) -> None:
    """Have each device answer as told: with a run, or with an answer that is none."""

    def answers(row: CommandRow) -> CommandRow:
        what = told[row.device.replace("-", "_")]
        if isinstance(what, Layers):
            what = {"state": "done", "result": msgspec.to_builtins(what)}
        if "result" not in what and "detail" not in what:
            return replace(row, **what)
        said = {name: value for name, value in what.items() if name != "state"}
        came = reply(row.correlation_id, device=row.device, command="layers", status=what["state"], **said)
        return replace(row, state=what["state"], reply=came)

    store.answers = answers


def test_both_devices_are_asked_and_runs_that_are_the_same_are_exit_0(evenfleet: Run, store: FakeStore) -> None:
    answer(store, press_07=run(1.0, 2.0), press_08=run(1.0, 2.0))
    outcome = evenfleet(*ASK)
    assert outcome.code == 0, outcome.err
    assert [(row.device, row.command, row.variant) for row in store.command_rows] == [
        ("press-07", "layers", "int8"),
        ("press-08", "layers", "int8"),
    ]
    assert "waiting for the answer of press-07 and press-08, for 120 s at most" in outcome.err
    assert "A  press-07: litert 2.1.0, run by xnnpack (100 % of operators delegated)" in outcome.out
    assert "no more than rounding accounts for" in outcome.out


def test_the_first_operator_is_named_and_is_exit_4(evenfleet: Run, store: FakeStore) -> None:
    answer(store, press_07=run(1.0, 2.0, 3.0, 4.0), press_08=run(1.0, 2.0, 3.5, 5.0))
    outcome = evenfleet(*ASK)
    assert outcome.code == 4
    assert " ".join(outcome.out.split()).endswith(
        "A and B part at operator 1, CONV_2D t1, which differs by 25 % of its signal (0.01 % are accounted for)."
    )
    as_json = json.loads(evenfleet(*ASK, "--json").out)
    assert (as_json["first"]["index"], as_json["first"]["difference_ratio"]) == (1, 0.25)
    assert (as_json["a"]["device"], as_json["b"]["device"], len(as_json["outputs"])) == ("press-07", "press-08", 4)


def test_inputs_that_differ_are_told_with_the_first_operator(evenfleet: Run, store: FakeStore) -> None:
    answer(store, press_07=run(1.0, 2.0), press_08=run(2.0, 4.0))
    outcome = evenfleet(*ASK)
    assert outcome.code == 4
    said = " ".join(outcome.out.split())
    assert "part before the first operator, at the input t-1" in said
    assert "the first operator that differs with it is operator 0, CONV_2D t0" in said


@pytest.mark.parametrize(
    ("told", "code", "line"),
    [
        (
            {"state": "refused", "detail": "runtime onnx does not show"},
            3,
            "press-08 refused layers: runtime onnx does not",
        ),
        ({"state": "failed", "detail": "was killed by SIGSEGV"}, 1, "press-08 failed at layers: was killed by SIGSEGV"),
        ({"state": "expired"}, 1, "press-08 did not do layers within 120 s"),
        ({"state": "done", "result": {"layers": 3}}, 1, "press-08 answered nonsense: not a result of layers"),
        (run(1.0, artifact="c" * 64), 1, "A runs another file than B as int8: aaaaaaaaaaaa and cccccccccccc"),
    ],
)
def test_what_does_not_come_about_is_one_line_and_its_exit_code(
    evenfleet: Run, store: FakeStore, told: Any, code: int, line: str
) -> None:
    answer(store, press_07=run(1.0), press_08=told)
    outcome = evenfleet(*ASK, "--json")
    assert (outcome.code, outcome.out) == (code, "")
    assert line in outcome.err.splitlines()[-1]


def test_of_two_devices_that_do_not_do_it_the_refusal_decides_the_exit_code(evenfleet: Run, store: FakeStore) -> None:
    answer(store, press_07={"state": "expired"}, press_08={"state": "refused", "detail": "it runs nothing"})
    outcome = evenfleet(*ASK)
    assert outcome.code == 3
    assert "press-07 did not do layers" in outcome.err
    assert "press-08 refused layers: it runs nothing" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--device", "press-07", "--variant", "int8"), "--device: expected two, A and B, found 1"),
        (("--device", "press-07", "--device", "press-08"), "--variant is missing"),
        (("--variant", "int8"), "--device: expected two, A and B, found 0"),
        ((*ASK[1:], "--ttl-s", "0"), "--ttl-s: expected more than 0"),
        ((*ASK[1:3], "--device", "Press 8", *ASK[5:]), "--device: expected"),
        ((*ASK[1:], "--samples", "3"), "--samples goes with files"),
        ((*ASK[1:], "a.tflite"), "A goes with files"),
        ((), "A and B are missing"),
    ],
)
def test_what_cannot_be_asked_is_exit_2_and_asks_nobody(
    evenfleet: Run, store: FakeStore, arguments: tuple[str, ...], line: str
) -> None:
    outcome = evenfleet("diff", *arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert line in outcome.err
    assert store.command_rows == []


def test_a_device_that_is_not_known_is_exit_3(evenfleet: Run) -> None:
    outcome = evenfleet("diff", "--device", "press-99", "--device", "press-08", "--variant", "int8")
    assert (outcome.code, outcome.out) == (3, "")
