"""`evenfleet diff`: the first operator at which two files of one graph part."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import click
from click.core import ParameterSource
from rich.box import SIMPLE
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from evenfleet_collector.commands.asking import url_option
from evenfleet_collector.commands.printing import CONTEXT, print_json, show
from evenfleet_shared.errors import EXIT_OUTSIDE, ConfigError

if TYPE_CHECKING:
    from evenfleet_collector.optimize.layers import DiffReport, LayerReport

# As in `walk.RUNTIMES`, which is not imported for a help page; a test holds the two together.
RUNTIMES: Final = ("litert", "litert-xnnpack", "litert-reference")

_CAUSES: Final = {
    "step": "one step of its {type} output is too coarse for most of what it holds: the range is taken by few large values",
    "saturation": "values beyond the range of its {type} output are cut off: calibration has not seen them",
    "weights": "half of its weights are {weights} or more off in B: few large ones take the range of their type, or they are "
    "other weights",
    "other-weights": "its weights in B are others than in A",
    "arithmetic": "neither its step, its range nor its weights account for that: it computes something else",
}

_EPILOG = """\b
Example:
  evenfleet diff release:float32 release:int8
  evenfleet diff float.tflite int8.tflite --data data.npz
  evenfleet diff model.tflite model.tflite --data data.npz --runtime-b litert-xnnpack
  evenfleet diff --device press-07 --device press-08 --variant int8

