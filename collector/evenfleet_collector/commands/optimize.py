"""The command `evenfleet optimize`: read the arguments, build, show progress.

Leaves the building to `evenfleet_collector.optimize`, which loads TensorFlow when it has to; importing this does not. Leaves
to `optimized` how the result is told.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from evenfleet_collector.commands.printing import CONTEXT
from evenfleet_shared.errors import EXIT_OUTSIDE, ConfigError

if TYPE_CHECKING:
    from evenfleet_collector.optimize import BuildReport, Progress

_EPILOG = """\b
Example, with the project's own digits model:
  evenfleet optimize examples.small_cnn:model --data examples.small_cnn:data --out release/

\b
Photos in photos/train/CLASS/ and photos/test/CLASS/, for a model that takes -1 to 1:
  evenfleet optimize model.keras --data photos/ --out release/ --preprocessing scale=1/127.5 --preprocessing offset=-1

\b
The smallest variant that is quick and good enough, built if need be:
  evenfleet optimize model.keras --data data.npz --out release/ --target "p95_ms<=5, size_kb<=100, accuracy_drop<=0.01"

\b
Exit codes: 0 done; 1 the model was refused, no variant could be built, or --memory was not enough; 2 bad arguments or
data; 4 no variant holds the --target (the release is there all the same).
On failure, and on Ctrl-C or SIGTERM, nothing is left behind but what is in the cache: the same command goes on from there.
"""


@click.command(epilog=_EPILOG, context_settings=CONTEXT)
@click.argument("model")
@click.option("--data", required=True, help="Labelled samples, in one of the forms below.")
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="The release directory to make. An earlier release there is replaced, anything else refused.",
)
@click.option(
    "--recipe",
    "recipe_file",
    type=click.Path(path_type=Path),
    help="A TOML file that says which variants to build, by which techniques, with which settings (docs/recipes.md).",
)
@click.option(
    "--seed", type=click.IntRange(0, 2**31 - 1), help="Of splits and training.  [default: the recipe's, or 0]"
)
@click.option(
    "--golden", type=click.IntRange(1, 100_000), help="Test samples in the golden set.  [default: the recipe's, or 300]"
)
@click.option(
    "--only", multiple=True, metavar="NAME", help="Build this variant and the reference alone; may be repeated."
)
@click.option(
    "--seeds",
    type=click.IntRange(0, 20),
    default=1,
    show_default=True,
    help="How often a trained variant and its control are trained, to say what the technique brings; 0: no controls.",
)
@click.option("--label-column", metavar="NAME", help="Of a CSV; else label, class or target, or the last column.")
@click.option(
    "--preprocessing",
    multiple=True,
    metavar="KEY=VALUE",
    help="What becomes of images: resize, fit, channels, scale, offset (or mean, std), width, height, layout; may be "
    "repeated. Carried in the release with a fingerprint.",
)
@click.option(
    "--rescue",
    is_flag=True,
    help="Build int8 variants that lose more than --max-drop once more, with their worst operators left in float.",
)
@click.option(
    "--max-drop",
    type=click.FloatRange(0, 1),
    default=0.01,
    show_default=True,
    help="The accuracy that --rescue lets an int8 variant lose; 0.01 is one point.",
)
@click.option(
    "--target",
    metavar="LIMITS",
    help='What a variant is to hold, such as "p95_ms<=5, size_kb<=100, accuracy_drop<=0.01"; further variants are built until '
    "one does (docs/report.md).",
)
@click.option(
    "--report",
    "report_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where to write the report with its plots.  [default: beside --out, as OUT-report.html]",
)
@click.option("--no-report", is_flag=True, help="Write no report.")
@click.option(
    "--no-timing",
    is_flag=True,
    help="Measure no latency and no memory; the release then has no envelope of this machine.",
)
@click.option(
    "--device-class",
    default="build-machine",
    show_default=True,
    help="The device class that this machine is one of, for the release's envelope.",
)
@click.option(
    "--cache",
    "cache_folder",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="EVENFLEET_OPTIMIZE_CACHE",
    show_envvar=True,
    help="Where finished work is kept and found again.  [default: ~/.cache/evenfleet/optimize]",
)
@click.option("--no-cache", is_flag=True, help="Build everything anew, and keep nothing.")
@click.option("--cores", type=click.IntRange(1), help="Use at most so many cores.  [default: all]")
@click.option("--memory", metavar="SIZE", help="End when the build holds more, such as 4GB.  [default: no limit]")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def optimize(
    *,
    model: str,
    data: str,
    out: Path,
    recipe_file: Path | None,
    seed: int | None,
    golden: int | None,
    only: tuple[str, ...],
    seeds: int,
    label_column: str | None,
    preprocessing: tuple[str, ...],
    rescue: bool,
    max_drop: float,
    target: str | None,
    report_file: Path | None,
    no_report: bool,
    no_timing: bool,
    device_class: str,
    cache_folder: Path | None,
    no_cache: bool,
    cores: int | None,
    memory: str | None,
    as_json: bool,
) -> None:
    """Make a release from one MODEL and labelled data.

    MODEL is a .keras file, a SavedModel directory, a .tflite, an .onnx (with onnx2tf), or module:function returning a
    trained Keras model (looked for in the current directory first).

    DATA is an .npz with x_train, y_train, x_test, y_test (or x and y, split by the seed); the same as .npy files in a
    directory, or as x.npy,y.npy; a .csv with a header; a directory of images with one folder per class, below train/
    and test/ or not; or module:function returning such arrays, or giving batches (x, y).

    The release holds the model as TFLite in float32, float16, dynamic-range and full int8, pruned and distilled in int8, and
    the plain, pruned and distilled SavedModels; with a manifest, digests, a golden set of real test samples, what each
    variant scored, and its envelope: accuracy, latency and memory on this machine.

    With a trained technique comes its matched control: the same training without the technique's idea. The difference of
    the two, with its 95 % interval, is what the technique brought; the control is not released.

    A variant that cannot be built is named in the manifest with the reason; the others are built. Of a .tflite that is
    every one that needs more than the file. A SavedModel and a module:function are programs and are run: give only what
    you trust. A .keras file is read without running code.
    """
    from evenfleet_collector.commands import optimized
    from evenfleet_collector.optimize import DEFAULT, Plan, build_release, cache, limits, read_recipe
    from evenfleet_collector.optimize import target as targets
    from evenfleet_collector.optimize.datasets import DataOptions, declared

    # One that the environment names is what --no-cache is there to do without.
    typed = click.get_current_context().get_parameter_source("cache_folder") is ParameterSource.COMMANDLINE
    if no_cache and typed:
        raise ConfigError("--cache and --no-cache contradict each other; give one")
    if no_report and report_file is not None:
        raise ConfigError("--report and --no-report contradict each other; give one")
    limit_bytes = limits.parse_size(memory, "--memory") if memory else None
    if cores is not None:
        limits.use_cores(cores)
    asked = targets.parse(target) if target is not None else ()
    plan, recipes = read_recipe(recipe_file) if recipe_file else (Plan(), DEFAULT)
    data_options = DataOptions(
        label_column=label_column or plan.label_column,
        preprocessing=declared.parse(preprocessing, "--preprocessing", plan.preprocessing),
    )
    page_file = None if no_report else _page_file(report_file, out)
    with _said_when_interrupted(kept=not no_cache), limits.memory_limit(limit_bytes), _progress() as report:
        built = build_release(
            model,
            data,
            out,
            recipes=recipes,
            seed=plan.seed if seed is None else seed,
            golden_n=plan.golden_samples if golden is None else golden,
            only=only,
            seeds=seeds,
            data_options=data_options,
            cache_folder=None if no_cache else cache_folder or cache.default_folder(),
            timed=not no_timing,
            device_class=device_class,
            rescue_drop_ratio=max_drop if rescue else None,
            target=asked,
            report=report,
        )
    said = targets.words(built.choice, asked) if built.choice is not None else ()
    if page_file is not None:
        _write_page(page_file, built, said)
    if as_json:
        optimized.show_json(built, said)
    else:
        optimized.show_table(built, said)
        if page_file is not None:
            click.echo(f"report with plots: {page_file}")
    if built.choice is not None and not built.choice.holds:
        sys.exit(EXIT_OUTSIDE)


@contextlib.contextmanager
def _said_when_interrupted(*, kept: bool) -> Iterator[None]:
    """Let SIGTERM, with which services and pipelines end, be as Ctrl-C, and say what is kept."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        what = (
            "what was finished is in the cache, and the same command goes on from there" if kept else "nothing was kept"
        )
        click.echo(f"evenfleet: interrupted; {what}", err=True)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _page_file(given: Path | None, out: Path) -> Path:
    """Return where the report goes; what cannot be written there is said before any work is done."""
    absolute = Path(os.path.abspath(out))  # noqa: PTH100 - a release that is a link is refused, and not followed
    file = given or absolute.with_name(f"{absolute.name}-report.html")
    if given is None and not absolute.parent.is_dir():
        return file  # that is said of --out, which was given
    if file.is_dir() or not file.absolute().parent.is_dir():
        raise ConfigError(
            f"--report {file} cannot be written: {'it' if file.is_dir() else 'its folder'} "
            f"is {'a directory' if file.is_dir() else 'not there'}; name a file in a folder that exists"
        )
    # `release verify` refuses what the manifest does not name, and the next build would take it for something else.
    if file.resolve().is_relative_to(absolute.resolve()):
        raise ConfigError(f"--report {file} is in the release {out}, which holds nothing else; name a file beside it")
    return file


def _write_page(file: Path, built: BuildReport, said: Sequence[str]) -> None:
    from evenfleet_collector.optimize import page

    unfinished = file.with_name(f".{file.name}.unfinished")
    try:
        unfinished.write_text(page.render(built.document(said)), encoding="utf-8")
        unfinished.replace(file)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise ConfigError(
            f"the report {file} cannot be written: {error.strerror}; the release {built.directory} is complete"
        ) from None


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[Progress], None]]:
    """Show a bar on a terminal and one line per step elsewhere, on stderr either way."""
    if not sys.stderr.isatty():
        yield lambda progress: click.echo(f"[{progress.step}/{progress.steps}] {progress.label}", err=True)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    # The build sends descriptor 2 elsewhere while TensorFlow talks; the bar keeps one of its own.
    with os.fdopen(os.dup(sys.stderr.fileno()), "w", encoding="utf-8") as terminal:
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
        with Bar(
            *columns,
            console=Console(file=terminal),
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        ) as bar:
            task = bar.add_task("")
            yield lambda progress: bar.update(
                task, completed=progress.step - 1, total=progress.steps, description=progress.label
            )
