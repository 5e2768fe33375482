"""What a worker takes from its lists, and what it drops."""

import json
from typing import Any

import pytest

from genqueue.doorbell import doorbell_message
from genqueue_worker.broker import is_call, is_celery_message


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
        ([[], {}, {"callbacks": 5}], False),
        ([[], {}, {"chord": []}], False),
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
