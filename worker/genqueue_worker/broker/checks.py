"""The messages, orders and calls that a worker takes in hand.  Pure."""

import base64
from datetime import UTC, datetime
from typing import Any

from celery.exceptions import InvalidTaskError, NotRegistered
from celery.utils.time import maybe_iso8601
from kombu.utils.json import loads

from genqueue.keys import TASK_NAME, names_a_generation

_MOST_WORD_BYTES = 512
_MOST_CLOCK = 2**63
MOST_ORDER_BYTES = 500_000
"""Of one order: some ten thousand ids to cancel, each of which is work."""
_ORDER = {"method", "arguments", "destination", "ticket", "reply_to"}
_PATTERN = {"pattern", "matcher"}
ORDERS_EXCHANGE, REPLIES_EXCHANGE = "celery.pidbox", "reply.celery.pidbox"
_AFTERWARDS = ("callbacks", "errbacks", "chain", "chord")


class Refusal(InvalidTaskError):
    """Why a message is turned away, in words that say nothing of what is in it."""


class ExpiredError(Exception):
    """Its sender wanted no answer any more."""


def is_celery_message(message: Any) -> bool:
    """Whether kombu and Celery can take ``message`` in hand without stumbling (protocol 2, kombu's envelope)."""
    match message:
        case {
            "body": str(),
            "headers": {"task": str(task), "id": str(task_id)},
            "properties": {
                "delivery_tag": str(tag),
                "delivery_info": {"routing_key": str(routing_key)},
                "body_encoding": "base64",
            },
        }:
            return names_a_generation(task_id) and all(map(_is_word, (task, tag, routing_key)))
    return False


def _is_word(text: str) -> bool:
    # Half of a surrogate pair (JSON can spell it) is not printable.
    return text.isprintable() and len(text.encode()) <= _MOST_WORD_BYTES


def is_broadcast(message: Any) -> bool:
    """Whether a message of a channel is one: an event of a worker, which Flower hears, or an order to workers."""
    match message:
        case {
            "body": str(),
            "content-type": "application/json",
            "content-encoding": "utf-8",
            "headers": dict() as headers,
            "properties": {
                "delivery_tag": str(),
                "delivery_info": {"exchange": str(), "routing_key": str()},
                "body_encoding": "base64",
            },
        }:
            return "compression" not in headers
    return False


def is_order(message: Any) -> bool:
    """Whether a message of Celery's remote control is one that its code takes in hand without stumbling."""
    if not is_broadcast(message) or len(message["body"]) > MOST_ORDER_BYTES:
        return False
    clock = message["headers"].get("clock") or 0
    # Celery takes over the highest clock it sees: one of 4,300 digits could be sent on by nobody.
    if type(clock) is not int or not 0 <= clock < _MOST_CLOCK:
        return False
    match loads(base64.b64decode(message["body"])):
        case {"method": str()} as order:
            kinds = {"arguments": dict, "destination": list, "ticket": str}
            # Celery would hold a pattern against the worker's name, in Python's re: a bad one never ends.
            given = {name for name, value in order.items() if value is not None or name not in _PATTERN}
            return (
                given <= _ORDER
                and all(isinstance(order.get(name), kind | None) for name, kind in kinds.items())
                and _is_address(order.get("reply_to"))
            )
    return False


def _is_address(reply_to: Any) -> bool:
    match reply_to:
        case None:
            return True
        case {"exchange": str(exchange), "routing_key": str(routing_key)}:
            return exchange == REPLIES_EXCHANGE and _is_word(routing_key)
    return False


def is_call(payload: Any) -> bool:
    """Whether a message's decoded body is (arguments, keyword arguments, options) as Celery unpacks it."""
    match payload:
        case [list(), dict(), None]:
            return True
        case [list(), dict(), dict() as options]:  # each becomes an attribute of Celery's request
            return options.keys() <= set(_AFTERWARDS)
    return False


def check_call(payload: Any, headers: dict[str, Any], now: datetime) -> None:
    """Raise what speaks against carrying out the call of a message.

    Raises:
        Refusal, ExpiredError: the sender is to be told.
        ValueError, TypeError, AttributeError, OverflowError: a header is none of Celery's.
    """
    if headers["task"] != TASK_NAME:
        raise NotRegistered("no such task here")
    if not is_call(payload):
        raise InvalidTaskError("no call")
    _, kwargs, options = payload
    if "self" in kwargs:  # would be taken for the task
        raise InvalidTaskError("no call")
    if any((options or {}).values()):
        raise Refusal("callbacks, chains and chords are not carried out here: send them when the result is there")
    eta, expires = _moment(headers.get("eta")), _moment(headers.get("expires"))
    if expires is not None and expires <= now:
        raise ExpiredError
    if kwargs and eta is not None and eta > now:
        raise Refusal("eta and countdown are not carried out here: send the message when it is due")


def _moment(header: Any) -> datetime | None:
    if header is None:
        return None
    moment: datetime = maybe_iso8601(header)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


ORDERS: dict[str, frozenset[str]] = {
    **dict.fromkeys(("active_queues", "clock", "ping", "registered", "report", "reserved", "revoked"), frozenset()),
    **dict.fromkeys(("scheduled", "stats", "dump_reserved", "dump_schedule", "dump_tasks"), frozenset()),
    **dict.fromkeys(("disable_events", "enable_events", "heartbeat", "shutdown"), frozenset()),
    **dict.fromkeys(("active", "dump_active"), frozenset({"safe"})),
    **dict.fromkeys(("conf", "dump_conf"), frozenset({"with_defaults"})),
    "query_task": frozenset({"ids"}),
    "cancel_consumer": frozenset({"queue"}),
}
"""Celery's own orders that are carried out, and the arguments that each is given."""
