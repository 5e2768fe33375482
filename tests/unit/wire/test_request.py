"""What a request may be, and what is refused before it travels."""

import json
import math
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from genqueue.errors import InvalidRequestError
from genqueue.wire.chat import I32, MAX_STOP_WORDS, U64, ChatKwargs
from genqueue.wire.request import Bounds, GenerationKwargs, GenerationRequest, read_request

SECRET = "s3cret-do-not-show"


@given(
    prompt=st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
    stop_words=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), max_size=MAX_STOP_WORDS),
    stream=st.booleans(),
    priority=st.integers(0, 9),
    deadline_s=st.none() | st.floats(min_value=1e-6, max_value=1e9),
    temperature=st.none() | st.floats(0, 100),
)
def test_a_request_survives_the_wire(prompt, stop_words, stream, priority, deadline_s, temperature):
    request = read_request(
        {
            "prompt": prompt,
            "stop_words": stop_words,
            "stream": stream,
            "priority": priority,
            "deadline_s": deadline_s,
            "generation_kwargs": {"temperature": temperature, "grammar": {"type": "json", "value": {"properties": {}}}},
        }
    )
    received = GenerationRequest.model_validate_json(request.to_wire())
    assert received == request
    assert received.fingerprint() == request.fingerprint()


def test_what_was_not_given_is_not_sent():
    request = read_request({"prompt": "p", "generation_kwargs": {"seed": 1, "temperature": None}, "stop_words": None})
    assert json.loads(request.to_wire()) == {"prompt": "p", "generation_kwargs": {"seed": 1}, "stop_words": []}


SCHEMA = {"type": "object", "properties": {"b": {}, "a": {}}}
CHAT = {
    "messages": [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "x"}]},
    ],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}],
    "generation_kwargs": {"extra_body": {"top_k": 3}, "temperature": 0.5},
}


@pytest.mark.parametrize(
    ("fields", "known"),
    [({"prompt": "p"}, "610578b2f666b7c54042baabcd632eed2557ba27"), (CHAT, "3a1bf5de125822b93375fd846cc4efa7e7c2b240")],
    ids=["prompt", "chat"],
)
def test_a_request_as_written_has_the_fingerprint_that_earlier_versions_stored(fields, known):
    assert read_request(fields).fingerprint_as_written() == known


def test_the_order_of_an_objects_keys_makes_no_other_request():
    turned = json.loads(json.dumps(CHAT, sort_keys=True))
    assert read_request(turned).fingerprint() == read_request(CHAT).fingerprint()
    assert read_request(turned).fingerprint_as_written() != read_request(CHAT).fingerprint_as_written()
    turned["messages"].reverse()
    assert read_request(turned).fingerprint() != read_request(CHAT).fingerprint()


