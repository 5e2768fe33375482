"""What a worker takes from its lists, and what it drops."""

import base64
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from celery.exceptions import InvalidTaskError, NotRegistered

from genqueue.registry.submitting import doorbell_message
from genqueue_worker.broker.checks import (
    ExpiredError,
    Refusal,
    check_call,
    is_broadcast,
    is_call,
    is_celery_message,
    is_order,
)


def doorbell() -> dict[str, Any]:
    message: dict[str, Any] = json.loads(doorbell_message("id", "default", 0))
    return message


def test_our_doorbell_is_a_message():
    assert is_celery_message(doorbell())


@pytest.mark.parametrize(
    "message",
    [None, 5, "x", [], {}, {"body": "", "headers": {}, "properties": {}}, [doorbell()]],
    ids=repr,
)
def test_what_has_another_shape_is_none(message):
    assert not is_celery_message(message)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("body",), None),
        (("body",), {"prompt": "p"}),
        (("headers",), None),
        (("headers",), [1]),
        (("headers", "task"), 5),
        (("headers", "id"), None),
        (("headers", "id"), ""),
        (("headers", "id"), "\ud800"),
        (("headers", "id"), "two\nlines"),
        (("headers", "id"), "x" * 513),
        (("headers", "id"), "another:log"),
        (("headers", "id"), "another:text"),
        (("properties", "delivery_tag"), "x" * 513),
        (("properties",), None),
        (("properties", "delivery_tag"), 5),
        (("properties", "delivery_tag"), "\ud800"),
        (("properties", "delivery_info"), "default"),
        (("properties", "delivery_info"), {}),
        (("properties", "delivery_info", "routing_key"), 5),
        (("properties", "delivery_info", "routing_key"), "\ud800"),
        (("properties", "body_encoding"), None),
        (("properties", "body_encoding"), "utf-8"),
    ],
)
def test_one_thing_wrong_makes_it_none(path, value):
    message = doorbell()
    holder = message
    for name in path[:-1]:
        holder = holder[name]
    holder[path[-1]] = value
    assert not is_celery_message(message)
    del holder[path[-1]]
    assert not is_celery_message(message)


def test_unknown_headers_are_no_harm():
    message = doorbell()
    message["headers"]["from a later release"] = [1]
    assert is_celery_message(message)


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        ([[], {}, None], True),
        ([[], {}, {}], True),
        ([[1], {"a": 1}, {"callbacks": None, "errbacks": [], "chain": None, "chord": {}}], True),
        ([[], {}, {"get": 5}], False),
        ([[], {}, {"id": "another"}], False),
        ([[], {}, 5], False),
        ([[], []], False),
        ([{}, [], None], False),
        ([], False),
        ({}, False),
        (None, False),
        ("[[], {}, {}]", False),
    ],
    ids=repr,
)
def test_a_call_is_arguments_keyword_arguments_and_options(payload, expected):
    assert is_call(payload) is expected


NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("payload", "headers", "error"),
    [
        ([[], {}, {}], {"task": "celery.accumulate"}, NotRegistered),
        ([[], {"self": 1}, {}], {}, InvalidTaskError),
        ([[], {}, {"get": 5}], {}, InvalidTaskError),
        *(([[], {"prompt": "p"}, {name: [1]}], {}, Refusal) for name in ("callbacks", "errbacks", "chain", "chord")),
        ([[], {"prompt": "p"}, {}], {"eta": "2026-01-01T00:00:01+00:00"}, Refusal),
        ([[], {}, {}], {"eta": "soon"}, ValueError),
        ([[], {}, {}], {"expires": "2025-12-31T23:59:59"}, ExpiredError),
        ([[], {}, {}], {"expires": 5}, TypeError),
    ],
)
def test_what_asks_for_more_than_a_generation_is_turned_away(payload, headers, error):
    with pytest.raises(error):
        check_call(payload, {"task": "genqueue.generate", **headers}, NOW)


@pytest.mark.parametrize(
    "headers",
    [{}, {"eta": "2025-12-31T00:00:00"}, {"expires": "2026-01-01T00:00:01Z"}, {"chord": 5, "get": 5}],
    ids=repr,
)
def test_what_asks_for_one_is_not(headers):
    check_call([[], {"prompt": "p"}, None], {"task": "genqueue.generate", **headers}, NOW)


def order(**changes: Any) -> dict[str, Any]:
    body = {"method": "ping", "arguments": {}, "destination": None, "pattern": None, "matcher": None} | changes
    return {
        "body": base64.b64encode(json.dumps(body).encode()).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"clock": 3, "expires": None},
        "properties": {
            "delivery_mode": 2,
            "delivery_info": {"exchange": "celery.pidbox", "routing_key": ""},
            "body_encoding": "base64",
            "delivery_tag": "tag",
        },
    }


ASKED = {
    "ticket": "t",
    "reply_to": {"exchange": "reply.celery.pidbox", "routing_key": "r"},
    "destination": ["celery@h"],
}


@pytest.mark.parametrize("changes", [{}, ASKED, {"destination": ["celery@h"], "arguments": None}], ids=repr)
def test_an_order_is_one(changes):
    assert is_order(order(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"method": 5},
        {"arguments": []},
        {"destination": "celery@h"},
        {"matcher": "x"},
        {"self": 1},
        {"reply_to": "x"},
        {"reply_to": {"exchange": "generate.default", "routing_key": "r"}},
    ],
    ids=repr,
)
def test_what_celery_would_stumble_over_is_none(changes):
    assert not is_order(order(**changes))


@pytest.mark.parametrize("matcher", ["glob", "pcre", "regex", None, "x"])
@pytest.mark.parametrize("pattern", ["c*", "(.?){60}(.?){60}(.?){60}(.?){60}$X", "", [], 5, False])
def test_an_order_to_a_pattern_of_names_is_none(pattern, matcher):
    """Celery would run it, for as long as it takes."""
    assert not is_order(order(pattern=pattern, matcher=matcher))
    assert not is_order(order(matcher=pattern))


@pytest.mark.parametrize(("ids", "expected"), [(9_000, True), (20_000, False)])
def test_an_order_is_no_longer_than_that_its_work_has_an_end(ids, expected):
    assert (
        is_order(order(method="revoke", arguments={"task_id": [f"{number:036}" for number in range(ids)]})) is expected
    )


def test_an_event_is_a_broadcast_and_no_order():
    event = order() | {"body": base64.b64encode(b'[{"type": "task-revoked"}]').decode()}
    assert is_broadcast(event)
    assert not is_order(event)


@pytest.mark.parametrize("clock", [10**4299, -1, "x", 1.5, True])
def test_a_clock_that_nobody_could_send_on_is_none(clock):
    message = order()
    message["headers"]["clock"] = clock
    assert not is_order(message)
