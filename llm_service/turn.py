"""One turn of a conversation: what the user said, the tools that were asked, and the answer. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from llm_service.generation import Message, ToolCall


@dataclass(slots=True)
class ToolStep:
    """The model asked for tools, having said `text`; `results` are by the calls' ids."""

    text: str
    calls: tuple[ToolCall, ...]
    results: dict[str, str] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        """Whether every call has its result."""
        return len(self.results) == len(self.calls)

    def messages(self) -> Iterator[Message]:
        """The messages of a whole step: the calls, then their results."""
        yield Message("assistant", self.text, tool_calls=self.calls)
        for call in self.calls:
            yield Message("tool", self.results[call.id], tool_call_id=call.id, tool_name=call.name)


@dataclass(slots=True)
class Turn:
    """A user message and its answer. `tokens` is the engine's count if it `counted`, else an estimate."""

    user: str
    answer: str = ""
    interrupted: bool = False
    tokens: int = 0
    counted: bool = False
    steps: list[ToolStep] = field(default_factory=list)

    @property
    def messages(self) -> int:
        """How many messages of the history it is."""
        return 1 + bool(self.answer) + sum(1 + len(step.calls) for step in self.steps)

    @property
    def answered(self) -> bool:
        """Whether an assistant's message stands behind the user's."""
        return bool(self.answer or self.steps)

    @property
    def bytes(self) -> int:
        """Its text in UTF-8, tools included."""
        size = len(self.user.encode()) + len(self.answer.encode())
        for step in self.steps:
            size += len(step.text.encode()) + sum(len(result.encode()) for result in step.results.values())
            size += sum(len(call.name) + len(call.arguments.encode()) for call in step.calls)
        return size

    def drop_open_step(self) -> None:
        """Forget calls that never got their results, but not what was said before them: the client was sent it."""
        if self.steps and not self.steps[-1].whole:
            self.answer = self.steps.pop().text + self.answer

    def reply(self) -> Iterator[Message]:
        """What stands behind the user's message."""
        for step in self.steps:
            yield from step.messages()
        if self.answer:
            yield Message("assistant", self.answer)
