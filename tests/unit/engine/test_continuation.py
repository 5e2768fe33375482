"""Where the next attempt begins, row by row, and what happens at the seam."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genqueue.registry.attempts import Claim
from genqueue.settings import GeneratorSettings
from genqueue.wire.events import Token, ToolCallDelta
from genqueue.wire.request import GenerationRequest
from genqueue_worker.engine.continuation import (
    FAILED,
    REFUSED,
    Begin,
    Complete,
    Continue,
    GiveUp,
    Progress,
    begins_anew,
    next_attempt,
    where_to_begin,
)
from genqueue_worker.engine.seam import ContinuedSink, Seam
from genqueue_worker.upstream.sink import Stopped

FREE = {"max_new_tokens": 10}


@pytest.mark.parametrize(
    ("parameters", "on_failure", "progress", "expected"),
    [
        pytest.param(FREE, "continue", Progress("", 0), Begin(forget=False), id="nothing-yet"),
        pytest.param(FREE, "continue", Progress("", 2), Begin(forget=True), id="a-text-that-was-lost"),
        pytest.param(
            FREE,
            "continue",
            Progress(" a b", 2),
            Continue("P a b", {"max_new_tokens": 8}, ""),
            id="free-text-continues",
        ),
        pytest.param(
            FREE,
            "continue",
            Progress(" a \n", 1),
            Continue("P a", {"max_new_tokens": 9}, " \n"),
            id="cut-at-the-last-character-that-is-no-space",
        ),
        pytest.param(
            FREE, "continue", Progress("\n\n", 0), Continue("P", FREE, "\n\n"), id="nothing-but-white-space-so-far"
        ),
        pytest.param(FREE, "continue", Progress(" a", 10), Complete("length"), id="no-token-missing"),
        pytest.param(
            {**FREE, "stop": ["END"]}, "continue", Progress(" the END", 2), Complete("stop_sequence"), id="ends-in-stop"
        ),
        pytest.param(
            {**FREE, "stop": ["\n\n"]}, "continue", Progress(" a\n\n", 2), Complete("stop_sequence"), id="stop-is-space"
        ),
        pytest.param(
            {**FREE, "truncate": 100},
            "continue",
            Progress(" a b", 2),
            Continue("P a b", {"max_new_tokens": 8, "truncate": 102}, ""),
            id="truncate-keeps-the-same-part-of-the-prompt",
        ),
        pytest.param(FREE, "restart", Progress(" a", 1), Begin(forget=True), id="restart-wished"),
        pytest.param(FREE, "restart", Progress("", 0), Begin(forget=False), id="restart-with-nothing-to-forget"),
        pytest.param(FREE, "fail", Progress(" a", 1), GiveUp(), id="fail-wished"),
        pytest.param({**FREE, "grammar": {}}, "continue", Progress(" a", 1), Begin(forget=True), id="grammar"),
        pytest.param({**FREE, "tools": [1]}, "continue", Progress(" a", 1), Begin(forget=True), id="tools"),
        pytest.param({**FREE, "best_of": 2}, "continue", Progress("", 0), Begin(forget=False), id="best-of"),
        pytest.param(
            {**FREE, "best_of": 1},
            "continue",
            Progress("a", 1),
            Continue("Pa", {"max_new_tokens": 9, "best_of": 1}, ""),
            id="best-of-one",
        ),
        pytest.param(
            {**FREE, "decoder_input_details": True},
            "continue",
            Progress(" a", 1),
            Begin(forget=True),
            id="prefill-details",
        ),
    ],
)
def test_the_next_attempt_begins_where_it_must(parameters, on_failure, progress, expected):
    assert next_attempt("P", parameters, on_failure, progress) == expected


CHAT = {"max_tokens": 10}
MESSAGES = [{"role": "user", "content": "P"}]
GO_ON = {"continue_final_message": True, "add_generation_prompt": False}


def begun(text):
    return [*MESSAGES, {"role": "assistant", "content": text}]


@pytest.mark.parametrize(
    ("messages", "parameters", "progress", "continues_chat", "expected"),
    [
        pytest.param(
            MESSAGES,
            CHAT,
            Progress("a b\n", 2),
            True,
            Continue(begun("a b"), {"max_tokens": 8, "extra_body": GO_ON}, "\n"),
            id="goes-on",
        ),
        pytest.param(
            MESSAGES,
            {**CHAT, "extra_body": {"top_k": 3}, "stop": ["END"]},
            Progress("a", 1),
            True,
            Continue(begun("a"), {"max_tokens": 9, "stop": ["END"], "extra_body": {"top_k": 3, **GO_ON}}, ""),
            id="extra-body-is-kept",
        ),
        pytest.param(MESSAGES, CHAT, Progress("a", 1), False, Begin(forget=True), id="its-server-does-not"),
        pytest.param(MESSAGES, CHAT, Progress("", 0), True, Begin(forget=False), id="nothing-yet"),
        pytest.param(MESSAGES, CHAT, Progress("\n", 0), True, Begin(forget=True), id="nothing-but-white-space"),
        pytest.param(MESSAGES, CHAT, Progress("a", 3, "hm"), True, Begin(forget=True), id="behind-thoughts"),
        pytest.param(MESSAGES, CHAT, Progress("", 2, "hm"), True, Begin(forget=True), id="thoughts-alone"),
        pytest.param(
            MESSAGES, {**CHAT, "tools": [1]}, Progress("", 2), True, Begin(forget=True), id="a-tool-call-is-no-text"
        ),
        pytest.param(
            MESSAGES,
            {**CHAT, "extra_body": {"top_k": 5, "guided_json": {}}},
            Progress("{", 1),
            True,
            Begin(forget=True),
            id="a-form-in-an-engines-own-words",
        ),
        pytest.param(
            MESSAGES, {**CHAT, "response_format": {}}, Progress("{", 1), True, Begin(forget=True), id="a-form"
        ),
        pytest.param(MESSAGES, {**CHAT, "logprobs": True}, Progress("a", 1), True, Begin(forget=True), id="logprobs"),
        pytest.param(
            MESSAGES,
            {**CHAT, "logprobs": False},
            Progress("a", 1),
            True,
            Continue(begun("a"), {"max_tokens": 9, "logprobs": False, "extra_body": GO_ON}, ""),
            id="no-logprobs",
        ),
        pytest.param(begun("The"), CHAT, Progress("a", 1), True, Begin(forget=True), id="the-caller-began-the-answer"),
        pytest.param(MESSAGES, CHAT, Progress("a", 10), True, Complete("length"), id="no-token-missing"),
        pytest.param(
            MESSAGES, {**CHAT, "stop": ["END"]}, Progress("END", 1), True, Complete("stop_sequence"), id="ends-in-stop"
        ),
    ],
)
def test_a_chat_goes_on_only_where_its_answer_can(messages, parameters, progress, continues_chat, expected):
    before = repr((messages, parameters))
    assert next_attempt(messages, parameters, "continue", progress, continues_chat=continues_chat) == expected
    assert repr((messages, parameters)) == before


GENERATOR = GeneratorSettings.model_validate(
    {"api_type": "text_generation_inference", "api_params": {"url": "http://tgi"}, "max_attempts": 3}
)
ERROR = {"attempt": 1, "message": "words"}
GOES_ON = Continue("p a", {"max_new_tokens": 9}, "")


@pytest.mark.parametrize(
    ("attempt", "failures", "errors", "on_failure", "expected"),
    [
        pytest.param(1, 0, [], "continue", Begin(forget=False), id="the-first"),
        pytest.param(2, 1, [ERROR], "continue", GOES_ON, id="after-a-failure"),
        pytest.param(2, 1, [ERROR], "restart", Begin(forget=True), id="a-restart-was-wished"),
        pytest.param(2, 1, [ERROR], "fail", GiveUp(), id="nothing-is-to-be-tried-twice"),
        pytest.param(2, 0, [], "restart", GOES_ON, id="handed-over-is-no-failure"),
        pytest.param(2, 0, [], "fail", GOES_ON, id="nor-where-nothing-is-tried-twice"),
        pytest.param(3, 1, [ERROR, {**ERROR, "continued": REFUSED}], "continue", Begin(forget=True), id="refused"),
        pytest.param(3, 1, [ERROR, {**ERROR, "continued": FAILED}], "continue", GOES_ON, id="failed-once"),
        pytest.param(3, 2, [ERROR, {**ERROR, "continued": FAILED}], "continue", Begin(forget=True), id="at-the-last"),
        pytest.param(4, 3, [ERROR] * 3, "continue", GiveUp(), id="failed-often-enough"),
        pytest.param(9, 0, [ERROR] * 9, "continue", GiveUp(), id="with-whatever-endpoint-took-it"),
    ],
)
def test_an_attempt_begins_where_those_before_it_left_off(attempt, failures, errors, on_failure, expected):
    text = " a" if attempt > 1 else ""
    claim = Claim(attempt, b"", 0.0, 0.0, None, text, len(text) // 2, failures, errors)
    request = GenerationRequest(prompt="p", on_failure=on_failure)
    assert where_to_begin(claim, request, FREE, GENERATOR) == expected


@pytest.mark.parametrize(
    ("tail", "pieces", "expected"),
    [
        pytest.param("", [" b", " c"], " b c", id="no-tail"),
        pytest.param("\n", ["\n", "b"], "b", id="said-again"),
        pytest.param("\n\n", ["\n", "\n", "b"], "b", id="said-again-in-pieces"),
        pytest.param("\n", ["\nb"], "b", id="said-again-with-more"),
        pytest.param(" ", [" b"], "b", id="the-space-before-a-word"),
        pytest.param("  ", [" b"], "b", id="less-of-it"),
        pytest.param(" ", [",", " b"], ", b", id="something-else"),
        pytest.param("\n", ["", "\n", "", "b"], "b", id="byte-split-characters"),
    ],
)
def test_readers_get_the_tail_once(tail, pieces, expected):
    seam = Seam("a" + tail, tail, [])
    assert "".join(seam.take(piece) for piece in pieces) == expected


@given(st.text(" ab\n", max_size=12), st.integers(0, 12))
def test_a_deterministic_text_cut_anywhere_has_no_seam(text, cut):
    before = text[:cut]
    tail = before[len(before.rstrip()) :]
    seam = Seam(before, tail, [])
    again = text[len(before.rstrip()) :]
    assert before + "".join(seam.take(character) for character in again) == text


@pytest.mark.parametrize(
    ("so_far", "pieces", "stops", "stopped_after"),
    [
        pytest.param(" a\n", ["\n", "\n", "b"], ["\n\n"], None, id="the-server-saw-all-of-it-again"),
        pytest.param(" the EN", ["D", "!"], ["END"], 1, id="straddles"),
        pytest.param(" the E", ["N", "D"], ["END"], 2, id="straddles-two-tokens"),
        pytest.param(" the EN", ["d", "END"], ["END"], None, id="whole-behind-the-seam-is-the-servers"),
        pytest.param(" the EN", ["DING"], ["END"], None, id="overshoots-as-on-the-server"),
        pytest.param(" x", ["y"], [], None, id="no-stops"),
        pytest.param("Q", [":"], ["Q:", "A very long stop"], 1, id="short-beside-long"),
    ],
)
def test_a_stop_sequence_across_the_seam_stops(so_far, pieces, stops, stopped_after):
    tail = so_far[len(so_far.rstrip()) :]
    seam = Seam(so_far, tail, stops)
    after = None
    for number, piece in enumerate(pieces, start=1):
        seam.take(piece)
        if seam.is_stopped and after is None:
            after = number
    assert after == stopped_after


class Reader:
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self.is_congested = False
        self.pushed: list[tuple[int, str]] = []
        self.top_tokens: list[list[Token] | None] = []
        self.deltas: list[tuple[str, str, tuple[ToolCallDelta, ...]]] = []
        self.is_closed = False
        self.reliefs = 0

    def push(self, token: Token, text: str, top_tokens: list[Token] | None = None) -> None:
        self.pushed.append((token.id, text))
        self.top_tokens.append(top_tokens)

    def push_delta(self, text: str, reasoning: str = "", tool_calls: Sequence[ToolCallDelta] = ()) -> None:
        self.deltas.append((text, reasoning, tuple(tool_calls)))

    def close(self) -> None:
        self.is_closed = True

    async def relief(self) -> None:
        self.reliefs += 1


def push(sink: ContinuedSink, *texts: str) -> None:
    for number, text in enumerate(texts, 1):
        sink.push(Token(number, text, None, False), text)


def test_a_continued_sink_passes_on_each_token_with_the_text_that_readers_lack():
    reader = Reader()
    push(ContinuedSink(reader, Seam(" a\n", "\n", [])), "\n", " b", "", "é")
    assert reader.pushed == [(1, ""), (2, " b"), (3, ""), (4, "é")]


def test_a_continued_sink_passes_on_the_alternatives():
    reader = Reader()
    token = Token(1, "a", None, False)
    ContinuedSink(reader, Seam("", "", [])).push(token, "a", [token])
    assert reader.top_tokens == [[token]]


def test_a_continued_sink_stops_after_the_token_that_ends_a_stop_sequence():
    reader = Reader()
    sink = ContinuedSink(reader, Seam(" the E", "", ["END"]))
    push(sink, "N")
    with pytest.raises(Stopped):
        push(sink, "D")
    assert [text for _, text in reader.pushed] == ["N", "D"]


def test_a_continued_sink_takes_the_events_of_a_chat():
    reader = Reader()
    sink = ContinuedSink(reader, Seam("a\nE", "", ["END"]))
    sink.push_delta("N", "hm", [ToolCallDelta(0, "1", "f", "{")])
    with pytest.raises(Stopped):
        sink.push_delta("D")
    assert reader.deltas == [("N", "hm", (ToolCallDelta(0, "1", "f", "{"),)), ("D", "", ())]


def test_a_continued_chat_says_its_tail_once():
    reader = Reader()
    sink = ContinuedSink(reader, Seam("a\n", "\n", []))
    sink.push_delta("\nb")
    assert reader.deltas == [("b", "", ())]


async def test_a_continued_sink_is_else_the_one_behind_it():
    reader = Reader()
    sink = ContinuedSink(reader, Seam("", "", []))
    assert sink.is_congested is False
    reader.is_congested = True
    assert sink.is_congested is True
    await sink.relief()
    sink.close()
    assert (reader.reliefs, reader.is_closed) == (1, True)


REFUSAL, FAILURE, OTHER = {"continued": "refused"}, {"continued": "failed"}, {"message": "m"}


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        pytest.param([], False, id="handed-over"),
        pytest.param([OTHER] * 9, False, id="failures-with-text"),
        pytest.param([OTHER, REFUSAL], True, id="refused"),
        pytest.param([REFUSAL, OTHER, OTHER], True, id="refused-long-ago"),
        pytest.param([OTHER, FAILURE], False, id="failed-once"),
        pytest.param([FAILURE, OTHER, FAILURE], True, id="failed-twice"),
        pytest.param([{"continued": "in a newer version's word"}] * 3, False, id="another-word"),
    ],
)
def test_what_a_server_does_not_continue_begins_anew_for_good(errors, expected):
    assert begins_anew(errors, is_last=False) is expected


@pytest.mark.parametrize(("errors", "expected"), [([OTHER] * 3, False), ([], False), ([OTHER, FAILURE], True)])
def test_the_last_attempt_continues_no_text_of_which_a_server_failed_once(errors, expected):
    assert begins_anew(errors, is_last=True) is expected
