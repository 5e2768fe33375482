"""Which server is asked next."""

import pytest

from genqueue_worker.endpoints import Endpoint, Health, any_up, choose

NOW_S = 1000.0


def server(name="a", **facts):
    return Endpoint(f"http://{name}", f"http://{name}", **facts)


@pytest.mark.parametrize(
    ("servers", "expected"),
    [
        pytest.param([server("a"), server("b")], "a", id="the-first"),
        pytest.param([server("a", running=2), server("b", running=1)], "b", id="the-least-busy"),
        pytest.param([server("a", calls=9), server("b", calls=8)], "b", id="the-least-asked-of-equals"),
        pytest.param([server("a", rests_until_s=NOW_S + 1), server("b", running=9)], "b", id="one-that-need-not-rest"),
        pytest.param([server("a", rests_until_s=NOW_S), server("b", running=1)], "a", id="has-rested"),
        pytest.param(
            [server("a", rests_until_s=NOW_S + 2), server("b", rests_until_s=NOW_S + 1, running=1)],
            "b",
            id="all-rest-so-the-one-that-rests-least",
        ),
        pytest.param(
            [server("a", is_down=True), server("b", rests_until_s=NOW_S + 30)], "b", id="not-one-that-is-down"
        ),
        pytest.param([server("a", is_down=True), server("b", is_down=True)], None, id="none-when-all-are-down"),
    ],
)
def test_the_next_call_goes_to(servers, expected):
    chosen = choose(servers, NOW_S)
    assert (chosen and chosen.address.removeprefix("http://")) == expected


def test_many_short_calls_are_spread():
    servers = [server(name) for name in "abc"]
    for _ in range(30):
        chosen = choose(servers, NOW_S)
        assert chosen is not None
        chosen.calls += 1
    assert [one.calls for one in servers] == [10, 10, 10]


def test_a_server_that_fails_rests_longer_each_time_until_it_succeeds():
    one = server()
    rests_s = []
    for _ in range(7):
        one.failed(NOW_S, "CUDA error")
        rests_s.append(one.rests_until_s - NOW_S)
    assert rests_s == [1, 2, 4, 8, 16, 30, 30]
    assert (one.health(NOW_S), one.trouble) == (Health.RESTS, "CUDA error")
    assert one.health(NOW_S + 30) is Health.UP
    one.succeeded()
    assert (one.health(NOW_S), one.failures, one.trouble) == (Health.UP, 0, "")


@pytest.mark.parametrize(("asked_s", "rest_s"), [(None, 1), (7.0, 7), (1e9, 30)])
def test_a_full_server_rests_for_as_long_as_it_asks(asked_s, rest_s):
    one = server()
    one.was_full(NOW_S, asked_s, "overloaded")
    assert one.rests_until_s - NOW_S == rest_s
    assert one.failures == 0


def test_a_server_that_is_down_stays_so_until_a_probe_finds_it():
    one = server()
    one.went_down("connection refused")
    assert (one.health(NOW_S + 1e6), one.trouble) == (Health.DOWN, "connection refused")
    assert not any_up([one], NOW_S)
    assert any_up([one, server("b")], NOW_S)
    one.came_back()
    assert (one.health(NOW_S), one.trouble) == (Health.UP, "")
