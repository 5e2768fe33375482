"""What a model server says of its answer, in the types that readers and results must have.

Pure.  JSON can hold anything in any place.  What is not of its type is left out where a result can do without it,
and is a TypeError, and so the end of the call, where it cannot.
"""

from collections.abc import Iterable
from typing import Any

from genqueue.messages import Token

GIVEN_UP = frozenset({"error", "abort"})
"""Each a ``finish_reason`` of vLLM, SGLang and providers that is no end: the server failed, or stopped what it ran.

TGI has no such word, and whatever other word a server has is an end.
"""
_MOST_INTEGER = 2**53 - 1
"""The largest that every reader of JSON has exactly."""
_MOST_WORD_CHARACTERS = 200
_MOST_NUMBER = 1e300


def integer(value: object, most: int = _MOST_INTEGER) -> int | None:
    """``value`` if it is an integer from 0 to ``most``."""
    return value if type(value) is int and 0 <= value <= most else None


def word(value: object, most_characters: int = _MOST_WORD_CHARACTERS) -> str | None:
    """``value`` if it is text, cut to ``most_characters``; None if it is empty."""
    return encodable(value[:most_characters]) if isinstance(value, str) and value else None


def text(value: object) -> str:
    """``value``, which must be text, or null for none."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise TypeError(f"text is {type(value).__name__}")
    return value


def encodable(value: str) -> str:
    """``value`` with halves of surrogate pairs replaced: JSON can spell them, UTF-8 cannot."""
    return value if value.isascii() else value.encode("utf-8", "replace").decode("utf-8")


def first_choice(choices: Iterable[Any]) -> Any:
    """Of the answers that an event of OpenAI's adds to, the first one; None if it adds to others only.

    One is asked for.  A server that gives several all the same sends them in turns, each with its ``index``.
    """
    for choice in choices:
        if choice.get("index") in (None, 0):
            return choice
    return None


def number(value: Any) -> float | None:
    """``value``, which must be a number or null; None for what JSON cannot spell (infinite, no number)."""
    if value is None:
        return None
    if type(value) is not float and type(value) is not int:
        raise TypeError(f"a number is {type(value).__name__}")
    return value if -_MOST_NUMBER < value < _MOST_NUMBER else None


def token(token_id: Any, said: Any, logprob: Any, special: Any) -> Token:
    """One token; TypeError if it is none of TGI's."""
    if type(token_id) is not int or not -1 <= token_id <= _MOST_INTEGER or type(said) is not str:
        raise TypeError("no token")
    if type(logprob) is not float or not -_MOST_NUMBER < logprob < _MOST_NUMBER:
        logprob = number(logprob)
    return Token(token_id, said, logprob, bool(special))
