"""Gather what ``genqueue doctor`` judges: ask Redis, connect to the model servers, look for tokens.

The thin shell of :mod:`genqueue.doctor`, which decides.  Changes nothing: what would write is
queued in transactions that are discarded.
"""

import os
import socket
import time
import uuid
from urllib.parse import urlsplit

from genqueue import calls, doctor
from genqueue.address import read_address
from genqueue.doctor import Facts, Finding
from genqueue.errors import ConfigError, RedisUnavailableError, StoreError
from genqueue.rights import COMMANDS, Role, trials
from genqueue.settings import Settings, load_settings
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
    known = [Finding("ok", "settings", f"as a {chosen}; generators: {names}")]
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
    hello = store.run(calls.hello())
    began, asked = time.time(), time.monotonic()
    redis_s = store.run(calls.clock())
    took_s = time.monotonic() - asked
    overview, overview_error = None, ""
    try:
        if role != "flower":
            overview = store.run(calls.overview(list(settings.generators)))
    except RedisUnavailableError:
        raise
    except StoreError as error:
        overview_error = str(error)
    queued, live = trials(role, f"doctor-{uuid.uuid4().hex}", database)
    refused = store.refused([trial.command for trial in queued], [trial.command for trial in live])
    whole = [*queued, *live]
    return Facts(
        hello=hello,
        info=store.ask(calls.info()),
        save=store.ask(calls.snapshot_rules()),
        refused=None if refused is None else [whole[index] for index in refused],
        clock_ahead_s=began + took_s / 2 - redis_s,
        clock_bound_s=took_s / 2,
        overview=overview,
        overview_error=overview_error,
        unreachable=_unreachable(settings) if role == "worker" else {},
        missing_tokens=_missing_tokens(settings) if role == "worker" else {},
    )


def _unreachable(settings: Settings) -> dict[str, str]:
    found = {}
    for generator in settings.generators.values():
        for url in generator.api_params.addresses:
            parts = urlsplit(url)
            port = parts.port or (443 if parts.scheme == "https" else 80)
            try:
                socket.create_connection((parts.hostname or "", port), _CONNECT_S).close()
            except OSError as error:
                found[f"{parts.scheme}://{parts.hostname}:{port}"] = error.strerror or str(error)
    return found


def _missing_tokens(settings: Settings) -> dict[str, tuple[str, ...]]:
    return {
        name: generator.token_names
        for name, generator in settings.generators.items()
        if generator.token_names and not any(os.environ.get(variable) for variable in generator.token_names)
    }
