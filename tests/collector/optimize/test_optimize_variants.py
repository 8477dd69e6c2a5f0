from __future__ import annotations

import re
import subprocess
import sys

import pytest

from evenfleet_collector.optimize import variants
from evenfleet_shared.errors import ConfigError


def test_names_of_techniques_and_variants_are_unique_and_fit_the_manifest() -> None:
    for names in ([each.name for each in variants.TECHNIQUES], [each.name for each in variants.DEFAULT]):
        assert len(set(names)) == len(names)
        assert all(re.fullmatch(r"[a-z0-9][a-z0-9-]*", name) for name in names)


def test_every_variant_can_be_built_from_a_keras_model() -> None:
    assert [variants.misfit(each.chain, "keras") for each in variants.DEFAULT] == [None] * 9


def test_variants_that_need_training_cannot_be_built_from_a_saved_model() -> None:
    refused = {each.name for each in variants.DEFAULT if variants.misfit(each.chain, "saved_model")}
    assert refused == {"pruned-int8", "distilled-int8", "pruned-saved-model", "distilled-saved-model"}


def test_techniques_in_an_impossible_order_are_refused() -> None:
    assert (
        variants.misfit(variants.recipe("x", "int8", "saved-model").chain, "keras")
        == "saved-model takes a saved_model and would be given a tflite"
    )


def test_unknown_variant_is_answered_with_the_near_match() -> None:
    with pytest.raises(ConfigError, match="did you mean pruned-int8"):
        variants.select(variants.DEFAULT, ["prunned-int8"])


def test_the_control_of_a_chain_lacks_its_last_idea_alone() -> None:
    chain = variants.recipe("x", "prune", "cluster", "int8").chain
    control = variants.control(chain)

    assert control is not None
    assert [step.name for step in control] == ["prune", "fine-tune", "int8"]
    assert (control[1].steps, control[1].learning_rate) == (chain[1].steps, chain[1].learning_rate)


def test_only_what_is_trained_has_a_control() -> None:
    assert {each.name for each in variants.DEFAULT if variants.control(each.chain) is None} == {
        "float32", "float16", "dynamic", "int8", "saved-model"
    }  # fmt: skip


def test_importing_the_package_and_the_command_loads_no_tensorflow() -> None:
    code = (
        "import sys, evenfleet_collector.optimize, evenfleet_collector.commands.optimize; "
        "sys.exit(any(name in sys.modules for name in ('tensorflow', 'keras', 'ai_edge_litert')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
