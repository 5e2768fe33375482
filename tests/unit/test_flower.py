"""What Flower makes of what workers tell it."""

import pickle

import pytest
from celery.events.state import State

from genqueue_worker.flower import GenerationTask
from genqueue_worker.observe.report import FACTS


def told(**facts):
    task = GenerationTask("id", cluster_state=State())
    task.event("pending", 1.0, 1.0, facts)
    return task


def test_a_task_shows_what_its_worker_tells_of_it():
    begun = told(generator="default", attempt=1, queue_wait_s=0.25, prompt="3 characters, sha256 00")
    assert begun.as_dict()["generator"] == "default"
    assert begun.as_dict()["ttft_s"] is None
    begun.event("pending", 2.0, 2.0, {"queue_wait_s": 0.25, "waking_s": 1.0, "first_text_s": 0.5})
    assert begun.as_dict()["ttft_s"] == 1.75
    assert begun.as_dict()["prompt"] == "3 characters, sha256 00"


def test_what_flower_keeps_it_knows_again():
    kept = pickle.loads(pickle.dumps(told(queue_wait_s=0.25, first_text_s=0.5, completion_tokens=7)))
    assert (kept.ttft_s, kept.completion_tokens) == (0.75, 7)


@pytest.mark.parametrize("kind", [State.Task, GenerationTask], ids=["celery's", "ours"])
@pytest.mark.parametrize("last", ["started", "succeeded", "failed", "revoked"])
def test_what_a_worker_tells_besides_changes_neither_state_nor_times(kind, last):
    """Whoever else listens, ``celery events`` for instance, knows no type of ours."""
    task = kind("id", cluster_state=State())
    task.event("received", 1.0, 1.0, {"name": "genqueue.generate"})
    task.event("started", 2.0, 2.0, {})
    if last != "started":
        task.event(last, 3.0, 3.0, {})
    before = (task.state, task.received, task.started, task.succeeded, task.failed, task.revoked)
    task.event(FACTS.removeprefix("task-"), 4.0, 4.0, {"attempt": 2})
    assert task.attempt == 2
    assert (task.state, task.received, task.started, task.succeeded, task.failed, task.revoked) == before
