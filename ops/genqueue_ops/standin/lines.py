"""What goes out on one connection: chunks, comments into silences, and the faults that break it."""

import asyncio
import socket
import struct

from aiohttp import web

from genqueue_ops.standin import journal, wire
from genqueue_ops.standin.http import STATUS_OF
from genqueue_ops.standin.protocol import (
    TgiError,
)
from genqueue_ops.standin.script import Fault

_DRIP_BYTES, _DRIP_S = 13, 0.001


class Cut(Exception):
    """A fault ends the connection."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.kind)
        self.fault = fault


class Line:
    """Writes chunks to one connection and comments into its silences.

    Writes go to the transport itself: of a token's cost, that saves a third.

    Args:
        request: whose connection it is.
        keep_alive_s: silence after which a comment is sent.
    """

    def __init__(self, request: web.Request, keep_alive_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport = request.transport
        self._keep_alive_s = keep_alive_s
        self._sent_at_s = self._loop.time()
        self.comments = True
        self.drips = False
        self._timer = self._loop.call_later(keep_alive_s, self._break_silence)

    def send(self, data: bytes) -> None:
        """Send one chunk, unless it is empty or the client has left."""
        transport = self._transport
        if data and transport is not None and not transport.is_closing():
            transport.write(wire.chunk(data))
            self._sent_at_s = self._loop.time()

    async def drip(self, data: bytes) -> None:
        """Send it in pieces of a few bytes, cut anywhere: also in the middle of a line, or of a character."""
        for start in range(0, len(data), _DRIP_BYTES):
            self.send(data[start : start + _DRIP_BYTES])
            await asyncio.sleep(_DRIP_S)

    def close(self) -> None:
        """No more comments."""
        self._timer.cancel()

    def _break_silence(self) -> None:
        keep_alive_s = self._keep_alive_s
        silent_s = self._loop.time() - self._sent_at_s
        if silent_s >= keep_alive_s * 0.999:
            if self.comments:
                self.send(wire.KEEP_ALIVE)
            silent_s = 0.0
        self._timer = self._loop.call_later(keep_alive_s - silent_s, self._break_silence)


async def abort(request: web.Request, *, reset: bool) -> None:
    """Send what is buffered, then close the connection without an end, by RST or by FIN."""
    transport: asyncio.Transport | None = request.transport  # uvloop's has no such base class
    if transport is None:
        return  # the client has left
    while transport.get_write_buffer_size() and not transport.is_closing():
        await asyncio.sleep(0.001)
    if reset:
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    else:
        transport.close()


async def fail_before_headers(request: web.Request, entry: journal.Entry, fault: Fault) -> web.StreamResponse | None:
    """Play a fault that comes before any header; None for one that comes later."""
    match fault.kind:
        case "refuse":
            entry.state = "failed"
            await abort(request, reset=True)
            return web.Response()
        case "status":
            await asyncio.sleep(fault.delay_s or 0.0)
            entry.state = "failed"
            if isinstance(fault.body, str):
                return web.Response(status=fault.status, text=fault.body, headers=fault.headers)
            return web.Response(
                status=fault.status,
                body=wire.json_bytes(fault.body),
                headers={"content-type": "application/json", **fault.headers},
            )
        case "slow_headers":
            await _sleep(fault.delay_s)
    return None


async def play(fault: Fault, line: Line | None) -> None:
    """A fault in the middle of the answer; ``line`` if it streams."""
    match fault.kind:
        case "error":
            raise TgiError(STATUS_OF.get(fault.error_type, 500), fault.error, fault.error_type)
        case "cut" | "close" | "reset":
            raise Cut(fault)
        case "stall":
            if line is not None:
                line.comments = fault.comments
            await _sleep(fault.delay_s)
            if line is not None:
                line.comments = True
        case "drip":
            if line is not None:
                line.drips = True


def break_off(fault: Fault, line: Line, event: bytes) -> None:
    """Send an event of which the second half is missing, with bytes of no text in its place, or nothing at all."""
    half = event[: len(event) // 2]
    if fault.kind == "half":
        line.send(half)
        raise Cut(fault)
    line.send(half + b"\xff\x00\xfe\n\n")


async def _sleep(delay_s: float | None) -> None:
    """Sleep; None is until the client leaves, which cancels the handler."""
    if delay_s is None:
        await asyncio.get_running_loop().create_future()
    else:
        await asyncio.sleep(delay_s)
