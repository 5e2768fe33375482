"""kombu's consumer over our transport: whatever lies in a queue's list, the next message is delivered."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery

from genqueue import keys
from genqueue.registry.submitting import doorbell_message
from genqueue.settings import load_settings
from genqueue_worker.broker import transport
from genqueue_worker.broker.config import celery_configuration

GENERATORS = {"default": {"api_type": "text_generation_inference", "api_params": {"url": "http://127.0.0.1:1"}}}


def typed(kind: Any, value: Any) -> Any:
    """What kombu's JSON makes an object of."""
    return {"__type__": kind, "__value__": value}


def changed(value: Any, *path: str) -> bytes:
    """A doorbell with one part replaced."""
    message = json.loads(doorbell_message("changed", "default", 0))
    holder = message
    for name in path[:-1]:
        holder = holder[name]
    holder[path[-1]] = value
    return json.dumps(message).encode()


ALIEN = {
    "garbage": b"garbage",
    "empty": b"",
    "not-utf-8": b"\xff\xfe\x00",
    "null": b"null",
    "number": b"5",
    "string": b'"x"',
    "array": b"[]",
    "object": b"{}",
    "deep": b"[" * 100_000,
    "long-number": b"1" * 5000,
    "uuid": json.dumps(typed("uuid", "no uuid")).encode(),
    "uuid-inside": json.dumps({"prompt": typed("uuid", "0" * 32)}).encode(),
    "datetime": json.dumps(typed("datetime", 5)).encode(),
    "decimal": json.dumps(typed("decimal", "x")).encode(),
    "bytes": json.dumps(typed("bytes", 5)).encode(),
    "unknown-type": json.dumps(typed("x", 5)).encode(),
    "unhashable-type": json.dumps(typed([], 5)).encode(),
    "body-no-base64": changed("x", "body"),
    "body-object": changed({}, "body"),
    "header-object": changed(typed("datetime", 5), "headers", "eta"),
    "id-surrogate": changed("\ud800", "headers", "id"),
    "tag-surrogate": changed("\ud800", "properties", "delivery_tag"),
    "routing-key": changed(5, "properties", "delivery_info", "routing_key"),
}


@pytest.fixture
def app(redis_url: str) -> Iterator[Celery]:
    made = Celery("test", set_as_current=False)
    made.conf.update(celery_configuration(load_settings(redis_url=redis_url, generators=GENERATORS)))
    yield made
    made.close()


def take(message: Any, delivered: list[str]) -> None:
    """Acknowledged: what is not, kombu restores where it closes, over a connection that it then leaves open."""
    delivered.append(message.headers["id"])
    message.ack()


@pytest.mark.parametrize("entry", ALIEN.values(), ids=ALIEN)
def test_an_alien_entry_is_dropped_and_the_next_message_delivered(app, raw, caplog, entry):
    doorbell = keys.doorbell("default", 0)
    raw.lpush(doorbell, entry)
    raw.lpush(doorbell, doorbell_message("next", "default", 0))
    delivered: list[str] = []
    before = transport.dropped
    with app.connection_for_read() as connection:
        consumer = app.amqp.TaskConsumer(
            connection.default_channel,
            on_message=lambda message: take(message, delivered),
            accept=["json"],
        )
        with consumer:
            while not delivered:
                connection.drain_events(timeout=10)
    assert delivered == ["next"]
    assert transport.dropped == before + 1
    (line,) = [record.getMessage() for record in caplog.records if record.name == transport.logger.name]
    assert "dropped an entry of" in line


def test_a_dropped_entry_is_not_shown(app, raw, caplog):
    secret = "my secret prompt"
    for entry in (secret, json.dumps({"prompt": secret}), json.dumps(typed("uuid", secret)), changed(secret, "body")):
        raw.lpush(keys.doorbell("default", 0), entry)
    raw.lpush(keys.doorbell("default", 0), doorbell_message("next", "default", 0))
    delivered: list[str] = []
    with app.connection_for_read() as connection:
        consumer = app.amqp.TaskConsumer(
            connection.default_channel, on_message=lambda message: take(message, delivered), accept=["json"]
        )
        with consumer:
            while not delivered:
                connection.drain_events(timeout=10)
    assert len(caplog.records) >= 4
    assert secret not in caplog.text
    assert base64.b64encode(secret.encode()).decode() not in caplog.text
