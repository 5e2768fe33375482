"""Which generator is meant by where its model is."""

import json
import tomllib

import pytest

from genqueue.discovery import generators_at, location_digest, location_digests, toml_for
from genqueue.settings import GeneratorSettings, Settings

TGI, ENDPOINT, FREE = "text_generation_inference", "inference_endpoints", "serverless_inference_api"
HERE = location_digest(TGI, url="http://tgi:8080")


@pytest.mark.parametrize(
    "spelling",
    [
        "http://tgi:8080/",
        "http://TGI:8080",
        "HTTP://tgi:8080",
        "http://me:secret@tgi:8080",
        "http://tgi:8080?key=secret",
    ],
)
def test_spelling_and_secrets_make_no_other_place(spelling):
    assert location_digest(TGI, url=spelling) == HERE


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param({"url": "http://tgi"}, {"url": "http://tgi:80"}, id="http"),
        pytest.param({"url": "https://tgi"}, {"url": "https://tgi:443/"}, id="https"),
        pytest.param({"model": "m"}, {"model": "m", "provider": "auto"}, id="provider"),
        pytest.param({"url": "http://tgi"}, {"url": "http://tgi", "model": "a name"}, id="name"),
    ],
)
def test_what_is_said_and_what_goes_without_saying_are_one_place(one, other):
    assert location_digest(FREE, **one) == location_digest(FREE, **other)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(location_digest(ENDPOINT, url="http://tgi:8080"), id="type"),
        pytest.param(location_digest(TGI, url="https://tgi:8080"), id="scheme"),
        pytest.param(location_digest(TGI, url="http://tgi:8081"), id="port"),
        pytest.param(location_digest(TGI, url="http://tgi:8080/v1"), id="path"),
        pytest.param(location_digest(TGI, url="http://tgi:8080", bill_to="us"), id="bill_to"),
        pytest.param(location_digest(TGI, model="http://tgi:8080"), id="model"),
    ],
)
def test_other_places_are_others(other):
    assert other != HERE


def test_a_generator_is_found_by_its_place():
    here = GeneratorSettings(api_type=TGI, api_params={"url": "http://me:secret@tgi:8080/"})
    there = GeneratorSettings(api_type=FREE, api_params={"model": "m", "provider": "hf-inference"})
    digests_of = {"here": location_digests(here), "there": location_digests(there), "too": location_digests(here)}
    assert generators_at(HERE, digests_of) == ["here", "too"]
    assert generators_at(location_digest(FREE, model="m", provider="hf-inference"), digests_of) == ["there"]
    assert generators_at(location_digest(FREE, model="m"), digests_of) == []


def test_a_generator_with_several_addresses_is_at_each():
    both = GeneratorSettings(api_type=TGI, api_params={"urls": ["http://tgi:8080", "http://tgi:8081"]})
    assert location_digests(both) == [HERE, location_digest(TGI, url="http://tgi:8081")]


@pytest.mark.parametrize(
    ("api_type", "api_params", "token_env"),
    [
        (TGI, {"url": "http://localhost:8080", "timeout": 60}, ()),
        (ENDPOINT, {"url": "https://endpoint", "bill_to": "us"}, ("MY_TOKEN",)),
        (FREE, {"model": 'a "quoted" model', "provider": "hf-inference"}, ("HF_API_TOKEN", "HF_TOKEN")),
        (FREE, {"model": "a 😀, é, \x7f and \n model"}, ()),
    ],
)
def test_the_toml_that_is_proposed_makes_a_generator_at_that_place(api_type, api_params, token_env):
    proposed = tomllib.loads(toml_for(api_type, api_params, token_env))["generators"]["default"]
    generator = GeneratorSettings.model_validate(proposed)
    rest = {key: value for key, value in api_params.items() if key != "timeout"}
    assert location_digests(generator) == [location_digest(api_type, **rest)]
    assert generator.api_params.timeout == api_params.get("timeout")
    assert not token_env or generator.token_env == token_env


def test_the_toml_that_is_proposed_can_be_added_to_what_is_there():
    there = (
        'redis_url = "redis://somewhere"\n\n'
        "[generators.default]\n"
        'api_type = "text_generation_inference"\n'
        'api_params = { url = "http://elsewhere" }\n\n'
        '[generators.default-2]\napi_type = "serverless_inference_api"\napi_params = { model = "m" }\n'
    )
    taken = tomllib.loads(there)["generators"].keys()
    settings = Settings(**tomllib.loads(there + toml_for(TGI, {"url": "http://tgi:8080/"}, ("KEY",), taken)))
    assert generators_at(HERE, {name: location_digests(own) for name, own in settings.generators.items()}) == [
        "default-3"
    ]


def test_the_toml_that_is_proposed_holds_no_secret_but_says_what_is_left_out():
    params = {"url": "http://me:hidden@tgi/?key=hidden", "headers": {"x-key\n": "hidden", "x-team": "hidden"}}
    toml = toml_for(TGI, params, ("KEY",))
    assert "hidden" not in toml
    assert json.dumps("http://tgi/") in toml
    assert 'headers = { "x-key\\n" = "...", "x-team" = "..." }' in toml
    assert tomllib.loads(toml)["generators"]["default"]["token_env"] == ["KEY"]
