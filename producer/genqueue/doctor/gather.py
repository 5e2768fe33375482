"""Gather what ``genqueue doctor`` judges: ask Redis, ask the model servers, look for tokens.

The thin shell of :mod:`genqueue.doctor.judge`, which decides.  Changes nothing: what would write is
queued in transactions that are discarded, and what may sleep at no cost is not woken.
"""

import contextlib
import http.client
import io
import os
import socket
import ssl
import threading
import time
import urllib.request
import uuid
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from genqueue.acl import COMMANDS, Role, permission_checks
from genqueue.connection.address import read_address, secrets_of, without_secrets
from genqueue.connection.store import Store
from genqueue.doctor import judge
from genqueue.doctor.facts import EndpointSeen, Facts, FileSeen, Finding
from genqueue.errors import ConfigError, RedisUnavailableError, StoreError
from genqueue.masking import shown_path
from genqueue.no_proxy import proxy_for
from genqueue.registry import fleet, script, server
from genqueue.settings import (
    GeneratorSettings,
    Settings,
    is_sendable,
    load_settings,
    mistyped,
    read_settings_file,
    settings_file,
)

_STEP_S = 3.0
_LOOK_S = 5.0
"""For all of a look: each step has its limit, but a server decides how many there are."""
_MOST_BYTES = 64 * 1024
"""Of an answer up to its status, with all interim answers before it."""

T = TypeVar("T")


def examine(role: Role | None) -> list[Finding]:
    """All findings; without a role that of our user, where it is one of ours, else a worker's if it has generators."""
    of_file = _look_at_file()
    try:
        settings = load_settings()
    except ConfigError as error:
        return [
            *of_file,
            Finding("fail", "settings", str(error), "mend that key; README.md, Configuration, has all of them"),
        ]
    address = read_address(settings.redis_url)
    chosen = role or _role_of(address.username) or ("worker" if settings.generators else "producer")
    names = ", ".join(sorted(settings.generators)) or "none"
    known = [Finding("ok", "settings", f"role {chosen}; generators: {names}"), *of_file]
    known += [
        Finding("warn", "settings", f"nobody reads {variable}", f"call it {like} if that is meant, else drop it")
        for variable, like in mistyped(os.environ).items()
    ]
    store = Store(settings.redis_url, settings.redis_timeout_s)
    try:
        facts = _gather(store, settings, chosen, address.database)
    except RedisUnavailableError as error:
        return [*known, Finding("fail", "redis", str(error), "start Redis, or mend redis_url")]
    except StoreError as error:
        return [*known, Finding("fail", "redis", str(error), "mend the credentials or the certificate in redis_url")]
    finally:
        store.close()
    known.append(Finding("ok", "redis", f"answers at {address.name}"))
    return known + judge.judge(settings, chosen, facts, address.username or "default")


def _role_of(user: str | None) -> Role | None:
    return next((role for role in COMMANDS if user == f"genqueue-{role}"), None)


def _gather(store: Store, settings: Settings, role: Role, database: int) -> Facts:
    queued, live = permission_checks(role, f"doctor-{uuid.uuid4().hex}", database)
    # First: it is what tells wrong credentials from a lack of rights.
    refused = store.refused([check.command for check in queued], [check.command for check in live])
    began, began_s = time.time(), time.monotonic()
    redis_s = store.ask(server.clock())
    took_s = time.monotonic() - began_s
    overview, overview_error = None, ""
    try:
        if role != "flower":
            overview = store.run(fleet.overview(list(settings.generators)))
    except RedisUnavailableError:
        raise
    except StoreError as error:
        overview_error = str(error)
    whole = [*queued, *live]
    noted: list[str] = []
    return Facts(
        hello=store.ask(server.hello()),
        info=_ask_unnoted(store, server.info(), noted),
        save=_ask_unnoted(store, server.snapshot_rules(), noted),
        noted=noted,
        refused=None if refused is None else [whole[index] for index in refused],
        clock_ahead_s=None if redis_s is None else began + took_s / 2 - redis_s,
        clock_bound_s=took_s / 2,
        overview=overview,
        overview_error=overview_error,
        endpoints=_endpoints(settings) if role == "worker" else (),
        missing_tokens=settings.missing_tokens(os.environ) if role == "worker" else {},
        broken_tokens=_broken_tokens(settings) if role == "worker" else {},
    )


def _ask_unnoted(store: Store, call: script.Call[T], noted: list[str]) -> T | None:
    """As :meth:`Store.ask`, but what we may not say is not said; it is ``noted`` where Redis cannot tell before."""
    words = [str(word) for word in call.arguments]
    may = store.ask(server.may_say(*words))
    if may is False:
        return None
    answer = store.ask(call)
    if answer is None and may is None:
        noted.append(" ".join(words))
    return answer


def _look_at_file() -> list[Finding]:
    path = settings_file()
    try:
        if path is None or os.name != "posix":  # elsewhere rights are no mode
            return []
        return judge.judge_file(_file(path))
    except (OSError, ConfigError):
        return []  # that it cannot be read is said by whoever reads it


