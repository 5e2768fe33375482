"""``read_log``: pages of a log, and what is in it that we cannot read."""

import pytest

from genqueue import calls, keys
from genqueue.errors import StoreError

from .conftest import flush


def test_a_log_is_read_in_pages(registry):
    generation_id = registry.running()
    registry.append(flush(generation_id, 1, [str(number) for number in range(9)]))
    pages, from_seq = [], 1
    while page := registry.run(calls.read_log(generation_id, from_seq, limit=4)):
        pages.append([event.seq for event in page])
        from_seq = page[-1].seq + 1
    assert pages == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10]]


@pytest.mark.parametrize(("from_seq", "expected"), [(0, [1, 2, 3]), (2, [2, 3]), (3, [3]), (4, []), (10**15, [])])
def test_a_page_begins_with_the_number_it_is_asked_for(registry, from_seq, expected):
    generation_id = registry.running()
    registry.append(flush(generation_id, 1, ["a", "b"]))
    assert [event.seq for event in registry.run(calls.read_log(generation_id, from_seq))] == expected


def test_a_log_that_is_gone_is_empty(registry):
    assert registry.run(calls.read_log("nobody's", 1)) == []


def test_an_event_of_a_newer_version_is_refused_as_ours(registry):
    registry.raw.xadd(keys.log("g"), {"e": '{"seq":1,"attempt":1,"v":2,"type":"chunk","text":"s3cret"}'}, id="1-0")
    registry.raw.expire(keys.log("g"), 60)
    with pytest.raises(StoreError, match="the log of generation g holds an event we cannot read") as refused:
        registry.run(calls.read_log("g", 1))
    assert "s3cret" not in str(refused.value)
