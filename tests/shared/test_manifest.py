"""A release on disk: whatever is changed in it is found and named, and no name leads out of it."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evenfleet_shared import manifest
from evenfleet_shared.errors import ArtifactError, ReleaseError
from fakes.task_releases import CASES, write_task_release
from fakes.tiny_release import write_release


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return write_release(tmp_path_factory.mktemp("manifest"))


def changed(release, change):
    fields = json.loads((release / manifest.MANIFEST_NAME).read_bytes())
    change(fields)
    return json.dumps(fields).encode()


def test_untouched_release_is_verified_and_named_by_its_manifest(release):
    described, name = manifest.verify(release)
    assert described.model == "tiny"
    assert name == manifest.digest((release / manifest.MANIFEST_NAME).read_bytes())


def test_manifest_is_canonical(release):
    payload = (release / manifest.MANIFEST_NAME).read_bytes()
    assert manifest.encode(manifest.decode(payload, "it")) == payload
    assert payload == json.dumps(json.loads(payload), sort_keys=True, separators=(",", ":")).encode()


CALIBRATION = {"n": 5, "of": "train", "seed": 7, "sha256": "0" * 64, "class_counts": [2, 2, 1]}


def test_calibration_is_kept_and_its_absence_leaves_no_trace(release):
    """Releases from before it was recorded have no such field, and are named by their bytes."""
    payload = changed(release, lambda fields: fields["variants"][0].update(calibration=CALIBRATION))
    described = manifest.decode(payload, "it")
    with_one, without = described.variants
    assert with_one.calibration == manifest.Calibration(n=5, seed=7, sha256="0" * 64, class_counts=(2, 2, 1))
    assert without.calibration is None
    written = json.loads(manifest.encode(described))
    assert written["variants"][0]["calibration"] == CALIBRATION
    assert "calibration" not in written["variants"][1]


@pytest.mark.parametrize("task", CASES)
def test_release_of_each_task_is_canonical_and_verified(tmp_path, task):
    directory = write_task_release(tmp_path, task)
    payload = (directory / manifest.MANIFEST_NAME).read_bytes()
    described, _ = manifest.verify(directory)
    assert described.task == task
    assert manifest.encode(described) == payload


def test_what_a_release_does_not_have_leaves_no_trace(release):
    """Releases from before there were other tasks have none of these fields, and are named by their bytes."""
    fields = json.loads((release / manifest.MANIFEST_NAME).read_bytes())
    assert set(fields["golden"]) == {"n", "classes", "inputs", "labels", "outputs"}
    assert not {"metric", "score"} & set(fields["variants"][0]["reference"])


def test_criteria_that_are_not_the_usual_ones_are_kept_and_part_of_the_golden_sets_name(release):
    described, _ = manifest.load(release)
    payload = changed(release, lambda fields: fields["golden"].update(criteria={"score_threshold": 0.25}))
    other = manifest.decode(payload, "it")
    assert other.golden.criteria == manifest.Criteria(score_threshold=0.25)
    assert manifest.decode(manifest.encode(other), "it") == other
    assert other.golden.digest != described.golden.digest
    usual = manifest.decode(changed(release, lambda fields: fields["golden"].update(criteria={})), "it")
    assert usual.golden.digest == described.golden.digest
    assert manifest.encode(usual) == manifest.encode(described)


@pytest.mark.parametrize(
    ("task", "change", "says"),
    [
        ("classification", {"classes": 1}, "golden.classes is 1, a release of task classification has 2 at least"),
        ("detection", {"classes": None}, "golden.classes is None, a release of task detection has 1 at least"),
        ("segmentation", {"classes": 3}, "count 2 classes, the golden set has 3"),
        ("regression", {"classes": 2}, "a release of task regression has no classes"),
        ("regression", {"criteria": {}}, "golden.criteria.tolerance is missing"),
        ("regression", {"criteria": {"tolerance": -1.0}}, ">= 0.0"),
        ("multi-label", {"labels": None}, "golden.labels is missing, a release of task multi-label has labels"),
        ("detection", {"criteria": {"iou_threshold": 0.0}}, "> 0.0"),
        ("detection", {"criteria": {"detection_outputs": ["boxes", "boxes", "classes"]}}, "must name boxes, classes"),
        ("detection", {"criteria": {"detection_outputs": ["boxes", "scores"]}}, "must name boxes, classes"),
        ("embedding", {"criteria": {"cosine_threshold": 2.0}}, "<= 1.0"),
    ],
)
def test_golden_set_that_its_task_cannot_be_scored_on_is_refused(tmp_path, task, change, says):
    directory = write_task_release(tmp_path, task)
    with pytest.raises(ReleaseError, match=says):
        manifest.decode(changed(directory, lambda fields: fields["golden"].update(change)), "it")


def test_labels_of_a_release_without_labels_are_refused(tmp_path):
    directory = write_task_release(tmp_path, "agreement")
    payload = changed(directory, lambda fields: fields["golden"].update(labels=fields["golden"]["inputs"]))
    with pytest.raises(ReleaseError, match="task agreement has no labels"):
        manifest.decode(payload, "it")


def test_sample_without_a_class_is_nobodys_false_positive(release):
    def change(fields):
        fields["variants"][0]["reference"].update(tp=[1, 1, 0], fp=[0, 0, 0], fn=[0, 0, 1], errors=1, correct="110")

    assert manifest.decode(changed(release, change), "it").variants[0].reference.errors == 1


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_change_of_any_byte_of_any_file_is_found_and_the_file_named(release, data):
    described, _ = manifest.load(release)
    reference = data.draw(st.sampled_from(described.files))
    path = release / reference.file
    whole = path.read_bytes()
    position = data.draw(st.integers(0, len(whole) - 1))
    flipped = whole[position] ^ data.draw(st.integers(1, 255))
    try:
        path.write_bytes(whole[:position] + bytes([flipped]) + whole[position + 1 :])
        with pytest.raises(ArtifactError, match=f"{reference.file} has sha256"):
            manifest.verify(release)
    finally:
        path.write_bytes(whole)


def test_cut_and_missing_files_are_named(release):
    path = release / "artifacts/float32.tflite"
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[:-1])
        with pytest.raises(ArtifactError, match=rf"float32.tflite has {len(whole) - 1} bytes, its manifest says"):
            manifest.verify(release)
        path.unlink()
        with pytest.raises(ArtifactError, match=r"float32.tflite of the release cannot be read: No such file"):
            manifest.verify(release)
    finally:
        path.write_bytes(whole)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_changed_manifest_is_refused_or_has_another_name(release, data):
    whole = (release / manifest.MANIFEST_NAME).read_bytes()
    _, name = manifest.load(release)
    position = data.draw(st.integers(0, len(whole) - 1))
    payload = whole[:position] + bytes([data.draw(st.integers(0, 255))]) + whole[position + 1 :]
    try:
        manifest.decode(payload, "it")
    except ReleaseError:
        return
    assert payload == whole or manifest.digest(payload) != name


@pytest.mark.parametrize(
    "file",
    [
        "../escape",
        "artifacts/../../escape",
        "artifacts/..",
        "/etc/passwd",
        "artifacts//etc/passwd",
        "artifacts/sub/file",
        "artifacts/.hidden",
        "artifacts/",
        "artifacts/a\n",
        "artifacts/a\x00b",
        "manifest.json",
        "elsewhere/a",
        "artifacts\\a",
        "artifacts/" + "a" * 129,
    ],
)
def test_name_that_is_not_a_plain_file_of_the_release_is_refused(release, file):
    payload = changed(release, lambda fields: fields["variants"][0]["artifact"].update(file=file))
    with pytest.raises(ReleaseError, match="is not a release manifest"):
        manifest.decode(payload, "it")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda fields: fields["variants"].append(fields["variants"][0]), "two variants have the same name"),
        (lambda fields: fields.update(reference_variant="int8"), "is not among the variants"),
        (lambda fields: fields.update(variants=[]), "length >= 1"),
        (lambda fields: fields["golden"].update(n=0), ">= 1"),
        (lambda fields: fields["variants"][0]["reference"].update(correct="11"), "does not match n and errors"),
        (lambda fields: fields["variants"][0]["reference"].update(tp=[1, 1]), "count 2, 3 and 3 classes"),
        (lambda fields: fields["variants"][0]["reference"].update(tp=[1, 1, 0]), "do not add up"),
        (lambda fields: fields["golden"].update(n=4), "reference.n is 3, the golden set has 4 samples"),
        (lambda fields: fields["golden"].update(classes=4), "count 3 classes, the golden set has 4"),
        (lambda fields: fields.update(schema="release/2"), "release/2"),
        (lambda fields: fields["golden"]["inputs"].update(sha256="0" * 63), "regex"),
        (
            lambda fields: fields["variants"][0].update(calibration={**CALIBRATION, "n": 6}),
            "calibration.class_counts add up to 5, calibration.n is 6",
        ),
        (
            lambda fields: fields["variants"][0].update(calibration={**CALIBRATION, "class_counts": [3, 2]}),
            "calibration.class_counts has 2 classes, the golden set has 3",
        ),
    ],
)
def test_manifest_that_contradicts_itself_is_refused(release, change, says):
    with pytest.raises(ReleaseError, match=says):
        manifest.decode(changed(release, change), "it")


@given(
    places=st.lists(st.integers(0, 4), min_size=2, max_size=2, unique=True),
    change=st.sampled_from([{}, {"sha256": "0" * 64}, {"size_bytes": 0}]),
)
def test_file_named_twice_is_refused_unless_it_is_the_same_file(release, places, change):
    """Both references would be checked against their own digest, and one file would overwrite the other."""

    def name_twice(fields):
        artifacts = [variant["artifact"] for variant in fields["variants"]]
        references = [*artifacts, *(fields["golden"][part] for part in ("inputs", "labels", "outputs"))]
        first, second = (references[place] for place in places)
        second.update(first)
        second.update(change)

    payload = changed(release, name_twice)
    if not change:
        assert manifest.decode(payload, "it")
        return
    with pytest.raises(ReleaseError, match="is named twice, with different sha256 or size"):
        manifest.decode(payload, "it")


@given(payload=st.binary(max_size=200))
def test_arbitrary_bytes_are_no_manifest(payload):
    for bytes_ in (payload, b"{" + payload, b"[" * 100_000):
        with pytest.raises(ReleaseError, match="it is not a release manifest"):
            manifest.decode(bytes_, "it")


def test_manifest_beyond_the_bound_is_refused_unread():
    with pytest.raises(ReleaseError, match="a manifest has at most"):
        manifest.decode(b" " * (manifest.MAX_MANIFEST_BYTES + 1), "it")


def test_directory_without_a_manifest_says_what_makes_one(tmp_path):
    with pytest.raises(ReleaseError, match="evenfleet optimize"):
        manifest.load(tmp_path)


def test_unknown_variant_is_refused_with_those_there_are(release):
    described, _ = manifest.load(release)
    assert described.variant("float32").name == "float32"
    with pytest.raises(ReleaseError, match="it has float32, too-new"):
        described.variant("int8")


def test_golden_set_is_named_by_its_files(release):
    described, _ = manifest.load(release)
    other = manifest.decode(changed(release, lambda fields: fields["golden"]["labels"].update(sha256="0" * 64)), "it")
    assert described.golden.digest != other.golden.digest
