"""Turn one Keras model and labelled data into a release: variants, golden set, reference results, manifest.

    sources.py      what MODEL and DATA name               data.py         labelled data, checked
    models/         one form of MODEL per file             datasets/       one form of DATA per file
    strata.py       splits and samples that keep class shares            worth.py     what a variant is worth: a row of values
    technique.py    what a technique is                    variants.py     the two visible tuples
    recipe.py       a recipe's file                        gain.py         what a technique itself brought
    forecast.py     times foretold from the others         front.py        who is dominated, and who is on a front
    remarks.py      what a row should say aloud            target.py       what is asked of a variant, and who holds it
    ladder.py       what else to build for a target        charts.py       the report's drawings
    page.py         the report as one HTML file            appraise.py    put a row together
    subject.py      the model that was given               builder.py      make a variant, or find it
    built.py        a variant that was made and run        cache.py        what was made and measured, by digest
    timing.py       time variants on this machine          limits.py       cores and memory
    describe.py     what the manifest says                 place.py        where a release goes
    float_lite.py quantize.py weight_only.py rescue.py prune.py distil.py legacy.py saved_model.py    a family of techniques each
    canonical.py    take the process's counters out of a SavedModel
    legacy_worker.py    the process that clusters and trains quantization-aware, in Keras 2
    training.py     the training that techniques share
    graph.py        operators, operations, parameters of a .tflite     archive.py   a directory as one tar
    evaluate.py     run an artifact                        release.py      put it all together
    quiet.py        keep the converter's chatter out of the terminal

And find where two .tflite files of one graph part:

    diff.py         what A, B and DATA name        diff_worker.py     the process that walks them
    walk.py         run both, operator by operator dissect.py         take a file apart
    layers.py       what may differ by how much

Decides what is in a release and what each variant scored here, on the whole test set and on the golden set. Leaves to
others how a variant does on a device (the agent), whether that is good enough (`tolerance`), and who gets it.

* The only part of the collector that loads TensorFlow, and only once `build_release` runs: importing this package
  does not.
* A release appears complete, by one rename, or not at all.
* A variant that cannot be built is named in the manifest's `missing` with the reason; the others are built.
* Same model, data, seed and versions give the same bytes on one machine, whatever the process did before and however
  many variants are built: nothing here knows the date, operations run repeatably, each step seeds every generator, and
  SavedModels are rewritten without the process's counters. Another CPU may sum in another order.
"""

from __future__ import annotations

from evenfleet_collector.optimize.data import LabelledData
from evenfleet_collector.optimize.gain import Gain
from evenfleet_collector.optimize.recipe import Plan
from evenfleet_collector.optimize.recipe import read as read_recipe
from evenfleet_collector.optimize.release import BuildReport, Progress, build_release
from evenfleet_collector.optimize.variants import DEFAULT
from evenfleet_collector.optimize.worth import VariantReport

__all__ = [
    "DEFAULT",
    "BuildReport",
    "Gain",
    "LabelledData",
    "Plan",
    "Progress",
    "VariantReport",
    "build_release",
    "read_recipe",
]
