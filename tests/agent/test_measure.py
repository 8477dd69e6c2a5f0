"""What `evenfleet-agent measure` decides; the command itself, with its exit codes, is in `system/test_measure_command`."""

from __future__ import annotations

import dataclasses
import io
import os
import tarfile
import zipfile

import numpy as np
import pytest
from msgspec.structs import replace

from evenfleet_agent import cli, predict, runtimes
from evenfleet_agent import measure as measuring
from evenfleet_agent.runner.process import RunnerProcess
from evenfleet_agent.runner.protocol import Measure, RunnerSpec
from evenfleet_shared.errors import ArtifactError, ConfigError, DataError
from fakes import tiny_models
from fakes.tiny_release import write_release

TEMPLATE = RunnerSpec(runtime="auto", artifact="", format="tflite", warm_up_max_s=0.01)


def targets(model, *, runtime="auto", template=TEMPLATE, variants=()):
    return measuring.find_targets(model, runtime=runtime, template=template, variants=variants)


def silent(name, stage):
    pass


@pytest.fixture
def runner():
    made = RunnerProcess()
    yield made
    made.stop()


def test_tflite_file_is_tried_with_every_runtime_that_runs_it(tmp_path):
    (target,) = targets(tiny_models.classifier(tmp_path / "m.tflite"))
    assert target.runtimes == ("litert", "tflite", "litert-compiled")


def test_tflite_file_is_known_by_its_content_too(tmp_path):
    assert targets(tiny_models.classifier(tmp_path / "model.bin"))[0].spec.format == "tflite"


def test_saved_model_is_a_directory_or_a_tar(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/saved_model.pb").write_bytes(b"x")
    with tarfile.open(tmp_path / "model.tar", "w") as tar:
        tar.add(tmp_path / "model", arcname=".")
    for path in (tmp_path / "model", tmp_path / "model.tar"):
        assert (targets(path)[0].spec.format, targets(path)[0].runtimes) == ("saved_model", ("tensorflow",))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.tflite", None, "does not exist"),
        ("model.keras", b"PK\3\4" * 10, "evenfleet optimize"),
        ("notes.txt", b"hello", r"neither a \.tflite file nor a tar"),
    ],
)
def test_what_is_no_model_is_told_apart(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        targets(tmp_path / name)


def test_directory_that_holds_no_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="neither a SavedModel nor a release"):
        targets(tmp_path)


def test_runtime_that_does_not_run_the_format_names_those_that_do(tmp_path):
    with pytest.raises(ConfigError, match="use litert or tflite or litert-compiled"):
        targets(tiny_models.classifier(tmp_path / "m.tflite"), runtime="tensorflow")


def test_release_gives_a_target_per_variant_with_its_golden_set(tmp_path):
    found = targets(write_release(tmp_path))
    assert [target.name for target in found] == ["float32", "too-new"]
    assert all(target.spec.inputs_file and target.spec.outputs_file for target in found)
    assert found[0].spec.reference_correct == "111"


def test_variants_can_be_chosen_and_an_unknown_one_is_refused(tmp_path):
    release = write_release(tmp_path)
    assert [target.name for target in targets(release, variants=["too-new"])] == ["too-new"]
    with pytest.raises(ConfigError, match="has no variant 'int4'; it has float32, too-new"):
        targets(release, variants=["int4"])


def test_release_without_a_variant_for_the_runtime_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no variant"):
        targets(write_release(tmp_path), runtime="tensorflow")


def test_release_whose_artifact_was_changed_is_not_measured(tmp_path):
    release = write_release(tmp_path)
    artifact = release / "artifacts/float32.tflite"
    artifact.write_bytes(artifact.read_bytes()[:-1] + b"!")
    with pytest.raises(ArtifactError, match=r"float32\.tflite"):
        targets(release)


@pytest.mark.parametrize("names", [("x_test", "y_test"), ("x", "y"), ("inputs", "labels")])
def test_samples_and_labels_are_found_by_their_usual_names(tmp_path, names):
    np.savez(tmp_path / "d.npz", **{names[0]: np.zeros((2, 4)), names[1]: np.array([[0], [1]])})
    inputs, labels, _ = measuring.write_data(tmp_path / "d.npz", tmp_path)
    assert np.load(inputs).shape == (2, 4)
    assert labels is not None
    assert np.load(labels).tolist() == [0, 1]


