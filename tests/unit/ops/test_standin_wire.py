"""The bytes of answers and events."""

import json

from genqueue_ops.standin import wire
from genqueue_ops.standin.answers import ChatAnswer, NativeAnswer, Run, Timings
from genqueue_ops.standin.chat import parse_chat
from genqueue_ops.standin.decoding import Decoded
from genqueue_ops.standin.engine import Step, Token
from genqueue_ops.standin.protocol import ValidRequest, overloaded, parse_generate
from genqueue_ops.standin.script import Script

HELLO = Token(5, ' "h\\é😀\n', -0.25, False)
EOS = Token(2, "</s>", 0.0, True)
OTHER = Token(6, " oh", -1.0, False)


def run(max_new_tokens=10, stop=(), seed=None):
    asked = ValidRequest("Hi", 1, max_new_tokens, seed, {})
    return Run(asked, [], Timings(0), Decoded(max_new_tokens, stop))


def events(answer, run, *steps):
    written = []
    for step in steps:
        run.decoded.push(step)
        written.append(answer.event(run, step))
    return written


def native(compat=False, **parameters):
    return NativeAnswer(parse_generate({"inputs": "Hi", "parameters": parameters}), compat)


def test_native_events_are_tgis_bytes():
    assert events(native(details=True), run(seed=3), Step(HELLO, False), Step(EOS, True)) == [
        'data: {"index":1,"token":{"id":5,"text":" \\"h\\\\é😀\\n","logprob":-0.25,"special":false},'
        '"generated_text":null,"details":null}\n\n'.encode(),
        b'data: {"index":2,"token":{"id":2,"text":"</s>","logprob":0.0,"special":true},"generated_text":'
        + json.dumps(HELLO.text, ensure_ascii=False).encode()
        + b',"details":{"finish_reason":"eos_token","generated_tokens":2,"seed":3,"input_length":1}}\n\n',
    ]


def test_details_are_null_unless_asked_for():
    (event,) = events(native(), run(max_new_tokens=1), Step(HELLO, False))
    assert event.endswith(b',"details":null}\n\n')


def test_top_tokens_stand_between_token_and_text():
    (event,) = events(native(), run(), Step(HELLO, False, [HELLO, OTHER]))
    assert list(json.loads(event[6:])) == ["index", "token", "top_tokens", "generated_text", "details"]


def test_the_compat_route_prefixes_the_prompt_unless_told_not_to():
    for answer, text in (
        (native(compat=True), "Hi oh"),
        (native(compat=True, return_full_text=False), " oh"),
        (native(), " oh"),
        (native(return_full_text=True), "Hi oh"),
    ):
        (event,) = events(answer, run(max_new_tokens=1), Step(OTHER, False))
        assert json.loads(event[6:])["generated_text"] == text


def test_native_error_event():
    assert native().error_event(overloaded()) == (
        b'data: {"error":"Model is overloaded","error_type":"overloaded"}\n\n'
    )
    assert native().end() == b""


def test_native_body_lists_one_on_the_compat_route():
    finished = run(max_new_tokens=1)
    finished.decoded.push(Step(OTHER, False))
    assert native().body(finished, []) == b'{"generated_text":" oh"}'
    assert native(compat=True, return_full_text=False).body(finished, []) == b'[{"generated_text":" oh"}]'


def test_native_details_in_tgis_order():
    finished = run(max_new_tokens=1)
    finished.decoded.push(Step(OTHER, False, [OTHER]))
    details = json.loads(native(details=True).body(finished, [finished]))["details"]
    assert list(details) == [
        "finish_reason",
        "generated_tokens",
        "seed",
        "prefill",
        "tokens",
        "best_of_sequences",
        "top_tokens",
    ]
    assert list(details["tokens"][0]) == ["id", "text", "logprob", "special"]


def chat(script=None, **fields):
    asked = parse_chat({"messages": [{"role": "user", "content": "Hi"}], **fields})
    return ChatAnswer(asked, "model", "3-native", 1_700_000_000, script or Script())


def test_chat_events_are_tgis_bytes():
    head = (
        b'data: {"object":"chat.completion.chunk","id":"","created":1700000000,"model":"model",'
        b'"system_fingerprint":"3-native","choices":['
    )
    answer = chat(stream=True, stream_options={"include_usage": True})
    assert events(answer, run(), Step(OTHER, False), Step(EOS, True)) == [
        head + b'{"index":0,"delta":{"role":"assistant","content":" oh"},"logprobs":null,"finish_reason":null}],'
        b'"usage":null}\n\n',
        head + b'{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":"stop"}],'
        b'"usage":null}\n\n' + head + b'],"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}\n\n',
    ]
    assert answer.end() == b"data: [DONE]\n\n"


TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]


def test_a_tool_call_has_no_end_of_its_own_in_a_stream():
    """As TGI's recorded ``chat_tools_stream``."""
    answer = chat(Script(calls_tools=True), tools=TOOLS, stream=True, stream_options={"include_usage": True})
    written = b"".join(events(answer, run(), Step(HELLO, False), Step(EOS, True))).decode()
    first, second, last = [json.loads(event[6:]) for event in written.strip().split("\n\n")]
    assert [event["choices"][0]["finish_reason"] for event in (first, second)] == [None, None]
    calls = [event["choices"][0]["delta"]["tool_calls"][0] for event in (first, second)]
    assert [(call["index"], call["id"], call["function"]["name"]) for call in calls] == [(0, "0", "f"), (0, "0", None)]
    assert json.loads("".join(call["function"]["arguments"] for call in calls)) == {"text": HELLO.text}
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 2)


def test_a_tool_call_in_a_body():
    finished = run(max_new_tokens=1)
    finished.decoded.push(Step(HELLO, False))
    (choice,) = json.loads(chat(Script(calls_tools=True), tools=TOOLS).body(finished, []))["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"text": HELLO.text}
    assert "content" not in choice["message"]


def test_without_tools_or_without_a_script_for_it_no_tool_is_called():
    for answer in (chat(Script(calls_tools=True)), chat(Script(calls_tools=True), tools=[]), chat(tools=TOOLS)):
        (event,) = events(answer, run(), Step(OTHER, False))
        assert json.loads(event[6:])["choices"][0]["delta"] == {"role": "assistant", "content": " oh"}


def test_the_first_tokens_may_be_thoughts():
    written = events(chat(Script(reasoning=1), stream=True), run(), Step(OTHER, False), Step(OTHER, False))
    deltas = [json.loads(event[6:])["choices"][0]["delta"] for event in written]
    assert [delta.keys() - {"role"} for delta in deltas] == [{"reasoning_content"}, {"content"}]


def test_chat_keeps_tgis_word_for_a_stop_string():
    (event,) = events(chat(stream=True), run(stop=(" oh",)), Step(OTHER, False))
    assert json.loads(event[6:])["choices"][0]["finish_reason"] == "stop_sequence"


def test_chat_error_event_is_always_422():
    assert chat().error_event(overloaded()) == (
        b'data: {"error":{"message":"Model is overloaded","http_status_code":422}}\n\n'
    )


def test_chat_logprobs():
    (event,) = events(chat(stream=True, logprobs=True), run(), Step(OTHER, False, [OTHER]))
    assert json.loads(event[6:])["choices"][0]["logprobs"] == {
        "content": [{"token": " oh", "logprob": -1.0, "top_logprobs": [{"token": " oh", "logprob": -1.0}]}]
    }


def test_chunks_are_framed_in_hexadecimal():
    assert wire.chunk(b"x" * 26) == b"1a\r\n" + b"x" * 26 + b"\r\n"
