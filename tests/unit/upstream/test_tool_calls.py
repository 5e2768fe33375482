"""Which piece belongs to which call, in the dialects of those who stream them."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genqueue.wire.events import join_tool_calls
from genqueue_worker.upstream.engines.tool_calls import ToolCalls, made_up_id, read_piece

F, G = ("f", '{"x":1}'), ("g", '{"x":2}')


def tc(arguments=None, name=None, **signs):
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    return {**signs, "type": "function", "function": function}


def taken(pieces, offered=(), *, is_cut=False):
    """(the calls, their pieces as readers get them)."""
    numbers = itertools.count(1)
    calls = ToolCalls(offered, lambda: f"made-{next(numbers)}")
    deltas = [calls.take(read_piece(piece)) for piece in pieces]
    return calls, [*deltas, *calls.close(is_cut=is_cut)]


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        pytest.param([tc("", "f", index=0, id="a"), tc('{"x":', index=0), tc("1}", index=0)], [F], id="openai"),
        pytest.param(
            [
                tc("", "f", index=0, id="a"),
                tc("", "g", index=1, id="b"),
                tc('{"x":1}', index=0),
                tc('{"x":2}', index=1),
            ],
            [F, G],
            id="interleaved",
        ),
        pytest.param(
            [
                tc("", "f", index=0, id="a"),
                tc('{"x":', index=0),
                tc("", "g", index=1, id="b"),
                tc('{"x":', index=1),
                tc("1}", index=0),
                tc("2}", index=1),
            ],
            [F, G],
            id="interleaved-in-the-middle",
        ),
        pytest.param(
            [
                tc("", "g", index=1, id="b"),
                tc("", "f", index=0, id="a"),
                tc('{"x":2}', index=1),
                tc('{"x":1}', index=0),
            ],
            [F, G],
            id="the-second-first",
        ),
        pytest.param(
            [tc("", "f", id="a"), tc("", "f", id="b"), tc('{"x":1}', id="a"), tc('{"x":2}', id="b")],
            [F, ("f", '{"x":2}')],
            id="interleaved-by-id",
        ),
        pytest.param(
            [tc('{"x":1}', "f", index=0, id="a"), tc("", "g", index=0, id="b"), tc('{"x":2}', index=1)],
            [F, G],
            id="head-0-tail-1",
        ),
        pytest.param([tc('{"x":1}', "f"), tc('{"x":2}', "g")], [F, G], id="no-index-no-id"),
        pytest.param([tc('{"x":1}', "f"), tc('{"x":1}', "f")], [F, F], id="twice-the-same-without-signs"),
        pytest.param([tc("{}", "f"), tc("{}", "f")], [("f", "{}")] * 2, id="twice-without-arguments"),
        pytest.param([tc('{"x":1}', "f", index=0), tc('{"x":2}', "g", index=0)], [F, G], id="same-index-no-id"),
        pytest.param(
            [tc("", "f", index=0), tc('{"x":1}', index=0), tc("", "f", index=0), tc('{"x":2}', index=0)],
            [F, ("f", '{"x":2}')],
            id="same-index-no-id-same-tool-in-pieces",
        ),
        pytest.param(
            [tc("", "f", index=0), tc('{"x":1}', "f", index=0), tc("", "f", index=0)], [F], id="name-again-at-the-end"
        ),
        pytest.param(
            [tc('{"x":1}', "f", index=0, id=None), tc('{"x":2}', "g", index=1, id="")], [F, G], id="null-and-empty-ids"
        ),
        pytest.param([tc("", "f", id="a"), tc('{"x":', id="a"), tc("1}", id="a")], [F], id="id-in-every-piece"),
        pytest.param(
            [tc("", "f", index=0, id="a"), tc('{"x":', "f", index=0, id="a"), tc("1}", "f", index=0, id="a")],
            [F],
            id="all-in-every-piece",
        ),
        pytest.param(
            [tc("", "f", index=0, id="a1"), tc('{"x":', "f", index=0, id="a2"), tc("1}", "f", index=0, id="a3")],
            [F],
            id="a-new-id-and-the-name-in-every-piece",
        ),
        pytest.param(
            [tc("", "f", index=0, id="a1"), tc('{"x":', index=0, id="a2"), tc("1}", index=0, id="a3")],
            [F],
            id="a-new-id-in-every-piece",
        ),
        pytest.param([tc("", "f", index=0), tc('{"x":1}', index=0, id="late")], [F], id="the-id-comes-late"),
        pytest.param(
            [tc("", "f", index=0, id="a"), tc('{"x":', index=1), tc("1}", index=2)],
            [F],
            id="arguments-at-other-indexes",
        ),
        pytest.param(
            [tc("", "f", index=0, id="a"), tc('{"x":1}', index=0, id="a"), tc('{"x":1}', "f", index=1, id="a")],
            [F],
            id="one-call-at-two-indexes",
        ),
        pytest.param(
            [tc('{"x":1}', "f", index=0, id="a"), tc('{"x": 1}', "f", index=0, id="a")],
            [F],
            id="whole-again-at-the-end",
        ),
        pytest.param(
            [tc('{"x":1}', "f", index=0, id="0"), tc('{"x":2}', "g", index=1, id="0")], [F, G], id="the-same-id-for-all"
        ),
        pytest.param(
            [tc('{"x":1}', "f", index=0, id="0"), tc("", "f", index=1, id="0"), tc('{"x":2}', index=1)],
            [F, ("f", '{"x":2}')],
            id="the-same-id-for-all-and-the-same-tool",
        ),
        pytest.param([tc("", "get_", index=0, id="a"), tc("{}", "time", index=0)], [("get_time", "{}")], id="name-cut"),
        pytest.param(
            [tc("", "get_", index=0, id="a"), tc("{}", "get_time", index=0)], [("get_time", "{}")], id="name-so-far"
        ),
        pytest.param([tc('{"x":1}', "f", index="0", id="a")], [F], id="index-as-text"),
        pytest.param([{"name": "f", "arguments": '{"x":'}, {"arguments": "1}"}], [F], id="function_call"),
        pytest.param([tc({"x": 1}, "f", id="a")], [F], id="ollama-arguments-as-an-object"),
        pytest.param([{"id": "a", "function": {"name": "f", "parameters": {"x": 1}}}], [F], id="parameters"),
        pytest.param([{"id": "a", "type": "tool_use", "name": "f", "input": {"x": 1}}], [F], id="anthropics-input"),
        pytest.param([{"function": {"name": "f", "args": {"x": 1}}}], [F], id="googles-args"),
        pytest.param(
            [{"function": {"name": "f", "arguments": '{"x":1}', "parameters": {"type": "object"}}}],
            [F],
            id="arguments-beside-a-schema",
        ),
        pytest.param([tc({"x": 1}, "f", id=7), tc({"x": 2}, "g", id=8)], [F, G], id="ids-that-are-numbers"),
        pytest.param(
            [tc("{", "f", index=0, id="a"), tc('{"x":', index=0), tc('{"x":1}', index=0)], [F], id="arguments-so-far"
        ),
        pytest.param(
            [tc('{"x":[', "f", index=0, id="a"), tc('{"x":[1]}', index=0), tc("]}", index=0)],
            [("f", '{"x":[{"x":[1]}]}')],
            id="arguments-that-hold-their-own-beginning",
        ),
        pytest.param(
            [tc('{"x":"}\\', "f", index=0, id="a"), tc('"{"}', index=0), tc("{}", "g", index=0)],
            [("f", '{"x":"}\\"{"}'), ("g", "{}")],
            id="brackets-in-a-text",
        ),
        pytest.param(
            [tc('{"x":1}', "f", index=0, id="a"), tc(" ", index=0), tc("\n", "f", index=0, id="a")],
            [("f", '{"x":1} \n')],
            id="white-space-behind",
        ),
        pytest.param(
            [tc(None, "f", index=0, id="a"), tc(None, "g", index=1, id="b")], [("f", "{}"), ("g", "{}")], id="none"
        ),
        pytest.param([tc('{"x":1}', index=0, id="a"), tc("", "f", index=0)], [F], id="the-name-comes-last"),
        pytest.param([{"index": 0}, tc('{"x":1}', "f", index=0, id="a")], [F], id="an-empty-piece-first"),
        pytest.param(
            [tc('{"x":', "f", id="a"), tc('{"x":2}', "g", id="b")], [("f", '{"x":'), G], id="one-that-broke-off"
        ),
        pytest.param(
            [tc('{"x":1}', "f", index=0, id="a"), tc('{"x"', index=0), tc(": 1", index=0), tc("}", index=0)],
            [F],
            id="whole-and-then-in-pieces",
        ),
        pytest.param(
            [tc('{"x":1}', "f", index=0, id="a"), tc('{"x":', index=0)], [F], id="whole-and-then-half-of-it-again"
        ),
        pytest.param(
            [tc('{"x":1}', "f", index=0, id="a"), tc('{"x"', index=0), tc(":2}", index=0)],
            [("f", '{"x":1}{"x":2}')],
            id="whole-and-then-something-else",
        ),
    ],
)
def test_pieces_are_joined_by_all_that_tells_calls_apart(pieces, expected):
    calls, deltas = taken(pieces)
    assert [(call["function"]["name"], call["function"]["arguments"]) for call in calls.joined()] == expected
    assert join_tool_calls(deltas) == calls.joined()  # a reader's
    ids = [call["id"] for call in calls.joined()]
    assert all(ids) and len(set(ids)) == len(ids)


EMPTY = ["{}", " { } ", "[]", "null", '""', {}, []]


@pytest.mark.parametrize("opening", EMPTY, ids=str)
@pytest.mark.parametrize(
    "signs",
    [
        pytest.param([{"index": 0}] * 2, id="index"),
        pytest.param([{"index": 0, "id": "a"}] * 2, id="index-and-id"),
        pytest.param([{"id": "a"}] * 2, id="id"),
        pytest.param([{}, {}], id="no-sign"),
        pytest.param([{"name": "f", "id": "a"}] * 2, id="id-and-name"),
        pytest.param([{"index": 0, "id": "a", "name": "f"}] * 2, id="all-in-every-piece"),
        pytest.param([{"index": 0, "name": "f"}] * 2, id="index-and-name"),
        pytest.param([{"index": 0, "id": "a2"}, {"index": 0, "id": "a3"}], id="new-ids"),
        pytest.param([{"index": 1}, {"index": 2}], id="other-indexes"),
        pytest.param([{"index": 0, "id": ""}] * 2, id="empty-id"),
    ],
)
@pytest.mark.parametrize(
    "arguments", [['{"x":', "1}"], ["", '{"x":', "1}"], [" ", "{", '"x":1}'], ['{"x":1}']], ids="-".join
)
def test_a_call_that_opens_with_empty_arguments_has_those_that_follow(opening, signs, arguments):
    if signs[0].keys() == {"index", "name"} and arguments[0] in {"", '{"x":1}'}:
        return  # another call, by a server that names each and has all at one index
    pieces = [tc(opening, "f", **{"index": 0, "id": "a"} if "index" in signs[0] else {"id": "a"})]
    if "index" in signs[0] and "id" not in signs[0]:
        pieces = [tc(opening, "f", index=0)]
    pieces += [tc(piece, **signs[0 if number == 0 else 1]) for number, piece in enumerate(arguments)]
    calls, deltas = taken(pieces)
    assert [call["function"] for call in calls.joined()] == [{"name": "f", "arguments": "".join(arguments).strip()}]
    assert join_tool_calls(deltas) == calls.joined()


@pytest.mark.parametrize(
    ("opening", "arguments"),
    [("{}", "{}"), (" {}", " {}"), ("null", "{}"), ({}, "{}"), ("[]", "[]"), ('""', '""'), (None, "{}"), ("", "{}")],
)
def test_empty_arguments_that_none_follow_are_all_of_them(opening, arguments):
    calls, deltas = taken([tc(opening, "f", index=0, id="a"), tc('{"x":2}', "g", index=1, id="b")])
    assert [call["function"]["arguments"] for call in calls.joined()] == [arguments, '{"x":2}']
    assert calls.unreadable == ([] if arguments.strip() == "{}" else [0])
    assert join_tool_calls(deltas) == calls.joined()


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        pytest.param(
            [
                tc("{}", "f", index=0, id="a"),
                tc("{}", "g", index=1, id="b"),
                tc('{"x":', index=0),
                tc('{"x":', index=1),
                tc("1}", index=0),
                tc("2}", index=1),
            ],
            [F, G],
            id="two-interleaved",
        ),
        pytest.param(
            [tc("{}", "f", index=0, id="a"), tc("", "f", index=0, id="a"), tc('{"x":1}', index=0, id="a")],
            [F],
            id="the-name-between",
        ),
        pytest.param([tc("{}", "f", index=0), tc('{"x":1}', "f", index=0)], [("f", "{}"), F], id="whole-at-one-index"),
        pytest.param([tc("{}", "f"), tc('{"x":1}', "f")], [("f", "{}"), F], id="whole-without-signs"),
        pytest.param([tc("{}", "f", id="a"), tc('{"x":1}', "f", id="b")], [("f", "{}"), F], id="another-id"),
        pytest.param([tc("{}", "f", index=0, id="0"), tc('{"x":2}', "g", index=1, id="0")], [("f", "{}"), G], id="g"),
        pytest.param([tc("{}", "f", index=0, id="0"), tc('{"x":1}', "f", index=1, id="0")], [("f", "{}"), F], id="f"),
        pytest.param([tc("{}", index=0), tc('{"x":1}', "f", index=0)], [F], id="the-name-comes-later"),
        pytest.param([tc("{}", "f", index=0, id="a"), tc("{}", index=0), tc('{"x":1}', index=0)], [F], id="twice"),
        pytest.param([tc("", "f", index=0, id="a"), tc("null", index=0), tc('{"x":1}', index=0)], [F], id="second"),
    ],
)
def test_an_empty_opening_beside_other_calls(pieces, expected):
    calls, deltas = taken(pieces)
    assert [(call["function"]["name"], call["function"]["arguments"]) for call in calls.joined()] == expected
    assert join_tool_calls(deltas) == calls.joined()


def ct(said=None, name=None, **signs):
    custom = {key: value for key, value in (("name", name), ("input", said)) if value is not None}
    return {**signs, "type": "custom", "custom": custom}


TEXTS = [("sql", "select {1}"), ("sql", "{}")]


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        pytest.param([ct("select {1}", "sql", index=0, id="a")], TEXTS[:1], id="whole"),
        pytest.param([ct("", "sql", index=0, id="a"), ct("sel", index=0), ct("ect {1}", index=0)], TEXTS[:1], id="cut"),
        pytest.param(
            [ct("sel", "sql", index=0, id="a"), {"index": 0, "custom": {"input": "ect {1}"}}], TEXTS[:1], id="no-type"
        ),
        pytest.param(
            [ct("sel", "sql", index=0, id="a"), ct("ect {1}", "sql", index=0, id="a")], TEXTS[:1], id="all-signs"
        ),
        pytest.param([ct("select {1}", "sql", id="a"), ct("{}", "sql", id="b")], TEXTS, id="two-by-id"),
        pytest.param([ct("select {1}", "sql", index=0), ct("{}", "sql", index=1)], TEXTS, id="two-by-index"),
        pytest.param([ct("select {1}", "sql"), ct("{}", "sql")], TEXTS, id="two-without-signs"),
        pytest.param(
            [ct("select {1}", "sql", index=0, id="0"), ct("{}", "sql", index=1, id="0")], TEXTS, id="two-of-one-id"
        ),
        pytest.param(
            [ct("", "sql", index=0), ct("", "sql", index=1), ct("{}", index=1), ct("select {1}", index=0)],
            TEXTS,
            id="interleaved",
        ),
        pytest.param([ct("ha", "sql", index=0, id="a"), ct("ha", index=0)], [("sql", "haha")], id="the-same-again"),
        pytest.param([ct("{}", "sql", index=0, id="a"), ct("{1}", index=0)], [("sql", "{}{1}")], id="begins-as-empty"),
        pytest.param([ct(None, "sql", index=0, id="a")], [("sql", "")], id="no-input"),
        pytest.param([{"type": "custom", "id": "a", "name": "sql", "input": "{}"}], TEXTS[1:], id="flat"),
    ],
)
def test_a_custom_tools_call_is_kept_whole(pieces, expected):
    calls, deltas = taken([tc('{"x":1}', "f", index=7, id="first"), *pieces])
    first, *custom = sorted(calls.joined(), key=lambda call: call["type"] == "custom")
    assert first["function"] == {"name": "f", "arguments": '{"x":1}'}
    assert [(call["type"], call["custom"]) for call in custom] == [
        ("custom", {"name": name, "input": said}) for name, said in expected
    ]
    assert (calls.unreadable, all(call["id"] for call in custom)) == ([], True)
    streamed = join_tool_calls(deltas, range(100))
    assert [call["custom"] for call in streamed] == [call.get("custom") or as_custom(call) for call in calls.joined()]


def as_custom(call):
    return {"name": call["function"]["name"], "input": call["function"]["arguments"]}


def in_turns(*calls):
    """The pieces of several calls, one of each in turn."""
    return [piece for turn in itertools.zip_longest(*calls) for piece in turn if piece is not None]


@pytest.mark.parametrize("sign", ["every-piece", "first-piece"])
@pytest.mark.parametrize("is_named", [False, True], ids=["named-once", "named-always"])
@pytest.mark.parametrize("other", ["f", "g"])
@pytest.mark.parametrize("opening", ["", "{"], ids=["no-arguments", "arguments"])
def test_one_id_at_two_indexes_is_two_calls_though_they_are_interleaved(sign, is_named, other, opening):
    """As TGI once gave every call the id 0."""

    def call(index, name, value):
        rest = ['{"x":', value + "}"] if not opening else ['"x":', value + "}"]
        signs = {"index": index, **({"id": "0"} if sign == "every-piece" else {})}
        return [
            tc(opening, name, index=index, id="0"),
            *(tc(piece, name if is_named else None, **signs) for piece in rest),
        ]

    calls, deltas = taken(in_turns(call(0, "f", "1"), call(1, other, "2")))
    told = [(call["function"]["name"], call["function"]["arguments"]) for call in calls.joined()]
    assert told == [F, (other, '{"x":2}')]
    assert join_tool_calls(deltas) == calls.joined()
    assert [call["id"] for call in calls.joined()] == ["0", "made-1"]


@pytest.mark.parametrize(
    "pieces",
    [
        [tc("", "f", index=0, id="a"), tc('{"x":', index=1, id="a"), tc("1}", index=0, id="a")],
        [tc("", "f", index=0, id="a"), tc('{"x":', "f", index=1, id="a"), tc("1}", "f", index=2, id="a")],
        [tc('{"x":', "f", index=0, id="a"), tc("1}", "f", index=1, id="a")],
        [tc("{", "f", index=0, id="a"), tc('{"x":', "f", index=1, id="a"), tc('{"x":1}', "f", index=0, id="a")],
    ],
)
def test_one_id_at_two_indexes_is_one_call_where_one_goes_on_with_the_other(pieces):
    calls, _ = taken(pieces)
    assert [(call["function"]["name"], call["function"]["arguments"]) for call in calls.joined()] == [F]


@pytest.mark.parametrize(
    ("pieces", "names"),
    [
        pytest.param([tc("", "f"), tc("", "g")], ["f", "g"], id="two-tools"),
        pytest.param([tc("", "get_"), tc("", "time")], ["get_time"], id="a-name-that-is-cut"),
        pytest.param([tc("", "get"), tc("", "get_time")], ["get", "get_time"], id="a-tool-whose-name-begins-another"),
        pytest.param([tc("", "get", id="a"), tc("{}", "get", id="a")], ["get"], id="a-name-in-every-piece"),
        pytest.param([tc("", "no_"), tc("", "such")], ["no_such"], id="none-of-them"),
    ],
)
def test_the_tools_that_were_offered_tell_names_apart(pieces, names):
    calls, _ = taken(pieces, {"f", "g", "get", "get_time"})
    assert [call["function"]["name"] for call in calls.joined()] == names


def test_the_servers_own_id_stays_whole_and_one_is_made_up_where_there_is_none():
    long_id = "call_1__thought__" + "A" * 4000
    whole = '{"x":1}'
    calls, deltas = taken([tc(whole, "f", id=long_id), tc(whole, "g"), tc(whole, "h", id=long_id)])
    assert [call["id"] for call in calls.joined()] == [long_id, "made-1", "made-2"]
    assert [delta.id for delta in deltas] == [long_id, None, None, "made-1", "made-2"]


def test_a_made_up_id_is_one_that_mistrals_templates_take():
    made = {made_up_id() for _ in range(1000)}
    assert len(made) == 1000
    assert all(len(call_id) == 9 and call_id.isascii() and call_id.isalnum() for call_id in made)


@pytest.mark.parametrize(
    ("arguments", "is_unreadable"),
    [('{"x":1}', False), ("{}", False), ("", False), ('{"x":', True), ("[1]", True), ('"x"', True), ("x", True)],
)
def test_arguments_that_are_no_object_are_told(arguments, is_unreadable):
    calls, _ = taken([tc("{}", "f", id="a"), tc(arguments, "g", id="b")])
    assert calls.unreadable == ([1] if is_unreadable else [])


def test_arguments_that_a_limit_cut_off_stay_cut():
    calls, deltas = taken([tc("", "f", id="a")], is_cut=True)
    assert [call["function"]["arguments"] for call in calls.joined()] == [""]
    assert (calls.is_cut, len(deltas)) == (True, 1)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"index": -1}, (None, "", "")),
        ({"index": 10**30}, (None, "", "")),
        ({"index": "first"}, (None, "", "")),
        ({"index": 0.5}, (None, "", "")),
        ({"index": True}, (None, "", "")),
        ({"index": [0]}, (None, "", "")),
        ({"index": 1.0}, (1, "", "")),
        ({"index": "1"}, (1, "", "")),
        ({"id": ["a"]}, (None, "", "")),
        ({"id": 7}, (None, "7", "")),
        ({"function": {"name": 5}}, (None, "", "")),
        ({"function": "f", "arguments": "{}"}, (None, "", "f")),
    ],
    ids=str,
)
def test_a_sign_that_is_none_is_not_said(said, expected):
    assert read_piece(said)[:3] == expected


def test_what_calls_nothing_is_no_piece():
    with pytest.raises(TypeError, match="a tool call's function is list"):
        read_piece({"function": ["f"]})


SIGNS = st.fixed_dictionaries(
    {},
    optional={
        "index": st.sampled_from([0, 1, 2, None, "1", -1, 0.5]),
        "id": st.sampled_from(["a", "b", "", None]),
        "name": st.sampled_from(["f", "g", "fg", ""]),
        "arguments": st.sampled_from(["", "{", "}", '{"x":1}', '{"x":', "1}", " ", '"', "\\", "{}", "\ud83d", "[1]"]),
    },
)


@given(st.lists(SIGNS, max_size=12))
def test_whatever_comes_readers_and_the_result_have_the_same_calls(pieces):
    """And no piece is lost without a reason: each belongs to one call."""
    calls, deltas = taken(pieces, {"f", "g"})
    named = [call for call in join_tool_calls(deltas) if call["function"]["name"]]
    assert named == calls.joined()
    ids = [call["id"] for call in named]
    assert all(ids) and len(set(ids)) == len(ids)
    json.dumps(calls.joined()).encode()
