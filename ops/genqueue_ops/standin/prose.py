"""The scripted engine's language: a text that any piece of itself continues.

Every fourth token is a counter word such as `` q3kd7a-0008``: six letters that
identify the prompt the text began with, and the position of the token.  What follows
depends on that word alone, so a request whose prompt is *prompt + text so far* gets the
rest of the same text, and a lost, doubled or foreign character is visible to the eye.

    next_token(prompt + text_so_far) is a pure function, hence
    expected_tokens(prompt + "".join(texts[:k])) == expected_tokens(prompt)[k:]

It also holds where the text so far was cut inside a token, or lost its trailing white
space: the first token is then what was missing of the broken one.  The exception is a
*split* character, whose first token has text ``""``: nothing of it is in the text, so
it is generated again.

This module decides texts, ids and logprobs.  Pace and faults are ``script.py``'s.
"""

import hashlib
import re
import zlib
from collections.abc import Iterator
from functools import cache

from genqueue_ops.standin.engine import Token

EOS = Token(id=2, text="</s>", logprob=-0.0078125, special=True)

_CYCLE_TOKENS = 4  # one counter word, then three words
_LETTERS = "abcdefghijklmnopqrstuvwxyz234567"
_COUNTER = re.compile(rf" ([{_LETTERS}]{{6}})-(\d{{4,7}})")
_LONGEST_CYCLE_CHARS = 64
_PIECE = re.compile(r"\n+| ?\w+(?:-\d+)?| ?[^\w\s]|\s")

_FIRST_WORD_ID = 100
_WORDS = (
    " a and are as at be bread but by can café come day do each even far find for from give good had hand has have "
    "he her here high home house if in is it its just keep know land last light line little long made make many "
    "may more most move much naïve near never new night no not now number of off old on one only or other our out "
    "over own part people place play point read right river résumé said same sea see sentence set she show side "
    "small so some sound spell still such take tell than that the them then there these they thing think this time "
    "to too tree try turn two under up us use very wait walk want was water way we well went were what when where "
    "which while white who why will wind with wood word work world would write year you your über Zürich 東京 слово"
)
_VOCABULARY = (
    *(f" {word}" for word in _WORDS.split()),
    *([",", ".", ",", ".", ";", ":", "!", "?", " 😀", " 🚀", "…", "€"]),
    "\n\n",  # last: it only follows a whole cycle, see token_at
)
_SPLIT_CHARACTERS = ("😀", "🚀", "…", "€")
_FIRST_COUNTER_ID = 1_000
_COUNTER_IDS = 30_000


def next_tokens(prompt: str, *, split_characters: bool = False) -> Iterator[Token]:
    """The tokens that follow the prompt, without end.

    Args:
        prompt: what the model reads: a fresh prompt, or one followed by the beginning of its own text.
        split_characters: some characters take two tokens, the first with text ``""``, as a byte-level
            tokenizer does to an emoji.
    """
    tag, position, written = _resume(prompt, split_characters)
    if written:
        whole = token_at(tag, position, split_characters=split_characters)
        yield whole._replace(text=whole.text[len(written) :])
        position += 1
    while True:
        yield token_at(tag, position, split_characters=split_characters)
        position += 1


def position_after(prompt: str, *, split_characters: bool = False) -> int:
    """How many tokens of its text the prompt already holds; 0 for a fresh prompt."""
    return _resume(prompt, split_characters)[1]


def variant(prompt: str, name: str) -> str:
    """A prompt that begins another text for each name; one that goes on with a text stays as it is."""
    return prompt if position_after(prompt) else f"{prompt}\n#{name}"


def tag_of(prompt: str) -> str:
    """The six letters in every counter word of the prompt's text; the same for prompt + text so far."""
    return _resume(prompt, False)[0]


