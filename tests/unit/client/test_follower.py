"""Any order, any number of times, any gap: each event once, in order."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genqueue.client.follower import Follower
from genqueue.wire.events import Cancelled, Chunk, Event, Failed, Finished, Started


def chunk(seq: int, attempt: int = 1) -> Chunk:
    return Chunk(seq=seq, attempt=attempt, text=f"{seq} ")


def finished(seq: int) -> Finished:
    return Finished(seq=seq, attempt=1, finish_reason="length", completion_tokens=seq)


def seqs(events: list[Event]) -> list[int]:
    return [event.seq for event in events]


@pytest.mark.parametrize(
    ("script", "expected", "has_gap"),
    [
        pytest.param([1, 2, 3], [[1], [2], [3]], False, id="in-order"),
        pytest.param([2, 1], [[], [1, 2]], False, id="swapped"),
        pytest.param([1, 1, 2], [[1], [], [2]], False, id="redelivered"),
        pytest.param([1, 3], [[1], []], True, id="gap"),
        pytest.param([1, 3, 4, 2], [[1], [], [], [2, 3, 4]], False, id="gap-filled"),
        pytest.param([3, 3, 1, 2], [[], [], [1], [2, 3]], False, id="early-twice"),
        pytest.param([0, -1, 1], [[], [], [1]], False, id="numbers-that-never-were"),
    ],
)
def test_each_event_is_handed_out_once_and_in_its_turn(script, expected, has_gap):
    follower = Follower()
    assert [seqs(follower.feed([chunk(seq)])) for seq in script] == expected
    assert follower.has_gap is has_gap


@pytest.mark.parametrize(
    ("from_seq", "expected"),
    [(0, [1, 2, 3]), (1, [2, 3]), (2, [3]), (3, []), (99, [])],
)
def test_a_reader_begins_after_the_number_it_names(from_seq, expected):
    assert seqs(Follower(from_seq).feed([chunk(1), chunk(2), finished(3)])) == expected


def test_a_negative_from_seq_is_refused():
    with pytest.raises(ValueError, match="from_seq is -1, must be at least 0"):
        Follower(-1)


@pytest.mark.parametrize(
    "terminal",
    [
        finished(2),
        Failed(seq=2, attempt=1, error="failed", message="m"),
        Cancelled(seq=2, attempt=1),
    ],
    ids=["finished", "failed", "cancelled"],
)
def test_nothing_comes_after_the_terminal_event(terminal):
    follower = Follower()
    assert seqs(follower.feed([chunk(3), terminal, Started(seq=1, attempt=1, at=0.0, worker="w")])) == [1, 2]
    assert follower.terminal == terminal
    assert not follower.has_gap
    assert follower.feed([chunk(3), chunk(4)]) == []


def test_a_terminal_event_waits_for_its_turn_too():
    follower = Follower()
    assert follower.feed([finished(3)]) == []
    assert follower.terminal is None
    assert follower.has_gap


@st.composite
def deliveries(draw: st.DrawFn) -> tuple[int, list[list[Event]]]:
    """Batches that hold each of n events at least once, in any order."""
    count = draw(st.integers(1, 12))
    events: list[Event] = [chunk(seq) for seq in range(1, count)] + [finished(count)]
    extra = draw(st.lists(st.sampled_from(events), max_size=12))
    order = draw(st.permutations(events + extra))
    cuts = sorted(draw(st.lists(st.integers(0, len(order)), max_size=5)))
    bounds = [0, *cuts, len(order)]
    return count, [order[start:end] for start, end in itertools.pairwise(bounds)]


@given(deliveries(), st.integers(0, 12), st.integers(0, 12))
def test_two_readers_see_every_event_once_and_in_order(delivery, first_from, second_from):
    count, batches = delivery
    for from_seq in (first_from, second_from):
        follower = Follower(from_seq)
        seen = [event for batch in batches for event in follower.feed(batch)]
        assert seqs(seen) == list(range(from_seq + 1, count + 1))
        assert (follower.terminal is not None) == (from_seq < count)
        assert not follower.has_gap


@given(st.sets(st.integers(1, 30), min_size=1))
def test_a_gap_is_known_exactly_while_later_events_wait(received):
    follower = Follower()
    follower.feed([chunk(seq) for seq in received])
    in_turn = next(seq for seq in range(1, 32) if seq not in received)
    assert follower.next_seq == in_turn
    assert follower.has_gap == (max(received) > in_turn)


def started(seq: int, attempt: int, at: float = 0.0) -> Started:
    return Started(seq=seq, attempt=attempt, at=at, worker="w")


SEEN = [started(1, 1, at=5.0), chunk(2), chunk(3), chunk(4)]


@pytest.mark.parametrize(
    "others",
    [
        pytest.param([started(3, 2)], id="a-newer-attempt-began-where-we-were"),
        pytest.param([chunk(5, attempt=2)], id="its-middle-without-its-beginning"),
        pytest.param([started(1, 1, at=6.0)], id="the-same-number-was-given-twice"),
        pytest.param([started(5, 1, at=6.0)], id="and-came-late"),
        pytest.param([Finished(seq=5, attempt=2, finish_reason="length", completion_tokens=1)], id="its-end"),
    ],
)
def test_a_log_that_was_written_anew_is_noticed_and_not_mixed_with_the_old(others):
    follower = Follower()
    assert len(follower.feed(SEEN)) == 4
    assert follower.feed(others) == []
    assert not follower.is_whole
    assert follower.feed([chunk(5)]) == []


@pytest.mark.parametrize(
    "others",
    [
        pytest.param([*SEEN, chunk(5)], id="seen-before"),
        pytest.param([started(5, 2), chunk(6, attempt=2), chunk(3)], id="a-later-attempt"),
        pytest.param([started(5, 4), Cancelled(seq=6, attempt=4)], id="attempts-that-wrote-nothing"),
    ],
)
def test_attempts_that_follow_each_other_are_one_history(others):
    follower = Follower()
    assert len(follower.feed(SEEN) + follower.feed(others)) == 4 + len([event for event in others if event.seq > 4])
    assert follower.is_whole


def test_a_reader_that_begins_in_the_middle_takes_it_for_what_it_is():
    follower = Follower(7)
    assert seqs(follower.feed([chunk(8, attempt=3), chunk(9, attempt=3)])) == [8, 9]
    assert follower.is_whole


@pytest.mark.parametrize(("last", "is_whole"), [(3, False), (4, True), (5, True)])
def test_an_end_before_what_was_handed_out_is_another_history(last, is_whole):
    follower = Follower()
    follower.feed(SEEN)
    follower.ends_at(last)
    assert follower.is_whole is is_whole


@pytest.mark.parametrize(
    "heard",
    [
        pytest.param(chunk(10**30), id="far-future"),
        pytest.param(chunk(5, attempt=2), id="another-attempt"),
        pytest.param(started(2, 9), id="an-attempt-that-would-have-been"),
    ],
)
def test_what_only_the_channel_knows_costs_few_looks_and_changes_nothing(heard):
    follower, looks = Follower(), 0
    follower.feed(SEEN)
    for _ in range(10_000):
        assert follower.hear([heard]) == []
        if follower.has_gap:
            looks += 1
            assert follower.feed(SEEN[follower.read_from - 1 :]) == []
            follower.read_to_end()
    assert looks < 25
    assert follower.is_whole
    assert seqs(follower.hear([chunk(5), chunk(6)])) == [5, 6]


def test_a_beginning_that_only_the_channel_knows_is_taken_back():
    follower = Follower()
    follower.feed(SEEN)
    assert seqs(follower.hear([started(5, 9)])) == [5]
    assert follower.hear([chunk(5), chunk(6)]) == []
    assert follower.read_from == 5
    assert follower.feed([chunk(5), chunk(6)]) == []
    assert not follower.is_whole


@pytest.mark.parametrize(("logged_as", "is_whole"), [("2 ", True), ("another ", False)])
def test_who_lost_sight_takes_nothing_until_the_log_has_what_came_last(logged_as, is_whole):
    """Redis forgot an attempt, and another wrote under its numbers; that it began went unheard."""
    follower = Follower()
    begun = Started(seq=1, attempt=1, at=5.0, worker="host:1:a")
    assert seqs(follower.hear([begun, chunk(2)])) == [1, 2]
    follower.lost_sight()
    follower.feed([])  # the log is shorter: its writer may write it again, or another
    follower.read_to_end()
    assert follower.is_whole
    assert follower.hear([chunk(3)]) == []
    assert follower.has_gap and follower.read_from == 2
    logged = Chunk(seq=2, attempt=1, text=logged_as)
    assert seqs(follower.feed([logged, chunk(3)])) == ([3] if is_whole else [])
    assert follower.is_whole is is_whole
    if is_whole:
        assert seqs(follower.hear([chunk(4)])) == [4]


def test_who_lost_sight_before_the_first_event_goes_on():
    follower = Follower()
    follower.lost_sight()
    assert follower.read_from == 1
    assert seqs(follower.hear([chunk(1)])) == [1]
