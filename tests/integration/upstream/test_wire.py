"""What reaches the model server: parameters and their precedence, and which token goes where.

Looked up in the stand-in's list of what came over the wire.
"""

import pytest

from genqueue import GenerationRejectedError
from genqueue_ops.standin.prose import expected_text

# conftest.TOKENS: all of these are set in the worker's environment.
HF_API_TOKEN = "hf_canaryApiToken0001"
HF_TOKEN = "hf_canaryHubToken0002"
STANDIN_KEY = "canary-standin-key-0003"


def sent(client, standin, prompt, **options):
    client.submit(prompt, **options).result(timeout_s=10)
    return standin.only(prompt)["body"]["parameters"]


def test_details_and_a_reply_free_of_the_prompt_are_always_asked_for(client, standin, ask):
    prompt = ask()
    assert sent(client, standin, prompt) == {"details": True, "return_full_text": False, "max_new_tokens": 512}
    assert standin.only(prompt)["body"]["inputs"] == prompt


def test_the_generators_own_parameters_go_out(client, standin, ask):
    parameters = sent(client, standin, ask(), generator="tuned")
    assert parameters["max_new_tokens"] == 6
    assert parameters["temperature"] == 0.5
    assert parameters["stop"] == ["own-stop", "generator-word"]


def test_the_requests_parameters_win_and_stop_words_add(client, standin, ask):
    parameters = sent(
        client,
        standin,
        ask(),
        generator="tuned",
        generation_kwargs={"max_new_tokens": 3, "top_k": 7},
        stop_words=["request-word"],
    )
    assert parameters["max_new_tokens"] == 3
    assert parameters["top_k"] == 7
    assert parameters["temperature"] == 0.5
    assert parameters["stop"] == ["own-stop", "generator-word", "request-word"]


@pytest.mark.parametrize("name", ["stop", "stop_sequences"])
def test_a_requests_stop_replaces_the_generators_under_either_name(client, standin, ask, name):
    parameters = sent(client, standin, ask(), generator="tuned", generation_kwargs={name: ["asked"]}, stop_words=["w"])
    assert parameters["stop"] == ["asked", "generator-word", "w"]
    assert "stop_sequences" not in parameters


def test_every_sampling_parameter_travels_under_tgis_name(client, standin, ask):
    asked = {
        "do_sample": True,
        "frequency_penalty": 0.5,
        "repetition_penalty": 1.5,
        "seed": 7,
        "temperature": 0.75,
        "top_k": 5,
        "top_n_tokens": 1,
        "top_p": 0.5,
        "truncate": 50,
        "typical_p": 0.25,
        "watermark": False,
    }
    parameters = sent(client, standin, ask(), generation_kwargs=asked)
    assert {name: parameters[name] for name in asked} == asked


def test_a_grammar_reaches_the_server(client, standin, ask):
    grammar = {"type": "regex", "value": "[a-z]+"}
    prompt = ask()
    generation = client.submit(prompt, generation_kwargs={"grammar": grammar})
    try:
        generation.result(timeout_s=10)
    except GenerationRejectedError as refused:  # a server without grammar support says so
        assert "rammar" in str(refused)
    assert standin.only(prompt)["body"]["parameters"]["grammar"] == grammar


@pytest.mark.parametrize(
    ("generator", "authorization"),
    [
        pytest.param("default", None, id="self-hosted-gets-none-though-HF_TOKEN-is-set"),
        pytest.param("tuned", None, id="self-hosted-with-headers-of-its-own"),
        pytest.param("endpoint", f"Bearer {HF_API_TOKEN}", id="endpoint-gets-HF_API_TOKEN-before-HF_TOKEN"),
        pytest.param("endpoint-hub", f"Bearer {HF_TOKEN}", id="first-variable-that-is-set"),
        pytest.param("serverless", f"Bearer {HF_API_TOKEN}", id="serverless"),
    ],
)
@pytest.mark.parametrize("one_shot", [False, True], ids=["stream", "one-shot"])
def test_a_token_goes_only_where_the_settings_name_it(client, standin, ask, generator, authorization, one_shot):
    prompt = ask()
    generation_kwargs = {"decoder_input_details": True} if one_shot else None
    client.submit(prompt, generator=generator, generation_kwargs=generation_kwargs).result(timeout_s=10)
    assert standin.only(prompt)["headers"].get("authorization") == authorization


def test_a_named_token_opens_a_server_that_wants_it(client, keyed_standin, ask):
    prompt = ask()
    assert client.submit(prompt, generator="keyed").result(timeout_s=10).replies == [prompt.answer]
    assert keyed_standin.only(prompt)["headers"]["authorization"] == f"Bearer {STANDIN_KEY}"


def test_configured_headers_and_model_name_are_used(client, standin, ask):
    prompt = ask()
    result = client.submit(prompt, generator="tuned").result(timeout_s=10)
    assert standin.only(prompt)["headers"]["x-team"] == "blue"
    assert result.meta[0]["model"] == "our/model"
    assert result.meta[0]["endpoint"] == standin.url


def test_without_a_limit_512_tokens_are_the_most(client, standin, ask):
    prompt = ask(tokens=600)
    result = client.submit(prompt).result(timeout_s=20)
    assert result.replies == [expected_text(prompt, 512)]
    assert result.meta[0]["finish_reason"] == "length"
