"""Arguments, then environment, then the file; every refusal names its key in one line."""

import json
from pathlib import Path
from typing import Any

import pytest

from genqueue.errors import ConfigError
from genqueue.settings import ApiParams, GeneratorSettings, Settings, Timeouts, load_settings, mistyped

SECRET = "s3cret-do-not-show"
TGI = 'api_type = "text_generation_inference"'


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No GENQUEUE_* variable, and a working folder without a settings file."""
    for name in [name for name in __import__("os").environ if name.startswith("GENQUEUE_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def write(text: str, name: str = "genqueue.toml") -> str:
    Path(name).write_text(text, encoding="utf-8")
    return name


def test_without_anything_the_defaults_stand():
    settings = load_settings()
    assert settings.redis_url == "redis://127.0.0.1:6379/0"
    assert settings.generators == {}
    assert (settings.redis_timeout_s, settings.lease_s) == (5.0, 3.0)
    assert (settings.monitor_port, settings.monitor_host) == (None, "127.0.0.1")
    assert (settings.log_ttl_s, settings.result_ttl_s, settings.keep_s) == (3600, 86_400, 7 * 86_400)


def test_arguments_win_over_environment_over_file_over_defaults(monkeypatch):
    write("redis_timeout_s = 1\nlog_ttl_s = 1\nresult_ttl_s = 1\n")
    monkeypatch.setenv("GENQUEUE_LOG_TTL_S", "2")
    monkeypatch.setenv("GENQUEUE_RESULT_TTL_S", "2")
    settings = load_settings(result_ttl_s=3)
    assert (settings.redis_timeout_s, settings.log_ttl_s, settings.result_ttl_s, settings.lease_s) == (1.0, 2, 3, 3.0)


def test_the_named_file_is_read_instead_of_the_default_one(monkeypatch):
    write("log_ttl_s = 1")
    monkeypatch.setenv("GENQUEUE_CONFIG", write("log_ttl_s = 2", "other.toml"))
    assert load_settings().log_ttl_s == 2


def test_a_named_file_must_exist_and_the_default_one_need_not(monkeypatch):
    assert load_settings() == Settings()
    monkeypatch.setenv("GENQUEUE_CONFIG", "nowhere.toml")
    with pytest.raises(ConfigError, match=r"^GENQUEUE_CONFIG: cannot read nowhere.toml: No such file or directory$"):
        load_settings()


def test_a_generator_is_read_whole():
    write(
        """
        [generators.chat]
        api_type = "inference_endpoints"
        api_params = { url = "https://x.endpoints.huggingface.cloud", timeout = 60 }
        token_env = ["MINE"]
        generation_kwargs = { max_new_tokens = 5, temperature = 1 }
        stop_words = ["\\n"]
        max_queue_depth = 7
        """
    )
    chat = load_settings().generators["chat"]
    assert chat.api_params.timeout == 60
    assert chat.token_names == ("MINE",)
    assert chat.generation_kwargs.max_new_tokens == 5
    assert chat.stop_words == ("\n",)
    assert chat.max_queue_depth == 7


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (f'{TGI}\napi_params = {{ url = "http://tgi:8080" }}', ()),
        (f'{TGI}\napi_params = {{ url = "http://tgi:8080" }}\ntoken_env = ["A", "B"]', ("A", "B")),
        ('api_type = "inference_endpoints"\napi_params = { url = "https://e" }', ("HF_API_TOKEN", "HF_TOKEN")),
        ('api_type = "serverless_inference_api"\napi_params = { model = "m" }', ("HF_API_TOKEN", "HF_TOKEN")),
        ('api_type = "serverless_inference_api"\napi_params = { model = "m" }\ntoken_env = []', ()),
    ],
    ids=["self-hosted", "self-hosted-named", "endpoint", "serverless", "serverless-none"],
)
def test_a_self_hosted_generator_has_no_token_unless_it_names_one(body, expected):
    write("[generators.g]\n" + body)
    assert load_settings().generators["g"].token_names == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("redis_url = 5", "redis_url: Input should be a valid string", id="type"),
        pytest.param('redis_url = ""', "redis_url: must be a redis://", id="url-empty"),
        pytest.param('redis_url = "http://h"', "redis_url: must be a redis://", id="url-scheme"),
        pytest.param('redis_url = "redis://h:70000/0"', "redis_url: the port must be a number", id="url-port"),
        pytest.param('redis_url = "redis://h:port/0"', "redis_url: the port must be a number", id="url-port-word"),
        pytest.param('redis_url = "redis://[::1"', "redis_url: Invalid IPv6 URL", id="url-bracket"),
        pytest.param(
            'redis_url = "rediss://h/0?ssl_ca_certs=/nowhere/ca.pem"',
            "redis_url: ssl_ca_certs: cannot read /nowhere/ca.pem",
            id="url-no-such-ca",
        ),
        pytest.param("redis_timeout_s = 0", "redis_timeout_s: Input should be greater than 0", id="timeout-zero"),
        pytest.param("redis_timeout_s = inf", "redis_timeout_s: Input should be a finite number", id="timeout-inf"),
        pytest.param("flush_gap_s = 1.1", "flush_gap_s: Input should be less than or equal to 1", id="gap-too-long"),
        pytest.param("lease_s = nan", "lease_s: Input should be", id="lease-nan"),
        pytest.param(
            "monitor_port = 65536", "monitor_port: Input should be less than or equal to 65535", id="port-high"
        ),
        pytest.param("monitor_port = -1", "monitor_port: Input should be greater than or equal to 0", id="port-low"),
        pytest.param("log_ttl_s = 1.5", "log_ttl_s: Input should be a valid integer", id="ttl-fraction"),
        pytest.param("keep_s = 1", "keep_s: Input should be greater than or equal to 60", id="keep-short"),
        pytest.param("colour = 1", "colour: no such key", id="unknown-key"),
        pytest.param("generators = 3", "generators: Input should be an object", id="generators-number"),
        pytest.param("[generators.g]", "generators.g.api_type: Field required", id="nothing"),
        pytest.param(
            f"[generators.'é']\n{TGI}\napi_params = {{ url = 'http://h' }}",
            "generators: 'é': a name has 1 to 64 of",
            id="name-not-ascii",
        ),
        pytest.param(
            f"[generators.'a b']\n{TGI}\napi_params = {{ url = 'http://h' }}",
            "generators: 'a b': a name has 1 to 64 of",
            id="name-space",
        ),
        pytest.param(
            "[generators.g]\napi_type = 'openai'\napi_params = { url = 'http://h' }",
            "generators.g.api_type: Input should be 'text_generation_inference', 'inference_endpoints' or",
            id="api-type",
        ),
        pytest.param(f"[generators.g]\n{TGI}\napi_params = {{}}", "generators.g: api_params.url: needed", id="no-url"),
        pytest.param(
            f"[generators.g]\n{TGI}\napi_params = {{ url = 'http://h', urls = ['http://i'] }}",
            "generators.g: api_params.url: either url or urls",
            id="url-and-urls",
        ),
        pytest.param(
            f"[generators.g]\n{TGI}\napi_params = {{ urls = ['http://h', 'tgi:8080'] }}",
            "generators.g.api_params.urls: must be an http:// or https:// address",
            id="bare-urls",
        ),
        pytest.param(
            f"[generators.g]\n{TGI}\napi_params = {{ urls = ['http://h', 'http://h'] }}",
            "generators.g.api_params.urls: the same address twice",
            id="urls-twice",
        ),
        pytest.param(
            "[generators.g]\napi_type = 'serverless_inference_api'\napi_params = {}",
            "generators.g: api_params.model: needed",
            id="no-model",
        ),
        pytest.param(
            "[generators.g]\napi_type = 'serverless_inference_api'\napi_params = { model = 'm', url = 'http://h' }",
            "generators.g: api_params.url: not for",
            id="serverless-url",
        ),
        pytest.param(
            f"[generators.g]\n{TGI}\napi_params = {{ url = 'tgi:8080' }}",
            "generators.g.api_params.url: must be an http:// or https:// address",
            id="bare-url",
        ),
        pytest.param(
            f"[generators.g]\n{TGI}\napi_params = {{ url = 'http://' }}",
            "generators.g.api_params.url: must be an http:// or https:// address",
            id="url-without-host",
        ),
        pytest.param(
            f"[generators.g]\n{TGI}\napi_params = {{ url = 'http://h:99999' }}",
            "generators.g.api_params.url: the port must be",
            id="url-port-of-a-generator",
        ),
        pytest.param(
            f"[generators.g]\n{TGI}\napi_params = {{ url = 'http://h', token = 't' }}",
            "generators.g.api_params.token: no such key; token_env names the variables that hold it",
            id="token-as-a-param",
        ),
        pytest.param(
            f"[generators.g]\n{TGI}\napi_params = {{ url = 'http://h' }}\ntoken = '{SECRET}'",
            "generators.g.token: no such key; token_env names the variables that hold it",
            id="token-as-haystack-has-it",
        ),
        pytest.param(
            f"[generators.token]\n{TGI}\napi_params = {{ url = 'http://h', colour = 1 }}",
            "generators.token.api_params.colour: no such key",
            id="unknown-param",
        ),
        pytest.param(
            f"[generators.g]\n{TGI}\napi_params = {{ url = 'http://h', headers = {{ 'bad header' = 'x' }} }}",
            "generators.g.api_params.headers: 'bad header': a name has letters, digits and any of !#$%",
            id="header-name",
        ),
        pytest.param(
            f"[generators.g]\n{TGI}\napi_params = {{ url = 'http://h', headers = {{ '' = 'x' }} }}",
            "generators.g.api_params.headers: '': a name has letters",
            id="no-header-name",
        ),
        *(
            pytest.param(
                f"[generators.g]\n{TGI}\napi_params = {{ url = 'http://h', headers = {{ x-key = {value} }} }}",
                "generators.g.api_params.headers.x-key: holds a character that cannot stand in a header",
                id=f"header-{value}",
            )
            for value in (rf'"{SECRET}\n"', f"'{SECRET}“'", rf'"{SECRET}\u0001"')
        ),
        pytest.param(
            f"[generators.g]\n{TGI}\napi_params = {{ url = 'http://h' }}\ntoken_env = 'HF_TOKEN'",
            "generators.g.token_env: Input should be a valid list",
            id="token-env-string",
        ),
        pytest.param(
            f"[generators.g]\n{TGI}\napi_params = {{ url = 'http://h' }}\ngeneration_kwargs = {{ max_tokens = 1 }}",
            "generators.g.generation_kwargs.max_tokens: unknown; known: adapter_id,",
            id="unknown-kwarg",
        ),
        pytest.param(
            f"[generators.g]\n{TGI}\napi_params = {{ url = 'http://h' }}\nstop_words = ['']",
            "generators.g.stop_words.0: String should have at least 1 character",
            id="empty-stop-word",
        ),
        pytest.param(
            f"[generators.g]\n{TGI}\napi_params = {{ url = 'http://h' }}\nmax_queue_depth = -1",
            "generators.g.max_queue_depth: Input should be greater",
            id="depth",
        ),
    ],
)
def test_a_value_that_cannot_work_names_its_key_in_one_line(text, words):
    write(text)
    with pytest.raises(ConfigError) as refused:
        load_settings()
    assert str(refused.value).startswith(f"settings: {words}")
    assert "\n" not in str(refused.value)
    assert SECRET not in str(refused.value)


HF = "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"
DRAWN = "a8Fk29xQzL0mN4bV7cT1"
URL = f"http://user:{SECRET}@h/?k={SECRET}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("{tgi}\ntoken_env = ['{secret}']", "g.token_env.0: no name of an environment", id="token-env"),
        pytest.param("{tgi}\ntoken_env = ['A', '{secret}']", "g.token_env.1: no name of an env", id="second-of-them"),
        pytest.param("{tgi}\n'{secret}' = 1", "g.***: no such key", id="key"),
        pytest.param(
            "api_type = '{type}'\napi_params = {{ url = 'http://h', headers = {{ '{secret}' = 'x' }} }}",
            "g.api_params.headers: ",
            id="header-name",
        ),
        pytest.param(
            "api_type = '{type}'\napi_params = {{ url = 'http://h', headers = {{ '{secret}' = 5 }} }}",
            "g.api_params.headers.***: ",
            id="header-name-with-a-bad-value",
        ),
        pytest.param(
            "api_type = 'serverless_inference_api'\napi_params = {{ model = 'm', provider = '{secret}' }}",
            "g.api_params.provider: looks like a token",
            id="provider",
        ),
        pytest.param(
            "api_type = 'serverless_inference_api'\napi_params = {{ model = 'm', bill_to = '{secret}' }}",
            "g.api_params.bill_to: looks like a token",
            id="bill-to",
        ),
    ],
)
@pytest.mark.parametrize("secret", [HF, DRAWN, URL, f"Bearer {SECRET}"])
def test_a_secret_where_a_name_belongs_is_refused_and_not_repeated(text, words, secret):
    tgi = f"{TGI}\napi_params = {{ url = 'http://h' }}"
    write("[generators.g]\n" + text.format(tgi=tgi, type="text_generation_inference", secret=secret))
    with pytest.raises(ConfigError) as refused:
        load_settings()
    assert str(refused.value).startswith(f"settings: generators.{words}")
    assert secret not in str(refused.value)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("secret", [HF, DRAWN, URL, f"Bearer {SECRET}"])
@pytest.mark.parametrize(
    "body",
    [
        "api_type = 5",
        f"{TGI}\napi_params = {{ url = 'http://h' }}",
        f"{TGI}\napi_params = {{ url = 'http://h', x = 1 }}",
    ],
)
def test_a_generator_that_is_called_like_a_secret_is_refused_and_not_named(secret, body):
    write(f"[generators.'{secret}']\n{body}")
    with pytest.raises(ConfigError) as refused:
        load_settings()
    assert secret not in str(refused.value)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("model", [HF, f"Bearer {HF}", URL, f"http://h/?k={SECRET}"])
def test_a_model_that_every_metric_would_show_holds_no_secret(model):
    write(f"[generators.g]\napi_type = 'serverless_inference_api'\napi_params = {{ model = '{model}' }}")
    with pytest.raises(ConfigError, match=r"^settings: generators\.g\.api_params\.model: ") as refused:
        load_settings()
    assert model not in str(refused.value)


@pytest.mark.parametrize("model", ["http://127.0.0.1:8080", "http://h/", "org/model-5f3a9c1e77b04d0a9e1b44f2", "m"])
def test_a_model_may_be_an_address_or_have_a_number_of_its_own(model):
    write(f"[generators.g]\napi_type = 'serverless_inference_api'\napi_params = {{ model = '{model}' }}")
    assert load_settings().generators["g"].api_params.model == model


def test_a_secret_as_a_key_that_is_there_twice_is_not_repeated():
    write(f"[{HF}]\n[{HF}]\n")
    with pytest.raises(ConfigError, match="is no TOML") as refused:
        load_settings()
    assert HF not in str(refused.value)


@pytest.mark.parametrize("name", [HF, URL, f"redis://:{SECRET}@h/0"])
def test_a_secret_in_place_of_the_files_name_is_not_repeated(monkeypatch, name):
    monkeypatch.setenv("GENQUEUE_CONFIG", name)
    with pytest.raises(ConfigError, match=r"^GENQUEUE_CONFIG: cannot read \*\*\*: ") as refused:
        load_settings()
    assert refused.value.__cause__ is None


# --- by hand -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"redis_url": f"http://:{SECRET}@h"}, "settings: redis_url: must be a redis://"),
        ({"lease_s": SECRET}, "settings: lease_s: Input should be a valid number"),
        ({"generators": {"g": {"api_type": SECRET}}}, "settings: generators.g.api_type: Input should be"),
        ({"generators": SECRET}, "settings: generators: Input should be an object"),
        ({"colour": SECRET}, "settings: colour: no such key"),
        ({"keep_s": 60}, "settings: keep_s: is 60, must be at least result_ttl_s"),
    ],
)
def test_settings_by_hand_are_refused_by_an_error_of_ours(values, words):
    with pytest.raises(ConfigError) as refused:
        Settings(**values)
    assert str(refused.value).startswith(words)
    assert SECRET not in str(refused.value)
    assert refused.value.__cause__ is None


TGI_TYPE = {"api_type": "text_generation_inference"}
BY_HAND = [
    (ApiParams, {"url": f"ftp://user:{SECRET}@h"}, "ApiParams: url: must be an http:// or https:// address"),
    (ApiParams, {"url": "http://h", "headers": {"x": f"{SECRET}\n"}}, "ApiParams: headers.x: holds a character"),
    (ApiParams, {"timeout": SECRET}, "ApiParams: timeout: Input should be a valid number"),
    (ApiParams, {HF: "x"}, "ApiParams: ***: no such key"),
    (Timeouts, {"connect_s": 0}, "Timeouts: connect_s: Input should be greater than 0"),
    (Timeouts, {"first_token_s": SECRET}, "Timeouts: first_token_s: Input should be a valid number"),
    (GeneratorSettings, {}, "GeneratorSettings: api_type: Field required; api_params: Field required"),
    (GeneratorSettings, {"api_type": SECRET, "api_params": {"url": "http://h"}}, "GeneratorSettings: api_type: Input"),
    (
        GeneratorSettings,
        {**TGI_TYPE, "api_params": {}},
        "GeneratorSettings: api_params.url: needed for api_type 'text_",
    ),
    (GeneratorSettings, {**TGI_TYPE, "api_params": SECRET}, "GeneratorSettings: api_params: Input should be an object"),
    (
        GeneratorSettings,
        {**TGI_TYPE, "api_params": {"url": f"ftp://user:{SECRET}@h"}},
        "GeneratorSettings: api_params.url: must be an http:// or https:// address",
    ),
    (
        GeneratorSettings,
        {**TGI_TYPE, "api_params": {"url": "http://h"}, "token_env": [HF]},
        "GeneratorSettings: token_env.0: no name of an environment variable",
    ),
    (
        GeneratorSettings,
        {**TGI_TYPE, "api_params": {"url": "http://h"}, "generation_kwargs": {"temperature": SECRET}},
        "GeneratorSettings: generation_kwargs.temperature: Input should be a valid number",
    ),
    (
        GeneratorSettings,
        {**TGI_TYPE, "api_params": {"url": "http://h"}, "timeouts": {"connect_s": SECRET}},
        "GeneratorSettings: timeouts.connect_s: Input should be a valid number",
    ),
]
MAKERS = [
    pytest.param(lambda kind, values: kind(**values), id="called"),
    pytest.param(lambda kind, values: kind.model_validate(values), id="of-a-table"),
    pytest.param(lambda kind, values: kind.model_validate_json(json.dumps(values)), id="of-json"),
]


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(("kind", "values", "words"), BY_HAND)
def test_a_part_by_hand_is_refused_by_an_error_of_ours_without_its_values(kind, values, words, make):
    with pytest.raises(ConfigError) as refused:
        make(kind, values)
    assert str(refused.value).startswith(words)
    assert SECRET not in str(refused.value)
    assert HF not in str(refused.value)
    assert refused.value.__cause__ is None


@pytest.mark.parametrize("make", MAKERS)
def test_a_part_of_settings_is_named_by_its_whole_place_and_all_at_once(make):
    generators = {
        "a": {**TGI_TYPE, "api_params": {"url": f"ftp://{SECRET}"}, "timeouts": {"connect_s": 0}},
        "b": {**TGI_TYPE, "api_params": {"url": "http://h", "timeout": SECRET}},
    }
    with pytest.raises(ConfigError) as refused:
        make(Settings, {"generators": generators})
    words = str(refused.value)
    for place in (
        "generators.a.api_params.url: ",
        "generators.a.timeouts.connect_s: ",
        "generators.b.api_params.timeout",
    ):
        assert place in words
    assert words.startswith("settings: ")
    assert SECRET not in words


def test_settings_by_hand_have_what_they_are_given_and_nothing_from_around_them(monkeypatch):
    write(f"log_ttl_s = 1\n[generators.g]\n{TGI}\napi_params = {{ url = 'http://h' }}")
    monkeypatch.setenv("GENQUEUE_RESULT_TTL_S", "2")
    made = Settings(keep_s=90_000)
    assert (made.log_ttl_s, made.result_ttl_s, made.keep_s, made.generators) == (3600, 86_400, 90_000, {})


def test_a_generator_by_hand_keeps_its_credentials():
    """They were dumped, without the password, and read again."""
    url = f"http://user:{SECRET}@h/"
    generator = GeneratorSettings(api_type="text_generation_inference", api_params={"url": url})
    for made in (Settings(generators={"g": generator}), load_settings(generators={"g": generator})):
        assert made.generators["g"].api_params.url == url


def test_an_error_names_the_variable_that_the_value_came_from(monkeypatch):
    """It named the settings file alone, where that key is not."""
    write("result_ttl_s = 5\nlog_ttl_s = 0")
    monkeypatch.setenv("GENQUEUE_LEASE_S", SECRET)
    monkeypatch.setenv("GENQUEUE_DRAIN_S", "5")
    with pytest.raises(ConfigError) as refused:
        load_settings()
    words = str(refused.value)
    assert words.endswith(" (variable GENQUEUE_LEASE_S; settings file: genqueue.toml)")
    assert "GENQUEUE_DRAIN_S" not in words
    Path("genqueue.toml").unlink()
    with pytest.raises(ConfigError, match=r" \(variable GENQUEUE_LEASE_S\)$"):
        load_settings()


def test_a_table_of_the_file_and_one_of_a_variable_are_both_read(monkeypatch):
    write(f"[generators.a]\n{TGI}\napi_params = {{ url = 'http://a' }}\nmax_attempts = 2")
    more = {"a": {"max_attempts": 3}, "b": {"api_type": "text_generation_inference", "api_params": {"url": "http://b"}}}
    monkeypatch.setenv("GENQUEUE_GENERATORS", json.dumps(more))
    read = load_settings().generators
    assert (read["a"].max_attempts, read["a"].api_params.url, read["b"].api_params.url) == (3, "http://a", "http://b")


def test_the_file_that_is_read_is_named_with_a_key_that_cannot_work(monkeypatch):
    monkeypatch.setenv("GENQUEUE_CONFIG", write("leas_s = 3\n", "ours.toml"))
    with pytest.raises(ConfigError) as refused:
        load_settings()
    assert str(refused.value) == "settings: leas_s: no such key (settings file: ours.toml)"
    monkeypatch.delenv("GENQUEUE_CONFIG")
    with pytest.raises(ConfigError, match=r"^settings: leas_s: no such key$"):
        load_settings(leas_s=3)


@pytest.mark.parametrize(
    "content",
    [b"redis_url", b"[generators\n", b"a = 1\na = 2\n", b"\xff\xfe", b'a = "\x00"'],
    ids=["no-value", "open-table", "twice", "not-utf-8", "control-character"],
)
def test_a_file_that_is_no_toml_says_so_in_one_line(content):
    Path("genqueue.toml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"\Agenqueue\.toml is no TOML: [^\n]+\Z"):
        load_settings()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("GENQUEUE_REDIS_TIMEOUT_S", "soon", "redis_timeout_s: Input should be a valid number"),
        ("GENQUEUE_GENERATORS", "{" + SECRET, 'error parsing value for field "generators"'),
        ("GENQUEUE_GENERATORS", '{"g": "x"}', "generators.g: Input should be an object"),
        ("GENQUEUE_REDIS_URL", f"http://:{SECRET}@h", "redis_url: must be"),
        ("GENQUEUE_REDIS_URL", f"redis://:{SECRET}@h:port", "redis_url: the port"),
    ],
)
def test_a_bad_variable_names_its_field_and_never_shows_its_value(monkeypatch, name, value, words):
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as refused:
        load_settings()
    assert str(refused.value).startswith(f"settings: {words}")
    assert SECRET not in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("variable", "like"),
    [
        ("GENQUEUE_LEASE", "GENQUEUE_LEASE_S"),
        ("GENQUEUE_REDIS_ULR", "GENQUEUE_REDIS_URL"),
        ("GENQUEUE_GENERATOR", "GENQUEUE_GENERATORS"),
        ("GENQUEUE_CONFIG_FILE", "GENQUEUE_CONFIG"),
        ("genqueue_drain", "GENQUEUE_DRAIN_S"),
    ],
)
def test_a_variable_that_nobody_reads_is_told_from_the_setting_it_looks_like(variable, like):
    assert mistyped(["HOME", variable]) == {variable: like}


@pytest.mark.parametrize(
    "variables",
    [
        pytest.param([f"GENQUEUE_{name.upper()}" for name in Settings.model_fields], id="settings"),
        pytest.param(["genqueue_config", "Genqueue_Redis_Url"], id="any-case"),
        pytest.param(
            [
                "GENQUEUE_SERVICE_HOST",
                "GENQUEUE_PORT",
                "GENQUEUE_PORT_6379_TCP_ADDR",
                "GENQUEUE_REDIS_SERVICE_PORT_REDIS",
                "GENQUEUE_REDIS_PORT",
            ],
            id="of-kubernetes",
        ),
        pytest.param(
            ["GENQUEUE_WORKER_PASSWORD", "GENQUEUE_TOML", "GENQUEUE_STOP_GRACE", "GENQUEUE_CONCURRENCY"],
            id="of-compose",
        ),
        pytest.param(["LEASE_S", "MY_GENQUEUE_LEASE"], id="without-the-prefix"),
    ],
)
def test_settings_and_what_only_shares_their_prefix_are_not_mistyped(variables):
    assert mistyped(variables) == {}


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param({"redis_url": f"redis://user:{SECRET}@h:6379/0"}, id="redis-password"),
        pytest.param({"redis_url": f"redis+sentinel://:{SECRET}@h,i/m?sentinel_password={SECRET}"}, id="sentinels"),
        pytest.param({"url": f"http://user:{SECRET}@h/"}, id="url-password"),
        pytest.param({"url": f"http://h/?key={SECRET}"}, id="url-query"),
        pytest.param({"urls": [f"http://h/?key={SECRET}", f"http://:{SECRET}@i/"]}, id="urls"),
        pytest.param({"url": "http://h", "headers": {"authorization": f"Bearer {SECRET}"}}, id="header"),
    ],
)
def test_neither_repr_nor_dump_shows_a_secret(overrides: dict[str, Any]):
    if "redis_url" not in overrides:
        generator = {"api_type": "text_generation_inference", "api_params": overrides}
        settings = load_settings(generators={"g": generator})
    else:
        settings = load_settings(**overrides)
    for shown in (repr(settings), str(settings), str(settings.model_dump()), settings.model_dump_json()):
        assert SECRET not in shown


def test_the_first_token_that_is_set_is_read_without_the_end_of_its_line():
    write(f"[generators.g]\n{TGI}\napi_params = {{ url = 'http://h' }}\ntoken_env = ['A', 'B', 'C']")
    generator = load_settings().generators["g"]
    assert generator.find_token({"C": "c", "B": "hf_b\r\n", "A": " \n"}) == ("B", "hf_b")
    assert generator.find_token({"A": "", "HF_TOKEN": "hf"}) is None


def test_settings_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        load_settings().log_ttl_s = 5  # type: ignore[misc]  # that is the point


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ("", (5.0, 600.0, 60.0)),
        ("timeouts = { connect_s = 1, first_token_s = 2, between_tokens_s = 3 }", (1.0, 2.0, 3.0)),
        ("timeouts = { between_tokens_s = 3 }", (5.0, 9.0, 3.0)),
    ],
)
def test_how_long_a_server_may_be_silent(fields, expected):
    timeout = ", timeout = 9" if expected[1] == 9 else ""
    write(f"[generators.g]\n{TGI}\napi_params = {{ urls = ['http://h', 'http://i']{timeout} }}\n{fields}")
    read = load_settings().generators["g"]
    assert (read.timeouts.connect_s, read.first_token_s, read.between_tokens_s) == expected
    assert read.api_params.addresses == ("http://h", "http://i")
