"""Whether an address, or the ``Host`` of a request, means this host alone.

A page in a browser reaches what listens on 127.0.0.1, and by a name of its own that leads there (DNS rebinding) it
reads the answer too.  The browser then names that name in ``Host``, which gives the page away.  Pure.
"""

import ipaddress
import re

_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\s:@/\[\]]+))(?::[0-9]{1,5})?")


def is_loopback(address: str) -> bool:
    """Whether it is ``localhost`` or one of this host's own addresses; another name may mean anything."""
    if address.lower() == "localhost":
        return True
    try:
        parsed = ipaddress.ip_address(address)
        return (getattr(parsed, "ipv4_mapped", None) or parsed).is_loopback  # ::ffff:127.0.0.1 is 127.0.0.1
    except ValueError:
        return False


def host_named(header: str) -> str | None:
    """The name or address in a ``Host`` header, in small letters and without port; None where it is no such header."""
    match = _HOST.fullmatch(header)
    return (match[1] or match[2]).lower() if match else None


def is_own_name(header: str, *also: str) -> bool:
    """Whether a ``Host`` header names a loopback address, ``localhost``, or one of ``also``; any port will do."""
    name = host_named(header)
    return name is not None and (is_loopback(name) or name in map(str.lower, also))
