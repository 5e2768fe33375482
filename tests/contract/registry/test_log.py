"""``read_log``: pages of a log, and what is in it that we cannot read."""

import pytest

from genqueue import GenerationClient, ResultTimeoutError, Settings, keys
from genqueue.errors import StoreError
from genqueue.registry import reading

from ...support.registry import flush


def test_a_log_is_read_in_pages(registry):
    generation_id = registry.running()
    registry.append(flush(generation_id, 1, [str(number) for number in range(9)]))
    pages, from_seq = [], 1
    while page := registry.run(reading.read_log(generation_id, from_seq, limit=4)):
        pages.append([event.seq for event in page])
        from_seq = page[-1].seq + 1
    assert pages == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10]]


@pytest.mark.parametrize(("from_seq", "expected"), [(0, [1, 2, 3]), (2, [2, 3]), (3, [3]), (4, []), (10**15, [])])
def test_a_page_begins_with_the_number_it_is_asked_for(registry, from_seq, expected):
    generation_id = registry.running()
    registry.append(flush(generation_id, 1, ["a", "b"]))
    assert [event.seq for event in registry.run(reading.read_log(generation_id, from_seq))] == expected


def test_a_log_that_is_gone_is_empty(registry):
    assert registry.run(reading.read_log("nobody's", 1)) == []


def test_an_event_of_a_newer_version_is_refused_as_ours(registry):
    registry.raw.xadd(keys.log("g"), {"e": '{"seq":1,"attempt":1,"v":2,"type":"chunk","text":"s3cret"}'}, id="1-0")
    registry.raw.expire(keys.log("g"), 60)
    with pytest.raises(StoreError, match="the log of generation g holds an event we cannot read") as refused:
        registry.run(reading.read_log("g", 1))
    assert "s3cret" not in str(refused.value)


def test_an_end_that_a_newer_version_wrote_says_what_to_upgrade(registry):
    generation_id = registry.running()
    registry.raw.hset(keys.generation(generation_id), "outcome", '{"v":2,"error":"failed","message":"s3cret"}')
    with pytest.raises(StoreError, match="a newer genqueue wrote it; upgrade genqueue") as refused:
        registry.run(reading.read_record(generation_id))
    assert "s3cret" not in str(refused.value)


def newer_event(registry, generation_id, seq):
    """An event as a version after this one may write it."""
    registry.raw.xadd(
        keys.log(generation_id),
        {"e": f'{{"seq":{seq},"attempt":1,"v":2,"type":"chunk","text":{{"parts":["s3cret"]}}}}'},
        id=f"{seq}-0",
    )
    registry.raw.hset(keys.generation(generation_id), "seq", seq)


@pytest.mark.parametrize("from_seq", [0, 2])
def test_who_streams_events_of_a_newer_version_is_told_what_to_upgrade(registry, redis_url, from_seq):
    generation_id = registry.running()
    registry.append(flush(generation_id, 1, ["a"]))
    newer_event(registry, generation_id, 3)
    with GenerationClient(Settings(redis_url=redis_url, generators={})) as client:
        generation = client.generation(generation_id)
        with pytest.raises(StoreError, match="a newer genqueue wrote it; upgrade genqueue") as refused:
            list(generation.stream(from_seq=from_seq))
        assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize("ends", ["before", "after"])
def test_a_result_needs_no_event_of_its_log(registry, redis_url, ends):
    generation_id = registry.running()
    newer_event(registry, generation_id, 2)
    with GenerationClient(Settings(redis_url=redis_url, generators={})) as client:
        generation = client.generation(generation_id)
        if ends == "after":
            with pytest.raises(ResultTimeoutError):
                generation.result(timeout_s=0)
        assert registry.finish(registry.finished(generation_id)) == "ok"
        assert generation.result(timeout_s=10).replies == ["It is."]
