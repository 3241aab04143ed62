"""Every setting of the service: its environment variable, default, unit and bounds.

The variable of a field is its name in capitals: `llm_port` is LLM_PORT. No other module names one.
"""

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from llm_service.audio_format import AudioFormat
from llm_service.engine_spec import HTTP_URL, EngineSpec, place
from llm_service.errors import ConfigurationError
from llm_service.speech_rules import SpeechRules

Provider = Literal["auto", "ollama", "openai", "vllm", "llama_cpp", "scripted"]
ComputeDevice = Literal["auto", "cuda", "cpu", "mps"]

Port = Annotated[int, Field(ge=1024, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
HttpUrl = Annotated[str, Field(pattern=HTTP_URL)]
CommaSeparated = Annotated[tuple[str, ...], NoDecode]
CommaSeparatedSecrets = Annotated[tuple[SecretStr, ...], NoDecode]


TTS_ENDPOINT = re.compile(
    r"(?P<kind>espeak)|(?P<http>openai|opea|gpt_sovits|gpt_sovits_v2|webhook)=(?P<url>https?://[^\s/?#]+(/[^\s?#]*)?)"
    r"|(?P<ws>fasttalk)=(?P<ws_url>wss?://[^\s/?#]+(/[^\s?#]*)?)"
)

# To CUDA, none visible and all visible are two things.
TOLD_BY_BEING_EMPTY = frozenset({"cuda_visible_devices"})


class Settings(BaseSettings):
    """The whole configuration, read once and never changed.

    Made by `Settings.load`, so that nothing but the command line knows where the values come from.
    """

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True)

    # What generates
    llm_provider: Provider = Field("auto", description="auto: Ollama if it has the model, else the embedded llama.cpp")
    llm_model: str = Field(
        "llama3.2:1b",
        min_length=1,
        max_length=512,
        pattern=r"^[^\x00-\x1f\x7f]+$",
        description="a model of the provider; for llama_cpp a .gguf file or owner/repo:file.gguf",
    )
    allowed_models: CommaSeparated = Field((), description="further models that a session may ask for, comma-separated")
    engines: Annotated[tuple[EngineSpec, ...], NoDecode] = Field(
        (),
        max_length=64,
        description="several engines in the place of LLM_PROVIDER's: a JSON list of objects; docs/pool.md has the keys",
    )
    ollama_base_url: HttpUrl = Field("http://localhost:11434", description="where Ollama listens")
    ollama_keep_alive: str = Field(
        "5m",
        pattern=r"^(-1|0|\d{1,9}|(\d{1,9}(\.\d+)?(ms|s|m|h))+)$",
        description="how long Ollama keeps the model loaded after a request; -1: always",
    )
    ollama_pull: bool = Field(False, description="download LLM_MODEL at start if Ollama does not have it")
    ollama_timeout: Seconds = Field(600.0, description="seconds Ollama may be silent before a response fails")
    openai_base_url: HttpUrl = Field(
        "http://localhost:8080/v1",
        validation_alias=AliasChoices("openai_base_url", "vllm_base_url"),
        description="an OpenAI-compatible API: vLLM, llama-server, LM Studio, TGI",
    )
    openai_api_key: SecretStr = Field(
        SecretStr(""),
        validation_alias=AliasChoices("openai_api_key", "vllm_api_key"),
        description="sent to that API as the bearer token",
    )
    openai_timeout: Seconds = Field(
        600.0,
        validation_alias=AliasChoices("openai_timeout", "vllm_timeout"),
        description="seconds that API may be silent before a response fails",
    )
    connect_timeout: Seconds = Field(5.0, description="seconds to reach an engine")
    ollama_num_parallel: int = Field(
        1, ge=1, le=1024, description="answers Ollama generates at once: the same variable as Ollama's own"
    )
    max_running: int | None = Field(
        None,
        ge=1,
        le=100_000,
        description="answers an engine is asked for at once, per worker; empty: OLLAMA_NUM_PARALLEL for Ollama, "
        "LLAMA_CPP_PARALLEL for llama_cpp, else 1024",
    )
    max_waiting: int = Field(
        64, ge=0, le=100_000, description="messages that wait for an engine, per worker; more are refused at once"
    )
    queue_timeout: Seconds = Field(30.0, description="seconds a message waits for an engine before it is refused")
    engine_retries: int = Field(
        2, ge=0, le=10, description="times an engine that fails before its first token is asked again"
    )
    retry_budget: Seconds = Field(
        10.0, description="seconds from the first failure on in which another attempt may begin"
    )
    load_timeout: Seconds = Field(300.0, description="seconds Ollama may take to load a model that is not in memory")
    first_token_timeout: Seconds = Field(300.0, description="seconds an engine may take to begin its answer")
    token_timeout: Seconds = Field(60.0, description="seconds an engine may be silent within its answer")
    response_timeout: Seconds = Field(1800.0, description="seconds an answer may last")
    model_path: str = Field("models", description="folder for GGUF files: names are looked up and downloads kept there")
    preload: bool = Field(True, description="have the model in memory before the service is ready")
    llama_cpp_parallel: int = Field(2, ge=1, le=64, description="responses the embedded llama.cpp generates at once")
    scripted_tokens_per_second: float = Field(50.0, gt=0, le=1_000_000, description="speed of the scripted engine")

    # Where it runs
    compute_device: ComputeDevice = Field("auto", description="auto takes cuda, then mps, then cpu")
    gpu_device_id: int = Field(0, ge=0, le=63, description="which GPU, counted as CUDA counts them")
    cuda_visible_devices: str | None = Field(None, description="the GPUs CUDA may use; read by CUDA itself, too")
    num_threads: int | None = Field(
        None, ge=1, le=1024, description="CPU threads of the engine; empty: this machine's physical cores"
    )

    # Defaults of a session
    system_prompt: str = Field(
        "You are a helpful assistant.", max_length=32_768, description="used by sessions that bring none"
    )
    default_temperature: float = Field(
        0.7, ge=0, le=2, allow_inf_nan=False, description="0: always the likeliest token"
    )
    default_max_tokens: int = Field(2048, ge=1, le=1_000_000, description="longest answer, in tokens")
    default_context_window: int = Field(8192, ge=256, le=10_000_000, description="tokens of prompt and answer together")
    default_top_p: float = Field(0.9, ge=0, le=1, allow_inf_nan=False, description="nucleus sampling")
    default_top_k: int = Field(40, ge=1, le=1000, description="choose among this many tokens")

    # Speech
    tts_endpoints: CommaSeparated = Field(
        (),
        description="what speaks, comma-separated, the first healthy one is asked: espeak, or KIND=URL with one of the "
        "kinds openai, opea, gpt_sovits, gpt_sovits_v2, fasttalk, webhook",
    )
    tts_api_key: SecretStr = Field(SecretStr(""), description="sent to TTS servers of the kind openai")
    tts_model: str = Field("tts-1", min_length=1, description="asked of TTS servers of the kind openai")
    tts_voice: str = Field("", max_length=128, description="voice of sessions that choose none; empty: the TTS's own")
    tts_language: str = Field(
        "",
        pattern=r"^([A-Za-z]{2,8}(-[A-Za-z0-9]{1,8}){0,3})?$",
        description="language of sessions that choose none, as in en or pt-BR; empty: what the text is in, where the "
        "TTS finds that out, else the TTS's own",
    )
    tts_speed: float = Field(1.0, ge=0.25, le=4, allow_inf_nan=False, description="speed of sessions that choose none")
    tts_format: AudioFormat = Field("wav", description="format of sessions that choose none")
    speech_enabled: bool = Field(False, description="speak in sessions that do not choose")
    speech_rules: str = Field(
        "",
        description="what is said of text that is not for the ear, if not the default, as in urls=omit; tables=omit",
    )
    tts_reference_audio: str = Field("", description="GPT-SoVITS: the recording to imitate, a path on its machine")
    tts_reference_text: str = Field("", description="GPT-SoVITS: what is said in that recording")
    tts_reference_language: str = Field("", description="GPT-SoVITS: the language it is said in")
    tts_files: str = Field("", description="FastTalk TTS: its output folder, mounted here, or a URL that serves it")
    tts_webhook_secret: SecretStr = Field(SecretStr(""), description="signs what is sent to a webhook")
    tts_timeout: Seconds = Field(10.0, description="seconds a TTS may be silent before a chunk fails")
    tts_max_ahead: Seconds = Field(15.0, description="seconds of audio that are made ahead of who listens")
    tts_max_waiting: int = Field(256, ge=1, le=100_000, description="chunks of a session that may wait for the TTS")

    # The server
    llm_host: str = Field("0.0.0.0", min_length=1, description="address of the WebSocket and HTTP port")  # noqa: S104
    llm_port: Port = Field(8000, description="WebSocket and HTTP port")
    llm_monitoring_host: str = Field("127.0.0.1", min_length=1, description="address of the monitoring port")
    llm_monitoring_port: Port = Field(9092, description="health, metrics and info")
    llm_max_connections: int = Field(50, ge=1, le=100_000, description="WebSocket clients at once, per worker")
    num_workers: int = Field(1, ge=1, le=256, description="processes that share the port")
    drain_timeout: Seconds = Field(30.0, description="seconds that running responses get to finish at shutdown")

    # Sessions
    session_timeout: Seconds = Field(3600.0, description="seconds of silence after which a session ends")
    max_history_length: int = Field(50, ge=1, le=100_000, description="messages of a session that are kept")
    context_low_water: float = Field(
        0.5, ge=0.05, le=0.95, description="share of the prompt's room that a trim leaves of the history"
    )
    context_high_water: float = Field(
        1.0, ge=0.1, le=1, description="share of the prompt's room past which turns are dropped from the front"
    )
    context_strategy: Literal["trim", "summarize"] = Field(
        "trim", description="what happens to what is dropped: nothing, or the engine condenses it between turns"
    )
    summary_max_tokens: int = Field(256, ge=32, le=4096, description="longest summary of what was dropped")
    warm_prompts: bool = Field(
        False, description="let partial_message warm the engine's prompt cache in sessions that do not choose"
    )
    aside_read_seconds: Annotated[float, Field(ge=0, le=60, allow_inf_nan=False)] = Field(
        1.0,
        description="seconds that Ollama, which can't be stopped while it reads a prompt, may need for one that is for "
        "no user; longer ones are not begun",
    )
    tool_timeout: Seconds = Field(60.0, description="seconds a client may take for the results of tool calls")
    resume_window: Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)] = Field(
        120.0, description="seconds in which a client that lost its connection gets what it missed; 0: never"
    )
    resume_generate: Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)] = Field(
        15.0, description="seconds a response goes on without its client; one that says goodbye stops it at once"
    )
    resume_buffer_bytes: int = Field(
        262_144, ge=4096, le=67_108_864, description="newest events of a session that are kept for its client to miss"
    )
    max_resting_sessions: int = Field(
        1000, ge=1, le=1_000_000, description="sessions without a connection in memory, per worker"
    )
    session_store: Literal["memory", "sqlite", "redis"] = Field(
        "memory",
        description="where sessions rest; those in memory are lost at a restart, and known to one worker alone",
    )
    sqlite_path: str = Field("sessions.sqlite3", min_length=1, description="the file of SESSION_STORE=sqlite")
    redis_url: SecretStr = Field(
        SecretStr("redis://localhost:6379/0"),
        description="the Redis of SESSION_STORE=redis, with rediss:// for TLS; empty: redis://localhost:6379/0",
    )
    redis_prefix: str = Field(
        "fasttalk:", pattern=r"^[\x21-\x7e]{1,64}$", description="begins every key and channel in Redis"
    )
    store_timeout: Seconds = Field(2.0, description="seconds SQLite or Redis may take for an answer")
    session_store_bytes: int = Field(
        67_108_864, ge=65_536, le=68_719_476_736, description="sessions that rest in memory, per worker"
    )
    max_record_bytes: int = Field(
        8_388_608, ge=65_536, le=268_435_456, description="largest session that is saved; a larger one is not"
    )
    max_queued_messages: int = Field(8, ge=1, le=1000, description="user messages that wait under on_busy=queue")
    greeting_delay_ms: int = Field(
        250, ge=0, le=60_000, description="how long a client may be silent before session_started is said to it"
    )

    # Who may come in, and with what
    allowed_origins: CommaSeparated = Field(
        (), description="web origins that may connect, comma-separated, or *; the service's own is always allowed"
    )
    allowed_hosts: CommaSeparated = Field(
        (),
        description="host names of this service with dots in them, comma-separated, or *; addresses, single words, "
        "*.local, *.localhost, *.internal and the hosts of ALLOWED_ORIGINS are always allowed",
    )
    api_keys: CommaSeparatedSecrets = Field(
        (), description="comma-separated; empty, and no API_KEYS_FILE: no key is asked for"
    )
    api_keys_file: str = Field(
        "", description="further keys, one a line, # before comments; read again and again: a key that goes is revoked"
    )
    header_timeout: Seconds = Field(5.0, description="seconds for a request's headers to arrive")
    first_message_timeout: Seconds = Field(10.0, description="seconds for a client's first message to arrive")
    max_message_bytes: int = Field(65_536, ge=1024, le=16_777_216, description="longest WebSocket message")
    max_body_bytes: int = Field(1_048_576, ge=1024, le=67_108_864, description="longest body of an HTTP request")
    max_invalid_messages: int = Field(
        100, ge=1, le=1_000_000, description="or too many, in a row, before the client is cut off"
    )
    message_rate: Annotated[float, Field(ge=0, le=1_000_000, allow_inf_nan=False)] = Field(
        100.0, description="messages a minute of one key, or without keys of one connection, per worker; 0: any number"
    )
    message_burst: int = Field(20, ge=1, le=1_000_000, description="messages that may come at once within that rate")
    max_pending_bytes: int = Field(
        1_048_576, ge=65_536, le=1_073_741_824, description="unsent, before a slow client is cut off"
    )
    send_timeout: Seconds = Field(10.0, description="seconds a client may take nothing before it is cut off")
    ping_interval: Seconds = Field(20.0, description="seconds between two pings")
    ping_timeout: Seconds = Field(20.0, description="seconds a pong may take")

    # Logs
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = Field(
        "INFO", description="least severe to log"
    )
    log_format: Literal["console", "json"] = Field("console", description="for people or for machines")
    log_path: str = Field("", description="folder for rotating log files; empty: standard error only")
    log_prompts: bool = Field(False, description="write what users and models say into the log")

    @field_validator("allowed_models", "allowed_origins", "allowed_hosts", "api_keys", "tts_endpoints", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("api_keys", mode="before")
    @classmethod
    def _check_keys(cls, value: object) -> object:
        # As it was written: whoever wrote something there wants the service closed.
        if isinstance(value, str):
            keys = [key.strip() for key in value.split(",")]
            if not all(map(is_key, keys)):
                raise ValueError("each key must be printable ASCII without spaces, as headers carry it, and not empty")
        return value

    @field_validator("tts_endpoints")
    @classmethod
    def _check_endpoints(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for endpoint in value:
            if not TTS_ENDPOINT.fullmatch(endpoint):
                raise ValueError(
                    "each TTS must be espeak, or KIND=URL as in openai=http://localhost:8880/v1; kinds are openai, "
                    "opea, gpt_sovits, gpt_sovits_v2, fasttalk (ws://) and webhook"
                )
        return value

    @field_validator("speech_rules")
    @classmethod
    def _check_rules(cls, value: str) -> str:
        SpeechRules.parse(value)
        return value

    @field_validator("engines", mode="before")
    @classmethod
    def _read_engines(cls, value: object) -> object:
        try:
            read = json.loads(value) if isinstance(value, str) else value
        except (ValueError, RecursionError):
            read = None
        if isinstance(read, list | tuple):
            return tuple(read)
        raise ValueError("it is not a JSON list")

    @field_validator("engines")
    @classmethod
    def _check_engines(cls, value: tuple[EngineSpec, ...]) -> tuple[EngineSpec, ...]:
        names = [spec.name for spec in value]
        if len(set(names)) < len(names):
            raise ValueError(f"each engine needs a name of its own: {', '.join(names)}")
        return value

    @field_validator("allowed_origins")
    @classmethod
    def _check_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            scheme, separator, rest = origin.partition("://")
            if origin != "*" and not (separator and scheme and rest and "/" not in rest):
                raise ValueError("each origin must be * or scheme://host[:port] without a path")
        return tuple(origin.lower() for origin in value)

    @field_validator("allowed_hosts")
    @classmethod
    def _check_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for host in value:
            if host != "*" and not re.fullmatch(r"[A-Za-z0-9._-]+", host):
                raise ValueError("each host must be * or a name without scheme and port")
        return tuple(host.lower().removesuffix(".") for host in value)

    @model_validator(mode="after")
    def _check_ports(self) -> Self:
        if self.llm_port == self.llm_monitoring_port:
            raise ValueError(f"LLM_PORT and LLM_MONITORING_PORT are both {self.llm_port}; they must differ")
        return self

    @model_validator(mode="after")
    def _check_marks(self) -> Self:
        if self.context_low_water >= self.context_high_water:
            raise ValueError(
                f"CONTEXT_LOW_WATER is {self.context_low_water:g} and CONTEXT_HIGH_WATER {self.context_high_water:g}; "
                "the low mark must be below the high one"
            )
        return self

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper(cls, value: object) -> object:
        return value.upper() if isinstance(value, str) else value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take values from the caller alone: see `load`."""
        return (init_settings,)

    @classmethod
    def load(cls, environment: Mapping[str, str]) -> "Settings":
        """Read the settings from a mapping of environment variables; empty ones count as not given.

        Raises:
            ConfigurationError: naming each variable that is wrong, its value and what is allowed.
        """
        source = _MappingSource(cls, environment)
        try:
            return cls(**source())
        except ValidationError as error:
            lines = [_explain(details, environment) for details in error.errors(include_url=False)]
            raise ConfigurationError("; ".join(lines)) from None

    @property
    def embedded_model_named(self) -> bool:
        """Whether LLM_MODEL can only be meant for the embedded llama.cpp."""
        return self.llm_model.lower().endswith(".gguf")

    @property
    def llm_model_given(self) -> bool:
        """Whether somebody asked for this model by name."""
        return "llm_model" in self.model_fields_set

    @property
    def default_temperature_given(self) -> bool:
        """Whether somebody chose the temperature."""
        return "default_temperature" in self.model_fields_set


class _MappingSource(EnvSettingsSource):
    """pydantic-settings' reader of environments, over a mapping in the place of the process's own."""

    def __init__(self, settings_cls: type[BaseSettings], environment: Mapping[str, str]) -> None:
        self._environment = environment
        super().__init__(settings_cls)

    def _load_env_vars(self) -> Mapping[str, str | None]:
        given = {name.lower(): value for name, value in self._environment.items()}
        return {name: value for name, value in given.items() if value.strip() or name in TOLD_BY_BEING_EMPTY}


def is_key(text: str) -> bool:
    """Whether this can be an API key: printable ASCII without spaces, as headers carry it."""
    return text != "" and text.isascii() and text.isprintable() and " " not in text


def variables() -> dict[str, FieldInfo]:
    """Return every environment variable and its field, in the order of the documentation."""
    return {name.upper(): field for name, field in Settings.model_fields.items()}


def aliases(variable: str) -> tuple[str, ...]:
    """Return the names under which a setting may be given; its own is the first and wins."""
    choices = Settings.model_fields[variable.lower()].validation_alias
    return tuple(str(name).upper() for name in choices.choices) if isinstance(choices, AliasChoices) else (variable,)


def shown(settings: Settings) -> dict[str, Any]:
    """Return the settings by variable, as JSON values, with secrets masked."""
    values = settings.model_dump(mode="json")
    values["redis_url"] = settings.redis_url.get_secret_value()  # what of it is secret is masked as in any URL
    return {name.upper(): _masked(value) for name, value in values.items()}


def _explain(details: ErrorDetails, environment: Mapping[str, str]) -> str:
    if not details["loc"]:
        return str(details["ctx"]["error"])  # of several settings together: it names them itself
    # pydantic names a setting by the first of its aliases, whichever was given.
    names = aliases(str(details["loc"][0]).upper())
    given = {name.upper(): value for name, value in environment.items() if value.strip()}
    variable = next((name for name in names if name in given), names[0])
    secret = variable.endswith(("API_KEY", "API_KEYS", "SECRET", "ENGINES"))
    value = "********" if secret else _printable(given.get(variable, ""))
    context = details.get("ctx", {})
    message = str(context["error"]) if "error" in context else details["msg"]
    purpose = variables()[names[0]].description
    within = place(details["loc"][1:])
    return f"{variable}={value}: {within and within + ': '}{message[0].lower()}{message[1:]} ({purpose})"


def _masked(value: Any) -> Any:
    match value:
        case str():
            return masked(value)
        case list():
            return [_masked(each) for each in value]
        case dict():
            return {key: _masked(each) for key, each in value.items()}
    return value


def masked(text: str) -> str:
    """Hide what of a URL may be a secret: its name and password, its query, and the path of a webhook."""
    text = re.sub(r"//[^/]*@", "//********@", text)
    text = re.sub(r"(://[^\s?]*)\?\S*", r"\1?********", text)
    return re.sub(r"(webhook=https?://[^\s,/?]*)/[^\s,?]+", r"\1/********", text)


def _printable(text: str, limit: int = 200) -> str:
    """Make a value fit for a line of a terminal: short, masked, without control characters."""
    whole = masked(text)
    line = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in whole[:limit])
    return line if len(whole) <= limit else line + "…"