def test_equal_requests_share_a_fingerprint_however_they_were_written():
    short = read_request({"prompt": "p"})
    long = read_request({"prompt": "p", "generator": "default", "generation_kwargs": {"seed": None}, "priority": 5})
    assert short.fingerprint() == long.fingerprint()
    assert short.fingerprint() != read_request({"prompt": "p", "priority": 4}).fingerprint()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        pytest.param({"prompt": ""}, "prompt: String should have at least 1 character", id="empty-prompt"),
        pytest.param({"prompt": None}, "prompt: needed, or messages; not both", id="no-prompt"),
        pytest.param({"prompt": 5}, "prompt: Input should be a valid string", id="prompt-number"),
        pytest.param({"prompt": b"bytes"}, "prompt: Input should be a valid string", id="prompt-bytes"),
        pytest.param({"prompt": "\ud83d"}, "prompt: Input should be a valid string, unable", id="prompt-surrogate"),
        pytest.param({"generator": ""}, "generator: String should match", id="generator-empty"),
        pytest.param({"generator": "a b"}, "generator: String should match", id="generator-space"),
        pytest.param({"generator": "a\n"}, "generator: String should match", id="generator-newline"),
        pytest.param({"generator": "é"}, "generator: String should match", id="generator-not-ascii"),
        pytest.param({"generator": "x" * 65}, "generator: String should match", id="generator-long"),
        pytest.param({"priority": -1}, "priority: Input should be greater", id="priority-below"),
        pytest.param({"priority": 10}, "priority: Input should be less", id="priority-above"),
        pytest.param({"priority": True}, "priority: Input should be a valid integer", id="priority-bool"),
        pytest.param({"priority": "5"}, "priority: Input should be a valid integer", id="priority-string"),
        pytest.param({"stream": "yes"}, "stream: Input should be a valid boolean", id="stream-string"),
        pytest.param({"stream": 1}, "stream: Input should be a valid boolean", id="stream-number"),
        pytest.param({"deadline_s": 0}, "deadline_s: Input should be greater than 0", id="deadline-zero"),
        pytest.param({"deadline_s": math.inf}, "deadline_s: Input should be a finite", id="deadline-infinite"),
        pytest.param({"deadline_s": math.nan}, "deadline_s: Input should be", id="deadline-nan"),
        pytest.param({"deadline_s": True}, "deadline_s: Input should be a valid number", id="deadline-bool"),
        pytest.param({"deadline_s": "60"}, "deadline_s: Input should be a valid number", id="deadline-string"),
        pytest.param({"stop_words": "\n\n"}, "stop_words: a list of strings is needed", id="stop-words-string"),
        pytest.param({"stop_words": ["a", 5]}, "stop_words.1: Input should be a valid string", id="stop-words-number"),
        pytest.param({"stop_words": [""]}, "stop_words.0: String should have at least 1", id="stop-words-empty"),
        pytest.param({"stop_words": ["\ud83d"]}, "stop_words.0: Input should be a valid", id="stop-words-surrogate"),
        pytest.param({"stop_words": 3}, "stop_words: Input should be a valid list", id="stop-words-no-list"),
        pytest.param({"generation_kwargs": [1]}, "generation_kwargs: Input should be an object", id="kwargs-list"),
        pytest.param({"generation_kwargs": {"seed": "1"}}, "generation_kwargs.seed: Input should", id="kwargs-type"),
        pytest.param({"generation_kwargs": {"seed": True}}, "generation_kwargs.seed: Input should", id="kwargs-bool"),
        pytest.param(
            {"generation_kwargs": {"temperature": math.nan}},
            "generation_kwargs.temperature: Input should be a finite number",
            id="kwargs-nan",
        ),
        pytest.param(
            {"generation_kwargs": {"top_p": math.inf}},
            "generation_kwargs.top_p: Input should be a finite number",
            id="kwargs-infinite",
        ),
        pytest.param(
            {"generation_kwargs": {"adapter_id": "\ud83d"}},
            "generation_kwargs: holds what JSON cannot",
            id="kwargs-surrogate",
        ),
        pytest.param(
            {"generation_kwargs": {"grammar": {"type": "json", "value": {"a": object()}}}},
            "generation_kwargs: holds what JSON cannot",
            id="grammar-object",
        ),
        pytest.param(
            {"generation_kwargs": {"grammar": {"type": "json", "value": {"a": "\ud83d"}}}},
            "generation_kwargs: holds what JSON cannot",
            id="grammar-surrogate",
        ),
        pytest.param(
            {"generation_kwargs": {"stop": ["a", ""]}}, "generation_kwargs.stop.1: String should", id="stop-empty"
        ),
        pytest.param(
            {"generation_kwargs": {"return_full_text": True}},
            "generation_kwargs.return_full_text: only False; a reply never holds the prompt",
            id="full-text",
        ),
        pytest.param(
            {"stop_words": ["a"] * 65}, "stop_words: List should have at most 64 items", id="stop-words-too-many"
        ),
        pytest.param({"promt": "typo"}, "promt: no such key", id="unknown-field"),
        pytest.param({"v": 2}, "v: Input should be 1", id="newer-version"),
    ],
)
def test_a_request_that_cannot_run_is_refused_in_one_line(fields, words):
    with pytest.raises(InvalidRequestError) as refused:
        read_request({"prompt": "p", **fields})
    assert str(refused.value).startswith(words)
    assert "\n" not in str(refused.value)


