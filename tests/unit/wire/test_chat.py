"""What a chat may be, and what goes on the wire for it."""

import json

import pytest

from genqueue.errors import ConfigError, InvalidRequestError
from genqueue.settings import GeneratorSettings
from genqueue.wire.addresses import addresses
from genqueue.wire.chat import ChatKwargs
from genqueue.wire.events import Chunk, ToolCallDelta, chunk_body, read_event
from genqueue.wire.request import GenerationKwargs, GenerationRequest, read_request
from genqueue.wire.result import GenerationResult
from genqueue_worker.upstream.engines.chats import chat_parameters

USER = {"role": "user", "content": "Hi"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "default": None}}}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
SCHEMA = {"name": "person", "schema": {"type": "object"}, "strict": True}


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(USER, id="user"),
        pytest.param({"role": "system", "content": ""}, id="empty-system"),
        pytest.param({"role": "developer", "content": "Be brief."}, id="developer"),
        pytest.param({"role": "user", "name": "ada", "content": [{"type": "text", "text": "x"}]}, id="parts"),
        pytest.param(
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "low"}}],
            },
            id="image",
        ),
        pytest.param(
            {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}}]},
            id="a-part-that-only-some-engines-know",
        ),
        pytest.param({"role": "assistant", "tool_calls": [CALL]}, id="tool-calls"),
        pytest.param({"role": "assistant", "content": "x", "reasoning_content": "Hm"}, id="more-than-we-know"),
        pytest.param({"role": "tool", "tool_call_id": "1", "content": "21"}, id="tool"),
    ],
)
def test_a_message_goes_on_as_it_came(message):
    request = read_request({"messages": [message]})
    assert request.given == [message]
    received = GenerationRequest.model_validate_json(request.to_wire())
    assert (received, received.given) == (request, [message])
    assert received.fingerprint() == request.fingerprint()


def answered(text="", **meta):
    return GenerationResult(replies=[text], meta=[meta])


