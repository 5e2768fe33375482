"""Chats through real workers: what readers get, what goes out, and what a failure, a cancel and a kill end in.

The server is the stand-in's chat route, which is TGI's; other engines' events are in
test_chat_dialects.py, a real model is in test_chat_llama.py.
"""

import contextlib
import json

import pytest

from genqueue import (
    GenerationCancelledError,
    GenerationClient,
    GenerationError,
    GenerationExpiredError,
    GenerationFailedError,
    GenerationRejectedError,
    GeneratorSettings,
    InvalidRequestError,
    ToolCallDelta,
)
from genqueue_ops.standin.chat import render
from genqueue_ops.standin.prose import expected_text, expected_tokens, pieces, tag_of

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def user(prompt):
    return [{"role": "user", "content": prompt}]


def answer_to(prompt, tokens=None):
    """The stand-in's text for a chat of this one message."""
    return expected_text(render(user(prompt)), 100_000, tokens=tokens or prompt.tokens)


def call_of(text):
    """The tool call that the stand-in makes of its text."""
    return {
        "id": "0",
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"text": ' + json.dumps(text) + "}"},
    }


def test_a_chat_is_answered_chunk_by_chunk(client, standin, ask):
    prompt = ask(tokens=30, itl_s=0.02)
    generation = client.submit_chat(user(prompt))
    chunks = list(generation.stream())
    assert len(chunks) > 1
    assert "".join(chunk.text for chunk in chunks) == answer_to(prompt)
    assert {(chunk.tokens, chunk.reasoning, chunk.tool_calls) for chunk in chunks} == {((), "", ())}
    result = generation.result(timeout_s=10)
    assert result.replies == [answer_to(prompt)]
    meta = result.meta[0]
    assert meta["finish_reason"] == "stop"
    assert meta["usage"]["completion_tokens"] == 31  # the server counts its end token
    assert meta["usage"]["prompt_tokens"] > 5
    assert (meta["attempts"], meta["endpoint"], meta["model"]) == (1, standin.url, standin.url)
    assert {"tool_calls", "reasoning", "logprobs"} & meta.keys() == set()
    assert meta["completion_start_time"]


async def test_a_chat_of_the_asyncio_client(async_client, ask):
    prompt = ask()
    generation = await async_client.submit_chat(user(prompt))
    assert "".join([chunk.text async for chunk in generation.stream()]) == answer_to(prompt)
    assert (await generation.result(timeout_s=10)).replies == [answer_to(prompt)]


def test_without_stream_a_reader_gets_all_of_it_at_the_end(client, ask):
    prompt = ask(reasoning=3)
    generation = client.submit_chat(user(prompt), stream=False)
    thoughts = answer_to(prompt, 3)
    (chunk,) = generation.stream()
    assert (chunk.reasoning, chunk.reasoning + chunk.text) == (thoughts, answer_to(prompt))
    assert [event.type for event in generation.events()] == ["started", "finished"]
    (chunk,) = client.submit_chat(user(ask(calls_tools=True)), tools=[WEATHER], stream=False).stream()
    (call,) = chunk.tool_calls
    assert (call.index, call.id, call.name) == (0, "0", "get_weather")


