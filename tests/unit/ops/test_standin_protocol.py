"""Which requests TGI refuses, in which words and in which order."""

import json

import pytest

from genqueue_ops.standin.protocol import (
    Limits,
    TgiError,
    check_best_of,
    check_streamable,
    is_sampling,
    parse_body,
    parse_generate,
    stop_matches,
    validate,
)
from genqueue_ops.standin.serde import Rejection

LIMITS = Limits(max_input_tokens=10, max_total_tokens=16)


def request(inputs="a b c", **parameters):
    return parse_generate({"inputs": inputs, "parameters": parameters})


def valid(asked, limits=LIMITS):
    words = [f" {word}" for word in asked.inputs.split()]
    return validate(asked, words, limits=limits, drawn_seed=7)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"best_of": 2}, "you must use sampling when `best_of` is > 1"),
        ({"temperature": 0}, "`temperature` must be strictly positive"),
        ({"temperature": -0.5}, "`temperature` must be strictly positive"),
        ({"repetition_penalty": 0.0}, "`repetition_penalty` must be strictly positive"),
        ({"frequency_penalty": 2.1}, "`frequency_penalty` must be >= -2.0 and <= 2.0"),
        ({"frequency_penalty": -2.1}, "`frequency_penalty` must be >= -2.0 and <= 2.0"),
        ({"top_p": 0.0}, "`top_p` must be > 0.0 and < 1.0"),
        ({"top_p": 1.0}, "`top_p` must be > 0.0 and < 1.0"),
        ({"typical_p": 1.0}, "`typical_p` must be > 0.0 and < 1.0"),
        ({"top_k": 0}, "`top_k` must be strictly positive"),
        ({"top_k": -1}, "`top_k` must be strictly positive"),
        ({"max_new_tokens": 0}, "`max_new_tokens` must be strictly positive"),
        ({"stop": ["1", "2", "3", "4", "5"]}, "`stop` supports up to 4 stop sequences. Given: 5"),
        ({"best_of": 2, "do_sample": True, "seed": 1}, "`seed` must not be set when `best_of` > 1"),
        ({"top_n_tokens": 6}, "`top_n_tokens` must be >= 0 and <= 5. Given: 6"),
        ({"truncate": 0}, "`truncate` must be strictly positive and less than 10. Given: 0"),
        ({"truncate": 11}, "`truncate` must be strictly positive and less than 10. Given: 11"),
        (
            {"max_new_tokens": 14},
            "`inputs` tokens + `max_new_tokens` must be <= 16. Given: 3 `inputs` tokens and 14 `max_new_tokens`",
        ),
        (
            {"max_new_tokens": 5000},
            "`inputs` tokens + `max_new_tokens` must be <= 16. Given: 3 `inputs` tokens and 1024 `max_new_tokens`",
        ),
        (
            {"grammar": {"type": "json", "value": {"type": "object"}}},
            "grammar is not valid: Grammar must have a 'properties' field",
        ),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_bad_parameter_is_refused_in_tgis_words(parameters, message):
    parameters = {"max_new_tokens": 1, **parameters}
    with pytest.raises(TgiError) as refused:
        valid(request(**parameters))
    assert refused.value.message == f"Input validation error: {message}"
    assert (refused.value.status, refused.value.error_type) == (422, "validation")


def test_bad_inputs_are_refused_in_tgis_words():
    with pytest.raises(TgiError, match="`inputs` cannot be empty"):
        valid(request(""))
    with pytest.raises(TgiError, match=r"`inputs` must have less than 10 tokens\. Given: 12"):
        valid(request("word " * 12, max_new_tokens=1))


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"best_of": 0},
        {"best_of": 2, "temperature": 1.0},
        {"temperature": 0.1, "top_p": 0.999, "typical_p": 0.001, "top_k": 1},
        {"frequency_penalty": -2, "repetition_penalty": 0.01},
        {"stop": ["1", "2", "3", "4"], "top_n_tokens": 5, "truncate": 10},
        {"grammar": {"type": "regex", "value": "[0-9]+"}},
        {"grammar": {"type": "json_schema", "value": {"schema": {"properties": {}}}}},
        {"max_new_tokens": 13, "seed": 0, "watermark": True, "unheard_of": "ignored"},
    ],
    ids=json.dumps,
)
def test_good_parameters_pass(parameters):
    assert valid(request(**parameters)).input_tokens == 3


def test_the_first_of_several_faults_is_named():
    faults = [
        ({"best_of": 2}, "sampling"),
        ({"temperature": 0}, "`temperature`"),
        ({"repetition_penalty": 0}, "`repetition_penalty`"),
        ({"frequency_penalty": 3}, "`frequency_penalty`"),
        ({"top_p": 1}, "`top_p`"),
        ({"typical_p": 1}, "`typical_p`"),
        ({"top_k": 0}, "`top_k`"),
        ({"max_new_tokens": 0}, "`max_new_tokens`"),
        ({"stop": list("12345")}, "`stop`"),
        ({"top_n_tokens": 9}, "`top_n_tokens`"),
    ]
    for place in range(1, len(faults)):  # best_of's own check is about the others: tested above
        parameters = {name: value for fault, _ in faults[place:] for name, value in fault.items()}
        with pytest.raises(TgiError, match=faults[place][1]):
            valid(request("", **parameters))


