import inspect
import io
import json
import re

import pytest
from dotenv import dotenv_values
from pydantic import ValidationError

from llm_service import config, env_example
from llm_service.config import Settings, aliases, shown, variables
from llm_service.engines.model_files import BUNDLED_TEMPERATURE
from llm_service.errors import ConfigurationError

# The defaults of FastTalk 1.x, read by its clients' deployments.
SEED = {
    "LLM_MODEL": "llama3.2:1b",
    "OLLAMA_KEEP_ALIVE": "5m",
    "OLLAMA_TIMEOUT": 600.0,
    "DEFAULT_TEMPERATURE": 0.7,
    "DEFAULT_MAX_TOKENS": 2048,
    "DEFAULT_CONTEXT_WINDOW": 8192,
    "DEFAULT_TOP_P": 0.9,
    "DEFAULT_TOP_K": 40,
    "LLM_HOST": "0.0.0.0",
    "LLM_PORT": 8000,
    "LLM_MAX_CONNECTIONS": 50,
    "LOG_LEVEL": "INFO",
    "LLM_MONITORING_PORT": 9092,
    "SESSION_TIMEOUT": 3600.0,
    "MAX_HISTORY_LENGTH": 50,
    "GPU_DEVICE_ID": 0,
}
# Where ours differ: right on a machine, not only in the seed's containers; safe unless told otherwise.
OWN = {
    "OLLAMA_BASE_URL": "http://localhost:11434",
    "NUM_THREADS": None,
    "NUM_WORKERS": 1,
    "LLM_MONITORING_HOST": "127.0.0.1",
    "MODEL_PATH": "models",
    "LOG_PATH": "",
    "COMPUTE_DEVICE": "auto",
    "LLM_PROVIDER": "auto",
}


