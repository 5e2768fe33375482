"""What a reader is given when another attempt begins anew: always one text's beginning, or an error."""

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from genqueue.client.delivery import Continuing, Marking
from genqueue.errors import StreamRestartedError
from genqueue.wire.events import Chunk, Reset, Token, ToolCallDelta, join_tool_calls

RESET = Reset(seq=7, attempt=2)


def chunk(text="", **fields):
    return Chunk(seq=1, attempt=1, text=text, **fields)


def tokens(*texts):
    return tuple(Token(number, text, -0.1, text.startswith("<")) for number, text in enumerate(texts))


def call(index, call_id=None, name=None, arguments=""):
    return ToolCallDelta(index, call_id, name, arguments)


def calls(*pieces):
    return chunk(tool_calls=tuple(pieces))


def taken(delivery, chunks):
    return [one for each in chunks for one in delivery.take(each)]


def behind(before, after):
    """What is given of an attempt that begins anew after ``before`` was delivered."""
    delivery = Continuing("id")
    assert taken(delivery, before) == before
    delivery.begin_anew(RESET)
    return taken(delivery, after) + delivery.finish()


def test_what_no_attempt_made_void_is_handed_out_as_it_is():
    chunks = [chunk("a", tokens=tokens("a")), chunk(), chunk("b", reasoning="r", tool_calls=(call(0, "x", "f"),))]
    delivery = Continuing("id")
    assert all(given is came for given, came in zip(taken(delivery, chunks), chunks, strict=True))


IT_IS_SO = tokens("It", " is", " so")


@pytest.mark.parametrize(
    ("again", "rest"),
    [
        pytest.param(chunk("It is so", tokens=IT_IS_SO), chunk(" so", tokens=IT_IS_SO[2:]), id="between-tokens"),
        pytest.param(chunk("It is so", tokens=tokens("It", " is so")), chunk(" so"), id="within-the-last-token"),
        pytest.param(
            chunk("It is s", tokens=tokens("It", " is ", "s")),
            chunk(" s", tokens=tokens("It", " is ", "s")[2:]),
            id="within-a-token",
        ),
        pytest.param(
            chunk("It is", tokens=tokens("It", " is", "</s>")),
            chunk("", tokens=tokens("It", " is", "</s>")[2:]),
            id="before-a-special-token",
        ),
        pytest.param(
            chunk("It is so", tokens=tokens("It", " is", "\ufffd", " so")), chunk(" so"), id="tokens-spell-no-text"
        ),
        pytest.param(
            chunk("It is so", tokens=IT_IS_SO, top_tokens=tuple((one,) for one in IT_IS_SO)),
            chunk(" so", tokens=IT_IS_SO[2:], top_tokens=((IT_IS_SO[2],),)),
            id="alternatives-go-with-their-token",
        ),
        pytest.param(chunk("It is so", pieces=(2, 3, 3)), chunk(" so"), id="one-piece-is-left"),
        pytest.param(chunk("It is so.", pieces=(2, 5, 2)), chunk(" so.", pieces=(2, 2)), id="within-a-piece"),
    ],
)
def test_a_chunk_across_the_seam_is_cut(again, rest):
    assert behind([chunk("It"), chunk(" is")], [again]) == [rest]


@pytest.mark.parametrize(
    ("before", "after", "rest"),
    [
        pytest.param([chunk()], [chunk("x")], [chunk("x")], id="nothing-was-delivered"),
        pytest.param([], [chunk("x")], [chunk("x")], id="no-chunk-was-delivered"),
        pytest.param([chunk("ab")], [chunk("a"), chunk(), chunk("b")], [], id="the-same"),
        pytest.param(
            [chunk(reasoning="Hm"), chunk("a")],
            [chunk(reasoning="Hm, yes"), chunk("ab")],
            [chunk(reasoning=", yes"), chunk("b")],
            id="what-is-new-waits-until-all-that-was-delivered-has-come-again",
        ),
        pytest.param(
            [calls(call(0, "x", "f", '{"a'))],
            [calls(call(0, "x", "f")), calls(call(0, None, None, '{"a": 1}'), call(1, "y", "g"))],
            [calls(call(0, None, None, '": 1}'), call(1, "y", "g"))],
            id="a-call-goes-on",
        ),
        pytest.param(
            [calls(call(0, None, None, "{"))],
            [calls(call(0, "x", "f", "{}"))],
            [calls(call(0, "x", "f", "}"))],
            id="a-call-is-named-late",
        ),
        pytest.param(
            [chunk("a", tokens=tokens("<s>", "a"))],
            [chunk("", tokens=tokens("<s>")), chunk("ab", tokens=tokens("a", "b"))],
            [chunk("b", tokens=tokens("a", "b")[1:])],
            id="a-special-token-before-the-seam-comes-once",
        ),
    ],
)
def test_the_reader_goes_on_behind_what_was_delivered(before, after, rest):
    assert behind(before, after) == rest


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param([chunk("ab")], [chunk("a"), chunk("x")], id="text"),
        pytest.param([chunk("ab")], [chunk("a")], id="shorter-text"),
        pytest.param([chunk("ab")], [], id="no-text"),
        pytest.param([chunk(reasoning="Hm")], [chunk(reasoning="Ah")], id="reasoning"),
        pytest.param([chunk(reasoning="Hm")], [chunk("Hm")], id="reasoning-became-text"),
        pytest.param([calls(call(0, "x", "f"))], [calls(call(0, "y", "f"))], id="id"),
        pytest.param([calls(call(0, "x", "f"))], [calls(call(0, "x", "g"))], id="function"),
        pytest.param([calls(call(0, "x", "f", "{}"))], [calls(call(0, "x", "f", "[]"))], id="arguments"),
        pytest.param([calls(call(0, "x", "f", "{}"))], [calls(call(0, "x", "f", "{"))], id="shorter-arguments"),
        pytest.param([calls(call(0, "x", "f", "{}"))], [calls(call(1, "x", "f", "{}"))], id="index"),
        pytest.param([calls(call(0, "x", "f", "{}"))], [chunk("It rains.")], id="no-call"),
    ],
)
def test_another_text_is_an_error(before, after):
    with pytest.raises(StreamRestartedError) as raised:
        behind(before, after)
    assert raised.value.delivered_text == "".join(each.text for each in before)
    assert raised.value.delivered_reasoning == "".join(each.reasoning for each in before)
    assert raised.value.restart_seq == RESET.seq


