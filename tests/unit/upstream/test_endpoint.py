"""Which server is asked next, and how many calls it is asked to take."""

import math

import pytest

from genqueue.registry.fleet import Health
from genqueue_worker.upstream.endpoint import Endpoint, any_up, choose

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
            [server("a", running=1, limit=1, full_until_s=NOW_S + 1), server("b", running=9)], "b", id="one-with-room"
        ),
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


def begin(one, calls, now_s=NOW_S):
    for _ in range(calls):
        one.began(now_s)


def refuse_one_more(one, now_s=NOW_S, retry_after_s=None):
    """A call is made, and finds the server full."""
    one.began(now_s)
    one.was_full(now_s, retry_after_s, "overloaded")
    one.running -= 1


def test_a_server_that_was_never_full_has_room_for_any_number():
    one = server()
    begin(one, 1000)
    assert one.room(NOW_S) == math.inf


def test_a_full_server_has_room_for_as_many_as_it_took():
    one = server()
    begin(one, 10)
    refuse_one_more(one)
    assert (one.room(NOW_S), one.health(NOW_S), one.trouble) == (0, Health.RESTS, "overloaded")
    one.running -= 3
    assert (one.room(NOW_S), one.health(NOW_S)) == (3, Health.UP)
    assert one.failures == 0


def test_of_many_calls_at_once_the_last_that_is_refused_tells_how_many_it_takes():
    one = server()
    begin(one, 50)
    for _ in range(42):
        one.was_full(NOW_S, None, "overloaded")
        one.running -= 1
    assert (one.running, one.limit, one.room(NOW_S)) == (8, 8, 0)


def test_whether_a_full_server_takes_more_is_tried_with_one_then_with_twice_as_many_each_second():
    one = server()
    begin(one, 4)
    refuse_one_more(one)
    rooms = []
    for second in range(1, 6):
        rooms.append(one.room(NOW_S + second))
        begin(one, rooms[-1], NOW_S + second)
        assert one.room(NOW_S + second + 0.9) == 0
    assert rooms == [1, 2, 4, 8, 16]
    refuse_one_more(one, NOW_S + 6)
    assert (one.limit, one.room(NOW_S + 6.9), one.room(NOW_S + 7)) == (35, 0, 1)


@pytest.mark.parametrize(("asked_s", "rest_s"), [(None, 1), (7.0, 7), (1e9, 30)])
def test_a_full_server_is_tried_again_after_as_long_as_it_asks(asked_s, rest_s):
    one = server()
    refuse_one_more(one, retry_after_s=asked_s)
    assert (one.room(NOW_S + rest_s - 0.1), one.room(NOW_S + rest_s)) == (0, 1)


def test_that_a_server_was_full_is_forgotten():
    one = server()
    begin(one, 3)
    refuse_one_more(one)
    assert one.room(NOW_S + 31) == math.inf
    begin(one, 50, NOW_S + 31)
    assert one.room(NOW_S + 31) == math.inf


def refuses_all(one, now_s=NOW_S):
    for _ in range(3):
        one.refused(now_s, "wrong token")


def test_of_a_server_that_refuses_whatever_comes_one_call_is_asked_after_each_rest():
    one = server()
    one.refused(NOW_S, "wrong token")
    one.refused(NOW_S, "wrong token")
    assert (one.room(NOW_S), one.health(NOW_S), one.rests_until_s) == (math.inf, Health.RESTS, NOW_S + 2)
    now_s, rests_s = NOW_S, []
    for _ in range(5):
        one.refused(now_s, "wrong token")
        assert (one.room(now_s), one.health(now_s), one.trouble) == (0, Health.REFUSES, "wrong token")
        rests_s.append(one.rests_until_s - now_s)
        now_s = one.rests_until_s
        assert one.room(now_s) == 1
        one.began(now_s)
        assert (one.room(now_s), one.room(now_s + 9)) == (0, 0)  # however long its answer takes
        one.running -= 1
    assert rests_s == [4, 8, 16, 30, 30]
    one.refused(now_s, "wrong token")
    assert (one.refuses_since_s, one.room(NOW_S + 1e6)) == (NOW_S, 1)


def test_a_server_that_refused_whatever_came_is_trusted_when_it_has_done_something():
    one = server()
    refuses_all(one)
    one.succeeded()
    assert (one.room(NOW_S), one.health(NOW_S), one.refusals) == (math.inf, Health.UP, 0)


def test_what_began_before_it_refused_says_nothing_of_it_now():
    one = server()
    refuses_all(one)
    one.succeeded(NOW_S - 1)
    assert (one.room(NOW_S), one.health(NOW_S)) == (0, Health.REFUSES)
    one.succeeded(NOW_S + 1)
    assert (one.room(NOW_S), one.health(NOW_S)) == (math.inf, Health.UP)


def test_requests_that_a_server_refuses_between_others_are_those_requests_fault():
    one = server()
    for _ in range(10):
        one.refused(NOW_S, "no")
        one.refused(NOW_S, "no")
        one.succeeded()
    assert (one.room(NOW_S), one.health(NOW_S)) == (math.inf, Health.UP)


