"""What each role may do in Redis: the one table behind ``ops/redis/users.acl`` and ``genqueue doctor``.

``make acl`` writes the file, in which one line is one selector: commands, and the keys on which
they may be said.  What is said of genqueue's own keys is no more than its scripts and calls need
(``tests/unit/test_acl.py`` reads both); what Celery and Flower need beside it stands apart.
Nothing here is a secret, and nothing tells one caller from another: whoever has a role's password may
do all of it to everybody's keys (``SECURITY.md``).
"""

import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from genqueue import keys

Role = Literal["producer", "worker", "flower", "operator"]
Selectors = Sequence[tuple[str, Sequence[str]]]
"""(commands, patterns of keys); all keys of one command must be in one selector."""

_GENERATION = keys.generation("*")  # its log and its text too
_RESULT = keys.result("*")
_WAITING = keys.waiting("*")
_LIST = keys.queue("*")
_EVENTS = ("/{db}.celery.pidbox", "/{db}.celeryev/*", "/{db}.celeryev/worker.*")
_MAILBOXES = ("*.celery.pidbox*", "celeryev.*")
_ORDERS = ("_kombu.binding*celery.pidbox", "_kombu.binding*.celeryev", "_kombu.binding_deadlines")
_BIND = "sadd srem smembers scard exists pexpire del zadd zrem zscore zrangebyscore"

OURS: Mapping[Role, Selectors] = {
    "producer": (
        ("eval evalsha", (keys.EVERY, _LIST, _RESULT)),
        ("exists hget hmget hset hdel expire ttl get xadd xrange", (_GENERATION,)),
        ("zadd zrem zrank zcard zrangebyscore expire ttl", (_WAITING,)),
        ("zadd zrem expire ttl", (keys.DEADLINES,)),
        ("zrem zcard zscore zcount zrange", (keys.LEASES,)),
        ("zrem zcard zcount", (keys.DELAYED,)),
        ("zrem", (keys.RUNG,)),
        ("zrem zcard zscore zrange zrevrange", (keys.DEAD,)),
        ("get set", (keys.idempotency("*"),)),
        ("hget hkeys hgetall", (keys.GENERATORS,)),
        ("hgetall", (keys.WORKERS, keys.PLACES)),
        ("lpush llen", (_LIST,)),
        ("get set", (_RESULT,)),
    ),
    "worker": (
        ("eval evalsha", (keys.EVERY, _LIST, _RESULT)),
        ("exists hget hmget hset hdel hincrby expire ttl get append del xadd", (_GENERATION,)),
        ("zadd zrem zcard zscore zrangebyscore zremrangebyscore expire ttl", (_WAITING,)),
        ("zadd zrem zrangebyscore expire ttl", (keys.DEADLINES,)),
        ("zadd zrem zcard zscore zcount zrange zrangebyscore expire ttl", (keys.LEASES,)),
        ("zadd zrem zcard zcount zrangebyscore expire ttl", (keys.DELAYED,)),
        ("zadd zrem zmscore zremrangebyscore expire ttl", (keys.RUNG,)),
        ("zadd zcard zrange zremrangebyscore expire ttl", (keys.DEAD,)),
        ("hget hkeys hgetall hrandfield hset hdel expire ttl", (keys.GENERATORS,)),
        ("hgetall hrandfield hset hdel expire ttl", (keys.WORKERS,)),
        ("hrandfield hset hdel expire ttl", (keys.PLACES,)),
        ("hget hgetall hset expire ttl", (keys.newest_claimed("*"),)),
        ("hmget hset expire ttl", (keys.SWEPT,)),
        ("hget hgetall hset hdel expire ttl", (keys.untold("*"),)),
        ("lpush rpush llen lrange lindex lrem", (_LIST,)),
        ("get set", (_RESULT,)),
    ),
    "flower": (),
    "operator": (
        ("eval evalsha", (keys.EVERY,)),
        ("hget", (_GENERATION,)),
        ("zcard zrangebyscore", (_WAITING,)),
        ("zcard zcount zrange", (keys.LEASES,)),
        ("zcard zcount", (keys.DELAYED,)),
        ("zcard zrange", (keys.DEAD,)),
        ("hgetall", (keys.GENERATORS, keys.WORKERS)),
        ("llen", (_LIST,)),
    ),
}
CELERYS: Mapping[Role, Selectors] = {
    "producer": (  # one that sends the task by Celery, and reads results so
        ("sadd smembers exists", (f"_kombu.binding.{_LIST}", f"_kombu.binding_permanent.{_LIST}")),
        ("mget del", (_RESULT,)),
    ),
    "worker": (
        ("brpop", (_LIST,)),
        ("setex", (_RESULT,)),
        (f"eval evalsha {_BIND}", ("_kombu.binding*",)),
        ("llen lpush brpop exists del pexpire", _MAILBOXES),
    ),
    "flower": (
        # Of orders and events only: with the bindings of generate.* it could lead work elsewhere.
        (f"eval evalsha {_BIND}", _ORDERS),
        ("llen lpush brpop exists del pexpire", _MAILBOXES),
        ("llen", (_LIST,)),
    ),
    "operator": (),
}
CHANNELS: Mapping[Role, Sequence[str]] = {
    "producer": (keys.live("*"), keys.SILENT, keys.worker("*"), _RESULT),
    "worker": (keys.EVERY, _RESULT, *_EVENTS),
    "flower": _EVENTS,
    "operator": (),
}

