"""A call to Redis as a value, and the scripts of ``lua/``.

Pure: :mod:`genqueue.connection.store` carries calls out, synchronously or not.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Generic, NoReturn, TypeVar

from genqueue.errors import (
    QueueFullError,
    StoreError,
    UnknownGeneratorError,
)

T_co = TypeVar("T_co", covariant=True)
Plain = str | bytes | int | float


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script, its name in ``lua/``, and the digest that Redis caches it by."""

    name: str
    source: str
    sha1: str


def _read_scripts() -> dict[str, Script]:
    """All scripts of ``lua/`` by name, each behind the functions that all share."""
    folder = files("genqueue.registry") / "lua"
    common = (folder / "common.lua").read_text("utf-8")
    sources = {
        file.name.removesuffix(".lua"): common + file.read_text("utf-8")
        for file in folder.iterdir()
        if file.name.endswith(".lua") and file.name != "common.lua"
    }
    return {
        name: Script(name, source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())
        for name, source in sources.items()
    }


# Read at import: at its first use, under full load, a process may have no file descriptor left to read one with.
_SCRIPTS = _read_scripts()


def script(name: str) -> Script:
    """The script ``lua/<name>.lua`` behind the functions that all share."""
    return _SCRIPTS[name]


@dataclass(frozen=True, slots=True)
class Call(Generic[T_co]):
    """One round trip: a command, or a script with its keys first in ``arguments``.

    No numbers among them: hiredis crashes the process when a signal's handler raises while it
    packs one (3.5.0, ``pack.c`` does not look whether ``PyObject_Repr`` failed).
    """

    arguments: Sequence[str | bytes]
    decode: Callable[[Any], T_co]
    script: Script | None = None

    @property
    def name(self) -> str:
        """What it does, in one word of few: the script's name, or the command's."""
        return self.script.name if self.script is not None else str(self.arguments[0]).lower()


def scripted(
    name: str, key_list: Sequence[str], arguments: Iterable[Plain], decode: Callable[[Any], T_co]
) -> Call[T_co]:
    """A call of a script: its keys, then its arguments."""
    words = [each if isinstance(each, str | bytes) else str(each) for each in arguments]
    return Call((str(len(key_list)), *key_list, *words), decode, script(name))


def refuse(name: str, generator: str, words: list[str]) -> NoReturn:
    """Raise what the words of a script mean that took nothing."""
    match words:
        case ["unknown", *known]:
            raise UnknownGeneratorError(generator, known)
        case ["full", depth, limit]:
            raise QueueFullError(generator, int(depth), int(limit))
    raise StoreError(f"{name}.lua answered {words!r}")
