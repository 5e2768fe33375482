"""Read the parts that several answers of Redis have in common."""

from typing import Any

from pydantic_core import from_json

from genqueue.wire.version import VERSION

NEWER = "a newer genqueue wrote it; upgrade genqueue where this error is raised"


def object_of(raw: bytes) -> dict[str, Any]:
    """A JSON object; {} for anything else."""
    try:
        found = from_json(raw)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def pairs_of(flat: list[bytes]) -> dict[bytes, bytes]:
    """A flat list of names and values as a dict."""
    return dict(zip(flat[::2], flat[1::2], strict=True))


def is_newer(raw: bytes) -> bool:
    """Whether an event that cannot be read is one of a later version."""
    event = object_of(raw)
    return isinstance(event.get("v"), int) and isinstance(event.get("type"), str)


def is_of_newer_version(raw: bytes) -> bool:
    """Whether JSON says that a newer version wrote it."""
    version = object_of(raw).get("v")
    return isinstance(version, int) and version > VERSION


def errors_of(value: bytes) -> list[dict[str, Any]]:
    """Why earlier attempts ended.  Anything else in there was not written by a worker, and is passed over."""
    try:
        found: list[Any] = from_json(b"[" + value + b"]")
    except ValueError:
        return []
    return [error for error in found if isinstance(error, dict) and isinstance(error.get("message"), str)]


def errors_met(errors: bytes, met: bytes) -> list[dict[str, Any]]:
    """The errors of attempts, and what the newest attempt met if that was no error."""
    known = errors_of(errors)
    newest = max(map(_attempt, known), default=0)
    return [*known, *(each for each in errors_of(met) if _attempt(each) > newest)]


def _attempt(error: dict[str, Any]) -> int:
    attempt = error.get("attempt")
    return attempt if isinstance(attempt, int) else 0


def text_of(value: Any, errors: str = "backslashreplace") -> str:
    """A word of Redis's.  One that is no UTF-8 was not written by us, and keeps no other from being read."""
    return value.decode(errors=errors) if isinstance(value, bytes) else str(value)