CUSTOM = {"id": "c", "type": "custom", "custom": {"name": "sql", "input": "select 1"}}
LONG_ID = {**CALL, "id": "call_1__thought__" + "A" * 4000}
NO_JSON = {**CALL, "function": {"name": "f", "arguments": '{"x":'}}
THOUGHT = {"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}]}


@pytest.mark.parametrize(
    ("result", "message"),
    [
        pytest.param(answered("Hi"), {"content": "Hi"}, id="text"),
        pytest.param(answered(""), {"content": ""}, id="nothing"),
        pytest.param(answered("No.", refusal="No."), {"content": "No."}, id="refusal"),
        pytest.param(answered("", tool_calls=[CALL]), {"tool_calls": [CALL]}, id="tool-calls"),
        pytest.param(answered("Hm.", tool_calls=[LONG_ID]), {"content": "Hm.", "tool_calls": [LONG_ID]}, id="long-id"),
        pytest.param(answered("", tool_calls=[CUSTOM, CALL]), {"tool_calls": [CUSTOM, CALL]}, id="custom-tool"),
        pytest.param(answered("", tool_calls=[NO_JSON]), {"tool_calls": [NO_JSON]}, id="arguments-are-no-json"),
        pytest.param(answered("", reasoning="Hm"), {"content": "", "reasoning_content": "Hm"}, id="thoughts-alone"),
        pytest.param(
            answered("a", reasoning="Hm", reasoning_field="reasoning"), {"content": "a", "reasoning": "Hm"}, id="vllm"
        ),
        pytest.param(
            answered("a", reasoning="Hm", reasoning_field="content"),
            {"content": [THOUGHT, {"type": "text", "text": "a"}]},
            id="mistral",
        ),
        pytest.param(
            answered("", reasoning="Hm", reasoning_field="content", tool_calls=[CALL]),
            {"content": [THOUGHT], "tool_calls": [CALL]},
            id="mistral-calls",
        ),
    ],
)
def test_a_results_message_can_be_handed_back_as_it_is(result, message):
    given = read_request({"messages": [USER, result.message, USER]}).given
    assert given == [USER, {"role": "assistant", **message}, USER]


@pytest.mark.parametrize(
    ("message", "sent"),
    [
        pytest.param({"content": None, "reasoning": "Hm"}, {"content": "", "reasoning": "Hm"}, id="thoughts"),
        pytest.param({"reasoning_content": "Hm"}, {"content": "", "reasoning_content": "Hm"}, id="thoughts-alone"),
        pytest.param({"content": None, "refusal": "No"}, {"content": "", "refusal": "No"}, id="refusal"),
        pytest.param({"content": "a", "tool_calls": []}, {"content": "a"}, id="no-calls"),
        pytest.param(
            {"tool_calls": [{**CALL, "id": None}]}, {"tool_calls": [{k: CALL[k] for k in ("type", "function")}]}
        ),
    ],
)
def test_a_message_made_of_an_answer_by_hand_is_taken(message, sent):
    assert read_request({"messages": [{"role": "assistant", **message}]}).given == [{"role": "assistant", **sent}]


@pytest.mark.parametrize("message", [{}, {"content": None}, {"content": None, "tool_calls": []}, {"refusal": ""}])
def test_an_assistant_that_says_nothing_is_refused(message):
    with pytest.raises(InvalidRequestError, match="content: needed, unless an assistant's tool_calls"):
        read_request({"messages": [{"role": "assistant", **message}]})


def test_what_an_earlier_answer_left_empty_is_not_sent():
    answered = {"role": "assistant", "content": None, "refusal": None, "tool_calls": [CALL]}
    assert read_request({"messages": [answered]}).given == [{"role": "assistant", "tool_calls": [CALL]}]


def test_a_custom_tool_is_offered_and_chosen():
    tool = {"type": "custom", "custom": {"name": "sql", "format": {"type": "text"}}}
    choice = {"type": "custom", "custom": {"name": "sql"}}
    request = read_request({"messages": [USER], "tools": [tool, TOOL], "tool_choice": choice})
    parameters = chat_parameters(
        GeneratorSettings.model_validate(
            {"api_type": "text_generation_inference", "api_params": {"url": "http://127.0.0.1:9"}}
        ),
        request,
    )
    assert (parameters["tools"][0], parameters["tool_choice"]) == (tool, choice)
    assert GenerationRequest.model_validate_json(request.to_wire()) == request


def test_a_prompt_is_given_as_it_is():
    assert read_request({"prompt": "p"}).given == "p"


def test_the_parameters_are_those_of_its_kind():
    assert type(read_request({"prompt": "p"}).generation_kwargs) is GenerationKwargs
    chat = read_request({"messages": [USER]})
    assert type(chat.generation_kwargs) is ChatKwargs
    assert json.loads(chat.to_wire()) == {"messages": [USER]}
    assert chat.fingerprint() == read_request({"messages": [USER], "generation_kwargs": {}}).fingerprint()
    assert chat.fingerprint() != read_request({"messages": [{**USER, "content": "Ho"}]}).fingerprint()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        pytest.param({"prompt": "p"}, "prompt: needed, or messages; not both", id="both"),
        pytest.param({"messages": []}, "messages: at least one is needed", id="none"),
        pytest.param({"messages": "Hi"}, "messages: Input should be", id="a-string"),
        pytest.param({"messages": [5]}, "messages.0: Input should be", id="no-message"),
        pytest.param({"messages": [{**USER, "role": "bot"}]}, "messages.0.role: Input should be 'system'", id="role"),
        pytest.param({"messages": [{"role": "user"}]}, "messages.0: content: needed", id="no-content"),
        pytest.param(
            {"messages": [{**USER, "content": 5}]}, "messages.0.content: Input should be a valid", id="number"
        ),
        pytest.param(
            {"messages": [USER, {**USER, "content": [{"type": "text"}]}]},
            "messages.1.content.0: a part of type 'text' needs 'text'",
            id="part",
        ),
        pytest.param(
            {"messages": [{**USER, "content": [{"type": "image_url", "image_url": "https://x"}]}]},
            "messages.0.content.0.image_url: Input should be an object",
            id="image",
        ),
        pytest.param({"messages": [{**USER, "x": "\ud83d"}]}, "messages: holds what JSON cannot", id="surrogate"),
        pytest.param({"messages": "hi"}, "messages: Input should be a valid list", id="messages-string"),
        pytest.param({"messages": ["hi"]}, "messages.0: Input should be an object", id="message-string"),
        pytest.param({"tools": "f"}, "tools: Input should be a valid list", id="tools-string"),
        pytest.param({"tools": [{"type": "function"}]}, "tools.0: type 'function' needs 'function'", id="tool"),
        pytest.param({"tools": [{"type": "custom"}]}, "tools.0: type 'custom' needs 'custom', an", id="custom-tool"),
        pytest.param(
            {"tools": [{"type": "custom", "custom": {"name": 5}}]}, "tools.0: type 'custom' needs", id="custom-name"
        ),
        pytest.param(
            {"messages": [{"role": "assistant", "tool_calls": [{**CUSTOM, "custom": {"name": "f"}}]}]},
            "messages.0.tool_calls.0: type 'custom' needs 'custom', an object with name and input",
            id="custom-call",
        ),
        pytest.param({"tools": [{**TOOL, "type": "code"}]}, "tools.0.type: Input should be 'function'", id="tool-type"),
        pytest.param({"tool_choice": "f"}, "tool_choice: Input should be 'auto'", id="choice"),
        pytest.param({"tool_choice": {"function": {}}}, "tool_choice.function.name: Field required", id="choice-name"),
        pytest.param({"response_format": {"type": "xml"}}, "response_format.type: Input should be", id="form"),
        pytest.param(
            {"response_format": {"type": "json_schema"}}, "response_format: type 'json_schema' needs", id="no-schema"
        ),
        pytest.param(
            {"response_format": {"type": "json_schema", "json_schema": {"type": "object"}}},
            "response_format: json_schema needs 'schema', an object",
            id="bare-schema",
        ),
        pytest.param(
            {"generation_kwargs": {"max_new_tokens": 5}},
            "generation_kwargs.max_new_tokens: unknown; known: extra_body,",
            id="a-prompts-parameter",
        ),
        pytest.param({"generation_kwargs": {"n": 2}}, "generation_kwargs.n: Input should be 1", id="n"),
        pytest.param({"generation_kwargs": {"max_tokens": "5"}}, "generation_kwargs.max_tokens: Input", id="type"),
        pytest.param(
            {"generation_kwargs": {"extra_body": {"model": "x", "seed": 1}}},
            "generation_kwargs.extra_body: may not hold seed (it is one of generation_kwargs); model (how a server ",
            id="extra-body",
        ),
        pytest.param(
            {"generation_kwargs": {"extra_body": {"max_completion_tokens": 10**12, "top_k": 3, "n_predict": -1}}},
            "generation_kwargs.extra_body: may not hold max_completion_tokens, n_predict (max_tokens alone bounds",
            id="extra-body-with-a-length",
        ),
    ],
)
def test_a_chat_that_cannot_run_is_refused_in_one_line(fields, words):
    with pytest.raises(InvalidRequestError) as refused:
        read_request({"messages": [USER], **fields})
    assert str(refused.value).startswith(words)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        # OpenAI's, vLLM's, SGLang's, llama.cpp's and TGI's words for how long,
        *(
            (name, "max_tokens alone bounds an answer")
            for name in ("max_completion_tokens", "max_output_tokens", "max_new_tokens", "max_length", "n_predict")
        ),
        *((name, "max_tokens alone bounds an answer") for name in ("min_tokens", "min_new_tokens", "min_length")),
        ("generation_config", "max_tokens alone bounds an answer"),
        # how many,
        *((name, "one answer is read") for name in ("best_of", "n_cmpl", "num_return_sequences", "use_beam_search")),
        # of what, in which form,
        *((name, "how a server is asked") for name in ("prompt", "inputs", "input_ids", "prompt_embeds", "parameters")),
        *((name, "how a server is asked") for name in ("messages", "model", "stream", "stream_options", "echo")),
        ("response_fields", "how a server is asked"),
        *((name, "submit_chat takes it") for name in ("tools", "tool_choice", "response_format", "functions")),
        # and where else to connect.
        *(
            (name, "a server connects where it says")
            for name in ("bootstrap_host", "bootstrap_port", "kv_transfer_params", "disaggregated_params")
        ),
    ],
)
@pytest.mark.parametrize("value", [None, -1, 10**12, {"a": 1}], ids=str)
def test_extra_body_says_nothing_that_is_said_or_bounded_elsewhere(name, reason, value):
    for read in (
        lambda body: read_request({"messages": [USER], "generation_kwargs": {"extra_body": body}}),
        lambda body: generator(chat_kwargs={"extra_body": body}),
    ):
        with pytest.raises(
            (ValueError, ConfigError), match=rf"(?s)extra_body.* may not hold {name} \({reason}"
        ) as refused:
            read({"top_k": 3, name: value})
        assert "top_k" not in str(refused.value).partition(" [type=")[0]


