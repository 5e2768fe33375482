"""The settings of producers and workers: one frozen model, read once, by whoever starts.

Order of precedence: arguments, ``GENQUEUE_*`` variables, the TOML file that
``GENQUEUE_CONFIG`` names (``./genqueue.toml`` if that exists), defaults.  Tokens are never
in it: a generator names the environment variables that hold its token (``token_env``).
Addresses and headers may hold credentials: no ``repr`` shows them, and a dump shows the rest of an address.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self
from urllib.parse import SplitResult, urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_serializer,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from genqueue.connection.address import TLS_FILES, read_address, without_secrets
from genqueue.errors import ConfigError
from genqueue.keys import GENERATOR_NAME
from genqueue.masking import is_token, looks_secret, shown, shown_path
from genqueue.wire.addresses import addresses
from genqueue.wire.chat import ChatKwargs, StopWord
from genqueue.wire.extra_body import ANY, refused
from genqueue.wire.json_schemas import REFERENCE, remote_references
from genqueue.wire.problems import describe
from genqueue.wire.request import DEFAULT_BOUNDS, PARTS, Bounds, GenerationKwargs, Given

_A_TOKEN = "looks like a token, so it is not repeated here; token_env names the variable that holds it"
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""RFC 9110, 5.6.2."""
_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_OF_A_SERVICE = re.compile(r"(^|_)(SERVICE_HOST|SERVICE_PORT\w*|PORT(_\d+_\w+)?)$")


def is_sendable(value: str) -> bool:
    """Whether a request can carry it in a header."""
    return value.isascii() and value.isprintable()


def _name(value: str) -> str:
    if looks_secret(value):
        raise ValueError(_A_TOKEN)
    return value


def _variable(value: str) -> str:
    if looks_secret(value) or not _VARIABLE_NAME.fullmatch(value):
        raise ValueError(
            "no name of an environment variable; it may be the token itself, so it is not repeated: "
            "put the token into a variable, and its name here"
        )
    return value


def _sendable(value: SecretStr) -> SecretStr:
    if not is_sendable(value.get_secret_value()):
        raise ValueError("holds a character that cannot stand in a header")
    return value


def _model(value: str) -> str:
    """Shown in results, metrics and traces, so it may hold no secret."""
    if "://" in value and without_secrets(value) != value:
        raise ValueError("an address here has no user, password or query: api_params.url may")
    if is_token(value):
        raise ValueError(_A_TOKEN)
    return value


class _Checked(BaseModel):
    """A part of the settings, or all of them: made by hand it raises our error, in words without the value.

    Where it is read as a part of another, pydantic calls no ``__init__``, and the whole one's error has the places.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    def __init__(self, **values: Any) -> None:
        with _our_error(type(self)):
            super().__init__(**values)

    # As pydantic marks its own: not to be called for a part.  Else the part's error would lack the place of the part.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> Self:
        """As pydantic has it, but for the error."""
        with _our_error(cls):
            return super().model_validate(obj, **options)

    @classmethod
    def model_validate_json(cls, json_data: str | bytes | bytearray, **options: Any) -> Self:
        """As pydantic has it, but for the error."""
        with _our_error(cls):
            return super().model_validate_json(json_data, **options)


@contextmanager
def _our_error(kind: type[BaseModel]) -> Iterator[None]:
    try:
        yield
    except ValidationError as error:
        what = "settings" if issubclass(kind, Settings) else kind.__name__
        raise ConfigError(f"{what}: {'; '.join(describe(error, PARTS))}") from None


ApiType = Literal["text_generation_inference", "inference_endpoints", "serverless_inference_api"]


class ApiParams(_Checked):
    """Where a generator's model is: a ``url`` or several ``urls``, or a ``model`` id and its ``provider``.

    With a ``url``, ``model`` is only the name that results carry.  ``timeout`` is the longest
    silence in seconds, before the first token and between tokens, where ``timeouts`` says nothing else.

    Raises:
        ConfigError: a value cannot work; names each key, and shows no value.
    """

    url: str | None = Field(None, repr=False)
    urls: tuple[str, ...] = Field((), repr=False)
    model: Annotated[str, AfterValidator(_model)] | None = None
    provider: Annotated[str, AfterValidator(_name)] | None = None
    bill_to: Annotated[str, AfterValidator(_name)] | None = None
    timeout: float | None = Field(None, gt=0)
    headers: dict[str, Annotated[SecretStr, AfterValidator(_sendable)]] = {}

    @field_validator("url")
    @classmethod
    def _http(cls, value: str | None) -> str | None:
        return None if value is None else _http_address(value)

    @field_validator("urls")
    @classmethod
    def _all_http(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError("the same address twice")
        return tuple(map(_http_address, value))

    @field_validator("headers")
    @classmethod
    def _named(cls, value: dict[str, SecretStr]) -> dict[str, SecretStr]:
        for name in value:
            if not _HEADER_NAME.fullmatch(name):
                raise ValueError(f"{shown(name)!r}: a name has letters, digits and any of !#$%&'*+-.^_`|~")
            _name(name)
        return value

    @field_serializer("url")
    def _url_without_secrets(self, value: str | None) -> str | None:
        return None if value is None else without_secrets(value)

    @field_serializer("urls")
    def _urls_without_secrets(self, value: tuple[str, ...]) -> list[str]:
        return [without_secrets(url) for url in value]

    @property
    def named_model(self) -> str | None:
        """The model's name; None where only an address is known."""
        return self.model if self.model and "://" not in self.model else None

    @property
    def addresses(self) -> tuple[str, ...]:
        """Every url; () where a model id takes its place."""
        return (self.url,) if self.url else self.urls


