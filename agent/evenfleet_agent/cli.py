"""The command line of a device: parse, call, print.

Each command imports what it needs when it is called, so that `run` pays for nothing else.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any, get_args

import click

from evenfleet_agent import engines
from evenfleet_shared import __version__
from evenfleet_shared.errors import EXIT_DONE, EXIT_FAILED, EvenfleetError
from evenfleet_shared.messages import Task


class OneLineErrors(click.Group):
    """A group whose commands end in one line and the right exit code when something is wrong."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except EvenfleetError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(error.exit_code)


@click.group(cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="evenfleet-agent")
def main() -> None:
    """Measure models on this device, and report them to an Evenfleet collector.

    Exit codes: 0 done, 1 failed, 2 bad arguments or configuration, 3 refused by the other side, 4 outside tolerance.
    """


_config = click.option(
    "--config", "file", type=click.Path(path_type=Path), required=True, help="A TOML file; see 'check --example'."
)


@main.command()
@_config
@click.option("-v", "--verbose", is_flag=True, help="Log every change of state.")
def run(file: Path, verbose: bool) -> None:
    """Run the agent until it is told to stop (Ctrl-C or SIGTERM).

    It keeps measuring without a network: what it finds waits in the outbox until the collector has it on disk.

    Example: evenfleet-agent run --config /etc/evenfleet/agent.toml

    Exit codes: 0 stopped, 1 the state directory cannot be used, 2 wrong configuration.
    """
    import os

    from evenfleet_agent import config, service

    settings = config.load(file, os.environ, {})
    service.check(settings)
    _check_keys(settings.release.trusted_keys)
    # The process that stays for a year begins anew, without what only the command line needs.
    arguments = [sys.executable, "-m", "evenfleet_agent.lean", str(file.resolve()), *(["-v"] if verbose else [])]
    # Of heaps one is enough for two threads; `lean` sees to it that the runners have theirs.
    # And no module comes from the working directory, which runners may be able to write.
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1", "PYTHONSAFEPATH": "1"}
    os.execve(sys.executable, arguments, environment)  # noqa: S606 - our own program


@main.command()
@click.option("--config", "file", type=click.Path(path_type=Path), help="The TOML file to check.")
@click.option("--example", is_flag=True, help="Print a configuration file with every setting instead.")
@click.option("--json", "as_json", is_flag=True, help="Print the settings in force as JSON.")
def check(file: Path | None, example: bool, as_json: bool) -> None:
    """Check a configuration on its device, without running anything.

    What must be there for it is looked for: the token's file, a state directory that can be written, and the runtime, of
    which 'doctor' says whether it works, too.

    Example: evenfleet-agent check --config agent.toml

    Exit codes: 0 it can be used, 2 it cannot.
    """
    import os

    import msgspec

    from evenfleet_agent import config, service, targets

    if example:
        click.echo(config.example(), nl=False)
        return
    if file is None and "EVENFLEET_DEVICE" not in os.environ:
        raise click.UsageError("Missing option '--config'; or set EVENFLEET_DEVICE and others of the environment.")
    settings = config.load(file, os.environ, {})
    service.check(settings, by_clock=True)
    _check_keys(settings.release.trusted_keys)
    service.check_state_dir(settings)
    targets.check_installed(settings.runtime.name, settings.runtime.python)
    click.echo(msgspec.json.encode(settings).decode() if as_json else f"{file or 'the environment'}: can be used")


@main.command()
@_config
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def status(file: Path, as_json: bool) -> None:
    """Say how the agent is, how it stands with its collector, and what its outbox holds.

    The broker session is shown with how long it has been there, or why there is none; the last receipt to the minute, for
    the agent spares the disk. Messages that were given up are counted by reason.

    Example: evenfleet-agent status --config /etc/evenfleet/agent.toml

    Exit codes: 0 it runs, 1 it does not, 2 it never ran with this configuration.
    """
    import os

    import msgspec

    from evenfleet_agent import config, service

    found = service.status(config.load(file, os.environ, {}))
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
    else:
        click.echo(f"agent        {'running' if found.running else 'not running'}")
        since = "" if found.connected_s is None else f" for {_duration(found.connected_s)}"
        click.echo(f"broker       {'connected' if found.connected else 'no session'}{since}", nl=False)
        click.echo("" if found.connected else f": {found.reason}")
        if found.trouble:
            click.echo(f"trouble      {found.trouble}")
        receipt = (
            "none since the device started" if found.receipt_s is None else f"at most {_duration(found.receipt_s)} ago"
        )
        click.echo(f"receipt      {receipt}")
        click.echo(f"release      {found.release or 'none'}")
        for name, how in sorted(found.variants.items()):
            click.echo(f"  {name:<20} {how}")
        if found.cpu_ratio is not None:
            click.echo(f"takes        {found.cpu_ratio:.1%} of a processor, may take {found.budget_ratio:.1%}")
        click.echo(f"incarnation  {found.incarnation.counter if found.incarnation else 'none'}")
        click.echo(f"numbered     {found.last_seq} messages in this incarnation")
        click.echo(f"outbox       {found.waiting_messages} messages, {found.waiting_bytes} bytes, without a receipt")
        for reason, count in sorted(found.given_up.items()):
            click.echo(f"given up     {count} messages: {reason}")
    sys.exit(EXIT_DONE if found.running else EXIT_FAILED)