def test_one_hot_labels_become_class_numbers(tmp_path):
    np.savez(tmp_path / "d.npz", x=np.zeros((2, 4)), y=np.array([[0.0, 0, 1], [1, 0, 0]]))
    _, labels, _ = measuring.write_data(tmp_path / "d.npz", tmp_path)
    assert labels is not None
    assert np.load(labels).tolist() == [2, 0]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"z": np.zeros(3)}, "no array called"),
        ({"x": np.array([{}], dtype=object)}, "pickled objects are not read"),
        ({"x": np.zeros((2, 4)), "y": np.array([0.5, 1.0])}, "whole numbers"),
        ({"x": np.zeros((2, 4)), "y": np.array([np.nan, 1.0])}, "whole numbers"),
        ({"x": np.zeros((2, 4)), "y": np.array([[1, 1], [1, 0]])}, "one-hot"),
        ({"x": np.zeros((2, 4)), "y": np.array(["a", "b"])}, "whole numbers"),
        ({"x": np.zeros((2, 4)), "y": np.array([0, 1, 2])}, "2 samples and 3 labels"),
        ({"x": np.zeros((2, 4)), "y": np.array([0, -1])}, "found -1 to 0"),
        ({"x": np.zeros((2, 4)), "y": np.array([0, 2**62])}, f"found 0 to {2**62}"),
        ({"x": np.zeros((2, 4)), "y": np.int64(3)}, "one per sample"),
        ({"x": np.array(["a", "b"])}, "real numbers, one entry per sample, found <U1"),
        ({"x": np.zeros((2, 4), dtype=complex)}, "real numbers, one entry per sample, found complex128"),
        ({"x": np.zeros((0, 4))}, r"found float64 of shape \[0, 4\]"),
        ({"x": np.float32(1)}, r"found float32 of shape \[\]"),
        ({"x": np.array([[1.0, np.nan]])}, "NaN"),
        ({"x": np.array([[1.0, -np.inf]])}, "infinite"),
        ({"x": np.array([[1.0, 1e300]])}, "float32 has no room for"),
    ],
)
def test_data_that_cannot_be_used_are_refused_by_the_name_of_their_file(tmp_path, arrays, message):
    (tmp_path / "copies").mkdir()
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(DataError, match=message) as refused:
        measuring.write_data(tmp_path / "d.npz", tmp_path / "copies")
    assert str(refused.value).startswith(str(tmp_path / "d.npz"))
    assert "copies" not in str(refused.value)


def test_single_array_is_refused(tmp_path):
    np.save(tmp_path / "d.npy", np.zeros((2, 4)))
    with pytest.raises(DataError, match=r"d\.npy is a single array"):
        measuring.write_data(tmp_path / "d.npy", tmp_path)


