"""What looks like a secret where a name belongs is not repeated; names are."""

import base64
import hashlib
import random
import string

import pytest

from genqueue.masking import is_token, looks_secret, shown, shown_path

TOKENS = [
    "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",
    "hf_abcdefghijklmnopqrstuvwxyzabcdefgh",
    "api_org_abcdefghijklmnopqrstuvwxyzabcd",
    "ghp_16C7e42F292c6912E7710c838347Ae178B4a",
    "github_pat_11ABCDEFG0abcdefghijkl",
    "glpat-abcdefghij0123456789",
    "sk-proj-abcdEFGH1234abcdEFGH1234",
    "sk_live_4eC39HqLyjWDarjtT1zdp7dc",
    "xoxb-123456789012-abcdef",
    "AKIAIOSFODNN7EXAMPLE",
    "AIzaSyA1234567890abcdefghijklmnopqrstu",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc",
    "Bearer x",
    "Basic dXNlcjpw",
    "Authorization: Bearer hunter2",
    "x 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 y",
]
OTHERS = [
    "http://user:password@h/?key=x",
    "redis://h",
    "user:password@host",
    ":password@host:6379",
    hashlib.sha256(b"x").hexdigest(),
    base64.b64encode(hashlib.sha256(b"y").digest()).decode(),
    "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY",
]
NAMES = [
    "default",
    "llama-3.1-8b-instruct",
    "Llama3InstructProduction",
    "MixtralOf8ExpertsInstructV1Production",
    "HF_TOKEN",
    "HF_API_TOKEN_OF_TEAM_BLUE_2024",
    "hf_production_inference_2024",
    "hf_token",
    "sk_learn_pipeline",
    "X-Amz-Content-Sha256",
    "x-team",
    "Basic",
    "internationalization",
    "mistralai/Mistral-7B-Instruct-v0.3",
    "a.b_c-d",
    "me@example.com",
    "20241128153000123456",
    "",
]


@pytest.mark.parametrize("word", TOKENS)
def test_a_token_of_a_known_kind_is_known(word):
    assert is_token(word)
    assert shown(word) == "***"


@pytest.mark.parametrize("word", OTHERS)
def test_what_chance_has_drawn_and_an_address_are_not_shown(word):
    assert looks_secret(word)
    assert shown(word) == "***"


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_shown(name):
    assert shown(name) == name


def test_nearly_every_drawn_secret_is_known():
    dice = random.Random(11)
    kinds = {string.ascii_letters + string.digits: 0.99, string.hexdigits[:16]: 0.95, string.ascii_letters: 0.9}
    for letters, least in kinds.items():
        drawn = ["".join(dice.choices(letters, k=32)) for _ in range(1000)]
        assert sum(map(looks_secret, drawn)) >= least * 1000


@pytest.mark.parametrize("path", [TOKENS[0], "redis:/user:password@h/0", "https:/h/?key=x", f"/home/{TOKENS[0]}.toml"])
def test_what_stands_in_place_of_a_file_is_not_shown(path):
    assert shown_path(path) == "***"


@pytest.mark.parametrize(
    "path",
    ["genqueue.toml", "/nix/store/3n58xw4373jp0ljirf06d8077j15pc4j-genqueue/genqueue.toml", "../a b/c@d.toml", "C:x"],
)
def test_the_name_of_a_file_is(path):
    assert shown_path(path) == path