def _check_keys(files: tuple[str, ...]) -> None:
    """Refuse a file of `release.trusted_keys` that holds no public key: no release at all would be run."""
    if not files:
        return
    from evenfleet_shared import trust
    from evenfleet_shared.errors import ConfigError

    try:
        for file in files:
            trust.read_public_key(Path(file))
    except ConfigError as error:
        raise ConfigError(f"release.trusted_keys: {error}") from None


def _finite(ctx: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    """Refuse a number that is none: of NaN every range says that it lies within."""
    if value is not None and not math.isfinite(value):
        from evenfleet_shared.errors import ConfigError

        raise ConfigError(f"{parameter.opts[0]}: {value} is not a number that can be measured with")
    return value


def _duration(seconds: float) -> str:
    for name, length_s in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length_s:
            return f"{seconds // length_s:.0f} {name}"
    return f"{max(0.0, seconds):.0f} seconds"


@main.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--data", type=click.Path(path_type=Path), help="An .npz with x (or x_test, inputs) and y (or y_test, labels)."
)
@click.option(
    "--runtime",
    type=click.Choice(["auto", *engines.NAMES]),
    multiple=True,
    default=("auto",),
    show_default=True,
    help="auto takes the first one installed that runs the model. May be given several times, to compare runtimes.",
)
@click.option(
    "--threads", type=click.IntRange(1, 1024), default=1, show_default=True, help="Threads of the interpreter."
)
@click.option("--xnnpack/--no-xnnpack", default=True, show_default=True, help="Let TFLite use its XNNPACK kernels.")
@click.option(
    "--delegate",
    help=f"{', '.join(engines.DELEGATES)}, or the path of a TFLite delegate's library; the CPU runs what it leaves.",
)
@click.option(
    "--delegate-option",
    "delegate_options",
    multiple=True,
    metavar="KEY=VALUE",
    help="For the delegate; may be repeated.",
)
@click.option(
    "--samples", type=click.IntRange(1, 1_000_000), default=1000, show_default=True, help="Timed inferences, at least."
)
@click.option(
    "--min-duration",
    type=click.FloatRange(0, 86_400),
    callback=_finite,
    default=0.0,
    show_default=True,
    help="Seconds, at least.",
)
@click.option(
    "--max-duration",
    type=click.FloatRange(0, 86_400),
    callback=_finite,
    help="Seconds after which timing stops, whatever --samples says.  [default: 30, or --min-duration if that is longer]",
)
@click.option(
    "--processes",
    type=click.IntRange(1, 1000),
    default=1,
    show_default=True,
    help="Measure in so many processes each, in turns, and tell their median and spread.",
)
@click.option(
    "--cadence-ms",
    type=click.FloatRange(0, 3_600_000, min_open=True),
    callback=_finite,
    help="Begin an inference every so often, as an application does, instead of one after another.",
)
@click.option(
    "--sustained",
    type=click.FloatRange(0, 86_400, min_open=True),
    callback=_finite,
    metavar="SECONDS",
    help="Then load the model without a pause for so long, and hold the last minute against the first.",
)
@click.option("--offline", is_flag=True, help="Then run the largest batches back to back, for 10 s.")
@click.option(
    "--task",
    type=click.Choice(get_args(Task)),
    help="What the labels of --data are, and so what is right; docs/tasks.md has each.  [default: the release's, or classification]",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(0),
    callback=_finite,
    help="How far off a regression's or an agreement's numbers may be.",
)
@click.option(
    "--threshold", type=float, callback=_finite, help="The task's: score, IoU or cosine from which a sample counts."
)
@click.option("--variant", multiple=True, help="Of a release directory; may be given several times. Default: all.")
@click.option(
    "--python",
    help="The Python of another environment with evenfleet and the runtime installed (tflite-runtime needs numpy < 2).",
)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def measure(
    model: Path,
    data: Path | None,
    runtime: tuple[str, ...],
    threads: int,
    xnnpack: bool,
    delegate: str | None,
    delegate_options: tuple[str, ...],
    samples: int,
    min_duration: float,
    max_duration: float | None,
    processes: int,
    cadence_ms: float | None,
    sustained: float | None,
    offline: bool,
    task: Task | None,
    tolerance: float | None,
    threshold: float | None,
    variant: tuple[str, ...],
    python: str | None,
    as_json: bool,
) -> None:
    """Measure MODEL on this device; no broker is needed.

    MODEL is a .tflite file, a SavedModel (directory or tar), or a release directory, of which every variant is
    measured on its golden set. Without data the inputs are made up: latency and memory only.

    Example: evenfleet-agent measure model.tflite --data test.npz --runtime litert --threads 2

    A model that cannot be measured is one line on standard error and exit code 1 (2 if the arguments or the data
    are wrong). Of several the others are measured all the same; the exit code is 0 then, unless a process crashed, or
    a runtime or variant that was named is the one that could not be.
    What each figure means, and which modes there are, is in docs/measuring.md.
    """
    import tempfile

    import msgspec

    from evenfleet_agent import measure as measuring
    from evenfleet_agent import tables, targets
    from evenfleet_agent.runner.process import RunnerProcess
    from evenfleet_agent.runner.protocol import Measure, RunnerSpec
    from evenfleet_agent.samples import write_data

    targets.check_python(python)
    if max_duration is not None and max_duration < min_duration:
        raise click.UsageError(f"--max-duration is {max_duration:g}, below --min-duration, which is {min_duration:g}")
    request = Measure(
        samples=samples,
        min_duration_s=min_duration,
        max_duration_s=max(30.0, min_duration) if max_duration is None else max_duration,
        cadence_ms=cadence_ms,
        sustained_s=sustained or 0.0,
        offline_s=measuring.OFFLINE_S if offline else 0.0,
    )
    template = RunnerSpec(
        runtime=runtime[0],
        artifact="",
        format="tflite",
        threads=threads,
        xnnpack=xnnpack,
        delegate=delegate,
        delegate_options=targets.delegate_options(delegate, delegate_options),
        python=python,
    )
    task = targets.task_of(model, task)
    outcomes: list[measuring.Result | measuring.Failure] = []
    runner = RunnerProcess()
    try:
        with (
            tempfile.TemporaryDirectory(prefix="evenfleet-measure-") as directory,
            measuring.progress_line() as progress,
        ):
            if data is not None:
                files = write_data(data, Path(directory), task)
                template = msgspec.structs.replace(
                    template, inputs_file=files.inputs, labels_file=files.labels, outputs_file=files.outputs, task=task
                )
            chosen: list[targets.Target] = []
            for name in dict.fromkeys(runtime):
                own = targets.find_targets(model, runtime=name, template=template, variants=variant, data=data)
                omitted = [] if variant else targets.left_out(model, own)
                if omitted:
                    click.echo(f"left out, for {name} does not run their format: {', '.join(omitted)}", err=True)
                chosen += [targets.held_to(target, tolerance=tolerance, threshold=threshold) for target in own]
            outcomes = measuring.measure_in_turns(chosen, request, runner, progress, processes=processes)
    finally:
        runner.stop()
    failures = [outcome for outcome in outcomes if isinstance(outcome, measuring.Failure)]
    if as_json:
        click.echo(msgspec.json.encode({"model": str(model), "results": outcomes}).decode())
    elif len(failures) < len(outcomes):
        click.echo(tables.table(outcomes))
    if len(failures) == len(outcomes):
        raise measuring.as_error(measuring.first_to_mend(failures))
    # A variant that this runtime cannot run is a finding; a crash is a failure, and so is what was asked for by its name.
    failing = ("runner", "runtime") if runtime != ("auto",) else ("runner",)
    failed = any(failure.kind in failing or failure.name in variant for failure in failures)
    sys.exit(EXIT_FAILED if failed else EXIT_DONE)


