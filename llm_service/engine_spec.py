"""One engine of several, as ENGINES describes it."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

MemberProvider = Literal["ollama", "openai", "vllm", "llama_cpp", "scripted"]

HTTP_URL = r"^https?://[^\s/?#]+(/[^\s?#]*)?$"
# Those that are found at an address.
_DISTANT = ("ollama", "openai", "vllm")

_Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
_ModelName = Annotated[str, Field(min_length=1, max_length=512, pattern=r"^[^\x00-\x1f\x7f]+$")]


class EngineSpec(BaseModel):
    """What is left out is as it is for a single engine of this provider.

    `models` are those it is asked for: by the names that sessions use, each with the engine's own name for it; empty
    means those it lists. `name` is what metrics, logs and `/stats` call it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")]
    provider: MemberProvider
    url: Annotated[str, Field(pattern=HTTP_URL, max_length=2048)] | None = Field(None, repr=False)
    models: dict[_ModelName, _ModelName] = Field(default_factory=dict)
    api_key: SecretStr = SecretStr("")
    max_running: Annotated[int, Field(ge=1, le=100_000)] | None = None
    timeout: _Seconds | None = None
    load_timeout: _Seconds | None = None
    first_token_timeout: _Seconds | None = None
    token_timeout: _Seconds | None = None
    response_timeout: _Seconds | None = None

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, value: object) -> object:
        if not isinstance(value, dict) or not set(value) <= set(cls.model_fields):
            raise ValueError(f"each engine is an object with some of these keys: {', '.join(cls.model_fields)}")
        return value

    @field_validator("models", mode="before")
    @classmethod
    def _same_names(cls, value: object) -> object:
        return {name: name for name in value} if isinstance(value, list) and _are_names(value) else value

    @model_validator(mode="after")
    def _check_url(self) -> Self:
        if (self.url is not None) != (self.provider in _DISTANT):
            needs = "needs a url" if self.url is None else "runs in this process and has no url"
            raise ValueError(f"an engine of provider {self.provider} {needs}")
        return self

    def limits(self) -> Mapping[str, Any]:
        """Return the settings that are this engine's own, by the names they have in `Settings`."""
        names = ("max_running", "load_timeout", "first_token_timeout", "token_timeout", "response_timeout")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


def place(location: tuple[int | str, ...]) -> str:
    """Return where in ENGINES something is wrong, as in `[1].url`; what was written there is not repeated."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in location]
    return "".join(part for part in parts if re.fullmatch(r"\[\d+\]|\.[a-z_]{1,32}", part))


def _are_names(value: list[object]) -> bool:
    return all(isinstance(name, str) for name in value)
