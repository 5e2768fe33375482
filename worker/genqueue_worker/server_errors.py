"""What a server says of an error, and what is said of an answer that nobody can read.

Pure.  An error comes with an HTTP status, or in an answer that HTTP calls a success: as an event of a stream, or
in place of one.  The words go to whoever asked, and to nobody else (:mod:`genqueue_worker.report`).
"""

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from genqueue_worker.answers import integer, read_json, word
from genqueue_worker.policy import UpstreamFacts

UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, RecursionError)
"""What reading raises of JSON that is of no shape we know; around nothing but reading."""
_MOST_ERROR_CHARACTERS = 2000
_MOST_SEEN_CHARACTERS = 200
_ANSWERS = frozenset({"choices", "token", "generated_text"})
"""One of these is in whatever event adds to an answer."""
_SAYS = ("message", "detail", "error_message", "msg", "errors")
"""Where servers put an error's words, if not under ``error``."""
_TITLE = re.compile(rb"<title[^>]*>(.*?)</title", re.IGNORECASE | re.DOTALL)


class Form(StrEnum):
    """What an answer with a status of success is made of, by its first bytes."""

    EVENTS = "events"
    JSON = "json"
    PAGE = "page"
    TEXT = "text"


_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_FIELDS = (b"data:", b"event:", b"error:", b"id:", b"retry:", b":")
"""How a line of an event stream begins."""


def form_of(beginning: bytes, content_type: str) -> Form | None:
    """What an answer that begins so is; None if more of it is needed.

    Servers send event streams under any content type, and errors and whole answers as event streams.
    """
    seen = beginning.removeprefix(_BYTE_ORDER_MARK).lstrip()
    if not seen or _BYTE_ORDER_MARK.startswith(seen):
        return None
    if seen[:1] in b"{[":
        return Form.JSON
    if seen[:1] == b"<":
        return Form.PAGE
    if "event-stream" in content_type.lower() or seen.startswith(_FIELDS):
        return Form.EVENTS
    return None if any(field.startswith(seen) for field in _FIELDS) else Form.TEXT


def no_events(form: Form, body: bytes, content_type: str) -> UpstreamFacts:
    """Of an answer that is no model's: a page of a proxy or a login, or bare words.

    A page is the address's fault, as a redirect to it would be.
    """
    kind = word(content_type.partition(";")[0].strip(), 100) or "of no content type"
    if form is Form.PAGE:
        title = _TITLE.search(body)
        said = seen(title[1] if title else body)
        return UpstreamFacts(f"the server answers with a web page ({kind}): {said}", error_type="web_page")
    return unreadable(f"it is no event stream ({kind})", body)


def unreadable(why: str, said: bytes) -> UpstreamFacts:
    """Of a server that says what no model server would; ``said`` is what was seen."""
    return UpstreamFacts(
        f"the server's answer is none of TGI's or OpenAI's: {why}; it says {seen(said)}", error_type="generation"
    )


def no_json(said: bytes) -> UpstreamFacts:
    """Of an event that is none."""
    return UpstreamFacts(f"the stream is no JSON: {seen(said)}", error_type="generation")


def trouble(error: Exception) -> str:
    """What was wrong with an answer, by what reading it raised; a defect's own words would say nothing."""
    return str(error) if isinstance(error, TypeError | ValueError) else f"{type(error).__name__} in what it says"


def events_of(body: bytes) -> list[Any]:
    """The events of an answer that is no event stream: of one object, of a list, or of one in each line.

    Raises:
        ValueError: it is no JSON.
    """
    try:
        said = read_json(body)
    except ValueError:
        return [read_json(line) for line in body.splitlines() if line.strip()]
    return said if isinstance(said, list) else [said]


def seen(said: bytes) -> str:
    """The beginning of what a server said, in one line."""
    words = " ".join(said[: 4 * _MOST_SEEN_CHARACTERS].decode("utf-8", "replace").split())
    return f"{words[:_MOST_SEEN_CHARACTERS]} …" if len(words) > _MOST_SEEN_CHARACTERS else words or "nothing"


def error_in(event: Any) -> UpstreamFacts | None:
    """The error that an event, or an answer, is; None if it is none.

    TGI has ``error`` and ``error_type`` beside each other, OpenAI an object in ``error``; vLLM had it at the top once.

    Raises:
        TypeError: the event is no object.
    """
    if type(event) is not dict:
        raise TypeError("an event is no object")
    error = event.get("error")
    if error is None and ("choices" in event or "token" in event):
        return None
    if error is None or error is False or (not error and _ANSWERS & event.keys()):
        if _ANSWERS & event.keys() or not any(_has_words(event.get(name)) for name in _SAYS):
            return None
        error = event
    return in_stream_error(error, event.get("error_type"))


def in_stream_error(error: object, error_type: object = None) -> UpstreamFacts:
    """The facts of an error, its words or an object, in an answer that HTTP calls a success."""
    said = error if isinstance(error, Mapping) else {"message": error}
    words, inner_type = words_of(said)
    statuses = (_status(said.get(name)) for name in ("code", "http_status_code", "status"))
    return UpstreamFacts(
        message=words or "the server reports an error without words",
        status=next((status for status in statuses if status is not None), None),
        error_type=word(error_type) or inner_type,
    )


def _status(value: object) -> int | None:
    """An HTTP status, as a number or spelt; None for every other code."""
    if isinstance(value, str) and value.isascii() and value.isdecimal():
        value = int(value[:4])
    status = integer(value, 599)
    return status if status is not None and status >= 100 else None


def words_of(said: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """(words, type) of an error object; None for what it does not say."""
    found = next((said[name] for name in _SAYS if _has_words(said.get(name))), None)
    inner = found[0] if isinstance(found, list) else found
    if isinstance(inner, Mapping):  # FastAPI's, JSON:API's
        found = next((inner[name] for name in ("message", "msg", "detail", "title") if inner.get(name)), inner)
    elif not isinstance(found, str | None):
        found = str(found)
    words = word(found if isinstance(found, str | None) else str(found), _MOST_ERROR_CHARACTERS)
    return words, word(said.get("type")) or word(said.get("error_type"))


def _has_words(value: object) -> bool:
    return isinstance(value, str | list) and bool(value)
