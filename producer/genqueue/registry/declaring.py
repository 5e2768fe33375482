"""Declare a script's keys and arguments: in which order they are sent, and their names in Lua.

A declaration is a dataclass (:mod:`genqueue.registry.signatures`).  From its fields :class:`Layout` makes the
order on the wire, the preamble that gives each key and argument its name in the script, and the keys and channels
that the script may touch.  Pure.

A field is an argument, unless its type is marked as a :class:`Key`.  Its type says what the script gets:

``str``, ``bytes``         a string
``int``, ``float``         a number; a string for :data:`Spelled`
``… | None``               nil where a number is None, else ''; the last key is not sent where it is None
``bool``                   a boolean
``Sequence[str]``          a table; a string with commas for :data:`Joined`
``Sequence[a Row]``        the row's fields, one row after the other, in the loop ``while next_row() do``

At most one field holds rows.  A table of a row comes last in it, a table of the whole script last of all.
"""

import dataclasses
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from types import UnionType
from typing import Annotated, Any


class Signature:
    """The keys and arguments of a script, as fields."""

    __slots__ = ()


class Row:
    """Several keys and arguments that a script is given once for each of many."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Key:
    """Marks a key; ``pattern`` matches every one that it may be, and is the field's default where it is empty."""

    pattern: str = ""


@dataclass(frozen=True, slots=True)
class Channel:
    """Marks the name of a channel; ``pattern`` matches every one that it may be."""

    pattern: str


@dataclass(frozen=True, slots=True)
class Prefix:
    """Marks a prefix of keys, or of channels, behind which the script puts ids and names that it finds."""

    of: type[Key] | type[Channel]


Spelled = Annotated[int, "spelled"]
"""A whole number that the script gets as a string: to compare it with what a hash holds, to hand it on."""
Joined = Annotated[Sequence[str], "joined"]
"""Words that the script gets as one string with commas."""


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    type: Any
    marks: tuple[object, ...]
    default: Any
    may_be_none: bool

    @property
    def key(self) -> Key | None:
        return next((mark for mark in self.marks if isinstance(mark, Key)), None)

    @property
    def is_table(self) -> bool:
        return typing.get_origin(self.type) is Sequence and "joined" not in self.marks

    @property
    def row(self) -> type[Row] | None:
        """The class of its rows."""
        element = typing.get_args(self.type)[0] if self.is_table else None
        return element if isinstance(element, type) and issubclass(element, Row) else None

    def read_from(self, place: str) -> str:
        """The Lua that makes the field's type of the string that was sent."""
        if "spelled" not in self.marks and self.type in (int, float):
            return f"tonumber({place})"
        return f"{place} == '1'" if self.type is bool else place


def _fields_of(signature: type[Any]) -> list[_Field]:
    hints = typing.get_type_hints(signature, include_extras=True)
    fields = []
    for field in dataclasses.fields(signature):
        kind, marks, may_be_none = hints[field.name], list[object](), False
        while typing.get_origin(kind) in (Annotated, UnionType, typing.Union):
            if typing.get_origin(kind) is Annotated:
                kind, *more = typing.get_args(kind)
                marks += more
            else:  # of `str | bytes | None` the first: all are sent alike
                may_be_none |= type(None) in typing.get_args(kind)
                kind = typing.get_args(kind)[0]
        fields.append(_Field(field.name, kind, tuple(marks), field.default, may_be_none))
    return fields


def _getter(fields: Sequence[_Field]) -> Callable[[Any], tuple[Any, ...]]:
    """A function that reads those fields of a declaration, in their order."""
    names = [field.name for field in fields]
    match names:
        case []:
            return lambda parameters: ()
        case [name]:
            return lambda parameters: (getattr(parameters, name),)
    return attrgetter(*names)


