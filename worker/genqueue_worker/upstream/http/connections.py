"""The connections below the transport: their bounds, their deaths, and what is this host's lack.

aiohttp reads over interim answers (1xx) for as long as they come, sends a call again only where its method is
idempotent, and never asks whether a silent peer is still there.  Here each connection has a bound, a clock of the
kernel's (``peers.py``), and knows whether it was used before.
"""

import asyncio
import errno
import functools
import logging
import os
import re
import socket
import ssl
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import aiohttp
import httpx2
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import RawResponseMessage
from aiohttp.streams import StreamReader

from genqueue_worker.resources import upstream_socket
from genqueue_worker.upstream.http.peers import Patience, Watch, set_clocks

logger = logging.getLogger(__name__)

_MOST_INTERIM_ANSWERS = 32
_MOST_FRAMING_BYTES = 256 * 1024
_FRAMING_PER_BYTE = 32
"""An answer is heads, sizes of chunks and trailers beside its body: so many bytes of them, and so many for each."""
_KEEP_ALIVE_S = 30.0
_RECEIVE_BUFFER_BYTES = 64 * 1024
"""So much of an answer, at most, comes in one go: other connections have their turn before more of it is read."""


@dataclass(slots=True)
class Sending:
    """One request on its way.

    ``handler``: of the connection that it went out on; None before it has one.
    """

    handler: "Handler | None" = None

    def is_stale(self, error: Exception) -> bool:
        """Whether a used connection was found closed, and nothing of an answer but interim ones had come.

        RFC 9112, 9.3.1, lets a client send a request again by itself if its method is idempotent; RFC 9110, 9.2.2,
        also if it knows that its meaning is.  A generation changes nothing on its endpoint, and is sent again in
        any case when its attempt fails.  The cost: where the endpoint had begun and died of it, it computes twice.
        """
        handler = self.handler
        is_timeout = isinstance(error, TimeoutError) and getattr(error, "errno", None) != errno.ETIMEDOUT
        return handler is not None and self.is_reused and not handler.has_answered and not is_timeout

    @property
    def is_reused(self) -> bool:
        """Whether it went out on a connection of an earlier call."""
        return self.handler is not None and self.handler.calls > 1


_sending: ContextVar[Sending] = ContextVar("sending")


@contextmanager
def sending() -> Iterator[Sending]:
    """Around one request: tells which connection it goes out on."""
    request = Sending()
    token = _sending.set(request)
    try:
        yield request
    finally:
        _sending.reset(token)


class FloodError(aiohttp.ClientError):
    """An endpoint sends without end what is no part of an answer's body."""


