"""The command `evenfleet optimize`: read the arguments, show progress, print the table.

Leaves the building to `evenfleet_collector.optimize`, which loads TensorFlow when it runs; importing this does not.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

if TYPE_CHECKING:
    from evenfleet_collector.optimize import BuildReport, Gain, Progress

_EPILOG = """\b
Example, with the project's own digits model:
  evenfleet optimize examples.small_cnn:model --data examples.small_cnn:data --out release/

\b
Photos in photos/train/CLASS/ and photos/test/CLASS/, for a model that takes -1 to 1:
  evenfleet optimize model.keras --data photos/ --out release/ --preprocessing scale=1/127.5 --preprocessing offset=-1

\b
Exit codes: 0 done; 1 the model was refused, or no variant could be built; 2 bad arguments or data.
On failure, and on Ctrl-C, nothing is left behind.
"""


@click.command(epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
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
    as_json: bool,
) -> None:
    """Make a release from one MODEL and labelled data.

    MODEL is a .keras file, a SavedModel directory, a .tflite, an .onnx (with onnx2tf), or module:function returning a
    trained Keras model (looked for in the current directory first).

    DATA is an .npz with x_train, y_train, x_test, y_test (or x and y, split by the seed); the same as .npy files in a
    directory, or as x.npy,y.npy; a .csv with a header; a directory of images with one folder per class, below train/
    and test/ or not; or module:function returning such arrays, or giving batches (x, y).

    The release holds the model as TFLite in float32, float16, dynamic-range and full int8,
    pruned and distilled in int8, and the plain, pruned and distilled SavedModels; with a manifest, digests, a golden set
    of real test samples, and what each variant scored.

    With a trained technique comes its matched control: the same training without the technique's idea. The difference of
    the two, with its 95 % interval, is what the technique brought; the control is not released.

    A variant that cannot be built is named in the manifest with the reason; the others are built. Of a .tflite that is
    every one that needs more than the file. A SavedModel and a module:function are programs and are run: give only what
    you trust. A .keras file is read without running code.
    """
    from evenfleet_collector.optimize import DEFAULT, Plan, build_release, read_recipe
    from evenfleet_collector.optimize.datasets import DataOptions, declared

    plan, recipes = read_recipe(recipe_file) if recipe_file else (Plan(), DEFAULT)
    data_options = DataOptions(
        label_column=label_column or plan.label_column,
        preprocessing=declared.parse(preprocessing, "--preprocessing", plan.preprocessing),
    )
    with _progress() as report:
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
            report=report,
        )
    if as_json:
        click.echo(_json(built))
    else:
        _print_table(built)


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


def _json(built: BuildReport) -> str:
    document = {
        "release": built.digest,
        "directory": str(built.directory),
        "model": built.manifest.model,
        "reference_variant": built.manifest.reference_variant,
        "test_n": built.test_n,
        "golden_n": built.manifest.golden.n,
        "preprocessing": built.manifest.preprocessing["fingerprint"],
        "elapsed_s": round(built.elapsed_s, 1),
        "variants": built.variants,
        "missing": built.missing,
    }
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode()


def _print_table(built: BuildReport) -> None:
    from rich.console import Console
    from rich.table import Table

    reference = built.manifest.reference_variant
    table = Table(
        title=f"{built.manifest.model}: accuracy on {built.test_n} test samples, against {reference}",
        title_justify="left",
        box=None,
        padding=(0, 2, 0, 0),
    )
    table.add_column("variant", no_wrap=True)
    for heading in ("accuracy", "change", "bytes", "ratio"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("techniques", "agreement"):  # these wrap on a narrow terminal
        table.add_column(heading, overflow="fold", min_width=10)
    for row in built.variants:
        table.add_row(
            row.name,
            f"{row.accuracy_ratio:.4f}",
            "–" if row.name == reference else f"{row.delta_ratio * 100:+.2f} pt",
            f"{row.size_bytes:,}",
            f"{row.size_ratio:.2f}",
            " + ".join(row.techniques),
            f"{row.agreement.noise_class}, {row.agreement.top1_ratio:.1%} same",
        )
    # A pipe has no width of its own; the table is not to be cut to 80 columns there.
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    console.print(table)
    for row in built.variants:
        if row.gain is not None:
            console.print(f"{row.name}: {_brought(row.gain)}", markup=False)
        elif row.no_gain is not None:
            console.print(f"{row.name}: {row.no_gain}", markup=False)
    for missing in built.missing:
        console.print(f"not built: {missing.name}: {missing.reason}", markup=False)
    console.print(f"preprocessing {_preprocessing_words(built.manifest.preprocessing)}", markup=False)
    console.print(
        f"release {built.digest[:12]}… with {built.manifest.golden.n} golden samples in {built.directory} "
        f"({built.elapsed_s:.0f} s)",
        markup=False,
        soft_wrap=True,
    )


def _brought(gain: Gain) -> str:
    over = "the same test samples" if gain.seeds == 1 else f"{gain.seeds} seeds"
    words = {"more": "brings accuracy", "less": "costs accuracy", "nothing shown": "brings nothing that shows"}
    return (
        f"{gain.technique} {words[gain.brought]}: {gain.delta_ratio * 100:+.2f} pt "
        f"[{gain.low_ratio * 100:+.2f}, {gain.high_ratio * 100:+.2f}] over {over}, against {' + '.join(gain.control)} "
        f"({gain.control_ratio:.4f})"
    )


def _preprocessing_words(declared: Mapping[str, str]) -> str:
    """Say it in a line; the fingerprint's start is what a person compares."""
    words = [declared[name] for name in ("shape", "channels", "layout", "resize", "fit") if name in declared]
    if "scale" in declared:
        words.append(f"pixel × {declared['scale']} + {declared['offset']}")
    kind = "as given" if declared["input"] == "as-given" else "of images"
    return f"{declared['fingerprint'][:12]}… ({kind}: {', '.join(words)})"