def test_array_that_claims_more_than_there_is_memory_for_is_refused(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**14,)})
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("x.npy", header.getvalue() + bytes(1000))
    with pytest.raises(DataError, match=r"d\.npz says that it holds more"):
        measuring.write_data(tmp_path / "d.npz", tmp_path)


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null", "pipe"])
def test_what_is_no_file_is_refused_at_once_and_not_read(tmp_path, path):
    """Reading /dev/zero as a tar never ends, and neither does waiting for a writer of a pipe."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="neither a file nor a directory"):
        targets(tmp_path / path)
    with pytest.raises(DataError, match="is not a file"):
        measuring.write_data(tmp_path / path, tmp_path)


def test_samples_that_the_model_cannot_take_are_told_by_the_name_that_the_user_gave_them(tmp_path, runner):
    np.savez(tmp_path / "d.npz", x=np.zeros((2, 7), dtype=np.float32))
    (tmp_path / "copies").mkdir()
    inputs, *_ = measuring.write_data(tmp_path / "d.npz", tmp_path / "copies")
    template = replace(TEMPLATE, inputs_file=inputs)
    model = tiny_models.classifier(tmp_path / "m.tflite")
    (target,) = measuring.find_targets(model, runtime="auto", template=template, data=tmp_path / "d.npz")

    failure = measuring.measure(target, Measure(samples=5), runner, silent)

    assert isinstance(failure, measuring.Failure)
    assert failure.kind == "data"
    assert failure.reason.startswith(f"{tmp_path / 'd.npz'}: input ")


@pytest.mark.parametrize("content", [None, b"", b"garbage", b"PK\3\4garbage"])
def test_file_that_is_no_npz_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "d.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"d\.npz"):
        measuring.write_data(tmp_path / "d.npz", tmp_path)


def test_measured_release_is_told_side_by_side_and_what_was_refused_below(tmp_path, runner):
    outcomes = [
        measuring.measure(target, Measure(samples=700), runner, silent) for target in targets(write_release(tmp_path))
    ]
    measured, refused = outcomes
    assert isinstance(measured, measuring.Result)
    assert measured.accuracy is not None
    assert measured.accuracy.accuracy_ratio == 1.0
    assert measured.agreement is not None
    assert isinstance(refused, measuring.Failure)
    assert refused.kind == "model"
    told = measuring.table(outcomes)
    assert "float32  litert" in told
    assert "too-new: not measured: litert" in told
    assert max(len(line) for line in told.splitlines()) < 250


def test_single_model_is_told_in_detail(tmp_path, runner):
    (target,) = targets(tiny_models.partly_delegated(tmp_path / "m.tflite"))
    told = measuring.table([measuring.measure(target, Measure(samples=30), runner, silent)])
    for words in ("synthetic inputs", "50% of the operators", "unqualified", "VmHWM", "left to the built-in kernels"):
        assert words in told


def test_next_runtime_is_tried_when_the_first_is_missing_and_the_first_is_told_when_all_are(tmp_path, runner):
    (target,) = targets(tiny_models.classifier(tmp_path / "m.tflite"))
    missing = measuring.Target(name="m", runtimes=("tflite", "litert"), spec=target.spec)
    result = measuring.measure(missing, Measure(samples=5), runner, silent)
    assert isinstance(result, measuring.Result)
    assert result.runtime == "litert"
    none = measuring.Target(name="m", runtimes=("tflite",), spec=target.spec)
    failure = measuring.measure(none, Measure(samples=5), runner, silent)
    assert isinstance(failure, measuring.Failure)
    assert (failure.kind, "pip install tflite-runtime" in failure.reason) == ("runtime", True)


def test_command_offers_every_runtime_there_is():
    (option,) = [parameter for parameter in cli.measure.params if parameter.name == "runtime"]
    assert list(option.type.choices) == ["auto", *(runtime.name for runtime in runtimes.RUNTIMES)]


def test_python_of_the_models_is_asked_for_evenfleet_and_for_the_runtime(tmp_path):
    python = tmp_path / "python"
    for program, expected in (
        ("exit 1", r"runtime\.python is .*, which is no Python that has evenfleet installed"),
        (
            'case "$2" in *evenfleet*) exit 0;; *) exit 1;; esac',
            r"runtime\.name is litert, .*pip install ai-edge-litert",
        ),
    ):
        python.write_text(f"#!/bin/sh\n{program}\n")
        python.chmod(0o755)
        with pytest.raises(ConfigError, match=expected):
            measuring.check_installed("litert", str(python))

    python.write_text("#!/bin/sh\nexit 0\n")
    measuring.check_installed("litert", str(python))
    measuring.check_installed("litert", None)


def test_models_are_measured_in_turns_and_the_processes_figures_are_told_as_median_and_spread(tmp_path, runner):
    chosen = [
        *targets(tiny_models.classifier(tmp_path / "a.tflite")),
        *targets(tiny_models.dense(tmp_path / "b.tflite", [(np.ones((8, 8)), np.ones(8))])),
    ]
    loading = []

    def progress(name, stage):
        if stage in {"", "loading"} and loading[-1:] != [name]:
            loading.append(name)

    outcomes = measuring.measure_in_turns(chosen, Measure(samples=20), runner, progress, processes=3)

    assert loading == ["a.tflite", "b.tflite"] * 3
    for outcome in outcomes:
        assert isinstance(outcome, measuring.Result)
        assert outcome.processes == 3
        assert outcome.spread is not None
        spread = outcome.spread["p50_ms"]
        assert spread.low_ms <= spread.median_ms <= spread.high_ms
        assert outcome.latency.p50_ms == spread.median_ms
        assert outcome.latency.n == 20
    told = measuring.table(outcomes)
    assert "3 processes each, in turns" in told
    assert "conditions: steal" in told


def test_single_process_has_no_spread(tmp_path, runner):
    (result,) = measuring.measure_in_turns(
        targets(tiny_models.classifier(tmp_path / "m.tflite")), Measure(samples=5), runner, silent
    )
    assert isinstance(result, measuring.Result)
    assert (result.processes, result.spread) == (1, None)


def test_model_that_is_refused_is_not_tried_in_further_processes(tmp_path, runner):
    started = set()

    def progress(_name, _stage):
        started.add(runner.pid)

    (failure,) = measuring.measure_in_turns(
        targets(tiny_models.custom(tmp_path / "m.tflite")), Measure(samples=5), runner, progress, processes=4
    )
    assert isinstance(failure, measuring.Failure)
    assert len(started) <= 1


def test_result_names_what_it_may_be_compared_by(tmp_path, runner):
    (target,) = targets(tiny_models.classifier(tmp_path / "m.tflite"))
    one = measuring.measure(target, Measure(samples=5), runner, silent)
    other = measuring.measure(
        dataclasses.replace(target, spec=replace(target.spec, xnnpack=False)), Measure(samples=5), runner, silent
    )
    assert isinstance(one, measuring.Result)
    assert isinstance(other, measuring.Result)
    assert one.comparable_by["accelerator_executed"] == "xnnpack"
    assert other.comparable_by["accelerator_executed"] == "cpu"
    assert one.comparability != other.comparability
    told = measuring.table([one, other])
    assert f"comparable: {one.comparability}" in told
    assert f"comparable: {other.comparability}" in told


def test_time_is_foretold_from_the_other_variants_that_were_run_alike(tmp_path, runner):
    chosen = []
    for n in (64, 256, 512):
        (target,) = targets(tiny_models.dense(tmp_path / f"{n}.tflite", [(np.ones((n, n)), np.ones(n))]))
        chosen.append(dataclasses.replace(target, macs=n * n))
    outcomes = measuring.measure_in_turns(chosen, Measure(samples=50), runner, silent)
    results = [outcome for outcome in outcomes if isinstance(outcome, measuring.Result)]
    assert [result.cost.macs for result in results] == [64 * 64, 256 * 256, 512 * 512]
    known = [predict.Known(size_bytes=one.size_bytes, macs=one.cost.macs, p50_ms=one.latency.p50_ms) for one in results]
    for index, result in enumerate(results):
        expected = predict.predict(known[index].size_bytes, known[index].macs, known[:index] + known[index + 1 :])
        assert expected is not None
        assert (result.cost.predicted_ms, result.cost.predicted_error_ratio) == (
            expected.predicted_ms,
            expected.error_ratio,
        )
    assert "multiply-accumulates" in measuring.table([outcomes[0]])

    stranger = dataclasses.replace(results[0], comparability="0" * 16)
    unknown = dataclasses.replace(results[1], size_bytes=None)
    for others in ([stranger], [unknown], []):
        alone = dataclasses.replace(results[2], cost=dataclasses.replace(results[2].cost, predicted_ms=None))
        (told, *_) = measuring.foretell([alone, results[1], *others])
        assert isinstance(told, measuring.Result)
        assert told.cost.predicted_ms is None


def test_modes_are_told_beside_the_steady_figures(tmp_path, runner):
    (target,) = targets(tiny_models.classifier(tmp_path / "m.tflite"))
    request = Measure(samples=5, cadence_ms=2.0, sustained_s=0.1, offline_s=0.02)
    told = measuring.table([measuring.measure(target, request, runner, silent)])
    for words in (
        "offline ",
        "one inference every 2 ms",
        "times as slow in the last 0.01 s of 0.1",
        "temperature",
        "preprocess ",
        "queue ",
        "postprocess ",
        "of processor time per inference",
        "conditions ",
        "under-voltage ",
        "comparable ",
    ):
        assert words in told


def test_options_of_a_delegate_are_keys_and_values() -> None:
    assert measuring.delegate_options("/opt/lib.so", ["device=usb:0", "cache="]) == {"device": "usb:0", "cache": ""}
    assert measuring.delegate_options(None, []) == {}


@pytest.mark.parametrize(
    ("delegate", "options", "why"),
    [
        ("opencl", [], "expected gpu, edgetpu, npu or the absolute path"),
        (None, ["a=b"], "name it with --delegate"),
        ("gpu", ["fast"], "expected KEY=VALUE"),
        ("gpu", ["=1"], "expected KEY=VALUE"),
    ],
)
def test_a_delegate_that_cannot_be_meant_is_refused_in_one_line(
    delegate: str | None, options: list[str], why: str
) -> None:
    with pytest.raises(ConfigError, match=why):
        measuring.delegate_options(delegate, options)
