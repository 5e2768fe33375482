"""Find the generator by where its model is, for those who know that and not its name.

A component of Haystack is told an ``api_type`` and a ``url`` or ``model``; workers have named
generators.  Both sides make the same digest of a location, so that the registry can be asked
without an address or a secret in it: a worker announces the digests of its generators, a
producer compares its own.  Pure.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import urlsplit

from genqueue.connection.address import without_secrets
from genqueue.settings import GeneratorSettings

_PORTS = {"http": 80, "https": 443}


def location_digest(
    api_type: str,
    *,
    url: str | None = None,
    model: str | None = None,
    provider: str | None = None,
    bill_to: str | None = None,
) -> str:
    """64 hex digits that stand for where a model is and who pays for it.

    A ``url`` counts without what may be secret in it (user, password, query) and however it is
    spelt (case of the host, port 80, a slash at the end); ``model`` and ``provider`` count where there is
    no ``url``, and no provider is "auto".
    """
    at = [_plain(url)] if url else [model, provider or "auto"]
    return hashlib.sha256(json.dumps([api_type, *at, bill_to]).encode()).hexdigest()


def location_digests(generator: GeneratorSettings) -> list[str]:
    """Every :func:`location_digest` that a generator calls."""
    params = generator.api_params
    return [
        location_digest(
            generator.api_type, url=url, model=params.model, provider=params.provider, bill_to=params.bill_to
        )
        for url in params.addresses or (None,)
    ]


def generators_at(wanted: str, digests_of: Mapping[str, Collection[str]]) -> list[str]:
    """The names of the generators that call the location with the digest ``wanted``, in order."""
    return sorted(name for name, digests in digests_of.items() if wanted in digests)


def toml_for(
    api_type: str, api_params: Mapping[str, Any], token_env: Collection[str], taken: Collection[str] = ()
) -> str:
    """What to add to a worker's ``genqueue.toml`` for a generator at this place, under a name that is not ``taken``.

    Secrets are left out; of headers only the names are there, in a comment.
    """
    shown = {key: api_params[key] for key in ("url", "model", "provider", "bill_to", "timeout") if api_params.get(key)}
    if "url" in shown:
        shown = {**shown, "url": without_secrets(shown["url"])}
    pairs = ", ".join(f"{key} = {_toml(value)}" for key, value in shown.items())
    names = ("default", *(f"default-{number}" for number in range(2, len(taken) + 2)))
    name = next(name for name in names if name not in taken)
    lines = [f"[generators.{name}]", f"api_type = {_toml(api_type)}", f"api_params = {{ {pairs} }}"]
    if headers := api_params.get("headers"):
        shown_headers = ", ".join(f'{_toml(header)} = "..."' for header in headers)
        lines.append(f"# The component's headers are to be added to api_params: headers = {{ {shown_headers} }}")
    if token_env:
        lines.append(f"token_env = {_toml(list(token_env))}")
    return "\n".join(lines)


def _toml(value: Any) -> str:
    # A string of JSON is one of TOML, but for escapes of half a character, and for what JSON may leave as it is.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _plain(url: str) -> str:
    parts = urlsplit(url)
    port = "" if parts.port in {None, _PORTS.get(parts.scheme)} else f":{parts.port}"
    return f"{parts.scheme}://{parts.hostname}{port}{parts.path.rstrip('/')}"
