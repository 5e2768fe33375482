"""Read ``redis_url``: one Redis or a master that Sentinels know, with TLS or without.

    redis://[user[:password]@]host[:6379][/database]
    rediss://…                                                             the same over TLS
    redis+sentinel://[user[:password]@]host[:26379][,host…]/master[/database]
    rediss+sentinel://…                                                    TLS to the Sentinels too

The query holds TLS options (``TLS_OPTIONS``), ``sentinel_username`` and ``sentinel_password``
(what the Sentinels ask for; the user and password before the ``@`` are Redis's), and nothing
else: what redis-py would take beside them, kombu does not.  Pure: whether the files of a certificate can
be read is for :mod:`genqueue.settings` to see.  No error shows any part of the address but names of options.
"""

import re
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from genqueue.masking import shown

_SCHEMES = ("redis", "rediss", "redis+sentinel", "rediss+sentinel")
_OF_REDIS_PY = frozenset(
    [
        *("username", "password", "db", "client_name", "encoding", "decode_responses", "protocol", "max_connections"),
        *("timeout", "socket_timeout", "socket_connect_timeout", "socket_keepalive", "health_check_interval"),
    ]
)
"""Options that are told by name: who knows redis-py would write them."""
_CERTIFICATE_CHECKS = ("required", "optional", "none")

TLS_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
TLS_OPTIONS = (*TLS_FILES, "ssl_cert_reqs", "ssl_check_hostname")
"""The CA that signed the server's certificate; ours, and its key; required, optional or none; true or false."""


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """Where Redis is, or who knows that.

    Attributes:
        nodes: (host, port) of the one Redis, or of each Sentinel.
        master: what the Sentinels call the Redis to be used; None without Sentinels.
        tls: ``TLS_OPTIONS`` as redis-py takes them; None without TLS.
    """

    nodes: tuple[tuple[str, int], ...]
    master: str | None
    database: int
    username: str | None
    password: str | None = field(repr=False)
    sentinel_username: str | None
    sentinel_password: str | None = field(repr=False)
    tls: Mapping[str, Any] | None

    @property
    def name(self) -> str:
        """Which Redis this is, for people: no credentials."""
        hosts = ", ".join(f"{host}:{port}" for host, port in self.nodes)
        return hosts if self.master is None else f"{self.master} (Sentinels {hosts})"

    def url(self, scheme: str) -> str:
        """The address of the first node in one of Celery's schemes: credentials and database, no query."""
        host, port = self.nodes[0]
        user, secret = quote(self.username or "", safe=""), quote(self.password or "", safe="")
        credentials = f"{user}:{secret}@" if user or secret else ""
        return f"{scheme}://{credentials}{f'[{host}]' if ':' in host else host}:{port}/{self.database}"


def read_address(url: str) -> RedisAddress:
    """Take a ``redis_url`` apart.

    Raises:
        ValueError: it is none; says what is wrong, without any value of it.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in _SCHEMES:
        raise ValueError("must be a redis:// or rediss:// address, or redis+sentinel:// or rediss+sentinel://")
    parts = urlsplit(f"//{rest}")
    if "#" in rest:
        raise ValueError("no # may stand in an address: in a password it is %23")
    has_sentinels = scheme.endswith("+sentinel")
    credentials, _, hosts = parts.netloc.rpartition("@")
    nodes = tuple(_node(host, 26379 if has_sentinels else 6379) for host in hosts.split(","))
    if len(nodes) > 1 and not has_sentinels:
        raise ValueError(
            "must be a redis:// or rediss:// address of one host; several are Sentinels (redis+sentinel://)"
        )
    username, _, password = credentials.partition(":")
    master, database = _path(parts.path, has_sentinels)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    sentinel_username, sentinel_password = (
        options.pop("sentinel_username", None),
        options.pop("sentinel_password", None),
    )
    if not has_sentinels and (sentinel_username or sentinel_password):
        raise ValueError("sentinel_username and sentinel_password are for redis+sentinel:// addresses")
    given = {name: options.pop(name) for name in list(options) if name.startswith("ssl_")}
    if options:
        known = ", ".join((*TLS_OPTIONS, "sentinel_username", "sentinel_password"))
        # The rest of a password with a ? in it would be taken for a name.
        names = sorted(name if name in _OF_REDIS_PY else "something" for name in options)
        raise ValueError(
            f"{', '.join(names)}: no option of an address; known: {known} "
            "(user and password stand before the @, a ? in them as %3F; the database is the path)"
        )
    return RedisAddress(
        nodes=nodes,
        master=master,
        database=database,
        username=unquote(username) or None,
        password=unquote(password) or None,
        sentinel_username=sentinel_username,
        sentinel_password=sentinel_password,
        tls=_tls(given, scheme.startswith("rediss")),
    )


def without_secrets(url: str) -> str:
    """Any url without user, password and query, fit for messages."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def secrets_of(url: str) -> list[str]:
    """What :func:`without_secrets` leaves out of a url, but for the user's name, in each form in which it is sent."""
    parts = urlsplit(url)
    user, _, password = (unquote(part) for part in parts.netloc.rpartition("@")[0].partition(":"))
    secrets = [*parse_qsl(parts.query), ("", parts.query), ("", password), ("", parts.password or "")]
    if password:
        secrets.append(("", b64encode(f"{user}:{password}".encode()).decode()))  # the header that a client makes of it
    return [value for _, value in secrets if value]


def _node(text: str, default_port: int) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        if "port" in str(error).lower():
            raise ValueError("the port must be a number from 0 to 65535") from None
        raise
    if not host:
        raise ValueError("must be a redis:// or rediss:// address with a host")
    return unquote(host), default_port if port is None else port


def _path(path: str, has_sentinels: bool) -> tuple[str | None, int]:
    """The master's name and the database's number."""
    if not has_sentinels:
        if not re.fullmatch(r"(/[0-9]*)?", path):
            raise ValueError("the path must be the number of a database")
        return None, int(path[1:] or 0)
    parts = re.fullmatch(r"/([^/]+)(?:/([0-9]*))?", path)
    if parts is None:
        raise ValueError(
            "the path must be the name of the Sentinels' master, and may end with the number of a database"
        )
    return unquote(parts[1]), int(parts[2] or 0)


def _tls(given: dict[str, str], is_tls: bool) -> dict[str, Any] | None:
    if not is_tls:
        if given:
            raise ValueError(f"{', '.join(given)}: for rediss:// addresses only")
        return None
    if unknown := given.keys() - set(TLS_OPTIONS):
        raise ValueError(f"{', '.join(sorted(map(shown, unknown)))}: no TLS option; known: {', '.join(TLS_OPTIONS)}")
    # "CERT_REQUIRED" is how Celery's documentation has it.
    checks = given.get("ssl_cert_reqs", "required").lower().removeprefix("cert_")
    if checks not in _CERTIFICATE_CHECKS:
        raise ValueError(f"ssl_cert_reqs must be one of {', '.join(_CERTIFICATE_CHECKS)}")
    check_hostname = given.get("ssl_check_hostname", "true").lower()
    if check_hostname not in {"true", "false"}:
        raise ValueError("ssl_check_hostname must be true or false")
    if ("ssl_certfile" in given) != ("ssl_keyfile" in given):
        raise ValueError("ssl_certfile and ssl_keyfile go together")
    return {
        **given,
        "ssl_cert_reqs": checks,
        # Who does not look at the certificate does not look at its name either.
        "ssl_check_hostname": check_hostname == "true" and checks != "none",
    }
