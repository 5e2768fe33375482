"""How a declaration is sent, and how its names are read in Lua; that both agree is tests/contract's."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import pytest

from genqueue.registry.declaring import Channel, Joined, Key, Layout, Prefix, Row, Signature, Spelled
from genqueue.registry.lifecycle import State


@dataclass(kw_only=True, slots=True)
class ItemRow(Row):
    """One of many."""

    item: Annotated[str, Key("item:*")]
    size: int
    parts: Sequence[bytes]


@dataclass(kw_only=True, slots=True)
class Example(Signature):
    """Fields in a mixed order."""

    count: int
    all: Annotated[str, Key()] = "all"
    own: Annotated[str, Key("own:*")]
    prefix: Annotated[str, Prefix(Key)] = "item:"
    heard: Annotated[str, Prefix(Channel)] = "heard:"
    told: Annotated[str, Channel("told:*")]
    attempt: Spelled | None
    limit: int | None
    after_s: float
    is_first: bool
    states: Joined = tuple(State)
    items: Sequence[ItemRow]


def example(**fields):
    given = {"count": 3, "own": "own:1", "told": "told:1", "attempt": 2, "limit": None, "after_s": 0.5}
    return Example(**{**given, "is_first": True, "items": (), **fields})


def test_keys_are_sent_before_arguments_and_each_in_the_order_of_the_fields():
    assert Layout(Example).words(example()) == (
        *("2", "all", "own:1"),
        *("3", "item:", "heard:", "told:1", "2", "", "0.5", "1", "queued,running,finished,failed,cancelled"),
    )


def test_none_is_sent_as_nothing_and_a_boolean_as_a_digit():
    words = Layout(Example).words(example(attempt=None, is_first=False, states=()))
    assert words[7:] == ("", "", "0.5", "0", "")


def test_rows_follow_with_their_keys_behind_all_others_and_each_with_the_size_of_its_table():
    rows = [ItemRow(item="item:1", size=7, parts=[b"a", b"b"]), ItemRow(item="item:2", size=8, parts=[])]
    words = Layout(Example).words(example(items=rows))
    assert words[:5] == ("4", "all", "own:1", "item:1", "item:2")
    assert words[14:] == ("7", "2", b"a", b"b", "8", "0")


def test_a_layout_knows_what_its_script_may_touch():
    layout = Layout(Example)
    assert layout.keys == {"all": "all", "own": "own:*", "item": "item:*"}
    assert layout.derived_keys == {"prefix": "item:*"}
    assert layout.channels == {"heard": "heard:*", "told": "told:*"}


@dataclass(kw_only=True, slots=True)
class Tables(Signature):
    """Tables of keys and of arguments."""

    listed: Annotated[Sequence[str], Key("listed:*")]
    first: str
    words: Sequence[str]


def test_tables_come_last():
    assert Layout(Tables).words(Tables(listed=["listed:1", "listed:2"], first="a", words=["b", "c"])) == (
        *("2", "listed:1", "listed:2"),
        *("a", "b", "c"),
    )


@dataclass(kw_only=True, slots=True)
class Optional(Signature):
    """A key that may be missing."""

    first: Annotated[str, Key("first")]
    maybe: Annotated[str, Key("maybe")] | None


@dataclass(kw_only=True, slots=True)
class OptionalFirst(Signature):
    """Another behind it."""

    maybe: Annotated[str, Key("maybe")] | None
    last: Annotated[str, Key("last")]


@dataclass(kw_only=True, slots=True)
class OptionalBeforeRows(Optional):
    """Those of rows behind it."""

    items: Sequence[ItemRow]


def test_a_key_that_is_none_is_not_sent():
    assert Layout(Optional).words(Optional(first="first", maybe="maybe")) == ("2", "first", "maybe")
    assert Layout(Optional).words(Optional(first="first", maybe=None)) == ("1", "first")


@pytest.mark.parametrize("signature", [OptionalFirst, OptionalBeforeRows])
def test_only_the_last_key_may_be_missing(signature):
    with pytest.raises(TypeError, match="maybe: only the last key may be None"):
        Layout(signature)


@dataclass(kw_only=True, slots=True)
class WordRow(Row):
    """An argument alone."""

    word: str


@dataclass(kw_only=True, slots=True)
class TableBehindTables(Signature):
    """Its rows have a table each."""

    items: Sequence[ItemRow]
    words: Sequence[str]


@dataclass(kw_only=True, slots=True)
class TableBehindWords(Signature):
    """Its rows have no key, which would say how many there are."""

    rows: Sequence[WordRow]
    words: Sequence[str]


@pytest.mark.parametrize("signature", [TableBehindTables, TableBehindWords])
def test_a_table_stands_only_behind_rows_whose_end_is_known(signature):
    with pytest.raises(TypeError, match="words: where the rows before it end cannot be told"):
        Layout(signature)


@dataclass(kw_only=True, slots=True)
class TwoTables(Signature):
    """Nobody could tell where the first ends."""

    words: Sequence[str]
    more: Sequence[str]


@dataclass(kw_only=True, slots=True)
class TwoRows(Signature):
    """Nobody could tell whose a key is."""

    items: Sequence[ItemRow]
    more: Sequence[WordRow]


@pytest.mark.parametrize("signature", [TwoTables, TwoRows])
def test_there_is_one_table_and_one_field_of_rows(signature):
    with pytest.raises(TypeError, match="more: one"):
        Layout(signature)
