"""The stand-in's answers fit TGI's OpenAPI file and have the form of recorded answers."""

import json
from pathlib import Path

import aiohttp
import pytest

from genqueue_ops.standin.protocol import Limits
from genqueue_ops.standin.script import Script
from genqueue_ops.standin.server import serve

FIXTURES = Path(__file__).parents[2] / "fixtures" / "tgi"
SCHEMAS = json.loads((FIXTURES / "openapi.json").read_text())["components"]["schemas"]
CHAT = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5}
TYPES = {"string": str, "boolean": bool, "array": list, "object": dict, "integer": int, "number": int | float}


def misfits(value, schema, path="$"):
    """Where a value differs from an OpenAPI 3.0 schema; keys that the schema does not name differ too."""
    if value is None and schema.get("nullable"):
        return []
    if "$ref" in schema:
        return misfits(value, SCHEMAS[schema["$ref"].rsplit("/", 1)[1]], path)
    found = []
    for part in schema.get("allOf", []):
        found += misfits(value, part, path)
    if "oneOf" in schema:
        tries = [misfits(value, part, path) for part in schema["oneOf"]]
        return found if [] in tries else found + min(tries, key=len)
    if "type" in schema and (
        not isinstance(value, TYPES[schema["type"]]) or (isinstance(value, bool) and schema["type"] != "boolean")
    ):
        return [*found, f"{path}: {value!r} is no {schema['type']}"]
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{path}: {value!r} is none of {schema['enum']}")
    if "minimum" in schema and value < schema["minimum"]:
        found.append(f"{path}: {value!r} is less than {schema['minimum']}")
    if isinstance(value, list):
        for place, item in enumerate(value):
            found += misfits(item, schema.get("items", {}), f"{path}[{place}]")
    if isinstance(value, dict) and "properties" in schema:
        found += [f"{path}.{name} is missing" for name in schema.get("required", []) if name not in value]
        for name, item in value.items():
            if name in schema["properties"]:
                found += misfits(item, schema["properties"][name], f"{path}.{name}")
            else:
                found.append(f"{path}.{name} is unknown")
    return found


def form(value):
    """Types instead of values; null where a recorded client stored null for an absent key is left out."""
    if isinstance(value, dict):
        return {name: form(item) for name, item in value.items() if item is not None}
    if isinstance(value, list):
        return [form(value[0])] if value else []
    return type(value).__name__


@pytest.fixture
async def post():
    limits = Limits(prefill_logprobs=True)
    async with serve(Script(tokens=8), limits=limits) as served, aiohttp.ClientSession(served.url) as http:

        async def send(path, body):
            async with http.post(path, json=body) as response:
                raw = await response.read()
            if response.content_type != "text/event-stream":
                return json.loads(raw)
            lines = raw.removesuffix(b"data: [DONE]\n\n").split(b"\n\n")[:-1]
            return [json.loads(line[6:]) for line in lines]

        yield send


DETAILED = {"details": True, "decoder_input_details": True, "top_n_tokens": 3}


@pytest.mark.parametrize(
    "parameters",
    [{}, {"details": True}, DETAILED, {**DETAILED, "best_of": 2, "do_sample": True}],
    ids=["text", "details", "prefill", "best-of"],
)
async def test_generate_fits_the_schema(post, parameters):
    answer = await post("/generate", {"inputs": "Hi there", "parameters": parameters})
    assert misfits(answer, {"$ref": "/GenerateResponse"}) == []


async def test_stream_fits_the_schema(post):
    parameters = {"details": True, "top_n_tokens": 2, "seed": 1, "do_sample": True}
    events = await post("/generate_stream", {"inputs": "Hi there", "parameters": parameters})
    assert [misfits(event, {"$ref": "/StreamResponse"}) for event in events] == [[]] * 9


async def test_error_fits_the_schema(post):
    answer = await post("/generate", {"inputs": "", "parameters": {}})
    assert misfits(answer, {"$ref": "/ErrorResponse"}) == []


async def test_chat_fits_the_schema(post):
    answer = await post("/v1/chat/completions", {**CHAT, "logprobs": True, "top_logprobs": 2})
    assert misfits(answer, {"$ref": "/ChatCompletion"}) == ["$.object is unknown"]  # the tag is not in TGI's file
    chunks = await post("/v1/chat/completions", {**CHAT, "stream": True, "stream_options": {"include_usage": True}})
    assert [misfits(chunk, {"$ref": "/ChatCompletionChunk"}) for chunk in chunks] == [["$.object is unknown"]] * 6


async def test_the_checker_finds_what_does_not_fit():
    assert misfits({"index": -1, "token": {"id": "x"}}, {"$ref": "/StreamResponse"}) != []


@pytest.mark.parametrize(
    ("recorded", "parameters"),
    [
        ("generate_details_length_prefill", {"max_new_tokens": 5, "details": True}),
        ("generate_details_eos_token", {"details": True, "decoder_input_details": True, "do_sample": True}),
        (
            "generate_details_stop_sequence_return_full_text",
            {"details": True, "do_sample": True, "seed": 0, "stop": ["-0004"], "return_full_text": True},
        ),
    ],
)
async def test_generate_has_the_form_of_recorded_answers(post, recorded, parameters):
    theirs = json.loads((FIXTURES / f"{recorded}.json").read_text())
    ours = await post("/generate", {"inputs": "Hi", "parameters": parameters})
    for answer in (theirs, ours):  # the first prefill token has no logprob, and theirs has but one
        for token in answer["details"]["prefill"]:
            token.pop("logprob")
    assert form(ours) == form(theirs)
    assert ours["details"]["finish_reason"] == theirs["details"]["finish_reason"]


async def test_chat_has_the_form_of_a_recorded_answer(post):
    theirs = json.loads((FIXTURES / "chat_nonstream.json").read_text())
    assert form(await post("/v1/chat/completions", CHAT)) == form(theirs)


@pytest.mark.parametrize(
    ("recorded", "options"),
    [
        ("chat_stream_hf_client_no_usage", {}),
        ("chat_stream_hf_client_with_usage", {"stream_options": {"include_usage": True}}),
    ],
)
async def test_chat_stream_has_the_form_of_a_recorded_one(post, recorded, options):
    theirs = json.loads((FIXTURES / f"{recorded}.json").read_text())
    ours = await post("/v1/chat/completions", {**CHAT, "max_tokens": 50, "stream": True, **options})
    assert len(ours) - len(theirs) == 9 - 3
    tail = 2 if options else 1
    assert [form(chunk) for chunk in ours[-tail:]] == [form(chunk) for chunk in theirs[-tail:]]
    assert form(ours[0]) == form(theirs[0])
