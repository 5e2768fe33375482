"""A chat that begins anew: whoever reads it gets one text, or is told; never the parts of two."""

import asyncio
import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from haystack.dataclasses import ChatMessage

from genqueue import AsyncGenerationClient, StreamRestartedError
from genqueue.cli.exits import ExitCode
from genqueue.haystack import HuggingFaceAPIChatGenerator

from ...support.roles import as_role
from ..test_examples import serving_django

CUT = None
REFUSED = "no continuation is taken"
FIRST = ["It", " rains", " in", CUT]
SAME = ["It rains", " in Paris", "."]
OTHER = ["The", " sun", " shines", "."]
SHORTER = ["It"]


class Model(ThreadingHTTPServer):
    """Answers each chat, or prompt, with the next of ``attempts``: pieces of text, CUT where the connection ends."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.attempts = []
        self.gap_s = 0.05
        self.went_on = threading.Event()

    def handle_error(self, request, client_address):
        """The other side has left."""


class Answer(BaseHTTPRequestHandler):
    def log_message(self, *words):
        """Nowhere."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.is_chat = "messages" in asked
        pieces = self.server.attempts.pop(0)
        if pieces is REFUSED:
            self.refuse({"error": "`inputs` must have less than 4 tokens. Given: 5", "error_type": "validation"})
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        for piece in pieces:
            if piece is CUT:
                self.server.went_on.wait(20)
                return
            if self.is_chat:
                self.say(delta={"content": piece}, finish_reason=None)
            else:
                self.say_token(piece, None)
            time.sleep(self.server.gap_s)  # the pace of the model
        if self.is_chat:
            self.say(delta={}, finish_reason="stop")
            self.wfile.write(b"data: [DONE]\n\n")
        else:
            self.say_token("", "".join(pieces))

    def say(self, **choice):
        event = {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": "m"}
        self.write({**event, "choices": [{"index": 0, **choice}]})

    def say_token(self, text, whole):
        details = None if whole is None else {"finish_reason": "eos_token", "generated_tokens": 5, "seed": None}
        token = {"id": 1, "text": text, "logprob": -0.1, "special": whole is not None}
        self.write({"index": 1, "token": token, "generated_text": whole, "details": details})

    def write(self, event):
        self.wfile.write(b"data: %s\n\n" % json.dumps(event).encode())
        self.wfile.flush()

    def refuse(self, words):
        body = json.dumps(words).encode()
        self.send_response(422)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture(scope="module")
def model():
    with Model() as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield serving
        serving.shutdown()


@pytest.fixture(scope="module")
def fleet(fleet_of, model):
    generator = {"api_type": "text_generation_inference", "api_params": {"url": model.url}}
    with fleet_of({"default": generator}) as opened:
        yield opened


@pytest.fixture
def begins(fleet, model):
    """``begins(*attempts)``: a chat that is answered so; the first attempt breaks off when the reader has its text."""
    fleet.staff(1)

    def submit(*attempts):
        model.attempts = list(attempts)
        model.went_on.clear()
        return fleet.client.submit_chat([{"role": "user", "content": "What is the weather?"}])

    yield submit
    model.went_on.set()


def read(model, chunks, before="It rains in"):
    """The texts, and the error; the first attempt goes on once the reader has had all of it."""
    texts, error = [], None
    try:
        for chunk in chunks:
            texts.append("<anew>" * chunk.restarts + chunk.text)
            if "".join(texts) == before:
                model.went_on.set()
    except StreamRestartedError as raised:
        error = raised
    return texts, error


@pytest.mark.parametrize(
    ("again", "joined"),
    [
        pytest.param([SAME], "It rains in Paris.", id="the-same"),
        pytest.param([OTHER], None, id="another"),
        pytest.param([SHORTER], None, id="shorter"),
        pytest.param([["It rains", CUT], SAME], "It rains in Paris.", id="twice"),
    ],
)
def test_what_a_stream_yields_joins_to_the_reply_or_it_raises(begins, model, again, joined):
    generation = begins(FIRST, *again)
    texts, error = read(model, generation.stream())
    reply = generation.result(timeout_s=20).replies[0]
    assert reply == "".join(again[-1])
    if joined is not None:
        assert (error, "".join(texts)) == (None, reply)
    else:
        assert (error.delivered_text, error.generation) == ("It rains in", generation)
        assert "".join(texts) == "It rains in"
        assert error.generation.result(timeout_s=5).replies == [reply]
        assert "".join(chunk.text for chunk in generation.stream(from_seq=error.restart_seq)) == reply
    assert "".join(chunk.text for chunk in generation.stream()) == reply  # who comes late


def test_a_worker_that_is_killed_in_mid_chat_leaves_no_void_text(begins, model, fleet):
    fleet.staff(2)
    for again in (SAME, OTHER):
        generation = begins(FIRST, again)
        texts, error = [], None
        try:
            for chunk in generation.stream():
                texts.append(chunk.text)
                if "".join(texts) == "It rains in":
                    fleet.holder(generation).process.kill()
        except StreamRestartedError as raised:
            error = raised
        reply = generation.result(timeout_s=20).replies[0]
        assert reply == "".join(again)
        assert "".join(texts) == (reply if error is None else error.delivered_text)
        assert (error is None) is (again is SAME)
        fleet.staff(2)


def test_who_asks_for_it_is_told_where_the_text_begins_anew(begins, model):
    texts, error = read(model, begins(FIRST, OTHER).stream(resets=True))
    assert error is None
    assert "".join(texts) == "It rains in<anew>The sun shines."


@pytest.mark.parametrize("again", [SAME, OTHER], ids=["the-same", "another"])
async def test_an_asyncio_stream_keeps_the_promise(begins, model, fleet, again):
    generation_id = (await asyncio.to_thread(begins, FIRST, again)).id
    async with AsyncGenerationClient(fleet.client.settings) as client:
        generation, texts, error = client.generation(generation_id), [], None
        try:
            async for chunk in generation.stream():
                texts.append(chunk.text)
                if "".join(texts) == "It rains in":
                    model.went_on.set()
        except StreamRestartedError as raised:
            error = raised
        reply = (await generation.result(timeout_s=20)).replies[0]
        assert ("".join(texts) == reply) is (error is None) is (again is SAME)
        assert error is None or error.generation is generation


@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize("again", [SAME, OTHER], ids=["the-same", "another"])
async def test_asyncio_batches_keep_the_promise(begins, model, fleet, again, resets):
    generation_id = (await asyncio.to_thread(begins, FIRST, again)).id
    async with AsyncGenerationClient(fleet.client.settings) as client:
        generation, text, error = client.generation(generation_id), "", None
        try:
            async for batch in generation.batches(resets=resets):
                for event in batch:
                    text += "<anew>" if event.type == "reset" else getattr(event, "text", "")
                if text == "It rains in":
                    model.went_on.set()
        except StreamRestartedError as raised:
            error = raised
        reply = (await generation.result(timeout_s=20)).replies[0]
    assert reply == "".join(again)
    if resets:
        assert (text, error) == ("It rains in<anew>" + reply, None)
    elif again is SAME:
        assert (text, error) == (reply, None)
    else:
        assert text == error.delivered_text == "It rains in"
        assert error.generation is generation


def test_the_django_view_says_that_a_text_began_anew_behind_what_it_sent(begins, model, fleet):
    """Its server takes no continuation, and says something else when it is asked from the beginning."""
    begins(OTHER).result(timeout_s=20)
    model.attempts = [FIRST, REFUSED, OTHER]
    model.went_on.clear()
    with serving_django({**os.environ, "GENQUEUE_REDIS_URL": as_role(fleet.redis.url, "producer")}) as url:
        asked = urllib.parse.urlencode({"prompt": "What is the weather?"}).encode()
        with urllib.request.urlopen(url, asked, timeout=30) as answer:
            text = answer.read(len("It rains in")).decode()
            assert text == "It rains in"
            model.went_on.set()
            rest = answer.read().decode()
    assert re.fullmatch(r"\n\(.*began anew.*\)", rest)
    assert model.attempts == []


@pytest.mark.parametrize("again", [SAME, OTHER], ids=["the-same", "another"])
def test_no_pipe_ever_holds_a_text_that_was_given_up(begins, model, fleet, again):
    generation = begins(FIRST, again)
    environ = {**os.environ, "GENQUEUE_REDIS_URL": as_role(fleet.redis.url, "producer")}
    command = [sys.executable, "-m", "genqueue", "tail", generation.id]
    live = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    read(model, generation.stream())
    printed, told = live.communicate(timeout=30)
    reply = generation.result(timeout_s=5).replies[0]
    assert (live.returncode, printed) == (ExitCode.OK, reply + "\n"), told
    assert subprocess.run(command, env=environ, capture_output=True, text=True).stdout == reply + "\n"
    behind = subprocess.run([*command, "--from-seq", "3"], env=environ, capture_output=True, text=True)
    if again is SAME:
        assert (behind.returncode, "It rains" + behind.stdout) == (ExitCode.OK, reply + "\n")
    else:
        assert (behind.returncode, behind.stdout) == (ExitCode.RESTARTED, "")
        assert "began anew" in behind.stderr


@pytest.mark.parametrize("again", [SAME, OTHER], ids=["the-same", "another"])
def test_haystacks_callback_is_given_one_text(begins, model, fleet, monkeypatch, again):
    begins(FIRST, again).cancel()
    model.attempts = [FIRST, again]
    model.went_on.clear()
    monkeypatch.setenv("GENQUEUE_REDIS_URL", as_role(fleet.redis.url, "producer"))
    shown = []

    def show(chunk):
        shown.append(chunk.content)
        if "".join(shown) == "It rains in":
            model.went_on.set()

    component = HuggingFaceAPIChatGenerator(generator="default", streaming_callback=show)
    try:
        if again is SAME:
            (reply,) = component.run([ChatMessage.from_user("What is the weather?")])["replies"]
            assert "".join(shown) == reply.text == "".join(SAME)
        else:
            with pytest.raises(StreamRestartedError) as raised:
                component.run([ChatMessage.from_user("What is the weather?")])
            assert "".join(shown) == raised.value.delivered_text == "It rains in"
            assert raised.value.generation.result(timeout_s=20).replies == ["".join(OTHER)]
    finally:
        component.close()
