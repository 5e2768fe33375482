"""Scripts run as a user of Redis who may touch no key and no channel but those that the script declares.

Redis itself decides, for each command that a script says: it knows which of its words are keys.
"""

import re
from typing import Any

import redis

from genqueue.registry.script import Call

_USER = "declared-keys"


def _to_the_letter(key: str | bytes) -> bytes:
    """A rule's pattern for one key; a rule holds no space, and reads some characters as patterns."""
    word = key if isinstance(key, bytes) else key.encode()
    return re.sub(rb"[\s\x00*?\[\]\\^]", b"?", word)


class DeclaredKeys:
    """The rights of the one user.

    Attributes:
        url: the user's; its rights are those of the call that was permitted last.
        scripts: the names of those that were permitted.
    """

    def __init__(self, url: str) -> None:
        self._operator: Any = redis.Redis.from_url(url, protocol=2)
        self._operator.execute_command("ACL", "SETUSER", _USER, "reset", "on", "nopass", "+@all")
        self._operator.acl_log_reset()
        self.scripts: set[str] = set()
        self.url = url.replace("://", f"://{_USER}:any@", 1)

    def permit(self, call: Call[Any]) -> None:
        """Have the user be one who may say this call: a script's with its keys and patterns, any other altogether."""
        if call.script is None:
            rules: list[str | bytes] = ["allkeys", "allchannels"]
        else:
            self.scripts.add(call.script.name)
            layout, count = call.script.layout, int(call.arguments[0])
            key_list = [_to_the_letter(key) for key in call.arguments[1 : count + 1]]
            patterns = [pattern.encode() for pattern in layout.derived_keys.values()]
            rules = ["resetkeys", "resetchannels", *(b"~" + key for key in (*key_list, *patterns))]
            rules += [f"&{pattern}" for pattern in layout.channels.values()]
        self._operator.execute_command("ACL", "SETUSER", _USER, *rules)

    def refused(self) -> list[str]:
        """Keys and channels that the user was refused; also those that a script did without."""
        entries = [entry for entry in self._operator.acl_log() if entry["username"] == _USER]
        return [f"{entry['reason']} {entry['object']}" for entry in entries]

    def forgive(self) -> None:
        """Forget what the user was refused."""
        self._operator.acl_log_reset()

    def close(self) -> None:
        """Forget the user."""
        self._operator.execute_command("ACL", "DELUSER", _USER)
        self._operator.acl_log_reset()
        self._operator.close()
