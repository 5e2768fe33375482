"""What workers of any version announce, and what an overview makes of it."""

import json

import pytest

from genqueue.cli import tables
from genqueue.registry import fleet

NEWER = {"announced_at": 5.0, "generators": {"chat": [{"address": "a", "health": "up", "running": 1, "trouble": ""}]}}
UNSAID = {"address": "", "health": "?", "running": 0, "trouble": ""}


@pytest.mark.parametrize(
    ("about", "generators"),
    [
        pytest.param({**NEWER, "version": "9", "load": [1]}, NEWER["generators"], id="one-more-field"),
        pytest.param(
            {"announced_at": 5, "generators": {"chat": [{"health": "naps", "gpus": 2}]}},
            {"chat": [{**UNSAID, "health": "naps", "gpus": 2}]},
            id="other-facts-of-a-server",
        ),
        pytest.param(
            {"announced_at": 5.0, "generators": {"chat": [{"running": "many", "trouble": None}], "b": {}}},
            {"chat": [UNSAID]},
            id="facts-of-another-type",
        ),
        pytest.param({"generators": {}}, None, id="no-time"),
        pytest.param({"announced_at": 5.0}, None, id="no-generators"),
        pytest.param({"announced_at": 5.0, "generators": [1]}, None, id="generators-are-no-object"),
        pytest.param([1], None, id="no-object"),
        pytest.param("text", None, id="a-text"),
    ],
)
def test_what_a_worker_of_another_version_announces_is_read_as_far_as_it_is_known(about, generators):
    raw = {b"other": json.dumps(about).encode(), b"ours": json.dumps(NEWER).encode()}
    workers = {worker.name: worker.generators for worker in fleet.read_workers().decode(raw)}
    assert workers == {"ours": NEWER["generators"], **({} if generators is None else {"other": generators})}
    for worker in fleet.read_workers().decode(raw):
        assert all(tables.worker_rows(worker, 6.0))


def test_an_announcement_that_is_no_json_hides_no_other():
    raw = {b"other": b"garbage", b"ours": json.dumps(NEWER).encode()}
    assert [worker.name for worker in fleet.read_workers().decode(raw)] == ["ours"]


@pytest.mark.parametrize("fact", [b"garbage", b"[1]", b'{"max_queue_depth":"x","api_type":5}', b"{}"])
def test_an_overview_outlives_what_it_cannot_read_of_a_generator(fact):
    row = [b"chat", 0, b"", 0, 0, 0]
    found = fleet.overview([]).decode([b"1.5", [b"chat", fact], [b"w", b"garbage"], [row], [0] * 5, []])
    assert [(queue.max_queue_depth, queue.api_type) for queue in found.queues] == [(None, None)]
    assert found.workers == []
