"""What an endpoint's odd answers become on their way through a worker to the caller, and in the next turn."""

import json
import re
import urllib.request

import pytest

from genqueue import GenerationClient, GenerationRejectedError, Settings

from ...support.small_servers import Answering, served

TOOLS = [{"type": "function", "function": {"name": "f"}}, {"type": "function", "function": {"name": "g"}}]


def token(text, whole=None):
    details = None if whole is None else {"finish_reason": "length", "generated_tokens": 2, "seed": None}
    said = {"id": 1, "text": text, "logprob": -1.0, "special": False}
    return {"token": said, "generated_text": whole, "details": details}


class Odd(Answering):
    """Answers a prompt with the whole text that the prompt is, behind two tokens; a chat by its last message."""

    def do_GET(self):
        self.answer_events([])

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if "messages" not in asked:
            return self.answer_events([token(" one"), token(" two", asked["inputs"])])
        last = asked["messages"][-1]
        if last["role"] == "tool":
            made = [call["id"] for call in asked["messages"][-2 - (last["content"] == "2")]["tool_calls"]]
            return self.answer_events(
                [{"choices": [{"delta": {"content": json.dumps(made)}, "finish_reason": "stop"}]}]
            )
        calls = [{"function": {"name": name, "arguments": arguments}} for name, arguments in (("f", "{}"), ("g", "{"))]
        deltas = [{"reasoning": "Hm"}, *({"tool_calls": [call]} for call in calls)]
        self.answer_events(
            [*({"choices": [{"delta": delta}]} for delta in deltas), {"choices": [{"finish_reason": "stop"}]}]
        )

    def answer_events(self, events):
        body = b"".join(b"data: %s\n\n" % json.dumps(event).encode() for event in events)
        self.answer(200, "text/event-stream", body)


@pytest.fixture
def worker(start_worker, own_redis):
    with served(Odd) as url:
        odd = {"api_type": "text_generation_inference", "api_params": {"url": url}}
        yield start_worker({"odd": odd}, own_redis.url, environ={"GENQUEUE_MONITOR_PORT": "0"})


@pytest.fixture
def client(worker):
    with GenerationClient(Settings(redis_url=worker.producer_url, generators={})) as client:
        yield client


def metrics(worker):
    address = re.search(r"(http://127\.0\.0\.1:\d+)/metrics", worker.log)[0]
    with urllib.request.urlopen(address, timeout=10) as answer:
        return answer.read().decode().splitlines()


def test_the_reply_is_what_was_streamed_and_a_contradiction_is_told(client, worker):
    for whole, conflict_at in ((" one two", None), ("one two", None), (" two", 1), (" one two three", None)):
        generation = client.submit(whole, generator="odd")
        text = "".join(chunk.text for chunk in generation.stream())
        result = generation.result(timeout_s=20)
        assert result.replies == [text]
        assert text == (" one two three" if whole.endswith("three") else " one two")
        conflict = result.meta[0].get("text_conflict")
        assert (conflict and conflict["differs_at"]) == conflict_at
        if conflict:
            assert (conflict["taken"], conflict["generated_text"]) == ("tokens", whole)
            assert conflict["why"] == "readers have them; the endpoint's own text at its end is another"
    assert 'genqueue_text_conflicts_total{generator="odd"} 1.0' in metrics(worker)


def test_a_results_message_is_the_next_turns_whatever_was_left_out(client):
    """No index, no ids, arguments that are no JSON, thoughts."""
    asked = [{"role": "user", "content": "p"}]
    generation = client.submit_chat(asked, tools=TOOLS, generator="odd")
    streamed = {}
    for chunk in generation.stream():
        for call in chunk.tool_calls:
            streamed.setdefault(call.index, []).append(call.id)
    result = generation.result(timeout_s=20)
    calls = result.meta[0]["tool_calls"]
    ids = [call["id"] for call in calls]
    assert [(call["function"]["name"], call["function"]["arguments"]) for call in calls] == [("f", "{}"), ("g", "{")]
    assert result.meta[0]["unreadable_tool_calls"] == [1]
    assert len(set(ids)) == 2
    assert [[one for one in told if one] for told in streamed.values()] == [[ids[0]], [ids[1]]]
    answers = [{"role": "tool", "tool_call_id": call_id, "content": str(n)} for n, call_id in enumerate(ids, 1)]
    turn = client.submit_chat([*asked, result.message, *answers], tools=TOOLS, generator="odd")
    assert json.loads(turn.result(timeout_s=20).replies[0]) == ids


def test_a_worker_refuses_what_its_server_might_fetch(client):
    """The producer has no settings of its own: it cannot know."""
    body = {"migration_request": {"remote_engine_id": "x"}}
    generation = client.submit_chat(
        [{"role": "user", "content": "p"}], generator="odd", generation_kwargs={"extra_body": body}
    )
    with pytest.raises(GenerationRejectedError, match=r"extra_body\.migration_request: .* allowed_extra_body"):
        generation.result(timeout_s=20)


REMOTE = {"type": "object", "properties": {"a": {"$ref": "http://169.254.169.254/"}}}


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        pytest.param(
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": REMOTE}}]},
            "tools.0.function.parameters",
            id="tools",
        ),
        pytest.param(
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": REMOTE}}},
            "response_format.json_schema.schema",
            id="response-format",
        ),
        pytest.param(
            {"generation_kwargs": {"extra_body": {"guided_json": REMOTE}}},
            "generation_kwargs.extra_body.guided_json",
            id="extra-body",
        ),
    ],
)
def test_a_worker_refuses_a_reference_that_its_server_might_fetch(client, fields, place):
    generation = client.submit_chat([{"role": "user", "content": "p"}], generator="odd", **fields)
    with pytest.raises(GenerationRejectedError, match=rf"^{place}\.properties\.a\.\$ref: "):
        generation.result(timeout_s=20)


def test_a_worker_refuses_such_a_reference_of_a_grammar(client):
    grammar = {"type": "json", "value": REMOTE}
    generation = client.submit("p", generator="odd", generation_kwargs={"grammar": grammar})
    with pytest.raises(GenerationRejectedError, match=r"^generation_kwargs\.grammar\.value\.properties\.a\.\$ref: "):
        generation.result(timeout_s=20)