class Timeouts(_Checked):
    """How long a server may be silent, in seconds, before the attempt counts as failed.

    Unset, silence may last ``api_params.timeout``, and where that is unset too 600 s before the
    first token and 60 s between two.  What the server cannot stream (``best_of``) may take the
    sum for ``max_new_tokens``.  TGI's keep-alive comments are no tokens.

    Raises:
        ConfigError: a value cannot work; names each key, and shows no value.
    """

    connect_s: float = Field(5.0, gt=0, allow_inf_nan=False)
    first_token_s: float | None = Field(None, gt=0, allow_inf_nan=False)
    between_tokens_s: float | None = Field(None, gt=0, allow_inf_nan=False)


class GeneratorSettings(_Checked):
    """One named Hugging Face client configuration; each has a Celery queue of its own.

    ``generation_kwargs`` are for prompts, ``chat_kwargs`` for chats.  ``continues_chat`` says that
    the server goes on with an assistant's last message, so that a chat can be continued too.
    ``fetches_images`` says that the server may be told to fetch images, audio and video from
    wherever a chat says; unset, only Inference Providers may, which do it from their own network.
    ``allowed_extra_body`` names parameters that a chat's ``extra_body`` may hold beside the known ones
    (:mod:`genqueue.wire.extra_body`), ``*`` all; ``$ref`` allows references that lead out of a JSON schema
    (:mod:`genqueue.wire.json_schemas`).  Unset, Inference Providers are given all, others none more.

    Raises:
        ConfigError: a value cannot work; names each key, and shows no value.
    """

    DEFAULT_TOKEN_ENV: ClassVar = ("HF_API_TOKEN", "HF_TOKEN")
    DEFAULT_FIRST_TOKEN_S: ClassVar = 600.0
    DEFAULT_BETWEEN_TOKENS_S: ClassVar = 60.0

    api_type: ApiType
    api_params: ApiParams
    timeouts: Timeouts = Timeouts()
    token_env: tuple[Annotated[str, AfterValidator(_variable)], ...] | None = None
    generation_kwargs: GenerationKwargs = GenerationKwargs()
    chat_kwargs: ChatKwargs = ChatKwargs()
    continues_chat: bool = False
    fetches_images: bool | None = None
    allowed_extra_body: tuple[str, ...] | None = None
    stop_words: tuple[StopWord, ...] = ()
    max_queue_depth: int = Field(10_000, ge=0)
    max_attempts: int = Field(5, ge=1)

    @model_validator(mode="after")
    def _address(self) -> Self:
        if self.api_type == "serverless_inference_api":
            if not self.api_params.model:
                raise ValueError("api_params.model: needed for api_type 'serverless_inference_api'")
            if self.api_params.addresses:
                raise ValueError("api_params.url: not for api_type 'serverless_inference_api', which takes a model")
        elif not self.api_params.addresses:
            raise ValueError(f"api_params.url: needed for api_type {self.api_type!r}")
        elif self.api_params.url and self.api_params.urls:
            raise ValueError("api_params.url: either url or urls")
        return self

    def refusal(
        self, given: Given, extra_body: Mapping[str, Any] | None = None, forms: Mapping[str, Any] | None = None
    ) -> str | None:
        """Why the server is not given this; None if it is.

        Args:
            given: a prompt, or a chat's messages.
            extra_body: of a chat.
            forms: what else may hold JSON schemas (``tools``, ``response_format``, ``grammar``), by its place.
        """
        is_serverless = self.api_type == "serverless_inference_api"
        allowed = (ANY,) if self.allowed_extra_body is None and is_serverless else self.allowed_extra_body or ()
        if not {ANY, REFERENCE} & {*allowed} and (places := remote_references(forms or {})):
            return (
                f"{places[0]}: a model server would fetch this reference; put what it means into the schema and refer "
                "to that (#/$defs/…), or have the generator's settings name $ref in allowed_extra_body"
            )
        if isinstance(given, str):
            return None
        may_fetch = is_serverless if self.fetches_images is None else self.fetches_images
        if not may_fetch and (places := addresses(given, extra_body)):
            return (
                f"{places[0]}: the model server would fetch this address; give a data: URI, "
                "or have the generator's settings say fetches_images = true"
            )
        if places := refused(extra_body or {}, self.chat_kwargs.extra_body or {}, allowed):
            return (
                f"generation_kwargs.extra_body.{places[0]}: no parameter that is known to be harmless; if it is, "
                "have the generator's settings name it in allowed_extra_body"
            )
        return None

    @property
    def first_token_s(self) -> float:
        """The longest silence before the first token."""
        return self.timeouts.first_token_s or self.api_params.timeout or self.DEFAULT_FIRST_TOKEN_S

    @property
    def between_tokens_s(self) -> float:
        """The longest silence between two tokens."""
        return self.timeouts.between_tokens_s or self.api_params.timeout or self.DEFAULT_BETWEEN_TOKENS_S

    @property
    def token_names(self) -> tuple[str, ...]:
        """The variables that may hold the token; none for a self-hosted url that names none."""
        if self.token_env is not None:
            return self.token_env
        return () if self.api_type == "text_generation_inference" else self.DEFAULT_TOKEN_ENV

    def find_token(self, environ: Mapping[str, str]) -> tuple[str, str] | None:
        """The first of its variables that is set, and the token without the line's end that files of secrets have."""
        values = ((name, environ.get(name, "").strip()) for name in self.token_names)
        return next(((name, token) for name, token in values if token), None)


