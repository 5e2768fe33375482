"""Make facts of an error of a call, without the secrets that its words may quote."""

import re
from collections.abc import Iterable
from dataclasses import replace
from itertools import takewhile

import httpx2
from huggingface_hub.errors import HfHubHTTPError, InferenceTimeoutError

from genqueue.connection.address import secrets_of
from genqueue_worker.resources import lack_of
from genqueue_worker.upstream.faults import (
    LACK,
    UpstreamFacts,
)

_MOST_ERROR_CHARACTERS = 500
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


def facts_of(error: BaseException) -> UpstreamFacts | None:
    """The facts of an exception of huggingface_hub or its transport; None of one that is a defect.

    What an answer says is read by :mod:`genqueue_worker.upstream.engines.native`,
    :mod:`genqueue_worker.upstream.engines.chats` and :mod:`genqueue_worker.upstream.engines.completions`, which know
    what they cannot read: any other TypeError is ours.
    """
    if lack := lack_of(error):  # huggingface_hub looks for a token of its own in a file, at each call
        return UpstreamFacts(lack, error_type=LACK)
    match error:
        case InferenceTimeoutError() if isinstance(error.__cause__, httpx2.ConnectTimeout):
            return _unreached(error.__cause__)
        case httpx2.ConnectError() | httpx2.ConnectTimeout():
            return _unreached(error)
        case InferenceTimeoutError() | httpx2.TimeoutException():
            return UpstreamFacts(f"the server fell silent: {type(error).__name__}", error_type="timeout")
        case httpx2.HTTPError() | OSError():
            return UpstreamFacts(f"the way to the server failed: {_words(error)}", error_type="transport")
        case UnicodeError():  # a header of the settings, a byte of the answer: not the caller's
            return UpstreamFacts(f"the call could not be encoded: {type(error).__name__}", error_type="generation")
        case HfHubHTTPError() | httpx2.StreamError() | ValueError():
            return UpstreamFacts(str(error), error_type="validation")  # huggingface_hub refuses to make the call
    return None


def _words(error: BaseException) -> str:
    """What an error of the transport says; of a response that is no HTTP aiohttp's quotes all that was read."""
    return str(error)[:_MOST_ERROR_CHARACTERS] or type(error).__name__


def _unreached(error: Exception) -> UpstreamFacts:
    """Nobody was asked, so nobody failed."""
    return UpstreamFacts(f"the server cannot be reached: {_words(error)}", error_type="unreached", was_unreached=True)
