"""The users of ``ops/redis/users.acl`` in the Redis of the tests: who produces, works or watches is one of them.

Who looks into Redis for a test stays ``default``, who may do everything.  Servers that are too old for these rules have
no users, and everybody is ``default`` there.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import redis

from genqueue_ops.local_redis import LocalRedis, find_redis_server, local_redis

Role = Literal["producer", "worker", "flower", "operator"]
RULES = Path(__file__).parents[2] / "ops/redis/users.acl"
_guarded_ports: set[int] = set()


def password(role: Role) -> str:
    """What must be seen nowhere."""
    return f"canary-password-of-{role}"


def users() -> str:
    """The file as ``start.sh`` makes it, but that ``default`` may do everything."""
    lines = [
        # The tests use several databases.
        re.sub(r"&/0\.(\S+)", lambda found: " ".join(f"&/{number}.{found[1]}" for number in range(16)), line)
        for line in re.sub(r"\n +", " ", RULES.read_text(encoding="utf-8")).splitlines()
        if line.startswith("user genqueue-")
    ]
    return "\n".join(
        ["user default on nopass ~* &* +@all"]
        + [f"{line} >{password(line.split()[1].removeprefix('genqueue-'))}" for line in lines]  # type: ignore[arg-type]
    )


@contextmanager
def guarded_redis(folder: Path, **options: Any) -> Iterator[LocalRedis]:
    """``local_redis`` with the users; at the end nobody may have been refused anything."""
    found = find_redis_server()
    if found is None or int(found.version.partition(".")[0]) < 7:
        with local_redis(**options) as server:
            yield server
        return
    rules = folder / "users.acl"
    rules.write_text(users() + "\n", encoding="utf-8")
    with local_redis(acl_file=rules, **options) as server:
        _guarded_ports.add(server.port)
        try:
            yield server
            with redis.Redis.from_url(server.url) as operator:
                refused = refusals(operator)
            if refused:
                raise AssertionError("\n".join(["users were refused what they need:", *refused]))
        finally:
            _guarded_ports.discard(server.port)


def refusals(operator: "redis.Redis[Any]") -> list[str]:
    """What users were refused: ``user reason object context``."""
    return [f"{one['username']} {one['reason']} {one['object']} {one['context']}" for one in operator.acl_log()]


def as_role(url: str, role: Role) -> str:
    """The address with the role's credentials, if that Redis has such a user."""
    if "+sentinel" in url or (address := urlsplit(url)).port not in _guarded_ports or "@" in address.netloc:
        return url
    return url.replace("://", f"://genqueue-{role}:{password(role)}@", 1)
