"""The report as a page: complete, made of nothing but itself, and never anything but text where text was given."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import fields, replace
from html.parser import HTMLParser

import pytest

from evenfleet_collector.optimize import page
from evenfleet_collector.optimize.gain import Gain
from evenfleet_collector.optimize.worth import ClassShare, ReportDocument, VariantReport
from evenfleet_shared.manifest import MissingVariant
from evenfleet_shared.messages import Agreement
from fakes.reports import report, timing, variant_row

HOSTILE = (
    "\"'><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7 * 7 }}{% raw %}</style></svg>&amp;$\\frac{1}{2}$"
)
GAIN = Gain(
    technique="prune",
    control=("fine-tune", "int8"),
    seeds=1,
    control_ratio=0.931,
    delta_ratio=0.004,
    low_ratio=-0.006,
    high_ratio=0.013,
)
FLOAT = variant_row("float32", size_bytes=100_000, timing=timing(0.0121))
INT8 = variant_row("int8", size_bytes=30_432, timing=timing(0.006), accuracy_ratio=0.947)
PRUNED = variant_row(
    "pruned-int8", techniques=("prune", "int8"), size_bytes=30_430, timing=timing(0.0061, noise_ratio=0.05), gain=GAIN
)
SAVED = variant_row("saved-model", format="saved_model", size_bytes=400_000, no_timing="it was killed by signal 11")


class Seen(HTMLParser):
    """What a page is made of, as a browser would read it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.text += " "

    def handle_data(self, data: str) -> None:
        self.text += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def full(**changed: object) -> ReportDocument:
    return report(FLOAT, INT8, PRUNED, SAVED, **changed)


def words(text: str) -> str:
    return " ".join(Seen(text).text.split())


@pytest.fixture(scope="module")
def told() -> str:
    """The words of a page that has everything."""
    missing = (MissingVariant(name="blocks", reason="prune-blocks: no layer has inputs in blocks of 16"),)
    return words(page.render(full(missing=missing)))


@pytest.mark.parametrize(
    "said",
    [
        "95.00 %",  # accuracy
        "−0.3 pt",
        "class 2, 40 samples; float32 92.00 %",
        "30.4 kB",
        "30,432 B",
        "12.0 µs to 12.2 µs",
        "18.1 µs",
        "2.00 ms",
        "40.0 MB",
        "36.0 MB once loaded",
        "× the measured",
        "it was killed by signal 11",
        "25,000",
        "1,000,000 MACs",
        "CONV_2D, FULLY_CONNECTED, SOFTMAX",
        "runtime 2.5.0 or later",
        "same-decision",
        "99.00 % same decision; largest difference 0.02, rms 0.004",
        "prune → int8 · tflite",
        "prune: nothing shown",
        "+0.4 pt [−0.6 pt, +1.3 pt] over the same test samples, against fine-tune + int8 (93.10 %)",
        "pruned, and neither smaller nor faster than int8",
        "Timed by litert 2.3.0 with 1 thread, 3,000 inferences in 5 rounds",
        "by size it is off by a factor of",
        "blocks prune-blocks: no layer",
        "in blocks of 16",
        "fingerprint abab",
        "seed 0",
        "memory 8.00 GB",
        "9f2c9f2c9f2c",
    ],
)
def test_page_tells_all_of_a_report(told: str, said: str) -> None:
    assert said in told


def test_every_field_of_a_row_is_told() -> None:
    """A field that is added to the row is to be added to the page, or the page leaves it out silently."""
    template = (page._TEMPLATES / "report.html").read_text(encoding="utf-8")
    assert [field.name for field in fields(VariantReport) if f"row.{field.name}" not in template] == []
    assert [field.name for field in fields(ReportDocument) if f"report.{field.name}" not in template] == [
        "class_names",  # by number where there are none
        "forecast_errors",  # in a sentence
    ]


def test_page_is_made_of_nothing_but_itself() -> None:
    text = page.render(full())
    seen = Seen(text)
    assert not {"script", "link", "img", "iframe", "object", "base", "form"} & {tag for tag, _ in seen.tags}
    near = [value for _, attributes in seen.tags for name, value in attributes.items() if name in {"href", "src"}]
    assert all(value is not None and value.startswith("#") for value in near)
    assert not re.search(r"https?://|@import|url\((?!#)", text)
    assert "default-src 'none'" in text


def test_ids_are_unique_and_references_lead_to_them() -> None:
    seen = Seen(page.render(full()))
    ids = Counter(attributes["id"] for _, attributes in seen.tags if "id" in attributes)
    assert {each: n for each, n in ids.items() if n > 1} == {}
    wanted = [
        word
        for _, attributes in seen.tags
        for name in ("aria-labelledby", "aria-describedby")
        for word in (attributes.get(name) or "").split()
    ]
    wanted += [str(attributes["href"])[1:] for _, attributes in seen.tags if "href" in attributes]
    assert wanted
    assert [each for each in wanted if each not in ids] == []