PART = {"type": "text", "text": "é" * 15}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        pytest.param({"prompt": "é" * 51}, "prompt: has 102 bytes, max_prompt_bytes is 100", id="prompt"),
        pytest.param({"prompt": "\ud83d" * 101}, "prompt: has 101 bytes, max_prompt_bytes is 100", id="surrogates"),
        pytest.param(
            {"prompt": "x" * 90, "stop_words": ["y" * 900]},
            "request: has 1021 bytes, max_request_bytes is 1000",
            id="all",
        ),
        pytest.param(
            {"messages": [{"role": "user", "content": "é" * 25}, {"role": "user", "content": [PART, PART]}]},
            "messages: has 110 bytes, max_prompt_bytes is 100",
            id="messages",
        ),
        pytest.param(
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x" * 1000}}]}]},
            "request: has 1086 bytes, max_request_bytes is 1000",
            id="image",
        ),
        pytest.param(
            {"prompt": "p", "generation_kwargs": {"max_new_tokens": 51}},
            "generation_kwargs.max_new_tokens: is 51, max_completion_tokens is 50",
            id="max_new_tokens",
        ),
        pytest.param(
            {"messages": [{"role": "user", "content": "x"}], "generation_kwargs": {"max_tokens": 51}},
            "generation_kwargs.max_tokens: is 51, max_completion_tokens is 50",
            id="max_tokens",
        ),
        pytest.param(
            {
                "messages": [{"role": "user", "content": "x"}],
                "tools": [{"function": {"name": "f", "parameters": {"x": "y" * 1000}}}],
            },
            "request: has 1102 bytes, max_request_bytes is 1000",
            id="tools",
        ),
    ],
)
def test_a_request_past_a_bound_is_refused_with_its_name(fields, words):
    with pytest.raises(InvalidRequestError) as refused:
        read_request(fields, Bounds(max_prompt_bytes=100, max_request_bytes=1000, max_completion_tokens=50))
    assert str(refused.value) == words


def test_what_a_bound_just_allows_is_taken():
    assert read_request({"prompt": "é" * 50}, Bounds(max_prompt_bytes=100)).prompt == "é" * 50
    request = read_request({"prompt": "p"})
    assert read_request({"prompt": "p"}, Bounds(max_request_bytes=len(request.to_wire()))) == request


