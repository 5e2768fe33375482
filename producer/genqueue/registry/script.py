"""A call to Redis as a value, and the scripts of ``lua/``.

Pure: :mod:`genqueue.connection.store` carries calls out, synchronously or not.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Generic, NoReturn, TypeVar

from genqueue.errors import (
    QueueFullError,
    StoreError,
    UnknownGeneratorError,
)
from genqueue.registry import signatures
from genqueue.registry.declaring import Layout, Signature

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script, its name in ``lua/``, its keys and arguments, and the digest that Redis caches it by."""

    name: str
    source: str
    sha1: str
    layout: Layout


_LUA = files("genqueue.registry") / "lua"
_COMMON = (_LUA / "common.lua").read_text("utf-8")


def script_of(name: str, signature: type[Signature], body: str) -> Script:
    """The script of a body in Lua: behind the functions that all share, and the names of its keys and arguments."""
    layout = Layout(signature)
    source = _COMMON + layout.named(body)
    return Script(name, source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest(), layout)


# Read at import: at its first use, under full load, a process may have no file descriptor left to read one with.
_SCRIPTS = {
    name: script_of(name, getattr(signatures, name.capitalize()), file.read_text("utf-8"))
    for file in _LUA.iterdir()
    if (name := file.name.removesuffix(".lua")) not in ("common", file.name)
}


def script(name: str) -> Script:
    """The script ``lua/<name>.lua``."""
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
        """The script's name, or the command's: one of a few words."""
        return self.script.name if self.script is not None else str(self.arguments[0]).lower()


def scripted(parameters: Signature, decode: Callable[[Any], T_co]) -> Call[T_co]:
    """A call of the script that is declared by the class of ``parameters``."""
    called = script(type(parameters).__name__.lower())
    return Call(called.layout.words(parameters), decode, called)


def refuse(name: str, generator: str, words: list[str]) -> NoReturn:
    """Raise the error that a script's refusal stands for."""
    match words:
        case ["unknown", *known]:
            raise UnknownGeneratorError(generator, known)
        case ["full", depth, limit]:
            raise QueueFullError(generator, int(depth), int(limit))
    raise StoreError(f"{name}.lua answered {words!r}")
