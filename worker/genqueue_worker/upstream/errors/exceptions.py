"""Make facts of an exception of a call."""

import httpx2
from huggingface_hub.errors import HfHubHTTPError, InferenceTimeoutError

from genqueue_worker.resources import lack_of
from genqueue_worker.upstream.faults import (
    LACK,
    UpstreamFacts,
)

_MOST_ERROR_CHARACTERS = 500


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
