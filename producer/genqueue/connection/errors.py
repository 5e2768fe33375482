"""Our errors for redis-py's."""

import os
import re

import redis
import redis.asyncio
import redis.asyncio.sentinel
import redis.sentinel
from redis.exceptions import MasterDownError, ReadOnlyError

from genqueue.connection.address import RedisAddress
from genqueue.errors import GenqueueError, RedisUnavailableError, StoreError

_NOT_CONNECTED = re.compile(r"Error (?P<number>-?\d+) connecting to \S+:\d+\. (?P<rest>.*?)\.?", re.DOTALL)
ENDED = "the client was closed while it was in use"
_PASSING = ("OOM", "maxmemory", "LOADING", "MISCONF")
"""In the errors that whoever runs Redis can mend while a call waits."""
_AWAY = ("READONLY", "MASTERDOWN", "NOREPLICAS", "UNBLOCKED", "BUSY ")
"""In those of a Redis that serves nobody: a replica now, without its own, or kept by somebody's endless script.

redis-py cuts off the first word of most.
"""


def is_away(error: Exception) -> bool:
    """Whether a Redis answers that serves nobody now.

    It is no master any more: a replica, or who lost its replicas to another master. It was the master when we
    connected, or its name now leads elsewhere. Or somebody's script keeps it.
    """
    # Before Redis 7 a script's error only has the word in its middle.
    return isinstance(error, ReadOnlyError | MasterDownError) or any(word in str(error) for word in _AWAY)


def refuses_for_now(error: Exception) -> bool:
    """Whether an error of redis-py's says that Redis takes no command now, and may later."""
    return isinstance(error, redis.ResponseError) and (is_away(error) or any(word in str(error) for word in _PASSING))


def translate(address: RedisAddress, error: Exception) -> GenqueueError:
    """Our error for theirs, naming host and port but never the password."""
    if isinstance(error, redis.ConnectionError | redis.TimeoutError | OSError) or is_away(error):
        host, port = address.nodes[0]
        if isinstance(error, redis.AuthenticationError):  # theirs is a ConnectionError
            reason = f"Redis at {address.name} refuses the credentials: {error}"
            return StoreError(reason, may_pass=True)  # until whoever runs it has mended them
        if "[SSL" in str(error):  # nor does this pass by waiting
            return StoreError(f"no TLS with Redis at {address.name}: {error}", may_pass=True)
        return RedisUnavailableError(host, port, _reason(str(error)))
    if "unauthenticated" in str(error):  # a call too long for who has not said who it is: not even NOAUTH
        return StoreError(f"Redis at {address.name} refuses the credentials: there are none", may_pass=True)
    return StoreError(f"Redis refused: {error}", may_pass=refuses_for_now(error))


def _reason(words: str) -> str:
    """redis-py's words without the host and port, which ours name; a name that nobody knows has a number below 0."""
    parts = _NOT_CONNECTED.fullmatch(words)
    if parts is None:
        return words
    return os.strerror(int(parts["number"])) if parts["number"].isdecimal() else parts["rest"]
