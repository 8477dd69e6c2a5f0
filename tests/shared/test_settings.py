"""Where a setting comes from, and what is said about one that is wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import pytest
from msgspec import Meta

from evenfleet_shared import settings
from evenfleet_shared.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Window:
    length_s: Annotated[float, Meta(ge=1.0)] = 300.0
    samples: int = 1000


@dataclass(frozen=True, kw_only=True)
class Root:
    device: str
    threads: int = 1
    xnnpack: bool = True
    python: str | None = None
    tags: dict[str, str] = field(default_factory=dict)
    further: tuple[Window, ...] = ()
    window: Window = field(default_factory=Window)


def load(tmp_path, text="", environment=(), overrides=()):
    file = tmp_path / "some.toml"
    file.write_text(text, encoding="utf-8")
    return settings.load(Root, file, dict(environment), dict(overrides))


def test_default_gives_way_to_file_to_environment_to_command_line(tmp_path):
    text = 'device = "a"\n[window]\nlength_s = 60\nsamples = 5'
    environment = {"EVENFLEET_WINDOW__LENGTH_S": "30", "EVENFLEET_THREADS": "4", "EVENFLEET_XNNPACK": "false"}
    found = load(tmp_path, text, environment, {"window.length_s": 10.0, "threads": None})
    assert found == Root(device="a", threads=4, xnnpack=False, window=Window(length_s=10.0, samples=5))


def test_no_file_is_needed():
    assert settings.load(Root, None, {"EVENFLEET_DEVICE": "a"}, {}).window == Window()


def test_variable_that_is_no_setting_is_left_alone():
    environment = {"EVENFLEET_DEVICE": "a", "EVENFLEET_URL": "http://x", "EVENFLEET_WINDOW__URL": "x", "DEVICE": "b"}
    assert settings.load(Root, None, environment, {}) == Root(device="a")


def test_variable_that_almost_names_a_setting_is_refused_with_what_was_meant():
    with pytest.raises(ConfigError, match=r"window\.lenght_s is no setting; did you mean EVENFLEET_WINDOW__LENGTH_S\?"):
        settings.load(Root, None, {"EVENFLEET_DEVICE": "a", "EVENFLEET_WINDOW__LENGHT_S": "1"}, {})


def test_variable_may_hold_a_table_or_a_list_as_the_file_does():
    environment = {
        "EVENFLEET_DEVICE": "[a",
        "EVENFLEET_TAGS": '{site = "north"}',
        "EVENFLEET_FURTHER": "[{samples = 7}]",
    }
    found = settings.load(Root, None, environment, {})
    assert (found.device, found.tags, found.further) == ("[a", {"site": "north"}, (Window(samples=7),))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('devise = "a"', "unknown setting devise; did you mean device?"),
        ('device = "a"\n[window]\nlenght_s = 3', r"unknown setting window.lenght_s; did you mean window.length_s?"),
        ('device = "a"\nqqqq = 1', "unknown setting qqqq; known here: device, threads"),
        ('device = "a"\nwindow = 3', "window must be a table, found 3"),
        ('device = "a"\n[window]\nlength_s = 0', r"window.length_s: expected a number of at least 1.0, found 0"),
        ('device = "a"\nthreads = "many"', "threads: expected a whole number, found .many."),
        (
            'device = "a"\n[[further]]\n[[further]]\nlenght_s = 5',
            r"further\[1\]\.lenght_s; did you mean further\[1\]\.length_s",
        ),
        (
            'device = "a"\n[[further]]\n[[further]]\nlength_s = 0',
            r"further\[1\]\.length_s: expected a number of at least 1.0, found 0",
        ),
        ("threads = 2", "device"),
        ("device = ", "is not TOML"),
    ],
)
def test_wrong_file_is_one_error_that_names_file_and_setting(tmp_path, text, says):
    with pytest.raises(ConfigError, match=says) as refused:
        load(tmp_path, text)
    assert "some.toml" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_value_out_of_bounds_from_the_environment_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"window\.length_s"):
        load(tmp_path, 'device = "a"', {"EVENFLEET_WINDOW__LENGTH_S": "0.5"})


def test_value_where_the_file_should_have_a_table_is_refused_also_if_the_environment_sets_into_it(tmp_path):
    with pytest.raises(ConfigError, match=r"some\.toml: window must be a table, found 3"):
        load(tmp_path, 'device = "a"\nwindow = 3', {"EVENFLEET_WINDOW__LENGTH_S": "5"}, {"window.length_s": 5.0})


@pytest.mark.parametrize("name", ["EVENFLEET_WINDOW", "EVENFLEET_WINDOW__LENGTH_S"])
def test_variable_that_gives_text_to_a_table_is_refused_by_its_name(tmp_path, name):
    """Whatever comes first, the table or what is in it."""
    environment = {name: "3", "EVENFLEET_WINDOW": "3", "EVENFLEET_WINDOW__LENGTH_S": "3"}
    with pytest.raises(ConfigError, match=r"^EVENFLEET_WINDOW: window is a table .* set EVENFLEET_WINDOW__LENGTH_S, "):
        load(tmp_path, 'device = "a"', environment)


@pytest.mark.parametrize("name", ["EVENFLEET_DEVICE__X", "EVENFLEET_WINDOW__", "EVENFLEET_", "EVENFLEET___"])
def test_variable_below_a_setting_that_is_no_table_is_left_alone(tmp_path, name):
    assert load(tmp_path, 'device = "a"', {name: "x"}) == Root(device="a")


def test_wrong_value_is_said_to_come_from_where_it_was_set(tmp_path):
    with pytest.raises(ConfigError, match=r"^EVENFLEET_THREADS: threads: expected a whole number, found 'many'"):
        load(tmp_path, 'device = "a"', {"EVENFLEET_THREADS": "many"})
    with pytest.raises(
        ConfigError, match=r"^the command line: window.length_s: expected a number of at least 1.0, found 0.5"
    ):
        load(tmp_path, 'device = "a"', (), {"window.length_s": 0.5})


def test_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere.toml: No such file"):
        settings.load(Root, tmp_path / "nowhere.toml", {}, {})


def test_file_that_is_no_text_is_refused(tmp_path):
    file = tmp_path / "bytes.toml"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not TOML"):
        settings.load(Root, file, {}, {})


def test_example_holds_every_setting_and_loads_as_the_defaults(tmp_path):
    text = settings.example(Root, {"window.length_s": "one report per window"})
    assert "length_s = 300.0  # one report per window" in text
    assert "# python =" in text
    assert load(tmp_path, text) == Root(device="")