def _word(value: Any) -> str:
    """A value that is neither a string nor a whole number, as it is sent."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "1" if value else "0"
    return str(value) if isinstance(value, float) else ",".join(value)


@dataclass(frozen=True, slots=True)
class _Part:
    """The keys and the arguments of a script, or of one of its rows, and the table at its end."""

    keys: Sequence[_Field]
    arguments: Sequence[_Field]
    table: _Field | None

    @classmethod
    def of(cls, signature: type[Any]) -> "_Part":
        fields = [field for field in _fields_of(signature) if field.row is None]
        tables = [field for field in fields if field.is_table and not field.key]
        if len(tables) > 1:
            raise TypeError(f"{signature.__name__}.{tables[1].name}: one table is all there may be")
        return cls(
            [field for field in fields if field.key],
            [field for field in fields if not field.key and field not in tables],
            tables[0] if tables else None,
        )

    @property
    def names(self) -> list[str]:
        fields = (*self.keys, *self.arguments, *((self.table,) if self.table else ()))
        return [field.name for field in fields]


class Layout:
    """One script's keys and arguments.

    Attributes:
        keys: the pattern of each key, by name.
        derived_keys: patterns of the keys that the script makes of a prefix.
        channels: patterns of the channels that it may publish to.
        names: of its locals.
    """

    def __init__(self, signature: type[Signature]) -> None:
        self._signature = signature
        self._head = head = _Part.of(signature)
        rows = [(field.name, field.row) for field in _fields_of(signature) if field.row]
        if len(rows) > 1:
            raise TypeError(f"{signature.__name__}.{rows[1][0]}: one field of rows is all there may be")
        self._rows = rows[0][0] if rows else None
        self._row = row = _Part.of(rows[0][1]) if rows else _Part((), (), None)
        for field in head.keys if rows else head.keys[:-1]:
            if field.may_be_none:
                raise TypeError(f"{signature.__name__}.{field.name}: only the last key may be None")
        if rows and head.table and (row.table or not row.keys):
            raise TypeError(f"{signature.__name__}.{head.table.name}: where the rows before it end cannot be told")
        self._keys, self._arguments = _getter(head.keys), _getter(head.arguments)
        self._row_keys, self._row_arguments = _getter(row.keys), _getter(row.arguments)
        self._table = attrgetter(head.table.name) if head.table else None
        self._row_table = attrgetter(row.table.name) if row.table else None
        self._row_list = attrgetter(self._rows) if self._rows else None

        self.names = [*head.names, *row.names]
        fields = (*head.keys, *head.arguments, *row.keys, *row.arguments)
        self.keys = {field.name: field.key.pattern or field.default for field in fields if field.key}
        prefixes = [(field, mark.of) for field in fields for mark in field.marks if isinstance(mark, Prefix)]
        self.derived_keys = {field.name: f"{field.default}*" for field, of in prefixes if of is Key}
        self.channels = {field.name: f"{field.default}*" for field, of in prefixes if of is Channel} | {
            field.name: mark.pattern for field in fields for mark in field.marks if isinstance(mark, Channel)
        }

    def words(self, parameters: Signature) -> tuple[str | bytes, ...]:
        """The words to send: how many keys there are, the keys, the arguments."""
        key_list: list[Any] = []
        for key in self._keys(parameters):
            if isinstance(key, str):
                key_list.append(key)
            elif key is not None:
                key_list += key
        values: list[Any] = [*self._arguments(parameters)]
        if self._row_list is not None:
            for row in self._row_list(parameters):
                key_list += self._row_keys(row)
                values += self._row_arguments(row)
                if self._row_table is not None:
                    table = self._row_table(row)
                    values.append(len(table))
                    values += table
        if self._table is not None:
            values += self._table(parameters)
        string = (str, bytes)  # a union would be made anew for each
        sent = [one if isinstance(one, string) else str(one) if type(one) is int else _word(one) for one in values]
        return (str(len(key_list)), *key_list, *sent)

    def named(self, body: str) -> str:
        """A script's body in Lua behind its names, and with those of a row in the loop ``while next_row() do``."""
        head, row = self._head, self._row
        lines = [f"-- As signatures.{self._signature.__name__} declares it.", "local KEYS, ARGV = KEYS, ARGV"]
        single_keys = [field for field in head.keys if not field.is_table]
        lines += _named(single_keys, "KEYS", "")
        lines += [f"local {field.name} = rest(KEYS, {len(single_keys) + 1})" for field in head.keys if field.is_table]
        lines += _named(head.arguments, "ARGV", "")
        first = f"{len(head.arguments) + 1}"
        if self._rows is not None:
            lines.append(
                f"local row_key, row_argument = {len(head.keys)}, {len(head.arguments)} -- before the next row"
            )
            body = body.replace("while next_row() do", "\n  ".join(self._loop_of_rows()))
            first += f" + (#KEYS - {len(head.keys)}) / {len(row.keys) or 1} * {len(row.arguments)}"
        if head.table is not None:
            lines.append(f"local {head.table.name} = rest(ARGV, {first})")
        return "\n".join([*lines, body])

    def _loop_of_rows(self) -> Iterator[str]:
        # No function that gives names outside of the loop their values: it took a twentieth of an append's time.
        row = self._row
        yield f"while {'row_key < #KEYS' if row.keys else 'row_argument < #ARGV'} do"
        yield from _named(row.keys, "KEYS", "row_key + ")
        yield from _named(row.arguments, "ARGV", "row_argument + ")
        yield f"row_key, row_argument = row_key + {len(row.keys)}, row_argument + {len(row.arguments)}"
        if row.table is not None:
            table = row.table.name
            yield "row_argument = row_argument + 1"
            yield f"local {table} = {{}}"
            yield f"for index = 1, tonumber(ARGV[row_argument]) do {table}[index] = ARGV[row_argument + index] end"
            yield f"row_argument = row_argument + #{table}"


def _named(fields: Sequence[_Field], words: str, before: str) -> Iterator[str]:
    """Give fields their names, in one statement."""
    if fields:
        values = [field.read_from(f"{words}[{before}{number}]") for number, field in enumerate(fields, 1)]
        yield f"local {', '.join(field.name for field in fields)} = {', '.join(values)}"
