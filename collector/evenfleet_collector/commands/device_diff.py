"""`evenfleet diff --device A --device B --variant V`: the first operator at which two devices' runs of one variant part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec
from rich.box import SIMPLE
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from evenfleet_collector import parting
from evenfleet_collector.client import Collector
from evenfleet_collector.commands.device_orders import await_answers, check_order, outcome
from evenfleet_collector.commands.printing import print_json, show
from evenfleet_collector.parting import OutputReport, Parting
from evenfleet_collector.resources import NewCommand
from evenfleet_collector.store.rows import CommandRow
from evenfleet_shared import layers
from evenfleet_shared.errors import EXIT_OUTSIDE, ConfigError, EvenfleetError, MessageError
from evenfleet_shared.layers import Layers

# Shown before and behind what is named.
_AROUND: Final = 4


def diff_devices(devices: Sequence[str], variant: str | None, *, ttl_s: float, url: str, as_json: bool) -> int:
    """Ask both devices, print where they part, and return the exit code.

    Raises:
        ConfigError: Not two devices, or no variant, was named.
        RefusedError: The collector, or a device, refuses.
        EvenfleetError: A device does not answer in time, or fails; or they do not run one file.
    """
    if len(devices) != 2:
        raise ConfigError(f"--device: expected two, A and B, found {len(devices)}")
    if variant is None:
        raise ConfigError("--variant is missing: which one both devices shall run")
    for device in devices:
        check_order(device, ttl_s, "--device")
    wanted = NewCommand(command="layers", variant=variant, ttl_s=ttl_s)
    with Collector(url) as collector:
        rows = await_answers(collector, [collector.order(device, wanted) for device in devices])
    failures = [error for error in map(outcome, rows) if error is not None]
    if failures:
        # What was refused is not mended by waiting, so that is told by the exit code if any is.
        raise type(max(failures, key=lambda error: error.exit_code))("; ".join(map(str, failures)))
    a, b = (_decoded(row) for row in rows)
    found = parting.part(a, b)
    if as_json:
        print_json(_document(found, devices, a, b))
    else:
        show(*_rendered(found, devices, a, b))
    return EXIT_OUTSIDE if found.first else 0


def _decoded(row: CommandRow) -> Layers:
    try:
        return layers.decode(row.reply.result if row.reply else None)
    except MessageError as error:
        raise EvenfleetError(f"{row.device} answered nonsense: {error.detail}") from None


def _document(found: Parting, devices: Sequence[str], a: Layers, b: Layers) -> dict[str, Any]:
    return {
        "a": _run(devices[0], a),
        "b": _run(devices[1], b),
        "variant": a.variant,
        "artifact": a.artifact,
        "sample": a.sample,
        "first": msgspec.to_builtins(found.first),
        "outputs": [msgspec.to_builtins(one) for one in found.outputs],
    }


def _run(device: str, told: Layers) -> dict[str, Any]:
    return {
        "device": device,
        "runtime": told.runtime,
        "runtime_version": told.runtime_version,
        "executed": told.executed,
        "delegated_ratio": told.delegated_ratio,
        "outputs": told.outputs,
        "note": told.note,
    }


def _rendered(found: Parting, devices: Sequence[str], a: Layers, b: Layers) -> Iterator[RenderableType]:
    for name, device, told in (("A", devices[0], a), ("B", devices[1], b)):
        share = "" if told.delegated_ratio is None else f" ({100 * told.delegated_ratio:.0f} % of operators delegated)"
        note = f"; {told.note}" if told.note else ""
        yield Text(f"{name}  {device}: {told.runtime} {told.runtime_version}, run by {told.executed}{share}{note}")
    first = found.first
    seen = [one for one in found.outputs if one.difference_rms is not None]
    middle = first or max(seen, key=_ratio, default=None)
    yield _table(found, middle)
    yield _sentence(found, first, middle)


def _table(found: Parting, middle: OutputReport | None) -> Table:
    table = Table(box=SIMPLE, header_style="bold", pad_edge=False)
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("operator", overflow="fold")
    table.add_column("type")
    for heading in ("rms of A", "difference", "steps", "accounted for"):
        table.add_column(heading, justify="right")
    place = found.outputs.index(middle) if middle else 0
    for one in found.outputs[max(0, place - _AROUND) : place + _AROUND + 1]:
        table.add_row(
            "" if one.index < 0 else str(one.index),
            Text.assemble(one.operator, " ", (_short(one.name), "bright_black")),
            one.type,
            "–" if one.signal_rms is None else f"{one.signal_rms:.3g}",
            "none" if one.identical else one.remark or _percent(_ratio(one)),
            "–" if one.difference_steps is None else f"{one.difference_steps:.2g}",
            "–" if one.bound_rms is None or not one.signal_rms else _percent(one.bound_rms / one.signal_rms),
            style="bold red" if one is found.first else "red" if one.exceeds else None,
        )
    return table


def _sentence(found: Parting, first: OutputReport | None, largest: OutputReport | None) -> Text:
    if first is not None:
        by = f": {first.remark}" if first.remark else f" by {_by(first)}"
        if first.index >= 0:
            return Text(f"A and B part at {_called(first)}, which differs{by}.", style="bold red")
        operator = next((one for one in found.outputs if one.exceeds and one.index >= 0), None)
        follows = (
            f"; the first operator that differs with it is {_called(operator)}, by {_by(operator)}" if operator else ""
        )
        return Text(
            f"A and B part before the first operator, at {_called(first)}, which differs{by}: they feed the model other values"
            f"{follows}.",
            style="bold red",
        )
    if not found.held or largest is None:
        return Text("Nothing could be held against anything: no operator was seen on both.", style="yellow")
    most = "every byte is the same" if not _ratio(largest) else f"the most is {_by(largest)}, at {_called(largest)}"
    return Text(
        f"A and B differ by no more than rounding accounts for, in {found.held} outputs and inputs; {most}.",
        style="green",
    )


def _called(one: OutputReport) -> str:
    if one.index < 0:
        return f"the input {_short(one.name)}"
    return f"operator {one.index}, {one.operator} {_short(one.name)}"


def _by(one: OutputReport) -> str:
    accounted = (
        f" ({_percent(one.bound_rms / one.signal_rms)} are accounted for)" if one.bound_rms and one.signal_rms else ""
    )
    steps = f", {one.difference_steps:.2g} steps" if one.difference_steps is not None else ""
    return f"{_percent(_ratio(one))} of its signal{steps}{accounted}"


def _ratio(one: OutputReport) -> float:
    if one.difference_ratio is not None:
        return one.difference_ratio
    return float("inf") if one.difference_rms else 0.0


def _percent(ratio: float) -> str:
    return f"{100 * ratio:.3g} %"


def _short(name: str) -> str:
    # The converter joins the names of what it fused.
    return name.partition(";")[0]
