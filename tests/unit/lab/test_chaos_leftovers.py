"""What may not be left after a chaos run."""

import pytest

from genqueue import keys
from genqueue_lab.chaos.leftovers import Left, Usage, grown, left_over

MB = 1 << 20
ID = "5bf3dba4-9238-46a1-9568-8fe247a1db47"
AT_START = Usage(descriptors=40, threads=20, memory_bytes=90 * MB)


@pytest.mark.parametrize(
    ("now", "fault"),
    [
        pytest.param(Usage(60, 148, 120 * MB), None, id="pools and caches"),
        pytest.param(Usage(300, 20, 90 * MB), "descriptors", id="descriptors"),
        pytest.param(Usage(40, 300, 90 * MB), "threads", id="threads"),
        pytest.param(Usage(40, 20, 300 * MB), "210 MB", id="memory"),
    ],
)
def test_what_a_worker_keeps(now, fault):
    faults = grown("worker-1", AT_START, now, pool_threads=128)
    assert (faults == []) if fault is None else (len(faults) == 1 and fault in faults[0])


CLEAN = Left(
    {keys.generation(ID): 86_000, keys.log(ID): 3_000, "_kombu.binding.generate.left": -1, keys.SWEPT: 600_000},
    {keys.LEASES: 0, keys.waiting("left"): 0},
    [keys.SILENT, keys.worker("host:1:a"), "/0.celery.pidbox"],
)


def test_what_must_stay_is_no_fault():
    assert left_over(CLEAN) == []


@pytest.mark.parametrize(
    ("left", "fault"),
    [
        pytest.param(Left({keys.text(ID): -1}, {}, []), "1 keys genqueue:generation:<id>:text have no TTL", id="ttl"),
        pytest.param(Left({keys.result(ID): -1}, {}, []), "celery-task-meta-<id> have no TTL", id="result's ttl"),
        pytest.param(Left({}, {keys.LEASES: 2}, []), "genqueue:leases still has 2", id="leases"),
        pytest.param(Left({}, {keys.doorbell("left", 5): 7}, []), "still has 7", id="doorbells"),
        pytest.param(Left({}, {}, [keys.live(ID)]), "still listened to", id="a reader"),
        pytest.param(Left({}, {}, [keys.result(ID)]), "still listened to", id="who waits for a result"),
    ],
)
def test_what_is_left_over(left, fault):
    assert any(fault in said for said in left_over(left))
