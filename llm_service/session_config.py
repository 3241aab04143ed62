"""What a client may choose for its session. Pure.

Pydantic models, since a wrong choice must be answered with its place and its bounds.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Field, field_validator

from llm_service.audio_format import AudioFormat

OptionalEvent = Literal["response_started", "thinking", "queued", "context", "chunk", "audio"]
OnBusy = Literal["reject", "interrupt", "queue"]
ContextStrategy = Literal["trim", "summarize"]
StopSequence = Annotated[str, Field(min_length=1, max_length=100)]


MAX_SCHEMA_BYTES = 16_384
# Engines compile a schema into a grammar; with these a client could make that arbitrarily dear.
REFUSED_IN_SCHEMAS = frozenset(
    {"pattern", "patternProperties", "$ref", "$dynamicRef", "$defs", "definitions", "format"}
)
BOUNDED_IN_SCHEMAS = frozenset({"maxLength", "minLength", "maxItems", "minItems", "maxProperties", "minProperties"})
MAX_SCHEMA_COUNT = 10_000
# The keys of what stands under these are the tool's own names and no keywords.
_NAMING = frozenset({"properties", "dependentSchemas", "dependentRequired"})


class ToolFunction(BaseModel):
    """A function the model may ask for."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$", description="what the call will name")
    description: str = Field("", max_length=4096, description="for the model: what it does and when to use it")
    parameters: dict[str, Any] = Field(
        default_factory=lambda: {"type": "object", "properties": {}}, description="a JSON Schema of the arguments"
    )

    @field_validator("parameters")
    @classmethod
    def _check_parameters(cls, value: dict[str, Any]) -> dict[str, Any]:
        if len(msgspec.json.encode(value)) > MAX_SCHEMA_BYTES:
            raise ValueError(f"must have at most {MAX_SCHEMA_BYTES} bytes")
        keywords = list(_keywords(value))
        if held := REFUSED_IN_SCHEMAS.intersection(key for key, _ in keywords):
            raise ValueError(f"must not hold {', '.join(sorted(held))}; engines make grammars of it")
        if high := {key for key, number in keywords if key in BOUNDED_IN_SCHEMAS and _above(number)}:
            raise ValueError(
                f"must hold no {', '.join(sorted(high))} above {MAX_SCHEMA_COUNT}; engines make grammars of it"
            )
        return value


class ToolSpec(BaseModel):
    """OpenAI's form: {"type": "function", "function": {…}}."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    type: Literal["function"] = "function"
    function: ToolFunction


class SpeechConfig(BaseModel):
    """How the answers are spoken; what is left out, or null, is the service's default."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    enabled: bool | None = Field(
        None, description="cut answers into speakable chunks; audio of them comes to who names audio in config.events"
    )
    # No path, option or query can be made of these.
    voice: str | None = Field(
        None, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:,+ -]{0,127}$", description="a voice of the TTS, by its own name"
    )
    language: str | None = Field(
        None, pattern=r"^[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8}){0,3}$", description="as in en, pt-BR or zh"
    )
    format: AudioFormat | None = Field(None, description="pcm: 16-bit mono samples, little-endian; opus: in an Ogg")
    speed: float | None = Field(
        None, ge=0.25, le=4, allow_inf_nan=False, description="a factor; 1: as the voice speaks"
    )
    binary: bool | None = Field(None, description="send audio as binary frames: a header of 12 bytes, then the data")


class SessionConfig(BaseModel):
    """What a client may choose for its session; what it leaves out, or gives as null, is the service's default."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    system_prompt: str | None = Field(None, max_length=32_768, description="stands before the conversation")
    model: str | None = Field(None, min_length=1, max_length=512, description="one of the models the service offers")
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False, description="0: the likeliest token")
    top_p: float | None = Field(None, ge=0, le=1, allow_inf_nan=False, description="nucleus sampling")
    top_k: int | None = Field(None, ge=1, le=1000, description="choose among this many tokens")
    max_tokens: int | None = Field(None, ge=1, le=1_000_000, description="longest answer, in tokens")
    stop: Annotated[list[StopSequence], Field(max_length=16)] | None = Field(
        None, description="texts that end the answer"
    )
    seed: int | None = Field(None, ge=0, le=4_294_967_295, description="same seed, same prompt: same answer")
    context_window: int | None = Field(
        None, ge=256, le=10_000_000, description="tokens of prompt and answer; at most the service's own"
    )
    think: bool | None = Field(None, description="whether a reasoning model reasons; null leaves it to the model")
    on_busy: OnBusy | None = Field(None, description="what a user_message does while a response runs")
    context_strategy: ContextStrategy | None = Field(
        None, description="what becomes of turns the window has no room for: dropped, or condensed between turns"
    )
    warm: bool | None = Field(None, description="whether partial_message warms the engine's prompt cache")
    tools: Annotated[list[ToolSpec], Field(max_length=64)] | None = Field(
        None, description="functions the model may ask for: each call comes as a tool_call event"
    )
    speech: SpeechConfig | None = Field(None, description="whether and how answers are spoken")
    events: Annotated[list[OptionalEvent], Field(max_length=16)] | None = Field(
        None, description="further server events this client understands"
    )

    @field_validator("tools")
    @classmethod
    def _check_tools(cls, value: list[ToolSpec] | None) -> list[ToolSpec] | None:
        if value is not None and len({spec.function.name for spec in value}) < len(value):
            raise ValueError("must not name a function twice")
        return value


def config_as_sent(config: SessionConfig) -> dict[str, Any]:
    """Return the configuration with the keys the client gave, and no others."""
    return config.model_dump(exclude_unset=True)


def merge_config(old: SessionConfig, new: SessionConfig) -> SessionConfig:
    """Return `old` with the keys that `new` gives, those of speech one by one; a null takes the service's default."""
    update = {key: getattr(new, key) for key in new.model_fields_set}
    if old.speech is not None and new.speech is not None:
        given = {key: getattr(new.speech, key) for key in new.speech.model_fields_set}
        update["speech"] = old.speech.model_copy(update=given)
    return old.model_copy(update=update)


def _keywords(schema: object) -> Iterator[tuple[str, object]]:
    """Yield every keyword in a schema with its value, however deep; messages are bounded in depth before."""
    if isinstance(schema, list):
        for part in schema:
            yield from _keywords(part)
    elif isinstance(schema, dict):
        for key, value in schema.items():
            yield key, value
            if key in _NAMING and isinstance(value, dict):
                for name, part in value.items():
                    # Engines look for references everywhere, and no parameter has such a name.
                    if name.startswith("$"):
                        yield name, part
                    yield from _keywords(part)
            else:
                yield from _keywords(value)


def _above(number: object) -> bool:
    return isinstance(number, int | float) and number > MAX_SCHEMA_COUNT