def _refused(**environment: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        Settings.load(environment)
    return caught.value.message


def test_defaults_are_the_seeds() -> None:
    """An empty environment gives FastTalk 1.x's defaults, but for the named ones."""
    values = shown(Settings.load({}))

    assert {**SEED, **OWN} == {name: values[name] for name in {**SEED, **OWN}}


def test_values_are_read() -> None:
    """A variable becomes its field, of the field's type."""
    settings = Settings.load(
        {
            "LLM_PORT": "9000",
            "DEFAULT_TEMPERATURE": "0",
            "LOG_PROMPTS": "true",
            "NUM_THREADS": "4",
            "LOG_LEVEL": "debug",
            "ALLOWED_MODELS": " a, b ,,c",
            "ALLOWED_ORIGINS": "https://App.example, *",
            "API_KEYS": "one,two",
            "PATH": "/bin",
        }
    )

    assert (9000, 0.0, True, 4) == (
        settings.llm_port,
        settings.default_temperature,
        settings.log_prompts,
        settings.num_threads,
    )
    assert ("DEBUG", ("a", "b", "c")) == (settings.log_level, settings.allowed_models)
    assert ("https://app.example", "*") == settings.allowed_origins
    assert ["one", "two"] == [key.get_secret_value() for key in settings.api_keys]


def test_names_have_no_case() -> None:
    """Variables may be written small, as some systems do."""
    assert 9000 == Settings.load({"llm_port": "9000"}).llm_port


@pytest.mark.parametrize("empty", ["", " ", "\t\n"])
def test_empty_is_not_given(empty: str) -> None:
    """An empty variable is one that was not given; but CUDA hides every GPU for an empty CUDA_VISIBLE_DEVICES."""
    others = variables().keys() - {"CUDA_VISIBLE_DEVICES"}
    assert Settings.load({}) == Settings.load(dict.fromkeys(others, empty))
    assert empty == Settings.load({"CUDA_VISIBLE_DEVICES": empty}).cuda_visible_devices
    assert not Settings.load({"LLM_MODEL": empty}).llm_model_given


@pytest.mark.parametrize("keys", [",", "a,,b", "a, b c", "schl\u00fcssel", "a,\x07"])
def test_keys_that_can_never_match(keys: str) -> None:
    """Keys that no header can carry, or that are none, stop the start: the service would be open, or closed to all."""
    with pytest.raises(ConfigurationError, match=r"API_KEYS=\*+: each key must be printable ASCII"):
        Settings.load({"API_KEYS": keys})


def test_the_two_ports_differ() -> None:
    """One port for both applications is an error that names both settings."""
    with pytest.raises(ConfigurationError, match="LLM_PORT and LLM_MONITORING_PORT are both 9092"):
        Settings.load({"LLM_PORT": "9092"})


def test_process_environment_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings come from the mapping alone: what the process's environment says changes nothing."""
    monkeypatch.setenv("LLM_PORT", "1")
    monkeypatch.setenv("LOG_LEVEL", "nonsense")

    assert (8000, "INFO") == (Settings.load({}).llm_port, Settings().log_level)


def test_settings_never_change() -> None:
    """Settings are frozen."""
    with pytest.raises(ValidationError):
        Settings.load({}).llm_port = 9000  # type: ignore[misc]


BAD = [
    ("LLM_PROVIDER", "gpt", "'ollama', 'openai', 'vllm'"),
    ("LLM_MODEL", "a\nb", "should match"),
    ("OLLAMA_BASE_URL", "localhost:11434", "https?://"),
    ("OLLAMA_BASE_URL", "http://host/#q", "https?://"),
    ("OLLAMA_KEEP_ALIVE", "five minutes", "should match"),
    ("OLLAMA_TIMEOUT", "0", "greater than 0"),
    ("OLLAMA_TIMEOUT", "inf", "finite number"),
    ("OLLAMA_TIMEOUT", "86401", "less than or equal to 86400"),
    ("OPENAI_TIMEOUT", "soon", "valid number"),
    ("CONNECT_TIMEOUT", "-1", "greater than 0"),
    ("LLAMA_CPP_PARALLEL", "65", "less than or equal to 64"),
    ("COMPUTE_DEVICE", "tpu", "'cuda', 'cpu' or 'mps'"),
    ("GPU_DEVICE_ID", "-1", "greater than or equal to 0"),
    ("NUM_THREADS", "0", "greater than or equal to 1"),
    ("NUM_THREADS", "many", "valid integer"),
    ("DEFAULT_TEMPERATURE", "2.1", "less than or equal to 2"),
    ("DEFAULT_TOP_P", "1.1", "less than or equal to 1"),
    ("DEFAULT_TOP_K", "0", "greater than or equal to 1"),
    ("DEFAULT_MAX_TOKENS", "0", "greater than or equal to 1"),
    ("DEFAULT_CONTEXT_WINDOW", "100", "greater than or equal to 256"),
    ("LLM_PORT", "80", "greater than or equal to 1024"),
    ("LLM_PORT", "65536", "less than or equal to 65535"),
    ("LLM_PORT", "8000.5", "valid integer"),
    ("LLM_MONITORING_PORT", "80", "greater than or equal to 1024"),
    ("LLM_MAX_CONNECTIONS", "0", "greater than or equal to 1"),
    ("NUM_WORKERS", "0", "greater than or equal to 1"),
    ("MAX_HISTORY_LENGTH", "0", "greater than or equal to 1"),
    ("ALLOWED_ORIGINS", "example.org", "scheme://host"),
    ("ALLOWED_ORIGINS", "https://example.org/path", "scheme://host"),
    ("MAX_MESSAGE_BYTES", "10", "greater than or equal to 1024"),
    ("LOG_LEVEL", "LOUD", "'DEBUG', 'INFO', 'WARNING', 'ERROR' or 'CRITICAL'"),
    ("LOG_FORMAT", "xml", "'console' or 'json'"),
    ("LOG_PROMPTS", "maybe", "valid boolean"),
]


@pytest.mark.parametrize(("variable", "value", "allowed"), BAD, ids=range(len(BAD)))
def test_bad_value(variable: str, value: str, allowed: str) -> None:
    """A bad value stops the start: the variable is named with its value, what is allowed, and what it is for."""
    message = _refused(**{variable: value})

    assert message.startswith(f"{variable}={value.replace(chr(10), chr(0xFFFD))}: ")
    assert allowed.lower() in message.lower()
    assert message.endswith(f"({variables()[variable].description})")


def test_all_bad_values_are_named_at_once() -> None:
    """Several mistakes take one start to find, not several."""
    message = _refused(LLM_PORT="80", LOG_LEVEL="LOUD", VLLM_TIMEOUT="soon", DEFAULT_TOP_K="0")

    assert ["VLLM_TIMEOUT=soon", "DEFAULT_TOP_K=0", "LLM_PORT=80", "LOG_LEVEL=LOUD"] == [
        line.split(":")[0] for line in message.split("; ")
    ]


@pytest.mark.parametrize("name", ["BASE_URL", "API_KEY", "TIMEOUT"])
def test_aliases(name: str) -> None:
    """FastTalk 2's VLLM_ variables are read; where both are given, the setting's own name wins."""
    own, alias = f"OPENAI_{name}", f"VLLM_{name}"
    values = {"BASE_URL": ("http://a", "http://b"), "API_KEY": ("k-a", "k-b"), "TIMEOUT": ("1", "2")}[name]
    field = own.lower()

    assert (own, alias) == aliases(own)
    assert getattr(Settings.load({own: values[1]}), field) == getattr(Settings.load({alias: values[1]}), field)
    assert getattr(Settings.load({own: values[0]}), field) == getattr(
        Settings.load({own: values[0], alias: values[1]}), field
    )
    assert getattr(Settings.load({own: values[1]}), field) == getattr(
        Settings.load({own: " ", alias: values[1]}), field
    )


def test_error_names_the_alias_that_was_given() -> None:
    """The name in the error is the one in the operator's file."""
    assert _refused(VLLM_BASE_URL="nowhere").startswith("VLLM_BASE_URL=nowhere: ")
    assert _refused(OPENAI_BASE_URL="nowhere").startswith("OPENAI_BASE_URL=nowhere: ")
    assert _refused(openai_base_url="nowhere").startswith("OPENAI_BASE_URL=nowhere: ")


ENGINE = {"name": "one", "provider": "vllm", "url": "http://me:hush-5@host/v1", "api_key": "hush-6"}


def test_several_engines() -> None:
    """ENGINES is a list of them; what one is asked for may have other names there. No secret is shown."""
    more = {"models": ["a", "b"], "max_running": 3, "token_timeout": 1.5}
    local = {"name": "local", "provider": "llama_cpp", "models": {"a": "own"}}
    settings = Settings.load({"ENGINES": json.dumps([ENGINE | more, local])})

    one, other = settings.engines
    assert ("http://me:hush-5@host/v1", "hush-6") == (one.url, one.api_key.get_secret_value())
    assert ({"a": "a", "b": "b"}, {"a": "own"}) == (one.models, other.models)
    assert {"max_running": 3, "token_timeout": 1.5} == one.limits()
    assert "hush" not in str(shown(settings)) + repr(settings)
    assert "http://********@host/v1" == shown(settings)["ENGINES"][0]["url"]


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("hush", "it is not a JSON list"),
        ("[" * 100_000, "it is not a JSON list"),
        ('{"name": "hush"}', "it is not a JSON list"),
        ('["hush"]', "[0]: each engine is an object with some of these keys: name, provider, url, models, api_key"),
        ([ENGINE, ENGINE | {"name": "two", "hush": 1}], "[1]: each engine is an object with some of these keys"),
        ([ENGINE | {"url": "ftp://hush"}], "[0].url: string should match pattern"),
        ([ENGINE | {"provider": "hush"}], "[0].provider: input should be 'ollama', 'openai', 'vllm'"),
        ([ENGINE | {"api_key": 5}], "[0].api_key: input should be a valid string"),
        ([ENGINE | {"models": ["a", 5]}], "[0].models: "),
        ([ENGINE | {"models": {"hush hush": 5}}], "[0].models: input should be a valid string"),
        ([ENGINE | {"max_running": "3"}], "[0].max_running: input should be a valid integer"),
        ([ENGINE | {"name": "Hush!"}], "[0].name: string should match pattern"),
        ([ENGINE, ENGINE], "each engine needs a name of its own: one, one"),
        ([{"name": "one", "provider": "ollama"}], "[0]: an engine of provider ollama needs a url"),
        ([ENGINE | {"provider": "scripted"}], "[0]: an engine of provider scripted runs in this process and has no"),
        ([ENGINE | {"name": f"n{number}"} for number in range(65)], "tuple should have at most 64 items"),
    ],
)
def test_wrong_engines(value: object, told: str) -> None:
    """The error says which of them is wrong, where and how, and repeats nothing of what was written."""
    error = _refused(ENGINES=value if isinstance(value, str) else json.dumps(value))

    assert error.startswith(f"ENGINES=********: {told}")
    assert "hush" not in error