class Handler(ResponseHandler):
    """aiohttp's side of one connection.

    Args:
        loop: that of the session.
        patience: with a peer that does not answer.

    Attributes:
        calls: how many requests went out on it.
        has_answered: whether any byte came since the last of them that is of no interim answer.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, patience: Patience) -> None:
        super().__init__(loop)
        self._patience = patience
        self._watch: Watch | None = None
        self.calls = 0
        self.has_answered = False
        self._interim_answers = 0
        self._is_answered = True  # no answer is due
        self._received_bytes = 0
        self._weighed_at_bytes = _MOST_FRAMING_BYTES

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        super().connection_made(transport)
        assert self.transport is not None
        self._watch = Watch(self._loop, self.transport, self._patience)

    def connection_lost(self, exc: BaseException | None) -> None:
        """End."""
        if self._watch is not None:
            self._watch.end()
        super().connection_lost(exc)

    def set_response_params(self, **parameters: Any) -> None:
        """A request goes out."""
        if self._watch is not None:
            self._watch.begin()
        self.calls += 1
        self.has_answered = self._is_answered = False
        self._interim_answers = self._received_bytes = 0
        self._weighed_at_bytes = _MOST_FRAMING_BYTES
        request = _sending.get(None)
        if request is not None:
            request.handler = self
        super().set_response_params(**parameters)

    def data_received(self, data: bytes) -> None:
        """Read what came."""
        self.has_answered = True
        self._received_bytes += len(data)
        if self._received_bytes > self._weighed_at_bytes:
            self._weighed_at_bytes = self._received_bytes + _MOST_FRAMING_BYTES
            body_bytes = 0 if self._payload is None else getattr(self._payload, "total_bytes", 0)
            if self._received_bytes - len(data) > _MOST_FRAMING_BYTES + (1 + _FRAMING_PER_BYTE) * body_bytes:
                self._give_up("more beside its answer than the answer has")
                return
        super().data_received(data)
        if not self.has_answered and not data.endswith((b"\n\r\n", b"\n\n")):  # something stands behind an interim one
            self.has_answered = True

    def feed_data(self, data: tuple[RawResponseMessage, StreamReader], size: int = 0) -> None:
        """Take the head of an answer: one, and few interim ones before it."""
        if self._is_answered:
            self._give_up("answers that nobody asked for")
            return
        if 100 <= data[0].code < 200:
            self._interim_answers += 1
            self.has_answered = data[0].code == HTTPStatus.SWITCHING_PROTOCOLS  # the last one, whatever its number
            if self._interim_answers > _MOST_INTERIM_ANSWERS:
                self._give_up(f"more than {_MOST_INTERIM_ANSWERS} interim answers")
                return
        else:
            self._is_answered = True
        super().feed_data(data, size)

    def _give_up(self, what: str) -> None:
        transport = self.transport
        if transport is not None and not transport.is_closing():
            self.force_close()
            error = FloodError(f"the server sends {what}")
            self.set_exception(error)
            if self._payload is not None:
                self._payload.set_exception(error)
            transport.abort()


class _Connector(aiohttp.TCPConnector):
    """aiohttp's pool, with our handlers; no limit: how many calls run at once is the worker's concurrency."""

    def __init__(self, patience: Patience, context: ssl.SSLContext, *, is_pool: bool) -> None:
        super().__init__(
            limit=0,
            ssl=context,
            socket_factory=functools.partial(_open_socket, patience),
            **({"keepalive_timeout": _KEEP_ALIVE_S} if is_pool else {"force_close": True}),
        )
        assert isinstance(self._factory, functools.partial)
        assert self._factory.func is ResponseHandler, "aiohttp makes its connections another way"
        handler: Callable[..., ResponseHandler] = Handler
        self._factory = functools.partial(handler, self._loop, patience)


def open_session(patience: Patience, context: ssl.SSLContext, *, is_pool: bool) -> aiohttp.ClientSession:
    """Open a session whose connections are used again, or (``is_pool`` is False) once each."""
    return aiohttp.ClientSession(
        connector=_Connector(patience, context, is_pool=is_pool),
        auto_decompress=False,  # httpx2 does
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
        timeout=aiohttp.ClientTimeout(total=None),
    )


def _open_socket(patience: Patience, address: Any) -> socket.socket:
    opened = upstream_socket(address)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
        set_clocks(opened, patience)
    except OSError:
        opened.close()
        raise
    return opened


def tls_context() -> ssl.SSLContext:
    """httpx2's context, with every certificate read: OpenSSL opens those of a directory at each handshake.

    Like OpenSSL, it passes over what is no certificate.
    """
    context = httpx2.create_ssl_context()
    if context.cert_store_stats()["x509_ca"] == 0:
        folders = os.environ.get("SSL_CERT_DIR") or ssl.get_default_verify_paths().openssl_capath
        for path in _certificates(folders.split(os.pathsep)):
            try:
                context.load_verify_locations(cafile=path)
            except OSError as error:
                logger.warning("no certificate is read from %s: %s", path, error)
    return context


def _certificates(folders: Iterable[str]) -> Iterator[Path]:
    for folder in folders:
        try:
            paths = sorted(Path(folder).iterdir())
        except OSError as error:
            logger.warning("no certificates are read from %s: %s", folder, error)
            continue
        yield from (path for path in paths if re.fullmatch(r"[0-9a-fA-F]{8}\.[0-9]+", path.name))
