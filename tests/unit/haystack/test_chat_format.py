"""Chats between Haystack's words and the queue's: messages, tools, streaming chunks, the reply."""

import pytest
from haystack.components.generators.utils import print_streaming_chunk
from haystack.dataclasses import (
    ChatMessage,
    ComponentInfo,
    FileContent,
    ImageContent,
    ReasoningContent,
    TextContent,
    ToolCall,
)
from haystack.tools.tool import Tool

from genqueue.haystack.chat_chunks import ChatChunks
from genqueue.haystack.chat_format import inlined, message_from, messages_for, tools_for
from genqueue.wire.events import Chunk, Finished, ToolCallDelta
from genqueue.wire.request import read_request
from genqueue.wire.result import GenerationResult

INFO = ComponentInfo("a.component")
CALLS = [
    {"id": "a", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}},
    {"id": "b", "type": "function", "function": {"name": "now", "arguments": ""}},
]


def result(text="", finish_reason="stop", **meta):
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    return GenerationResult(
        replies=[text], meta=[{"model": "a/model", "finish_reason": finish_reason, "usage": usage, **meta}]
    )


def chunk(text="", **fields):
    return Chunk(seq=1, attempt=1, text=text, **fields)


FINISHED = Finished(seq=9, attempt=1, finish_reason="stop", completion_tokens=2)


def stream(*batches, of, model=None):
    chunks = ChatChunks(INFO, model)
    made = [one for batch in batches for one in chunks.feed(batch)] + chunks.end(of)
    assert [one.component_info for one in made] == [INFO] * len(made)
    assert made[-1].meta.pop("usage") == {"prompt_tokens": 3, "completion_tokens": 2}
    assert (made[-1].content, made[-1].index) == ("", None)
    return made[:-1]


def texts(made):
    return [(one.content, one.index, one.start, one.finish_reason) for one in made]


def test_messages_go_out_as_servers_take_them():
    image = ImageContent("AAAA", "image/png", validation=False)
    call = ToolCall("weather", {"city": "Paris"}, "a")
    assert messages_for(
        [
            ChatMessage.from_system("Be brief."),
            ChatMessage.from_user(content_parts=["What is this?", image]),
            ChatMessage.from_assistant(tool_calls=[call, ToolCall("now", {})], reasoning="Hm"),
            ChatMessage.from_tool("rain", call),
        ]
    ) == [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is this?"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
            ],
        },
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}, "id": "a"},
                {"type": "function", "function": {"name": "now", "arguments": {}}, "id": "1"},
            ],
        },
        {"role": "tool", "content": "rain", "tool_call_id": "a"},
    ]


IMAGE = ImageContent("AAAA", "image/png", validation=False)
FILE = FileContent("AAAA", "application/pdf", "a.pdf", validation=False)
SENT_IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
CALL = ToolCall("f", {"a": 1}, "1")


@pytest.mark.parametrize(
    ("said", "sent"),
    [
        pytest.param("r", "r", id="text"),
        pytest.param([TextContent("r1"), TextContent("r2")], ["r1", "r2"], id="texts"),
        pytest.param([TextContent("r1")], ["r1"], id="one-text"),
        pytest.param([TextContent("r1"), IMAGE], ["r1", SENT_IMAGE], id="image"),
        pytest.param([], [], id="nothing"),
    ],
)
def test_a_tools_result_goes_out_in_its_parts(said, sent):
    parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in sent]
    (message,) = messages_for([ChatMessage.from_tool(said, CALL)])
    assert message == {"role": "tool", "content": sent if isinstance(sent, str) else parts, "tool_call_id": "1"}
    read_request({"messages": [message]})


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(ChatMessage.from_tool([TextContent("r"), FILE], CALL), id="in-a-tools-result"),
        pytest.param(ChatMessage.from_user(content_parts=["Read this.", FILE]), id="in-a-users-message"),
    ],
)
def test_a_part_that_servers_do_not_take_is_refused_in_haystacks_words(message):
    with pytest.raises(ValueError, match=r"`FileContent` cannot be sent: .* takes `TextContent` and `ImageContent`"):
        messages_for([message])


def test_calls_without_ids_are_told_apart_in_the_whole_conversation_and_their_results_lead_to_them():
    f, g = ToolCall("f", {}), ToolCall("g", {})
    turns = [
        ChatMessage.from_assistant(tool_calls=[f, g]),
        ChatMessage.from_tool("1", g),
        ChatMessage.from_tool("2", f),
    ]
    sent = messages_for([*turns, *turns])
    assert [call["id"] for message in sent for call in message.get("tool_calls", ())] == ["0", "1", "2", "3"]
    assert [message["tool_call_id"] for message in sent if message["role"] == "tool"] == ["1", "0", "3", "2"]


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param({"reasoning": "Hm"}, id="thoughts-alone"),
        pytest.param({"refusal": "No", "text": "No"}, id="refusal"),
        pytest.param({"tool_calls": CALLS, "finish_reason": "tool_calls"}, id="tool-calls"),
        pytest.param({"tool_calls": [{**CALLS[0], "id": "i" * 4000}]}, id="long-id"),
        pytest.param({"tool_calls": [{**CALLS[0], "function": {"name": "f", "arguments": "{"}}]}, id="no-json"),
        pytest.param({}, id="nothing"),
    ],
)
def test_a_reply_can_be_handed_back_whole(answer):
    reply = message_from(result(**answer), None, None)
    (sent,) = messages_for([reply])
    read_request({"messages": [sent]})
    assert [call["id"] for call in sent.get("tool_calls", ())] == [call.id for call in reply.tool_calls]


