"""Which further variants are tried: only such as could hold the target, the cheapest to build first."""

from __future__ import annotations

from evenfleet_collector.optimize import ladder, target, variants
from evenfleet_collector.optimize.recipe import lineage
from evenfleet_collector.optimize.technique import Stage
from evenfleet_collector.optimize.worth import VariantReport
from fakes.reports import variant_row

# 25,000 parameters: no int8 file is below 25 kB, no int4 file below 12.5 kB.
FLOAT = variant_row("float32", size_bytes=100_000, p50_ms=4.0, techniques=("float32",))
INT8 = variant_row("int8", size_bytes=30_000, p50_ms=1.0, accuracy_ratio=0.93, techniques=("int8",))
STUDENT = variant_row(
    "distilled-int8",
    size_bytes=15_200,
    p50_ms=0.5,
    accuracy_ratio=0.90,
    parameters=9000,
    techniques=("distil", "int8"),
)


def names(text: str, *more: VariantReport, start: Stage = "keras") -> list[str]:
    found = ladder.next_candidates(target.parse(text), (FLOAT, INT8, STUDENT, *more), start)
    return [one.name for one in found]


def test_a_target_that_a_variant_holds_needs_no_more_variants() -> None:
    assert names("size_kb<=30, accuracy_drop<=0.03") == []


def test_missed_size_brings_only_what_can_be_that_small() -> None:
    assert names("size_kb<=13") == [
        "int4",
        "weight-only-int4",
        "distilled-35-int8",
        "distilled-25-int8",
        "distilled-25-int4",
    ]
    assert names("size_kb<=3") == ["distilled-25-int8", "distilled-25-int4"]


def test_size_below_all_weights_brings_nothing() -> None:
    assert names("size_bytes<=700") == []


def test_missed_time_brings_no_zeros() -> None:
    found = names("p50_ms<=0.2")
    assert found[0] == "int4"
    assert not [name for name in found if "pruned" in name or "clustered" in name or name == "qat"]


def test_missed_compressed_size_brings_zeros_and_shared_values() -> None:
    found = names("compressed_kb<=5")
    assert {"pruned-80-int8", "pruned-90-int8", "clustered-int8"} <= set(found)
    assert not {"qat", "int16x8"} & set(found)


def test_accuracy_that_the_small_ones_lack_brings_accurate_ones_that_are_small_enough() -> None:
    found = names("size_kb<=32, accuracy_drop<=0.01")
    assert {"qat", "int16x8", "weight-only-int8", "distilled-75-int8"} <= set(found)
    assert "int4" not in found
    assert "qat" not in names("size_kb<=20, accuracy_drop<=0.01")


def test_variant_that_is_there_is_not_built_again() -> None:
    row = variant_row("mine", size_bytes=20_000, accuracy_ratio=0.5, techniques=("int4",))
    assert "int4" not in names("p50_ms<=0.2", row)
    pruned = variant_row("mine", size_bytes=30_000, accuracy_ratio=0.5, techniques=("prune", "int8"))
    assert "pruned-80-int8" in names("compressed_kb<=5", pruned), "its sparsity is another"


def test_what_cannot_be_made_from_the_model_is_left_out() -> None:
    assert names("compressed_kb<=5", start="tflite") == ["int4", "weight-only-int4"]


def test_metric_that_was_not_measured_brings_nothing() -> None:
    assert ladder.next_candidates(target.parse("p50_ms<=1"), [variant_row("float32")]) == ()


def test_unknown_parameters_leave_nothing_out_for_its_size() -> None:
    rows = [variant_row("float32", parameters=None)]
    assert "distilled-25-int4" in [one.name for one in ladder.next_candidates(target.parse("size_bytes<=1"), rows)]


def test_ladder_is_of_chains_that_can_be_built_and_has_none_of_the_default() -> None:
    known = {one.name for one in variants.DEFAULT}
    assert len({one.name for one in ladder.LADDER}) == len(ladder.LADDER)
    assert not known & {one.name for one in ladder.LADDER}
    assert not set(lineage(variants.DEFAULT).values()) & set(lineage(ladder.LADDER).values())
    for one in ladder.LADDER:
        assert variants.misfit(one.chain, "keras") is None
        assert one.chain[-1].gives == "tflite"