def token_at(tag: str, position: int, *, split_characters: bool = False) -> Token:
    """The token at a position, 0 or more, of the text that a tag names."""
    slot = position % _CYCLE_TOKENS
    if slot == 0:
        return Token(
            id=_FIRST_COUNTER_ID + (_number(tag) + position) % _COUNTER_IDS,
            text=f" {tag}-{position:04d}",
            logprob=-0.5,
            special=False,
        )
    draw = _mix(_number(tag), position - slot)
    if split_characters and slot >= 2 and draw % 3 == 0:
        character = _SPLIT_CHARACTERS[draw // 3 % len(_SPLIT_CHARACTERS)]
        return Token(id=40 + slot, text="" if slot == 2 else character, logprob=-0.25, special=False)
    # Two pieces of white space in a row would be one piece of a prompt.
    choices = len(_VOCABULARY) if slot == _CYCLE_TOKENS - 1 else len(_VOCABULARY) - 1
    return _word((draw >> (8 * slot)) % choices)


def expected_tokens(
    prompt: str, max_new_tokens: int, *, tokens: int | None = None, split_characters: bool = False
) -> list[Token]:
    """The tokens with which the scripted engine answers a prompt, without the end token.

    Args:
        prompt: the whole prompt; of a chat, the rendered one (``chat.render``).
        max_new_tokens: at most so many.
        tokens: length of the whole text, of which the prompt may hold a part; None is endless.
        split_characters: as in the server's script.
    """
    if tokens is not None:
        max_new_tokens = min(max_new_tokens, max(0, tokens - position_after(prompt, split_characters=split_characters)))
    endless = next_tokens(prompt, split_characters=split_characters)
    return [next(endless) for _ in range(max_new_tokens)]


def expected_text(
    prompt: str, max_new_tokens: int, *, tokens: int | None = None, split_characters: bool = False
) -> str:
    """The text with which the scripted engine answers a prompt; see ``expected_tokens``."""
    made = expected_tokens(prompt, max_new_tokens, tokens=tokens, split_characters=split_characters)
    return "".join(token.text for token in made)


def alternatives(token: Token, count: int) -> list[Token]:
    """The ``count`` likeliest tokens of a step, likeliest first: the token itself, then its neighbours."""
    others = [_word((token.id + k) % len(_VOCABULARY)) for k in range(1, count)]
    return [token, *(other._replace(logprob=token.logprob - k) for k, other in enumerate(others, 1))][:count]


def pieces(text: str) -> list[Token]:
    """Cut a prompt into tokens; the texts joined are the prompt.

    A token that the scripted engine made is one piece again, so that prompt + k tokens counts k more.
    """
    return [Token(zlib.crc32(piece.encode()) % 31_000, piece, -1.0, False) for piece in _PIECE.findall(text)]


def _resume(prompt: str, split_characters: bool) -> tuple[str, int, str]:
    """(tag, position of the next token, how much of that token's text the prompt already ends with)."""
    tail = prompt[-_LONGEST_CYCLE_CHARS:]
    counters = list(_COUNTER.finditer(tail))
    if counters and int(counters[-1][2]) % _CYCLE_TOKENS == 0:
        tag, counted = counters[-1][1], int(counters[-1][2])
        rest = tail[counters[-1].end() :]
        for position in range(counted + 1, counted + _CYCLE_TOKENS + 1):
            text = token_at(tag, position, split_characters=split_characters).text
            if not rest:
                return tag, position, ""
            if rest.startswith(text):
                rest = rest[len(text) :]
            elif text.startswith(rest):
                return tag, position, rest
            else:
                break
    return _fresh_tag(prompt), 0, ""


def _fresh_tag(prompt: str) -> str:
    bits = int.from_bytes(hashlib.blake2b(prompt.encode("utf-8", "surrogatepass"), digest_size=4).digest()) >> 2
    return "".join(_LETTERS[bits >> (5 * k) & 31] for k in range(6))


@cache
def _word(index: int) -> Token:
    # Eighths and sixteenths print the same as 32-bit and as 64-bit floats.
    return Token(_FIRST_WORD_ID + index, _VOCABULARY[index], -(1 + index * 7 % 40) / 16, False)


@cache
def _number(tag: str) -> int:
    return zlib.crc32(tag.encode())


def _mix(seed: int, position: int) -> int:
    mixed = (seed ^ position * 0x9E3779B1) & 0xFFFFFFFF
    mixed = (mixed ^ mixed >> 16) * 0x85EBCA6B & 0xFFFFFFFF
    mixed = (mixed ^ mixed >> 13) * 0xC2B2AE35 & 0xFFFFFFFF
    return mixed ^ mixed >> 16
