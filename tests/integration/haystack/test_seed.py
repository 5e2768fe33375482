"""The examples of docs/haystack.md run, and those of the original's documentation among them are its own.

Run as one page, from top to bottom: the original's pipeline uses an import of the example before it.
"""

import re
import tomllib
from pathlib import Path

import pytest

from ...support.programs import printed_by
from ...support.serverless_router import TOKEN, hugging_face_beside

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/haystack.md").read_text(encoding="utf-8")
ORIGINAL = (ROOT / "tests/fixtures/haystack/documentation.md").read_text(encoding="utf-8")
THEIR_IMPORT = "from haystack.components.generators import HuggingFaceAPIGenerator"
NEXT = "(the next example)"
OUR_IMPORT = "from genqueue.haystack import HuggingFaceAPIGenerator"


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)


def filled_in(text, url):
    """With what a reader has to fill in."""
    return (
        text.replace("<your-inference-endpoint-url>", url)
        .replace("http://localhost:8080", url)
        .replace("<your-api-key>", "hf_canaryOfThePage")
    )


@pytest.fixture(scope="module")
def hugging_face(standin):
    with hugging_face_beside(standin.url) as place:
        yield place


@pytest.fixture(scope="module")
def outputs(fleet_of, standin, hugging_face, tmp_path_factory):
    """What each Python block printed, and what the stand-in was asked."""
    generators = tomllib.loads(filled_in(blocks(PAGE, "toml")[0], standin.url))["generators"]
    code = f"\nprint({NEXT!r})\n".join(filled_in(block, standin.url) for block in blocks(PAGE, "python"))
    with fleet_of(generators, **hugging_face.environ(tmp_path_factory.mktemp("ca") / "ca.pem")) as fleet:
        fleet.staff(1)
        standin.clear()
        printed = printed_by(code, fleet.producer_url)
        return printed.split(f"{NEXT}\n"), standin.requests()


def test_every_example_runs_and_prints_a_reply(outputs):
    printed, _ = outputs
    assert len(printed) == len(blocks(PAGE, "python"))
    assert all("-0000" in output for output in printed), printed  # as every text of the stand-in


def test_the_pipelines_ask_with_what_they_retrieved(outputs):
    _, requests = outputs
    bodies = [one["body"] for one in requests if "capital" in str(one["body"])]
    asked = [body.get("inputs") or body["messages"][0]["content"] for body in bodies]
    assert len(asked) == 2
    for prompt in asked:
        assert "Paris is the capital of France" in prompt
        assert "Question: What is the capital of France??" in prompt


def test_a_token_is_the_workers_own_and_goes_where_it_is_meant_for(outputs):
    _, requests = outputs
    sent = {one["headers"].get("authorization") for one in requests}
    assert sent == {None, f"Bearer {TOKEN}"}


def test_a_serverless_model_is_asked_of_the_router(outputs, hugging_face):
    ((path, headers),) = [(path, headers) for method, path, *headers in hugging_face.seen if headers]
    assert path == "/together/v1/completions"
    assert headers[0]["authorization"] == f"Bearer {TOKEN}"
    assert hugging_face.bodies[0]["prompt"] == "What's Natural Language Processing?"


@pytest.mark.parametrize(("language", "count"), [("python", 4), ("shell", 1)])
def test_the_originals_examples_are_on_the_page_but_for_the_import(language, count):
    theirs = [block.replace(THEIR_IMPORT, OUR_IMPORT) for block in blocks(ORIGINAL, language)]
    assert len(theirs) == count
    assert [block for block in blocks(PAGE, language) if block in theirs] == theirs
