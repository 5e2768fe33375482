"""What somebody writes into a queue, on a channel, into a log or as an answer who means harm, or another program.

For hypothesis.
"""

import base64
import bz2
import gzip
import json
import pickle
import random
import zlib
from collections.abc import Iterator
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from genqueue.registry.submitting import doorbell_message

# A model's answer of one token: what gets through costs little.
CHEAP_PROMPT = 'x {{standin {"tokens":1}}}'

BUILT_IN_TASKS = [
    "celery.accumulate",
    "celery.backend_cleanup",
    "celery.chain",
    "celery.chord",
    "celery.chord_unlock",
    "celery.chunks",
    "celery.group",
    "celery.map",
    "celery.starmap",
]
"""Celery registers them in every worker."""
_BOMB = zlib.compress(b" " * 30_000_000)
_SIGNATURE = {
    "task": "genqueue.generate",
    "args": [],
    "kwargs": {"prompt": "link"},
    "options": {"queue": "elsewhere", "routing_key": "elsewhere"},
    "subtask_type": None,
    "immutable": True,
}
_ORDER = {**_SIGNATURE, "options": {"exchange": "celery.pidbox", "exchange_type": "fanout"}}
_SPECIAL: list[Any] = [
    None,
    True,
    0,
    -1,
    2**63,
    -(2**63) - 1,
    10**4000,
    1e308,
    -0.0,
    float("nan"),
    float("inf"),
    "",
    " ",
    "\x00",
    "\ud800",
    "two\nlines",
    "../../etc/passwd",
    "%1%s{id}%(x)s{0}",
    "é" * 300,
    "x" * 20_000,
    "\u202e",
    [],
    {},
    [[]],
    [None, None],
    {"": None},
    {"__type__": "uuid", "__value__": "x"},
    {"__type__": "datetime", "__value__": 5},
    {"__type__": "decimal", "__value__": "NaN"},
    {"__type__": "bytes", "__value__": "/w=="},
    {"__type__": [], "__value__": {}},
    "1970-01-01T00:00:00+00:00",
    "9999-12-31T23:59:59.999999-14:00",
    "2999-01-01T00:00:00",
    "yesterday",
    _SIGNATURE,
    [_SIGNATURE],
    [_ORDER],
    {"header": [], "body": _SIGNATURE, "kwargs": {}},
]


def _nested(depth: int) -> Any:
    value: Any = 0
    for number in range(depth):
        value = [value] if number % 2 else {"a": value}
    return value


_SPECIAL += [_nested(depth) for depth in (50, 190, 300)]


