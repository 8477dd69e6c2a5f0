"""What the owner of a collector may say, and what is said when it cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from evenfleet_collector import config
from evenfleet_collector.config import ServeSettings
from evenfleet_shared.errors import ConfigError


def load(tmp_path: Path, text: str) -> ServeSettings:
    file = tmp_path / "collector.toml"
    file.write_text(text)
    return config.load(file, {}, {})


def test_the_example_is_the_defaults(tmp_path: Path) -> None:
    assert load(tmp_path, config.example()) == ServeSettings()


def test_every_setting_has_its_comment() -> None:
    assert set(config.COMMENTS) == set(ServeSettings.__dataclass_fields__)


def test_the_command_line_goes_before_the_environment_and_that_before_the_file(tmp_path: Path) -> None:
    file = tmp_path / "collector.toml"
    file.write_text("http_port = 1\nmqtt_port = 2\ndata = 'a'")
    found = config.load(file, {"EVENFLEET_HTTP_PORT": "3", "EVENFLEET_MQTT_PORT": "4"}, {"http_port": 5, "data": None})

    assert (found.http_port, found.mqtt_port, found.data) == (5, 4, "a")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("htp_port = 1", "unknown setting htp_port; did you mean http_port?"),
        ("http_port = 70000", "http_port"),
        ("http_port = 'x'", "http_port"),
        ("public_url = 'collector:8080'", "public_url"),
        ("public_url = 'http://'", "public_url"),
        ("public_url = 'http://a b'", "public_url"),
        ("public_url = 'http://a?x=1'", "public_url"),
        ("http_host = ''", "http_host"),
        ("allowed_hosts = ['http://a']", "allowed_hosts"),
        ("http_port =", "not TOML"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)

    assert expected in str(caught.value)
    assert "collector.toml" in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*nowhere\.toml: No such file"):
        config.load(tmp_path / "nowhere.toml", {}, {})


@pytest.mark.parametrize("url", ["http://collector:8080", "https://plant.local/evenfleet/", "http://[::1]:8080"])
def test_a_url_that_devices_can_use_is_taken(tmp_path: Path, url: str) -> None:
    assert load(tmp_path, f"public_url = '{url}'").public_url == url


@pytest.mark.parametrize(
    ("host", "is_open"),
    [("127.0.0.1", False), ("localhost", False), ("::1", False), ("0.0.0.0", True), ("192.0.2.1", True), ("a", True)],
)
def test_an_address_that_others_reach_is_open(host: str, is_open: bool) -> None:
    assert ServeSettings(http_host=host).is_open == is_open
    assert ServeSettings(mqtt_host=host).is_open == is_open
