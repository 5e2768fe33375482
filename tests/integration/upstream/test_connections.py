"""Connections that were closed unseen, peers that vanish, and hosts that can open none: whose fault each is.

Over real connections, through the worker's transport.
"""

import asyncio
import contextlib
import ctypes
import os
import resource
import shutil
import socket
import ssl
import struct
import time

import pytest
import trustme

from genqueue.registry.fleet import Health
from genqueue.settings import GeneratorSettings
from genqueue.wire.request import read_request
from genqueue_ops.standin.server import stop_accepting
from genqueue_worker.observe.metrics import Metrics
from genqueue_worker.upstream.client import ModelClient
from genqueue_worker.upstream.faults import LACK, Fault, UpstreamError, fault_of
from genqueue_worker.upstream.http.exchange import Exchange, current_exchange, exchanging
from genqueue_worker.upstream.http.peers import Patience
from genqueue_worker.upstream.pool import EndpointPool
from genqueue_worker.upstream.transport import open_transport

INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"
EARLY = b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"
IDLE = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 4\r\n\r\nidle"
END = b'data: {"token":{"id":1,"text":"a","logprob":0,"special":false},"generated_text":"a","details":null}\n\n'
TOKEN = END.replace(b'"generated_text":"a"', b'"generated_text":null')
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
QUIET = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
SO_ATTACH_FILTER = 26
IMPATIENT = Patience(idle_s=1, between_s=1, unheard_s=2)


def chunk(data):
    return b"%x\r\n%s\r\n" % (len(data), data)


ANSWER = HEAD + chunk(END) + b"0\r\n\r\n"


def vanish(writer):
    """Have the kernel drop whatever comes, as if this host had gone: nothing is acknowledged any more."""
    instruction = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # BPF: return 0 bytes
    program = struct.pack("HL", 1, ctypes.addressof(instruction))
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


async def nothing(writer):
    """Read on at once."""


class Heard:
    """A sink that keeps what it is given."""

    is_congested = False

    def __init__(self) -> None:
        self.text = ""
        self.completion_tokens = 0

    def push(self, token, text, top_tokens=None) -> None:
        self.text += text
        self.completion_tokens += 1

    def close(self) -> None:
        pass


class Server:
    """Does with each call what its script says: bytes are sent, ``CLOSE`` and the like are done, "" waits for ever.

    ``calls`` are (number of the connection, number of the call on it), from 0.  ``on_head`` is called with each
    connection that has brought a call's head, before its body is read.
    """

    def __init__(self) -> None:
        self.scripts: list[list[object]] = []
        self.calls: list[tuple[int, int]] = []
        self.connections = 0
        self.probes: list[bytes] = []
        self.listening: asyncio.Server | None = None
        self.on_head = nothing

    async def serve(self, reader, writer):
        connection, count = self.connections, 0
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if head.startswith(b"GET"):
                    self.probes.append(head)
                    self.connections -= 1
                    writer.write(QUIET)
                    return
                size = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
                await self.on_head(writer)
                await reader.readexactly(int(size.split(b":")[1]))
                self.calls.append((connection, count))
                count += 1
                for step in self.scripts.pop(0):
                    match step:
                        case bytes():
                            writer.write(step)
                            await writer.drain()
                        case "close":
                            return
                        case "reset":
                            writer.transport.abort()
                            return
                        case "vanish":
                            vanish(writer)
                            await asyncio.sleep(60)
                        case "die":
                            await stop_accepting(self.listening)
                            self.listening.close()
                            return
        except (OSError, EOFError):
            pass
        finally:
            writer.close()


class Calls:
    """A generator at that server; ``await calls()`` makes a call, and is its text."""

    def __init__(self, url: str) -> None:
        settings = GeneratorSettings.model_validate(
            {
                "api_type": "text_generation_inference",
                "api_params": {"url": url},
                "timeouts": {"first_token_s": 30, "between_tokens_s": 30},
            }
        )
        self.upstream = EndpointPool("g", settings, {}, lambda: None)
        self.generator = ModelClient(self.upstream, Metrics({"g": settings}).of("g"), 1_000_000)
        (self.endpoint,) = self.upstream.endpoints

    async def __call__(self, prompt: str = "hi") -> str:
        request = read_request({"prompt": prompt})
        heard = Heard()
        async with asyncio.timeout(25):
            await self.generator.run(request.given, self.generator.parameters(request), heard)
        return heard.text

    @property
    def health(self) -> Health:
        return self.endpoint.health(asyncio.get_running_loop().time())