def test_what_is_sent_is_the_callers_chat(client, standin, ask):
    prompt = ask()
    messages = [
        *user(prompt),
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "1", "content": "21 °C"},
        {
            "role": "user",
            "name": "ada",
            "content": [
                {"type": "text", "text": "And this?"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"}},
            ],
        },
    ]
    client.submit_chat(
        messages,
        generation_kwargs={"max_tokens": 5, "temperature": 0.5, "seed": 7, "extra_body": {"top_k": 3}},
        stop_words=["§"],
    ).result(timeout_s=10)
    (entry,) = standin.chats(prompt)
    del messages[1]["content"]
    assert entry["path"] == "/v1/chat/completions"
    assert entry["body"] == {
        "model": "tgi",
        "messages": messages,
        "max_tokens": 5,
        "temperature": 0.5,
        "seed": 7,
        "top_k": 3,
        "stop": ["§"],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert entry["headers"].get("authorization") is None


def test_a_generators_own_parameters_and_model_go_out_and_the_requests_win(client, standin, ask):
    prompt = ask()
    result = client.submit_chat(user(prompt), generator="tuned", generation_kwargs={"top_p": 0.5}).result(timeout_s=10)
    (entry,) = standin.chats(prompt)
    sent = entry["body"]
    assert (sent["max_tokens"], sent["top_p"], sent["temperature"]) == (6, 0.5, 0.25)
    assert sent["stop"] == ["generator-word"]
    assert sent["model"] == result.meta[0]["model"] == "our/model"
    assert entry["headers"]["x-team"] == "blue"
    client.submit_chat(user(prompt)).result(timeout_s=10)
    assert standin.chats(prompt)[1]["body"]["max_tokens"] == 512


@pytest.mark.parametrize(
    ("generator", "authorization"),
    [("endpoint", "Bearer hf_canaryApiToken0001"), ("serverless", "Bearer hf_canaryApiToken0001"), ("default", None)],
)
def test_a_token_goes_only_where_the_settings_name_it(client, standin, ask, generator, authorization):
    prompt = ask()
    assert client.submit_chat(user(prompt), generator=generator).result(timeout_s=10).replies == [answer_to(prompt)]
    (entry,) = standin.chats(prompt)
    assert entry["headers"].get("authorization") == authorization
    assert entry["body"]["model"] == "tgi"


def picture(prompt, url):
    return [
        {
            "role": "user",
            "content": [{"type": "text", "text": prompt}, {"type": "image_url", "image_url": {"url": url}}],
        }
    ]


def test_no_server_is_asked_to_fetch_an_image_unless_its_generator_says_so(client, standin, ask, fleet_of):
    messages = picture(ask(tokens=2), "http://169.254.169.254/latest/meta-data")
    before = len(standin.requests())
    with pytest.raises(GenerationRejectedError, match=r"^messages\.0\.content\.1\.image_url\.url: the model server"):
        client.submit_chat(messages).result(timeout_s=10)
    images = {"images": ["http://169.254.169.254/latest"]}
    with pytest.raises(GenerationRejectedError, match=r"^messages\.0\.images\.0: the model server"):
        client.submit_chat([{**user(ask())[0], **images}]).result(timeout_s=10)
    with pytest.raises(GenerationRejectedError, match=r"^generation_kwargs\.extra_body\.images\.0: the model server"):
        client.submit_chat(user(ask()), generation_kwargs={"extra_body": images}).result(timeout_s=10)
    assert len(standin.requests()) == before
    own = {"api_type": "text_generation_inference", "api_params": {"url": standin.url}}
    # Who knows the generator's settings is told at once.
    with (
        GenerationClient(
            client.settings.model_copy(update={"generators": {"default": GeneratorSettings(**own)}})
        ) as one,
        pytest.raises(InvalidRequestError, match="fetches_images = true"),
    ):
        one.submit_chat(messages)
    with fleet_of({"default": {**own, "fetches_images": True}}) as fleet:
        fleet.staff(1)
        assert fleet.client.submit_chat(messages).result(timeout_s=10).replies
    (entry,) = standin.requests()[before:]
    assert entry["body"]["messages"] == messages


def test_a_schema_goes_out_as_each_engine_wants_it(client, standin, ask):
    """TGI reads ``value``, the others ``json_schema``; of the latter huggingface_hub would leave nothing."""
    prompt = ask()
    schema = {"name": "person", "schema": {"type": "object", "properties": {"age": {"type": "integer"}}}}
    generation = client.submit_chat(user(prompt), response_format={"type": "json_schema", "json_schema": schema})
    generation.result(timeout_s=10)
    (entry,) = standin.chats(prompt)
    assert entry["body"]["response_format"] == {"type": "json_schema", "json_schema": schema, "value": schema}


def test_a_tool_call_comes_in_pieces_and_whole(client, ask):
    """TGI ends such a stream with no finish_reason at all."""
    prompt = ask(tokens=12, itl_s=0.02, calls_tools=True)
    generation = client.submit_chat(user(prompt), tools=[WEATHER], tool_choice="auto")
    deltas = [delta for chunk in generation.stream() for delta in chunk.tool_calls]
    assert len(deltas) > 1
    assert deltas[0][:3] == (0, "0", "get_weather")
    assert {delta[:3] for delta in deltas[1:]} == {(0, None, None)}
    expected = call_of(answer_to(prompt))
    assert "".join(delta.arguments for delta in deltas) == expected["function"]["arguments"]
    assert all(isinstance(delta, ToolCallDelta) for delta in deltas)
    result = generation.result(timeout_s=10)
    assert result.replies == [""]
    assert result.meta[0]["tool_calls"] == [expected]
    assert result.meta[0]["finish_reason"] == "tool_calls"
    assert result.meta[0]["usage"]["completion_tokens"] == 13


def test_a_tool_call_that_the_limit_cuts_says_so(client, ask):
    prompt = ask(tokens=12, calls_tools=True)
    options = {"tools": [WEATHER], "generation_kwargs": {"max_tokens": 5}}
    (meta,) = client.submit_chat(user(prompt), **options).result(timeout_s=10).meta
    (call,) = meta["tool_calls"]
    assert call["function"]["arguments"] == call_of(answer_to(prompt, 5))["function"]["arguments"].removesuffix('"}')
    assert (meta["finish_reason"], meta["usage"]["completion_tokens"], meta["attempts"]) == ("length", 5, 1)


def test_thoughts_are_no_text(client, ask):
    prompt = ask(tokens=12, itl_s=0.005, reasoning=5)
    generation = client.submit_chat(user(prompt))
    chunks = list(generation.stream())
    whole, thoughts = answer_to(prompt), answer_to(prompt, 5)
    assert "".join(chunk.reasoning for chunk in chunks) == thoughts
    assert "".join(chunk.text for chunk in chunks) == whole[len(thoughts) :]
    result = generation.result(timeout_s=10)
    assert (result.replies, result.meta[0]["reasoning"]) == ([whole[len(thoughts) :]], thoughts)


def test_logprobs_are_in_the_result(client, ask):
    prompt = ask(tokens=3)
    kwargs = {"logprobs": True, "top_logprobs": 2}
    result = client.submit_chat(user(prompt), generation_kwargs=kwargs).result(timeout_s=10)
    texts = [token.text for token in expected_tokens(render(user(prompt)), 3)]
    logprobs = result.meta[0]["logprobs"]
    assert [each["token"] for each in logprobs] == [*texts, "</s>"]
    assert {len(each["top_logprobs"]) for each in logprobs} == {2}
    assert all(each["logprob"] == each["top_logprobs"][0]["logprob"] for each in logprobs)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        pytest.param({"generation_kwargs": {"top_p": 1.0}}, "`top_p` must be > 0.0 and < 1.0", id="in-the-stream"),
        pytest.param(
            {"tools": [WEATHER], "response_format": {"type": "json", "value": {"properties": {}}}},
            "Tool error: Grammar and tools are mutually exclusive",
            id="before-the-stream",
        ),
        pytest.param({"generation_kwargs": {"logit_bias": {"5": 1.0}}}, "Failed to deserialize", id="axum"),
    ],
)
def test_what_the_server_refuses_is_refused_at_once_in_its_words(client, standin, ask, options, words):
    prompt = ask()
    with pytest.raises(GenerationRejectedError, match=words):
        client.submit_chat(user(prompt), **options).result(timeout_s=10)
    assert len(standin.chats(prompt)) == 1


