"""Gather what ``genqueue doctor`` judges: ask Redis, ask the model servers, look for tokens.

The thin shell of :mod:`genqueue.doctor`, which decides.  Changes nothing: what would write is
queued in transactions that are discarded, and what may sleep at no cost is not woken.
"""

import contextlib
import http.client
import os
import ssl
import time
import urllib.request
import uuid
from dataclasses import replace
from urllib.parse import urlsplit

from genqueue import calls, doctor
from genqueue.address import read_address, without_secrets
from genqueue.doctor import EndpointSeen, Facts, Finding
from genqueue.errors import ConfigError, RedisUnavailableError, StoreError
from genqueue.rights import COMMANDS, Role, trials
from genqueue.settings import GeneratorSettings, Settings, is_sendable, load_settings, mistyped
from genqueue.store import Store

_CONNECT_S = 3.0


def examine(role: Role | None) -> list[Finding]:
    """All findings; without a role that of our user, where it is one of ours, else a worker's if it has generators."""
    try:
        settings = load_settings()
    except ConfigError as error:
        return [Finding("fail", "settings", str(error), "mend that key; README.md, Configuration, has all of them")]
    address = read_address(settings.redis_url)
    chosen = role or _role_of(address.username) or ("worker" if settings.generators else "producer")
    names = ", ".join(sorted(settings.generators)) or "none"
    known = [Finding("ok", "settings", f"role {chosen}; generators: {names}")]
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
    return known + doctor.judge(settings, chosen, facts, address.username or "default")


def _role_of(user: str | None) -> Role | None:
    return next((role for role in COMMANDS if user == f"genqueue-{role}"), None)


def _gather(store: Store, settings: Settings, role: Role, database: int) -> Facts:
    queued, live = trials(role, f"doctor-{uuid.uuid4().hex}", database)
    # First: it is what tells wrong credentials from a lack of rights.
    refused = store.refused([trial.command for trial in queued], [trial.command for trial in live])
    began, asked = time.time(), time.monotonic()
    redis_s = store.ask(calls.clock())
    took_s = time.monotonic() - asked
    overview, overview_error = None, ""
    try:
        if role != "flower":
            overview = store.run(calls.overview(list(settings.generators)))
    except RedisUnavailableError:
        raise
    except StoreError as error:
        overview_error = str(error)
    whole = [*queued, *live]
    return Facts(
        hello=store.ask(calls.hello()),
        info=store.ask(calls.info()),
        save=store.ask(calls.snapshot_rules()),
        refused=None if refused is None else [whole[index] for index in refused],
        clock_ahead_s=None if redis_s is None else began + took_s / 2 - redis_s,
        clock_bound_s=took_s / 2,
        overview=overview,
        overview_error=overview_error,
        endpoints=_endpoints(settings) if role == "worker" else (),
        missing_tokens=settings.missing_tokens(os.environ) if role == "worker" else {},
        broken_tokens=_broken_tokens(settings) if role == "worker" else {},
    )


def _endpoints(settings: Settings) -> list[EndpointSeen]:
    return [
        _see(name, generator, url)
        for name, generator in settings.generators.items()
        for url in generator.api_params.addresses
    ]


def _see(name: str, generator: GeneratorSettings, url: str) -> EndpointSeen:
    """Ask a Text Generation Inference for ``/health`` as a worker does; only connect to what a question may wake."""
    parts = urlsplit(url)
    is_tls, is_asked = parts.scheme == "https", generator.api_type == "text_generation_inference"
    port, host = parts.port or (443 if is_tls else 80), parts.hostname or ""
    seen = EndpointSeen(name, without_secrets(url), is_asked=is_asked)
    if _is_behind_proxy(parts.scheme, host):
        return replace(seen, is_behind_proxy=True)
    connection = (
        http.client.HTTPSConnection(host, port, timeout=_CONNECT_S, context=ssl.create_default_context())
        if is_tls
        else http.client.HTTPConnection(host, port, timeout=_CONNECT_S)
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
            return replace(seen, status=connection.getresponse().status)
        except ValueError:  # its words would hold all of it
            return replace(seen, trouble="its path cannot stand in a request")
        except (http.client.HTTPException, OSError):
            return seen


def _is_behind_proxy(scheme: str, host: str) -> bool:
    """Whether a worker with our environment would not call the server itself."""
    proxies = urllib.request.getproxies()
    return bool(proxies.get(scheme) or proxies.get("all")) and not urllib.request.proxy_bypass(host)


def _headers(generator: GeneratorSettings) -> dict[str, str]:
    _, token = generator.find_token(os.environ) or ("", "")
    bearer = {"authorization": f"Bearer {token}"} if token and is_sendable(token) else {}
    return bearer | {key: value.get_secret_value() for key, value in generator.api_params.headers.items()}


def _broken_tokens(settings: Settings) -> dict[str, str]:
    found = {name: generator.find_token(os.environ) for name, generator in settings.generators.items()}
    return {name: token[0] for name, token in found.items() if token and not is_sendable(token[1])}