@pytest.fixture
async def server():
    return Server()


@pytest.fixture
async def calls(server):
    transport = open_transport(IMPATIENT)
    server.listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    host, port = server.listening.sockets[0].getsockname()
    yield Calls(f"http://{host}:{port}")
    await stop_accepting(server.listening)
    server.listening.close()
    await transport.close()


# --- connections that are used again ----------------------------------------------------------------


@pytest.mark.parametrize("end", ["close", "reset"])
async def test_a_call_goes_out_again_where_its_used_connection_was_closed(calls, server, end):
    server.scripts = [[ANSWER], [end], [ANSWER], [ANSWER]]
    assert [await calls(), await calls(), await calls()] == ["a", "a", "a"]
    assert server.calls == [(0, 0), (0, 1), (1, 0), (2, 0)]
    assert (calls.endpoint.failures, calls.health) == (0, Health.UP)


@pytest.mark.parametrize(
    "said",
    [
        pytest.param([IDLE, "close"], id="408"),
        pytest.param([IDLE.replace(b"connection: close\r\n", b"")], id="408-that-keeps-the-connection"),
        pytest.param([IDLE.partition(b"content")[0] + b"\r\n", "close"], id="408-without-a-body"),
        pytest.param([INTERIM, IDLE, "close"], id="interim-408"),
        pytest.param([INTERIM, "close"], id="interim-close"),
        pytest.param([INTERIM, "reset"], id="interim-reset"),
        pytest.param([EARLY, "close"], id="103-close"),
        pytest.param([INTERIM + EARLY, EARLY, "close"], id="several-close"),
    ],
)
async def test_a_call_goes_out_again_where_its_used_connection_says_that_it_ends(calls, server, said):
    server.scripts = [[ANSWER], said, [ANSWER], [ANSWER]]
    assert [await calls(), await calls(), await calls()] == ["a", "a", "a"]
    assert server.calls[:3] == [(0, 0), (0, 1), (1, 0)]
    assert (calls.endpoint.failures, calls.health) == (0, Health.UP)


@pytest.mark.parametrize("said", [[IDLE, "close"], [INTERIM, "close"]], ids=["408", "interim-close"])
async def test_a_new_connection_that_says_so_is_a_failure(calls, server, said):
    server.scripts = [said, [ANSWER], [ANSWER], said, said]
    with pytest.raises(UpstreamError) as failed:
        await calls()
    assert fault_of(failed.value.facts) is Fault.SERVER
    assert [await calls(), await calls()] == ["a", "a"]
    with pytest.raises(UpstreamError) as failed:  # on the used one, and then on a new one
        await calls()
    assert fault_of(failed.value.facts) is Fault.SERVER
    assert server.calls == [(0, 0), (1, 0), (1, 1), (1, 2), (2, 0)]
    assert calls.endpoint.failures == 1


@pytest.mark.parametrize("end", ["close", "reset"])
@pytest.mark.parametrize(
    "begun",
    [b"H", HEAD[:20], HEAD, HEAD + chunk(TOKEN), INTERIM + HEAD[:20], INTERIM + HEAD],
    ids=["byte", "line", "head", "token", "interim-and-line", "interim-and-head"],
)
async def test_an_answer_that_has_begun_is_asked_for_no_second_time(calls, server, begun, end):
    server.scripts = [[ANSWER], [begun, end]]
    await calls()
    with pytest.raises(UpstreamError) as failed:
        await calls()
    assert fault_of(failed.value.facts) is Fault.SERVER
    assert (server.calls, calls.endpoint.failures) == ([(0, 0), (0, 1)], 1)


@pytest.mark.parametrize("end", ["close", "reset"])
async def test_a_call_is_sent_again_once(calls, server, end):
    """The second connection is new: whoever closes that fails."""
    server.scripts = [[ANSWER], [end], [end]]
    await calls()
    with pytest.raises(UpstreamError) as failed:
        await calls()
    assert fault_of(failed.value.facts) is Fault.SERVER
    assert (server.calls, calls.endpoint.failures) == ([(0, 0), (0, 1), (1, 0)], 1)


async def test_a_new_connection_that_is_closed_is_a_failure(calls, server):
    server.scripts = [["close"]]
    with pytest.raises(UpstreamError) as failed:
        await calls()
    assert fault_of(failed.value.facts) is Fault.SERVER
    assert (server.calls, calls.endpoint.failures) == ([(0, 0)], 1)