def test_what_cannot_be_a_chat_is_refused_before_it_is_queued(client):
    with pytest.raises(InvalidRequestError, match="messages: at least one is needed"):
        client.submit_chat([])
    with pytest.raises(InvalidRequestError, match=r"max_new_tokens: unknown; known: .*max_tokens"):
        client.submit_chat(user("x"), generation_kwargs={"max_new_tokens": 5})


def test_a_plain_celery_producer_may_send_messages(celery_app, ask):
    prompt = ask()
    sent = celery_app.send_task(
        "genqueue.generate",
        kwargs={"messages": user(prompt), "generation_kwargs": {"max_tokens": 4}},
        queue="generate.default",
    )
    assert sent.get(timeout=10)["replies"] == [answer_to(prompt, 4)]
    broken = celery_app.send_task(
        "genqueue.generate", kwargs={"messages": user(prompt), "prompt": "x"}, queue="generate.default"
    )
    with pytest.raises(GenerationRejectedError, match="prompt: needed, or messages; not both"):
        broken.get(timeout=10)


def test_the_same_key_is_the_same_chat(client, ask):
    prompt = ask()
    first = client.submit_chat(user(prompt), idempotency_key=prompt)
    assert client.submit_chat(user(prompt), idempotency_key=prompt).id == first.id
    with pytest.raises(InvalidRequestError, match="with another request"):
        client.submit(prompt, idempotency_key=prompt)


def test_a_cancel_closes_the_call_and_keeps_what_came(client, standin, ask, eventually):
    prompt = ask(tokens=5000, itl_s=0.01, reasoning=10)
    generation = client.submit_chat(user(prompt))
    eventually(lambda: generation.status().completion_tokens > 20)
    assert generation.cancel()
    eventually(lambda: standin.chats(prompt)[0]["state"] == "dropped")
    with pytest.raises(GenerationCancelledError) as ended:
        generation.result(timeout_s=10)
    thoughts = answer_to(prompt, 10)
    assert ended.value.partial_reasoning == thoughts
    assert len(ended.value.partial_text) > 5
    assert answer_to(prompt, 5000).startswith(thoughts + ended.value.partial_text)
    assert ended.value.usage["completion_tokens"] > 20


