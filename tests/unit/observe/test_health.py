"""When a worker is alive, and when it is ready."""

import pytest

from genqueue.registry.fleet import Health
from genqueue_worker.observe.health import liveness, readiness

FINE = {"engine": 0.2, "consumer": 1.0, "leases": 1.0}


@pytest.mark.parametrize(
    ("silent_s", "is_draining", "failing"),
    [
        pytest.param({}, False, set(), id="all-come-round"),
        pytest.param({"engine": 10.1}, False, {"engine"}, id="the-engine-is-stuck"),
        pytest.param({"engine": 10.1}, True, {"engine"}, id="which-is-no-better-when-draining"),
        pytest.param({"consumer": 29.0, "leases": 29.0}, False, set(), id="redis-is-slow"),
        pytest.param({"consumer": 31.0}, False, {"consumer"}, id="no-task-can-be-taken"),
        pytest.param({"consumer": 31.0}, True, set(), id="and-none-has-to"),
        pytest.param({"leases": 31.0}, False, {"leases"}, id="leases-run-out"),
        pytest.param({"engine": 11.0, "consumer": 99.0}, False, {"engine", "consumer"}, id="two"),
    ],
)
def test_alive_is_what_comes_round(silent_s, is_draining, failing):
    verdict = liveness(FINE | silent_s, redis_up_s=99.0, redis_timeout_s=5.0, is_draining=is_draining)
    assert {part for part, why in verdict.checks.items() if why} == failing
    assert verdict.is_ok is (not failing)


def test_who_may_wait_longer_for_redis_may_be_silent_longer():
    silent_s = FINE | {"consumer": 13.0}
    assert not liveness(silent_s, redis_up_s=99.0, redis_timeout_s=0.5, is_draining=False).is_ok
    assert liveness(silent_s, redis_up_s=99.0, redis_timeout_s=1.0, is_draining=False).is_ok


@pytest.mark.parametrize(
    ("redis_up_s", "is_ok"),
    [
        pytest.param(0.0, True, id="away"),
        pytest.param(29.0, True, id="back-lately"),
        pytest.param(31.0, False, id="back-long-ago"),
    ],
)
def test_a_consumer_that_waits_for_redis_is_not_stuck(redis_up_s, is_ok):
    silent_s = FINE | {"consumer": 600.0}
    assert liveness(silent_s, redis_up_s=redis_up_s, redis_timeout_s=5.0, is_draining=False).is_ok is is_ok


def test_no_redis_is_no_excuse_for_an_engine_or_the_lease_thread():
    silent_s = FINE | {"engine": 11.0, "leases": 31.0}
    verdict = liveness(silent_s, redis_up_s=0.0, redis_timeout_s=5.0, is_draining=False)
    assert {part for part, why in verdict.checks.items() if why} == {"engine", "leases"}


def test_a_probe_says_why():
    body = liveness(FINE | {"engine": 12.34}, redis_up_s=99.0, redis_timeout_s=5.0, is_draining=False).body()
    assert body == {
        "ok": False,
        "checks": {"engine": "silent for 12.3 s, limit 10 s", "consumer": "ok", "leases": "ok"},
    }


def servers(**health):
    return {
        name: [{"address": f"http://{name}-{index}", "health": each} for index, each in enumerate(found)]
        for name, found in health.items()
    }


@pytest.mark.parametrize(
    ("redis_trouble", "found", "is_started", "is_draining", "failing"),
    [
        pytest.param("", servers(a=[Health.UP]), True, False, set(), id="ready"),
        pytest.param("no answer", servers(a=[Health.UP]), True, False, {"redis"}, id="no-redis"),
        pytest.param("", servers(a=[Health.DOWN, Health.UP]), True, False, set(), id="one-server-is-enough"),
        pytest.param("", servers(a=[Health.DOWN], b=[Health.UP]), True, False, set(), id="of-one-generator"),
        pytest.param("", servers(), True, False, {"endpoints"}, id="serves-nothing"),
        pytest.param("", servers(a=[Health.RESTS]), True, False, set(), id="full-is-there"),
        pytest.param("", servers(a=[Health.WAKING]), True, False, set(), id="waking-is-there"),
        pytest.param("", servers(a=[Health.DOWN]), True, False, {"endpoints"}, id="no-server"),
        pytest.param("", servers(a=[Health.REFUSES]), True, False, {"endpoints"}, id="a-wrong-token"),
        pytest.param("", servers(a=[Health.UP]), False, False, {"consumer"}, id="starting"),
        pytest.param("", servers(a=[Health.UP]), True, True, {"consumer"}, id="stopping"),
    ],
)
def test_ready_is_who_has_redis_and_a_server(redis_trouble, found, is_started, is_draining, failing):
    verdict = readiness(redis_trouble, found, is_started=is_started, is_draining=is_draining)
    assert {name for name, why in verdict.checks.items() if why} == failing
    assert verdict.is_ok is (not failing)


def test_who_is_not_ready_names_the_servers():
    verdict = readiness("", servers(a=[Health.DOWN, Health.REFUSES]), is_started=True, is_draining=False)
    assert verdict.body()["checks"]["endpoints"] == "none can be asked: http://a-0 (down), http://a-1 (refuses)"
