"""Decide who may connect to the embedded broker, and what a connection may publish and subscribe.

nats-server asks before it lets a connection in (its auth callout: a request on `$SYS.REQ.USER.AUTH`, answered with
a signed user JWT). `decide` is the rule, pure but for the injected credential check; `Callout` answers the server.
There is no list of users in a file, so a new or a revoked token acts at the next connect.

* A device's client id, user name and id are one and the same: it can neither take over another's session nor speak
  for another.
* A device may publish its own uplink topics and subscribe its own downlink topics, one by one. Everything else is
  refused by the server: wildcards, other devices, and all of `$JS`, `$SYS` and `$MQTT`.
* A device may speak MQTT only: the NATS port is not for devices, not even on loopback.
* No text from a connection reaches a topic before it was checked to be a device id.

Where tokens are kept is left to the store; here is only how one is made, hashed and compared.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import json
import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, Union

import nacl.exceptions
import nacl.signing
import nats
import nats.errors
import nkeys

from evenfleet_shared import topics
from evenfleet_shared.errors import MessageError, UnreachableError

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg

log = logging.getLogger(__name__)

ACCOUNT: Final = "EVENFLEET"
CALLOUT_ACCOUNT: Final = "ACCESS"
SYSTEM_ACCOUNT: Final = "SYS"

# An underscore is in no device id, so these names are nobody else's.
COLLECTOR_USER: Final = "_collector"
CALLOUT_USER: Final = "_access"

_CALLOUT_SUBJECT: Final = "$SYS.REQ.USER.AUTH"
_REQUEST_AUDIENCE: Final = "nats-authorization-request"
_TOKEN_BYTES: Final = 32
_RECONNECT_WAIT_S: Final = 0.05
# For ever: whether the broker is given up is decided where it is watched, and that ends the collector.
_RECONNECT_ATTEMPTS: Final = -1

DenialReason = Literal["transport", "client id", "user name", "credentials"]
CheckCredentials = Callable[[str, str], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where the broker listens, and the passwords of the collector's own two users (new at every start)."""

    nats_url: str
    mqtt_host: str
    mqtt_port: int
    collector_password: str
    callout_password: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectRequest:
    """What a connection says of itself; every text is the connection's own and so not to be trusted.

    `transport` is the server's word: ``mqtt``, ``nats``, ``websocket`` or ``leafnode``.
    """

    transport: str
    client_id: str
    user: str
    password: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """The device may connect, publish and subscribe these MQTT topics and no others."""

    device: str
    publish: tuple[str, ...]
    subscribe: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Denial:
    """The connection is refused. The device is told nothing but that."""

    reason: DenialReason


Decision = Union[Grant, Denial]


def decide(request: ConnectRequest, check: CheckCredentials, *, anonymous: bool) -> Decision:
    """Decide on one connection.

    Args:
        request: What the connection says.
        check: Whether a token is the one of a device; asked only for a well-formed device id.
        anonymous: Admit any device id, with any password or none.

    >>> request = ConnectRequest(transport="mqtt", client_id="press-07", user="press-07", password="secret")
    >>> decide(request, lambda device, token: token == "secret", anonymous=False).device
    'press-07'
    >>> decide(request, lambda device, token: False, anonymous=False)
    Denial(reason='credentials')
    """
    device = request.client_id
    if request.transport != "mqtt":
        return Denial(reason="transport")
    if not topics.is_device_id(device):
        return Denial(reason="client id")
    # Without a user name MQTT 3.1.1 allows no password either.
    if request.user != device and not (anonymous and not request.user):
        return Denial(reason="user name")
    if not anonymous and not check(device, request.password):
        return Denial(reason="credentials")
    return Grant(
        device=device,
        publish=tuple(topics.build(device, kind) for kind in topics.UPLINK),
        subscribe=tuple(topics.build(device, kind) for kind in topics.DOWNLINK),
    )


def new_token() -> str:
    """Return a new device token: 256 random bits as 43 characters that need no quoting."""
    return secrets.token_urlsafe(_TOKEN_BYTES)


def hash_token(token: str) -> str:
    """Return what is stored of a token.

    One round of sha256: a token of 256 random bits cannot be guessed, so slowing down the guess buys nothing.
    """
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def verify_token(token: str, stored_hash: str) -> bool:
    """Return whether `token` is the one that `stored_hash` was made of, in constant time.

    >>> verify_token("secret", hash_token("secret")), verify_token("Secret", hash_token("secret"))
    (True, False)
    """
    return secrets.compare_digest(hash_token(token), stored_hash)


class Issuer:
    """The key that signs the answers; the server's configuration names its public half. New at every start."""

    def __init__(self) -> None:
        seed = nkeys.encode_seed(secrets.token_bytes(32), nkeys.PREFIX_BYTE_ACCOUNT)
        self._keys: Any = nkeys.from_seed(bytearray(seed))
        self.public_key: str = self._keys.public_key.decode("ascii")

    def sign(self, claims: dict[str, Any]) -> str:
        """Return the claims as a JWT of this issuer, issued now."""
        claims = {"jti": secrets.token_hex(16), "iat": int(time.time()), "iss": self.public_key, **claims}
        unsigned = f"{_encode_part({'typ': 'JWT', 'alg': 'ed25519-nkey'})}.{_encode_part(claims)}"
        return f"{unsigned}.{_base64url(self._keys.sign(unsigned.encode('ascii')))}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CalloutRequest:
    """A server's question: the connection, and the two keys that the answer must name."""

    connection: ConnectRequest
    user_key: str
    server_key: str


