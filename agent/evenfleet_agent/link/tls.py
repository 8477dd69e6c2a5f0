"""TLS towards the broker: what is trusted, who we are, and what is wrong, in one line.

The only place of the agent's supervisor that loads OpenSSL, and only when the broker's URL asks for it: it costs a small
board 4 MB.

* The server's certificate and name are always checked; there is no way to switch that off.
* Where a CA is named it alone is trusted, and the system's hundred others are not even loaded.
"""

from __future__ import annotations

import ssl
import time
from pathlib import Path
from typing import Final

from evenfleet_shared.errors import ConfigError

# X509_V_ERR_… of OpenSSL's x509_vfy.h.
_NOT_YET_VALID: Final = 9
_EXPIRED: Final = 10
_NAME: Final = (62, 64)
_UNTRUSTED: Final = (2, 18, 19, 20, 21)


def client_context(
    *, ca_file: str | None = None, cert_file: str | None = None, key_file: str | None = None
) -> ssl.SSLContext:
    """Return what a connection is made with.

    Args:
        ca_file: PEM certificates to trust; None for the system's.
        cert_file: PEM, this device's certificate, and those between it and the broker's CA.
        key_file: PEM, its key; None where that stands in `cert_file`.

    Raises:
        ConfigError: A file that cannot be read, or is not what it should be; a key of another certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    for setting, file in (("ca_file", ca_file), ("cert_file", cert_file), ("key_file", key_file)):
        if file is not None:
            _check_readable(setting, file)
    if ca_file is None:
        context.load_default_certs()
    else:
        try:
            context.load_verify_locations(ca_file)
        except ssl.SSLError:
            raise ConfigError(f"broker.ca_file {ca_file} holds no certificate in PEM form") from None
    if cert_file is not None:
        try:
            context.load_cert_chain(cert_file, key_file, password=_refuse_passphrase)
        except _PassphraseError:
            raise ConfigError(
                f"broker.key_file {key_file or cert_file} is protected by a passphrase, which nobody is there to type;"
                " store it without one, readable by the agent's user alone"
            ) from None
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise ConfigError(
                    f"broker.key_file {key_file or cert_file} is not the key of broker.cert_file {cert_file}"
                ) from None
            wrong = "" if key_file is None else f", or broker.key_file {key_file} no key"
            raise ConfigError(
                f"broker.cert_file {cert_file} holds no certificate{' and key' if key_file is None else ''} in PEM"
                f" form{wrong}"
            ) from None
    return context


def explain(error: OSError, host: str) -> str:
    """Say in one line why there is no TLS session with `host`."""
    if isinstance(error, ssl.SSLCertVerificationError):
        code = error.verify_code
        if code == _EXPIRED:
            return f"the certificate of {host} has expired (this device's clock says {_today()})"
        if code == _NOT_YET_VALID:
            return f"the certificate of {host} is not valid yet (this device's clock says {_today()}: is it right?)"
        if code in _NAME:
            return f"the certificate of {host} is for another name; broker.url must say the name in the certificate"
        if code in _UNTRUSTED:
            return f"the certificate of {host} is not from a CA that is trusted here; see broker.ca_file"
        return f"the certificate of {host} does not hold: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        reason = error.reason or ""
        if reason in {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNEXPECTED_MESSAGE", "RECORD_LAYER_FAILURE"}:
            return f"{host} does not speak TLS on this port"
        if reason == "TLSV13_ALERT_CERTIFICATE_REQUIRED":
            return f"{host} wants a certificate of this device; see broker.cert_file and broker.key_file"
        if "ALERT" in reason:
            said = reason.partition("ALERT_")[2].lower().replace("_", " ")
            return f"{host} ended the TLS session: {said}; is broker.cert_file one that it takes?"
        if isinstance(error, ssl.SSLEOFError):
            return f"{host} hung up during the TLS handshake"
        return f"TLS with {host} failed: {reason.lower().replace('_', ' ') or error}"
    return f"{host} hung up during the TLS handshake"


class _PassphraseError(Exception):
    pass


def _refuse_passphrase() -> str:
    # Left to itself OpenSSL would ask on the terminal, and wait.
    raise _PassphraseError


def _check_readable(setting: str, file: str) -> None:
    try:
        with Path(file).open("rb") as opened:
            opened.read(1)
    except OSError as error:
        raise ConfigError(f"cannot read broker.{setting} {file}: {error.strerror}") from None


def check_expiry(context: ssl.SSLContext, file: str) -> None:
    """Refuse a file of CAs that have all expired, by this device's clock, before a broker is asked.

    For a person who looks: an agent goes on measuring, and may have a clock that is wrong.

    Raises:
        ConfigError: They have.
    """
    ends = [str(found["notAfter"]) for found in context.get_ca_certs()]
    if ends and all(ssl.cert_time_to_seconds(end) < time.time() for end in ends):
        raise ConfigError(f"broker.ca_file {file} has expired: {max(ends, key=ssl.cert_time_to_seconds)}")


def _today() -> str:
    return time.strftime("%Y-%m-%d")