def test_a_cancel_keeps_the_calls_that_came(client, ask, eventually):
    prompt = ask(tokens=5000, itl_s=0.01, calls_tools=True)
    generation = client.submit_chat(user(prompt), tools=[WEATHER])
    eventually(lambda: generation.status().completion_tokens > 20)
    assert generation.cancel()
    with pytest.raises(GenerationCancelledError) as ended:
        generation.result(timeout_s=10)
    (call,) = ended.value.partial_tool_calls
    whole = call_of(answer_to(prompt, 5000))
    arguments = call["function"].pop("arguments")
    assert len(arguments) > 20
    assert whole["function"].pop("arguments").startswith(arguments)
    assert call == whole


@pytest.mark.parametrize("stream", [True, False])
def test_a_deadline_keeps_what_came(client, standin, ask, eventually, stream):
    prompt = ask(tokens=5000, itl_s=0.01, reasoning=10)
    generation = client.submit_chat(user(prompt), deadline_s=3.0, stream=stream)
    with pytest.raises(GenerationExpiredError) as ended:
        generation.result(timeout_s=10)
    assert ended.value.partial_reasoning == answer_to(prompt, 10)
    assert answer_to(prompt, 5000).startswith(ended.value.partial_reasoning + ended.value.partial_text)
    assert ended.value.usage["completion_tokens"] > 10
    eventually(lambda: standin.chats(prompt)[0]["state"] == "dropped")


@pytest.fixture(scope="module")
def fleet(fleet_of, standin):
    generator = {"api_type": "text_generation_inference", "api_params": {"url": standin.url}}
    with fleet_of({"default": generator, "continuing": {**generator, "continues_chat": True}}) as opened:
        yield opened


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "cut"},
        {"kind": "close"},
        {"kind": "reset"},
        {"kind": "error"},
        {"kind": "error", "error": "Model is overloaded"},
        {"kind": "error", "error": "Incomplete generation stream", "error_type": "incomplete_generation_stream"},
    ],
    ids=lambda fault: fault.get("error", fault["kind"]),
)
def test_a_failure_in_the_stream_begins_anew(fleet, ask, read, standin, fault):
    """TGI calls each of them 422 once the stream has begun."""
    fleet.staff(1)
    prompt = ask(tokens=12, faults=[{**fault, "after_tokens": 5, "times": 1}])
    reading = read(fleet.client.submit_chat(user(prompt)))
    assert reading.text() == answer_to(prompt)
    assert reading.kinds() == ["1.started", "2.started", "2.reset", "2.finished"]
    assert [call["body"]["messages"] for call in standin.chats(prompt)] == [user(prompt)] * 2
    meta = reading.generation.result(timeout_s=5).meta[0]
    assert (meta["attempts"], meta["usage"]["completion_tokens"]) == (2, 13)


def test_a_chat_whose_server_fails_for_good_ends_with_what_came(fleet_of, standin, ask):
    generator = {"api_type": "text_generation_inference", "api_params": {"url": standin.url}, "max_attempts": 2}
    with fleet_of({"default": generator}) as fleet:
        fleet.staff(1)
        prompt = ask(tokens=12, reasoning=2, faults=[{"kind": "cut", "after_tokens": 5}])
        with pytest.raises(GenerationFailedError, match="without its end marker") as ended:
            fleet.client.submit_chat(user(prompt)).result(timeout_s=20)
        assert ended.value.partial_reasoning == answer_to(prompt, 2)
        assert ended.value.partial_reasoning + ended.value.partial_text == answer_to(prompt, 5)
        assert len(standin.chats(prompt)) == 2


def test_a_dead_chat_is_tried_again_whole(fleet_of, standin, ask):
    generator = {"api_type": "text_generation_inference", "api_params": {"url": standin.url}, "max_attempts": 1}
    with fleet_of({"default": generator}) as fleet:
        fleet.staff(1)
        prompt = ask(tokens=5, calls_tools=True, faults=[{"kind": "cut", "after_tokens": 2, "times": 1}])
        dead = fleet.client.submit_chat(user(prompt), tools=[WEATHER], generation_kwargs={"temperature": 0.5})
        with pytest.raises(GenerationFailedError):
            dead.result(timeout_s=20)
        assert [letter.id for letter in fleet.client.dead_letters()] == [dead.id]
        again = fleet.client.retry(dead.id)
        assert again.result(timeout_s=20).meta[0]["tool_calls"] == [call_of(answer_to(prompt))]
        first, second = (call["body"] for call in standin.chats(prompt))
        assert first == second