@main.command()
@click.option("--python", help="The Python of another environment to look at.")
@click.option(
    "--delegate",
    "delegates",
    multiple=True,
    help=f"Try this too: {', '.join(engines.DELEGATES)}, or the path of a TFLite delegate's library. May be given several times.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def doctor(python: str | None, delegates: tuple[str, ...], as_json: bool) -> None:
    """Say which runtimes and accelerators work here, and what to install for the others.

    Every runtime really builds an interpreter, since some import fine and fail only then; with --delegate those that
    work do so once more, and tell whether the delegate runs a small model or why not.

    Example: evenfleet-agent doctor --delegate edgetpu

    Exit codes: 0 at least one runtime works, and every delegate in at least one; 1 not so; 2 wrong arguments.
    """
    import msgspec

    from evenfleet_agent import doctor as examination
    from evenfleet_agent import targets

    targets.check_python(python)
    sources, accelerators = examination.read_sources(), examination.attached()
    plain = examination.try_runtimes(python)
    with_delegates = examination.try_delegates(python, delegates, plain)
    if as_json:
        found = {
            "host": sources,
            "accelerators": accelerators,
            "runtimes": {tried.runtime: tried for tried in plain},
            "delegates": with_delegates,
        }
        click.echo(msgspec.json.encode(found).decode())
    else:
        click.echo(examination.table(sources, accelerators, [*plain, *with_delegates]))
    sys.exit(EXIT_DONE if examination.all_there(plain, delegates, with_delegates) else EXIT_FAILED)


if __name__ == "__main__":
    main()
