"""Timestamps in, phases out."""

import pytest

from genqueue.registry.timing import timings


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
