"""What a model server says of its answer, in the types that readers and results must have.

Pure.  JSON can hold anything in any place.  What is not of its type is left out where it costs no text and no call,
and is a TypeError, and so the end of the call, where it may.
"""

import codecs
import json
import re
from collections.abc import Mapping
from typing import Any

from pydantic_core import from_json

from genqueue.wire.events import Token

GIVEN_UP = frozenset({"error", "abort", "network_error", "insufficient_system_resource"})
"""Each a ``finish_reason`` of vLLM, SGLang and providers (Zhipu, DeepSeek) that is no end: the server failed, or
stopped what it ran.

TGI has no such word, and whatever other word a server has is an end.
"""
_MOST_INTEGER = 2**53 - 1
"""The largest that every reader of JSON has exactly."""
_MOST_WORD_CHARACTERS = 200
_MOST_NUMBER = 1e300
_MOST_DIGITS = 400
_MOST_COUNT_CHARACTERS = 20
_MOST_TOKENS = 10**9
"""So many no answer and no prompt has."""
_COUNT = re.compile(r"\s*(\d{1,15})(?:\.0*)?\s*", re.ASCII)
_MOST_DEPTH = 8
_FIRST_BYTES = re.compile("[\udc80-\udcff]{2,4}")
_LAST_BYTES = re.compile("(?<![\ud800-\udbff])[\udc80-\udcff]{1,3}\\Z")
"""Bytes of a character, of which UTF-8 has up to four; behind the first half of a pair it is the second one."""
_NO_WORDS = frozenset({"null", "none", "None"})
"""Some servers spell out that there is no ``finish_reason`` yet."""
_NO_TEXT = frozenset({"reference", "tool_reference"})
"""Parts of a content that cite, and say nothing themselves (Mistral)."""
_TEXTS = frozenset({"text", "output_text", "input_text"})
_THOUGHTS = frozenset(
    {"thinking", "reasoning", "thought", "reasoning_text", "reasoning.text", "reasoning.summary"}
    | {"redacted_thinking", "redacted_reasoning", "reasoning.encrypted"}
)
"""Parts of a content that are thoughts, and those that nobody may read (Anthropic, OpenRouter)."""
_OF_THOUGHTS = ("thinking", "reasoning", "thought", "text", "content", "value")
"""Where their text is."""


def read_json(data: bytes) -> Any:
    """What ``data`` says, halves of surrogate pairs and long numbers among it, which pydantic does not read.

    A byte that is no UTF-8 is half a pair too, as Python's ``surrogateescape`` has it: :class:`Halves` may know the
    bytes behind it.

    Raises:
        ValueError: it is no JSON, or deeper than Python reads.
    """
    try:
        return from_json(data)
    except ValueError:
        pass
    try:
        return json.loads(data.decode("utf-8", "surrogateescape"), parse_int=_integer_or_digits)
    except RecursionError as error:
        raise ValueError("too deep") from error


def _integer_or_digits(digits: str) -> int | str:
    """A number that Python does not read, as what was written: it is none of a token's, but of an answer's date."""
    return int(digits) if len(digits) <= _MOST_DIGITS else digits


def integer(value: object, most: int = _MOST_INTEGER) -> int | None:
    """``value`` if it is an integer from 0 to ``most``."""
    return value if type(value) is int and 0 <= value <= most else None


def count(value: object) -> int | None:
    """``value`` if it is a number of tokens, whole, spelt, or with a fraction of 0."""
    if type(value) is int or value is None:
        return integer(value)
    if type(value) is float:
        return integer(int(value)) if value.is_integer() else None
    if isinstance(value, str):
        spelt = _COUNT.fullmatch(value) if len(value) <= _MOST_COUNT_CHARACTERS else None
        return int(spelt[1]) if spelt else None
    return None


def tokens(value: object) -> int | None:
    """As :func:`count`, if an answer or a prompt can have so many."""
    counted = count(value)
    return counted if counted is not None and counted <= _MOST_TOKENS else None


