"""TLS towards the broker: what holds, and what does not in one line each."""

from __future__ import annotations

import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from evenfleet_agent import service
from evenfleet_agent.config import AgentSettings, BrokerSettings
from evenfleet_agent.link import Connected, Disconnected, LinkEvent
from evenfleet_agent.link.tls import client_context
from evenfleet_shared.errors import ConfigError
from fakes.certificates import Authority
from fakes.link_ends import link_to
from fakes.scripted_brokers import ScriptedBroker


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@contextmanager
def serving(context: ssl.SSLContext) -> Iterator[ScriptedBroker]:
    broker = ScriptedBroker(context=context)
    yield broker
    broker.close()


def reason(server: ssl.SSLContext, client: ssl.SSLContext, tmp_path: Path, host: str = "localhost") -> str:
    """Return why there is no session."""
    with serving(server) as broker:
        port = broker.address[1]
        with link_to((host, port), directory=tmp_path, context=client) as ends:
            found = ends.until(Disconnected).reason
    assert found.count("\n") == 0
    return found.replace(f"{host}:{port}", "THERE")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_certificate_of_a_trusted_ca_for_the_name_in_the_url_is_taken(
    authority: Authority, tmp_path: Path, host: str
) -> None:
    context = client_context(ca_file=authority.file)
    with (
        serving(authority.server(authority.issue("broker"))) as broker,
        link_to((host, broker.address[1]), directory=tmp_path, context=context) as ends,
    ):
        assert ends.until(Connected).transport == "mqtt/5+tls"
        ends.until_taken("window", b"x" * 100_000)
        broker.until(lambda: [len(sent.payload) for sent in broker.sent] == [100_000])


def test_bytes_that_are_counted_are_those_of_the_socket_records_and_handshake_included(
    authority: Authority, tmp_path: Path
) -> None:
    context = client_context(ca_file=authority.file)
    with (
        serving(authority.server(authority.issue("broker"))) as broker,
        link_to(("localhost", broker.address[1]), directory=tmp_path, context=context) as ends,
    ):
        ends.until(Connected)
        ends.until_taken("window", b"x" * 1000)
        broker.until(lambda: len(broker.sent) == 1)
        received_bytes = broker.received_bytes
        # The broker may have a message before it is counted as sent: when it has the next one, it is.
        ends.until_taken("window", b"y")
        broker.until(lambda: len(broker.sent) == 2)
        said = ends.link.network()
    assert said.sent_bytes > received_bytes + 250  # the hello of TLS 1.3 has 250 at least
    assert said.received_bytes > 700  # the broker's certificate


def test_small_messages_over_tls_use_the_whole_of_the_budget_and_no_more(authority: Authority, tmp_path: Path) -> None:
    """What is reckoned for a message beforehand is more than it takes: that must not add up over a day."""
    budget_bytes = 80_000
    context = client_context(ca_file=authority.file)
    with (
        serving(authority.server(authority.issue("broker"))) as broker,
        link_to(
            ("localhost", broker.address[1]), directory=tmp_path, context=context, budget_bytes=budget_bytes
        ) as ends,
    ):
        ends.until(Connected)
        told: list[LinkEvent] = []
        # On a busy machine a session may be lost before, which is not the end of the day.
        while not any(isinstance(event, Disconnected) and event.asleep_s is not None for event in told):
            ends.link.publish("window", b"x" * 100)
            while (session := ends.link._session) and session.pending:
                ends.woken.wait(0.001)  # one after the other, as it is on a link that costs money
            told += ends.link.events()
        spent_bytes = ends.link._purse.allowance.spent_bytes
    assert budget_bytes - 16_384 - 3000 < spent_bytes <= budget_bytes


def test_certificate_of_this_device_is_shown_where_the_broker_asks_for_it(authority: Authority, tmp_path: Path) -> None:
    own = authority.issue("press-01")
    context = client_context(ca_file=authority.file, cert_file=own.cert, key_file=own.key)
    with (
        serving(authority.server(authority.issue("broker"), asks=True)) as broker,
        link_to(("localhost", broker.address[1]), directory=tmp_path, context=context) as ends,
    ):
        assert ends.until(Connected).transport == "mqtt/5+tls"


def test_broker_that_asks_for_a_certificate_and_gets_none_is_told_with_the_setting(
    authority: Authority, tmp_path: Path
) -> None:
    """Its word may be lost with the connection: then the hint stands alone."""
    server = authority.server(authority.issue("broker"), asks=True)
    found = reason(server, client_context(ca_file=authority.file), tmp_path)
    assert "certificate of this device" in found
    assert "broker.cert_file" in found


def test_expired_certificate_is_told_with_this_devices_own_day(authority: Authority, tmp_path: Path) -> None:
    server = authority.server(authority.issue("broker", expired=True))
    found = reason(server, client_context(ca_file=authority.file), tmp_path)
    assert found.startswith("the certificate of THERE has expired (this device's clock says 20")


def test_certificate_of_another_ca_is_not_taken(authority: Authority, tmp_path: Path) -> None:
    stranger = Authority(tmp_path, "stranger")
    found = reason(stranger.server(stranger.issue("broker")), client_context(ca_file=authority.file), tmp_path)
    assert found == "the certificate of THERE is not from a CA that is trusted here; see broker.ca_file"


@pytest.mark.parametrize(
    ("host", "names"), [("localhost", "DNS:elsewhere"), ("127.0.0.1", "IP:127.0.0.9"), ("127.0.0.1", "DNS:localhost")]
)
def test_certificate_for_another_name_is_not_taken(authority: Authority, tmp_path: Path, host: str, names: str) -> None:
    server = authority.server(authority.issue("broker", names=names))
    found = reason(server, client_context(ca_file=authority.file), tmp_path, host)
    assert found == "the certificate of THERE is for another name; broker.url must say the name in the certificate"