def parse_callout(token: bytes) -> CalloutRequest:
    """Take a server's question apart and check that the server that it names has signed it.

    Raises:
        MessageError: It is not a JWT, not such a question, or its signature does not fit (reason ``callout``).
    """
    try:
        head, body, signature = token.split(b".")
        claims = json.loads(_from_base64url(body))
        server_key = claims["iss"]
        # A public nkey: one byte of type, 32 of key, two of checksum, in base32 without padding.
        key = nacl.signing.VerifyKey(base64.b32decode(server_key)[1:-2])
        key.verify(head + b"." + body, _from_base64url(signature))
        question = claims["nats"]
        client, options = question["client_info"], question["connect_opts"]
        if claims["aud"] != _REQUEST_AUDIENCE or question["type"] != "authorization_request":
            raise MessageError("callout", f"expected an authorization request, found {str(claims['aud'])[:80]!r}")
        return CalloutRequest(
            connection=ConnectRequest(
                transport=str(client.get("type", "nats")),
                client_id=str(client.get("mqtt_id", "")),
                user=str(options.get("user", "")),
                password=str(options.get("pass", "")),
            ),
            user_key=str(question["user_nkey"]),
            server_key=str(question["server_id"]["id"]),
        )
    except (
        ValueError, KeyError, TypeError, AttributeError, RecursionError, binascii.Error, nacl.exceptions.CryptoError,
    ) as error:  # fmt: skip
        raise MessageError("callout", f"not a signed authorization request: {error!r:.200}") from None


def answer_callout(request: CalloutRequest, decision: Decision, issuer: Issuer) -> bytes:
    """Return the signed answer to a server's question."""
    answer: dict[str, Any] = {"type": "authorization_response", "version": 2}
    if isinstance(decision, Denial):
        answer["error"] = decision.reason
    else:
        answer["jwt"] = issuer.sign(
            {
                "sub": request.user_key,
                "aud": ACCOUNT,
                "name": decision.device,
                "nats": {
                    "type": "user",
                    "version": 2,
                    "pub": {"allow": [topics.to_subject(topic) for topic in decision.publish]},
                    "sub": {"allow": [topics.to_subject(topic) for topic in decision.subscribe]},
                    "subs": -1,
                    "data": -1,
                    "payload": -1,
                    "allowed_connection_types": ["MQTT"],
                },
            }
        )
    return issuer.sign({"sub": request.user_key, "aud": request.server_key, "nats": answer}).encode("ascii")


class Callout:
    """Answers the broker's questions until closed; while it is not open, the broker refuses every device.

    `admitted` and `denied` count the decisions, the latter by reason.
    """

    def __init__(self, endpoint: Endpoint, issuer: Issuer, check: CheckCredentials, *, anonymous: bool = False) -> None:
        self._endpoint = endpoint
        self._issuer = issuer
        self._check = check
        self._anonymous = anonymous
        self._client: Client | None = None
        self.admitted = 0
        self.denied: Counter[str] = Counter()

    async def open(self) -> None:
        """Start to answer. When this returns, the broker's questions are heard.

        Raises:
            UnreachableError: The broker does not answer.
        """
        try:
            self._client = await nats.connect(
                self._endpoint.nats_url,
                name="evenfleet access",
                user=CALLOUT_USER,
                password=self._endpoint.callout_password,
                # A question that nobody hears is not asked again: the device waits for the server's timeout and is
                # refused. So be back quickly after the server was restarted.
                reconnect_time_wait=_RECONNECT_WAIT_S,
                max_reconnect_attempts=_RECONNECT_ATTEMPTS,
                error_cb=_log_client_error,
            )
            await self._client.subscribe(_CALLOUT_SUBJECT, cb=self._answer)
            # The subscription only counts once the server has it: the first device of all was refused for want of this.
            await self._client.flush()
        except (nats.errors.Error, OSError) as error:
            await self.close()
            raise UnreachableError(f"no answer from the broker at {self._endpoint.nats_url}: {error!r}") from None

    async def close(self) -> None:
        """Stop answering."""
        if self._client:
            await self._client.close()
            self._client = None

    async def _answer(self, message: Msg) -> None:
        try:
            request = parse_callout(message.data)
        except MessageError as error:
            log.warning("ignored a question about access: %s", error)
            return
        connection = request.connection
        decision = decide(connection, self._check, anonymous=self._anonymous)
        if isinstance(decision, Denial):
            self.denied[decision.reason] += 1
            log.info(
                "refused a connection, client id %.80r, user %.80r: %s",
                connection.client_id, connection.user, decision.reason,
            )  # fmt: skip
        else:
            self.admitted += 1
        # Where the connection has just gone, the server asks again when it is back.
        with contextlib.suppress(nats.errors.Error):
            await message.respond(answer_callout(request, decision, self._issuer))


async def _log_client_error(error: Exception) -> None:
    log.debug("access connection: %r", error)


def _encode_part(value: dict[str, Any]) -> str:
    return _base64url(json.dumps(value, separators=(",", ":")).encode("utf-8"))


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _from_base64url(text: bytes) -> bytes:
    return base64.urlsafe_b64decode(text + b"=" * (-len(text) % 4))