def counts(usage: Mapping[str, Any]) -> dict[str, int]:
    """``prompt_tokens`` and ``completion_tokens`` of OpenAI's ``usage``, where they are numbers.

    ``input_tokens`` and ``output_tokens`` are other servers' names for them, and of OpenAI's Responses.
    """
    read = {}
    for name, other in (("prompt_tokens", "input_tokens"), ("completion_tokens", "output_tokens")):
        counted = tokens(usage.get(name)) or tokens(usage.get(other))
        if counted is None:
            counted = tokens(usage.get(name))
        if counted is not None:
            read[name] = counted
    return read


def usage_in(event: Mapping[str, Any], choice: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The ``usage`` of an event, wherever it is: Kimi has it in the choice, Groq in ``x_groq``; None if nowhere."""
    usage = event.get("usage") or (choice and choice.get("usage"))
    if not usage and type(more := event.get("x_groq")) is dict:
        usage = more.get("usage")
    return usage if type(usage) is dict else None


def reason(value: object) -> str | None:
    """``value`` if it is a word for an answer's end."""
    end_word = word(value) if value else None
    return None if end_word in _NO_WORDS else end_word


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


def content_of(value: object) -> tuple[str, str]:
    """The text and the thoughts of a content, which may be text or parts (Mistral's reasoning models).

    Raises:
        TypeError: a part has no text where one has it.
    """
    if value is None:
        return "", ""
    if type(value) is str:
        return value, ""
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise TypeError(f"a content is {type(value).__name__}")
    texts, thoughts = [], []
    for part in value:
        if isinstance(part, str | None):
            texts.append(part or "")
            continue
        if not isinstance(part, dict):
            raise TypeError(f"a part of a content is {type(part).__name__}")
        kind = word(part.get("type"))
        if kind in _THOUGHTS:
            thoughts.append(thoughts_of(part))
        elif isinstance(part_text := _text_of_part(part, kind), str | None):
            texts.append(part_text or "")
        else:
            raise TypeError(f"a part of a content has no text, it is {kind or 'untyped'}")
    return "".join(texts), "".join(thoughts)


def thoughts_of(value: object, depth: int = 0) -> str:
    """The text of thoughts: itself, in parts, or in an object; "" where nobody may read them, or knows how to.

    They cost no text, so whatever stands there fails no answer.
    """
    if isinstance(value, str):
        return value
    if depth >= _MOST_DEPTH:
        return ""
    if isinstance(value, list):
        return "".join(thoughts_of(part, depth + 1) for part in value)
    if not isinstance(value, dict):
        return ""
    texts = (thoughts_of(value.get(name), depth + 1) for name in _OF_THOUGHTS if value.get(name))
    return next(filter(None, texts), "") or (thoughts_of(value.get("summary"), depth + 1) if "type" in value else "")


def _text_of_part(part: Mapping[str, Any], kind: str | None) -> object:
    """The text of a part of a content; None if it has none, and anything else if nobody knows."""
    value = part.get("text")
    if isinstance(value, dict):  # as OpenAI's assistants have it
        value = value.get("value", value)
    if value is None and kind == "refusal":
        return part.get("refusal")
    return value if value is not None or kind in _NO_TEXT or kind in _TEXTS else part


def encodable(value: str) -> str:
    """``value`` with halves of surrogate pairs joined or, alone, U+FFFD: JSON can spell them, UTF-8 cannot."""
    if value.isascii():
        return value
    try:
        value.encode()
        return value
    except UnicodeEncodeError:
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def lost(value: str) -> int:
    """How many characters of a text :func:`encodable` cannot keep."""
    return 0 if value.isascii() else encodable(value).count("\ufffd") - value.count("\ufffd")


def _without_beginning(value: str) -> tuple[str, str]:
    """A text that ends with half a pair, and what of it may be the beginning of a character."""
    if value[-1] <= "\udbff":
        return value[:-1], value[-1]
    match = _LAST_BYTES.search(value)
    for start in range(match.start(), match.end()) if match else ():
        begun = value[start:].encode("utf-8", "surrogateescape")
        try:
            codecs.getincrementaldecoder("utf-8")().decode(begun)
        except UnicodeDecodeError:
            continue
        return value[:start], value[start:]
    return value, ""


def _joined(value: str) -> str:
    """A text whose first bytes may be a character by now."""
    match = _FIRST_BYTES.match(value)
    for end in range(2, match.end() + 1) if match else ():
        try:
            return value[:end].encode("utf-8", "surrogateescape").decode("utf-8") + value[end:]
        except UnicodeDecodeError:
            continue
    return value


class Halves:
    """Text whose characters may be cut between events, as JavaScript's strings are cut (UTF-16), or its bytes (UTF-8).

    Attributes:
        waits: the beginning of a character; mostly "".
    """

    def __init__(self) -> None:
        self.waits = ""

    def take(self, value: str) -> str:
        """``value`` behind what was kept; half a character at its end waits for the next."""
        if not value:
            return ""
        if self.waits:
            value, self.waits = _joined(self.waits + value), ""
        if "\ud800" <= value[-1] <= "\udfff":
            value, self.waits = _without_beginning(value)
        return value

    def rest(self) -> str:
        """What still waits: no next will come."""
        half, self.waits = self.waits, ""
        return half


def first_choice(choices: Any) -> Any:
    """Of the answers that an event of OpenAI's adds to, the first one; None if it adds to others only.

    One is asked for.  A server that gives several all the same sends them in turns, each with its ``index``; what is
    no such number tells no answers apart.

    Raises:
        TypeError: there is something else.
    """
    for choice in (choices,) if isinstance(choices, dict) else choices or ():
        if choice is None:
            continue
        if not isinstance(choice, dict):
            raise TypeError(f"a choice is {type(choice).__name__}")
        index = choice.get("index")
        if index == 0 or not count(index):
            return choice
    return None


def delta_of(choice: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a choice adds: its ``delta``, or what stands in its place: ``message`` of a whole answer, or ``text``.

    Raises:
        TypeError: there is something else.
    """
    delta = choice.get("delta") or choice.get("message") or {}
    if delta is True:
        delta = {}
    if isinstance(delta, str):
        return {"content": delta}
    if type(delta) is not dict:
        raise TypeError(f"a delta is {type(delta).__name__}")
    if not delta.get("content"):
        content = delta.get("text") or choice.get("text")
        return delta if content is None else {**delta, "content": content}
    return delta


def whole_beside(choice: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The ``message`` that stands beside a ``delta`` without content: a gateway's copy of the whole answer."""
    delta, message = choice.get("delta"), choice.get("message")
    if type(delta) is not dict or type(message) is not dict:
        return None
    return None if any(value for name, value in delta.items() if name != "role") else message


def number(value: Any) -> float | None:
    """``value`` if it is a number, or one that is spelt; None for what JSON cannot spell (infinite, no number)."""
    if isinstance(value, str):
        value = _spelt(value)
    if type(value) is not float and type(value) is not int:
        return None
    return value if -_MOST_NUMBER < value < _MOST_NUMBER else None


def _spelt(value: str) -> float | None:
    try:
        return float(value[:_MOST_WORD_CHARACTERS])
    except ValueError:
        return None


UNKNOWN_TOKEN = -1
"""The id of a token whose server names none."""


def odd_token(fields: Any) -> Token:
    """As :func:`token`, of one that lacks whatever is not its text, or has it in another type.

    Raises:
        TypeError, KeyError, AttributeError: it has no text.
    """
    token_id, is_special = count(fields.get("id")), fields.get("special")
    return token(
        UNKNOWN_TOKEN if token_id is None else token_id,
        text(fields["text"]),
        fields.get("logprob"),
        is_special.lower() == "true" if isinstance(is_special, str) else is_special in (True, 1),
    )


def token(token_id: Any, token_text: Any, logprob: Any, special: Any) -> Token:
    """One token; TypeError if it is none of TGI's."""
    if type(token_id) is not int or not -1 <= token_id <= _MOST_INTEGER or type(token_text) is not str:
        raise TypeError("no token")
    if type(special) is not bool:
        raise TypeError("no token")
    if type(logprob) is not float or not -_MOST_NUMBER < logprob < _MOST_NUMBER:
        logprob = number(logprob)
    return Token(token_id, token_text, logprob, special)


DONE = b"[DONE]"
"""The end of a stream in OpenAI's dialect, which is no JSON."""
