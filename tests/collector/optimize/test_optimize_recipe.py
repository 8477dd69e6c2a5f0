"""Recipes: what a file may say, and what it is told where it may not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from evenfleet_collector.optimize import recipe, variants
from evenfleet_shared.errors import ConfigError


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "recipe.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_a_file_that_names_no_variants_builds_the_default_ones_with_its_settings(tmp_path: Path) -> None:
    plan, found = recipe.read(written(tmp_path, "seed = 7\n[techniques.prune]\nsparsity_ratio = 0.8\n"))

    assert plan.seed == 7
    assert [one.name for one in found] == [one.name for one in variants.DEFAULT]
    pruned = next(one for one in found if one.name == "pruned-int8")
    assert pruned.chain[0].sparsity_ratio == 0.8
    assert pruned.chain[0].steps == variants.technique("prune").steps


def test_a_variants_own_settings_go_before_the_files(tmp_path: Path) -> None:
    _, found = recipe.read(
        written(
            tmp_path,
            """
            [techniques.prune]
            sparsity_ratio = 0.8
            [[variants]]
            name = "a"
            chain = ["prune", "int8"]
            [[variants]]
            name = "b"
            chain = ["prune", "int8"]
            settings.prune.sparsity_ratio = 0.9
            """,
        )
    )
    assert [one.chain[0].sparsity_ratio for one in found] == [0.8, 0.9]
    assert found[0].chain[1] == found[1].chain[1]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sed = 1", "did you mean seed"),
        ("seed = -1", "seed: expected a whole number of at least 0, found -1"),
        ("[techniques.prun]", "no technique is called 'prun'; did you mean prune"),
        ("[techniques.prune]\nsparsity = 0.5", "prune has no setting sparsity; did you mean sparsity_ratio"),
        ("[techniques.prune]\nsparsity_ratio = 1.5", "sparsity_ratio: expected a number of at most 1.0, found 1.5"),
        ("[techniques.int8]\ncalibration_samples = 1", "calibration_samples: expected a whole number of at least 2"),
        ("[techniques.int16x8]\ncalibration_samples = 0", "calibration_samples: expected a whole number of at least 2"),
        ("[techniques.float32]\nbits = 8", "float32 has no setting bits; it has none"),
        ('[[variants]]\nname = "a"\nchain = ["int8", "prune"]', "variant a: prune takes a keras"),
        ('[[variants]]\nname = "a"\nchain = ["prune"]', "variant a ends with prune, which leaves a Keras model"),
        ('[[variants]]\nname = "a"\nchain = []', "at least 1"),
        ('[[variants]]\nname = "a"\nchain = ["int9"]', "no technique is called 'int9'; did you mean int8"),
        ('[[variants]]\nname = "a b"\nchain = ["int8"]', "variants[0].name: expected a text that matches"),
        ('[[variants]]\nname = "a b"\nchain = ["int8"]', "found 'a b'"),
        ('[[variants]]\nname = "a"\nchain = ["int8"]\nchains = 1', "unknown setting variants[0].chains; did you mean"),
        (
            '[[variants]]\nname = "a"\nchain = ["int8"]\nsettings.prune.steps = 1',
            "settings of prune, which is not in its chain",
        ),
        (2 * '[[variants]]\nname = "a"\nchain = ["int8"]\n', "two variants are called 'a'"),
        ("seed = ", "is not TOML"),
    ],
)
def test_what_cannot_be_done_is_one_line_that_names_the_file_and_the_place(
    tmp_path: Path, text: str, said: str
) -> None:
    file = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        recipe.read(file)

    assert str(caught.value).startswith(str(file))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_recipe_of_the_documentation_is_one_and_its_table_names_every_technique(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "recipes.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    _, found = recipe.read(written(tmp_path, example))

    assert [one.name for one in found] == ["float32", "int8", "int4", "pruned-clustered-int8", "blocks"]
    assert set(re.findall(r"^\| `([a-z0-9-]+)` \|", page, re.MULTILINE)) == {each.name for each in variants.TECHNIQUES}
