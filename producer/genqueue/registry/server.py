"""Facts about the Redis server, and our rights there."""

from typing import Any

from genqueue.registry.decoding import pairs_of, text_of
from genqueue.registry.script import Call


def hello() -> Call[dict[str, str]]:
    """``server``, ``version``, ``mode`` and ``role``, which even the user with the fewest rights may see."""
    return Call(
        ("HELLO", "2"), lambda answer: {text_of(key): text_of(value) for key, value in pairs_of(answer).items()}
    )


def clock() -> Call[float]:
    """Epoch seconds of Redis's clock."""
    return Call(("TIME",), lambda answer: int(answer[0]) + int(answer[1]) / 1e6)


def info() -> Call[dict[str, str]]:
    """The facts of Redis's INFO: version, memory, persistence, replication and its counters."""

    def decode(answer: Any) -> dict[str, str]:
        if isinstance(answer, dict):  # redis-py takes it apart
            return {text_of(key): text_of(value) for key, value in answer.items()}
        lines = text_of(answer).splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    return Call(("INFO",), decode)


def may_say(*command: str) -> Call[bool]:
    """May our user say the command?  Redis 7 or newer answers without a line in its ACL log; an older one refuses."""
    return Call(("EVAL", "return redis.acl_check_cmd(unpack(ARGV)) and 1 or 0", "0", *command), bool)


def snapshot_rules() -> Call[str]:
    """``save``: after how many seconds and changes Redis writes a snapshot; "" for never."""

    def decode(answer: Any) -> str:
        pairs = answer if isinstance(answer, dict) else pairs_of(answer)
        return next((text_of(value) for key, value in pairs.items() if text_of(key) == "save"), "")

    return Call(("CONFIG", "GET", "save"), decode)
