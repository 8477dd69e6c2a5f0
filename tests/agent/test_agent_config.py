"""What the owner of a device may say, and what is said when it cannot be."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from evenfleet_agent import config, engines, runtimes
from evenfleet_agent.config import AgentSettings
from evenfleet_shared.errors import ConfigError


def load(tmp_path: Path, text: str, environment: dict[str, str] | None = None, **overrides: Any) -> AgentSettings:
    file = tmp_path / "agent.toml"
    file.write_text(text)
    return config.load(file, environment or {}, overrides)


def test_a_device_id_is_all_that_is_needed(tmp_path: Path) -> None:
    settings = load(tmp_path, 'device = "press-07"')

    assert settings.broker_address() == ("127.0.0.1", 1883)
    assert settings.formats == ("tflite",)
    assert settings.password() is None


def test_the_example_with_a_device_id_is_the_defaults(tmp_path: Path) -> None:
    text = config.example().replace('device = ""', 'device = "press-07"')

    assert load(tmp_path, text) == AgentSettings(device="press-07")


def test_every_comment_is_of_a_setting_that_exists() -> None:
    tables = {
        field.name: field.default_factory()
        for field in dataclasses.fields(AgentSettings)
        if callable(field.default_factory)
    }
    for name in config.COMMENTS:
        table, _, key = name.rpartition(".")
        assert hasattr(tables[table], key) if table else key in AgentSettings.__dataclass_fields__


def test_the_environment_goes_before_the_file_and_the_command_line_before_both(tmp_path: Path) -> None:
    text = 'device = "a"\n[broker]\nurl = "mqtt://b"\nkeepalive_s = 40'
    environment = {
        "EVENFLEET_BROKER__URL": "mqtt://c:99",
        "EVENFLEET_BROKER__KEEPALIVE_S": "50",
        "EVENFLEET_OTHER": "x",
    }
    settings = load(tmp_path, text, environment, **{"broker.keepalive_s": 60})

    assert (settings.broker_address(), settings.broker.keepalive_s) == (("c", 99), 60)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "device"),
        ('device = "Press 7"', "device is 'Press 7'"),
        ('device = "a.b"', "device is 'a.b'"),
        ('device = "a\\n"', "device is 'a\\n'"),
        ('device = "a"\ndevise_class = "x"', "unknown setting devise_class; did you mean device_class?"),
        ('device = "a"\n[brokr]\nurl = "x"', "unknown setting brokr; did you mean broker?"),
        ('device = "a"\n[broker]\nurll = "x"', "unknown setting broker.urll; did you mean broker.url?"),
        ('device = "a"\nbroker = 3', "broker must be a table"),
        ('device = "a"\n[broker]\nurl = "http://x"', "broker.url is 'http://x', expected mqtt://"),
        ('device = "a"\n[broker]\nurl = "mqtt://"', "broker.url is 'mqtt://'"),
        ('device = "a"\n[broker]\nurl = "mqtt://x:99999"', "99999"),
        ('device = "a"\n[broker]\nurl = "mqtt://x:port"', "port"),
        ('device = "a"\n[broker]\nkeepalive_s = 1', "broker.keepalive_s"),
        ('device = "a"\n[runtime]\nname = "caffe"', "runtime.name"),
        ('device = "a"\n[runtime]\ndelegate = "tpu"', "runtime.delegate"),
        ('device = "a"\n[runtime]\ndelegate = "libedgetpu.so.1"', "runtime.delegate"),
        ('device = "a"\n[runtime]\nthreads = 0', "runtime.threads"),
        ('device = "a"\n[measure]\nsamples = 0', "measure.samples"),
        ('device = "a"\n[measure]\nsamples = "many"', "measure.samples"),
        ('device = "a"\n[measure]\nmax_duration_s = nan', "measure.max_duration_s"),
        ('device = "a"\n[outbox]\nmax_bytes = 10', "outbox.max_bytes"),
        ('device = "a"\n[attributes]\n"a b" = "c"', "attributes"),
        ('device = "a"\ndevice_class = ""', "device_class"),
        ("device", "not TOML"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)

    assert expected in str(caught.value)
    assert "agent.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_password_is_read_from_its_file_without_the_line_end(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("s3cret\n")
    settings = load(tmp_path, f'device = "a"\n[broker]\npassword_file = "{tmp_path / "token"}"')

    assert settings.password() == "s3cret"


@pytest.mark.parametrize("left", [None, b"\xff\xfe\x00"])
def test_a_password_file_that_cannot_be_read_is_named(tmp_path: Path, left: bytes | None) -> None:
    if left is not None:
        (tmp_path / "token").write_bytes(left)
    settings = load(tmp_path, f'device = "a"\n[broker]\npassword_file = "{tmp_path / "token"}"')

    with pytest.raises(ConfigError, match=r"cannot read broker\.password_file .*token"):
        settings.password()


def test_delegate_is_a_name_or_a_path_with_options_of_its_own(tmp_path: Path) -> None:
    text = '[runtime]\ndelegate = "/usr/lib/libvx_delegate.so"\n[runtime.delegate_options]\ncache = "on"\n'
    runtime = load(tmp_path, f'device = "a"\n{text}').runtime
    assert (runtime.delegate, runtime.delegate_options) == ("/usr/lib/libvx_delegate.so", {"cache": "on"})
    by_name = load(tmp_path, 'device = "a"\n', {"EVENFLEET_RUNTIME__DELEGATE": "edgetpu"}).runtime
    assert by_name.delegate == "edgetpu"


def test_an_address_with_a_password_in_it_is_refused_and_not_shown(tmp_path: Path) -> None:
    for url in ("mqtt://press:s3cret@h", "mqtts://press:s3cret@h:8883", "mqtt+tls://press:s3cret@h"):
        with pytest.raises(ConfigError) as refused:
            config.load(None, {"EVENFLEET_DEVICE": "press-01", "EVENFLEET_BROKER__URL": url}, {})
        assert "s3cret" not in str(refused.value)
        assert "password_file" in str(refused.value)


def test_every_runtime_can_be_configured_and_runs_the_formats_that_are_told_of_it(tmp_path: Path) -> None:
    told = {engine.name: engine.formats for engine in engines.ENGINES}
    assert {runtime.name: runtime.formats for runtime in runtimes.RUNTIMES} == told
    assert get_args(get_type_hints(config.RuntimeSettings)["name"]) == engines.NAMES
    for name, formats in told.items():
        assert load(tmp_path, f'device = "a"\n[runtime]\nname = "{name}"\n').formats == formats