@pytest.mark.parametrize("tools", [None, [WEATHER]], ids=["text", "tools"])
def test_killed_in_mid_chat_another_begins_anew(fleet, ask, read, eventually, tools):
    fleet.staff(2)
    prompt = ask(tokens=120, itl_s=0.03, calls_tools=tools is not None)
    reading = read(fleet.client.submit_chat(user(prompt), tools=tools))
    eventually(lambda: len(reading.events) > 20)
    fleet.holder(reading.generation).process.kill()
    text = reading.text()
    assert reading.kinds() == ["1.started", "2.started", "2.reset", "2.finished"]
    result = reading.generation.result(timeout_s=5)
    assert result.meta[0]["attempts"] == 2
    if tools is None:
        assert text == result.replies[0] == answer_to(prompt)
    else:
        assert result.meta[0]["tool_calls"] == [call_of(answer_to(prompt))]
        deltas = [
            delta for _, event in reading.events if event.attempt == 2 for delta in getattr(event, "tool_calls", ())
        ]
        assert "".join(delta.arguments for delta in deltas) == call_of(answer_to(prompt))["function"]["arguments"]


def test_killed_in_mid_chat_another_goes_on_where_the_server_does(fleet, ask, read, eventually, standin):
    fleet.staff(2)
    prompt = ask(tokens=120, itl_s=0.03)
    reading = read(
        fleet.client.submit_chat(user(prompt), generator="continuing", generation_kwargs={"max_tokens": 100})
    )
    eventually(lambda: len(reading.events) > 20)
    fleet.holder(reading.generation).process.kill()
    assert reading.text() == answer_to(prompt, 100)
    assert reading.kinds() == ["1.started", "2.started", "2.resumed", "2.finished"]
    first, second = standin.chats(prompt)
    begun = second["body"]["messages"][1]
    assert begun["role"] == "assistant"
    assert answer_to(prompt).startswith(begun["content"])
    assert len(begun["content"]) > 20
    assert (second["body"]["continue_final_message"], second["body"]["add_generation_prompt"]) == (True, False)
    assert second["body"]["max_tokens"] < first["body"]["max_tokens"] == 100
    meta = reading.generation.result(timeout_s=5).meta[0]
    prompt_tokens = len(pieces(render(user(prompt))))
    assert meta["usage"] == {"prompt_tokens": prompt_tokens, "completion_tokens": 100}
    assert meta["finish_reason"] == "length"


def test_a_chat_that_must_begin_anew_does_so_also_where_the_server_goes_on(fleet, ask, read):
    fleet.staff(1)
    prompt = ask(tokens=12, reasoning=2, faults=[{"kind": "cut", "after_tokens": 5, "times": 1}])
    reading = read(fleet.client.submit_chat(user(prompt), generator="continuing"))
    assert answer_to(prompt).endswith(reading.text())
    assert reading.kinds() == ["1.started", "2.started", "2.reset", "2.finished"]
    result = reading.generation.result(timeout_s=5)
    assert result.meta[0]["reasoning"] + result.replies[0] == answer_to(prompt)


def test_neither_log_nor_registry_keep_a_chat_that_ended(client, celery_app, ask, db, worker):
    prompts = [ask(tokens=9, reasoning=3) for _ in range(4)]
    invalid = {"kind": "status", "status": 422, "body": {"error": "no", "error_type": "validation"}}
    kept = [client.submit_chat(user(prompts[0])), client.submit_chat(user(ask(faults=[invalid])))]
    for generation in kept:
        with contextlib.suppress(GenerationError):
            generation.result(timeout_s=10)
    for prompt, more in ((prompts[2], {}), (prompts[3], {"tools": 5})):
        sent = celery_app.send_task(
            "genqueue.generate", kwargs={"messages": user(prompt), **more}, queue="generate.default"
        )
        with contextlib.suppress(GenerationError):
            sent.get(timeout=10)
    for generation in kept:  # the second was refused: no attempt will mend that
        assert not db.hexists(f"genqueue:generation:{generation.id}", "request")
    words = [word for prompt in prompts for word in (prompt.split()[2], tag_of(render(user(prompt))) + "-")]
    assert kept[0].id in worker.log
    assert [word for word in words if word in worker.log] == []
