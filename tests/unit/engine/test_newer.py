"""A request of a newer version, and one that is wrong in any."""

import json

import pytest
from pydantic import ValidationError

from genqueue.wire.request import GenerationRequest
from genqueue_worker.engine.newer import after_unknown, unknown_here


@pytest.mark.parametrize(
    ("fields", "unknown"),
    [
        pytest.param({"prompt": "a", "tenant": "x"}, "the field tenant", id="a-field"),
        pytest.param({"prompt": "a", "b": 1, "a": 2}, "the field a, the field b", id="several"),
        pytest.param(
            {"prompt": "a", "generation_kwargs": {"min_p": 0.1}}, "the field generation_kwargs.min_p", id="a-parameter"
        ),
        pytest.param(
            {"messages": [{"role": "user", "content": "a"}], "generation_kwargs": {"zeal": 1}},
            "the field generation_kwargs.zeal",
            id="a-parameter-of-a-chat",
        ),
        pytest.param({"v": 2, "prompt": "a"}, "version 2", id="a-version"),
        pytest.param({"v": 3, "prompt": "a", "tenant": "x"}, "the field tenant, version 3", id="both"),
        pytest.param({"v": 10**30, "prompt": "a"}, "version 1000000", id="a-version-out-of-this-world"),
        pytest.param({"prompt": "", "tenant": "x"}, "the field tenant", id="beside-what-is-wrong-by-our-rules"),
        pytest.param({"prompt": "a", "Tell me a secret\n": 1}, "a field", id="a-prompt-in-the-place-of-a-name"),
        pytest.param({"prompt": "a", "x" * 100: 1}, "a field", id="a-name-that-is-none"),
        pytest.param({"prompt": ""}, None, id="a-bad-value"),
        pytest.param({"prompt": "a", "priority": 77}, None, id="out-of-bounds"),
        pytest.param({"prompt": "a", "on_failure": "pray"}, None, id="no-such-word"),
        pytest.param({}, None, id="nothing"),
        pytest.param({"v": 0, "prompt": "a"}, None, id="a-version-that-never-was"),
        pytest.param({"v": "2", "prompt": "a"}, None, id="a-version-of-text"),
        pytest.param({"v": None, "prompt": "a"}, None, id="no-version"),
        pytest.param([], None, id="no-object"),
    ],
)
def test_only_what_this_version_does_not_know_is_put_back(fields, unknown):
    with pytest.raises(ValidationError) as invalid:
        GenerationRequest.model_validate_json(json.dumps(fields))
    assert unknown_here(invalid.value) == unknown


def test_what_is_no_json_is_wrong_in_any_version():
    with pytest.raises(ValidationError) as invalid:
        GenerationRequest.model_validate_json("{")
    assert unknown_here(invalid.value) is None


WEEK_S = 7 * 86_400


def after(attempt=1, waited_s=0.0, keep_s=WEEK_S, errors=(), draw=0.0):
    facts = {"attempt": attempt, "waited_s": waited_s, "keep_s": keep_s, "errors": errors, "draw": draw}
    return after_unknown("the field tenant", **facts)


@pytest.mark.parametrize(
    ("attempt", "least_s", "most_s"),
    [(1, 0.5, 1.0), (2, 1.0, 2.0), (9, 128.0, 256.0), (10, 150.0, 300.0), (4000, 150.0, 300.0)],
)
def test_it_rests_longer_each_time_and_never_for_long(attempt, least_s, most_s):
    assert after(attempt) == least_s
    assert least_s < after(attempt, draw=0.999) < most_s


@pytest.mark.parametrize(
    ("attempt", "waited_s", "keep_s"),
    [
        pytest.param(1, 60.0, 60, id="for-so-long"),
        pytest.param(1, 1e9, WEEK_S, id="for-very-long"),
        pytest.param(10**6, -1e9, WEEK_S, id="again-and-again-though-the-clock-went-back"),
        pytest.param(102, 0.0, 60, id="again-and-again"),
    ],
)
def test_it_has_an_end_in_words_that_can_be_tried_again(attempt, waited_s, keep_s):
    errors = [{"attempt": 1, "message": "the lease of a worker ran out"}]
    end = after(attempt, waited_s, keep_s, errors)
    assert end.message == f"no worker that took it within {keep_s} s (keep_s) knows the field tenant"
    assert end.is_worth_another_try
    assert end.detail["errors"] == errors


@pytest.mark.parametrize("waited_s", [-1e9, 0.0, 30.0, 59.0, 59.9999])
@pytest.mark.parametrize("attempt", [1, 5, 50, 100])
def test_it_is_offered_again_before_its_record_is_forgotten(attempt, waited_s):
    """A record lives for keep_s from the try on."""
    rest_s = after(attempt, waited_s, keep_s=60, draw=0.999)
    assert 0 < rest_s <= 30
    assert max(0.0, waited_s) + rest_s <= 60 or rest_s <= 0.5


@pytest.mark.parametrize("keep_s", [60, 3600, WEEK_S])
@pytest.mark.parametrize("clock", [0.0, 1.0], ids=["clock-stands-still", "clock-goes-on"])
def test_however_the_clock_goes_the_tries_are_few(keep_s, clock):
    waited_s, attempt = 0.0, 0
    while isinstance(rest_s := after(attempt := attempt + 1, waited_s, keep_s), float):
        waited_s += clock * rest_s
    assert attempt <= 102 + keep_s / 150
    assert clock == 0 or keep_s <= waited_s <= keep_s + 1