def test_a_string_is_a_users_message():
    assert messages_for("Hello") == [{"role": "user", "content": "Hello"}]


@pytest.mark.parametrize("wrong", [[{"role": "user", "content": "Hello"}], None, 5])
def test_what_are_no_messages_is_refused(wrong):
    with pytest.raises(TypeError, match="Invalid messages type"):
        messages_for(wrong)


def test_tools_are_named_described_and_told_apart():
    parameters = {"type": "object", "properties": {}}
    tool = Tool("weather", "Now", parameters, str)
    assert tools_for([]) is None
    assert tools_for([tool]) == [
        {"type": "function", "function": {"name": "weather", "description": "Now", "parameters": parameters}}
    ]
    with pytest.raises(ValueError, match="Duplicate tool names found"):
        tools_for([tool, tool])


def test_definitions_stand_in_place_of_their_references():
    node = {"type": "object", "properties": {"next": {"$ref": "#/$defs/Node"}, "at": {"$ref": "#/$defs/Point"}}}
    point = {"type": "array", "items": {"type": "number"}}
    schema = {"properties": {"way": {"anyOf": [{"$ref": "#/$defs/Node"}]}}, "$defs": {"Node": node, "Point": point}}
    whole = {"type": "object", "properties": {"next": {"$ref": "#/$defs/Node"}, "at": point}}
    assert inlined(schema) == {"properties": {"way": {"anyOf": [whole]}}}
    assert inlined(point) == point


def test_pieces_that_came_together_are_apart_again_and_the_last_says_how_it_ended():
    batch = [chunk("It is.", pieces=(2, 3, 1)), FINISHED]
    made = stream([chunk("So:")], batch, of=result(finish_reason="length"))
    assert texts(made) == [
        ("So:", 0, True, None),
        ("It", 0, False, None),
        (" is", 0, False, None),
        (".", None, False, "length"),
    ]
    assert [one.meta["finish_reason"] for one in made] == [None, None, None, "length"]


@pytest.mark.parametrize("last", [[chunk("It", pieces=(2, 0)), FINISHED], [chunk("It"), chunk(""), FINISHED]])
def test_an_end_without_text_is_a_chunk_of_its_own(last):
    assert texts(stream(last, of=result())) == [("It", 0, True, None), ("", None, False, "stop")]


def test_an_empty_answer_is_one_chunk():
    assert texts(stream([FINISHED], of=result())) == [("", None, True, "stop")]


def test_the_model_is_what_the_component_was_told_or_what_the_worker_says():
    assert {one.meta["model"] for one in stream([chunk("It"), FINISHED], of=result(), model="http://tgi")} == {
        "http://tgi"
    }
    assert {one.meta["model"] for one in stream([chunk("It"), FINISHED], of=result())} == {"a/model"}


def test_thoughts_texts_and_calls_are_told_apart(capsys):
    calls = (ToolCallDelta(0, "a", "weather", '{"city"'), ToolCallDelta(0, None, None, ': "Paris"}'))
    made = stream(
        [chunk("Look:", reasoning="Hm", tool_calls=calls)], [FINISHED], of=result(finish_reason=None, tool_calls=CALLS)
    )
    thought, text, begun, more, end = made
    assert (thought.reasoning, thought.content, thought.index) == (ReasoningContent("Hm"), "", 0)
    assert (text.content, text.index) == ("Look:", 0)
    assert [(one.tool_calls[0].tool_name, one.tool_calls[0].arguments, one.start) for one in (begun, more)] == [
        ("weather", '{"city"', True),
        (None, ': "Paris"}', False),
    ]
    assert (end.finish_reason, end.index) == (None, None)
    for one in made:
        print_streaming_chunk(one)
    assert '{"city": "Paris"}' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("finish_reason", "calls", "word"),
    [
        ("length", None, "length"),
        ("stop", None, "stop"),
        ("eos_token", None, "stop"),
        ("stop_sequence", None, "stop"),
        ("stop", CALLS, "tool_calls"),
        ("length", CALLS, "length"),
        (None, None, None),
    ],
)
def test_the_end_is_told_in_haystacks_words(finish_reason, calls, word):
    found = result("It", finish_reason, **({"tool_calls": calls} if calls else {}))
    assert message_from(found, None, None).meta["finish_reason"] == word


def test_the_reply_holds_text_calls_and_thoughts():
    message = message_from(result("", tool_calls=CALLS, reasoning="Hm"), "http://tgi", None)
    assert message.tool_calls == [ToolCall("weather", {"city": "Paris"}, "a"), ToolCall("now", {}, "b")]
    assert (message.text, message.reasoning.reasoning_text) == (None, "Hm")
    assert message.meta == {
        "model": "http://tgi",
        "index": 0,
        "finish_reason": "tool_calls",
        "usage": {"prompt_tokens": 3, "completion_tokens": 2},
    }


@pytest.mark.parametrize("arguments", ['{"city": ', "[1]"])
def test_a_call_whose_arguments_cannot_be_read_is_left_out(arguments, caplog):
    broken = [{"id": "a", "function": {"name": "weather", "arguments": arguments}}]
    assert message_from(result("It", tool_calls=broken), None, None).tool_calls == []
    assert "weather" in caplog.text