class Settings(_Checked):
    """What producers and workers must agree on, and what a worker serves.

    Built by hand it has what it is given and defaults: :func:`load_settings` reads the environment and the file.

    Raises:
        ConfigError: a value cannot work; names each key, and shows no value.
    """

    redis_url: str = Field("redis://127.0.0.1:6379/0", repr=False)
    redis_timeout_s: float = Field(5.0, gt=0, allow_inf_nan=False)
    outage_patience_s: float = Field(60.0, ge=0, allow_inf_nan=False)
    generators: dict[str, GeneratorSettings] = {}
    lease_s: float = Field(3.0, gt=0, allow_inf_nan=False)
    drain_s: float = Field(20.0, ge=0, allow_inf_nan=False)
    flush_gap_s: float = Field(0.02, ge=0, le=1, allow_inf_nan=False)
    log_ttl_s: int = Field(3600, ge=1)
    result_ttl_s: int = Field(86_400, ge=1)
    keep_s: int = Field(7 * 86_400, ge=60)
    log_format: Literal["auto", "text", "json"] = "auto"
    max_prompt_bytes: int = Field(DEFAULT_BOUNDS.max_prompt_bytes, ge=1)
    max_request_bytes: int = Field(DEFAULT_BOUNDS.max_request_bytes, ge=1)
    max_completion_tokens: int = Field(DEFAULT_BOUNDS.max_completion_tokens, ge=1)
    max_reply_bytes: int = Field(64_000_000, ge=1)
    monitor_port: int | None = Field(None, ge=0, le=65_535)
    monitor_host: str = "127.0.0.1"

    @property
    def bounds(self) -> Bounds:
        """How large a request may be, and what it asks for."""
        return Bounds(self.max_prompt_bytes, self.max_request_bytes, self.max_completion_tokens)

    def missing_tokens(self, environ: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
        """For each generator that has none the variables that may hold its token."""
        return {
            name: generator.token_names
            for name, generator in self.generators.items()
            if generator.token_names and generator.find_token(environ) is None
        }

    @field_serializer("redis_url")
    def _without_secrets(self, value: str) -> str:
        return without_secrets(value)

    @field_validator("redis_url")
    @classmethod
    def _redis(cls, value: str) -> str:
        address = read_address(value)
        for name in TLS_FILES:
            path = (address.tls or {}).get(name)
            if path is not None and not os.access(path, os.R_OK):
                raise ValueError(f"{name}: cannot read {path}")
        return value

    @model_validator(mode="after")
    def _lifetimes(self) -> Self:
        if self.keep_s < self.result_ttl_s:
            raise ValueError(
                f"keep_s: is {self.keep_s}, must be at least result_ttl_s ({self.result_ttl_s}), "
                "or an idempotency key would outlive its generation"
            )
        return self

    @field_validator("generators")
    @classmethod
    def _names(cls, value: dict[str, GeneratorSettings]) -> dict[str, GeneratorSettings]:
        for name in value:
            if not re.fullmatch(GENERATOR_NAME, name):
                raise ValueError(f"{shown(name)!r}: a name has 1 to 64 of A-Z, a-z, 0-9, '.', '_' and '-'")
            _name(name)
        return value


class _Variables(Settings, BaseSettings):
    """How pydantic-settings is told the names and types of our variables; none is ever made."""

    model_config = SettingsConfigDict(env_prefix="GENQUEUE_")


def load_settings(**overrides: Any) -> Settings:
    """Read the settings from arguments, environment and file.

    Raises:
        ConfigError: a value cannot work, or the file cannot be read; names each key, the variable that it came from,
            and the file if there is one.
    """
    path = settings_file()
    of_file = {} if path is None else read_settings_file(path)
    try:
        of_variables = EnvSettingsSource(_Variables)()
    except SettingsError as error:  # GENQUEUE_GENERATORS takes JSON; what it says holds the field, not the value
        raise ConfigError(f"settings: {error}") from None
    try:
        return Settings(**_over(_over(of_file, of_variables), overrides))
    except ConfigError as error:
        prefix = _Variables.model_config["env_prefix"]
        named = [name for name in of_variables.keys() - overrides.keys() if re.search(rf" {name}[:.]", str(error))]
        places = [f"variable {prefix}{name.upper()}" for name in sorted(named)]
        places += [f"settings file: {shown_path(str(path))}"] if path else []
        where = f" ({'; '.join(places)})" if places else ""
        raise ConfigError(f"{error}{where}") from None


def _over(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """Both, ``high`` where they disagree, tables key by key."""
    merged = {**low, **high}
    for name in low.keys() & high.keys():
        if isinstance(low[name], dict) and isinstance(high[name], dict):
            merged[name] = _over(low[name], high[name])
    return merged


def mistyped(variables: Iterable[str]) -> dict[str, str]:
    """Those that nobody reads though they look like a setting's, each with the one it looks like.

    What only shares the prefix is left alone: Kubernetes sets ``GENQUEUE_PORT_6379_TCP`` and more of
    its kind for a Service of that name.
    """
    prefix = _Variables.model_config["env_prefix"]
    known = ["CONFIG", *(name.upper() for name in Settings.model_fields)]
    meant = {}
    for variable in variables:
        name = variable.upper().removeprefix(prefix)
        if name == variable.upper() or name in known or _OF_A_SERVICE.search(name):
            continue
        for like in difflib.get_close_matches(name, known, n=1, cutoff=0.7):
            meant[variable] = prefix + like
    return meant


def _http_address(value: str) -> str:
    address = _address(value)
    if address.scheme not in {"http", "https"} or not address.hostname:
        raise ValueError("must be an http:// or https:// address")
    return value


def _address(value: str) -> SplitResult:
    """The parts of an address; ValueError if its host or port is none (``urlsplit`` looks at the port on use only)."""
    parts = urlsplit(value)
    try:
        _ = parts.port
    except ValueError:
        raise ValueError("the port must be a number from 0 to 65535") from None
    return parts


def settings_file() -> Path | None:
    """The file that is read; None where there is none, and none is named."""
    named = os.environ.get("GENQUEUE_CONFIG")
    path = Path(named or "genqueue.toml")
    return path if named or path.exists() else None


def read_settings_file(path: Path) -> dict[str, Any]:
    """Its tables, unchecked.

    Raises:
        ConfigError: it cannot be read, or is no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"GENQUEUE_CONFIG: cannot read {shown_path(str(path))}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        words = " ".join(map(shown, str(error).split()))  # a key that stands there twice is quoted
        raise ConfigError(f"{shown_path(str(path))} is no TOML: {words}") from None
