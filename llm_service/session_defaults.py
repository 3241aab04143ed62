"""What a session is where its client chose nothing, and how far a client may choose."""

from dataclasses import dataclass

from llm_service.errors import InvalidConfig
from llm_service.generation import SamplingParams, Tool
from llm_service.session_config import ContextStrategy, SessionConfig, tools_of


@dataclass(frozen=True, slots=True)
class SessionDefaults:
    """The service's own choices; a session's configuration is laid over them.

    `models` are those a client may ask for. `context_window`, in tokens, is the one the engine is told and
    the largest a session may have. `low_water` and `high_water` are shares of a prompt's room; `warm` whether
    partial messages warm the prompt cache; `counts_tokens` whether the engine counts the tokens of a text.
    `tool_timeout` is in seconds.
    """

    provider: str
    model: str
    models: frozenset[str]
    sampling: SamplingParams
    context_window: int
    system_prompt: str
    max_history_messages: int
    max_queued_messages: int
    low_water: float = 0.5
    high_water: float = 1.0
    context_strategy: ContextStrategy = "trim"
    summary_max_tokens: int = 256
    warm: bool = False
    tool_timeout: float = 60.0
    counts_tokens: bool = False

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

    def summarizes(self, config: SessionConfig) -> bool:
        """Return whether what is dropped is condensed."""
        return (config.context_strategy or self.context_strategy) == "summarize"

    def warms(self, config: SessionConfig) -> bool:
        """Return whether partial messages warm the engine's prompt cache."""
        return self.warm if config.warm is None else config.warm

    def tools_for(self, config: SessionConfig) -> tuple[Tool, ...]:
        """Return the functions the model may ask for."""
        return tools_of(config)
