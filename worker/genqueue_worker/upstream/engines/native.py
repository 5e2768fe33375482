"""A text on TGI's native routes: the tokens of a stream, or an answer in one piece.

Pure but for the sink.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic_core import from_json, to_json

from genqueue.wire.chat import U64
from genqueue.wire.events import Token
from genqueue_worker.upstream.errors.answers import UNREADABLE, error_in, events_of, no_json, trouble, unreadable
from genqueue_worker.upstream.faults import UpstreamError
from genqueue_worker.upstream.fields import (
    Halves,
    encodable,
    integer,
    lost,
    number,
    odd_token,
    read_json,
    reason,
    text,
    token,
    tokens,
)
from genqueue_worker.upstream.sink import Sink


class NativeAnswer:
    """The answer to one prompt as its events come, or as a whole; each token goes to ``sink``.

    Attributes:
        generated_text: the whole text in the server's words; None before the end, and of a stream that breaks off.
        finish_reason: the server's word.
        prompt_tokens, completion_tokens: as the server counts them; None if it did not say.
        extra: ``seed``, ``prefill``, ``best_of_sequences``: each only if there is any.
        specials: the texts of the special tokens that came.
        lost: how many characters of the text are U+FFFD for readers, since their bytes or halves are none.
        strange: the first event that says something else than TGI's do.
    """

    def __init__(self, sink: Sink) -> None:
        self.specials: set[str] = set()
        self.strange: bytes | None = None
        self.lost = 0
        self.generated_text: str | None = None
        self.finish_reason: str | None = None
        self.prompt_tokens: int | None = None
        self.completion_tokens: int | None = None
        self.extra: dict[str, Any] = {}
        self._sink = sink
        self._halves: Halves | None = None

    @property
    def is_complete(self) -> bool:
        """Whether the server said that this is all."""
        return self.generated_text is not None

    def take(self, data: bytes) -> bool:
        """Push the token of one event of the stream, and hear its end.

        Returns:
            False for the end, which has the whole text.

        Raises:
            UpstreamError: the event is an error, or nobody can read it.
        """
        try:
            event = from_json(data)
            fields = event["token"]
            is_all = not (event.get("generated_text") is not None or "error" in event or event.get("top_tokens"))
            read = token(fields["id"], fields["text"], fields.get("logprob"), fields["special"]) if is_all else None
        except (ValueError, TypeError, KeyError, AttributeError):
            read = None
        if read is None or self._halves is not None:
            return self._take_more(data)
        if read.special:
            self.specials.add(read.text)
            self._sink.push(read, "")
        else:
            self._sink.push(read, read.text)
        return True

    def _take_more(self, data: bytes) -> bool:
        """As :meth:`take`, whatever the event is."""
        try:
            event = from_json(data)
        except ValueError:
            event = self._read_oddity(data)
        return event in _HEARTBEATS or self._take_event(event, data)

    def _take_event(self, event: Any, data: bytes) -> bool:
        try:
            error = error_in(event)
            read, top = (None, None) if error is not None else _read_token(event)
            end = None if error is not None or not _is_end(event, read) else _read_end(event)
        except UNREADABLE as wrong:
            raise UpstreamError(unreadable(trouble(wrong), data)) from None
        if error is not None:
            raise UpstreamError(error)
        if read is not None:
            self._push(read, top, is_last=end is not None)
        elif end is None and not self.strange and any(_says(name, value) for name, value in event.items()):
            self.strange = data
        if end is not None:
            self._sink.close()
            self._hear(end)
        return end is None

    def take_whole(self, body: bytes) -> None:
        """Push an answer that is no stream: an object, or a list whose first one counts.

        Raises:
            UpstreamError: it is an error, or nobody can read it.
        """
        try:
            events = events_of(body)
        except ValueError:
            raise UpstreamError(no_json(body)) from None
        if len(events) > 1 and isinstance(events[0], dict) and "token" in events[0]:  # a stream, though not as one
            self._halves = Halves()
            for event in events:
                if event not in _HEARTBEATS and not self._take_event(event, body):
                    return
            return
        try:
            answer = events[0]
            error = error_in(answer)
            if error is None:
                end, tokens = _read_end(answer), _tokens_of(answer)
        except (*UNREADABLE, IndexError) as wrong:
            raise UpstreamError(unreadable(trouble(wrong), body)) from None
        if error is not None:
            raise UpstreamError(error)
        self._halves = Halves()
        for place, read in enumerate(tokens, 1):
            self._push(read, None, is_last=place == len(tokens))
        self._hear(end)
        if self.extra:
            self._sink.keep(len(to_json(self.extra)))

    def _read_oddity(self, data: bytes) -> Any:
        """An event that the fast reader does not read: half a character is none for it."""
        try:
            event = read_json(data)
        except ValueError:
            raise UpstreamError(no_json(data)) from None
        self._halves = self._halves or Halves()
        return event

    def _push(self, read: Token, top: list[Token] | None, *, is_last: bool) -> None:
        piece = "" if read.special else read.text
        if read.special:
            self.specials.add(read.text)
        if self._halves is not None:
            piece = self._halves.take(piece) + (self._halves.rest() if is_last else "")
            self.lost += lost(piece)
        self._sink.push(read, piece, top)

    def _hear(self, end: "_End") -> None:
        self.generated_text = end.generated_text
        self.finish_reason = end.finish_reason
        self.prompt_tokens = end.prompt_tokens
        self.completion_tokens = end.completion_tokens
        self.extra = end.extra


class _End(NamedTuple):
    """What is said with the whole text; as :class:`NativeAnswer`."""

    generated_text: str
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    extra: dict[str, Any]


_HEARTBEATS: tuple[Any, ...] = (None, "", [])


def _says(name: str, value: Any) -> bool:
    """Whether a field of an event without a token is one of another dialect than TGI's, and not void."""
    return name not in {"type", "token", "details"} and isinstance(value, str | list | dict) and bool(value)


