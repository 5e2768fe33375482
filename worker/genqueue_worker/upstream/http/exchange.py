"""One HTTP call as its caller sees it."""

import contextvars
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

MOST_UNASKED_BYTES = 1_000_000
_MOST_UNASKED_EVENTS = 1_000


class Answered(Exception):
    """Ends a call whose answer, in one piece, was read: huggingface_hub has nothing to add."""


async def _no_pause() -> None:
    pass


@dataclass
class Exchange:
    """One HTTP call as its caller sees it.

    Attributes:
        on_data: is given the data of each server-sent event; False if that was the last one.  huggingface_hub sees
            none of them.
        on_whole: is given an answer of JSON that is no event stream.
        is_whole: whether that is what was asked for; then Answered is raised behind it.
        after_read: awaited after each read; the caller's way to see what came of it, and to slow the server down.
        most_bytes: of one event, or of an answer that is none of events.
        most_events: of one answer.
        headers: the response's ``x-*`` headers, lower case; filled in when they come.
        charset: what the answer declares to be written in, if that is not UTF-8, which it is read as.
        is_answered: whether the server has accepted the call.
        traceparent: of the span that the server's own are to be children of, if there is one.
        more_fields: what the request's JSON says besides what huggingface_hub put there.
    """

    on_data: Callable[[bytes], bool]
    on_whole: Callable[[bytes], None]
    is_whole: bool = False
    after_read: Callable[[], Awaitable[None]] = _no_pause
    most_bytes: int = MOST_UNASKED_BYTES
    most_events: int = _MOST_UNASKED_EVENTS
    headers: dict[str, str] = field(default_factory=dict)
    charset: str | None = None
    is_answered: bool = False
    traceparent: str | None = None
    more_fields: Mapping[str, Any] = field(default_factory=dict)


current_exchange: contextvars.ContextVar[Exchange | None] = contextvars.ContextVar("current_exchange")
"""Of the call that is made; None, or none, where no caller listens."""


@contextmanager
def exchanging() -> Iterator[None]:
    """Around a call, which may set its exchange: what comes behind it, or runs beside it, has none of that."""
    token = current_exchange.set(None)
    try:
        yield
    finally:
        current_exchange.reset(token)