def drawn(strategy: st.SearchStrategy[bytes], count: int) -> list[bytes]:
    """So many, the same every time: a quarter drawn by hypothesis, the others crossed with each other.

    They are for what is tried outside of hypothesis: it would shrink and show, and there is no second worker to
    try them on.  It draws them one at a time, for within a larger example it repeats itself.
    """
    found: list[bytes] = []

    @settings(
        max_examples=count // 4 + 1,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def draw(one: bytes) -> None:
        found.append(one)

    draw()
    dice = random.Random(0)
    return found + [_crossed(dice, dice.choice(found), dice.choice(found)) for _ in range(count - len(found))]


def _crossed(dice: random.Random, one: bytes, other: bytes) -> bytes:
    """``one`` with a part of ``other`` somewhere in it; of what is no JSON some bytes."""
    try:
        tree, grafts = json.loads(one), list(_places(json.loads(other)))
        holder, key = dice.choice(list(_places(tree)))
        giver, part = dice.choice(grafts)
        holder[key] = giver[part]
        return _json(tree)
    except (ValueError, IndexError, RecursionError):
        at = dice.randrange(len(one) + 1)
        return one[:at] + other[: dice.randrange(8)] + one[at + dice.randrange(3) :]


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """(holder, key) of everything in a tree of JSON."""
    if isinstance(tree, dict | list):
        for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
            yield tree, key
            yield from _places(tree[key])


def values() -> st.SearchStrategy[Any]:
    """Anything that ``json.dumps`` writes, and much that JSON does not have."""
    leaves = st.sampled_from(_SPECIAL) | st.integers() | st.floats() | st.text(max_size=8)
    return leaves | st.lists(leaves, max_size=3) | st.dictionaries(st.text(max_size=5), leaves, max_size=3)


def _b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _json(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


_REQUEST_FIELDS = [
    "prompt",
    "messages",
    "tools",
    "tool_choice",
    "response_format",
    "generator",
    "generation_kwargs",
    "stop_words",
    "stream",
    "priority",
    "deadline_s",
    "on_failure",
    "v",
    "self",
    "args",
    "kwargs",
    "request",
    "task_id",
]
_KWARGS = ["max_new_tokens", "seed", "stop", "grammar", "top_p", "temperature", "best_of", "truncate", "nonsense"]


def requests() -> st.SearchStrategy[dict[str, Any]]:
    """A foreign request some of whose fields are what they must not be."""
    given = st.sampled_from(
        [
            {"prompt": CHEAP_PROMPT},
            {"messages": [{"role": "user", "content": CHEAP_PROMPT}]},
            {"messages": [{"role": "user", "content": [{"type": "text", "text": CHEAP_PROMPT}]}]},
            {},
        ]
    )
    hostile = st.dictionaries(st.sampled_from(_REQUEST_FIELDS), values(), max_size=2)
    kwargs = st.fixed_dictionaries(
        {}, optional={"generation_kwargs": st.dictionaries(st.sampled_from(_KWARGS), values(), max_size=2)}
    )
    return st.builds(lambda one, two, three: {**one, **two, **three}, given, kwargs, hostile)


def bodies() -> st.SearchStrategy[bytes]:
    """What stands in a message where arguments, keyword arguments and options should."""
    embed = st.dictionaries(
        st.sampled_from(["callbacks", "errbacks", "chain", "chord", "get", "id", "delivery_info", "group", "is_eager"]),
        values(),
        max_size=2,
    )
    call = st.tuples(st.just([]), requests(), st.just({}) | embed)
    return (
        call.map(_json)
        | st.tuples(st.lists(values(), max_size=2) | values(), requests() | values(), embed | values()).map(_json)
        | values().map(_json)
        | st.binary(max_size=40)
        | st.just(b"[" * 50_000)
    )


_HEADERS = [
    "task",
    "id",
    "root_id",
    "parent_id",
    "group",
    "group_index",
    "retries",
    "eta",
    "expires",
    "timelimit",
    "argsrepr",
    "kwargsrepr",
    "origin",
    "ignore_result",
    "replaced_task_nesting",
    "stamped_headers",
    "stamps",
    "shadow",
    "lang",
    "chord",
    "callbacks",
    "errbacks",
    "chain",
    "get",
    "update",
    "delivery_info",
    "is_eager",
    "called_directly",
    "clock",
    "method",
    "traceparent",
    "hostname",
]
_ENCODINGS = ["utf-8", "binary", "ascii", "rot13", "base64", "idna", "zlib", "", "nonsense"]
_TYPES = [
    "application/json",
    "application/x-python-serialize",
    "application/x-yaml",
    "application/x-msgpack",
    "text/plain",
    "application/data",
    "",
]
_PARTS = [
    ("body",),
    ("content-encoding",),
    ("content-type",),
    ("headers",),
    ("properties",),
    ("properties", "correlation_id"),
    ("properties", "reply_to"),
    ("properties", "delivery_mode"),
    ("properties", "delivery_info"),
    ("properties", "delivery_info", "exchange"),
    ("properties", "delivery_info", "routing_key"),
    ("properties", "delivery_info", "redelivered"),
    ("properties", "priority"),
    ("properties", "body_encoding"),
    ("properties", "delivery_tag"),
    ("unknown",),
    *(("headers", name) for name in _HEADERS),
]
_COMPRESSED = [
    ("application/x-gzip", _BOMB),
    ("gzip", zlib.compress(_json([[], {"prompt": CHEAP_PROMPT}, {}]))),
    ("zlib", b"no zlib"),
    ("gzip", gzip.compress(b"[[], {}, {}]")),
    ("bzip2", bz2.compress(b" " * 30_000_000)),
    ("lzma", b""),
    ("nonsense", b"[[], {}, {}]"),
    (5, b"[[], {}, {}]"),
]
_PICKLE = pickle.dumps([[], {"prompt": "p"}, {}])


def put(message: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    """Replace one part of a message, ``...`` takes it away; a place that another change took is left alone."""
    holder: Any = message
    for name in path[:-1]:
        holder = holder.get(name) if isinstance(holder, dict) else None
    if isinstance(holder, dict):
        if value is ...:
            holder.pop(path[-1], None)
        else:
            holder[path[-1]] = value


@st.composite
def messages(draw: st.DrawFn, ids: st.SearchStrategy[str], generator: str = "default") -> bytes:
    """One that looks like a task message for ``generator``, but for one to three things."""
    message: dict[str, Any] = json.loads(doorbell_message(draw(ids), generator, 5))
    kind = draw(st.sampled_from(["doorbell", "request", "body", "headers", "type", "compressed", "task"]))
    if kind == "request":
        message["body"] = _b64(_json([[], draw(requests()), {}]))
    elif kind == "body":
        message["body"] = _b64(draw(bodies()))
    elif kind == "headers":
        message["headers"] |= draw(st.dictionaries(st.sampled_from(_HEADERS), values(), min_size=1, max_size=3))
    elif kind == "type":
        message["content-type"] = draw(st.sampled_from(_TYPES))
        message["content-encoding"] = draw(st.sampled_from(_ENCODINGS))
        message["body"] = _b64(draw(st.sampled_from([_PICKLE, b"\xff\x00", b"[[], {}, {}]", b"!!python/object:x {}"])))
    elif kind == "compressed":
        message["headers"]["compression"], body = draw(st.sampled_from(_COMPRESSED))
        message["body"] = _b64(body)
    elif kind == "task":
        message["headers"]["task"] = draw(st.sampled_from([*BUILT_IN_TASKS, "genqueue.generat", "os.system", ""]))
        message["body"] = _b64(_json([draw(st.lists(values(), max_size=2)), {"task": _SIGNATURE, "it": [[1]]}, {}]))
    for path in draw(st.lists(st.sampled_from(_PARTS), max_size=2 if kind != "doorbell" else 3)):
        put(message, path, draw(st.just(...) | values()))
    return _json(message)


def entries(ids: st.SearchStrategy[str], generator: str = "default") -> st.SearchStrategy[bytes]:
    """Whatever may lie in a queue's list."""
    noise = st.binary(max_size=60) | values().map(_json) | st.sampled_from([b"", b"[" * 100_000, b"1" * 5000])
    look_alike = messages(ids, generator)
    # Not one_of: it would count each kind of noise for as much as the look-alikes.
    return st.integers(0, 9).flatmap(lambda number: look_alike if number else noise)


_EVENT_TYPES = ["started", "chunk", "resumed", "reset", "waking", "finished", "failed", "cancelled", "later", 5, None]


@st.composite
def events(draw: st.DrawFn, near: st.SearchStrategy[int]) -> dict[str, Any]:
    """One that looks like an event; its number and attempt are ``near`` the true ones, or far away."""
    far = st.sampled_from([0, -1, -(10**30), 10**6, 2**31, 2**53 + 1, 2**63, 2**64, 10**4000])
    event = {
        "v": draw(st.sampled_from([1, 1, 1, 1, 2, 0, None, "1"])),
        "seq": draw(near | far),
        "attempt": draw(st.sampled_from([0, 1, 2, 3, -1, 10**30])),
        "type": draw(st.sampled_from(_EVENT_TYPES)),
        "text": "HOSTILE",
        "at": draw(st.sampled_from([0.0, 1e300, None])),
        "worker": "w",
        "tokens": [],
        "finish_reason": "length",
        "completion_tokens": 1,
        "error": "failed",
        "message": "m",
    }
    for name in draw(st.lists(st.sampled_from(sorted(event)), max_size=1)):
        event[name] = draw(values())
    return event


def publications(near: st.SearchStrategy[int]) -> st.SearchStrategy[bytes]:
    """What may come on a live channel."""
    several = st.lists(events(near), min_size=1, max_size=3)
    return (
        several.map(_json)
        | several.map(lambda found: _json(found)[:-2])
        | events(near).map(_json)
        | values().map(_json)
        | st.binary(max_size=60)
        | st.sampled_from([b"", b"[]", b"[[]]", b"[" * 50_000, b"\xff", b"null"])
    )


_METHODS = [
    "revoke",
    "terminate",
    "ping",
    "rate_limit",
    "time_limit",
    "stats",
    "active",
    "query_task",
    "revoke_by_stamped_headers",
    "election",
    "hello",
    "registered",
    "conf",
    "report",
    "pool_grow",
    "autoscale",
    "enable_events",
    "nonsense",
    "",
    5,
    None,
    [],
]
"""Celery's orders to workers, but for those that do harm by being carried out (``shutdown``, ``cancel_consumer``)."""


@st.composite
def orders(draw: st.DrawFn) -> bytes:
    """What may come on the channel of Celery's remote control."""
    body: Any = {
        "method": draw(st.sampled_from(_METHODS)),
        "arguments": draw(
            st.dictionaries(st.sampled_from(["task_id", "terminate", "x", "headers"]), values(), max_size=2)
        ),
        "destination": None,
        "pattern": None,
        "matcher": None,
    }
    for name in draw(st.lists(st.sampled_from([*body, "reply_to", "ticket", "y"]), max_size=2)):
        body[name] = draw(values())
    message: Any = {
        "body": _b64(_json(draw(st.just(body) | st.just(body) | values()))),
        "content-encoding": "utf-8",
        "content-type": draw(st.sampled_from(["application/json"] * 6 + _TYPES)),
        "headers": {"clock": draw(st.sampled_from([1, 1, 1, 0, -5, "x", None, 1.5, 2**64, 10**4299, []]))},
        "properties": {
            "delivery_mode": 2,
            "delivery_info": {"exchange": "celery.pidbox", "routing_key": ""},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": "tag",
        },
    }
    places = [path for path in _PARTS if path[0] != "headers" or len(path) == 1]
    for path in draw(st.lists(st.sampled_from([*places, ("headers", "compression")]), max_size=1)):
        put(message, path, draw(st.just(...) | values()))
    return draw(
        st.just(_json(message))
        | st.just(_json(message))
        | st.just(_json(message))
        | st.binary(max_size=60)
        | values().map(_json)
        | st.sampled_from([b"[" * 50_000, b"\xff\xfe"])
    )


_TOKEN = {"id": 5, "text": " word", "logprob": -0.5, "special": False}
_DETAILS = {
    "finish_reason": "length",
    "generated_tokens": 2,
    "seed": 7,
    "input_length": 3,
    "prefill": [{"id": 1, "text": "a", "logprob": None}],
    "tokens": [_TOKEN],
    "best_of_sequences": [],
}
_USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
_CALL = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
_LOGPROB = {"token": "a", "logprob": -0.1, "top_logprobs": [{"token": "a", "logprob": -0.1}]}


def _chat_event(delta: dict[str, Any], finish_reason: str | None = None, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "logprobs": {"content": [_LOGPROB]}, "finish_reason": finish_reason}
    return {"object": "chat.completion.chunk", "id": "", "created": 1, "model": "m", "choices": [choice], **more}


_NATIVE = [
    {"index": 1, "token": _TOKEN, "top_tokens": [_TOKEN], "generated_text": None, "details": None},
    {"index": 2, "token": {**_TOKEN, "special": True, "text": "</s>"}, "generated_text": None, "details": None},
    {"index": 3, "token": _TOKEN, "generated_text": " word word", "details": _DETAILS},
]
_CHAT = [
    _chat_event({"role": "assistant", "content": ""}),
    _chat_event({"content": "word", "reasoning": "hm"}),
    _chat_event({"tool_calls": [_CALL]}),
    _chat_event({"content": "!"}, "stop", usage=_USAGE),
    {"choices": [], "usage": _USAGE},
]
_ONE_SHOT = [{"generated_text": " word word", "details": _DETAILS}]
_ERRORS = [
    {"error": "Model is overloaded", "error_type": "overloaded"},
    {"error": {"message": "no", "type": "server_error", "code": 500}},
    {"object": "error", "message": "no", "type": "x", "code": 400},
]
_ANSWER_HEADERS = [
    b"content-encoding: gzip",
    b"content-encoding: " + b"gzip, " * 500 + b"gzip",
    b"content-encoding: nonsense",
    b"content-length: 5",
    b"content-length: 99999999999",
    b"content-length: -1",
    b"content-length: 7\r\ncontent-length: 9",
    b"transfer-encoding: gzip",
    b"retry-after: " + b"9" * 5000,
    b"retry-after: soon",
    b"location: http://127.0.0.1:1/" + b"x" * 5000,
    b"x-prompt-tokens: " + b"9" * 5000,
    b"x-prompt-tokens: \xd9\xa3",
    b"x-long: " + b"y" * 9000,
    b"set-cookie: \xff=\xfe; domain=..",
    b"content-type: \x00",
    b"no header",
    b": nor this",
    b"upgrade: h2c\r\nconnection: upgrade",
    b"connection: close",
    *[b"\r\n".join(b"x-%d: %d" % (number, number) for number in range(count)) for count in (100, 1000)],
]
_STATUS_LINES = [
    *[b"HTTP/1.1 %d Said" % status for status in (400, 401, 404, 413, 422, 424, 429, 500, 503, 504)],
    *[b"HTTP/1.1 %d Sent" % status for status in (100, 101, 103, 204, 206, 301, 304, 307, 599, 600, 999)],
    *[b"HTTP/1.1 100 Continue\r\n\r\n" * count + b"HTTP/1.1 200 OK" for count in (1, 500)],
    b"HTTP/1.0 200 OK",
    b"HTTP/2 200",
    b"HTTP/1.1 200",
    b"HTTP/1.1 -5 x",
    b"HTTP/1.1 200 " + b"r" * 9000,
    b"ICY 200 OK",
    b"",
    b"\x16\x03\x01",
]
_PAGES = [
    b"<html><body>It works!</body></html>",
    gzip.compress(b"data: {}\n\n" * 3_000_000),
    b"\xff\xfe\x00" * 1000,
    b"data: " + b"[" * 100_000,
    b"data: " + b"9" * 5000,
    b'data: {"token":' + b'{"id":' * 300,
    b"data:\ndata: \n\n:\n\r\n",
    b"\n" * 100_000,
    b"data: [DONE]\n\n",
    b'data: {"choices":[{"delta":{}}]}\n\n' * 20_000,
    b'data: {"token":{"id":1,"text":"","logprob":0,"special":false}}\n\n' * 20_000,
    b"data: " + b"x" * 3_000_000,
    b"",
]


@st.composite
def answers(draw: st.DrawFn) -> bytes:
    """A model server's answer, from its status line on: true ones with a few things wrong, and nonsense."""
    plain: list[dict[str, Any]] = draw(st.sampled_from([_NATIVE, _CHAT, _ONE_SHOT, _NATIVE, _CHAT]))
    events = json.loads(json.dumps([*plain, *draw(st.lists(st.sampled_from([*plain, *_ERRORS]), max_size=2))]))
    for _ in range(draw(st.integers(0, 3))):
        tree, place = draw(st.sampled_from(list(_places(events))))
        if tree is not events:
            tree[place] = draw(values())
    said = [draw(st.just(b"data: ") | st.just(b"data:")) + _json(event) for event in events]
    separator = draw(st.sampled_from([b"\n\n"] * 4 + [b"\r\n\r\n", b"\n", b"\r", b""]))
    body = draw(
        st.just(separator.join([*said, b"data: [DONE]", b""]))
        | st.just(separator.join([*said, b"data: [DONE]", b""]))
        | st.just(separator.join([*said, b""]))
        | st.just(b"".join(_json(event) for event in events[:1]))
        | st.sampled_from(_PAGES)
        | st.binary(max_size=200)
    )
    if draw(st.integers(0, 5)) == 0:
        body = body[: draw(st.integers(0, len(body)))]
    head = [draw(st.sampled_from([b"HTTP/1.1 200 OK"] * 12 + _STATUS_LINES))]
    head.append(draw(st.sampled_from([b"content-type: text/event-stream", b"content-type: application/json"])))
    head += draw(st.lists(st.sampled_from(_ANSWER_HEADERS), max_size=draw(st.sampled_from([0, 0, 0, 1, 2]))))
    if draw(st.booleans()):
        head.append(b"transfer-encoding: chunked")
        size = draw(st.sampled_from([b"%x" % len(body)] * 6 + [b"1", b"ffffffffffffffff", b"-1", b"zz", b"0"]))
        body = size + b"\r\n" + body + b"\r\n" + draw(st.sampled_from([b"0\r\n\r\n", b"", b"0\r\nx: y\r\n"]))
    return b"\r\n".join([*head, b"", body])
