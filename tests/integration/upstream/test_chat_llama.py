"""Chats with a real model behind a real OpenAI-compatible server: SmolLM2 on llama.cpp, with real workers between."""

import json

import pytest
from huggingface_hub import InferenceClient

from genqueue import GenerationCancelledError, GenerationRejectedError

MESSAGES = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "What's Natural Language Processing?"},
]
TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
GREEDY = {"temperature": 0.0, "max_tokens": 24}


@pytest.fixture(scope="module")
def fleet(fleet_of, llama):
    generator = {
        "api_type": "text_generation_inference",
        "api_params": {"url": llama, "model": "HuggingFaceTB/SmolLM2-135M-Instruct"},
    }
    with fleet_of({"default": generator, "continuing": {**generator, "continues_chat": True}}) as opened:
        yield opened


@pytest.fixture
def client(fleet):
    fleet.staff(1)
    return fleet.client


def test_the_models_answer_is_streamed(client, llama):
    generation = client.submit_chat(MESSAGES, generation_kwargs=GREEDY)
    chunks = list(generation.stream())
    assert len(chunks) > 3
    result = generation.result(timeout_s=60)
    with InferenceClient(base_url=llama) as hub:
        direct = hub.chat_completion(MESSAGES, model="tgi", **GREEDY)
    assert result.replies == ["".join(chunk.text for chunk in chunks)] == [direct.choices[0].message.content]
    assert "language" in result.replies[0].lower()
    meta = result.meta[0]
    assert meta["finish_reason"] == direct.choices[0].finish_reason == "length"
    assert meta["usage"] == {"prompt_tokens": direct.usage.prompt_tokens, "completion_tokens": 24}
    assert (meta["model"], meta["endpoint"]) == ("HuggingFaceTB/SmolLM2-135M-Instruct", llama)


def test_without_stream_the_result_is_the_same(client):
    streamed = client.submit_chat(MESSAGES, generation_kwargs=GREEDY).result(timeout_s=60)
    assert client.submit_chat(MESSAGES, generation_kwargs=GREEDY, stream=False).result(60).replies == streamed.replies


def test_an_engines_own_parameters_reach_it(client):
    """llama.cpp's ``grammar``, through ``extra_body``."""
    kwargs = {**GREEDY, "extra_body": {"grammar": 'root ::= "forty-two"'}}
    result = client.submit_chat(MESSAGES, generation_kwargs=kwargs).result(timeout_s=60)
    assert (result.replies, result.meta[0]["finish_reason"]) == (["forty-two"], "stop")


def test_a_schema_holds(client):
    """huggingface_hub alone turns it into "any JSON" for this server."""
    schema = {
        "type": "object",
        "properties": {"age": {"type": "integer"}},
        "required": ["age"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema}}
    person = [{"role": "user", "content": "Describe a person as JSON."}]
    result = client.submit_chat(person, response_format=form, generation_kwargs=GREEDY).result(timeout_s=60)
    found = json.loads(result.replies[0])
    assert found.keys() == {"age"}
    assert isinstance(found["age"], int)


def test_tools_are_taken_and_a_calls_answer_too(client):
    """This model's template knows no tools: it is offered them, and answers in text."""
    generation = client.submit_chat(MESSAGES, tools=[TOOL], tool_choice="auto", generation_kwargs=GREEDY)
    result = generation.result(timeout_s=60)
    calls = result.meta[0].get("tool_calls", [])
    assert result.replies[0] or calls
    assert all(json.loads(call["function"]["arguments"]) is not None for call in calls)
    answered = [
        *MESSAGES,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "1", "content": "21 °C"},
    ]
    result = client.submit_chat(answered, tools=[TOOL], generation_kwargs=GREEDY).result(timeout_s=60)
    assert result.meta[0]["usage"]["completion_tokens"] > 0


@pytest.mark.parametrize(
    ("messages", "options", "words"),
    [
        pytest.param(
            MESSAGES,
            {"tools": [TOOL], "generation_kwargs": {"logprobs": True}},
            "logprobs is not supported with tools",
            id="tools",
        ),
        pytest.param(
            [{"role": "user", "content": "word " * 600}], {}, "exceeds the available context size", id="too-long"
        ),
        pytest.param(
            [
                {
                    "role": "user",
                    "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}],
                }
            ],
            {},
            "image input is not supported",
            id="image",
        ),
    ],
)
def test_what_the_server_refuses_is_refused_at_once(client, messages, options, words):
    with pytest.raises(GenerationRejectedError, match=words):
        client.submit_chat(messages, **options).result(timeout_s=30)


def test_a_cancel_frees_the_slot(client, busy_slots, eventually):
    generation = client.submit_chat(
        [{"role": "user", "content": "Write a very long story."}],
        generation_kwargs={"max_tokens": 450, "extra_body": {"ignore_eos": True}},
    )
    eventually(lambda: generation.status().completion_tokens > 2)
    assert busy_slots() == 1
    assert generation.cancel()
    eventually(lambda: busy_slots() == 0)
    with pytest.raises(GenerationCancelledError) as ended:
        generation.result(timeout_s=10)
    assert ended.value.partial_text
    assert ended.value.usage["completion_tokens"] < 440


@pytest.mark.parametrize(("generator", "event"), [("default", "reset"), ("continuing", "resumed")])
def test_killed_in_mid_answer_another_worker_ends_it(fleet, read, eventually, generator, event):
    fleet.staff(2)
    counting = [{"role": "user", "content": "Count from one to a hundred, in words."}]
    kwargs = {"temperature": 0.0, "max_tokens": 200, "extra_body": {"ignore_eos": True}}
    reading = read(fleet.client.submit_chat(counting, generator=generator, generation_kwargs=kwargs))
    eventually(lambda: len(reading.events) > 8)
    fleet.holder(reading.generation).process.kill()
    text = reading.text(within_s=100)
    assert reading.kinds() == ["1.started", "2.started", f"2.{event}", "2.finished"]
    result = reading.generation.result(timeout_s=5)
    assert result.replies == [text]
    meta = result.meta[0]
    assert (meta["attempts"], meta["finish_reason"]) == (2, "length")
    before = "".join(getattr(each, "text", "") for _, each in reading.events if each.attempt == 1)
    assert before
    if event == "resumed":
        assert text.startswith(before)
        assert not text[len(before) :].strip().startswith(before[:20])
        # Its deltas are not always one token each: then nobody can know.  Cut and joined, some words are other tokens.
        assert meta["usage"]["completion_tokens"] in {None, *range(198, 203)}