NUMBERS = {
    GenerationKwargs: {
        "best_of": (1, 128),
        "frequency_penalty": (-100, 100),
        "max_new_tokens": (1, I32),
        "repetition_penalty": (0, 100),
        "seed": (0, U64),
        "temperature": (0, 100),
        "top_k": (-1, I32),
        "top_n_tokens": (0, 100),
        "top_p": (0, 1),
        "truncate": (1, I32),
        "typical_p": (0, 1),
    },
    ChatKwargs: {
        "frequency_penalty": (-100, 100),
        "max_tokens": (1, I32),
        "presence_penalty": (-100, 100),
        "seed": (0, U64),
        "temperature": (0, 100),
        "top_logprobs": (0, 100),
        "top_p": (0, 1),
    },
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_every_number_of_the_kwargs_has_a_range(kind):
    assert NUMBERS[kind].keys() == {
        name
        for name, field in kind.model_fields.items()
        if {int, float} & set(get_args(field.annotation)) and name != "n"
    }
    given = {"prompt": "p"} if kind is GenerationKwargs else {"messages": [{"role": "user", "content": "p"}]}
    for name, (least, most) in NUMBERS[kind].items():
        for taken in (least, most):
            read = read_request({**given, "generation_kwargs": {name: taken}}, Bounds(max_completion_tokens=I32))
            assert getattr(read.generation_kwargs, name) == taken
        for refused in (least - 1, most + 1):
            with pytest.raises(InvalidRequestError, match=rf"kwargs\.{name}: Input should be (less|greater) than"):
                read_request({**given, "generation_kwargs": {name: refused}})


@pytest.mark.parametrize(("kind", "name"), [("prompt", "stop"), ("prompt", "stop_sequences"), ("messages", "stop")])
def test_a_tuple_of_stop_words_is_a_list_of_them_and_a_string_is_none(kind, name):
    asked = {kind: "p" if kind == "prompt" else [{"role": "user", "content": "p"}]}
    request = read_request({**asked, "generation_kwargs": {name: ("a", "b")}})
    assert getattr(request.generation_kwargs, name) == ["a", "b"]
    with pytest.raises(InvalidRequestError, match=rf"generation_kwargs\.{name}: Input should be a valid list"):
        read_request({**asked, "generation_kwargs": {name: "###"}})


def test_so_many_stop_words_and_so_long_ones_are_taken_and_no_more():
    longest, most = "x" * 1000, ["x"] * MAX_STOP_WORDS
    for fields in ({"stop_words": most}, {"stop_words": [longest]}, {"generation_kwargs": {"stop": most}}):
        read_request({"prompt": "p", **fields})
    for words in ([*most, "x"], [longest + "x"]):
        for name, fields in (
            ("stop_words", {"stop_words": words}),
            ("generation_kwargs.stop", {"generation_kwargs": {"stop": words}}),
        ):
            with pytest.raises(InvalidRequestError, match=f"{name}.*at most"):
                read_request({"prompt": "p", **fields})


def test_a_grammar_that_holds_itself_is_refused():
    endless: dict[str, Any] = {}
    endless["again"] = endless
    with pytest.raises(InvalidRequestError, match="generation_kwargs: holds what JSON cannot"):
        read_request({"prompt": "p", "generation_kwargs": {"grammar": {"type": "json", "value": endless}}})


def test_an_unknown_generation_kwarg_is_answered_with_the_known_ones():
    with pytest.raises(InvalidRequestError) as refused:
        read_request({"prompt": "p", "generation_kwargs": {"max_tokens": 5}})
    assert str(refused.value) == "generation_kwargs.max_tokens: unknown; known: " + ", ".join(
        GenerationKwargs.model_fields
    )


def test_every_problem_is_named_not_only_the_first():
    with pytest.raises(InvalidRequestError) as refused:
        read_request({"prompt": "", "priority": 99, "generation_kwargs": {"seed": -1}})
    assert [line.partition(":")[0] for line in str(refused.value).split("; ")] == [
        "prompt",
        "generation_kwargs.seed",
        "priority",
    ]


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"prompt": [SECRET]}, id="prompt"),
        pytest.param({"prompt": SECRET + "\ud83d"}, id="prompt-surrogate"),
        pytest.param({"prompt": "p", "generator": SECRET + "!"}, id="generator"),
        pytest.param({"prompt": "p", "stop_words": SECRET}, id="stop-words"),
        pytest.param({"prompt": "p", "stop_words": [SECRET + "\ud83d"]}, id="stop-words-surrogate"),
        pytest.param({"prompt": "p", "priority": SECRET}, id="priority"),
        pytest.param({"prompt": "p", "deadline_s": SECRET}, id="deadline"),
        pytest.param({"prompt": "p", "generation_kwargs": SECRET}, id="kwargs"),
        pytest.param({"prompt": "p", "generation_kwargs": {"seed": SECRET}}, id="kwarg"),
        pytest.param({"prompt": "p", "generation_kwargs": {"grammar": {"type": SECRET, "value": SECRET}}}, id="type"),
        pytest.param({"prompt": "p", "generation_kwargs": {"grammar": {"type": "json", "value": 1}}}, id="value"),
        pytest.param({"prompt": "p", "unknown": SECRET}, id="unknown-field"),
    ],
)
def test_a_refusal_never_shows_the_value(fields):
    with pytest.raises(InvalidRequestError) as refused:
        read_request(fields)
    assert SECRET not in str(refused.value)
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "a canary", "generation_kwargs": {"max_new_tokens": "a canary"}},
        {"prompt": ["a canary"]},
        {"messages": [{"role": "a canary"}]},
        {"messages": [{"role": "user", "content": "a canary"}], "generation_kwargs": {"a canary": 1}, "priority": 99},
    ],
)
def test_not_even_pydantics_own_error_shows_what_was_asked(fields):
    """Whoever logs it, a traceback of a defect for one, would log a prompt."""
    with pytest.raises(ValidationError) as refused:
        GenerationRequest.model_validate(fields)
    assert "canary'" not in str(refused.value)
    assert "input_value" not in str(refused.value)