_CONNECTION = (
    "auth hello ping select client -client|kill -client|list -client|pause -client|unpause -client|unblock"
    " -client|no-evict -client|tracking time multi exec discard script|load script|exists"
)
COMMANDS: Mapping[Role, str] = {
    "producer": f"{_CONNECTION} subscribe unsubscribe publish",
    "worker": f"{_CONNECTION} subscribe unsubscribe psubscribe punsubscribe publish",
    "flower": f"{_CONNECTION} subscribe unsubscribe psubscribe punsubscribe publish",
    # CONFIG GET shows Redis's own passwords: this one is whoever runs it.
    "operator": f"{_CONNECTION} info config|get acl|log client|list slowlog|get script|kill",
}
"""What has no key."""

# What follows a command without a key, and the key of another, so that Redis takes it for one.
_ALONE = {
    "ping": "",
    "select": "0",
    "time": "",
    "client": "ID",
    "script|load": "return",
    "script|exists": "0" * 40,
    "info": "",
    "config|get": "save",
    "acl|log": "0",
    "client|list": "",
    "slowlog|get": "0",
    "script|kill": "",
}
_BEHIND_KEY = {
    "append": "1",
    "brpop": "1",
    "expire": "1",
    "hdel": "1",
    "hget": "1",
    "hincrby": "1 0",
    "hmget": "1",
    "hset": "1 1",
    "lindex": "0",
    "lpush": "1",
    "lrange": "1 0",
    "lrem": "1 1",
    "pexpire": "1",
    "rpush": "1",
    "sadd": "1",
    "set": "1",
    "setex": "1 1",
    "srem": "1",
    "xadd": "* 1 1",
    "xrange": "- +",
    "zadd": "1 1",
    "zcount": "1 0",
    "zmscore": "1",
    "zrange": "1 0",
    "zrangebyscore": "1 0",
    "zrank": "1",
    "zrem": "1",
    "zremrangebyscore": "1 0",
    "zrevrange": "1 0",
    "zscore": "1",
}


@dataclass(frozen=True, slots=True)
class PermissionCheck:
    """A command that a role needs.

    Attributes:
        command: its words, on keys and channels that nobody uses where there is a choice.
        right: the command as rules spell it: ``config|get``.
        on: the pattern of its key (``~genqueue:*``) or its channel (``&…``); "" without either.
    """

    command: tuple[str, ...]
    right: str
    on: str = ""


def permission_checks(
    role: Role, scratch_id: str, database: int
) -> tuple[list[PermissionCheck], list[PermissionCheck]]:
    """What a role says to Redis: (what may be queued in a transaction and discarded, the rest in its order).

    Keys that are one generation's or generator's are a scratch one's; those that all share are
    themselves, so only a transaction that is discarded may hold these commands.  The rest changes
    nothing on a connection of its own: the ends of a transaction that there is not, subscriptions.
    Every right is tried but MULTI, without which nothing can be, and AUTH and HELLO, which
    Redis refuses nobody.
    """
    queued = [
        PermissionCheck((*name.upper().split("|"), *_ALONE[name].split()), name)
        for name in COMMANDS[role].split()
        if name in _ALONE
    ]
    live = [PermissionCheck((name.upper(),), name) for name in ("exec", "discard")]
    for names, patterns in (*OURS[role], *CELERYS[role]):
        for pattern in patterns:
            # Of pieces of a name all are the scratch id: *.celery.pidbox*
            key = pattern.replace("*", scratch_id)
            for name in names.split():
                command = (name.upper(), key, *_BEHIND_KEY.get(name, "").split())
                if name in {"eval", "evalsha"}:
                    command = (name.upper(), "return 1" if name == "eval" else "0" * 40, "1", key)
                queued.append(PermissionCheck(command, name, f"~{pattern}"))
    for pattern in CHANNELS[role]:
        channel = pattern.replace("{db}", str(database))
        scratch = channel.replace("*", scratch_id)
        queued.append(PermissionCheck(("PUBLISH", scratch, ""), "publish", f"&{channel}"))
        live.append(PermissionCheck(("SUBSCRIBE", scratch), "subscribe", f"&{channel}"))
        if pattern in _EVENTS:  # kombu listens by pattern, which has to be a rule's own word for word
            live.append(PermissionCheck(("PSUBSCRIBE", channel), "psubscribe", f"&{channel}"))
    live += [
        PermissionCheck((name.upper(), scratch_id), name)
        for name in COMMANDS[role].split()
        if name in {"unsubscribe", "punsubscribe"}
    ]
    return queued, live


_HEAD = """\
# Who may do what in genqueue's Redis (7 or newer); SECURITY.md says what that keeps whom from.
#
# `make acl` makes this file from producer/genqueue/acl.py.  No password is in here: start.sh puts each behind its
# user, and makes one line of each user's.  A script needs the right to name its keys, which the selector with eval
# gives; each command inside it is checked again, against the selectors that hold the command.
# /0. in the names of Celery's channels is the number of the database: change it with that of the url.
# There is a genqueue-operator only where it is given a password.

user default off
"""


def users_acl() -> str:
    """The text of ``ops/redis/users.acl``."""
    lines = [_HEAD]
    for role, names in COMMANDS.items():
        lines.append(f"user genqueue-{role} on resetchannels")
        lines += [f"  &{channel.replace('{db}', '0')}" for channel in CHANNELS[role]]
        alone = " ".join(name if name.startswith("-") else f"+{name}" for name in names.split())
        lines += textwrap.wrap(alone, 110, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
        for commands, patterns in (*OURS[role], *CELERYS[role]):
            words = [*(f"~{pattern}" for pattern in patterns), *(f"+{name}" for name in commands.split())]
            lines.append(f"  ({' '.join(words)})")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(users_acl())
