"""Whatever comes from Redis, what reads it raises nothing but what it says it raises."""

import contextlib
import json
from datetime import UTC, datetime

from celery.exceptions import InvalidTaskError, NotRegistered
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kombu.utils.json import loads

from genqueue.client.follower import Follower
from genqueue.errors import InvalidRequestError, StoreError
from genqueue.registry.reading import read_log
from genqueue.wire.events import read_event, read_events
from genqueue.wire.request import GenerationRequest, read_request
from genqueue_worker.broker.checks import ExpiredError, check_call, is_celery_message, is_order

from ..support.hostile import bodies, entries, events, orders, publications, requests, values

NEAR = st.integers(1, 5)
many = settings(derandomize=True, max_examples=200, suppress_health_check=list(HealthCheck))


@many
@given(publications(NEAR) | st.binary())
def test_events_are_read_or_are_a_value_error(raw):
    for read in (read_event, read_events):
        with contextlib.suppress(ValueError):
            read(raw)


@many
@given(
    st.lists(st.tuples(st.sampled_from([b"1-0", b"1-1", b"2-0"]), st.sampled_from([b"e", b"x"]), publications(NEAR)))
)
def test_a_log_is_read_or_is_a_store_error(found):
    with contextlib.suppress(StoreError):
        for event in read_log("id", 1).decode([(entry_id, {field: raw}) for entry_id, field, raw in found]):
            assert event.seq in {1, 2}


@many
@given(requests() | st.dictionaries(st.text(max_size=5), values()))
def test_a_request_is_read_or_is_an_invalid_request(fields):
    try:
        request = read_request(fields)
    except InvalidRequestError as error:
        assert str(error)
    else:
        assert isinstance(request, GenerationRequest)
        request.to_wire()
        request.digest()


@many
@given(entries(st.uuids().map(str)) | orders())
def test_a_message_is_one_or_none(raw):
    try:
        message = loads(raw.decode("utf-8", "replace"))
    except Exception:
        return  # is dropped
    assert is_celery_message(message) in {True, False}
    with contextlib.suppress(Exception):
        assert is_order(message) in {True, False}


@many
@given(bodies(), st.fixed_dictionaries({"task": st.just("genqueue.generate")}, optional={"eta": values()}))
def test_a_call_is_one_or_is_turned_away(body, headers):
    try:
        payload = json.loads(body)
    except (ValueError, RecursionError):
        return
    with contextlib.suppress(
        ExpiredError, InvalidTaskError, NotRegistered, ValueError, TypeError, AttributeError, OverflowError
    ):
        check_call(payload, headers, datetime.now(UTC))


@many
@given(st.lists(events(NEAR), max_size=30))
def test_a_follower_hands_out_each_number_once_and_reads_the_log_rarely(heard):
    follower, seqs, looks = Follower(), [], 0
    for fields in heard:
        with contextlib.suppress(ValueError):
            raw = json.dumps([fields]).encode()
            seqs += [event.seq for event in follower.hear(read_events(raw))]
            if follower.has_gap:
                looks += 1
                follower.read_to_end()
    assert seqs == list(range(1, len(seqs) + 1))
    assert looks < 6
