from __future__ import annotations

import base64
import json
import secrets

import nacl.signing
import nkeys
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenfleet_collector import access
from evenfleet_collector.access import CalloutRequest, ConnectRequest, Denial, Grant, Issuer
from evenfleet_shared import topics
from evenfleet_shared.errors import MessageError


def request(**changes: str) -> ConnectRequest:
    fields = {"transport": "mqtt", "client_id": "press-07", "user": "press-07", "password": "token", **changes}
    return ConnectRequest(**fields)


def knows(device: str, token: str) -> bool:
    return (device, token) == ("press-07", "token")


def always(device: str, token: str) -> bool:
    return True


def never(device: str, token: str) -> bool:
    raise AssertionError("the credentials must not be looked at")


def test_device_with_its_token_is_granted_its_own_topics_one_by_one() -> None:
    decision = access.decide(request(), knows, anonymous=False)

    assert isinstance(decision, Grant)
    assert set(decision.publish) == {f"evenfleet/v1/press-07/{kind}" for kind in topics.UPLINK}
    assert set(decision.subscribe) == {f"evenfleet/v1/press-07/{kind}" for kind in topics.DOWNLINK}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"transport": "nats"}, "transport"),
        ({"transport": "websocket"}, "transport"),
        ({"client_id": ""}, "client id"),
        ({"client_id": "a.b"}, "client id"),
        ({"client_id": ">", "user": ">"}, "client id"),
        ({"client_id": "press-07\n", "user": "press-07\n"}, "client id"),
        ({"client_id": "_collector", "user": "_collector"}, "client id"),
        ({"client_id": "press-08"}, "user name"),
        ({"user": "press-08"}, "user name"),
        ({"user": ""}, "user name"),
    ],
)
def test_wrong_connection_is_refused_before_its_credentials_are_looked_at(changes: dict[str, str], reason: str) -> None:
    assert access.decide(request(**changes), never, anonymous=False) == Denial(reason=reason)  # type: ignore[arg-type]


def test_wrong_token_is_refused() -> None:
    assert access.decide(request(password="other"), knows, anonymous=False) == Denial(reason="credentials")


@pytest.mark.parametrize("changes", [{}, {"password": ""}, {"user": "", "password": ""}])
def test_anonymous_device_is_granted_whatever_its_password(changes: dict[str, str]) -> None:
    assert isinstance(access.decide(request(**changes), never, anonymous=True), Grant)


@pytest.mark.parametrize("changes", [{"client_id": "#"}, {"transport": "nats"}, {"user": "press-08"}])
def test_anonymous_device_is_still_held_to_one_id(changes: dict[str, str]) -> None:
    assert isinstance(access.decide(request(**changes), never, anonymous=True), Denial)


@given(st.text(), st.text(), st.booleans())
def test_whatever_is_granted_stays_within_one_device(client_id: str, user: str, anonymous: bool) -> None:
    decision = access.decide(request(client_id=client_id, user=user), always, anonymous=anonymous)

    if isinstance(decision, Grant):
        assert {topics.parse(topic).device for topic in (*decision.publish, *decision.subscribe)} == {client_id}


def test_tokens_differ_and_only_their_own_hash_fits() -> None:
    one, other = access.new_token(), access.new_token()

    assert one != other
    assert len(one) >= 43
    assert access.verify_token(one, access.hash_token(one))
    assert not access.verify_token(other, access.hash_token(one))
    assert not access.verify_token("", access.hash_token(one))
    assert one not in access.hash_token(one)


@given(st.text())
def test_any_text_can_be_compared_with_a_hash(token: str) -> None:
    assert not access.verify_token(token, access.hash_token("the token"))


class Server:
    """Asks as nats-server does: a JWT signed with a server key."""

    def __init__(self) -> None:
        seed = nkeys.encode_seed(secrets.token_bytes(32), nkeys.PREFIX_BYTE_SERVER)
        self._keys = nkeys.from_seed(bytearray(seed))
        self.key = self._keys.public_key.decode()

    def ask(self, **changes: object) -> bytes:
        claims: dict[str, object] = {
            "aud": "nats-authorization-request",
            "iss": self.key,
            "nats": {
                "server_id": {"id": self.key},
                "user_nkey": "UUSER",
                "client_info": {"user": "press-07", "type": "mqtt", "mqtt_id": "press-07"},
                "connect_opts": {"user": "press-07", "pass": "token"},
                "type": "authorization_request",
            },
            **changes,
        }
        unsigned = encode({"typ": "JWT", "alg": "ed25519-nkey"}) + b"." + encode(claims)
        return unsigned + b"." + base64.urlsafe_b64encode(self._keys.sign(unsigned)).rstrip(b"=")


def encode(part: object) -> bytes:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=")


def decode(part: str) -> dict[str, object]:
    decoded = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    assert isinstance(decoded, dict)
    return decoded


def test_signed_question_is_taken_apart() -> None:
    server = Server()

    question = access.parse_callout(server.ask())

    assert question == CalloutRequest(connection=request(), user_key="UUSER", server_key=server.key)


def test_question_signed_by_another_key_is_refused() -> None:
    with pytest.raises(MessageError, match="callout"):
        access.parse_callout(Server().ask(iss=Server().key))


@pytest.mark.parametrize("changes", [{"aud": "something else"}, {"nats": {}}, {"nats": None}, {"iss": 7}])
def test_other_claims_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(MessageError, match="callout"):
        access.parse_callout(Server().ask(**changes))


@given(st.one_of(st.binary(), st.lists(st.binary(), min_size=3, max_size=3).map(b".".join)))
def test_arbitrary_bytes_are_a_message_error(token: bytes) -> None:
    with pytest.raises(MessageError, match="callout"):
        access.parse_callout(token)


def test_answer_carries_the_permissions_as_subjects_for_mqtt_only_and_a_signature_that_fits() -> None:
    issuer = Issuer()
    question = CalloutRequest(connection=request(), user_key="UUSER", server_key="NSERVER")

    answer = access.answer_callout(question, access.decide(request(), knows, anonymous=False), issuer).decode()

    head, body, signature = answer.split(".")
    key = nacl.signing.VerifyKey(base64.b32decode(issuer.public_key)[1:-2])
    key.verify(f"{head}.{body}".encode(), base64.urlsafe_b64decode(signature + "=="))
    claims = decode(body)
    assert (claims["sub"], claims["aud"], claims["iss"]) == ("UUSER", "NSERVER", issuer.public_key)
    nats_claims = claims["nats"]
    assert isinstance(nats_claims, dict)
    user = decode(nats_claims["jwt"].split(".")[1])["nats"]
    assert isinstance(user, dict)
    assert "evenfleet.v1.press-07.window" in user["pub"]["allow"]
    assert user["sub"]["allow"] == [f"evenfleet.v1.press-07.{kind}" for kind in topics.DOWNLINK]
    assert not [s for s in (*user["pub"]["allow"], *user["sub"]["allow"]) if "*" in s or ">" in s]
    assert user["allowed_connection_types"] == ["MQTT"]


def test_answer_to_a_refused_connection_carries_no_permissions() -> None:
    question = CalloutRequest(connection=request(), user_key="UUSER", server_key="NSERVER")

    answer = access.answer_callout(question, Denial(reason="credentials"), Issuer()).decode()

    nats_claims = decode(answer.split(".")[1])["nats"]
    assert isinstance(nats_claims, dict)
    assert nats_claims["error"] == "credentials"
    assert "jwt" not in nats_claims
