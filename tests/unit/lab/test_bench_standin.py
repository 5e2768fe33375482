"""The benchmark's stand-in: its HTTP and its pace, on a clock that the test turns."""

import json

import pytest

from genqueue_lab.bench.standin import Connection, Pace
from genqueue_lab.bench.wire import INSTANT, clocks_us, fault


class Clock:
    """Time that passes when told to."""

    def __init__(self):
        self.now_s = 100.0
        self.calls = []

    def time(self):
        return self.now_s

    def call_at(self, when, callback):
        self.calls.append((when, callback))

    def clock_us(self):
        return round(self.now_s * 1e6)

    def advance(self, seconds):
        until_s = self.now_s + seconds + 1e-9
        while due := [call for call in self.calls if call[0] <= until_s]:
            first = min(due, key=lambda call: call[0])
            self.calls.remove(first)
            self.now_s = max(self.now_s, first[0])
            first[1]()
        self.now_s = until_s


class Client:
    """The other end of a connection."""

    def __init__(self, pace):
        self.received = b""
        self.has_left = False
        self._connection = Connection(pace)
        self._connection.connection_made(self)

    def write(self, data):
        self.received += data

    def is_closing(self):
        return self.has_left

    def send(self, data):
        self._connection.data_received(data)

    def post(self, path, request):
        self.send(post(path, request))

    def answers(self):
        """Of each answer so far: its status, and its body."""
        rest, found = self.received, []
        while rest:
            head, _, rest = rest.partition(b"\r\n\r\n")
            status, body = int(head.split()[1]), b""
            if b"chunked" not in head:
                size = int(head.rpartition(b" ")[2])
                body, rest = rest[:size], rest[size:]
                found.append((status, body))
                continue
            while rest and (size := int(rest.partition(b"\r\n")[0], 16)):
                body += rest.partition(b"\r\n")[2][:size]
                rest = rest.partition(b"\r\n")[2][size + 2 :]
            rest = rest.removeprefix(b"0\r\n\r\n")
            found.append((status, body))
        return found

    def text(self):
        """What the events of the last answer say."""
        parts = []
        for event in self.answers()[-1][1].split(b"\n\n"):
            if event and event != b"data: [DONE]":
                said = json.loads(event.removeprefix(b"data: "))
                parts += (
                    [said["token"]["text"]] if "token" in said else [c["delta"]["content"] for c in said["choices"]]
                )
        return "".join(parts)


def post(path, request):
    body = request if isinstance(request, bytes) else json.dumps(request).encode()
    return f"POST {path} HTTP/1.1\r\nHost: here\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def native(tokens, prompt="Hi"):
    return {"inputs": prompt, "parameters": {"max_new_tokens": tokens}, "stream": True}


def chat(tokens, prompt="Hi", **more):
    return {"messages": [{"role": "user", "content": prompt}], "max_tokens": tokens, "stream": True, **more}


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def pace(clock):
    return Pace(50, 20, clock, clock.clock_us)


ROUTES = [
    pytest.param("/", native, id="root"),
    pytest.param("/generate_stream", native, id="native"),
    pytest.param("/v1/chat/completions", chat, id="chat"),
]


@pytest.mark.parametrize(("path", "request_of"), ROUTES)
def test_tokens_come_at_their_time_and_carry_it(pace, clock, path, request_of):
    client = Client(pace)
    client.post(path, request_of(3))
    clock.advance(0.049)
    assert client.text() == ""
    clock.advance(0.051)
    assert fault(client.text(), 3) is None
    assert clocks_us(client.text()) == [100_050_000, 100_070_000, 100_090_000]


@pytest.mark.parametrize(("path", "request_of"), ROUTES)
def test_an_instant_answer_is_whole_at_once(pace, path, request_of):
    client = Client(pace)
    client.post(path, request_of(5, INSTANT + "Hi"))
    assert fault(client.text(), 5) is None


def test_streams_that_begin_at_different_times_keep_their_own_pace(pace, clock):
    clients = [Client(pace) for _ in range(3)]
    for client in clients:
        client.post("/", native(4))
        clock.advance(0.013)
    clock.advance(1.0)
    firsts = [clocks_us(client.text())[0] for client in clients]
    assert [first - firsts[0] for first in firsts] == pytest.approx([0, 13_000, 26_000], abs=1)
    for client in clients:
        assert fault(client.text(), 4) is None
        first, *_, last = clocks_us(client.text())
        assert last - first == pytest.approx(60_000, abs=1)


def test_a_client_that_left_does_not_hold_up_the_others(pace, clock):
    gone, here = Client(pace), Client(pace)
    gone.post("/", native(4))
    here.post("/", native(4))
    clock.advance(0.06)
    gone.has_left = True
    clock.advance(1.0)
    assert len(clocks_us(gone.text())) == 1
    assert fault(here.text(), 4) is None


def test_a_connection_serves_one_request_after_the_other_however_it_is_cut(pace, clock):
    client = Client(pace)
    for byte in post("/", native(2)):
        client.send(bytes([byte]))
    clock.advance(1.0)
    client.post("/v1/chat/completions", chat(3, stream_options={"include_usage": True}))
    clock.advance(1.0)
    assert [status for status, _ in client.answers()] == [200, 200]
    assert fault(client.text(), 3) is None
    assert b'"usage":{"prompt_tokens":3,"completion_tokens":3' in client.received


@pytest.mark.parametrize("path", ["/health", "/info"])
def test_it_says_that_it_is_there(pace, path):
    client = Client(pace)
    client.send(f"GET {path} HTTP/1.1\r\nHost: here\r\n\r\n".encode())
    assert [status for status, _ in client.answers()] == [200]


@pytest.mark.parametrize(
    ("path", "request_body", "status"),
    [
        pytest.param("/elsewhere", native(3), 404, id="no such route"),
        pytest.param("/", b"{", 422, id="no JSON"),
        pytest.param("/", b"[]", 422, id="no object"),
        pytest.param("/", {**native(3), "stream": False}, 422, id="no stream asked for"),
        pytest.param("/", native("many"), 422, id="tokens that are no number"),
        pytest.param("/", native(-1), 422, id="tokens below one"),
        pytest.param("/v1/chat/completions", {**chat(3), "messages": []}, 422, id="no message"),
    ],
)
def test_what_it_does_not_serve_is_refused(pace, path, request_body, status):
    client = Client(pace)
    client.post(path, request_body)
    assert [found for found, _ in client.answers()] == [status]


def test_a_pace_that_one_timer_cannot_keep_is_refused(clock):
    with pytest.raises(ValueError, match="first_ms 10 is less than between_ms 20"):
        Pace(10, 20, clock, clock.clock_us)
