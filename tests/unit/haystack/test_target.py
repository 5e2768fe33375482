"""Which generator a Haystack component means."""

import re
import tomllib

import pytest
from haystack.utils import Secret

from genqueue import ConfigError, GeneratorSettings
from genqueue.discovery import location_digest, location_digests
from genqueue.haystack.target import target_of

TGI, ENDPOINT, FREE = "text_generation_inference", "inference_endpoints", "serverless_inference_api"
DEFAULT_TOKEN = Secret.from_env_var(["HF_API_TOKEN", "HF_TOKEN"], strict=False)
URL = {"url": "http://localhost:8080"}


def test_a_name_is_taken_as_it_is():
    assert target_of("chat", None, None, DEFAULT_TOKEN).generator == "chat"


@pytest.mark.parametrize(
    ("generator", "api_type", "api_params"),
    [("chat", TGI, None), ("chat", None, URL), (None, TGI, None), (None, None, URL)],
)
def test_either_a_name_or_a_place_is_needed(generator, api_type, api_params):
    with pytest.raises(ValueError, match="Pass"):
        target_of(generator, api_type, api_params, DEFAULT_TOKEN)


@pytest.mark.parametrize("url", ["user:password@h:8080", "ftp://:password@h", "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"])
def test_one_that_holds_a_secret_is_not_repeated(url):
    with pytest.raises(ValueError, match=r"^Invalid URL: \*\*\*$"):
        target_of(None, TGI, {"url": url}, DEFAULT_TOKEN)


@pytest.mark.parametrize("api_type", [TGI, ENDPOINT])
@pytest.mark.parametrize(
    "url",
    ["localhost:8080", "ftp://tgi", "http://", "http://:8080", "http://tgi:99999", "http://tgi:x", "http://[::1"],
)
def test_what_is_no_address_is_refused_at_once_in_the_originals_words(api_type, url):
    with pytest.raises(ValueError, match=rf"^Invalid URL: {re.escape(url)}$"):
        target_of(None, api_type, {"url": url}, None)


@pytest.mark.parametrize("url", ["http://tgi", "https://[::1]:8080/v1", "http://tgi:65535"])
def test_what_is_an_address_is_taken(url):
    assert target_of(None, TGI, {"url": url}, None).model == url


def test_the_generator_at_the_place_is_found():
    digests_of = {"here": {location_digest(TGI, url="http://localhost:8080/"), "another"}, "there": {"another"}}
    assert target_of(None, TGI, URL, None).find(digests_of) == "here"


def test_several_at_one_place_must_be_told_apart():
    here = {location_digest(TGI, **URL)}
    with pytest.raises(ConfigError, match=r"generators one, two call the same place: say which with generator="):
        target_of(None, TGI, URL, None).find({"two": here, "one": here})


@pytest.mark.parametrize(
    ("api_type", "api_params", "token", "token_env"),
    [
        pytest.param(TGI, URL, DEFAULT_TOKEN, None, id="self-hosted"),
        pytest.param(TGI, URL, Secret.from_env_var("TGI_KEY"), ("TGI_KEY",), id="self-hosted-with-a-key"),
        pytest.param(ENDPOINT, URL, DEFAULT_TOKEN, ("HF_API_TOKEN", "HF_TOKEN"), id="endpoint"),
        pytest.param(ENDPOINT, URL, Secret.from_token("hf_hidden"), ("HF_API_TOKEN",), id="token"),
        pytest.param(FREE, {"model": "a/model"}, None, None, id="no-token"),
    ],
)
def test_where_there_is_none_the_error_shows_the_toml_that_makes_one(api_type, api_params, token, token_env):
    target = target_of(None, api_type, api_params, token)
    with pytest.raises(ConfigError, match="known: default, here, there") as refused:
        target.find({"there": set(), "here": {location_digest(TGI, url="http://elsewhere")}, "default": set()})
    assert "hf_hidden" not in str(refused.value)
    toml = str(refused.value).partition("\n\n")[2]
    proposed = GeneratorSettings.model_validate(tomllib.loads(toml)["generators"]["default-2"])
    assert target.find({"new": location_digests(proposed)}) == "new"
    assert proposed.token_env == token_env


def test_where_no_worker_ever_was_the_error_says_so():
    with pytest.raises(ConfigError, match="has a worker ever started on this Redis"):
        target_of(None, TGI, URL, None).find({})
