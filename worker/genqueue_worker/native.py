"""A text on TGI's native routes: the tokens of a stream, or an answer in one piece.

Pure but for the sink.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic_core import from_json, to_json

from genqueue.chat import U64
from genqueue.messages import Token
from genqueue_worker.answers import Halves, encodable, integer, number, read_json, text, token, word
from genqueue_worker.server_errors import UNREADABLE, error_in, events_of, no_json, trouble, unreadable
from genqueue_worker.sink import Sink
from genqueue_worker.transport import UpstreamError


class NativeAnswer:
    """The answer to one prompt as its events come, or as a whole; each token goes to ``sink``.

    Attributes:
        generated_text: the whole text in the server's words; None before the end, and of a stream that breaks off.
        finish_reason: the server's word.
        prompt_tokens, completion_tokens: as the server counts them; None if it did not say.
        extra: ``seed``, ``prefill``, ``best_of_sequences``: each only if there is any.
        specials: the texts of the special tokens that came.
    """

    def __init__(self, sink: Sink) -> None:
        self.specials: set[str] = set()
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
            said = event["token"]
            is_all = not (event.get("generated_text") is not None or "error" in event or event.get("top_tokens"))
            read = token(said["id"], said["text"], said.get("logprob"), said["special"]) if is_all else None
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
        try:
            error = error_in(event)
            read, top = (None, None) if error is not None else _read_token(event)
            end = None if error is not None or event.get("generated_text") is None else _read_end(event)
        except UNREADABLE as wrong:
            raise UpstreamError(unreadable(trouble(wrong), data)) from None
        if error is not None:
            raise UpstreamError(error)
        if read is not None:
            self._push(read, top)
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
            for event in events:
                self.take(to_json(event))
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
        for read in tokens:
            self._push(read, None)
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

    def _push(self, read: Token, top: list[Token] | None) -> None:
        said = "" if read.special else read.text
        if read.special:
            self.specials.add(read.text)
        if self._halves is not None:
            said = self._halves.take(said)
        self._sink.push(read, said, top)

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


def _token(said: Mapping[str, Any]) -> Token:
    return token(said["id"], said["text"], said.get("logprob"), said["special"])


def _read_token(event: Mapping[str, Any]) -> tuple[Token | None, list[Token] | None]:
    """The token of an event and its alternatives; None for what there is not."""
    said = event.get("token")
    if said is None:
        return None, None
    top = event.get("top_tokens")
    return _token(said), [_token(other) for other in top] if top else None


def _tokens_of(answer: Mapping[str, Any]) -> list[Token]:
    """The tokens of a whole answer; [] if it names none."""
    return [_token(said) for said in (answer.get("details") or {}).get("tokens") or ()]


def _read_end(answer: Mapping[str, Any]) -> _End:
    """What the last event, or a whole answer, says of the text."""
    if answer.get("generated_text") is None:
        raise TypeError("it has no generated_text")
    details = answer.get("details") or {}
    extra: dict[str, Any] = {}
    if (seed := integer(details.get("seed"), U64)) is not None:
        extra["seed"] = seed
    if prefill := details.get("prefill"):
        extra["prefill"] = [
            [integer(part["id"]), encodable(text(part["text"])), number(part.get("logprob"))] for part in prefill
        ]
    if others := details.get("best_of_sequences"):
        extra["best_of_sequences"] = [
            {"text": encodable(text(other["generated_text"])), "finish_reason": word(other.get("finish_reason"))}
            for other in others
        ]
    return _End(
        encodable(text(answer["generated_text"])),
        word(details.get("finish_reason")),
        integer(details.get("input_length")),
        integer(details.get("generated_tokens")),
        extra,
    )