async def test_a_call_that_a_server_dies_of_is_a_failure_and_no_call_that_reached_nobody(calls, server):
    """Or a prompt that kills whatever takes it would be tried for ever."""
    server.scripts = [[ANSWER], ["die"]]
    await calls()
    with pytest.raises(UpstreamError) as failed:
        await calls()
    assert (fault_of(failed.value.facts), failed.value.facts.is_down) == (Fault.SERVER, True)
    assert not failed.value.facts.was_unreached


# --- peers that vanish --------------------------------------------------------------------------------


@pytest.mark.parametrize("begun", [b"", HEAD, HEAD + chunk(TOKEN)], ids=["no-byte", "head", "token"])
async def test_a_peer_that_vanishes_is_noticed(calls, server, begun):
    """Its host sends nothing any more, not even that its connection is gone: only the kernel's probes can tell."""
    server.scripts = [[begun, "vanish"]]
    began_s = time.monotonic()
    with pytest.raises(UpstreamError) as failed:
        await calls()
    assert time.monotonic() - began_s < 10
    assert (fault_of(failed.value.facts), failed.value.facts.error_type) == (Fault.SERVER, "transport")


async def test_a_call_into_a_connection_whose_peer_has_vanished_goes_out_again(calls, server):
    """A firewall between the two may have forgotten it while it was idle."""
    server.scripts = [[ANSWER, "vanish"], [ANSWER]]
    assert [await calls(), await calls()] == ["a", "a"]
    assert (server.calls, calls.endpoint.failures) == ([(0, 0), (1, 0)], 0)


LARGE = "x" * 900_000
"""More than the buffers on its way hold, and than aiohttp writes at once."""
MEDIUM = "x" * 300_000
"""All of it is with the kernel before the peer reads any."""


def not_reading(then):
    """For three times as long as the worker is patient nothing is read; the peer's host is there all the while."""

    async def rest(writer):
        writer.transport.pause_reading()
        await asyncio.sleep(3 * IMPATIENT.unheard_s)
        await then(writer)

    return rest


async def read_on(writer):
    writer.transport.resume_reading()


@pytest.mark.parametrize("prompt", [LARGE, MEDIUM], ids=["large", "medium"])
async def test_a_peer_that_is_slow_to_read_a_request_is_waited_for(calls, server, prompt):
    server.scripts = [[ANSWER], [ANSWER]]
    server.on_head = not_reading(read_on)
    assert await calls(prompt) == "a"
    server.on_head = nothing
    assert await calls() == "a"
    assert (server.calls, calls.endpoint.failures) == ([(0, 0), (0, 1)], 0)


async def test_a_peer_that_vanishes_before_it_has_read_a_request_is_noticed(calls, server):
    gone_s = 0.0

    async def go(writer):
        nonlocal gone_s
        gone_s = time.monotonic()
        vanish(writer)
        await asyncio.sleep(60)

    server.on_head = not_reading(go)
    with pytest.raises(UpstreamError) as failed:
        await calls(LARGE)
    assert gone_s > 0
    assert time.monotonic() - gone_s < 10
    assert (fault_of(failed.value.facts), failed.value.facts.error_type) == (Fault.SERVER, "transport")
    assert server.calls == []


# --- what this host lacks -------------------------------------------------------------------------------


@contextlib.contextmanager
def no_descriptors():
    """Nothing can be opened within; what is open stays so."""
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
async def test_a_host_that_can_open_no_file_blames_no_server(calls, server, name):
    calls.endpoint.url = calls.endpoint.url.replace("127.0.0.1", name)
    with no_descriptors(), pytest.raises(UpstreamError, match="this worker may open no more files") as failed:
        await calls()
    assert (fault_of(failed.value.facts), failed.value.facts.error_type) == (Fault.CAPACITY, LACK)
    assert (failed.value.facts.is_down, calls.endpoint.failures) == (False, 0)
    # As of a full server: others come first, and one more is tried a second later.
    assert calls.health is Health.RESTS
    assert calls.endpoint.trouble == "this worker may open no more files (RLIMIT_NOFILE)"
    server.scripts = [[ANSWER]]
    calls.endpoint.full_until_s = 0.0
    assert await calls() == "a"


async def test_a_server_that_cannot_be_asked_for_want_of_files_is_not_down(calls):
    with no_descriptors():
        await calls.upstream._look_after(calls.endpoint)
        await calls.upstream._look_after_busy(calls.endpoint)
        await calls.upstream._look_after_busy(calls.endpoint)
    assert calls.health is Health.UP
    calls.upstream._down(calls.endpoint, "gone")
    with no_descriptors():
        await calls.upstream._probe_the_down()
    assert calls.health is Health.DOWN
    await calls.upstream._probe_the_down()
    assert calls.health is Health.UP


