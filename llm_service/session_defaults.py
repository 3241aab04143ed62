"""What a session is where its client chose nothing, and how far a client may choose."""

from dataclasses import dataclass

from llm_service.errors import InvalidConfig
from llm_service.events import SessionConfig
from llm_service.generation import SamplingParams


@dataclass(frozen=True, slots=True)
class SessionDefaults:
    """The service's own choices; a session's configuration is laid over them.

    `models` are those a client may ask for. `context_window`, in tokens, is the one the engine is told and
    the largest a session may have.
    """

    provider: str
    model: str
    models: frozenset[str]
    sampling: SamplingParams
    context_window: int
    system_prompt: str
    max_history_messages: int
    max_queued_messages: int

    def refusal(self, config: SessionConfig) -> InvalidConfig | None:
        """Return why the configuration cannot be had on this service, or None if it can."""
        if config.model is not None and config.model not in self.models:
            return InvalidConfig(f"config.model: not offered here; offered are {', '.join(sorted(self.models))}")
        if config.context_window is not None and config.context_window > self.context_window:
            return InvalidConfig(f"config.context_window: must be at most {self.context_window}")
        return None

    def model_for(self, config: SessionConfig) -> str:
        """Return the model that generates."""
        return config.model or self.model

    def window_for(self, config: SessionConfig) -> int:
        """Return the tokens that prompt and answer may have together."""
        return config.context_window or self.context_window

    def system_prompt_for(self, config: SessionConfig) -> str:
        """Return the text that stands before the conversation; a client may choose none by an empty one."""
        return self.system_prompt if config.system_prompt is None else config.system_prompt

    def sampling_for(self, config: SessionConfig) -> SamplingParams:
        """Return how tokens are chosen."""
        default = self.sampling
        return SamplingParams(
            temperature=default.temperature if config.temperature is None else config.temperature,
            top_p=default.top_p if config.top_p is None else config.top_p,
            top_k=default.top_k if config.top_k is None else config.top_k,
            max_tokens=min(default.max_tokens if config.max_tokens is None else config.max_tokens, self.context_window),
            stop=tuple(config.stop or ()),
            seed=config.seed,
        )