def test_extra_body_says_what_else_only_some_engines_know():
    body = {"top_k": 3, "min_p": 0.1, "repetition_penalty": 1.1, "ignore_eos": True, "grammar": "root ::= x"}
    body |= {"chat_template_kwargs": {"enable_thinking": False}, "stop_token_ids": [2], "guided_regex": "a+"}
    request = read_request({"messages": [USER], "generation_kwargs": {"extra_body": body}})
    assert chat_parameters(generator(), request)["extra_body"] == body


def asks_for(part):
    """A chat whose second message has two parts, ``part`` the second."""
    return [USER, {"role": "user", "content": [{"type": "text", "text": "See http://host/"}, part]}]


@pytest.mark.parametrize(
    ("part", "place"),
    [
        pytest.param(
            {"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}, "image_url.url", id="http"
        ),
        pytest.param({"type": "image_url", "image_url": {"url": " HTTPS://host/i.png"}}, "image_url.url", id="https"),
        pytest.param({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}, "image_url.url", id="file"),
        pytest.param({"type": "image_url", "image_url": {"url": "/etc/passwd"}}, "image_url.url", id="path"),
        pytest.param({"type": "image_url", "image_url": {"url": "//host/i.png"}}, "image_url.url", id="no-scheme"),
        pytest.param({"type": "video_url", "video_url": {"url": "http://host/v"}}, "video_url.url", id="video"),
        pytest.param({"type": "audio_url", "audio_url": "http://host/a"}, "audio_url", id="a-bare-address"),
        pytest.param({"type": "text", "text": "x", "image_url": {"url": "http://host/"}}, "image_url.url", id="text"),
        pytest.param({"type": "image", "image": "http://host/i.png"}, "image", id="under-another-name"),
        pytest.param({"type": "x", "x": [{"y": "s3://bucket/i"}]}, "x.0.y", id="deep"),
        pytest.param({"type": "image", "image": "/etc/passwd"}, "image", id="a-bare-path"),
        pytest.param({"type": "video", "video": ["1.jpg"]}, "video.0", id="frames"),
        pytest.param({"type": "input_audio", "input_audio": "/dev/zero"}, "input_audio", id="bare-audio"),
    ],
)
def test_what_a_server_would_fetch_is_found_and_refused_unless_it_may(part, place):
    given = read_request({"messages": asks_for(part)}).given
    assert addresses(given) == [f"messages.1.content.1.{place}"]
    refusal = generator().refusal(given)
    assert refusal is not None
    assert refusal.startswith(f"messages.1.content.1.{place}: the model server would fetch this address; ")
    assert "169" not in refusal
    assert generator(url=None).refusal(given) is None  # Inference Providers fetch from their own network
    assert generator(url=None, fetches_images=False).refusal(given) == refusal
    assert generator(fetches_images=True).refusal(given) is None


@pytest.mark.parametrize(
    ("field", "place"),
    [
        ({"images": ["http://169.254.169.254/latest"]}, "images.0"),
        ({"images": [{"url": "i.png"}]}, "images.0.url"),
        ({"image_url": {"url": "/etc/passwd"}}, "image_url.url"),
        ({"video": "file:///v"}, "video"),
        ({"audio": {"id": "audio_1", "data": "http://host/a"}}, "audio.data"),
        ({"image_data": "/etc/passwd"}, "image_data"),
    ],
)
def test_what_a_server_would_fetch_is_found_outside_of_contents_too(field, place):
    given = read_request({"messages": [USER, {**USER, **field}]}).given
    assert addresses(given) == [f"messages.1.{place}"]
    body = read_request({"messages": [USER], "generation_kwargs": {"extra_body": {"top_k": 3, "x": field}}})
    assert addresses(body.given, body.generation_kwargs.extra_body) == [f"generation_kwargs.extra_body.x.{place}"]
    refusal = generator().refusal(body.given, body.generation_kwargs.extra_body)
    assert refusal is not None
    assert refusal.startswith(f"generation_kwargs.extra_body.x.{place}: the model server would fetch this address; ")
    refusal = generator(fetches_images=True).refusal(body.given, body.generation_kwargs.extra_body)
    assert refusal is not None and refusal.startswith("generation_kwargs.extra_body.x: no parameter that is known")
    may = generator(fetches_images=True, allowed_extra_body=["x"])
    assert may.refusal(body.given, body.generation_kwargs.extra_body) is None


@pytest.mark.parametrize(
    "message",
    [
        {"content": "http://host/ and ![](http://host/i.png)", "name": "http://host"},
        {"reasoning_content": "http://host/", "refusal": None, "reasoning": "https://host"},
        {"images": ["data:image/png;base64,AA=="], "image_url": {"url": "DATA:image/png;base64,AA==", "detail": "low"}},
        {"audio": {"id": "audio_1", "data": "//uQ", "expires_at": 1, "transcript": "https://host/ is an address"}},
        {"annotations": [{"type": "url_citation", "url_citation": {"url": "https://host/", "title": "x"}}]},
        {"citations": ["https://host/"], "metadata": {"source": "https://host/", "path": "/tmp"}},
        {"function_call": {"name": "show", "arguments": {"image": "http://host/i.png"}}},
        {"tool_calls": [{**CALL, "function": {"name": "show", "arguments": {"image": "http://host/i.png"}}}]},
    ],
)
def test_what_an_ordinary_message_holds_beside_its_content_is_no_address(message):
    assert addresses(read_request({"messages": [{"role": "assistant", "content": "x", **message}]}).given) == []


@pytest.mark.parametrize(
    "body",
    [
        {"guided_json": {"$schema": "https://json-schema.org/", "properties": {"image": {"default": "http://host/"}}}},
        {"structured_outputs": {"json": {"$defs": {"image": {"$id": "http://host/"}}, "required": ["image", "url"]}}},
        {"media_io_kwargs": {"video": {"num_frames": 8, "video_backend": "opencv"}, "image": {"mode": "RGB"}}},
        {"mm_processor_kwargs": {"images_kwargs": {"do_resize": False}}, "limit_mm_per_prompt": {"image": 2}},
        {"modalities": ["text", "audio"], "audio": {"voice": "alloy", "format": "wav"}},
        {"documents": [{"title": "x", "url": "https://host/", "text": "http://host/"}], "lora_path": "/adapters/a"},
        {"chat_template_kwargs": {"enable_thinking": False}, "guided_choice": ["http://host/a", "http://host/b"]},
        {"image_embeds": "gASV", "grammar": "root ::= x"},
    ],
)
def test_what_engines_are_told_of_other_things_is_no_address(body):
    assert addresses([USER], body) == []


@pytest.mark.parametrize(
    "part",
    [
        {"type": "file", "file": {"file_data": "data:application/pdf;base64,AA==", "filename": "a.pdf"}},
        {"type": "image_embeds", "image_embeds": "gASV"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,/9j/AA==", "detail": "low"}},
        {"type": "image_url", "image_url": {"url": "DATA:image/png;base64,AA=="}},
        {"type": "input_audio", "input_audio": {"data": "//uQxAAA", "format": "wav"}},
        {"type": "text", "text": "http://host/ is an address, and so is ![](http://host/i.png)"},
        {"type": "thinking", "thinking": "https://host/"},
    ],
)
def test_what_a_message_holds_itself_is_fetched_from_nowhere(part):
    given = read_request({"messages": asks_for(part)}).given
    assert addresses(given) == []
    assert generator().refusal(given) is None


def test_what_a_tool_was_called_with_and_a_prompt_are_no_addresses():
    call = {"id": "1", "type": "function", "function": {"name": "get", "arguments": {"url": "http://host/"}}}
    given = read_request({"messages": [USER, {"role": "assistant", "tool_calls": [call]}]}).given
    assert generator().refusal(given) is None
    assert generator().refusal("http://host/") is None


@pytest.mark.parametrize("field", ["tools", "tool_choice", "response_format"])
def test_a_prompt_has_no_tools(field):
    value = {"tools": [TOOL], "tool_choice": "auto", "response_format": {"type": "text"}}[field]
    with pytest.raises(InvalidRequestError, match=f"{field}: only with messages"):
        read_request({"prompt": "p", field: value})


def generator(url="http://tgi:8080", **fields):
    params = {"api_type": "text_generation_inference", "api_params": {"url": url}}
    if url is None:
        params = {"api_type": "serverless_inference_api", "api_params": {"model": "m"}}
    return GeneratorSettings.model_validate({**params, **fields})


@pytest.mark.parametrize(
    ("own", "asked", "expected"),
    [
        pytest.param({}, {}, {"max_tokens": 512}, id="default"),
        pytest.param({"chat_kwargs": {"max_tokens": 7}}, {}, {"max_tokens": 7}, id="generators-own"),
        pytest.param({"generation_kwargs": {"max_new_tokens": 7}}, {}, {"max_tokens": 512}, id="not-those-of-prompts"),
        pytest.param(
            {"chat_kwargs": {"max_tokens": 7, "seed": 1}},
            {"generation_kwargs": {"max_tokens": 9, "temperature": 0.0}},
            {"max_tokens": 9, "seed": 1, "temperature": 0.0},
            id="request-wins",
        ),
        pytest.param(
            {"chat_kwargs": {"extra_body": {"top_k": 3, "min_p": 0.1}}},
            {"generation_kwargs": {"extra_body": {"top_k": 5}}},
            {"max_tokens": 512, "extra_body": {"top_k": 5, "min_p": 0.1}},
            id="extra-body-is-merged",
        ),
        pytest.param(
            {"chat_kwargs": {"stop": ["a"]}, "stop_words": ["w"]},
            {"generation_kwargs": {"stop": ["b"]}, "stop_words": ["v", "b"]},
            {"max_tokens": 512, "stop": ["b", "w", "v"]},
            id="stop",
        ),
        pytest.param(
            {},
            {"tools": [TOOL], "tool_choice": {"function": {"name": "f"}}},
            {
                "max_tokens": 512,
                "tools": [TOOL],
                "tool_choice": {"type": "function", "function": {"name": "f"}},
            },
            id="tools-and-their-null",
        ),
        pytest.param({}, {"tool_choice": "none"}, {"max_tokens": 512, "tool_choice": "none"}, id="choice"),
        pytest.param(
            {},
            {"response_format": {"type": "json_schema", "json_schema": SCHEMA}},
            {
                "max_tokens": 512,
                "response_format": {"type": "json_schema", "json_schema": SCHEMA, "value": SCHEMA},
            },
            id="schema-for-every-engine",
        ),
        pytest.param(
            {"url": None},
            {"response_format": {"type": "json_schema", "json_schema": SCHEMA}},
            {"max_tokens": 512, "response_format": {"type": "json_schema", "json_schema": SCHEMA}},
            id="schema-for-a-provider",
        ),
        pytest.param(
            {},
            {"response_format": {"type": "regex", "value": "a+"}},
            {"max_tokens": 512, "response_format": {"type": "regex", "value": "a+"}},
            id="regex",
        ),
    ],
)
def test_a_requests_parameters_win_over_the_generators(own, asked, expected):
    found = chat_parameters(generator(**own), read_request({"messages": [USER], **asked}))
    assert json.loads(json.dumps(found)) == expected


def test_a_chunk_of_a_chat_survives_the_wire_and_an_old_reader():
    call = ToolCallDelta(0, "1", "f", "{")
    body = chunk_body("x", [], reasoning="Hm", tool_calls=[call, ToolCallDelta(0, None, None, "}")])
    event = read_event(b'{"seq":1,"attempt":1,' + body)
    assert (event.text, event.reasoning) == ("x", "Hm")
    assert event.tool_calls == (call, ToolCallDelta(0, None, None, "}"))
    assert all(isinstance(each, ToolCallDelta) for each in event.tool_calls)
    assert read_event(event.model_dump_json().encode()) == event
    assert event.v == 1  # who does not know the fields passes over them


def test_a_chunk_without_thoughts_and_calls_looks_as_before():
    plain = Chunk(seq=1, attempt=1, text="x")
    assert {"reasoning", "tool_calls"} & plain.model_dump().keys() == set()
    assert b"reasoning" not in chunk_body("x", [])
    assert b"tool_calls" not in chunk_body("x", [])