def test_best_of_is_checked_by_itself():
    with pytest.raises(TgiError, match=r"`best_of` must be > 0 and <= 2\. Given: 3"):
        check_best_of(3, LIMITS)
    with pytest.raises(TgiError, match="`best_of` != 1 is not allowed for this endpoint"):
        check_best_of(2, Limits(max_best_of=1))
    check_best_of(2, LIMITS)
    check_best_of(None, LIMITS)


def test_what_cannot_stream_is_refused():
    with pytest.raises(TgiError, match="`best_of` != 1 is not supported when streaming tokens"):
        check_streamable(request(best_of=2).parameters)
    with pytest.raises(TgiError, match="`decoder_input_details` == true is not supported when streaming tokens"):
        check_streamable(request(decoder_input_details=True).parameters)
    check_streamable(request(best_of=1).parameters)


def test_absent_parameters_sample_and_empty_ones_do_not():
    assert is_sampling(parse_generate({"inputs": "a"}).parameters)
    assert not is_sampling(parse_generate({"inputs": "a", "parameters": {}}).parameters)
    assert not is_sampling(request(temperature=1.0).parameters)
    assert is_sampling(request(top_k=5).parameters)


def test_seed_is_reported_only_when_sampling():
    assert valid(request(seed=3)).seed is None
    assert valid(request(seed=3, do_sample=True)).seed == 3
    assert valid(request(do_sample=True)).seed == 7


def test_truncate_keeps_the_last_tokens():
    passed = valid(request("a b c d", truncate=2))
    assert (passed.prompt, passed.input_tokens) == (" c d", 2)


def test_absent_max_new_tokens_fills_the_context():
    assert valid(request("a b c")).max_new_tokens == 13
    roomy = Limits(max_input_tokens=4000, max_total_tokens=5000)
    assert valid(request("a", max_new_tokens=1_000_000), roomy).max_new_tokens == 4999


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        ({}, "missing field `inputs`"),
        ([], "invalid type: sequence, expected struct GenerateRequest"),
        ({"inputs": 3}, "inputs: invalid type: integer `3`, expected a string"),
        ({"inputs": "a", "stream": None}, "stream: invalid type: null, expected a boolean"),
        ({"inputs": "a", "parameters": None}, "parameters: invalid type: null, expected struct GenerateParameters"),
        (
            {"inputs": "a", "parameters": {"max_new_tokens": -1}},
            "parameters.max_new_tokens: invalid value: integer `-1`, expected u32",
        ),
        (
            {"inputs": "a", "parameters": {"max_new_tokens": 1.5}},
            "parameters.max_new_tokens: invalid type: floating point `1.5`, expected u32",
        ),
        (
            {"inputs": "a", "parameters": {"top_k": True}},
            "parameters.top_k: invalid type: boolean `true`, expected i32",
        ),
        (
            {"inputs": "a", "parameters": {"temperature": "hot"}},
            'parameters.temperature: invalid type: string "hot", expected f32',
        ),
        (
            {"inputs": "a", "parameters": {"stop": "END"}},
            'parameters.stop: invalid type: string "END", expected a sequence',
        ),
        ({"inputs": "a", "parameters": {"details": None}}, "parameters.details: invalid type: null"),
        ({"inputs": "a", "parameters": {"grammar": {"type": "bnf"}}}, "parameters.grammar: unknown variant `bnf`"),
    ],
    ids=lambda value: json.dumps(value) if not isinstance(value, str) else "",
)
def test_wrong_types_are_rejected_as_axum_does(payload, text):
    with pytest.raises(Rejection) as rejected:
        parse_generate(payload)
    assert rejected.value.status == 422
    assert rejected.value.text.startswith(f"Failed to deserialize the JSON body into the target type: {text}")


@pytest.mark.parametrize(
    ("body", "content_type", "status", "text"),
    [
        (b"{}", "text/plain", 415, "Expected request with `Content-Type: application/json`"),
        (b"{}", "", 415, "Expected request with `Content-Type: application/json`"),
        (b'{"inputs":', "application/json", 400, "Failed to parse the request body as JSON: "),
        (b"\xff", "application/json", 400, "Failed to parse the request body as JSON: "),
        (b"", "application/json", 400, "Failed to parse the request body as JSON: EOF while parsing a value"),
    ],
)
def test_what_is_no_json_is_rejected_as_axum_does(body, content_type, status, text):
    with pytest.raises(Rejection) as rejected:
        parse_body(body, content_type)
    assert rejected.value.status == status
    assert rejected.value.text.startswith(text)


def test_json_may_name_its_charset():
    assert parse_body(b'{"inputs":"a"}', "application/json; charset=utf-8") == {"inputs": "a"}
    assert parse_body(b"{}", "application/cloudevents+json") == {}


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        pytest.param("so it ENDS", True, id="suffix"),
        pytest.param("so it ENDS.", False, id="overshot"),
        pytest.param("so it ENDS\n", True, id="line-feed-after"),
        pytest.param("so it END", False, id="unfinished"),
    ],
)
def test_stop_strings_match_as_suffix(text, matches):
    assert stop_matches(text, ("never", "ENDS")) is matches
