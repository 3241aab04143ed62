"""What opening an engine gives."""

from dataclasses import dataclass

from llm_service.devices import Device
from llm_service.engines.base import Engine
from llm_service.engines.members import MemberEngine

# Providers of which some (vLLM) want room in the window for the longest answer asked for, behind the prompt.
COUNTING_ANSWERS = ("openai", "vllm")


@dataclass(frozen=True, slots=True)
class OpenedEngine:
    """An engine that has its model in memory, and why it was chosen.

    `models` are those a session may ask for; `context_window` is in tokens: the configured one, or less
    where the model has less. `temperature` is what the model wants where nobody chose one, or None.
    `counts_tokens` says whether the engine could count tokens when it was opened, `window_enforced` whether it
    refuses a prompt that is longer than `context_window`: one with a larger window of its own does not.
    `answer_in_window` says that it may refuse one, too, that leaves no room for the longest answer. `members` are the
    engines that ENGINES names, which `engine` is together; some of them may not be there yet.
    """

    engine: Engine
    provider: str
    model: str
    models: frozenset[str]
    context_window: int
    device: Device
    reason: str
    temperature: float | None = None
    counts_tokens: bool = False
    window_enforced: bool = True
    answer_in_window: bool = False
    members: tuple[MemberEngine, ...] = ()
