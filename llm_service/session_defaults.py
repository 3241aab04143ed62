"""What a session is where its client chose nothing, and how far a client may choose."""

from dataclasses import dataclass, field

from llm_service.errors import InvalidConfig
from llm_service.generation import SamplingParams, Tool
from llm_service.session_config import ContextStrategy, OnBusy, OptionalEvent, SessionConfig
from llm_service.speech_choices import SpeechChoices, SpeechDefaults


@dataclass(frozen=True, slots=True)
class Choices:
    """What holds in a session: its client's configuration, laid over the service's defaults.

    `config` is as the client sent it; `window` is the tokens that prompt and answer may have together; `speech` is None
    where nothing is spoken.
    """

    config: SessionConfig
    model: str
    window: int
    sampling: SamplingParams
    system_prompt: str
    tools: tuple[Tool, ...]
    on_busy: OnBusy
    summarizes: bool
    warms: bool
    events: frozenset[OptionalEvent]
    speech: SpeechChoices | None


@dataclass(frozen=True, slots=True)
class SessionDefaults:
    """The service's own choices, and those a client may make.

    `models` are those a client may ask for. `context_window`, in tokens, is the one the engine is told and
    the largest a session may have. `low_water` and `high_water` are shares of a prompt's room; `warm` whether
    partial messages warm the prompt cache; `counts_tokens` whether the engine counts the tokens of a text,
    `window_enforced` whether it refuses a prompt that is too long for that window, `answer_in_window` whether it
    refuses one, too, that leaves no room for the longest answer asked for. `tool_timeout` is in seconds.
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
    window_enforced: bool = True
    answer_in_window: bool = False
    speech: SpeechDefaults = field(default_factory=SpeechDefaults)

    def refusal(self, config: SessionConfig) -> InvalidConfig | None:
        """Return why the configuration cannot be had on this service, or None if it can."""
        if config.model is not None and config.model not in self.models:
            return InvalidConfig(f"config.model: not offered here; offered are {', '.join(sorted(self.models))}")
        if config.context_window is not None and config.context_window > self.context_window:
            return InvalidConfig(f"config.context_window: must be at most {self.context_window}")
        return self.speech.refusal(config)

    def choices(self, config: SessionConfig) -> Choices:
        """Lay a client's configuration over the defaults; it may choose to have no system prompt by an empty one."""
        return Choices(
            config=config,
            model=config.model or self.model,
            window=config.context_window or self.context_window,
            sampling=self._sampling(config),
            system_prompt=self.system_prompt if config.system_prompt is None else config.system_prompt,
            tools=tuple(
                Tool(spec.function.name, spec.function.description, spec.function.parameters)
                for spec in config.tools or ()
            ),
            on_busy=config.on_busy or "reject",
            summarizes=(config.context_strategy or self.context_strategy) == "summarize",
            warms=self.warm if config.warm is None else config.warm,
            events=frozenset(config.events or ()),
            speech=self.speech.choices(config),
        )

    def _sampling(self, config: SessionConfig) -> SamplingParams:
        default = self.sampling
        return SamplingParams(
            temperature=default.temperature if config.temperature is None else config.temperature,
            top_p=default.top_p if config.top_p is None else config.top_p,
            top_k=default.top_k if config.top_k is None else config.top_k,
            max_tokens=min(default.max_tokens if config.max_tokens is None else config.max_tokens, self.context_window),
            stop=tuple(config.stop or ()),
            seed=config.seed,
        )
