"""A certificate authority for one test, made with the `openssl` program: nothing of it lies in the repository."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

_CONFIG = """
[ca]
default_ca = own
[own]
database = {directory}/index.txt
new_certs_dir = {directory}
serial = {directory}/serial
default_md = sha256
policy = any
copy_extensions = copy
unique_subject = no
[any]
commonName = supplied
"""


@dataclass(frozen=True)
class Pair:
    """A certificate and its key."""

    cert: str
    key: str


class Authority:
    """A CA whose certificate is in `file`."""

    def __init__(self, directory: Path, name: str = "ca") -> None:
        if shutil.which("openssl") is None:
            pytest.skip("the openssl program is not installed")
        self._directory = directory / name
        self._directory.mkdir()
        (self._directory / "index.txt").touch()
        (self._directory / "serial").write_text("01")
        (self._directory / "ca.cnf").write_text(_CONFIG.format(directory=self._directory))
        self.file = str(self._directory / "ca.pem")
        _openssl(
            *("req", "-x509", *_NEW_KEY, "-keyout", self._path("ca.key"), "-out", self.file, "-days", "30"),
            *("-subj", f"/CN=evenfleet test {name}"),
        )

    def issue(self, name: str, *, names: str = "DNS:localhost,IP:127.0.0.1", expired: bool = False) -> Pair:
        """Return a new certificate."""
        request, cert, key = (self._path(f"{name}.{end}") for end in ("csr", "pem", "key"))
        subject = ("-subj", f"/CN={name}", "-addext", f"subjectAltName={names}")
        _openssl("req", *_NEW_KEY, "-keyout", key, "-out", request, *subject)
        span = ("20200101000000Z", "20200102000000Z") if expired else ("20200101000000Z", "20991231000000Z")
        _openssl(
            *("ca", "-batch", "-config", self._path("ca.cnf"), "-cert", self.file, "-keyfile", self._path("ca.key")),
            *("-in", request, "-out", cert, "-notext", "-startdate", span[0], "-enddate", span[1]),
        )
        return Pair(cert, key)

    def server(self, pair: Pair, *, asks: bool = False) -> ssl.SSLContext:
        """Return what a server shows; `asks` for a certificate of the other side, too."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pair.cert, pair.key)
        if asks:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self.file)
        return context

    def _path(self, name: str) -> str:
        return str(self._directory / name)


_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def _openssl(*arguments: str) -> None:
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
