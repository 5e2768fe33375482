"""What goes on the wire for a request, and with which token."""

import asyncio
from typing import Any

import pytest

from genqueue.connection.address import without_secrets
from genqueue.errors import ConfigError
from genqueue.settings import GeneratorSettings
from genqueue.wire.request import read_request
from genqueue_worker.upstream.client import call_parameters, goes_one_shot, requested_tokens
from genqueue_worker.upstream.pool import EndpointPool


def upstream(settings, environ=()):
    return EndpointPool("g", settings, dict(environ), lambda: None)


ALWAYS = {"details": True, "return_full_text": False}


def generator(api_type: str = "text_generation_inference", **fields: Any) -> GeneratorSettings:
    params = {"model": "m"} if api_type == "serverless_inference_api" else {"url": "http://tgi:8080/"}
    return GeneratorSettings.model_validate({"api_type": api_type, "api_params": params, **fields})


@pytest.mark.parametrize(
    ("own", "asked", "expected"),
    [
        pytest.param({}, {}, {"max_new_tokens": 512}, id="default"),
        pytest.param({"max_new_tokens": 7}, {}, {"max_new_tokens": 7}, id="generators-own"),
        pytest.param({"max_new_tokens": 7}, {"max_new_tokens": 9}, {"max_new_tokens": 9}, id="request-wins"),
        pytest.param({"max_new_tokens": 7}, {"max_new_tokens": None}, {"max_new_tokens": 7}, id="none-is-not-given"),
        pytest.param(
            {"temperature": 0.5, "top_k": 3},
            {"temperature": 0.9, "seed": 0},
            {"temperature": 0.9, "top_k": 3, "seed": 0, "max_new_tokens": 512},
            id="merged",
        ),
        pytest.param(
            {"do_sample": True}, {"do_sample": False}, {"do_sample": False, "max_new_tokens": 512}, id="false"
        ),
        pytest.param(
            {}, {"return_full_text": False}, {"max_new_tokens": 512}, id="return-full-text-is-false-in-any-case"
        ),
        pytest.param(
            {},
            {"grammar": {"type": "regex", "value": "a+"}},
            {"grammar": {"type": "regex", "value": "a+"}, "max_new_tokens": 512},
            id="grammar",
        ),
    ],
)
def test_a_requests_parameters_win_over_the_generators(own, asked, expected):
    request = read_request({"prompt": "p", "generation_kwargs": asked})
    assert call_parameters(generator(generation_kwargs=own), request) == {**expected, **ALWAYS}


@pytest.mark.parametrize(
    ("own", "own_words", "asked", "words", "expected"),
    [
        pytest.param({}, [], {}, [], None, id="none"),
        pytest.param({"stop": ["a"]}, [], {}, [], ["a"], id="generators"),
        pytest.param({"stop": ["a"]}, [], {"stop": ["b"]}, [], ["b"], id="request-wins"),
        pytest.param({"stop": ["a"]}, [], {"stop_sequences": ["b"]}, [], ["b"], id="request-wins-by-the-old-name"),
        pytest.param({"stop_sequences": ["a"]}, [], {"stop": ["b"]}, [], ["b"], id="request-wins-over-the-old-name"),
        pytest.param({"stop": ["a"]}, [], {"stop": []}, [], None, id="request-wants-none"),
        pytest.param({"stop": ["a"]}, ["w"], {"stop": []}, [], ["w"], id="words-stand-in-any-case"),
        pytest.param({}, [], {"stop": ["a"], "stop_sequences": ["b"]}, [], ["a", "b"], id="both-names"),
        pytest.param({"stop": ["a"]}, ["w"], {}, ["x"], ["a", "w", "x"], id="words-are-added"),
        pytest.param({}, ["w", "x"], {"stop": ["x"]}, ["w"], ["x", "w"], id="each-once"),
    ],
)
def test_stop_words_are_added_to_the_stop_that_stands(own, own_words, asked, words, expected):
    request = read_request({"prompt": "p", "generation_kwargs": asked, "stop_words": words})
    parameters = call_parameters(generator(generation_kwargs=own, stop_words=own_words), request)
    assert parameters.get("stop") == expected
    assert "stop_sequences" not in parameters


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, False),
        ({"best_of": 1}, False),
        ({"best_of": 2}, True),
        ({"decoder_input_details": False}, False),
        ({"decoder_input_details": True}, True),
    ],
)
def test_what_the_server_refuses_to_stream_goes_one_shot(parameters, expected):
    assert goes_one_shot(parameters) is expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://tgi:8080", "http://tgi:8080"),
        ("https://user:s3cret@tgi/path/?token=s3cret#s3cret", "https://tgi/path/"),
        ("http://s3cret@[::1]:80/generate", "http://[::1]:80/generate"),
        ("http://a@b@tgi/", "http://tgi/"),
    ],
)
def test_an_address_is_shown_without_credentials_or_query(url, expected):
    assert without_secrets(url) == expected


