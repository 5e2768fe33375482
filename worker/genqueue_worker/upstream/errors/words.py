"""What the JSON of an error says: its words, its type and its HTTP status, in whichever shape a server has them.

Pure.  Engines, gateways and providers agree on no shape: FastAPI has ``detail``, Apigee ``fault.faultstring``, AWS
``Message``, OAuth ``error_description``, RFC 9457 ``title`` and ``status``, Cloudflare ``success`` and ``errors``,
MiniMax ``base_resp``.  So names are compared without case and underscores, and looked for in whatever an error is
wrapped in.
"""

import re
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any, NamedTuple

from genqueue_worker.upstream.faults import SPENT_TYPES
from genqueue_worker.upstream.fields import encodable, integer, word

_MOST_CHARACTERS = 2000
_MOST_DEPTH = 6
_MOST_OF_A_LIST = 10
_MOST_NAME_CHARACTERS = 40

_TEXTS = ("message", "msg", "errormessage", "errormsg", "errmsg", "statusmsg", "httpmessage", "errordescription")
_WRAPPED = ("detail", "details", "errors", "error", "err", "fault", "faultstring", "exception", "baseresp", "response")
_LAST = ("description", "reason", "moreinformation", "title")
_WORDS = (*_TEXTS, *_WRAPPED, *_LAST)
"""Where the words are, the best first."""
_SPEAK = frozenset({"message", "msg", "detail"})
"""Words under one of these make an event an error, if it adds nothing to an answer."""
_CRY = frozenset({"errormessage", "errormsg", "errmsg", "errordescription", "faultstring", "httpmessage"})
_CRY_WRAPPED = frozenset({"errors", "error", "err", "fault", "exception"})
_FAILS = frozenset({"error", "failed", "failure", "fail"})
_CODES = ("code", "httpstatuscode", "status", "statuscode", "httpstatus", "httpcode", "errorcode")
_SPELT = (*_CODES, "type", "errortype", "error", "title")
"""Where a status may stand in words."""
_BEGINS_WITH_STATUS = re.compile(r"\s*([45]\d\d)(?!\d)", re.ASCII)


def _bare(name: str) -> str:
    """A name as all spellings of it have it."""
    return re.sub(r"[\s_-]", "", name[:_MOST_NAME_CHARACTERS]).lower()


def _class(name: str) -> str:
    return re.sub(r"(error|exception)$", "", _bare(name))


_STATUS_OF = {
    **{_class(status.phrase): status.value for status in HTTPStatus if status >= HTTPStatus.BAD_REQUEST},
    # OpenAI's, Anthropic's, DashScope's and OAuth's codes,
    **dict.fromkeys(("invalidapikey", "invalidtoken", "authentication", "unauthenticated"), 401),
    **dict.fromkeys(("permission", "permissiondenied", "accessdenied", "insufficientscope"), 403),
    **dict.fromkeys(("ratelimit", "ratelimitexceeded", "throttling", "resourceexhausted"), 429),
    **dict.fromkeys(("badrequest", "invalidargument", "contextlengthexceeded", "invalidparameter"), 400),
    # and gRPC's.
    **{"modelnotfound": 404, "unavailable": 503, "overloaded": 503, "internal": 500, "deadlineexceeded": 504},
}
"""What a status is called where no number stands."""


class ErrorFields(NamedTuple):
    """Of an error, what its server says; None for what it does not."""

    words: str | None
    error_type: str | None
    status: int | None


def read_error(error: Mapping[str, Any]) -> ErrorFields:
    """What an error says, an event or a body that is one.

    A status is a number from 400 to 599, or what such a one is called.
    """
    places, words = list(_places(error)), _words(error)
    types = (word(place.get(name)) for name in ("errortype", "type") for place in places)
    statuses = [*_numbers(places), *_spelt(places)]
    return ErrorFields(
        encodable(words[:_MOST_CHARACTERS]) if words else None,
        next(iter(_spent(places)), None) or next((kind for kind in types if kind and _bare(kind) not in _FAILS), None),
        next(iter(statuses), None),
    )


