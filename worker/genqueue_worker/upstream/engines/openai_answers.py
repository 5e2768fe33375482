"""An answer in OpenAI's dialect, chat or text: which of its bytes are events, and which are its last word.

Pure.  What an event says is for :mod:`genqueue_worker.upstream.engines.chats` and
:mod:`genqueue_worker.upstream.engines.completions`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from pydantic_core import from_json

from genqueue_worker.upstream.errors.answers import events_of, is_streamed, no_json
from genqueue_worker.upstream.faults import UpstreamError
from genqueue_worker.upstream.fields import DONE, Halves, read_json
from genqueue_worker.upstream.sink import Sink

_DONE_SPELT = DONE.decode()
"""The last word, as those say it who make JSON of all that they send."""


class OpenAIAnswer(ABC):
    """The answer to one call as its events come, or as a whole.

    Args:
        sink: takes it.
        plain_text: gives the text of an event that says nothing else, and None of any other.

    Attributes:
        is_odd: whether there was JSON that the fast reader does not read: half a character may be in it.
    """

    is_odd = False

    def __init__(self, sink: Sink, plain_text: Callable[[Any], str | None]) -> None:
        self._sink = sink
        self._plain_text = plain_text
        self._halves = Halves()  # of the text
        self._came = False

    def take(self, data: bytes) -> bool:
        """Push what one event of the stream adds; most are one plain text.

        Returns:
            False for the stream's last word, ``[DONE]``.

        Raises:
            UpstreamError: the event is an error, or nobody can read it.
        """
        try:
            event = from_json(data)
        except ValueError:
            return self._take_odd(data)
        plain = self._plain_text(event)
        if plain is None or self._halves.waits:
            return self._take_all(event, data)
        self._came = True
        self._sink.push_delta(plain)
        return True

    def _take_odd(self, data: bytes) -> bool:
        """As :meth:`take`, of what the fast reader does not read."""
        self.is_odd = True
        try:
            event = read_json(data)
        except ValueError:
            if data.strip() != DONE:
                raise UpstreamError(no_json(data)) from None
            self._end()
            return False
        return self._take_all(event, data)

    def _take_all(self, event: Any, data: bytes) -> bool:
        """As :meth:`take`, of its JSON: one event, several, or none (a heartbeat)."""
        for each in event if isinstance(event, list) else [event]:
            if each == _DONE_SPELT:
                self._end()
                return False
            if each is not None and each != "":
                self._take(each, data)
        return True

    def take_whole(self, body: bytes) -> None:
        """Push an answer that is no event stream, though one was asked for: one object, or several.

        One that ends as JSON is whole.  Lines of events are not: they may have broken off behind any of them, so
        they need the word of an end that a stream needs.

        Raises:
            UpstreamError: it is an error, or nobody can read it.
        """
        self.is_odd = True
        try:
            events = events_of(body)
        except ValueError:
            raise UpstreamError(no_json(body)) from None
        if self._take_all(events, body) and not is_streamed(body, events):
            self._end_whole()

    @abstractmethod
    def _take(self, event: Any, data: bytes) -> None:
        """Read an event, then push what it adds; ``data`` is what is shown of one that nobody can read."""

    @abstractmethod
    def _end(self) -> None:
        """The last word was said."""

    def _end_whole(self) -> None:
        """An answer in one piece was read."""
        self._end()
