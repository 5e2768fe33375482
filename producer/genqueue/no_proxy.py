"""Which proxy leads to an address, and whether NO_PROXY exempts it, as curl reads that (its manual; lib/noproxy.c).

Pure but for what macOS and Windows have in place of the variables.  NO_PROXY is a list of names, addresses and
ranges, parted by commas or blanks.  A name exempts itself and what ends with it behind a dot, an address itself, a
range (``10.0.0.0/8``, ``fd00::/8``) what lies in it; ``*`` alone exempts all.  Go's and Python's clients also know a
port behind a name, which curl does not: so do we.
"""

import re
import urllib.request
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

_PORTS = {"http": 80, "https": 443}


def proxy_for(scheme: str, host: str, port: int | None, proxies: Mapping[str, str]) -> str | None:
    """The proxy's URL by which a server is asked; None if that is asked itself.

    Args:
        scheme: ``http`` or ``https``.
        host: as in :func:`is_exempt`.
        port: None for the scheme's own.
        proxies: as :func:`urllib.request.getproxies` finds them: by scheme, ``all``, and the exempt ones as ``no``.
    """
    proxy, exempt = proxies.get(scheme) or proxies.get("all"), proxies.get("no")
    if not proxy:
        return None
    if exempt is None:  # the system's own list, where it has one
        return None if urllib.request.proxy_bypass(host) else proxy
    return None if is_exempt(host, port or _PORTS.get(scheme), exempt) else proxy


def is_exempt(host: str, port: int | None, no_proxy: str) -> bool:
    """Whether ``host`` is asked without a proxy.

    Args:
        host: a name or an address; one of IPv6 with or without its brackets.
        port: that is asked there; None if it is not known.
        no_proxy: the variable's value.
    """
    if no_proxy.strip() == "*":
        return True
    name = host.strip("[]").partition("%")[0].rstrip(".").lower()
    try:
        address = ip_address(name)
    except ValueError:
        address = None
    return bool(name) and any(_matches(entry, name, address, port) for entry in re.split(r"[,\s]+", no_proxy) if entry)


def _matches(entry: str, name: str, address: IPv4Address | IPv6Address | None, port: int | None) -> bool:
    entry, needed_port = _parted(entry.lower())
    if needed_port is not None and needed_port != port:
        return False
    if address is None:
        pattern = entry.removesuffix(".").removeprefix(".")
        return bool(pattern) and (name == pattern or name.endswith(f".{pattern}"))
    try:
        return address in ip_network(entry, strict=False)
    except ValueError:
        return False


def _parted(entry: str) -> tuple[str, int | None]:
    """An entry's name, address or range, and its port if it has one."""
    bracketed = re.fullmatch(r"\[([^\]]*)\](/[0-9]+)?(?::([0-9]+))?", entry)
    if bracketed:
        return bracketed[1] + (bracketed[2] or ""), None if bracketed[3] is None else int(bracketed[3])
    rest, colon, port = entry.rpartition(":")
    if colon and ":" not in rest and re.fullmatch(r"[0-9]{1,5}", port):
        return rest, int(port)
    return entry, None
