"""Seconds in, the field's figures out."""

import pytest

from genqueue.timing import inter_chunk_gaps_s, timings, tpot_s


@pytest.mark.parametrize(
    ("stamps", "expected"),
    [
        pytest.param((10.0, None, None, None), (None, None, None, None, None), id="queued"),
        pytest.param((10.0, 12.5, None, None), (2.5, None, None, None, None), id="running"),
        pytest.param((10.0, 12.5, 13.0, None), (2.5, None, 0.5, None, None), id="streaming"),
        pytest.param((10.0, 12.5, 13.0, 20.0), (2.5, None, 0.5, 7.0, 10.0), id="finished"),
        pytest.param((10.0, 12.5, 53.0, 60.0, 40.0), (2.5, 40.0, 0.5, 7.0, 50.0), id="woken-up"),
        pytest.param((10.0, 12.5, None, 52.5, 40.0), (2.5, 40.0, None, None, 42.5), id="ended-while-it-woke-up"),
        pytest.param((10.0, None, None, 11.0), (None, None, None, None, 1.0), id="cancelled-in-the-queue"),
        pytest.param((10.0, 12.0, None, 13.0), (2.0, None, None, None, 3.0), id="empty-text"),
        pytest.param((10.0, 9.9, 9.8, 9.7), (0.0, None, 0.0, 0.0, 0.0), id="a-clock-set-back"),
    ],
)
def test_phases_are_the_differences_of_their_ends(stamps, expected):
    assert tuple(timings(*stamps).values()) == expected


@pytest.mark.parametrize(
    ("arrivals_s", "expected"),
    [([], []), ([1.0], []), ([1.0, 1.0, 3.5], [0.0, 2.5])],
    ids=["none", "one", "three"],
)
def test_gaps_lie_between_consecutive_arrivals(arrivals_s, expected):
    assert inter_chunk_gaps_s(arrivals_s) == expected


def test_arrivals_that_go_backwards_are_refused():
    with pytest.raises(ValueError, match="not monotonic"):
        inter_chunk_gaps_s([1.0, 2.0, 1.5])


@pytest.mark.parametrize(("completion_tokens", "expected"), [(0, None), (1, None), (2, 4.0), (5, 1.0)])
def test_time_per_output_token_needs_two_tokens(completion_tokens, expected):
    assert tpot_s(1.0, 5.0, completion_tokens) == expected
