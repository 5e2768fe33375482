"""What a server says of an error, and what is said of an answer that nobody can read.

Pure.  An error comes with an HTTP status, or in an answer that HTTP calls a success: as an event of a stream, or
in place of one.  The words go to whoever asked, and to nobody else (:mod:`genqueue_worker.observe.report`).
"""

import json
import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

from genqueue_worker.upstream.errors.words import is_error, read_error
from genqueue_worker.upstream.faults import WEB_PAGE, UpstreamFacts
from genqueue_worker.upstream.fields import DONE, read_json, word

UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, RecursionError)
"""What reading raises of JSON that is of no shape we know; around nothing but reading."""
_MOST_SEEN_CHARACTERS = 200
_ANSWERS = frozenset({"choices", "token", "generated_text"})
"""One of these is in whatever event adds to an answer."""
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


_CHARSET = re.compile(r"charset\s*=\s*[\"']?([\w.:-]{1,40})", re.IGNORECASE | re.ASCII)
_CHARSETS = frozenset(
    {"iso-8859-1", "iso-8859-15", "latin1", "windows-1250", "windows-1251", "windows-1252", "koi8-r", "utf-16"}
    | {"gbk", "gb2312", "gb18030", "big5", "shift_jis", "euc-jp", "euc-kr"}
)
"""Of which one may be repeated; any other word is the server's own."""


def foreign_charset(content_type: str) -> str | None:
    """The charset that a content type declares, if it is not UTF-8, which event streams and JSON are in any case."""
    match = _CHARSET.search(content_type)
    name = match[1].lower() if match else "utf-8"
    if name in {"utf-8", "utf8", "us-ascii", "ascii"}:
        return None
    return name if name in _CHARSETS else "another charset"


def damage(lost: int, charset: str | None) -> dict[str, Any]:
    """What a result's meta says of characters that its server's bytes did not spell; {} if there is nothing to say."""
    if not lost and charset is None:
        return {}
    declared = f"the endpoint declares {charset}, and was read as UTF-8" if charset else None
    return {"lost_characters": {"count": lost, "why": declared or "the endpoint sent bytes or halves of no character"}}


def no_events(form: Form, body: bytes, content_type: str) -> UpstreamFacts:
    """Of an answer that is no model's: a page of a proxy or a login, or bare words.

    A page is the address's fault, but may pass: it is also what a proxy shows while its server restarts.
    """
    kind = word(content_type.partition(";")[0].strip(), 100) or "of no content type"
    if form is Form.PAGE:
        title = _TITLE.search(body)
        words = seen(title[1] if title else body)
        return UpstreamFacts(f"the server answers with a web page ({kind}): {words}", error_type=WEB_PAGE)
    return unreadable(f"it is no event stream ({kind})", body)


def unreadable(why: str, answer: bytes) -> UpstreamFacts:
    """Of a server that says what no model server would; ``answer`` is what was seen."""
    return UpstreamFacts(
        f"the server's answer is none of TGI's or OpenAI's: {why}; it says {seen(answer)}", error_type="generation"
    )


def no_json(event: bytes) -> UpstreamFacts:
    """Of an event that is none."""
    return UpstreamFacts(f"the stream is no JSON: {seen(event)}", error_type="generation")


def trouble(error: Exception) -> str:
    """What was wrong with an answer, by what reading it raised; a defect's own words would say nothing."""
    return str(error) if isinstance(error, TypeError | ValueError) else f"{type(error).__name__} in what it says"


def events_of(body: bytes) -> list[Any]:
    """The events of an answer that is no event stream: of one object, of a list, or of one in each line.

    A line of ``[DONE]`` is the last word, as JSON spells it.

    Raises:
        ValueError: it is no JSON.
    """
    try:
        parsed = read_json(body)
    except ValueError:
        lines = filter(None, map(bytes.strip, body.splitlines()))
        return [DONE.decode() if line == DONE else read_json(line) for line in lines]
    return parsed if isinstance(parsed, list) else [parsed]


def is_streamed(body: bytes, events: Sequence[Any]) -> bool:
    """Whether what :func:`events_of` found are lines of a stream, or one, so that others may be missing behind them."""
    if body.removeprefix(_BYTE_ORDER_MARK).lstrip().startswith(b"["):
        return False
    return len(events) > 1 or any(_is_piece(event) for event in events)


def _is_piece(event: object) -> bool:
    """Whether an event of OpenAI's dialect adds to an answer, and is none by itself."""
    choices = event.get("choices") if isinstance(event, Mapping) else None
    if not isinstance(choices, list):
        return False
    return any(isinstance(one, Mapping) and "delta" in one and not one.get("message") for one in choices)


def seen(answer: bytes) -> str:
    """The beginning of what a server said, in one line."""
    words = " ".join(answer[: 4 * _MOST_SEEN_CHARACTERS].decode("utf-8", "replace").split())
    return f"{words[:_MOST_SEEN_CHARACTERS]} …" if len(words) > _MOST_SEEN_CHARACTERS else words or "nothing"


def error_in(event: Any) -> UpstreamFacts | None:
    """The error that an event, or an answer, is; None if it is none.

    TGI has ``error`` and ``error_type`` beside each other, OpenAI an object in ``error``; others have it in
    other shapes (:mod:`genqueue_worker.upstream.errors.words`), which count only where nothing adds to an answer.

    Raises:
        TypeError: the event is no object.
    """
    if type(event) is not dict:
        raise TypeError("an event is no object")
    error = event.get("error")
    if error is None and (event.get("choices") or event.get("token")):
        return None
    is_answer = any(event.get(name) is not None for name in _ANSWERS)
    if error is None or error is False or (not error and is_answer):
        has_text = event.get("choices") or event.get("token") or event.get("generated_text") is not None
        if has_text or not is_error(event, may_be_empty=is_answer):
            return None
    return _facts(event)


def error_in_choice(choice: Mapping[str, Any], delta: Mapping[str, Any]) -> UpstreamFacts | None:
    """The error in one answer of an event, or in what it adds, as OpenRouter and its like have it; None if none is."""
    error = choice.get("error") or delta.get("error")
    return _facts({"error": error}) if error else None


def _facts(event: Mapping[str, Any]) -> UpstreamFacts:
    error = read_error(event)
    return UpstreamFacts(
        message=error.words or f"the server reports an error without words; it says {seen(_compact(event))}",
        status=error.status,
        error_type=error.error_type,
    )


def _compact(event: Mapping[str, Any]) -> bytes:
    return json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