# --- servers that run calls -----------------------------------------------------------------------------


async def test_a_server_that_runs_calls_and_answers_no_question_goes_down(calls, server):
    server.scripts = [[HEAD, chunk(TOKEN), "vanish"]]
    running = asyncio.create_task(calls())
    while calls.endpoint.heard_s < 0:
        await asyncio.sleep(0.01)
    await calls.upstream._look_after_busy(calls.endpoint)
    assert calls.health is Health.UP  # it answers
    await stop_accepting(server.listening)
    server.listening.close()
    await calls.upstream._look_after_busy(calls.endpoint)
    assert calls.health is Health.UP  # once is no proof
    calls.endpoint.heard_s = asyncio.get_running_loop().time() + 60  # tokens come
    await calls.upstream._look_after_busy(calls.endpoint)
    assert (calls.health, calls.endpoint.unanswered) == (Health.UP, 0)
    calls.endpoint.heard_s = 0.0
    await calls.upstream._look_after_busy(calls.endpoint)
    await calls.upstream._look_after_busy(calls.endpoint)
    assert calls.health is Health.DOWN
    with pytest.raises(UpstreamError):
        await running


# --- certificates ----------------------------------------------------------------------------------------


async def test_the_certificates_of_a_directory_are_read_at_the_start(server, tmp_path, monkeypatch):
    """And not at each handshake, as OpenSSL does by itself: it would take a descriptor when there is none."""
    authority, folder = trustme.CA(), tmp_path / "certificates"
    folder.mkdir()
    authority.cert_pem.write_to_path(folder / "0123abcd.0")
    (folder / "00000000.0").write_text("no certificate")
    (folder / "11111111.0").symlink_to(folder / "gone")
    (folder / "README").write_text("not read")
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.setenv("SSL_CERT_DIR", f"{tmp_path / 'nowhere'}{os.pathsep}{folder}")
    transport = open_transport(IMPATIENT)
    shutil.rmtree(folder)
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(theirs)
    server.listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=theirs)
    host, port = server.listening.sockets[0].getsockname()
    server.scripts = [[ANSWER]]
    try:
        assert await Calls(f"https://{host}:{port}")() == "a"
    finally:
        await stop_accepting(server.listening)
        server.listening.close()
        await transport.close()


# --- contexts -------------------------------------------------------------------------------------------


async def test_a_call_leaves_nothing_in_the_context_of_whoever_made_it(calls, server):
    server.scripts = [[ANSWER], ["close"], ["close"]]
    await calls()
    assert current_exchange.get(None) is None
    with pytest.raises(UpstreamError):
        await calls()
    assert current_exchange.get(None) is None


async def wake(upstream, endpoint):
    upstream._wake_up(endpoint)
    await upstream._wakings[endpoint]


@pytest.mark.parametrize("ask", [lambda upstream, endpoint: upstream._probe(endpoint), wake], ids=["probe", "wake"])
async def test_what_a_call_has_asked_of_its_server_is_no_part_of_the_call(calls, server, ask):
    """Whoever fails first asks for all: the question has neither that call's span nor an answer for it."""
    call = Exchange(lambda data: True, lambda data: None, traceparent=f"00-{'1' * 32}-{'2' * 16}-01")
    with exchanging():
        current_exchange.set(call)
        await ask(calls.upstream, calls.endpoint)
    (probe,) = server.probes
    assert probe.startswith(b"GET /health ")
    assert b"traceparent" not in probe.lower()
    assert (call.is_answered, call.headers) == (False, {})


class Broken(Heard):
    """A sink with a defect."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.pushes = 0
        self._error = error

    def push(self, token, text, top_tokens=None) -> None:
        self.pushes += 1
        raise self._error


@pytest.mark.parametrize("error", [TypeError("x"), KeyError("x"), AttributeError("x"), ValueError("x")], ids=repr)
async def test_a_defect_of_ours_is_no_servers_fault(calls, server, error):
    server.scripts = [[ANSWER]]
    sink, request = Broken(error), read_request({"prompt": "hi"})
    with pytest.raises((TypeError, KeyError, AttributeError, RuntimeError)) as raised:
        await calls.generator.run(request.given, calls.generator.parameters(request), sink)
    assert error in (raised.value, raised.value.__cause__)
    assert (sink.pushes, calls.endpoint.failures, calls.endpoint.trouble) == (1, 0, "")