@pytest.mark.parametrize(
    ("params", "expected"), [({"model": "m"}, "auto"), ({"model": "m", "provider": "hf-inference"}, "hf-inference")]
)
def test_without_a_url_the_provider_is_the_address(params, expected):
    (endpoint,) = upstream(generator("serverless_inference_api", api_params=params)).endpoints
    assert (endpoint.url, endpoint.address) == (None, expected)


def test_a_provider_that_is_none_is_refused_at_the_start():
    params = {"model": "m", "provider": "nonsense"}
    words = r"^generators\..*\.api_params\.provider: 'nonsense' is none; known: auto, .*hf-inference"
    with pytest.raises(ConfigError, match=words):
        upstream(generator("serverless_inference_api", api_params=params))


BOTH = {"HF_API_TOKEN": "api", "HF_TOKEN": "hf", "MINE": "mine"}
SUPPRESSED = {"authorization": None}


@pytest.mark.parametrize(
    ("api_type", "fields", "environ", "token", "headers"),
    [
        pytest.param("text_generation_inference", {}, BOTH, None, SUPPRESSED, id="self-hosted-gets-none"),
        pytest.param("text_generation_inference", {"token_env": ["MINE"]}, BOTH, "mine", {}, id="self-hosted-named"),
        pytest.param("text_generation_inference", {"token_env": ["MINE"]}, {}, None, SUPPRESSED, id="named-and-unset"),
        pytest.param(
            "text_generation_inference", {"token_env": ["X", "MINE"]}, BOTH, "mine", {}, id="first-that-is-set"
        ),
        pytest.param(
            "text_generation_inference", {"token_env": ["MINE"]}, {"MINE": ""}, None, SUPPRESSED, id="empty-is-unset"
        ),
        pytest.param("inference_endpoints", {}, BOTH, "api", {}, id="endpoint"),
        pytest.param("inference_endpoints", {}, {"HF_TOKEN": "hf"}, "hf", {}, id="endpoint-second-name"),
        pytest.param("inference_endpoints", {"token_env": []}, BOTH, None, SUPPRESSED, id="endpoint-without"),
        pytest.param("serverless_inference_api", {}, BOTH, "api", {}, id="serverless"),
        pytest.param("serverless_inference_api", {}, {}, None, {}, id="serverless-login-file"),
        pytest.param(
            "text_generation_inference",
            {"api_params": {"url": "http://h", "headers": {"Authorization": "Basic x"}}},
            BOTH,
            None,
            {"Authorization": "Basic x"},
            id="own-header",
        ),
    ],
)
def test_a_token_goes_only_where_it_is_meant_to(api_type, fields, environ, token, headers):
    options = upstream(generator(api_type, **fields), environ).client_options
    assert (options["token"], options["headers"]) == (token, headers)


def test_a_token_is_read_without_the_end_of_its_line():
    assert upstream(generator("inference_endpoints"), {"HF_TOKEN": "hf_a\n"}).token == "hf_a"


@pytest.mark.parametrize("secret", ["hf_can\nary", "hf_canary“”", "hf_canary\x01"])
def test_a_token_that_no_header_can_hold_is_refused_at_the_start_and_not_shown(secret):
    with pytest.raises(ConfigError, match=r"HF_TOKEN, the token of generator '.*': holds a character") as refused:
        upstream(generator("inference_endpoints"), {"HF_TOKEN": secret})
    assert "canary" not in str(refused.value)


async def test_a_server_that_is_asleep_again_when_it_has_woken_is_waited_for_again():
    class Dozing(EndpointPool):
        async def _health(self, endpoint, held_s=0):
            await asyncio.sleep(0.001)
            return 200

    wakes = []

    def doze():
        if not endpoint.is_waking and len(wakes) < 3:
            wakes.append(endpoint)
            dozing._wake_up(endpoint)

    dozing = Dozing("g", generator("inference_endpoints"), {}, doze)
    (endpoint,) = dozing.endpoints
    doze()
    while endpoint.is_waking:
        await dozing._until_one_is_awake()
    assert len(wakes) == 3


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        pytest.param({"max_new_tokens": 7}, 7, id="prompt"),
        pytest.param({"max_tokens": 7}, 7, id="chat"),
        pytest.param({"max_tokens": 7, "extra_body": {"max_completion_tokens": 9}}, 9, id="in-an-engines-words"),
        pytest.param({"max_tokens": 7, "extra_body": {"n_predict": -1, "max_new_tokens": "9"}}, 7, id="no-number"),
    ],
)
def test_how_many_tokens_a_call_asks_for(parameters, expected):
    assert requested_tokens(parameters) == expected
