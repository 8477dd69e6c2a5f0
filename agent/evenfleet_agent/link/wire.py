"""The socket under the MQTT client: TCP, or TLS over it, with every byte counted and the day's budget held.

TLS is done here, in memory, and not by a socket that OpenSSL wraps: so the bytes that are counted are those of the socket,
handshake and records included, and none goes out that the budget does not allow.

* What `purse` does not allow is neither sent nor read.
* The client is given whole what `frames` lets through, and nothing else.
"""

from __future__ import annotations

import fcntl
import select
import socket
import struct
import termios
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from evenfleet_agent.link.frames import PINGREQ, PINGRESP, Frames
from evenfleet_agent.link.purse import Purse

if TYPE_CHECKING:
    from ssl import SSLContext, SSLObject

CONNECT_TIMEOUT_S: Final = 10.0
_READ_BYTES: Final = 16_384
_LAST_WORDS_S: Final = 1.0
# What a broker can make the kernel take before it is read, without and with a budget. The kernel doubles it.
_BUFFER_BYTES: Final = 65_536
SMALL_BUFFER_BYTES: Final = 8192


class BudgetError(ConnectionError):
    """The day's bytes are used up."""


class Wire:
    """One connection; it belongs to the thread that made it.

    `heard_s` is when the broker was last heard, in monotonic seconds, `ping_s` how long its last answer to a ping took.
    `ended` says that the broker closed it, `trouble` what else ended it, if that is known. `spent` says that the budget lets nothing more be read, and `last` that
    what is sent from now on are last words.
    """

    def __init__(self, sock: socket.socket, purse: Purse, kept_bytes: int) -> None:
        self._sock = sock
        self._purse = purse
        self._tls: SSLObject | None = None
        self._plain = bytearray()
        self._leftover = b""
        self.ended = False
        self._pinged_s: float | None = None
        self.frames = Frames()
        self.sent_bytes = 0
        self.received_bytes = 0
        self.heard_s = time.monotonic()
        self.ping_s: float | None = None
        self.trouble: OSError | None = None
        self.spent = False
        self.last = False
        with purse.lock:
            purse.allowance.opened(sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF), kept_bytes)

    @classmethod
    def connect(
        cls, address: tuple[str, int], *, context: SSLContext | None, purse: Purse, kept_bytes: int
    ) -> tuple[Wire, OSError | None]:
        """Connect to the first of the host's addresses that answers, and agree on TLS if there is a context.

        Returns:
            The wire, closed if TLS was not agreed on, and why not.

        Raises:
            OSError: Nobody answers.
        """
        failure: OSError | None = None
        for family, kind, protocol, _, to in socket.getaddrinfo(*address, type=socket.SOCK_STREAM):
            sock = socket.socket(family, kind, protocol)
            try:
                buffer_bytes = _BUFFER_BYTES if purse.allowance.budget_bytes is None else SMALL_BUFFER_BYTES
                # Before connecting, or the window's scale is agreed on already.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
                sock.settimeout(CONNECT_TIMEOUT_S)
                sock.connect(to)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError as error:
                failure = error
                sock.close()
                continue
            wire = cls(sock, purse, kept_bytes)
            try:
                if context is not None:
                    wire._agree(context, address[0])
                sock.setblocking(False)
            except OSError as error:
                wire.close()
                return wire, error
            return wire, None
        raise failure or OSError(f"{address[0]} has no address")

    # What the MQTT client calls: a socket's methods, and no more of them than it needs.

    def fileno(self) -> int:
        return self._sock.fileno()

    def setblocking(self, flag: bool) -> None:
        """Stay as it is: never blocking."""

    def pending(self) -> int:
        return len(self._plain)

    def recv(self, size: int) -> bytes:
        if not self._plain and not self.ended:
            self._read()
        if not self._plain:
            if self.ended:
                return b""
            raise BlockingIOError
        piece = bytes(self._plain[:size])
        del self._plain[:size]
        return piece

    def send(self, data: bytes) -> int:
        self.flush()
        if self._leftover:
            raise BlockingIOError
        if data and data[0] >> 4 == PINGREQ and len(data) == 2:
            self._pinged_s = time.monotonic()
        if self._tls is None:
            return self._send(data)
        self._tls.write(data)
        self._leftover = self._out.read()
        self.flush()
        # OpenSSL has it: what the kernel does not take yet is ours to send.
        return len(data)

    def close(self) -> None:
        if self._sock.fileno() < 0:
            return
        if self.last:
            self._await_end()
        unread = bytearray(4)
        fcntl.ioctl(self._sock, termios.FIONREAD, unread)
        with self._purse.lock:
            self._purse.allowance.closed(struct.unpack("i", unread)[0])
        self._sock.close()

    # What the session calls.

    @property
    def waits(self) -> bool:
        """Return whether something is left that the kernel did not take."""
        return bool(self._leftover)

    def flush(self) -> None:
        """Send what is left."""
        try:
            while self._leftover:
                self._leftover = self._leftover[self._send(self._leftover) :]
        except BlockingIOError:
            pass

    def _send(self, data: bytes) -> int:
        now_s = time.monotonic()
        with self._purse.lock:
            if not self._purse.allowance.may_send(len(data), now_s, last=self.last):
                raise self._fail(BudgetError("the day's budget of bytes is used up"))
            self._purse.cover(len(data), now_s)
        try:
            sent = self._sock.send(data)
        except BlockingIOError:
            raise
        except OSError as error:
            raise self._fail(error) from None
        self.sent_bytes += sent
        with self._purse.lock:
            self._purse.allowance.spend(sent)
        return sent

    def _read(self) -> None:
        """Read once, and give on what of it the client shall have."""
        raw = self._read_raw()
        if self._tls is None:
            plain = raw
            self.ended = not raw
        else:
            plain = self._decrypt(raw)
        pongs = self.frames.packets.get(PINGRESP, 0)
        try:
            self._plain += self.frames.feed(plain)
        except OSError as error:
            raise self._fail(error) from None
        if self._pinged_s is not None and self.frames.packets.get(PINGRESP, 0) > pongs:
            self.ping_s, self._pinged_s = time.monotonic() - self._pinged_s, None

    def _read_raw(self) -> bytes:
        now_s = time.monotonic()
        with self._purse.lock:
            allowed = self._purse.allowance.may_receive(now_s)
            size = _READ_BYTES if allowed is None else min(_READ_BYTES, allowed)
            if size == 0:
                # There is still room for a last word: not an error, but nothing to read either.
                self.spent = True
                raise BlockingIOError
            self._purse.cover(size, now_s)
        try:
            raw = self._sock.recv(size)
        except BlockingIOError:
            raise
        except OSError as error:
            raise self._fail(error) from None
        if raw:
            self.heard_s = time.monotonic()
        self.received_bytes += len(raw)
        with self._purse.lock:
            self._purse.allowance.spend(len(raw))
        return raw

    def _await_end(self) -> None:
        """Let the broker read the last words: closed with something unread, the kernel would take them back."""
        with suppress(OSError):
            self.flush()
            self._sock.shutdown(socket.SHUT_WR)
            poll = select.poll()
            poll.register(self._sock, select.POLLRDHUP)
            poll.poll(_LAST_WORDS_S * 1000)

    def _fail(self, error: OSError) -> OSError:
        self.trouble = self.trouble or error
        return error

    # TLS

    def _agree(self, context: SSLContext, host: str) -> None:
        import ssl

        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_hostname=host)
        deadline_s = time.monotonic() + CONNECT_TIMEOUT_S
        while not self._has_agreed(deadline_s):
            if time.monotonic() > deadline_s:
                raise TimeoutError("the TLS handshake does not end")
            self._feed(self._read_raw())

    def _has_agreed(self, deadline_s: float) -> bool:
        import ssl

        assert self._tls is not None
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._send_all(deadline_s)
            return False
        except ssl.SSLError:
            # The broker is told, too, what is wrong with its certificate.
            with suppress(OSError):
                self._send_all(deadline_s)
            raise
        self._send_all(deadline_s)
        return True

    def _send_all(self, deadline_s: float) -> None:
        self._leftover += self._out.read()
        self._sock.settimeout(max(0.1, deadline_s - time.monotonic()))
        while self._leftover:
            self._leftover = self._leftover[self._send(self._leftover) :]

    def _feed(self, raw: bytes) -> None:
        if raw:
            self._in.write(raw)
        else:
            self._in.write_eof()

    def _decrypt(self, raw: bytes) -> bytes:
        import ssl

        assert self._tls is not None
        self._feed(raw)
        plain = bytearray()
        try:
            while piece := self._tls.read(_READ_BYTES):
                plain += piece
            self.ended = True
        except ssl.SSLWantReadError:
            self.ended = not raw
        except ssl.SSLZeroReturnError:
            self.ended = True
        except ssl.SSLEOFError:
            self.ended = True
        except ssl.SSLError as error:
            raise self._fail(error) from None
        # A renewed key is answered at once.
        self._leftover += self._out.read()
        self.flush()
        return bytes(plain)
