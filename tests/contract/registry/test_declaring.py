"""A script sees its keys and arguments under the names, and as the types, that it declares."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import pytest

from genqueue.registry.declaring import Joined, Key, Row, Signature, Spelled
from genqueue.registry.script import Call, script_of


@dataclass(kw_only=True, slots=True)
class PieceRow(Row):
    """One of many."""

    piece: Annotated[str, Key("piece:*")]
    size: int
    parts: Sequence[bytes]


@dataclass(kw_only=True, slots=True)
class Every(Signature):
    """A field of each type."""

    whole: int
    own: Annotated[str, Key("own")]
    spelled: Spelled
    none: Spelled | None
    nothing: int | None
    half: float
    yes: bool
    no: bool
    words: Joined
    raw: bytes
    pieces: Sequence[PieceRow]


@dataclass(kw_only=True, slots=True)
class PairRow(Row):
    """A key and two arguments."""

    piece: Annotated[str, Key("piece:*")]
    one: int
    other: str


@dataclass(kw_only=True, slots=True)
class Lists(Signature):
    """Tables of keys and arguments, and rows between them."""

    first: Annotated[str, Key("first")]
    head: str
    pairs: Sequence[PairRow]
    behind: Sequence[str]


@dataclass(kw_only=True, slots=True)
class Tables(Signature):
    """Tables alone."""

    listed: Annotated[Sequence[str], Key("listed:*")]
    words: Sequence[str]


@dataclass(kw_only=True, slots=True)
class WordRow(Row):
    """Arguments alone."""

    one: int
    other: str


@dataclass(kw_only=True, slots=True)
class Words(Signature):
    """Rows without a key."""

    rows: Sequence[WordRow]


@dataclass(kw_only=True, slots=True)
class Optional(Signature):
    """A key that may be missing."""

    own: Annotated[str, Key("own")]
    maybe: Annotated[str, Key("maybe")] | None
    word: str


def shown(registry, signature, names, of_a_row=""):
    """What a script sees under each name as JSON has it, and under those of each of its rows."""
    rows = f"while next_row() do rows[#rows + 1] = {of_a_row} end" if of_a_row else ""
    body = f"local rows = {{}} {rows} return cjson.encode({names})"
    script = script_of("shown", type(signature), body)
    return registry.run(Call(script.layout.words(signature), lambda answer: answer.decode(), script))


def every(**fields):
    given = {"whole": 7, "own": "own", "spelled": 8, "none": None, "nothing": None, "half": 0.5, "yes": True}
    return Every(**given, no=False, words=["a", "b"], raw=b"raw", **{"pieces": (), **fields})


def test_a_script_sees_each_field_as_its_type_says(registry):
    names = "{whole, own, spelled, none, tostring(nothing), half, yes, no, words, raw, #rows}"
    assert shown(registry, every(), names, "{piece}") == '[7,"own","8","","nil",0.5,true,false,"a,b","raw",0]'


def test_a_script_goes_through_its_rows(registry):
    pieces = [PieceRow(piece=f"piece:{size}", size=size, parts=[b"part"] * size) for size in (2, 0, 1)]
    assert shown(registry, every(pieces=pieces), "rows", "{piece, size, #parts, parts[1]}") == (
        '[["piece:2",2,2,"part"],["piece:0",0,0],["piece:1",1,1,"part"]]'
    )


@pytest.mark.parametrize(("maybe", "seen"), [(None, "nil"), ("maybe", "maybe")])
def test_a_key_that_is_not_given_is_nil(registry, maybe, seen):
    assert shown(registry, Optional(own="own", maybe=maybe, word="a"), "{tostring(maybe), word}") == f'["{seen}","a"]'


def test_a_table_stands_behind_the_rows(registry):
    pairs = [PairRow(piece=f"piece:{number}", one=number, other="x") for number in (1, 2)]
    lists = Lists(first="first", head="head", pairs=pairs, behind=["a", "b"])
    assert shown(registry, lists, "{head, behind, rows}", "{piece, one}") == (
        '["head",["a","b"],[["piece:1",1],["piece:2",2]]]'
    )


def test_tables_of_keys_and_arguments_are_whole(registry):
    tables = Tables(listed=["listed:1", "listed:2"], words=["a"])
    assert shown(registry, tables, "{listed, words}") == '[["listed:1","listed:2"],["a"]]'


def test_rows_need_no_key(registry):
    rows = [WordRow(one=1, other="a"), WordRow(one=2, other="b")]
    assert shown(registry, Words(rows=rows), "rows", "{one, other}") == '[[1,"a"],[2,"b"]]'
