"""Who may start Flower how, and what it makes of what workers tell it."""

import pickle

import pytest
from celery.events.state import State

from genqueue_ops.flower import GenerationTask, refusal
from genqueue_worker.report import FACTS

OAUTH = {
    "FLOWER_AUTH": "one@example.com|two@example.com",
    "FLOWER_AUTH_PROVIDER": "flower.views.auth.GoogleAuth2LoginHandler",
    "FLOWER_OAUTH2_KEY": "key",
    "FLOWER_OAUTH2_SECRET": "secret",
}


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_on_this_host_alone_it_may_be_open(address):
    assert refusal({}, address) is None


@pytest.mark.parametrize("address", ["", "0.0.0.0", "::", "10.0.0.5", "flower.internal"])
def test_where_others_reach_it_it_needs_a_password(address):
    refused = refusal({}, address)
    assert refused is not None
    assert (address or "every interface") in refused
    assert "FLOWER_BASIC_AUTH" in refused
    assert refusal({"FLOWER_BASIC_AUTH": ""}, address) == refused
    assert refusal({"FLOWER_BASIC_AUTH": "user:password"}, address) is None
    assert refusal({**OAUTH, "FLOWER_AUTH": ".*@example.com"}, address) is None


@pytest.mark.parametrize("value", ["user", "user:", ":password", "user:password,", "user:password,other"])
def test_a_password_without_a_user_or_a_user_without_a_password_is_refused(value):
    refused = refusal({"FLOWER_BASIC_AUTH": value}, "127.0.0.1")
    assert refused is not None
    assert "password," not in refused.replace("user:password, or", "")  # not the value


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize("missing", OAUTH)
def test_a_login_elsewhere_needs_all_that_belongs_to_it(address, missing):
    refused = refusal({**OAUTH, missing: ""}, address)
    assert refused is not None
    assert missing in refused
    assert "secret" not in refused
    assert refusal(OAUTH, address) is None


@pytest.mark.parametrize(
    "pattern",
    [
        ".",
        ".*",
        ".+",
        "^.*$",
        "(.*)",
        ".*@.*",
        ".+@.+",
        "^",
        r"\S+@\S+",
        "one@example.com|",
        "one@example.com|.*",
        "*@x.com",
    ],
)
def test_a_login_that_everybody_has_is_none(pattern):
    refused = refusal({**OAUTH, "FLOWER_AUTH": pattern}, "127.0.0.1")
    assert refused is not None
    assert refused.startswith("FLOWER_AUTH: ")


@pytest.mark.parametrize("pattern", ["me@example.com", "a@x.com|b@y.com", ".*@example.com", "team-.*@example.com"])
def test_some_addresses_or_those_of_one_domain_may_log_in(pattern):
    assert refusal({**OAUTH, "FLOWER_AUTH": pattern}, "0.0.0.0") is None


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
