"""How long a peer is borne that takes nothing of what it is sent."""

import pytest

from genqueue_worker.upstream.http.peers import Patience, borne_ms

PATIENCE = Patience(idle_s=5, between_s=3, unheard_s=15)


@pytest.mark.parametrize(
    ("untaken_s", "unheard_s", "expected"),
    [
        pytest.param(0.0, 0.0, 15_000, id="just-sent"),
        pytest.param(3.0, 0.1, 15_000, id="waits-for-a-moment"),
        pytest.param(12.0, 0.1, 24_000, id="there-and-not-reading"),
        pytest.param(600.0, 11.9, 612_000, id="for-minutes"),
        pytest.param(600.0, 15.0, 15_000, id="unheard-by-now"),
        pytest.param(3.0, 3600.0, 15_000, id="idle-before"),
    ],
)
def test_a_peer_is_borne_while_it_is_heard(untaken_s, unheard_s, expected):
    assert borne_ms(PATIENCE, untaken_s=untaken_s, unheard_s=unheard_s) == expected