def test_a_server_that_is_down_stays_so_until_a_probe_finds_it():
    one = server()
    one.went_down("connection refused")
    assert (one.health(NOW_S + 1e6), one.trouble) == (Health.DOWN, "connection refused")
    assert not any_up([one], NOW_S)
    assert any_up([one, server("b")], NOW_S)
    one.came_back()
    assert (one.health(NOW_S), one.trouble) == (Health.UP, "")


# --- refusals, and how soon what they limited is free again -----------------------------------------


def test_more_follow_as_soon_as_one_more_was_taken():
    one = server()
    refuse_one_more(one)
    now_s, rooms = NOW_S + 1, []
    for _ in range(5):
        rooms.append(one.room(now_s))
        begin(one, rooms[-1], now_s)
        assert one.room(now_s) == 0
        one.took(now_s, now_s + 0.05)  # the first token
        now_s += 0.05
    assert rooms == [1, 2, 4, 8, 16]


def test_a_token_of_a_call_within_the_limit_is_no_sign_that_more_are_taken():
    one = server()
    begin(one, 4)
    refuse_one_more(one)
    one.took(NOW_S, NOW_S + 0.1)
    assert one.room(NOW_S + 0.9) == 0
    one.running -= 1
    one.began(NOW_S + 0.9)  # in the place of one that ended
    one.took(NOW_S + 0.9, NOW_S + 0.95)
    assert (one.room(NOW_S + 0.95), one.room(NOW_S + 1)) == (0, 1)


def test_where_none_of_ours_runs_twice_as_many_are_tried_each_second():
    one, now_s, rooms = server(), NOW_S, []
    for _ in range(7):
        refuse_one_more(one, now_s)
        assert one.room(now_s + 0.9) == 0
        now_s += 1
        rooms.append(one.room(now_s))
    assert rooms == [1, 2, 4, 8, 16, 16, 16]
    one.began(now_s)
    one.took(now_s, now_s)
    one.running -= 1
    refuse_one_more(one, now_s)
    assert one.room(now_s + 1) == 1


def test_a_server_that_says_when_to_come_again_is_asked_once_then():
    one = server()
    for _ in range(5):
        refuse_one_more(one, retry_after_s=3.0)
    assert (one.room(NOW_S + 2.9), one.room(NOW_S + 3)) == (0, 1)


def run(refuses, calls, *, duration_s=1.7, first_token_s=0.05):
    """Seconds until all of so many calls have ended that wait for one server, and how many it refused.

    ``refuses(now_s, running, tries, call)``: whether it does that to the call, of which that is the nth try.
    """
    one, waiting, tries = server(), list(range(calls)), [0] * calls
    under_way: list[tuple[float, bool, float]] = []  # due, whether it is the end, begun
    now_s = 0.0
    refusals = ended = 0
    while ended < calls:
        assert now_s < 1000
        for moment in sorted(under_way):
            due_s, is_end, began_s = moment
            if due_s <= now_s:
                under_way.remove(moment)
                one.took(began_s, now_s)
                if is_end:
                    one.running -= 1
                    one.succeeded(began_s)
                    ended += 1
        begun = []
        while waiting and one.room(now_s) > 0:
            begun.append(waiting.pop(0))
            one.began(now_s)
        running = one.running - len(begun)
        for call in begun:
            tries[call] += 1
            if refuses(now_s, running, tries[call], call):
                one.was_full(now_s, None, "429")
                one.running -= 1
                refusals += 1
                waiting.append(call)
            else:
                running += 1
                under_way += [(now_s + first_token_s, False, now_s), (now_s + duration_s, True, now_s)]
        now_s += 0.02
    return now_s, refusals


@pytest.mark.parametrize(
    ("refuses", "calls", "most_s", "most_refusals"),
    [
        # Before: 189 s, 6.4 s, 20 s, 223 s.
        pytest.param(lambda now, running, tries, call: tries <= 4, 60, 20, 240, id="each-four-times-though-idle"),
        pytest.param(lambda now, running, tries, call: tries <= 1, 20, 3.5, 20, id="each-once"),
        pytest.param(lambda now, running, tries, call: tries == 1 and call % 20 == 0, 600, 19, 30, id="one-in-twenty"),
        pytest.param(lambda now, running, tries, call: tries == 1 and call % 3 == 0, 600, 100, 200, id="one-in-three"),
        # As before: a server that is full is asked for one more a second, and no more often.
        pytest.param(lambda now, running, tries, call: running >= 8, 200, 45, 260, id="full-at-8"),
        pytest.param(lambda now, running, tries, call: now < 20, 60, 24, 400, id="full-of-others-calls-for-20-s"),
    ],
)
def test_refusals_hold_up_no_more_than_they_must(refuses, calls, most_s, most_refusals):
    seconds, refusals = run(refuses, calls)
    assert seconds <= most_s
    assert refusals <= most_refusals