def _file(path: Path) -> FileSeen:
    about, folder = path.stat(), path.resolve().parent.stat()
    return FileSeen(
        path=shown_path(str(path)),
        mode=about.st_mode,
        owner=about.st_uid,
        group_is_owners=_is_private_group(about.st_gid, about.st_uid),
        folder_mode=folder.st_mode,
        folder_owner=folder.st_uid,
        folder_group_is_owners=_is_private_group(folder.st_gid, folder.st_uid),
        is_read_only=bool(os.statvfs(path).f_flag & os.ST_RDONLY),
        holds_secrets=_holds_secrets(read_settings_file(path)),
        us=os.geteuid(),
    )


def _is_private_group(group: int, user: int) -> bool:
    """Whether nobody but ``user`` is in it, as where each user has a group of the same name."""
    import grp  # which Windows lacks
    import pwd

    try:
        group_entry, owner = grp.getgrgid(group), pwd.getpwuid(user)
    except KeyError:
        return False
    return group_entry.gr_name == owner.pw_name and set(group_entry.gr_mem) <= {owner.pw_name}


def _holds_secrets(tables: Mapping[str, Any]) -> bool:
    """Whether a settings file has a password or a header's value in it."""
    redis_url = urlsplit(str(tables.get("redis_url", "")))
    if redis_url.password or "password=" in redis_url.query:
        return True
    generators = tables.get("generators")
    for generator in generators.values() if isinstance(generators, dict) else ():
        params = generator.get("api_params") if isinstance(generator, dict) else None
        if not isinstance(params, dict):
            continue
        urls = [params.get("url"), *(params.get("urls") or ())]
        if params.get("headers") or any(secrets_of(url) for url in urls if isinstance(url, str)):
            return True
    return False


def _endpoints(settings: Settings) -> list[EndpointSeen]:
    return [
        _look(name, generator, url)
        for name, generator in settings.generators.items()
        for url in generator.api_params.addresses
    ]


def _look(name: str, generator: GeneratorSettings, url: str) -> EndpointSeen:
    """As :func:`_see`, within 5 s, however slowly a server or a resolver answers."""
    answer: Future[EndpointSeen] = Future()

    def see() -> None:
        try:
            answer.set_result(_see(name, generator, url))
        except Exception as error:
            answer.set_exception(error)

    # A daemon: what still waits for its server does not keep us from ending.
    threading.Thread(target=see, name="genqueue-look", daemon=True).start()
    try:
        return answer.result(_LOOK_S)
    except TimeoutError:
        return EndpointSeen(name, without_secrets(url), trouble=f"no answer within {_LOOK_S:g} s")


def _see(name: str, generator: GeneratorSettings, url: str) -> EndpointSeen:
    """Ask a Text Generation Inference for ``/health`` as a worker does; only connect to what a question may wake."""
    parts = urlsplit(url)
    is_tls, is_asked = parts.scheme == "https", generator.api_type == "text_generation_inference"
    port, host = parts.port or (443 if is_tls else 80), parts.hostname or ""
    seen = EndpointSeen(name, without_secrets(url), is_asked=is_asked)
    if _is_behind_proxy(parts.scheme, host, port):
        return replace(seen, is_behind_proxy=True)
    connection = (
        http.client.HTTPSConnection(host, port, timeout=_STEP_S, context=ssl.create_default_context())
        if is_tls
        else http.client.HTTPConnection(host, port, timeout=_STEP_S)
    )
    with contextlib.closing(connection):
        try:
            connection.connect()
        except OSError as error:
            return replace(seen, trouble=error.strerror or str(error))
        if not is_asked:
            return seen
        try:
            connection.request("GET", f"{parts.path.rstrip('/')}/health", headers=_headers(generator))
            return replace(seen, status=_status(connection.sock))
        except ValueError:  # its words would hold all of it
            return replace(seen, trouble="its path cannot stand in a request")
        except (http.client.HTTPException, OSError):
            return seen


def _status(connection: socket.socket) -> int:
    """The status of the answer; http.client itself reads over interim answers without a limit."""
    answer = http.client.HTTPResponse(connection, method="GET")
    answer.fp.close()
    answer.fp = io.BufferedReader(_Bounded(connection))
    answer.begin()
    return answer.status


class _Bounded(io.RawIOBase):
    """What a connection receives, up to 64 KiB."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection, self._left_bytes = connection, _MOST_BYTES

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._left_bytes:
            raise http.client.HTTPException("no status within 64 KiB")
        size_bytes = self._connection.recv_into(buffer, min(len(buffer), self._left_bytes))
        self._left_bytes -= size_bytes
        return size_bytes


def _is_behind_proxy(scheme: str, host: str, port: int | None) -> bool:
    """Whether a worker with our environment would not call the server itself."""
    return proxy_for(scheme, host, port, urllib.request.getproxies()) is not None


def _headers(generator: GeneratorSettings) -> dict[str, str]:
    _, token = generator.find_token(os.environ) or ("", "")
    bearer = {"authorization": f"Bearer {token}"} if token and is_sendable(token) else {}
    return bearer | {key: value.get_secret_value() for key, value in generator.api_params.headers.items()}


def _broken_tokens(settings: Settings) -> dict[str, str]:
    token_of = {name: generator.find_token(os.environ) for name, generator in settings.generators.items()}
    return {name: token[0] for name, token in token_of.items() if token and not is_sendable(token[1])}
