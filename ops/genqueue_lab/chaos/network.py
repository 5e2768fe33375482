"""A network that can be made bad: a TCP proxy on 127.0.0.1 that delays, stalls, cuts, and leads elsewhere.

It moves bytes and knows nothing of them.  It has a loop in a thread of its own: whoever makes it
bad may be busy, and blocks it not.
"""

import asyncio
import random
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from genqueue.connection.shared import LoopThread

_BACKLOG = 4096
_HELD_BYTES = 1 << 20
"""As much as a slow direction holds; then its sender waits, as behind a full window of TCP's."""


@dataclass(frozen=True, slots=True)
class Weather:
    """How a network is.

    Attributes:
        delay_s: for how long a piece is on its way; half as long to half as long again, and in order.
        is_stalled: whether nothing arrives; what is sent meanwhile arrives later, if its connection lives.
        cut_after_bytes: each connection is reset after so many bytes from now, of which the dice choose; None: never.
    """

    delay_s: float = 0.0
    is_stalled: bool = False
    cut_after_bytes: tuple[int, int] | None = None


FAIR = Weather()


class Network:
    """The proxy; its methods may be called from any thread but its own.

    Attributes:
        port: where it listens, on 127.0.0.1.
        target_port: where it leads to.
        weather: how it is now.
    """

    def __init__(self, target_port: int, dice: random.Random) -> None:
        self.port = 0
        self.target_port = target_port
        self.weather = FAIR
        self.dice = dice
        self.pairs: set[_Pair] = set()
        self._thread = LoopThread("chaos network")
        self._server = self._thread.call(self._listen())

    async def _listen(self) -> asyncio.Server:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: _Pair(self).near, "127.0.0.1", 0, backlog=_BACKLOG)
        self.port = server.sockets[0].getsockname()[1]
        return server

    def change(self, weather: Weather) -> None:
        """Have another weather from now on."""
        self._do(self._change, weather)

    def lead_to(self, target_port: int) -> None:
        """Lead elsewhere from now on; what is open is reset."""
        self.target_port = target_port
        self.cut()

    def cut(self) -> None:
        """Reset whatever is open."""
        self._do(self._cut)

    def close(self) -> None:
        """Reset whatever is open, and listen no more."""
        self._thread.end(self._close())

    def _do(self, act: Callable[..., None], *arguments: Any) -> None:
        async def acting() -> None:
            act(*arguments)

        self._thread.call(acting())

    def _change(self, weather: Weather) -> None:
        self.weather = weather
        for pair in list(self.pairs):
            pair.weather_changed()

    def _cut(self) -> None:
        for pair in list(self.pairs):
            pair.reset()

    async def _close(self) -> None:
        self._server.close()
        self._cut()


@contextmanager
def network(target_port: int, dice: random.Random) -> Iterator[Network]:
    """A network for the length of a ``with`` block."""
    made = Network(target_port, dice)
    try:
        yield made
    finally:
        made.close()


class _Pair:
    """One connection to us, and the one that we make for it."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.near, self.far = _End(self), _End(self)
        self.near.other, self.far.other = self.far, self.near
        self._left_bytes = 0

    async def connect(self) -> None:
        """Make the other one; where nobody listens the first is reset, as nobody would have taken it."""
        loop = asyncio.get_running_loop()
        try:
            await loop.create_connection(lambda: self.far, "127.0.0.1", self.network.target_port)
        except OSError:
            self.reset()
            return
        if self.near.is_open:
            self.weather_changed()
            self.near.resume()
        else:
            self.reset()

    def weather_changed(self) -> None:
        """Count anew until the cut, and send what may go now."""
        self._left_bytes = self.network.dice.randint(*(self.network.weather.cut_after_bytes or (0, 0)))
        for end in (self.near, self.far):
            end.send_due()

    def passed(self, size_bytes: int) -> bool:
        """Count what came; whether the connection is still there."""
        self._left_bytes -= size_bytes
        if self.network.weather.cut_after_bytes is not None and self._left_bytes < 0:
            self.reset()
            return False
        return True

    def reset(self) -> None:
        """Reset both."""
        self.network.pairs.discard(self)
        for end in (self.near, self.far):
            end.reset()


class _End(asyncio.Protocol):
    """One end of a pair: what comes here is sent by the other."""

    other: "_End"

    def __init__(self, pair: _Pair) -> None:
        self._pair = pair
        self._transport: asyncio.Transport | None = None
        self._late: deque[tuple[float, bytes]] = deque()
        self._late_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._connecting: asyncio.Task[None] | None = None

    @property
    def is_open(self) -> bool:
        """Whether it is there."""
        return self._transport is not None and not self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if self is self._pair.near:
            transport.pause_reading()
            self._pair.network.pairs.add(self._pair)
            self._connecting = asyncio.ensure_future(self._pair.connect())

    def data_received(self, data: bytes) -> None:
        if self._pair.passed(len(data)):
            self.other.take(data)

    def eof_received(self) -> bool:
        self.other.take(b"")
        return True

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._late.clear()
        self.other.take(b"")

    def take(self, data: bytes) -> None:
        """Send what the other end got, when its time has come; b"" is its end."""
        weather = self._pair.network.weather
        due_s = asyncio.get_running_loop().time()
        if weather.delay_s:
            due_s += weather.delay_s * self._pair.network.dice.uniform(0.5, 1.5)
        self._late.append((due_s, data))
        self._late_bytes += len(data)
        if self._late_bytes > _HELD_BYTES:
            self.other.pause()
        self.send_due()

    def send_due(self) -> None:
        """Send what may go by now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._pair.network.weather.is_stalled or self._transport is None:
            return
        loop = asyncio.get_running_loop()
        while self._late:
            due_s, data = self._late[0]
            if due_s > loop.time():
                self._timer = loop.call_at(due_s, self.send_due)
                break
            self._late.popleft()
            self._late_bytes -= len(data)
            if data:
                self._transport.write(data)
            else:
                self._pair.network.pairs.discard(self._pair)
                self._transport.close()
                return
        if self._late_bytes <= _HELD_BYTES // 2:
            self.other.resume()

    def pause_writing(self) -> None:
        self.other.pause()

    def resume_writing(self) -> None:
        self.other.resume()

    def pause(self) -> None:
        """Take nothing more for now."""
        if self._transport is not None and self._transport.is_reading():
            self._transport.pause_reading()

    def resume(self) -> None:
        """Take more again."""
        if (transport := self._transport) is not None and not (transport.is_closing() or transport.is_reading()):
            transport.resume_reading()

    def reset(self) -> None:
        """End it by RST."""
        if self._transport is not None:
            connection: socket.socket = self._transport.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()