def _is_end(event: Mapping[str, Any], read: Token | None) -> bool:
    """Whether an event has the whole text; one that is void beside a text is a server's word for none yet."""
    whole = event.get("generated_text")
    if whole == "" and not event.get("details"):
        return read is None or read.special or not read.text
    return whole is not None


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _read_token(event: Mapping[str, Any]) -> tuple[Token | None, list[Token] | None]:
    """The token of an event and its alternatives; None for what there is not."""
    fields = event.get("token")
    if not fields:
        return None, None
    try:
        top = [odd_token(other) for other in _list(event.get("top_tokens"))]
    except (TypeError, KeyError, AttributeError):
        top = []
    return odd_token(fields), top or None


def _tokens_of(answer: Mapping[str, Any]) -> list[Token]:
    """The tokens of a whole answer; [] if it names none."""
    return [odd_token(fields) for fields in _list(_object(answer.get("details")).get("tokens"))]


def _read_end(answer: Mapping[str, Any]) -> _End:
    """What the last event, or a whole answer, says of the text."""
    if answer.get("generated_text") is None:
        raise TypeError("it has no generated_text")
    details = _object(answer.get("details"))
    extra: dict[str, Any] = {}
    if (seed := integer(details.get("seed"), U64)) is not None:
        extra["seed"] = seed
    if prefill := [_object(part) for part in _list(details.get("prefill"))]:
        extra["prefill"] = [
            [integer(part.get("id")), _text_or_none(part.get("text")), number(part.get("logprob"))] for part in prefill
        ]
    if others := [_object(other) for other in _list(details.get("best_of_sequences"))]:
        extra["best_of_sequences"] = [
            {"text": reply, "finish_reason": reason(other.get("finish_reason"))}
            for other in others
            if (reply := _text_or_none(other.get("generated_text"))) is not None
        ]
    return _End(
        encodable(text(answer["generated_text"])),
        reason(details.get("finish_reason")),
        tokens(details.get("input_length")),
        tokens(details.get("generated_tokens")),
        extra,
    )


def _text_or_none(value: Any) -> str | None:
    return encodable(value) if isinstance(value, str) else None