def test_wrong_speech_rules() -> None:
    """The error says which names and values there are."""
    assert "urls is one of omit, host, read" in _refused(SPEECH_RULES="urls=hosts")


def test_secrets_are_masked() -> None:
    """Keys, and the passwords that URLs may carry, are neither shown nor in the settings' repr."""
    settings = Settings.load(
        {
            "API_KEYS": "hush-1,hush-2",
            "VLLM_API_KEY": "hush-3",
            "OLLAMA_BASE_URL": "http://me:hush-4@host:1/",
            "TTS_ENDPOINTS": "espeak,openai=http://me:hush-4@host/v1",
            "TTS_WEBHOOK_SECRET": "hush-5",
            "TTS_API_KEY": "hush-6",
            "REDIS_URL": "redis://:hush-7@redis:6379/1",
        }
    )

    assert "hush" not in str(shown(settings))
    assert "http://********@host:1/" == shown(settings)["OLLAMA_BASE_URL"]
    assert "redis://********@redis:6379/1" == shown(settings)["REDIS_URL"]
    assert "hush" not in re.sub("hush-4", "", repr(settings))
    assert "http://me:hush-4@host:1/" == settings.ollama_base_url


@pytest.mark.parametrize("query", ["", "?token=S3CRET", "/?token=S3CRET,more"])
def test_webhooks_show_their_host_alone(query: str) -> None:
    """Path and query of a webhook are often its secret: neither the settings as shown nor an error tells them."""
    value = f"opea=http://tts:9088,webhook=https://user:pass@hooks.example/services/S3CRET{query}"

    if query:
        with pytest.raises(ConfigurationError) as caught:
            Settings.load({"TTS_ENDPOINTS": value})
        told = caught.value.message
    else:
        told = str(shown(Settings.load({"TTS_ENDPOINTS": value}))["TTS_ENDPOINTS"])

    assert "webhook=https://********@hooks.example/********" in told
    assert "opea=http://tts:9088" in told
    assert "S3CRET" not in told


