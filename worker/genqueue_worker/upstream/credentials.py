"""What lets us in at an endpoint: a generator's token, and no word of it in what an endpoint says."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import takewhile

from genqueue.connection.address import secrets_of
from genqueue.errors import ConfigError
from genqueue.settings import GeneratorSettings, is_sendable
from genqueue_worker.upstream.faults import (
    UpstreamFacts,
)

_LEAST_SECRET_CHARACTERS = 4
"""What is shorter keeps nobody out, and stands in words that say nothing of it."""
_BEHIND_A_CUT = re.compile(r"\Z|[);,'\"]| …")
_SCHEMES = frozenset({"bearer", "basic", "token"})


def secrets_among(headers: Iterable[str], urls: Iterable[str]) -> list[str]:
    """What no error may hold of what is sent to a server: the longest first, for one may be a part of another."""
    # Of "Bearer <token>" a server may name the token alone.
    secrets = {part for value in headers for part in (value, value.rpartition(" ")[2])}
    secrets |= {value for url in urls for value in secrets_of(url)}
    return sorted((value for value in secrets if len(value) >= _LEAST_SECRET_CHARACTERS), key=len, reverse=True)


def without(secrets: Iterable[str], facts: UpstreamFacts) -> UpstreamFacts:
    """The facts without what their server was sent to let us in: a careless one quotes that in its errors."""

    def hide(words: str) -> str:
        for secret in secrets:
            words = _without_beginning(words.replace(secret, "***"), secret)
        return words

    return replace(facts, message=hide(facts.message), error_type=facts.error_type and hide(facts.error_type))


def _without_beginning(words: str, secret: str) -> str:
    """Words that may have been cut in the middle of a secret, and then put into others."""
    kept, at = [], 0
    for match in re.finditer(re.escape(secret[:_LEAST_SECRET_CHARACTERS]), words):
        pairs = takewhile(lambda pair: pair[0] == pair[1], zip(words[match.start() :], secret, strict=False))
        begun = "".join(sign for sign, _ in pairs)
        end = match.start() + len(begun)
        if match.start() >= at and _BEHIND_A_CUT.match(words, end) and begun.strip().lower() not in _SCHEMES:
            kept += [words[at : match.start()], "***"]
            at = end
    return "".join([*kept, words[at:]])


def token_of(name: str, settings: GeneratorSettings, environ: Mapping[str, str]) -> str | None:
    """A generator's token, of the first of its variables that holds one."""
    named_token = settings.find_token(environ)
    if named_token is None:
        return None
    variable, token = named_token
    if not is_sendable(token):
        raise ConfigError(
            f"{variable}, the token of generator {name!r}: holds a character that cannot stand in a header"
        )
    return token
