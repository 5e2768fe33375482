"""Which generator a component means: by name, or by the place that it was told. Pure."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from urllib.parse import urlsplit

from haystack.utils import Secret
from haystack.utils.auth import SecretType
from haystack.utils.url_validation import is_valid_http_url

from genqueue.connection.address import without_secrets
from genqueue.discovery import generators_at, location_digest, toml_for
from genqueue.errors import ConfigError, UnknownGeneratorError
from genqueue.masking import MASK, is_token
from genqueue.settings import GeneratorSettings


class HFGenerationAPIType(StrEnum):
    """The kinds of Hugging Face APIs, as Haystack 2 had them in ``haystack.utils.hf``."""

    TEXT_GENERATION_INFERENCE = "text_generation_inference"
    INFERENCE_ENDPOINTS = "inference_endpoints"
    SERVERLESS_INFERENCE_API = "serverless_inference_api"


@dataclass(frozen=True, slots=True)
class Named:
    """A generator that workers have, by its name."""

    generator: str

    @property
    def model(self) -> None:
        """Only the worker knows."""
        return None

    def check(self, known: Collection[str]) -> None:
        """Whether it is one of the ``known`` generators.

        Raises:
            UnknownGeneratorError: it is none.
        """
        if self.generator not in known:
            raise UnknownGeneratorError(self.generator, sorted(known))


@dataclass(frozen=True, slots=True)
class Placed:
    """A generator that workers have, by where its model is.

    Attributes:
        token_env: names of the variables that a worker should take the token from.
    """

    api_type: HFGenerationAPIType
    api_params: Mapping[str, Any]
    token_env: tuple[str, ...]

    @property
    def model(self) -> str:
        """The ``url`` or ``model`` that the component was given."""
        is_serverless = self.api_type is HFGenerationAPIType.SERVERLESS_INFERENCE_API
        model: str = self.api_params["model" if is_serverless else "url"]
        return model

    def find(self, digests_of: Mapping[str, Collection[str]]) -> str:
        """The name of the generator that calls this place.

        Args:
            digests_of: for each generator the digests of the locations that it calls.

        Raises:
            ConfigError: there is none, and how to make one; or there are several.
        """
        params = self.api_params
        is_serverless = self.api_type is HFGenerationAPIType.SERVERLESS_INFERENCE_API
        wanted = location_digest(
            self.api_type,
            url=None if is_serverless else params["url"],
            model=params.get("model"),
            provider=params.get("provider"),
            bill_to=params.get("bill_to"),
        )
        match generators_at(wanted, digests_of):
            case [name]:
                return name
            case []:
                at = params["model"] if is_serverless else without_secrets(params["url"])
                known = ", ".join(sorted(digests_of)) or "none (has a worker ever started on this Redis?)"
                raise ConfigError(
                    f"no worker has a generator for {self.api_type} at {at}; known: {known}.\n"
                    f"Add this to the workers' genqueue.toml under this name or one of your own, and restart them:\n\n"
                    f"{toml_for(self.api_type, params, self.token_env, digests_of.keys())}\n"
                )
            case several:
                raise ConfigError(
                    f"the generators {', '.join(several)} call the same place: say which with generator=…"
                )


def target_of(
    generator: str | None, api_type: str | None, api_params: Mapping[str, Any] | None, token: Secret | None
) -> Named | Placed:
    """What a component's arguments mean.

    Raises:
        ValueError: they name no place, or a place and a name.
    """
    if generator is not None:
        if api_type is not None or api_params is not None:
            raise ValueError("Pass either `generator` or `api_type` and `api_params`: they are the worker's to know.")
        return Named(generator)
    if api_type is None or api_params is None:
        raise ValueError("Pass `api_type` and `api_params`, or the name of one of the workers' as `generator`.")
    try:
        kind = HFGenerationAPIType(str(api_type))
    except ValueError:
        supported = [str(kind) for kind in HFGenerationAPIType]
        raise ValueError(f"Unknown Hugging Face API type '{api_type}'. Supported types are: {supported}") from None
    if kind is HFGenerationAPIType.SERVERLESS_INFERENCE_API:
        if api_params.get("model") is None:
            raise ValueError(
                "To use the Serverless Inference API, you need to specify the `model` parameter in `api_params`."
            )
    elif api_params.get("url") is None:
        raise ValueError(
            "To use Text Generation Inference or Inference Endpoints, you need to specify the `url` parameter "
            "in `api_params`."
        )
    elif not _is_address(api_params["url"]):
        url = str(api_params["url"])  # one that holds a password, or is a token, is not repeated
        raise ValueError(f"Invalid URL: {MASK if '@' in url or is_token(url) else url}")
    return Placed(kind, api_params, _token_env(kind, token))


def _is_address(url: str) -> bool:
    """What the original takes for a URL, if its host and port can be told too."""
    try:
        parts = urlsplit(url)
        return is_valid_http_url(url) and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _token_env(kind: HFGenerationAPIType, token: Secret | None) -> tuple[str, ...]:
    """Where a worker should look for the token; a self-hosted server gets none that was not meant for it."""
    if token is None:
        return ()
    if token.type is not SecretType.ENV_VAR:
        return ("HF_API_TOKEN",)
    names = tuple(token.to_dict()["env_vars"])
    is_meant = kind is not HFGenerationAPIType.TEXT_GENERATION_INFERENCE or names != GeneratorSettings.DEFAULT_TOKEN_ENV
    return names if is_meant else ()