def test_tables_have_captions_and_charts_have_words() -> None:
    seen = Seen(page.render(full()))
    assert seen.count("table") == seen.count("caption") >= 4
    assert all(attributes.get("scope") for tag, attributes in seen.tags if tag == "th")
    charts = [attributes for tag, attributes in seen.tags if tag == "svg"]
    assert len(charts) == 5, "size and latency of the TFLite files, size of the SavedModels, spread, gains"
    assert all(attributes["role"] == "img" and attributes["aria-labelledby"] for attributes in charts)


def test_same_report_gives_the_same_bytes() -> None:
    assert page.render(full()) == page.render(full())


def test_hostile_text_stays_text_wherever_it_stands() -> None:
    row = replace(
        INT8,
        techniques=(HOSTILE,),
        operators=(HOSTILE,),
        min_runtime_version=HOSTILE,
        worst_class=ClassShare(label=0, name=HOSTILE, n=1, recall_ratio=0.5, reference_recall_ratio=0.5),
        remarks=(HOSTILE,),
        dominated_by=(HOSTILE,),
        gain=replace(GAIN, technique=HOSTILE, control=(HOSTILE,)),
        timing=timing(1.0, runtime=HOSTILE, runtime_version=HOSTILE),
    )
    # What names itself so was never decoded from a manifest; the page is not to rest on that.
    named = replace(row, name=HOSTILE, no_gain=HOSTILE, gain=None)
    document = replace(
        full(
            model=HOSTILE,
            release=HOSTILE,
            machine={HOSTILE: HOSTILE},
            lineage={HOSTILE: HOSTILE},
            preprocessing={HOSTILE: HOSTILE},
            missing=(MissingVariant(name=HOSTILE, reason=HOSTILE),),
            target=(HOSTILE,),
            chosen=HOSTILE,
            class_names=(HOSTILE,) * 3,
        ),
        rows=(FLOAT, row, named),
    )
    calm, seen = Seen(page.render(full())), Seen(page.render(document))
    assert {tag for tag, _ in seen.tags} <= {tag for tag, _ in calm.tags}
    assert not [name for _, attributes in seen.tags for name in attributes if name.startswith("on")]
    assert seen.text.count(HOSTILE) > 20


@pytest.mark.parametrize(
    "rows",
    [
        (variant_row("float32"),),
        (FLOAT,),
        (variant_row("float32"), variant_row("int8", parameters=None, macs=None, operators=())),
        (replace(FLOAT, format="saved_model"), INT8),
        (variant_row("float32", timing=timing(0.0)), INT8),
        (FLOAT, replace(INT8, class_accuracy_ratios=(1.0,))),
        (
            FLOAT,
            variant_row(
                "x",
                agreement=Agreement(
                    noise_class="divergent", top1_ratio=0.0, max_abs_diff=9.0, rms_diff=1.0, lsb_max=3.0
                ),
            ),
        ),
    ],
    ids=["one, untimed", "one", "little known", "two formats", "too fast for the clock", "fewer classes", "divergent"],
)
def test_page_is_made_of_little_too(rows: tuple[VariantReport, ...]) -> None:
    assert "Variants" in words(page.render(report(*rows)))


def test_crowded_chart_names_those_on_the_front_and_writes_nothing_over_another() -> None:
    crowd = [
        variant_row(f"variant-{n}", size_bytes=30_000 + n, accuracy_ratio=0.94 + (n * 7 % 40) / 1e5) for n in range(40)
    ]
    best = variant_row("best", size_bytes=30_020, accuracy_ratio=0.95)
    text = page.render(report(variant_row("float32", size_bytes=100_000), *crowd, best))
    chart = text.partition('id="size-tflite-chart"')[2].partition("</svg>")[0]
    named = set(re.findall(r">([\w-]+)</text>", chart))
    assert {"best", "variant-0", "float32"} <= named
    assert len(named & {row.name for row in crowd}) < 40


def test_untimed_report_has_no_columns_of_time() -> None:
    text = words(page.render(report(variant_row("float32"), variant_row("int8"))))
    assert "p95" not in text
    assert "Timed by" not in text
    assert "Foretold" not in text


def test_headline_is_of_the_smallest_that_is_not_measurably_worse() -> None:
    lossy = replace(INT8, name="tiny", size_bytes=1000, delta_interval=(-0.05, -0.01))
    assert page.headline(report(FLOAT, INT8, lossy)) == (
        "int8 is the smallest that is not less accurate than float32 by more than chance explains: it has 30 % of "
        "float32's size, takes 6.00 µs instead of 12.1 µs (p50) and is 94.70 % accurate on 540 test samples, "
        "−0.3 pt beside float32."
    )
    assert page.headline(report(FLOAT, lossy)) == (
        "No variant is smaller than float32 without being less accurate by more than chance explains."
    )


def test_headline_is_of_the_variant_that_the_target_chose() -> None:
    assert page.headline(report(FLOAT, INT8, PRUNED, chosen="pruned-int8")).startswith("pruned-int8 has 30 % of")
    assert page.headline(report(FLOAT, INT8, chosen="float32")) == (
        "float32 is the reference: 100 kB, 95.00 % accurate on 540 test samples."
    )


def test_report_without_its_reference_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="no row of its reference variant float32"):
        page.render(replace(full(), rows=(INT8,)))
