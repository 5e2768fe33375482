"""A submit, and the doorbell that it rings; tests/contract/broker/test_celery.py holds that against Celery's own."""

import base64
import json
from typing import Any

import pytest

from genqueue import keys
from genqueue.errors import (
    IdempotencyConflictError,
    QueueFullError,
    StoreError,
    UnknownGeneratorError,
)
from genqueue.registry import script as registry_script
from genqueue.registry import submitting
from genqueue.registry.submitting import Accepted, doorbell_message, doorbell_template
from genqueue.wire.request import read_request

from ...support.registry import keys_of


def test_a_doorbell_holds_the_id_and_no_argument():
    message = json.loads(doorbell_message("some-id", "chat", 3))
    args, kwargs, embed = json.loads(base64.b64decode(message["body"]))
    assert (args, kwargs) == ([], {})
    assert not any(embed.values())
    assert message["headers"]["id"] == message["properties"]["correlation_id"] == "some-id"
    assert message["headers"]["task"] == "genqueue.generate"
    assert message["properties"]["delivery_info"] == {"exchange": "", "routing_key": "generate.chat"}
    assert message["properties"]["priority"] == 3


@pytest.mark.parametrize("priority", keys.PRIORITIES)
def test_a_template_that_is_filled_in_is_the_message(priority):
    filled = doorbell_template().decode()
    for place, value in {"id": "some-id", "generator": "chat", "priority": priority}.items():
        filled = filled.replace(f"{{{place}}}", str(value))
    assert filled.encode() == doorbell_message("some-id", "chat", priority)


def submit(**options: Any) -> registry_script.Call[Accepted]:
    settings: dict[str, Any] = {
        "keep_s": 60,
        "idempotency_key": None,
        "idempotency_ttl_s": 9,
        "max_queue_depth": None,
        **options,
    }
    return submitting.submit("id", read_request({"prompt": "p", "priority": 3}), **settings)


def test_a_submit_declares_its_keys_first():
    assert keys_of(submit()) == [
        keys.generation("id"),
        keys.waiting("default"),
        keys.GENERATORS,
        keys.doorbell("default", 3),
        keys.DEADLINES,
    ]
    assert keys_of(submit(idempotency_key="k"))[-1] == keys.idempotency("k")


def test_a_submit_that_does_not_ring_sends_no_message():
    assert json.loads(submit().arguments[-4])["headers"]["id"] == "id"
    assert submit(ring=False).arguments[-4] == ""


@pytest.mark.parametrize(("depth", "sent"), [(None, ""), (-1, "-1"), (0, "0")])
def test_a_limit_of_zero_is_not_no_limit(depth, sent):
    assert submit(max_queue_depth=depth).arguments[-3] == sent


def test_a_submit_answers_the_id_that_was_accepted():
    assert submit().decode([b"accepted", b"earlier"]) == Accepted("earlier")


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        ([b"full", 7, 5], QueueFullError, "queue 'default' holds 7 generations, limit 5"),
        ([b"unknown"], UnknownGeneratorError, "known: none"),
        ([b"unknown", b"chat", b"code"], UnknownGeneratorError, "known: chat, code"),
        ([b"conflict", b"earlier"], IdempotencyConflictError, "'k' was used for generation earlier"),
        ([b"what"], StoreError, "submit.lua answered"),
        ([], StoreError, "submit.lua answered"),
    ],
)
def test_a_refused_submit_raises_its_error(answer, error, words):
    with pytest.raises(error, match=words):
        submit(idempotency_key="k").decode(answer)