def is_error(event: Mapping[str, Any], *, may_be_empty: bool = False) -> bool:
    """Whether an event that adds nothing to an answer is an error.

    Args:
        event: the event.
        may_be_empty: whether it is one of a stream all the same (its ``choices`` are none): a ``message`` beside
            them makes it no error then.
    """
    names = _names(event)
    if not may_be_empty and any(_speaks(names.get(name), is_wrapped=name == "detail") for name in _SPEAK):
        return True
    return (
        any(_speaks(names.get(name)) for name in _CRY)
        or any(_speaks(names.get(name), is_wrapped=True) for name in _CRY_WRAPPED)
        or names.get("success") is False
        or names.get("ok") is False
        or any(
            isinstance(names.get(name), str) and _bare(names[name]) in _FAILS for name in ("type", "object", "status")
        )
        or any(_number(names.get(name)) is not None for name in _CODES)
        or any(_is_refusal(names.get(name)) for name in ("baseresp", "response"))
    )


def _is_refusal(value: object) -> bool:
    """Whether what stands beside an answer says that there is none."""
    if not isinstance(value, Mapping):
        return False
    names = _names(value)
    return bool(integer(names.get("statuscode")) or names.get("error"))


def _speaks(value: object, *, is_wrapped: bool = False) -> bool:
    return isinstance(value, str | list | Mapping if is_wrapped else str | list) and bool(value)


def _names(fields: Mapping[str, Any]) -> dict[str, Any]:
    names: dict[str, Any] = {}
    for name, value in fields.items():
        if value is not None and value != "":
            names.setdefault(_bare(name), value)
    return names


def _places(error: Mapping[str, Any], depth: int = 0) -> Iterator[dict[str, Any]]:
    """The error itself, innermost first, and what it is wrapped in."""
    names = _names(error)
    if depth < _MOST_DEPTH:
        for name in _WRAPPED:
            inner = names.get(name)
            for value in inner[:_MOST_OF_A_LIST] if isinstance(inner, list) else [inner]:
                if isinstance(value, Mapping):
                    yield from _places(value, depth + 1)
    yield names


def _words(value: object, depth: int = 0) -> str | None:
    if isinstance(value, str):
        return value.strip()[:_MOST_CHARACTERS] or None
    if depth >= _MOST_DEPTH:
        return None
    if isinstance(value, list):
        return "; ".join(filter(None, (_words(part, depth + 1) for part in value[:_MOST_OF_A_LIST]))) or None
    if not isinstance(value, Mapping):
        return None
    names = _names(value)
    words = next(filter(None, (_words(names.get(name), depth + 1) for name in _WORDS)), None)
    if words is None:
        return _by_field(value) if depth else None
    error = names.get("error")
    if isinstance(error, str) and error.strip() and error.strip() not in words:  # OAuth's code, Spring's phrase
        return f"{error.strip()}: {words}"
    return words


def _by_field(fields: Mapping[str, Any]) -> str | None:
    """Words that stand under the names of what is wrong, as Rails and Laravel have them; else all that is said."""
    of_fields = {
        name: "; ".join(value) if isinstance(value, list) else value
        for name, value in list(fields.items())[:_MOST_OF_A_LIST]
        if isinstance(value, str) or (value and isinstance(value, list) and all(isinstance(one, str) for one in value))
    }
    if len(of_fields) == len(fields) and not {_bare(name) for name in fields} & {*_SPELT}:
        return "; ".join(f"{name}: {words}" for name, words in of_fields.items()) or None
    return None


def _number(value: object) -> int | None:
    """An HTTP status of an error, as a number or spelt; None for every other code."""
    if isinstance(value, str):
        begun = _BEGINS_WITH_STATUS.match(value)
        value = int(begun[1]) if begun else None
    status = integer(value, 599)
    return status if status is not None and status >= HTTPStatus.BAD_REQUEST else None


def _numbers(places: list[dict[str, Any]]) -> Iterator[int]:
    for place in places:
        yield from filter(None, (_number(place.get(name)) for name in _CODES))


def _spent(places: list[dict[str, Any]]) -> Iterator[str]:
    """What says that money is due, which matters more than what else a type says (OpenAI's stands in ``code`` too)."""
    for place in places:
        texts = (place.get(name) for name in _SPELT)
        yield from (text.lower() for text in texts if isinstance(text, str) and text.lower() in SPENT_TYPES)


def _spelt(places: list[dict[str, Any]]) -> Iterator[int]:
    for place in places:
        texts = (place.get(name) for name in _SPELT)
        yield from filter(None, (_STATUS_OF.get(_class(text)) for text in texts if isinstance(text, str)))
        if isinstance(place.get("loc"), list) and "msg" in place:  # FastAPI's, of a request that it does not take
            yield HTTPStatus.UNPROCESSABLE_ENTITY.value
