"""A request of a newer version, and one that is wrong in any."""

import json

import pytest
from pydantic import ValidationError

from genqueue.messages import GenerationRequest
from genqueue_worker.newer import rests_s, unknown_here


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


@pytest.mark.parametrize(
    ("attempt", "least_s", "most_s"),
    [(1, 0.5, 1.0), (2, 1.0, 2.0), (9, 128.0, 256.0), (10, 150.0, 300.0), (10**9, 150.0, 300.0)],
)
def test_it_rests_longer_each_time_and_never_for_long(attempt, least_s, most_s):
    assert rests_s(attempt, 0.0) == least_s
    assert least_s < rests_s(attempt, 0.999) < most_s