\b
Exit codes: 0 no operator exceeds its bound; 1 failed: a file cannot be run, the two are not of one graph, or a
device does not answer in time; 2 bad arguments or data; 3 refused by the collector or a device;
4 an operator exceeds its bound.
"""


@click.command(epilog=_EPILOG, context_settings=CONTEXT)
@click.argument("a", required=False)
@click.argument("b", required=False)
@click.option(
    "--data",
    help="Labelled samples, as `evenfleet optimize` takes them; its test part is used.  [default: the release's golden set]",
)
@click.option("--samples", type=click.IntRange(1, 100_000), default=64, show_default=True, help="How many are fed.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Decides which ones.")
@click.option("--runtime-a", type=click.Choice(RUNTIMES), default="litert", show_default=True, help="What runs A.")
@click.option("--runtime-b", type=click.Choice(RUNTIMES), default="litert", show_default=True, help="What runs B.")
@click.option("--label-column", metavar="NAME", help="Of a CSV; else label, class or target, or the last column.")
@click.option("--preprocessing", multiple=True, metavar="KEY=VALUE", help="What becomes of images; may be repeated.")
@click.option(
    "--device",
    "devices",
    multiple=True,
    metavar="DEVICE",
    help="In place of A and B, given twice: hold two devices side by side.",
)
@click.option("--variant", metavar="NAME", help="What both devices run.")
@click.option(
    "--ttl-s",
    type=float,
    default=120.0,
    show_default=True,
    metavar="SECONDS",
    help="Given up when a device has not answered within so long.",
)
@url_option
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_context
def diff(
    ctx: click.Context,
    *,
    a: str | None,
    b: str | None,
    data: str | None,
    samples: int,
    seed: int,
    runtime_a: str,
    runtime_b: str,
    label_column: str | None,
    preprocessing: tuple[str, ...],
    devices: tuple[str, ...],
    variant: str | None,
    ttl_s: float,
    url: str,
    as_json: bool,
) -> None:
    """Walk A and B operator by operator, and name the first of B whose error exceeds its bound.

    A, the reference, and B are .tflite files of one graph, or RELEASE_DIR:VARIANT. They may also be the same file, run by
    two runtimes: litert is LiteRT's built-in kernels, litert-xnnpack the delegate that devices use, litert-reference the
    plain kernels that the others are written after.

    An operator is held to account for what it introduces itself: its output in B, less what A's operator makes of B's
    inputs. How much it may introduce follows from the types of its output and its weights (docs/diff.md). Beside that
    stands its sensitivity: how far A's output moves with this operator alone as B has it.

    With --device twice, the first operator is named at which the two devices' runs of one variant part by more than rounding
    accounts for. Both are asked for it, on the release's first golden sample, and tell their tensors in few numbers.

    On failure nothing is printed but one line.
    """
    if devices or variant is not None:
        # Speaks to the collector, for which models are neither built nor walked on this machine.
        from evenfleet_collector.commands.device_diff import diff_devices

        _check_alone(ctx)
        ctx.exit(diff_devices(devices, variant, ttl_s=ttl_s, url=url, as_json=as_json))
    if a is None or b is None:
        raise ConfigError(
            "A and B are missing: two .tflite files, or RELEASE_DIR:VARIANT; or give --device twice and --variant"
        )
    from evenfleet_collector.optimize import diff as walking
    from evenfleet_collector.optimize.datasets import DataOptions, declared
    from evenfleet_collector.optimize.datasets.declared import ImageSettings

    settings = declared.parse(preprocessing, "--preprocessing", ImageSettings())
    options = DataOptions(label_column=label_column, preprocessing=settings)
    one, other = walking.parse(a, "A"), walking.parse(b, "B")
    with _waiting():
        report = walking.diff(
            one,
            other,
            data=data,
            samples=samples,
            seed=seed,
            runtime_a=runtime_a,
            runtime_b=runtime_b,
            options=options,
        )
    if as_json:
        print_json(_document(report, a=f"{a} in {runtime_a}", b=f"{b} in {runtime_b}"))
    else:
        show(*_rendered(report))
    ctx.exit(EXIT_OUTSIDE if report.first is not None else 0)


def _check_alone(ctx: click.Context) -> None:
    """Refuse what goes with files beside devices, instead of passing it over."""
    of_devices = ("devices", "variant", "ttl_s", "url", "as_json")
    for parameter in ctx.command.params:
        given = ctx.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
        if given and parameter.name not in of_devices and ctx.params[parameter.name or ""] is not None:
            name = parameter.opts[-1].upper() if isinstance(parameter, click.Argument) else parameter.opts[0]
            raise ConfigError(f"{name} goes with files, not with --device and --variant; leave it away")


@contextlib.contextmanager
def _waiting() -> Iterator[None]:
    if not sys.stderr.isatty():
        yield
        return
    # Reading sends descriptor 2 elsewhere while the interpreter talks; the line that moves keeps one of its own.
    with (
        os.fdopen(os.dup(sys.stderr.fileno()), "w", encoding="utf-8") as terminal,
        Console(file=terminal).status("walking both files, operator by operator"),
    ):
        yield


def _document(report: DiffReport, *, a: str, b: str) -> dict[str, Any]:
    first = report.first
    return {
        "a": a,
        "b": b,
        "samples": report.samples,
        "first": None if first is None else _layer(first),
        "layers": [_layer(layer) for layer in report.layers],
        "only_in_a": report.only_in_a,
        "only_in_b": report.only_in_b,
        "output_rms": report.output_rms,
        "output_ratio": report.output_ratio,
        "changed": report.changed,
        "accuracy_a": report.accuracy_a,
        "accuracy_b": report.accuracy_b,
    }


def _layer(layer: LayerReport) -> dict[str, Any]:
    import msgspec

    fields: dict[str, Any] = msgspec.to_builtins(layer)
    return {**fields, "exceeds": layer.exceeds, "sqnr_db": layer.sqnr_db, "cause": layer.cause}


def _rendered(report: DiffReport) -> Iterator[RenderableType]:
    table = Table(box=SIMPLE, header_style="bold", pad_edge=False)
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("operator", overflow="fold")
    for heading in ("type", "introduced", "bound", "SQNR dB", "with inherited", "sensitivity", "changed"):
        table.add_column(heading, justify="left" if heading == "type" else "right")
    first = report.first
    for layer in report.layers:
        style = "bold red" if layer is first else "red" if layer.exceeds else None
        table.add_row(
            "" if layer.position < 0 else str(layer.position),
            Text.assemble(layer.kind, " ", (_short(layer.name), "bright_black")),
            layer.type.lower(),
            _percent(layer.introduced_ratio),
            _percent(layer.bound.ratio),
            "–" if layer.sqnr_db is None else f"{layer.sqnr_db:.1f}",
            _percent(layer.total_ratio),
            _percent(layer.sensitivity_ratio),
            "–" if layer.changed is None else str(layer.changed),
            style=style,
        )
    yield table
    yield _sentence(first)
    worst = max((layer for layer in report.layers if layer.sensitivity_ratio), key=_sensitivity, default=None)
    if worst is not None:
        yield Text(
            f"The output is most sensitive to {_called(worst)}: with it alone as in B, A's output moves by "
            f"{_percent(worst.sensitivity_ratio)}, and {worst.changed} of {report.samples} decisions change."
        )
    accuracy = (
        ""
        if report.accuracy_a is None or report.accuracy_b is None
        else f"; of them A has {report.accuracy_a:.4f} right, B {report.accuracy_b:.4f}"
    )
    yield Text(
        f"B's output is {_percent(report.output_ratio)} of A's away, and {report.changed} of {report.samples} decisions "
        f"differ{accuracy}."
    )
    for name, only in (("A", report.only_in_a), ("B", report.only_in_b)):
        if only:
            yield Text(
                f"Without a counterpart, and not held against anything: {', '.join(map(_short, only))} (only in {name})."
            )


def _sentence(first: LayerReport | None) -> Text:
    if first is None:
        return Text("No operator exceeds its bound.", style="green")
    assert first.cause is not None
    cause = _CAUSES[first.cause].format(type=first.type.lower(), weights=_percent(first.weights_error_ratio))
    return Text(
        f"The first beyond its bound is {_called(first)}: it introduces an error of {_percent(first.introduced_ratio)} of its "
        f"signal, {_percent(first.bound.ratio)} are accounted for by its types; {cause}.",
        style="bold red",
    )


def _called(layer: LayerReport) -> str:
    if layer.position < 0:
        return f"the input {_short(layer.name)}"
    return f"operator {layer.position}, {layer.kind} {_short(layer.name)}"


def _short(name: str) -> str:
    # The converter joins the names of what it fused.
    return name.partition(";")[0]


def _sensitivity(layer: LayerReport) -> float:
    return layer.sensitivity_ratio or 0.0


def _percent(ratio: float | None) -> str:
    if ratio is None:
        return "–"
    return f"{ratio:.3g}" if ratio != ratio or ratio > 1e6 else f"{100 * ratio:.3g} %"  # noqa: PLR0124 - NaN alone