def test_broker_that_speaks_no_tls_is_told_so(authority: Authority, tmp_path: Path) -> None:
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        ends = stack.enter_context(
            link_to(
                ("localhost", listener.getsockname()[1]),
                directory=tmp_path,
                context=client_context(ca_file=authority.file),
            )
        )
        session, _ = listener.accept()
        session.sendall(b"\x20\x02\x00\x00 this is no TLS at all")
        assert "does not speak TLS on this port" in ends.until(Disconnected).reason
        session.close()


def test_broker_that_hangs_up_on_the_handshake_is_told_so(authority: Authority, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = ("localhost", listener.getsockname()[1])
        with link_to(address, directory=tmp_path, context=client_context(ca_file=authority.file)) as ends:
            listener.accept()[0].close()
            assert ends.until(Disconnected).reason == f"localhost:{address[1]} hung up during the TLS handshake"


# What the files are.


def broken(authority: Authority, tmp_path: Path) -> dict[str, dict[str, str]]:
    pair, other = authority.issue("one"), authority.issue("two")
    nothing = tmp_path / "nothing.pem"
    nothing.write_text("this is no certificate")
    return {
        "missing": {"ca_file": str(tmp_path / "none.pem")},
        "a directory": {"ca_file": str(tmp_path)},
        "no CA": {"ca_file": str(nothing)},
        "no certificate": {"ca_file": authority.file, "cert_file": str(nothing), "key_file": pair.key},
        "another key": {"ca_file": authority.file, "cert_file": pair.cert, "key_file": other.key},
        "no key": {"ca_file": authority.file, "cert_file": pair.cert},
    }


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("missing", "cannot read broker.ca_file {ca_file}: No such file or directory"),
        ("a directory", "cannot read broker.ca_file {ca_file}: Is a directory"),
        ("no CA", "broker.ca_file {ca_file} holds no certificate in PEM form"),
        ("no certificate", "broker.cert_file {cert_file} holds no certificate in PEM form, or broker.key_file"),
        ("another key", "broker.key_file {key_file} is not the key of broker.cert_file {cert_file}"),
        ("no key", "broker.cert_file {cert_file} holds no certificate and key in PEM form"),
    ],
)
def test_file_that_cannot_be_used_is_named_with_what_is_wrong(
    authority: Authority, tmp_path: Path, case: str, words: str
) -> None:
    files = broken(authority, tmp_path)[case]
    with pytest.raises(ConfigError) as refused:
        client_context(**files)
    assert str(refused.value).startswith(words.format(**files))
    assert "\n" not in str(refused.value)


def test_key_with_a_passphrase_is_refused_and_nobody_is_asked(authority: Authority, tmp_path: Path) -> None:
    pair = authority.issue("one")
    locked = tmp_path / "locked.key"
    subprocess.run(
        ["openssl", "ec", "-in", pair.key, "-aes256", "-passout", "pass:secret", "-out", str(locked)],
        check=True,
        capture_output=True,
    )
    with pytest.raises(ConfigError, match="is protected by a passphrase"):
        client_context(ca_file=authority.file, cert_file=pair.cert, key_file=str(locked))


def test_certificate_and_key_may_stand_in_one_file(authority: Authority, tmp_path: Path) -> None:
    pair = authority.issue("one")
    both = tmp_path / "both.pem"
    both.write_text(Path(pair.cert).read_text() + Path(pair.key).read_text())
    assert client_context(ca_file=authority.file, cert_file=str(both)).verify_mode is ssl.CERT_REQUIRED


def test_ca_that_has_expired_is_told_before_a_broker_is_asked(authority: Authority) -> None:
    old = authority.issue("old", expired=True, is_ca=True).cert
    settings = AgentSettings(device="press-01", broker=BrokerSettings(url="mqtts://b", ca_file=old))

    with pytest.raises(ConfigError, match=r"broker\.ca_file .* has expired: Jan  2 "):
        service.check(settings, by_clock=True)
    # But an agent on a board whose clock is wrong starts, and measures.
    service.check(settings)


def test_named_ca_is_the_only_one_that_is_trusted(authority: Authority) -> None:
    assert len(client_context(ca_file=authority.file).get_ca_certs()) == 1


def test_check_and_run_refuse_what_cannot_be_used_before_anything_runs(authority: Authority, tmp_path: Path) -> None:
    pair, other = authority.issue("one"), authority.issue("two")
    broker = BrokerSettings(url="mqtts://b", ca_file=authority.file, cert_file=pair.cert, key_file=other.key)
    with pytest.raises(ConfigError, match="is not the key of"):
        service.check(AgentSettings(device="press-01", state_dir=str(tmp_path), broker=broker))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"url": "mqtt://b", "ca_file": "x"}, "broker.ca_file is set, and broker.url is 'mqtt://b', expected mqtts://"),
        ({"url": "mqtts://b", "key_file": "x"}, "broker.key_file is set without broker.cert_file"),
    ],
)
def test_settings_of_tls_that_do_not_go_together_are_refused(settings: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words.replace(".", r"\.")):
        AgentSettings(device="press-01", broker=BrokerSettings(**settings))


def test_port_of_tls_is_its_own_unless_the_url_says_another() -> None:
    def address(url: str) -> tuple[str, int]:
        return AgentSettings(device="press-01", broker=BrokerSettings(url=url)).broker_address()

    assert (address("mqtts://b"), address("mqtts://b:1"), address("mqtt://b")) == (("b", 8883), ("b", 1), ("b", 1883))
