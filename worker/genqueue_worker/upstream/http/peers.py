"""Whether the other end of a connection is still there, by the kernel's clocks.

A host that is gone and a process that reads nothing look alike for a while: nothing that is sent is taken.  The
kernel knows more, since the host of such a process answers its probes.  How long a process may take with a request
is no question of this module: the generator's own limits bound that.
"""

import asyncio
import socket
import struct
from dataclasses import dataclass

_LOOKS = 5
"""So often in a peer's patience is it looked at."""
_GRANTED_LOOKS = 4
"""Less than all: the kernel then asks as often, so that a peer that is there was heard within the whole."""
_INFO = struct.Struct("=24xI28xI60xQ16xI")
"""Of Linux's ``struct tcp_info``: tcpi_unacked, tcpi_last_ack_recv, tcpi_bytes_acked, tcpi_notsent_bytes."""
_IS_KNOWN = hasattr(socket, "TCP_INFO") and hasattr(socket, "TCP_USER_TIMEOUT")  # Linux


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a peer may be silent on the way, whatever it computes; whole seconds.

    A host that is gone answers no probe.  That of a process that is busy or frozen does: so this bounds neither a
    generation nor, on Linux, a request that such a process does not read.

    Attributes:
        idle_s: without a byte, then the kernel asks whether the peer is there.
        between_s: between two such questions.
        unheard_s: with no answer to them, or to what was sent, until the connection is given up.  Up to twice as
            long where the peer vanishes while it has no room for the rest of a request.
    """

    idle_s: int = 5
    between_s: int = 3
    unheard_s: int = 15


PATIENCE = Patience()


def set_clocks(opened: socket.socket, patience: Patience) -> None:
    """Have the kernel ask a silent peer whether it is there, and give it up."""
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    probes = max(1, (patience.unheard_s - patience.idle_s) // patience.between_s)
    for name, value in {  # macOS and Windows lack some
        "TCP_KEEPIDLE": patience.idle_s,
        "TCP_KEEPALIVE": patience.idle_s,
        "TCP_KEEPINTVL": patience.between_s,
        "TCP_KEEPCNT": probes,
        "TCP_USER_TIMEOUT": patience.unheard_s * 1000,
    }.items():
        if hasattr(socket, name):
            opened.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def borne_ms(patience: Patience, *, untaken_s: float, unheard_s: float) -> int:
    """How long, from its beginning, the kernel is to bear it that a peer takes nothing of what it is sent.

    Args:
        patience: with a peer that does not answer.
        untaken_s: since when the peer has taken nothing.
        unheard_s: since when it has acknowledged nothing, not even a probe.
    """
    is_there = unheard_s < patience.unheard_s
    granted_s = untaken_s + patience.unheard_s * _GRANTED_LOOKS / _LOOKS if is_there else 0.0
    return round(1000 * max(granted_s, patience.unheard_s))


class Watch:
    """Bears a peer that is there and does not read.

    Linux gives up a connection whose peer has had no room for TCP_USER_TIMEOUT, although the peer says so each time
    that it is asked.  So this limit is moved on while the peer answers.

    Args:
        loop: that of the connection.
        transport: of it.
        patience: with its peer.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, transport: asyncio.Transport, patience: Patience) -> None:
        self._loop = loop
        self._transport = transport
        self._socket: socket.socket = transport.get_extra_info("socket")
        self._patience = patience
        self._bearing_ms = patience.unheard_s * 1000
        self._taken_bytes = -1
        self._untaken_since_s = 0.0
        self._next: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Something is sent: look after it until all of it was taken."""
        if self._next is None and _IS_KNOWN:
            self._next = self._loop.call_later(self._patience.unheard_s / _LOOKS, self._look)

    def end(self) -> None:
        """The connection is over."""
        if self._next is not None:
            self._next.cancel()
            self._next = None

    def _look(self) -> None:
        self._next = None
        if self._transport.is_closing():
            return
        info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO.size)
        if len(info) < _INFO.size:  # an older kernel
            return
        in_flight, unheard_ms, taken_bytes, unsent_bytes = _INFO.unpack(info)
        now_s = self._loop.time()
        if taken_bytes != self._taken_bytes:
            self._taken_bytes, self._untaken_since_s = taken_bytes, now_s
        has_more = bool(in_flight or unsent_bytes or self._transport.get_write_buffer_size())
        untaken_s = now_s - self._untaken_since_s if has_more else 0.0
        bearing_ms = borne_ms(self._patience, untaken_s=untaken_s, unheard_s=unheard_ms / 1000)
        if bearing_ms != self._bearing_ms:
            self._bearing_ms = bearing_ms
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, bearing_ms)
        if has_more:
            self.begin()