def test_a_contradiction_is_an_error_as_soon_as_it_is_certain():
    delivery = Continuing("id")
    taken(delivery, [chunk("abc")])
    delivery.begin_anew(RESET)
    assert delivery.take(chunk("ab")) == []
    with pytest.raises(StreamRestartedError):
        delivery.take(chunk("x"))


def test_what_was_held_back_of_an_attempt_that_is_void_itself_is_forgotten():
    delivery = Continuing("id")
    taken(delivery, [chunk("a", reasoning="Hm")])
    for more in (", no", ", yes"):
        delivery.begin_anew(RESET)
        assert delivery.take(chunk(reasoning="Hm" + more)) == []
    assert taken(delivery, [chunk("ab")]) == [chunk(reasoning=", yes"), chunk("b")]


def test_an_earlier_readers_text_is_compared_too():
    delivery = Continuing("id", from_seq=5)
    assert delivery.lacks_beginning
    taken(delivery, [chunk("b")])
    delivery.remember([chunk("a")])
    delivery.begin_anew(RESET)
    assert taken(delivery, [chunk("abc")]) == [chunk("c")]


def test_where_an_earlier_readers_text_is_not_known_every_restart_is_an_error():
    delivery = Continuing("id", from_seq=5)
    with pytest.raises(StreamRestartedError):
        delivery.begin_anew(RESET)


def test_marks_are_for_who_has_something_to_forget():
    marking = Marking()
    marking.begin_anew(RESET)
    assert taken(marking, [chunk("a")]) == [chunk("a")]
    marking.begin_anew(RESET)
    (marked, after) = taken(marking, [chunk("b"), chunk("c")])
    assert (marked.restarts, after.restarts, marking.finish()) == (True, False, [])
    marking.begin_anew(RESET)
    (end,) = marking.finish()
    assert (end.restarts, end.text, end.seq) == (True, "", RESET.seq)


# --- whatever the attempts are -----------------------------------------------------------------

PIECES = st.builds(
    ToolCallDelta,
    st.sampled_from([0, 1]),
    st.sampled_from([None, "x"]),
    st.sampled_from([None, "f", "g"]),
    st.just("a"),
)
CHUNKS = st.builds(
    lambda text, reasoning, pieces: chunk(text, reasoning=reasoning, tool_calls=tuple(pieces)),
    st.text("ab", max_size=3),
    st.sampled_from(["", "", "r"]),
    st.lists(PIECES, max_size=1),
)
ATTEMPTS = st.lists(st.lists(CHUNKS, max_size=6), min_size=1, max_size=4)


def joined(chunks):
    return (
        "".join(each.text for each in chunks),
        "".join(each.reasoning for each in chunks),
        join_tool_calls(piece for each in chunks for piece in each.tool_calls),
    )


def deliver(attempts):
    """Everything that is given of these attempts, each of which makes the one before it void; and the error."""
    delivery, delivered = Continuing("id"), []
    try:
        for number, attempt in enumerate(attempts):
            if number:
                delivery.begin_anew(RESET)
            for each in attempt:
                delivered += delivery.take(each)
        return delivered + delivery.finish(), None
    except StreamRestartedError as error:
        return delivered, error


def called(*names):
    return [chunk("", tool_calls=(ToolCallDelta(0, None, name, "a"),)) for name in names]


@given(ATTEMPTS)
@example([called(None, "f"), called("f", "f")])
@example([called("f", None), called("f", "g")])
def test_what_is_joined_is_the_reply_or_there_is_an_error(attempts):
    delivered, error = deliver(attempts)
    if error is None:
        assert joined(delivered) == joined(attempts[-1])
    else:
        assert error.delivered_text == joined(delivered)[0]
        assert any(joined(attempt)[0].startswith(joined(delivered)[0]) for attempt in attempts)


@given(st.text("ab", max_size=12), st.lists(st.lists(st.integers(0, 12), max_size=4), min_size=1, max_size=4))
def test_attempts_that_say_the_same_are_one_text_however_they_are_cut(text, cuts):
    """Each attempt but the last is broken off somewhere; where it is cut into chunks is its own."""
    attempts = []
    for number, places in enumerate(cuts):
        end = len(text) if number == len(cuts) - 1 else min([len(text), *places[:1]])
        bounds = [0, *sorted(min(place, end) for place in places), end]
        attempts.append([chunk(text[begin:until]) for begin, until in pairwise(bounds)])
    delivered, error = deliver(attempts)
    assert error is None
    assert "".join(each.text for each in delivered) == text
