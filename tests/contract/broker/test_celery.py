"""What Celery itself makes of our results, and our doorbell held against what Celery sends."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import celery.exceptions
import pytest
from celery import Celery
from celery.result import AsyncResult

from genqueue import errors, keys
from genqueue.keys import TASK_NAME
from genqueue.registry.submitting import doorbell_message
from genqueue.settings import load_settings
from genqueue_worker.broker.config import celery_configuration

GENERATORS = {"default": {"api_type": "text_generation_inference", "api_params": {"url": "http://127.0.0.1:1"}}}


@pytest.fixture
def app(redis_url: str) -> Iterator[Celery]:
    """A Celery app as a worker has it."""
    made = Celery("test", set_as_current=False)
    made.conf.update(celery_configuration(load_settings(redis_url=redis_url, generators=GENERATORS)))
    yield made
    made.backend.client.close()
    made.backend.client.connection_pool.disconnect()
    made.close()


def test_celery_reads_our_result(app, writer):
    generation_id = writer.running()
    writer.finish(writer.finished(generation_id, "é🦜"))
    found = AsyncResult(generation_id, app=app)
    assert found.get(timeout=30) == {
        "replies": ["é🦜"],
        "meta": [{"finish_reason": "length", "usage": {"prompt_tokens": 3, "completion_tokens": 2}}],
    }
    assert found.successful()
    assert found.date_done is not None


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ("rejected", errors.GenerationRejectedError),
        ("failed", errors.GenerationFailedError),
        ("expired", errors.GenerationExpiredError),
    ],
)
def test_celery_raises_our_errors(app, writer, error, expected):
    generation_id = writer.running()
    writer.finish(writer.failed(generation_id, error=error))
    with pytest.raises(expected, match="words"):
        AsyncResult(generation_id, app=app).get(timeout=30)


def test_celery_sees_a_cancelled_generation_as_revoked(app, writer):
    generation_id = writer.running()
    writer.finish(writer.cancelled(generation_id))
    found = AsyncResult(generation_id, app=app)
    with pytest.raises(celery.exceptions.TaskRevokedError):
        found.get(timeout=30)
    assert found.state == "REVOKED"


def test_celery_waits_for_our_result_and_is_told(app, writer):
    generation_id = writer.running()
    found = AsyncResult(generation_id, app=app)
    app.backend.result_consumer.start(generation_id)
    app.backend.result_consumer.consume_from(generation_id)
    writer.finish(writer.finished(generation_id))
    assert found.get(timeout=30)["replies"] == ["It is."]
    app.backend.result_consumer.stop()


def shape(message: dict[str, Any]) -> dict[str, Any]:
    """A message without what differs from one to the next: ids, and whose it is."""
    shown: dict[str, Any] = json.loads(json.dumps(message))
    shown["body"] = json.loads(base64.b64decode(shown["body"]))
    for holder, names in (
        ("headers", ("id", "root_id", "origin")),
        ("properties", ("correlation_id", "delivery_tag")),
    ):
        for name in names:
            assert isinstance(shown[holder][name], str)
            shown[holder][name] = "…"
    return shown


@pytest.mark.parametrize("priority", keys.PRIORITIES)
def test_our_doorbell_is_what_celery_would_send(app, raw, priority):
    app.send_task(TASK_NAME, queue=keys.queue("default"), priority=priority, task_id="theirs")
    (name,) = [key for key in raw.scan_iter() if key.startswith(b"generate.")]
    assert name.decode() == keys.doorbell("default", priority)
    theirs = json.loads(raw.lindex(name, 0))
    ours = json.loads(doorbell_message("ours", "default", priority))
    ignored = {"reply_to"}  # asks for an answer on a queue of Celery's own; the Redis result backend reads none
    assert {key for key in theirs["properties"] if key not in ignored} == ours["properties"].keys()
    theirs["properties"] = {key: value for key, value in theirs["properties"].items() if key not in ignored}
    expected = shape(theirs)
    # What Celery adds for features that a doorbell makes no use of.
    for name in ("shadow", "group_index", "replaced_task_nesting", "stamped_headers", "stamps"):
        assert not expected["headers"].pop(name)
    # send_task knows no task that could say; Task.apply_async sends False, as we do.
    assert expected["headers"]["ignore_result"] is None
    expected["headers"]["ignore_result"] = False
    assert shape(ours) == expected


@pytest.mark.parametrize("priority", [0, 5, 9])
def test_celery_takes_our_doorbell_from_its_list(app, writer, priority):
    generation_id = writer.submit(priority=priority)
    with app.connection_for_read() as connection, connection.channel() as channel:
        message = channel.basic_get(keys.queue("default"), no_ack=True)
        assert message is not None
        assert (message.headers["id"], message.headers["task"]) == (generation_id, TASK_NAME)
        assert message.decode() == [[], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]
        assert channel.basic_get(keys.queue("default"), no_ack=True) is None
