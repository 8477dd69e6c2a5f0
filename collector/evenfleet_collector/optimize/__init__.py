"""Turn one Keras model and labelled data into a release: variants, golden set, reference results, manifest.

    sources.py      what MODEL and DATA name               data.py         labelled data, checked
    models/         one form of MODEL per file             datasets/       one form of DATA per file
    strata.py       splits and samples that keep class shares            worth.py     what a variant is worth: a row of values
    technique.py    what a technique is                    variants.py     the two visible tuples
    recipe.py       a recipe's file                        gain.py         what a technique itself brought
    float_lite.py quantize.py weight_only.py rescue.py prune.py distil.py legacy.py saved_model.py    a family of techniques each
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
* Same model, data, seed and versions give the same bytes: nothing here knows the date. Training is repeatable on one
  machine; another CPU may sum in another order. TensorFlow numbers its functions by process, so a second build in one
  process gives SavedModels with other names in them.
"""

from __future__ import annotations

from evenfleet_collector.optimize.data import LabelledData
from evenfleet_collector.optimize.gain import Gain
from evenfleet_collector.optimize.recipe import Plan
from evenfleet_collector.optimize.recipe import read as read_recipe
from evenfleet_collector.optimize.release import BuildReport, Progress, VariantReport, build_release
from evenfleet_collector.optimize.variants import DEFAULT

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