def test_secrets_are_masked_in_errors() -> None:
    """An error does not repeat a secret, even where it stands next to the mistake."""
    assert "hush" not in _refused(OLLAMA_BASE_URL="http://me:hush@host/?query", VLLM_API_KEY="hush", LLM_PORT="1")
    assert "hush" not in _refused(OPENAI_BASE_URL="ftp://me:hush@host/")


def test_values_in_errors_are_printable_and_short() -> None:
    """A value cannot colour or flood the terminal that shows the error."""
    message = _refused(LLM_MODEL="\x1b[31m\r\n" + "x" * 1000)

    assert message.isprintable()
    assert message.startswith("LLM_MODEL=\ufffd[31m\ufffd\ufffd" + "x" * 193 + "…: ")


@pytest.mark.parametrize(
    ("model", "embedded"), [("llama3.2:1b", False), ("tiny.gguf", True), ("owner/repo:tiny.Q4.GGUF", True)]
)
def test_embedded_model_named(model: str, embedded: bool) -> None:
    """A GGUF file can only be meant for the embedded llama.cpp."""
    settings = Settings.load({"LLM_MODEL": model})

    assert embedded == settings.embedded_model_named
    assert settings.llm_model_given


def test_every_variable_says_what_it_is() -> None:
    """Each setting has a description, of one line."""
    assert [] == [name for name, field in variables().items() if not (field.description or "").isprintable()]
    assert all(field.description for field in variables().values())


# .env.example


def test_env_example_has_every_variable_in_order() -> None:
    """The example lists each variable, in the order of the settings, and then those of libraries."""
    listed = re.findall(r"^#?([A-Z][A-Z_0-9]*)=", env_example.env_example(), re.MULTILINE)

    assert [*variables(), *env_example.FOREIGN] == listed


def test_env_example_changes_nothing() -> None:
    """Copied as it is, the example gives the defaults, and asks for no model by name."""
    values = {name: value or "" for name, value in dotenv_values(stream=io.StringIO(env_example.env_example())).items()}
    settings = Settings.load(values)

    assert Settings.load({}) == settings
    assert not settings.llm_model_given
    assert "CUDA_VISIBLE_DEVICES" not in values


def test_env_example_knows_the_temperature_of_the_bundled_model() -> None:
    """What it says of DEFAULT_TEMPERATURE is what the engine does."""
    assert f" takes {BUNDLED_TEMPERATURE:g}" in env_example.UNSET["DEFAULT_TEMPERATURE"]


def test_env_example_uncommented_gives_the_defaults() -> None:
    """The defaults that are commented out are the defaults."""
    text = re.sub(r"^#(?=[A-Z_]+=)", "", env_example.env_example(), flags=re.MULTILINE)
    values = {name: value or "" for name, value in dotenv_values(stream=io.StringIO(text)).items()}
    assert "" == values.pop("CUDA_VISIBLE_DEVICES")  # its presence alone says something

    assert Settings.load({}) == Settings.load(values)


def test_env_example_has_the_headings_of_the_settings() -> None:
    """The example is grouped as the settings are, under the same headings."""
    found = re.findall(r"^    # ([A-Z].*)\n    (\w+):", inspect.getsource(config.Settings), re.MULTILINE)

    assert env_example.HEADINGS == {name.upper(): heading for heading, name in found}


def test_hosts_are_names() -> None:
    """Host names are taken in lower case and without their final dot; what is more than a name is refused."""
    assert ("llm.example.com", "*") == Settings.load({"ALLOWED_HOSTS": "LLM.example.com., *"}).allowed_hosts
    for wrong in ("https://llm.example.com", "llm.example.com:8000", "llm.example.com/x", "*.example.com", "a b"):
        with pytest.raises(ConfigurationError, match="each host must be "):
            Settings.load({"ALLOWED_HOSTS": wrong})


def test_what_must_be_asked_for() -> None:
    """By default the engine is asked for turns alone: nothing is read ahead, and nothing condensed."""
    settings = Settings.load({})
    assert (False, "trim") == (settings.warm_prompts, settings.context_strategy)
