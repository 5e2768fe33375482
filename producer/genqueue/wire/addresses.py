"""Where a chat names what a server would fetch."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from genqueue.wire.extra_body import is_data_uri

_IS_MEDIUM = re.compile(r"(^|_)(image|video|audio)s?(_(url|uri|path|data|file)s?)?$")
_HOLDS_ADDRESS = re.compile(r"(^|_)(url|uri|path|(image|video|audio)(_data|_file)?)s?$")
_IS_ADDRESS = re.compile(r"\s*[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_TEXTS = frozenset({"text", "thinking", "reasoning", "refusal", "transcript"})
_NOT_FETCHED = frozenset(
    {"tool_calls", "function_call", "arguments", "annotations", "citations", "properties", "definitions", "$defs"}
)
"""What a model called, where an answer had it from, what a JSON schema describes: no server fetches these."""


def addresses(messages: Sequence[Mapping[str, Any]], extra_body: Mapping[str, Any] | None = None) -> list[str]:
    """Where a chat, as servers take it, names what a server would fetch: images, audio, video.

    That is in the parts of a content, and in whatever else is called an image, a video or audio.  ``data:``
    URIs are not fetched, where they hold nothing else.  Anything else that stands there where an address may, or
    looks like one and is no text, counts: engines also read files, and call such fields by names of their own.
    """

    def find(value: Any, place: str, name: str, is_medium: bool) -> Iterator[str]:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                if key not in _NOT_FETCHED:
                    has_parts = key == "content" and not isinstance(inner, str)
                    is_one = is_medium or has_parts or _IS_MEDIUM.search(str(key)) is not None
                    yield from find(inner, f"{place}.{key}", str(key), is_one)
        elif isinstance(value, list | tuple):
            for number, inner in enumerate(value):
                yield from find(inner, f"{place}.{number}", name, is_medium)
        elif isinstance(value, str) and is_medium and name not in _TEXTS and not is_data_uri(value):
            begins_as_one = value[:5].lower() == "data:" or _IS_ADDRESS.match(value)
            yield from [place] if begins_as_one or _HOLDS_ADDRESS.search(name) else []

    return [
        *find(messages, "messages", "", False),
        *find(extra_body or {}, "generation_kwargs.extra_body", "", False),
    ]
